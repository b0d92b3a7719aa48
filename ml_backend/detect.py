"""Batch detection: the images of a pool through a segmenter, into a mask table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from ml_backend.segmenters.base import Image, Segmenter
from propagation.errors import ImageError
from propagation.features import mask_blocks
from propagation.masks import Detections, MaskTable, build_table

IMAGES_AT_ONCE = 16
READERS = 4


def detect(
    segmenter: Segmenter,
    keys: Sequence[str],
    read: Callable[[str], NDArray[np.uint8]],
    model_version: str,
    skip_unreadable: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[MaskTable, list[ImageError]]:
    """The masks of all images, with the features of their shapes, and the errors of the images left out.

    keys: image keys; read: the (height, width, 3) pixels of a key. Raises ImageError naming every image
    that cannot be read, unless ``skip_unreadable``.
    """
    seen: list[str] = []
    found: list[Detections] = []
    unreadable: list[ImageError] = []
    for batch in _batches(keys, read):
        images = [item for item in batch if isinstance(item, Image)]
        unreadable.extend(item for item in batch if isinstance(item, ImageError))
        if images and (skip_unreadable or not unreadable):
            found.extend(segmenter.segment(images))
            seen.extend(image.key for image in images)
        progress(len(batch))
    if unreadable and not skip_unreadable:
        listed = "\n".join(f"  {error}" for error in unreadable[:20])
        more = f"\n  and {len(unreadable) - 20} more" if len(unreadable) > 20 else ""
        raise ImageError(
            f"{len(unreadable)} of {len(keys)} images cannot be read; mend them, or leave them out with "
            f"--skip-unreadable:\n{listed}{more}"
        )
    table = build_table(seen, found, segmenter.categories, model_version)
    return table.with_features(**mask_blocks(table)), unreadable


def _batches(keys: Sequence[str], read: Callable[[str], NDArray[np.uint8]]) -> Iterator[list[Image | ImageError]]:
    """Images in order, read ahead by one batch."""

    def one(key: str) -> Image | ImageError:
        try:
            return Image(key, read(key))
        except ImageError as error:
            return error

    with ThreadPoolExecutor(READERS) as readers:
        ahead = None
        for begin in range(0, len(keys) + IMAGES_AT_ONCE, IMAGES_AT_ONCE):
            batch = [readers.submit(one, key) for key in keys[begin : begin + IMAGES_AT_ONCE]]
            if ahead:
                yield [image.result() for image in ahead]
            ahead = batch
