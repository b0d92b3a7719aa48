"""Masks become regions that cover them, and regions become masks again."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco
from scipy import ndimage

from plugin.label_studio.labeling import Labeling
from plugin.label_studio.regions import META, digest, mask_of, regions_of, rle_of
from propagation.errors import MaskError
from propagation.rle import decode

MASK_ID = "0123456789abcdef0123"
OUTLINE, PAINT = {"cell": "outline"}, {"cell": "paint"}
POLYGONS = Labeling("image", "photo", OUTLINE, {}, {})
BRUSHES = Labeling("image", "photo", {}, PAINT, {})
BOTH = Labeling("image", "photo", OUTLINE, PAINT, {})
LABELINGS = {"polygons": POLYGONS, "brushes": BRUSHES, "both": BOTH}

Mask = np.ndarray[Any, Any]
each_labeling = pytest.mark.parametrize("labeling", LABELINGS.values(), ids=LABELINGS)


def encoded(mask: Mask) -> Any:
    return coco.encode(np.asfortranarray(mask, dtype=np.uint8))


def regions(mask: Mask, labeling: Labeling = BOTH, **provenance: Any) -> list[dict[str, Any]]:
    """The regions of a mask as they are after a way over the wire."""
    made = regions_of(MASK_ID, encoded(mask), "cell", 0.123456, provenance, labeling)
    return list(json.loads(json.dumps(made)))


def read(found: list[dict[str, Any]]) -> Mask:
    return decode(rle_of(found))


def iou(one: Mask, other: Mask) -> float:
    return float((one & other).sum() / (one | other).sum())


def canvas(height: int = 40, width: int = 60) -> Mask:
    return np.zeros((height, width), bool)


def block(top: int = 5, bottom: int = 20, left: int = 8, right: int = 30) -> Mask:
    mask = canvas()
    mask[top:bottom, left:right] = True
    return mask


def ring() -> Mask:
    mask = block()
    mask[10:15, 14:22] = False
    return mask


@st.composite
def masks(draw: st.DrawFn) -> Mask:
    """Blobs, specks and holes, on images of any proportions."""
    height, width = draw(st.integers(1, 48)), draw(st.integers(1, 48))
    noise = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).normal(size=(height, width))
    smooth = ndimage.gaussian_filter(noise, draw(st.sampled_from([0, 0.7, 1.5, 4])), mode="wrap")
    mask: Mask = smooth >= np.quantile(smooth, draw(st.floats(0, 0.98)))
    return mask


@each_labeling
@given(mask=masks())
@settings(max_examples=150, deadline=None)
def test_regions_cover_their_mask(labeling: Labeling, mask: Mask) -> None:
    found = regions(mask, labeling)
    assert iou(read(found), mask) >= 0.98
    assert {mask_of(region) for region in found} == {MASK_ID}
    assert len({region["id"] for region in found}) == len(found)
    for region in found:
        assert (region["original_height"], region["original_width"]) == mask.shape
        points = np.array(region["value"].get("points", [[0, 0]]))
        assert ((points >= 0) & (points <= 100)).all()


@each_labeling
@pytest.mark.parametrize(
    "mask",
    [
        block(),
        block(0, 40, 0, 60),
        block(0, 1, 0, 1),
        block(39, 40, 59, 60),
        block(7, 8, 3, 50),
        block(3, 30, 9, 10),
    ],
    ids=["inside", "whole image", "first pixel", "last pixel", "row", "column"],
)
def test_rectangles_and_pixels_are_exact(labeling: Labeling, mask: Mask) -> None:
    np.testing.assert_array_equal(read(regions(mask, labeling)), mask)


def test_a_rectangle_is_four_corners_in_percent() -> None:
    (region,) = regions(block(10, 20, 15, 30))
    assert sorted(region["value"]["points"]) == [[25, 25], [25, 50], [50, 25], [50, 50]]


def test_a_polygon_says_where_it_belongs() -> None:
    (region,) = regions(block(), cluster="cell/7")
    assert (region["from_name"], region["to_name"], region["type"]) == ("outline", "image", "polygonlabels")
    assert region["value"]["polygonlabels"] == ["cell"]
    assert region["score"] == 0.1235
    assert region["meta"] == {META: {"mask": MASK_ID, "cluster": "cell/7"}}


def test_a_category_is_written_as_its_label() -> None:
    labeling = Labeling("image", "photo", {"Zelle": "outline"}, {}, {"cell": "Zelle"})
    assert regions(block(), labeling)[0]["value"]["polygonlabels"] == ["Zelle"]


def test_a_hole_takes_a_brush_where_there_is_one() -> None:
    (region,) = regions(ring(), BOTH)
    assert (region["type"], region["from_name"]) == ("brushlabels", "paint")
    np.testing.assert_array_equal(read([region]), ring())


def test_a_hole_is_cut_out_of_the_polygon_where_there_is_no_brush() -> None:
    (region,) = regions(ring(), POLYGONS)
    assert region["type"] == "polygonlabels"
    np.testing.assert_array_equal(read([region]), ring())


def test_several_holes_are_cut_out_of_one_polygon() -> None:
    mask = block(2, 38, 2, 58)
    for left in (6, 20, 40):
        mask[10:20, left : left + 8] = False
        mask[25:33, left + 2 : left + 7] = False
    (region,) = regions(mask, POLYGONS)
    assert iou(read([region]), mask) >= 0.98


def test_a_hole_too_small_to_matter_needs_no_brush() -> None:
    mask = block()
    mask[10, 14] = False
    (region,) = regions(mask, BOTH)
    assert region["type"] == "polygonlabels"


def test_several_parts_are_several_polygons_of_one_mask() -> None:
    mask = block(2, 10, 2, 12) | block(20, 35, 30, 55)
    found = regions(mask, BOTH)
    assert [region["type"] for region in found] == ["polygonlabels"] * 2
    assert [mask_of(region) for region in found] == [MASK_ID] * 2
    np.testing.assert_array_equal(read(found), mask)


def test_parts_that_touch_at_a_corner_are_kept_whole() -> None:
    mask = block(5, 10, 5, 10) | block(10, 15, 10, 15)
    np.testing.assert_array_equal(read(regions(mask, POLYGONS)), mask)


def test_a_large_smooth_outline_needs_few_points() -> None:
    rows, columns = np.mgrid[:400, :400]
    disc = (rows - 200) ** 2 + (columns - 180) ** 2 < 150**2
    (region,) = regions(disc)
    assert len(region["value"]["points"]) < 300  # its pixels have 1200 corners


def test_a_ragged_outline_has_no_corner_twice_in_a_row() -> None:
    mask = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 1, 0]], bool)
    for region in regions(mask, POLYGONS):
        points = np.array(region["value"]["points"])
        assert (points != np.roll(points, 1, axis=0)).any(axis=1).all()


def moved(result: list[dict[str, Any]]) -> None:
    result[0]["value"]["points"][0][0] += 0.01


def relabelled(result: list[dict[str, Any]]) -> None:
    result[0]["value"]["polygonlabels"] = ["dust"]


def deleted(result: list[dict[str, Any]]) -> None:
    del result[1]


def added(result: list[dict[str, Any]]) -> None:
    result.append(copy.deepcopy(result[0]) | {"id": "new"})


def opened(result: list[dict[str, Any]]) -> None:
    result[0]["value"]["closed"] = False


def repainted(result: list[dict[str, Any]]) -> None:
    result[2]["value"]["rle"][-1] ^= 1


def three_regions() -> list[dict[str, Any]]:
    return regions(block(2, 10, 2, 12) | block(20, 35, 30, 55)) + regions(ring(), BRUSHES)


@pytest.mark.parametrize("change", [moved, relabelled, deleted, added, opened, repainted])
def test_a_persons_change_changes_the_fingerprint(change: Callable[[list[dict[str, Any]]], None]) -> None:
    result = three_regions()
    before = digest(result)
    change(result)
    assert digest(result) != before


def test_what_no_person_changes_does_not_change_the_fingerprint() -> None:
    result = three_regions()
    before = digest(result)
    for region in result:
        region.update(score=0.9, meta={}, origin="prediction", readonly=False)
    assert digest(result) == before
    assert digest([dict(reversed(region.items())) for region in result]) == before


def test_a_region_of_another_kind_is_refused_by_name() -> None:
    other = regions(block())[0] | {"id": "box-1", "type": "rectanglelabels"}
    with pytest.raises(MaskError, match="region box-1: rectanglelabels"):
        rle_of([other])


@pytest.mark.parametrize("meta", [None, {}, {"text": ["note"]}, {META: None}, {META: "mask"}, {META: {}}])
def test_a_region_that_the_product_did_not_write_has_no_mask(meta: Any) -> None:
    assert mask_of({"id": "a", "meta": meta}) is None
    assert mask_of({"id": "a"}) is None
