"""Batch detection: the images of a pool through a segmenter, into a mask table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from ml_backend.reading import read_ahead
from ml_backend.segmenters.base import Image, Segmenter
from propagation.errors import ImageError
from propagation.features import mask_blocks
from propagation.masks import NOTHING, Detections, MaskTable, build_table

#: What is found in an image, or why it cannot be read.
Found = Detections | ImageError


def detect(
    segmenter: Segmenter,
    keys: Sequence[str],
    read: Callable[[str], bytes],
    model_version: str,
    skip_unreadable: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[MaskTable, list[ImageError]]:
    """The masks of all images, with the features of their shapes, and the errors of the images left out.

    keys: image keys; read: the file of a key, called in threads. Raises ImageError naming every image
    that cannot be read, unless ``skip_unreadable``.
    """
    batches = segment(segmenter, keys, read, skip_unreadable)
    return gather(keys, batches, segmenter.categories, model_version, skip_unreadable, progress)


def segment(
    segmenter: Segmenter, keys: Sequence[str], read: Callable[[str], bytes], skip_unreadable: bool
) -> Iterator[list[Found]]:
    """What is found in each image, in order, batch by batch.

    Unless ``skip_unreadable``, nothing more is looked for after an image that cannot be read: of readable images
    nothing is said then.
    """
    broken = False
    for batch in read_ahead(keys, read):
        images = [item for item in batch if isinstance(item, Image)]
        broken = broken or (not skip_unreadable and len(images) < len(batch))
        found = iter(segmenter.segment(images) if images and not broken else ())
        yield [item if isinstance(item, ImageError) else next(found, NOTHING) for item in batch]


def gather(
    keys: Sequence[str],
    batches: Iterable[Sequence[Found]],
    categories: Sequence[str],
    model_version: str,
    skip_unreadable: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[MaskTable, list[ImageError]]:
    """The table of what was found in the images of ``keys``, in their order; the rest as ``detect``."""
    seen: list[str] = []
    found: list[Detections] = []
    unreadable: list[ImageError] = []
    at = iter(keys)
    for batch in batches:
        for item, key in zip(batch, at, strict=False):
            if isinstance(item, ImageError):
                unreadable.append(item)
            else:
                seen.append(key)
                found.append(item)
        progress(len(batch))
    if unreadable and not skip_unreadable:
        listed = "\n".join(f"  {error}" for error in unreadable[:20])
        more = f"\n  and {len(unreadable) - 20} more" if len(unreadable) > 20 else ""
        raise ImageError(
            f"{len(unreadable)} of {len(keys)} images cannot be read; mend them, or leave them out with "
            f"--skip-unreadable:\n{listed}{more}"
        )
    table = build_table(seen, found, categories, model_version)
    del found  # it is in the table now, in a third of the memory
    return table.with_features(**mask_blocks(table)), unreadable
