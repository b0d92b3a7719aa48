"""Detectors of regions, held to the record of what detectron2 and torchvision gave: tests/data/detectors.json."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco

from ml_backend.segmenters.base import Image
from ml_backend.segmenters.roi import PROJECTED, Regions, RoiSegmenter, attention, check_classes, paste, take
from propagation.errors import MaskError, SettingsError
from propagation.masks import build_table
from propagation.rle import decode

RECORD = json.loads((Path(__file__).parents[2] / "data" / "detectors.json").read_text())
PIXELS = np.zeros((60, 80, 3), np.uint8)


def drawn(run, seed=0):
    """Regions of the shapes, types and ranges that a run recorded."""
    chance = np.random.default_rng(seed)
    arrays = {}
    for name, told in run["regions"].items():
        least, most = told["range"]
        made = chance.uniform(least, most, told["shape"])
        arrays[name] = (
            chance.integers(least, most + 1, told["shape"]) if "int" in told["dtype"] else made
        ).astype(told["dtype"])
    corners = arrays["boxes"].reshape(-1, 2, 2)
    arrays["boxes"] = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    return Regions(**arrays)


def segmenter(regions, classes=("cat", "cup"), least_score=0.0, most=100, categories=None):
    return RoiSegmenter(lambda pixels: regions, classes, take(classes, categories), least_score, most)


def found(regions, **options):
    return segmenter(regions, **options).segment([Image("a.png", PIXELS)])[0]


def regions(scores=(0.9, 0.8, 0.7), classes=(0, 1, 0), **more):
    """Full masks over squares of ten pixels, side by side."""
    n = len(scores)
    lefts = 10.0 * np.arange(n)
    return Regions(
        boxes=np.stack([lefts, 0 * lefts, lefts + 10, 0 * lefts + 10], axis=1).astype(np.float32),
        scores=np.array(scores, np.float32),
        classes=np.array(classes, np.int64),
        masks=np.ones((n, 28, 28), np.float32),
        **more,
    )


@pytest.mark.parametrize("run", RECORD["runs"], ids=lambda run: f"{run['model']}-{run['photo']}")
def test_what_a_library_gave_becomes_detections_that_can_be_clustered(run):
    given = drawn(run)
    names = tuple(f"class {number}" for number in range(int(run["regions"]["classes"]["range"][1]) + 1))
    image = Image(run["photo"], np.zeros((*run["size"], 3), np.uint8))
    made = RoiSegmenter(lambda pixels: given, names, names, 0.0, 1000)
    (detections,) = made.segment([image])
    assert detections.features.dtype == np.float32
    assert detections.features.shape[1] == run["features"][1]
    assert len(detections) > len(given.scores) / 2
    assert (np.diff(detections.scores) <= 0).all()
    table = build_table([image.key], [detections], made.categories, "v1")
    assert table.features["deep"].shape[1] == run["features"][1]
    assert np.isfinite(table.features["deep"]).all()


@pytest.mark.parametrize("kept", RECORD["pasted"], ids=lambda kept: kept["model"])
def test_masks_are_pasted_as_the_library_does(kept):
    side = kept["side"]
    mask = np.frombuffer(zlib.decompress(base64.b64decode(kept["mask"])), np.float32).reshape(side, side)
    made = paste(np.pad(mask, kept["border"]), np.array(kept["box"], np.float32), kept["size"])
    theirs = {"size": kept["size"], "counts": kept["counts"].encode()}
    np.testing.assert_array_equal(decode(made), decode(theirs))


boxes = st.tuples(st.floats(0, 70), st.floats(0, 50), st.floats(0.5, 40), st.floats(0.5, 40))


@given(boxes)
def test_a_full_mask_fills_the_pixels_whose_centres_are_in_its_box(box):
    left, top, width, height = box
    corners = np.array([left, top, left + width, top + height], np.float32)
    made = paste(np.ones((28, 28), np.float32), corners, PIXELS.shape[:2])
    y, x = np.mgrid[:60, :80] + 0.5
    surely = (x > corners[0] + 1e-3) & (x < corners[2] - 1e-3) & (y > corners[1] + 1e-3) & (y < corners[3] - 1e-3)
    perhaps = (x > corners[0] - 1e-3) & (x < corners[2] + 1e-3) & (y > corners[1] - 1e-3) & (y < corners[3] + 1e-3)
    painted = np.zeros(PIXELS.shape[:2], bool) if made is None else decode(made)
    # at a corner both weights are halves: a pixel there may stay outside
    assert not (painted & ~perhaps).any()
    assert (surely & ~painted).sum() <= 4


def test_between_the_cells_of_a_mask_it_is_bilinear():
    mask = np.random.default_rng(0).random((28, 28), np.float32)
    grown = cv2.resize(mask, (56, 56), interpolation=cv2.INTER_LINEAR)
    made = decode(paste(mask, np.array([10, 2, 66, 58], np.float32), PIXELS.shape[:2]))
    inner = np.s_[3:57, 11:65]
    np.testing.assert_array_equal(made[inner], np.pad(grown, ((2, 2), (10, 14)))[inner] >= 0.5)


def test_a_border_of_nothing_is_pasted_with_the_mask():
    one = regions(scores=(0.9,), classes=(0,), border=1)
    made = found(replace(one, boxes=np.array([[10, 5, 40, 35]], np.float32)))
    (rle,) = made.rles
    assert coco.toBbox(dict(rle)).tolist() == [11, 6, 28, 28]


def test_a_mask_with_nothing_inside_is_left_out():
    given = regions()
    given.masks[1] = 0.4
    made = found(given)
    assert made.scores.tolist() == pytest.approx([0.9, 0.7])


def test_scores_count_the_predicted_iou_and_stay_within_one():
    made = found(regions(quality=np.array([0.5, 1.0, 1.6], np.float32)), least_score=0.75)
    # the class score decides who is taken, the product in which order
    assert made.scores.tolist() == pytest.approx([0.8, 0.45])
    assert found(regions(scores=(0.9,), classes=(0,), quality=np.array([1.6], np.float32))).scores.tolist() == [1]


def test_only_the_categories_asked_for_are_taken_and_only_the_most_likely():
    chosen = segmenter(regions(scores=(0.5, 0.8, 0.7), classes=(0, 1, 0)), categories=("cup",))
    assert chosen.categories == ("cup",)
    (made,) = chosen.segment([Image("a.png", PIXELS)])
    assert made.categories.tolist() == [0]
    assert made.scores.tolist() == pytest.approx([0.8])
    assert found(regions(scores=(0.5, 0.8, 0.7)), most=2).scores.tolist() == pytest.approx([0.8, 0.7])


def test_classes_without_a_name_are_never_taken():
    made = segmenter(regions(), classes=("cat", None))
    assert made.categories == ("cat",)
    assert made.segment([Image("a.png", PIXELS)])[0].scores.tolist() == pytest.approx([0.9, 0.7])


def test_no_region_at_all_is_no_mask():
    made = found(regions(scores=(), classes=(), maps=np.zeros((0, 256, 14, 14), np.float32)))
    assert len(made) == 0
    assert made.features.shape == (0, PROJECTED)


def test_a_score_that_is_no_number_is_complained_of():
    made = found(regions(scores=(0.9, np.nan, 0.7)), least_score=0.5)
    with pytest.raises(MaskError, match=r"image a\.png, mask 2 of 3: its score is not a number"):
        build_table(["a.png"], [made], ("cat", "cup"), "v1")


@pytest.mark.parametrize("part", ["boxes", "masks"])
def test_masks_that_are_no_numbers_are_complained_of(part):
    given = regions()
    getattr(given, part)[0] = np.nan
    with pytest.raises(MaskError, match=r"image a\.png: the network's boxes or masks are not numbers"):
        found(given)


def test_attention_sees_only_what_is_inside_the_mask():
    chance = np.random.default_rng(1)
    maps = chance.random((2, 8, 14, 14), np.float32)
    maps[1, :, :, 7:] = maps[0, :, :, 7:]
    right_half = np.zeros((2, 28, 28), np.float32)
    right_half[:, :, 16:] = 1
    same, all_seen = attention(maps, right_half), attention(maps, np.ones((2, 28, 28), np.float32))
    np.testing.assert_allclose(same[0], same[1], atol=1e-5)
    assert np.abs(all_seen[0] - all_seen[1]).max() > 0.1


def test_attention_keeps_distances_and_is_the_same_in_every_run():
    chance = np.random.default_rng(2)
    maps = chance.random((20, 256, 7, 7), np.float32)
    made = attention(maps, np.ones((20, 28, 28), np.float32))
    flat = maps.reshape(20, -1)
    before = np.linalg.norm(flat[:, None] - flat, axis=2)[np.triu_indices(20, 1)]
    after = np.linalg.norm(made[:, None] - made, axis=2)[np.triu_indices(20, 1)]
    assert np.abs(after / before - 1).max() < 0.2
    np.testing.assert_allclose(made[0, :3], [3.232708, 1.546635, -3.564033], rtol=1e-4)


def test_a_mask_of_any_side_is_averaged_over_sevenths():
    maps = np.ones((1, 1, 7, 7), np.float32)
    halves = [np.tile(np.arange(side) < side / 2, (1, side, 1)).astype(np.float32) for side in (14, 28, 224)]
    made = [attention(maps, mask)[0] for mask in halves]
    for other in made[1:]:
        np.testing.assert_allclose(other, made[0], atol=1e-6)


def test_large_images_cost_no_more_than_their_masks():
    n = 50
    given = replace(
        regions(scores=(0.9,) * n, classes=(0,) * n), boxes=np.tile([9, 9, 40, 40], (n, 1)).astype(np.float32)
    )
    image = Image("large.png", np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (30_000, 40_000, 3)))
    # n whole masks would be 60 GB
    (made,) = segmenter(given).segment([image])
    assert len(made) == n
    assert coco.area(made.rles[0]) == 31 * 31


def test_settings_that_do_not_fit_the_model_are_named():
    with pytest.raises(SettingsError, match=r"segmenter\.categories: .* no class 'dog'; there are 'cat'"):
        take(("cat", None), ("dog",))
    with pytest.raises(SettingsError, match=r"segmenter\.classes: two classes are named 'cat'"):
        take(("cat", "cat"), None)
    with pytest.raises(SettingsError, match=r"segmenter\.classes: 1 names, but the model has 80 classes"):
        check_classes(("cat",), 80)
    with pytest.raises(SettingsError, match=r"segmenter\.classes: the names of the .* 80 classes are not known"):
        check_classes(None, 80)
