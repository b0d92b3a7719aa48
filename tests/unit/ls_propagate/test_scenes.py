"""Generated scenes: whole datasets, the same for a seed, whose ground truth is what can be seen."""

import json

import numpy as np
import PIL.Image
import pytest

from ls_propagate.demo.scenes import CATEGORIES, make_scenes
from propagation.rle import check_rle, decode


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    make_scenes(folder, images=40, seed=3)
    return folder


def truth(folder, part):
    return json.loads((folder / part / "ground_truth.json").read_text())


def masks_by_image(content):
    found = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        rle = annotation["segmentation"]
        found[annotation["image_id"]].append(decode({"size": rle["size"], "counts": rle["counts"].encode()}))
    return found


def test_one_image_in_twenty_is_of_the_seed_set(dataset):
    assert len(truth(dataset, "seed")["images"]) == 2
    assert len(truth(dataset, "pool")["images"]) == 38


@pytest.mark.parametrize("part", ["seed", "pool"])
def test_every_image_of_the_ground_truth_is_there_at_its_size(dataset, part):
    images = truth(dataset, part)["images"]
    assert {path.name for path in (dataset / part / "images").iterdir()} == {
        image["file_name"] for image in images
    }
    for image in images:
        with PIL.Image.open(dataset / part / "images" / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])
            assert picture.mode == "RGB"


@pytest.mark.parametrize("part", ["seed", "pool"])
def test_an_annotation_tells_its_masks_area_and_box(dataset, part):
    for annotation in truth(dataset, part)["annotations"]:
        rle = annotation["segmentation"]
        check_rle({"size": rle["size"], "counts": rle["counts"].encode()})
        mask = decode({"size": rle["size"], "counts": rle["counts"].encode()})
        rows, columns = np.nonzero(mask)
        assert annotation["area"] == len(rows) > 0
        assert annotation["bbox"] == [
            columns.min(),
            rows.min(),
            np.ptp(columns) + 1,
            np.ptp(rows) + 1,
        ]
        assert annotation["iscrowd"] == 0


def test_no_pixel_belongs_to_two_objects(dataset):
    for masks in masks_by_image(truth(dataset, "pool")).values():
        assert np.sum(masks, axis=0).max() == 1


def test_objects_are_brighter_than_the_paper(dataset):
    content = truth(dataset, "pool")
    masks = masks_by_image(content)
    for image in content["images"]:
        pixels = np.asarray(PIL.Image.open(dataset / "pool" / "images" / image["file_name"])).mean(axis=2)
        objects = np.any(masks[image["id"]], axis=0)
        assert pixels[objects].mean() > pixels[~objects].mean() + 40


def test_every_category_occurs_and_an_image_holds_over_a_dozen_objects(dataset):
    content = truth(dataset, "pool")
    assert [category["name"] for category in content["categories"]] == list(CATEGORIES)
    assert {annotation["category_id"] for annotation in content["annotations"]} == set(range(1, 11))
    assert len(content["annotations"]) >= 15 * len(content["images"])


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_seed_gives_the_same_files_and_another_seed_others(tmp_path):
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        make_scenes(tmp_path / name, images=3, seed=seed)
    first, again, other = (contents(tmp_path / name) for name in ("first", "again", "other"))
    assert first == again
    assert all(first[path] != other[path] for path in first)
