"""The watershed segmenter: learns shapes from a small seed set, whatever they are and whichever way lit."""

import json

import cv2
import numpy as np
import PIL.Image
import pytest
from pycocotools import mask as coco

from ml_backend.segmenters.base import Image
from ml_backend.segmenters.seed_set import make_seed_set, read_seed_set
from ml_backend.segmenters.watershed import train
from propagation.errors import ImageError, InputError, MaskError
from propagation.rle import check_rle

SIDE = 96
DISC, BAR = 4, 2  # category ids, not in the order of the file


def scene(number, bright=True):
    """An image of discs and bars on noise, and its COCO annotations."""
    random = np.random.default_rng(number)
    grey = random.normal(60, 5, (SIDE, SIDE))
    annotations = []
    for corner in random.permutation(9)[:6]:
        x, y = (int(16 + 32 * (corner % 3) + random.integers(-3, 4)), int(16 + 32 * (corner // 3)))
        mask = np.zeros((SIDE, SIDE), np.uint8)
        category = int(random.choice([DISC, BAR]))
        if category == DISC:
            cv2.circle(mask, (x, y), int(random.integers(7, 10)), 1, -1)
        else:
            cv2.rectangle(mask, (x - 10, y - 3), (x + 10, y + 3), 1, -1)
        grey += mask * random.uniform(90, 120)
        rle = coco.encode(np.asfortranarray(mask))
        segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
        annotations.append({"image_id": number, "category_id": category, "segmentation": segmentation})
    pixels = np.clip(grey if bright else 255 - grey, 0, 255).astype(np.uint8)
    return Image(f"{number}.png", np.repeat(pixels[..., None], 3, axis=2)), annotations


def seed_set(bright=True, images=6):
    scenes = [scene(number, bright) for number in range(images)]
    truth = {
        "images": [{"id": number, "file_name": f"{number}.png"} for number in range(images)],
        "annotations": [annotation for _, annotations in scenes for annotation in annotations],
        "categories": [{"id": DISC, "name": "disc"}, {"id": BAR, "name": "bar"}],
    }
    return [image for image, _ in scenes], truth


def learn(images, truth):
    return train(make_seed_set(images, truth))


@pytest.fixture(scope="module")
def segmenter():
    return learn(*seed_set())


@pytest.fixture
def folder(tmp_path):
    images, truth = seed_set()
    (tmp_path / "images").mkdir()
    for image in images:
        PIL.Image.fromarray(image.pixels).save(tmp_path / "images" / image.key)
    (tmp_path / "ground_truth.json").write_text(json.dumps(truth))
    return tmp_path


def right(segmenter, found, annotations):
    """(n,) whether each mask has IoU > 0.75 with an object of its category."""
    names = {DISC: "disc", BAR: "bar"}
    overlaps = coco.iou(list(found.rles), [a["segmentation"] for a in annotations], [0] * len(annotations))
    objects = np.array([names[a["category_id"]] for a in annotations])
    said = np.array(segmenter.categories)[found.categories]
    return ((overlaps > 0.75) & (said[:, None] == objects)).any(axis=1)


@pytest.mark.parametrize("bright", [True, False])
def test_objects_of_a_new_image_are_found_and_named(bright):
    segmenter = learn(*seed_set(bright))
    image, annotations = scene(77, bright)
    [found] = segmenter.segment([image])
    sure = found.scores > 0.5
    assert segmenter.cut.bright is bright
    assert np.count_nonzero(sure) == len(annotations)
    assert right(segmenter, found, annotations)[sure].all()


def test_categories_are_in_the_order_of_their_ids(segmenter):
    assert segmenter.categories == ("bar", "disc")


def test_detections_are_whole_columns(segmenter):
    images = [scene(number)[0] for number in (50, 51)]
    for image, found in zip(images, segmenter.segment(images), strict=True):
        for rle in found.rles:
            check_rle(rle)
            assert rle["size"] == list(image.pixels.shape[:2])
        assert found.features.shape == (len(found), 298)
        assert found.features.dtype == found.scores.dtype == np.float32
        assert np.isfinite(found.features).all()
        assert ((found.scores >= segmenter.least_score) & (found.scores <= 1)).all()


def test_an_image_gets_the_same_detections_alone_or_among_others(segmenter):
    images = [scene(number)[0] for number in (50, 51, 52)]
    among = segmenter.segment(images)[1]
    again = learn(*seed_set()).segment(images[1:2])[0]
    assert among.rles == again.rles
    np.testing.assert_array_equal(among.scores, again.scores)
    np.testing.assert_array_equal(among.features, again.features)


def test_an_image_without_anything_has_no_detections(segmenter):
    [found] = segmenter.segment([Image("flat.png", np.full((40, 50, 3), 90, np.uint8))])
    assert len(found) == 0
    assert found.features.shape == (0, 298)


def test_no_images_give_no_detections(segmenter):
    assert list(segmenter.segment([])) == []


def test_a_folder_teaches_the_same_as_its_images(segmenter, folder):
    [image] = [scene(60)[0]]
    [found] = train(read_seed_set(folder)).segment([image])
    np.testing.assert_array_equal(found.scores, segmenter.segment([image])[0].scores)


@pytest.mark.parametrize("part", ["images", "annotations", "categories"])
def test_a_seed_set_without_a_part_is_refused(part):
    images, truth = seed_set(images=2)
    with pytest.raises(InputError, match="annotate some images"):
        learn(images, truth | {part: []})


def test_annotations_of_other_images_alone_are_refused():
    images, truth = seed_set(images=2)
    with pytest.raises(InputError, match="no image of the ground truth has an object"):
        learn(images, truth | {"annotations": [truth["annotations"][0] | {"image_id": 99}]})


def test_seed_images_may_have_no_objects():
    images, truth = seed_set(images=4)
    truth["annotations"] = [one for one in truth["annotations"] if one["image_id"] != 0]
    assert len(learn(images, truth).segment(images[1:2])[0])


def test_a_single_seed_image_is_refused():
    with pytest.raises(InputError, match="annotate another one"):
        learn(*seed_set(images=1))


def test_a_seed_image_that_was_not_handed_over_is_named():
    images, truth = seed_set(images=3)
    with pytest.raises(ImageError, match=r"1\.png is missing"):
        learn([images[0], images[2]], truth)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"segmentation": {"size": [4, 4], "counts": "`0"}}, r"\[4, 4\], the image \[96, 96\]"),
        ({"segmentation": {"size": [96, 96], "counts": "50"}}, "cover 5 pixels"),
        ({"category_id": 3}, "3"),
    ],
)
def test_a_broken_annotation_is_named(change, says):
    images, truth = seed_set(images=2)
    truth["annotations"][0] |= change | {"id": 12}
    with pytest.raises(MaskError, match=rf"annotation 12 of seed image 0\.png: .*{says}"):
        learn(images, truth)


def test_a_missing_image_file_is_named(folder):
    (folder / "images" / "2.png").unlink()
    with pytest.raises(ImageError, match=r"2\.png is missing; put the image there"):
        train(read_seed_set(folder))


def test_an_unreadable_image_file_is_named(folder):
    (folder / "images" / "2.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"2\.png' cannot be read"):
        train(read_seed_set(folder))


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_seed_set_without_ground_truth_is_refused(folder, content):
    path = folder / "ground_truth.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(InputError, match=r"ground_truth\.json"):
        train(read_seed_set(folder))
