"""The run-length check: agrees with pycocotools on what is whole, and refuses what is broken."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco

from propagation import rle as module
from propagation.errors import MaskError
from propagation.rle import boxed, check_rle, decode, encode_window, run_lengths

MASKS = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, 1))


def encoded(mask):
    return coco.encode(np.asfortranarray(mask))


@given(MASKS)
def test_decode_gives_back_the_mask_that_pycocotools_encoded(mask):
    np.testing.assert_array_equal(decode(encoded(mask)), mask)


@given(st.lists(MASKS.filter(np.any), max_size=8), st.integers(1, 4), st.sampled_from([1, 50, 2**24]))
def test_many_masks_within_their_boxes_are_each_as_pycocotools_has_it(masks, at_once, pixels):
    rles = [encoded(mask) for mask in masks]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "AT_ONCE", at_once)
        patched.setattr(module, "PIXELS_AT_ONCE", pixels)
        found = list(boxed(rles))
    assert len(found) == len(masks)
    for (left, top, inside), rle, mask in zip(found, rles, masks, strict=True):
        x, y, width, height = coco.toBbox(rle).astype(int)
        assert (left, top) == (x, y)
        np.testing.assert_array_equal(inside, mask[y : y + height, x : x + width])


def test_of_many_masks_none_is_decoded_before_it_is_asked_for():
    asked = []
    rles = (asked.append(place) or encoded(np.ones((2, 2), np.uint8)) for place in range(3000))
    next(boxed(rles))
    assert len(asked) == 1024


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
