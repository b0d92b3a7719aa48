"""Predictions from a file: found by image key whatever Label Studio made of the name, refused when broken."""

import gzip
import json
from urllib.parse import quote

import numpy as np
import pytest
from pycocotools import mask as coco

from ml_backend.segmenters import precomputed
from ml_backend.segmenters.base import Image
from ml_backend.segmenters.precomputed import Precomputed, read_results
from propagation.errors import InputError, MaskError
from propagation.rle import decode

HEIGHT, WIDTH = 6, 8
BAD_HEIGHT = '{"images": [{"id": 1, "file_name": "a.png", "height": -6}], "categories": []}'
SQUARE = [[1, 1, 5, 1, 5, 4, 1, 4]]


def mask():
    painted = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    painted[1:4, 1:5] = 1
    return painted


def compressed(painted):
    rle = coco.encode(np.asfortranarray(painted))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def plain(painted):
    flat = painted.ravel(order="F").astype(int)
    edges = np.flatnonzero(np.diff(flat, prepend=0))
    return {"size": list(painted.shape), "counts": np.diff([0, *edges, flat.size]).tolist()}


def prediction(**changes):
    return {"image_id": 1, "category_id": 7, "segmentation": compressed(mask()), "score": 0.5} | changes


def image(key="a.png", height=HEIGHT, width=WIDTH):
    return Image(key, np.zeros((height, width, 3), np.uint8))


@pytest.fixture
def saved(tmp_path):
    """Writes predictions, COCO file and features, and opens them."""

    def save(predictions, names=("a.png",), features=None, suffix=".json", sizes=True):
        size = {"height": HEIGHT, "width": WIDTH} if sizes else {}
        truth = {
            "images": [{"id": row + 1, "file_name": name} | size for row, name in enumerate(names)],
            "annotations": "not read",
            "categories": [{"id": 9, "name": "nine"}, {"id": 7, "name": "seven"}],
        }
        (tmp_path / "coco.json").write_text(json.dumps(truth))
        text = predictions if isinstance(predictions, str) else json.dumps(predictions)
        raw = gzip.compress(text.encode()) if suffix == ".json.gz" else text.encode()
        path = tmp_path / f"predictions{suffix}"
        path.write_bytes(raw)
        if features is not None:
            np.save(tmp_path / "features.npy", features)
        return Precomputed(path, tmp_path / "coco.json", None if features is None else tmp_path / "features.npy")

    return save


@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_an_image_gets_its_predictions_in_the_order_of_the_file(saved, suffix):
    predictions = [
        prediction(score=0.25),
        prediction(image_id=2, score=1),
        prediction(category_id=9, score=0),
    ]
    features = np.arange(6, dtype=np.float16).reshape(3, 2)
    segmenter = saved(predictions, names=("a.png", "b.png"), features=features, suffix=suffix)
    first, second = segmenter.segment([image("a.png"), image("b.png")])
    assert segmenter.categories == ("seven", "nine")
    assert first.scores.tolist() == [0.25, 0]
    assert first.categories.tolist() == [0, 1]
    assert first.features.tolist() == [[0, 1], [4, 5]]
    assert second.features.tolist() == [[2, 3]]


@pytest.mark.parametrize("segmentation", [compressed(mask()), plain(mask()), SQUARE])
def test_a_mask_is_read_in_each_of_cocos_ways(saved, segmentation):
    [found] = saved([prediction(segmentation=segmentation)]).segment([image()])
    np.testing.assert_array_equal(decode(found.rles[0]), mask())


@pytest.mark.parametrize(
    "key",
    [
        "a.png",
        "/data/upload/3/0123abcd-a.png",
        "/data/upload/3/0123abcd-a.png?token=x",
        "/data/local-files/?d=folder/a.png",
        "s3://bucket/folder/a.png",
        "https://host/a.png?signature=b.png",
    ],
)
def test_an_image_is_found_by_its_key(saved, key):
    segmenter = saved([prediction()], names=("a.png", "b.png"))
    assert len(segmenter.segment([image(key)])[0]) == 1


@pytest.mark.parametrize(
    ("key", "matched"),
    [
        ("/data/local-files/?d=root/x/a.png", 1),
        ("/data/local-files/?d=root/y/a.png", 2),
        ("https://host/my%20scene.png", 3),
        ("0123abcd-named.png", 4),
        ("/data/upload/3/89abcdef-0123abcd-named.png", 4),
        ("deep.png", 5),
        ("/data/upload/3/0123abcd-deep.png", 5),
        ("named.png", None),
        ("other.png", None),
    ],
)
def test_the_longest_end_of_the_path_decides(saved, key, matched):
    names = ("x/a.png", "y/a.png", "my scene.png", "0123abcd-named.png", "z/deep.png")
    assert saved([], names=names).match([key]) == [matched]


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("two words.png", "two_words.png"),
        ("scan (1) a+b.d.png", "scan_1_ab.d.png"),
        ("größe ☃ 日本.png", "größe__日本.png"),
        ("weird%20name.png", "weird20name.png"),
        ("folder/a&b.png", "ab.png"),
    ],
)
@pytest.mark.parametrize("quoted", [str, quote])
def test_an_uploaded_file_is_found_by_the_name_that_label_studio_gives_it(saved, name, stored, quoted):
    segmenter = saved([], names=("other.png", name))
    assert segmenter.match([f"/data/upload/3/{quoted(f'0123abcd-{stored}')}"]) == [2]


def test_names_are_changed_by_an_upload_only(saved):
    assert saved([], names=("two words.png",)).match(["https://host/two_words.png"]) == [None]


def test_names_that_an_upload_makes_equal_are_refused(saved):
    segmenter = saved([], names=("a b.png", "a_b.png"))
    with pytest.raises(InputError, match=r"a b\.png or a_b\.png"):
        segmenter.match(["/data/upload/3/0123abcd-a_b.png"])


def test_an_image_without_an_entry_has_no_detections(saved):
    [found] = saved([prediction()], features=np.ones((1, 3), np.float32)).segment([image("new.png")])
    assert len(found) == 0
    assert found.features.shape == (0, 3)
    assert found.scores.shape == found.categories.shape == (0,)


def test_a_key_that_may_be_two_images_is_refused(saved):
    segmenter = saved([prediction()], names=("x/a.png", "y/a.png"))
    with pytest.raises(InputError, match=r"x/a\.png or y/a\.png"):
        segmenter.segment([image("0123abcd-a.png")])


def test_two_images_of_the_project_that_match_one_entry_are_refused(saved):
    segmenter = saved([prediction()])
    with pytest.raises(InputError, match=r"x/a\.png and y/a\.png .* both match a\.png"):
        segmenter.match(["x/a.png", "y/a.png"])


def test_two_entries_of_one_name_are_refused(saved):
    with pytest.raises(InputError, match=r"images 1 and 2 .* file_name a\.png"):
        saved([], names=("a.png", "a.png"))


def with_counts(counts, size=(HEIGHT, WIDTH)):
    return prediction(segmentation={"size": list(size), "counts": counts})


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (with_counts("P"), "middle of a run"),
        (with_counts("50"), "cover 5 pixels"),
        (with_counts("é"), "outside"),
        (with_counts([1, 2]), "cover 3 pixels"),
        (with_counts([]), "cover 0 pixels"),
        (with_counts([-1, 49]), "not a run"),
        (with_counts([2**32 + HEIGHT * WIDTH, 1]), "not a run"),
        (with_counts(None), "neither"),
        (with_counts([0, 48], size=(WIDTH, HEIGHT)), "8 x 6 pixels, the image 6 x 8"),
        (with_counts([48]), "empty"),
        (prediction(segmentation=[[1, 1, 2, 2]]), "three or more"),
        (prediction(segmentation=[[1, 1, 2, 2, float("nan"), 3]]), "three or more"),
        (prediction(segmentation=[[1, 1, 2, 2, 3, "3"]]), "three or more"),
        (prediction(segmentation=[[1, 1, 2, 2, 3, 1e9]]), "in pixels of this image"),
        (prediction(segmentation=[]), "neither"),
        (prediction(score=float("nan")), "nan is not in"),
        (prediction(score=float("inf")), "inf is not in"),
        (prediction(score=1.01), "1.01 is not in"),
        (prediction(score=-0.1), "-0.1 is not in"),
        (prediction(score=None), "None is not in"),
        (prediction(category_id=8), "category_id 8"),
    ],
)
def test_a_broken_prediction_is_refused_by_file_index_and_image(saved, broken, says):
    with pytest.raises(MaskError, match=rf"predictions\.json, prediction 1 \(image a\.png\): .*{says}.*;"):
        saved([prediction(), broken])


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ([prediction(image_id=5)], r"prediction 0: image_id 5 is not in .*coco\.json"),
        ([[]], "prediction 0: it is not an object"),
        ({"annotations": []}, "not a list"),
        (json.dumps([prediction(), prediction()])[:-9], "cannot be read as JSON"),
        ("\x00", "cannot be read as JSON"),
    ],
)
def test_a_file_that_is_not_coco_results_is_refused(saved, broken, says):
    with pytest.raises(MaskError, match=says):
        saved(broken)


def test_polygons_without_the_images_size_are_refused(saved):
    with pytest.raises(MaskError, match="polygons need the height and width"):
        saved([prediction(segmentation=SQUARE)], sizes=False)


def test_a_truncated_archive_is_refused(saved, tmp_path):
    saved([prediction()], suffix=".json.gz")
    path = tmp_path / "predictions.json.gz"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(MaskError, match="cannot be read as JSON"):
        Precomputed(path, tmp_path / "coco.json")


def test_a_mask_of_another_size_than_the_pixels_is_refused(saved):
    segmenter = saved([prediction()], sizes=False)
    with pytest.raises(MaskError, match=r"prediction 0 \(image a\.png\): the mask is 6 x 8 .* image 12 x 16"):
        segmenter.segment([image(height=12, width=16)])


@pytest.mark.parametrize(
    ("features", "says"),
    [
        (np.ones((2, 3)), "2 rows, .* 1 predictions"),
        (np.ones(1), r"shape \(1,\)"),
        (np.ones((1, 3), int), "int64"),
        (np.array([[0.0, np.nan]]), r"row 0 \(prediction 0"),
        (np.array([[0.0, np.inf]]), r"row 0 \(prediction 0"),
        (np.array([["a"]], object), "cannot be read as features"),
    ],
)
def test_features_that_do_not_fit_are_refused(saved, features, says):
    with pytest.raises(MaskError, match=rf"features\.npy.*{says}"):
        saved([prediction()], features=features)


@pytest.mark.parametrize("missing", ["predictions.json", "coco.json", "features.npy"])
def test_a_missing_file_is_named(saved, tmp_path, missing):
    saved([prediction()], features=np.ones((1, 2)))
    (tmp_path / missing).unlink()
    with pytest.raises(InputError, match=rf"{missing} is missing"):
        Precomputed(tmp_path / "predictions.json", tmp_path / "coco.json", tmp_path / "features.npy")


@pytest.mark.parametrize(
    "content", ["[]", '{"images": [{"id": 1}], "categories": []}', '{"images": []}', "3", BAD_HEIGHT]
)
def test_a_file_that_is_not_coco_is_refused(saved, tmp_path, content):
    saved([prediction()])
    (tmp_path / "coco.json").write_text(content)
    with pytest.raises(InputError, match=r"coco\.json is not a COCO file"):
        Precomputed(tmp_path / "predictions.json", tmp_path / "coco.json")


def test_predictions_are_looked_up_without_their_images(saved):
    predictions = [prediction(), prediction(image_id=2, score=1), prediction(category_id=9)]
    features = np.arange(6, dtype=np.float16).reshape(3, 2)
    segmenter = saved(predictions, names=("a.png", "b.png", "c.png"), features=features)
    keys = ["b.png", "a.png", "c.png", "other.png"]
    seen = segmenter.segment([image(key) for key in keys])
    for one, other in zip(segmenter.look_up(keys), seen, strict=True):
        assert list(one.rles) == list(other.rles)
        for name in ("scores", "categories", "features"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_masks_of_several_sizes_in_one_image_are_refused_without_it_too(saved):
    segmenter = saved([prediction(), prediction(segmentation=compressed(mask()[:, :-1]))], sizes=False)
    with pytest.raises(MaskError, match=r"prediction 1 \(image a\.png\): the mask is 6 x 7 pixels"):
        list(segmenter.look_up(["a.png"]))


LISTS = [
    "[]",
    " [ ] \n",
    "[1]",
    '[ {"a": [1, "]"]} ,\n"ü☃", 12.5e3,null, -7 ]',
    json.dumps([{"a": "x" * 50}] * 20),
]
BROKEN = ["", "[", "[1", "[1,", "[1,]", "[1 2]", "[,1]", "[1]]", "[1] x", '["a', "[1;2]", "nul"]


@pytest.mark.parametrize("at_once", [1, 2, 7, 2**20])
@pytest.mark.parametrize("text", LISTS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_results_are_read_a_part_at_a_time(tmp_path, monkeypatch, text, at_once, encoding):
    monkeypatch.setattr(precomputed, "TEXT_AT_ONCE", at_once)
    path = tmp_path / "results.json"
    path.write_bytes(text.encode(encoding))
    assert list(read_results(path)) == json.loads(text)


@pytest.mark.parametrize("at_once", [1, 2**20])
@pytest.mark.parametrize("text", BROKEN)
def test_a_list_that_is_broken_says_where(tmp_path, monkeypatch, text, at_once):
    monkeypatch.setattr(precomputed, "TEXT_AT_ONCE", at_once)
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(MaskError, match=r"results\.json cannot be read as JSON \(.*char \d+.*export it again"):
        list(read_results(path))
