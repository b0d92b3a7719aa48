"""The U-Net: what it learns in a few steps, and that what it finds can always be used."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from ml_backend.gold import unseen
from ml_backend.segmenters import unet, unet_training
from ml_backend.segmenters.base import Image
from ml_backend.segmenters.seed_set import Labeled, Partly, SeedSet
from ml_backend.segmenters.unet_training import Training
from propagation.errors import InputError
from propagation.masks import check_detections
from propagation.rle import decode

CATEGORIES = ("bright", "red")
QUICK = Training(steps=80, batch=4, side=64, every=20, rate=0.01, decay=0.8)


@pytest.fixture(scope="module")
def seed(scene) -> SeedSet:
    return SeedSet(CATEGORIES, [scene(number) for number in range(10)])


@pytest.fixture(scope="module")
def trained(seed: SeedSet) -> tuple[unet.UNet, unet_training.Held]:
    return unet_training.train(seed, QUICK)


def test_it_learns_what_it_is_shown(scene, trained: tuple[unet.UNet, unet_training.Held]) -> None:
    model, held = trained
    assert (held.images, held.objects) == (2, 10)
    assert held.right >= 7
    assert len(model.learned) == 8
    fresh = scene(99)
    [found] = model.segment([fresh.image])
    iou = coco.iou(found.rles, fresh.rles, [0] * 5)
    best = iou.argmax(axis=0)
    right = (iou.max(axis=0) > 0.75) & (found.categories[best] == fresh.categories)
    assert right.sum() >= 3
    assert found.scores[best[right]].min() > 0.3


@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (16, 16), (33, 129), (200, 1700)])
@pytest.mark.parametrize("look", ["empty", "white", "grey", "noise"])
def test_what_it_finds_can_be_used(
    trained: tuple[unet.UNet, unet_training.Held], shape: tuple[int, int], look: str
) -> None:
    if look == "noise":
        pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    else:
        pixels = np.full((*shape, 3), {"empty": 0, "white": 255, "grey": 120}[look], np.uint8)
    [found] = trained[0].segment([Image("a", pixels)])
    check_detections("a", found, CATEGORIES)
    assert found.features is not None
    assert found.features.shape == (len(found), unet.FEATURES)
    assert found.features.dtype == found.scores.dtype == np.float32
    assert ((found.scores >= 0) & (found.scores <= 1)).all()
    covered = np.zeros(shape, int)
    for rle in found.rles:
        covered += decode(rle)
    assert covered.max(initial=0) <= 1


def test_no_images_give_nothing(trained: tuple[unet.UNet, unet_training.Held]) -> None:
    assert list(trained[0].segment([])) == []


def test_a_model_read_back_finds_the_same(scene, trained, tmp_path) -> None:
    model, _ = trained
    unet.write_unet(model, tmp_path)
    again = unet.read_unet(tmp_path)
    assert (again.categories, again.cut, again.learned) == (model.categories, model.cut, model.learned)
    image = scene(5).image
    for one, other in zip(model.segment([image, image]), again.segment([image, image]), strict=True):
        assert list(one.rles) == list(other.rles)
        np.testing.assert_array_equal(one.scores, other.scores)
        np.testing.assert_array_equal(one.features, other.features)


@pytest.mark.parametrize("name", ["unet.json", "weights.pt"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"not this"])
def test_a_model_that_cannot_be_read_says_where_it_lies(trained, tmp_path, name, content) -> None:
    unet.write_unet(trained[0], tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=r"train"):
        unet.read_unet(tmp_path)


def test_the_same_training_gives_the_same_weights(seed: SeedSet) -> None:
    few = replace(QUICK, steps=4, every=2)
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        network = unet.make_network(2)
        crops = unet_training._Crops(seed.images[2:], [], 2, few)
        unet_training._fit(network, crops, seed.images[:2], few, unet.Cut(), lambda step, loss: None, 0.0)
        states.append(network.state_dict())
    assert all((states[0][name] == states[1][name]).all() for name in states[0])


def test_a_tiled_image_is_seen_as_a_whole_one(scene, trained, monkeypatch) -> None:
    """Away from the image's borders, where tiles and the whole differ in nothing but what is filled up."""
    model = trained[0]
    pixels = np.tile(scene(3).image.pixels, (4, 4, 1))
    whole = unet.look(model.network, Image("a", pixels))
    monkeypatch.setattr(unet, "TILE", 192)
    monkeypatch.setattr(unet, "MARGIN", 64)
    tiled = unet.look(model.network, Image("a", pixels))
    assert whole.chances.shape == tiled.chances.shape
    np.testing.assert_allclose(whole.chances, tiled.chances, atol=0.05)
    for one, other in zip(whole.levels, tiled.levels, strict=True):
        assert one.shape == other.shape
        assert np.median(np.abs(one.astype(float) - other)) < 0.01


def test_little_time_is_kept_to(seed: SeedSet) -> None:
    steps = []
    with pytest.raises(InputError, match="found no object"):
        unet_training.train(seed, replace(QUICK, seconds=1e-9), lambda step, loss: steps.append(step))
    assert steps == [1]


def test_one_image_is_too_little(scene, seed: SeedSet) -> None:
    empty = Labeled(scene(50).image, [], np.zeros(0, np.int64))
    with pytest.raises(InputError, match="annotate some more"):
        unet_training.train(replace(seed, images=[seed.images[0], empty]), QUICK)


def test_of_doubtful_masks_nothing_is_learned_and_of_the_rest_little(scene) -> None:
    labeled = scene(1)
    some = Labeled(labeled.image, labeled.rles[:2], labeled.categories[:2])
    known = unet_training._partly_known(Partly(some, labeled.rles[2:3]), 0.25)
    masks = [decode(rle) for rle in labeled.rles]
    assert (known.weight[masks[0]] >= unet_training.UNIT).all()
    assert (known.category[masks[0]] == labeled.categories[0] + 1).all()
    assert not known.weight[masks[2]].any()
    assert (known.weight[masks[4]] == unet_training.UNIT / 4).all()
    assert not known.category[masks[4]].any()
    assert known.weight[14, 14 + 11] == unet_training.UNIT  # just outside of an accepted one
    np.testing.assert_allclose(known.middles, [(14.5, 14.5), (60.5, 14.5)], atol=1)


def test_partly_known_images_are_learned_from_as_well(scene, seed: SeedSet) -> None:
    """A category that only they show is found."""
    whole = []
    for labeled in seed.images[::2]:
        pixels = labeled.image.pixels.copy()
        for rle in [rle for rle, c in zip(labeled.rles, labeled.categories, strict=True) if c]:
            pixels[decode(rle)] = 40
        bright = [rle for rle, c in zip(labeled.rles, labeled.categories, strict=True) if not c]
        whole.append(Labeled(Image(labeled.image.key, pixels), bright, np.zeros(len(bright), np.int64)))
    partly = [Partly(scene(number), []) for number in range(20, 26)]
    model, _ = unet_training.train(SeedSet(CATEGORIES, whole), QUICK, partly=partly)
    [found] = model.segment([scene(99).image])
    assert {*found.categories.tolist()} == {0, 1}


def test_it_goes_on_from_an_earlier_network_and_is_never_judged_by_what_that_one_saw(
    trained, seed: SeedSet
) -> None:
    model, held = trained
    few = replace(QUICK, steps=4, every=4, rate=1e-4, seed=7)
    later, again = unet_training.train(seed, few, start=model)
    assert later.learned == model.learned
    assert again.objects == held.objects
    assert again.right >= held.right - 1
    with pytest.raises(InputError, match="learned from before"):
        unet_training.train(
            replace(seed, images=[one for one in seed.images if one.image.key in model.learned]), few, start=model
        )


def test_gold_is_not_what_it_finds_where_it_has_learned(trained, seed: SeedSet) -> None:
    found = unseen(trained[0], seed.images)
    assert [len(one) > 0 for one in found] == [
        labeled.image.key not in trained[0].learned for labeled in seed.images
    ]
