"""The mask table: ids that last, files that give back what was written, and one mask an object."""

import json
from dataclasses import fields, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from propagation.errors import MaskError
from propagation.masks import build_table, compete, mask_id, read_table, write_table


def test_a_mask_has_the_same_id_whenever_it_is_found_again(box, detections):
    alone = build_table(["a.png"], [detections([box(1, 1, 4, 4)], [0.9])], ["x"], "model-1")
    among_others = build_table(
        ["z.png", "a.png"],
        [detections([box(1, 1, 4, 4)], [0.1]), detections([box(9, 9, 3, 3), box(1, 1, 4, 4)], [0.5, 0.2])],
        ["x"],
        "model-2",
    )
    assert alone.ids[0] == among_others.ids[2]
    assert len(alone.ids[0]) == 20
    assert set(alone.ids[0]) <= set("0123456789abcdef")


def test_ids_differ_by_image_category_and_mask(box):
    first = box(1, 1, 4, 4)
    ids = {
        mask_id("a.png", "x", first),
        mask_id("b.png", "x", first),
        mask_id("a.png", "y", first),
        mask_id("a.png", "x", box(1, 1, 4, 5)),
        # the same runs, column by column, of an image of another shape
        mask_id("a.png", "x", {"size": [16, 64], "counts": first["counts"]}),
    }
    assert len(ids) == 5


def same(written, found):
    for column in fields(written):
        one, other = getattr(written, column.name), getattr(found, column.name)
        if column.name == "features":
            assert one.keys() == other.keys()
            for name in one:
                np.testing.assert_array_equal(one[name], other[name])
                assert one[name].dtype == other[name].dtype
        elif column.name in ("ids", "counts"):
            assert list(one) == list(other), column.name
        elif isinstance(one, np.ndarray):
            np.testing.assert_array_equal(one, other, err_msg=column.name)
            assert one.dtype.kind == other.dtype.kind, column.name
            assert one.shape == other.shape, column.name
        else:
            assert one == other, column.name


def test_a_table_is_read_as_it_was_written(tmp_path, box, detections):
    rles = [box(1, 1, 10, 9), box(1, 1, 10, 10), box(20, 20, 3, 6)]
    table = build_table(
        ["empty.png", "ä b/ü.png", "also empty.png"],
        [
            detections([], [], features=np.empty((0, 2))),
            detections(rles, [0.5, 0.9, 0.125], [2, 0, 2], [[1, 2], [3, 4], [5, 6]]),
            detections([], [], features=np.empty((0, 2))),
        ],
        ["unused first", "unused", "größe"],
        "model-1",
    )
    table = replace(table, categories=("größe", "unused", "last")).with_features(shape=np.eye(3, dtype=np.float32))
    assert not table.best.all()
    write_table(table, tmp_path)
    found = read_table(tmp_path)
    same(table, found)
    assert [found.rle(row) for row in range(3)] == [table.rle(row) for row in range(3)]


def test_a_table_lies_on_disk_and_its_ids_and_runs_read_as_before(tmp_path, table):
    made = table(np.linspace(0.1, 0.9, 50))
    write_table(made, tmp_path)
    found = read_table(tmp_path)
    for column in (found.score, found.box, found.best, found.ids.ordered, found.counts.text):
        assert isinstance(column.base, np.memmap)
        assert not column.flags.writeable
    rows = np.array([30, 2, 2, 49])
    np.testing.assert_array_equal(found.ids[rows], made.ids[rows])
    np.testing.assert_array_equal(found.ids[found.score > 0.5], made.ids[made.score > 0.5])
    assert str(found.ids[7]) == made.ids[7]
    assert found.rles(rows) == made.rles(rows)
    np.testing.assert_array_equal(compete(found), compete(made))


def write_parquet(table, folder):
    """Write a table as the first version did."""
    columns = {
        "mask_id": pa.array(table.ids),
        "image": pa.DictionaryArray.from_arrays(pa.array(table.image), pa.array(table.images)),
        "category": pa.DictionaryArray.from_arrays(
            pa.array(table.category), pa.array(table.categories, type=pa.string())
        ),
        "score": pa.array(table.score),
        "box": pa.FixedSizeListArray.from_arrays(pa.array(table.box.ravel()), 4),
        "area": pa.array(table.area),
        "size": pa.FixedSizeListArray.from_arrays(pa.array(table.size.ravel()), 2),
        "counts": pa.array(list(table.counts), type=pa.binary()),
        "best": pa.array(table.best),
        "model_version": pa.array([table.model_version] * len(table)).dictionary_encode(),
    }
    names = json.dumps({"categories": table.categories, "model_version": table.model_version})
    images = pa.table({"image": pa.array(table.images)}).replace_schema_metadata({"names": names})
    pq.write_table(pa.table(columns), folder / "masks.parquet", compression="zstd", row_group_size=16)
    pq.write_table(images, folder / "images.parquet", compression="zstd")
    for name, block in table.features.items():
        np.save(folder / f"features-{name}.npy", block)


@pytest.mark.parametrize("count", [0, 1, 50])
def test_a_table_of_the_first_version_is_read_as_it_was_written(tmp_path, table, count):
    deep = np.arange(2 * count).reshape(count, 2)
    made = table(np.linspace(0.1, 0.9, count), np.arange(count) % 3, ("größe", "b", "c", "none"), deep)
    made.best[count // 2 :] = False
    write_parquet(made, tmp_path)
    found = read_table(tmp_path)
    same(made, found)
    again = tmp_path / "again"
    again.mkdir()
    write_table(found, again)
    same(made, read_table(again))


@pytest.mark.parametrize(("keys", "categories"), [(["a.png"], ["x"]), ([], ["x"]), (["a.png"], []), ([], [])])
def test_a_table_without_masks_is_read_as_it_was_written(tmp_path, detections, keys, categories):
    table = build_table(keys, [detections([], [])] * len(keys), categories, "model-1")
    write_table(table, tmp_path)
    same(table, read_table(tmp_path))


def test_features_are_read_where_they_lie_on_disk(tmp_path, box, detections):
    deep = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = detections([box(1, 1, 4, 4), box(9, 9, 4, 4)], [0.5, 0.9], features=deep)
    write_table(build_table(["a.png"], [found], ["x"], "m"), tmp_path)
    block = read_table(tmp_path).features["deep"]
    assert isinstance(block, np.memmap)
    assert block.dtype == np.float16
    np.testing.assert_array_equal(block, deep)


def test_a_mask_found_twice_is_kept_once_with_its_better_score(box, detections):
    rles = [box(1, 1, 4, 4), box(20, 20, 4, 4), box(1, 1, 4, 4)]
    found = detections(rles, [0.4, 0.6, 0.8], features=[[1], [2], [3]])
    table = build_table(["a.png"], [found], ["x"], "m")
    assert table.score.tolist() == pytest.approx([0.6, 0.8])
    assert table.features["deep"].tolist() == [[2], [3]]
    assert table.best.all()


def test_the_same_outline_in_another_image_or_category_is_another_mask(box, detections):
    found = detections([box(1, 1, 4, 4), box(1, 1, 4, 4)], [0.4, 0.8], [0, 1])
    table = build_table(["a.png", "b.png"], [found, found], ["x", "y"], "m")
    assert len(set(table.ids.tolist())) == len(table) == 4


def with_bad_mask(detections, box, **changes):
    columns = {
        "rles": [box(1, 1, 4, 4), box(9, 9, 4, 4)],
        "scores": [0.5, 0.5],
        "categories": [0, 0],
        "features": [[1.0], [2.0]],
    }
    return detections(**(columns | changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scores": [0.5, np.nan]}, "mask 1 of 2: its score"),
        ({"scores": [np.inf, 0.5]}, "mask 0 of 2: its score"),
        ({"categories": [0, 1]}, "mask 1 of 2: its category"),
        ({"categories": [-1, 0]}, "mask 0 of 2: its category"),
        ({"features": [[1.0], [np.nan]]}, "mask 1 of 2: its features"),
        ({"features": [[1.0], [7e4]]}, "mask 1 of 2: its features"),
        ({"features": [[1.0]]}, "2 masks, but 1 rows of features"),
        ({"scores": [0.5]}, "2 masks, but 1 scores"),
        ({"categories": [0, 0, 0]}, "3 categories"),
    ],
)
def test_detections_that_cannot_be_used_are_refused_by_image_and_mask(box, detections, changes, said):
    good, bad = with_bad_mask(detections, box), with_bad_mask(detections, box, **changes)
    with pytest.raises(MaskError, match=rf"image bad\.png.*{said}"):
        build_table(["good.png", "bad.png"], [good, bad], ["x"], "m")


def test_an_empty_mask_is_refused_by_image_and_mask(box, detections, encode):
    bad = with_bad_mask(detections, box, rles=[box(1, 1, 4, 4), encode(np.zeros((32, 32)))])
    with pytest.raises(MaskError, match=r"image bad\.png, mask 1 of 2: the mask is empty"):
        build_table(["bad.png"], [bad], ["x"], "m")


@pytest.mark.parametrize("features", [[[1.0, 2.0]], None])
def test_features_of_different_widths_are_refused_by_image(box, detections, features):
    one = detections([box(1, 1, 4, 4)], [0.5], features=[[1.0]])
    other = detections([box(1, 1, 4, 4)], [0.5], features=features)
    with pytest.raises(MaskError, match=r"widths \(1 in image one\.png, (2|None) in image other\.png\)"):
        build_table(["one.png", "other.png"], [one, other], ["x"], "m")


def test_the_better_of_two_masks_of_one_object_competes_across_categories(box, detections):
    found = detections([box(0, 0, 10, 10), box(0, 0, 10, 9), box(20, 20, 5, 5)], [0.6, 0.7, 0.1], [0, 1, 0])
    table = build_table(["a.png"], [found], ["x", "y"], "m")
    assert table.best.tolist() == [False, True, True]


@pytest.mark.parametrize(("height", "beaten"), [(8, False), (9, True)])
def test_masks_compete_only_above_an_iou_of_four_fifths(box, detections, height, beaten):
    found = detections([box(0, 0, 10, 10), box(0, 0, 10, height)], [0.9, 0.8])
    table = build_table(["a.png"], [found], ["x"], "m")
    assert table.best.tolist() == [True, not beaten]


def test_equal_scores_are_settled_by_id_whatever_the_order(box, detections):
    rles = [box(0, 0, 10, 10), box(0, 0, 10, 9)]
    tables = [build_table(["a.png"], [detections(r, [0.5, 0.5])], ["x"], "m") for r in (rles, rles[::-1])]
    assert [table.ids[table.best].tolist() for table in tables] == [[min(tables[0].ids)]] * 2


def test_a_mask_beaten_by_none_that_stays_stays(box, detections):
    # A and B overlap by 10/12, B and C by 12/14, A and C by 10/14
    a, b, c = box(0, 0, 10, 10), box(0, 0, 12, 10), box(0, 0, 14, 10)
    table = build_table(["a.png"], [detections([a, b, c], [0.9, 0.8, 0.7])], ["x"], "m")
    assert table.best.tolist() == [True, False, True]


def test_masks_of_different_images_do_not_compete(box, detections):
    found = [detections([box(0, 0, 10, 10)], [0.9]), detections([box(0, 0, 10, 9)], [0.1])]
    assert build_table(["a.png", "b.png"], found, ["x"], "m").best.all()


def test_the_rows_of_each_image_are_told_images_without_masks_too(box, detections):
    two = detections([box(1, 1, 4, 4), box(9, 9, 4, 4)], [0.5, 0.9])
    table = build_table(["a", "b", "c"], [two, detections([], []), two], ["x"], "m")
    assert [rows.tolist() for rows in table.rows_by_image()] == [[0, 1], [], [2, 3]]
