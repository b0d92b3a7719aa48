"""What a segmenter is: two members, so that any model can be one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from propagation.masks import Detections


@dataclass(frozen=True)
class Image:
    """One decoded image: its key in the project, and (height, width, 3) RGB pixels."""

    key: str
    pixels: NDArray[np.uint8]


class Segmenter(Protocol):
    """Finds the objects of some categories in images.

    1. ``categories`` never changes during the segmenter's life; detections index into it.
    2. ``segment`` answers one ``Detections`` an image, in the order of the images.
    3. The same images give the same detections.
    4. All features of one segmenter have the same width, or are all None.
    """

    @property
    def categories(self) -> Sequence[str]: ...

    def segment(self, images: Sequence[Image]) -> Sequence[Detections]: ...
