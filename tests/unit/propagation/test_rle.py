"""The run-length check: agrees with pycocotools on what is whole, and refuses what is broken."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco

from propagation.errors import MaskError
from propagation.rle import check_rle, decode, encode_window, run_lengths

MASKS = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, 1))


def encoded(mask):
    return coco.encode(np.asfortranarray(mask))


@given(MASKS)
def test_decode_gives_back_the_mask_that_pycocotools_encoded(mask):
    np.testing.assert_array_equal(decode(encoded(mask)), mask)


@given(MASKS, st.tuples(*[st.integers(0, 3)] * 4))
def test_a_window_is_encoded_as_pycocotools_encodes_the_whole_mask(window, beside):
    left, right, top, bottom = beside
    whole = np.pad(window, ((top, bottom), (left, right)))
    assert encode_window(window.astype(bool), left, top, whole.shape) == encoded(whole)


# pycocotools writes one byte past its buffer where every run takes six characters, as from 2**24 on
@given(st.lists(st.integers(0, 2**23), min_size=1, max_size=12))
def test_run_lengths_read_runs_of_any_length(runs):
    size = [1, max(sum(runs), 1)]
    counts = coco.frPyObjects({"size": size, "counts": runs}, *size)["counts"]
    assert run_lengths(counts).tolist() == runs


@given(MASKS)
def test_a_whole_mask_passes(mask):
    check_rle(encoded(mask))


@given(MASKS, st.binary(max_size=12))
def test_any_bytes_are_either_refused_or_fill_the_mask(mask, counts):
    rle = {"size": list(mask.shape), "counts": counts}
    try:
        check_rle(rle)
    except MaskError:
        return
    assert run_lengths(counts).sum() == mask.size
    assert coco.area(rle) == run_lengths(counts)[1::2].sum()


@pytest.mark.parametrize(
    ("size", "counts", "says"),
    [
        ([4, 4], b"", "cover 0 pixels"),
        ([4, 4], b"50", "cover 5 pixels"),
        ([4, 4], b"P", "middle of a run"),
        ([4, 4], b" ", "outside"),
        ([4, 4], b"\xff", "outside"),
        ([4, 4], b"O0", "negative"),
        ([4, 4], b"PPPPPPPP0", "over 7 characters"),
        ([4], b"4", "height, width"),
        ([4, 0], b"", "height, width"),
        ([4.0, 4.0], b"`0", "height, width"),
    ],
)
def test_a_broken_encoding_is_refused_with_its_reason(size, counts, says):
    with pytest.raises(MaskError, match=says):
        check_rle({"size": size, "counts": counts})
