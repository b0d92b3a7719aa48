"""Ids and runs of a mask table: they read like arrays and lists, and any id finds its row."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from propagation import columns
from propagation.columns import Ids, Runs, forget

HEX = st.text("0123456789abcdef", min_size=20, max_size=20)


@given(texts=st.lists(HEX, unique=True, max_size=30), data=st.data())
def test_ids_read_like_an_array_of_str_and_are_found(texts, data):
    array = np.array(texts, dtype="U20")
    ids = Ids.of(array)
    assert len(ids) == len(texts)
    assert ids.tolist() == texts
    assert np.asarray(ids).dtype.kind == "U"
    rows = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=5)) if texts else []
    assert ids[np.array(rows, dtype=np.int64)].tolist() == [texts[row] for row in rows]
    assert ids[array > "8"].tolist() == [text for text in texts if text > "8"]
    assert [ids[row] for row in rows] == [texts[row] for row in rows]
    assert ids.find([texts[row] for row in rows]).tolist() == rows


@pytest.mark.parametrize("stranger", ["", "0" * 20, "f" * 20, "5" * 19, "5" * 21, "ü" * 20])
def test_an_id_that_no_mask_has_is_not_found(stranger):
    ids = Ids.of(np.array(["9" * 20, "5" * 20]))
    assert ids.find([stranger, "5" * 20]).tolist() == [-1, 1]
    assert Ids.of(np.empty(0, dtype="U20")).find([stranger]).tolist() == [-1]


def test_ids_are_their_own():
    ids = Ids.of(np.array(["b", "a"]))
    assert Ids.of(ids) is ids
    assert pickle.loads(pickle.dumps(ids)).tolist() == ["b", "a"]


@given(each=st.lists(st.binary(max_size=9), max_size=9))
def test_runs_read_like_a_list_of_bytes(each):
    runs = Runs.of(each)
    assert len(runs) == len(each)
    assert list(runs) == each
    assert [runs[-row - 1] for row in range(len(each))] == each[::-1]
    assert Runs.of(runs) is runs
    with pytest.raises(IndexError):
        runs[len(each)]
    with pytest.raises(IndexError):
        runs[-len(each) - 1]


def test_runs_are_the_same_after_many_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(columns, "READS", 3)
    each = [b"%d" % row for row in range(50)]
    made = Runs.of(each)
    for name in ("text", "ends"):
        np.save(tmp_path / name, getattr(made, name))
    runs = Runs(*(np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("text", "ends")))
    assert [runs[row] for row in [*range(50), *range(50)]] == each * 2


def mapped() -> int:
    """The bytes of files that this process has in memory."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="no other system tells what is mapped")
def test_what_was_read_of_a_file_is_given_back_and_read_again(tmp_path):
    numbers = np.arange(8_000_000, dtype=np.int32)
    np.save(tmp_path / "numbers.npy", numbers)
    found = np.asarray(np.load(tmp_path / "numbers.npy", mmap_mode="r"))
    before = mapped()
    total = found.sum(dtype=np.int64)
    assert mapped() - before > 30_000_000
    forget(found, numbers)
    assert mapped() - before < 5_000_000
    assert found.sum(dtype=np.int64) == numbers.sum(dtype=np.int64) == total


def test_changes_that_are_in_memory_alone_are_kept(tmp_path):
    np.save(tmp_path / "numbers.npy", np.zeros(5000))
    changed = np.load(tmp_path / "numbers.npy", mmap_mode="c")
    changed[:] = 1
    forget(changed)
    assert changed.sum() == 5000
