"""Images ahead: read and decoded by some threads while the model works, no more at once than memory takes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

from ml_backend.segmenters.base import Image
from plugin.label_studio.images import Undecoded
from propagation.errors import ImageError

READERS = 4
IMAGES_AT_ONCE = 16
PIXELS_AT_ONCE = 64_000_000  # of a batch of several images: 192 MB
BLOCK = (
    64  # images after which a batch ends, whatever their sizes: so parts of a pool have the batches of the whole
)


def read_ahead(keys: Sequence[str], read: Callable[[str], bytes]) -> Iterator[list[Image | ImageError]]:
    """The images in order, in batches; in place of one that cannot be read, why.

    keys: image keys; read: the file of a key, called in threads. A batch has at most 16 images, and no more pixels
    than ``PIXELS_AT_ONCE``, or one image. Which images share a batch follows from their sizes alone. While a batch
    is in use, the next one is decoded, and none after it.
    """
    places = _Places()
    waiting: deque[Future[tuple[int, Image | ImageError]]] = deque()
    with ThreadPoolExecutor(READERS, thread_name_prefix="images") as readers:
        try:
            batch: list[Image | ImageError] = []
            current, begun = 0, 0
            while begun < len(keys) or waiting:
                while begun < len(keys) and len(waiting) < 2 * IMAGES_AT_ONCE:
                    waiting.append(readers.submit(places.fill, begun, keys[begun], read))
                    begun += 1
                number, image = waiting.popleft().result()
                if number != current:
                    yield batch
                    batch, current = [], number
                    places.advance(number)
                batch.append(image)
            if batch:
                yield batch
        finally:
            places.close()
            for future in waiting:
                future.cancel()


class _Places:
    """Which batch an image belongs to, given out in the order of the images, and when it may be decoded."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._turn = 0
        self._batch, self._images, self._pixels = 0, 0, 0
        self._current = 0
        self._closed = False

    def fill(self, place: int, key: str, read: Callable[[str], bytes]) -> tuple[int, Image | ImageError]:
        """The batch of an image, and the image."""
        file: Undecoded | ImageError | None = None
        try:
            file = Undecoded(key, read(key))
        except ImageError as error:
            file = error
        finally:  # after whatever error: the images behind wait for their turn
            batch = self._take(place, 0 if file is None or isinstance(file, ImageError) else file.pixels)
        if isinstance(file, ImageError):
            return batch, file
        self._wait(batch)
        try:
            return batch, Image(key, file.decode())
        except ImageError as error:
            return batch, error

    def _take(self, place: int, pixels: int) -> int:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._turn == place)
            full = self._images == IMAGES_AT_ONCE or place % BLOCK == 0 or self._pixels + pixels > PIXELS_AT_ONCE
            if self._images and full:
                self._batch, self._images, self._pixels = self._batch + 1, 0, 0
            self._images += 1
            self._pixels += pixels
            self._turn += 1
            self._changed.notify_all()
            return self._batch

    def _wait(self, batch: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or batch <= self._current + 1)
            if self._closed:
                raise CancelledError

    def advance(self, batch: int) -> None:
        """Let the images of the batch after this one be decoded."""
        with self._changed:
            self._current = batch
            self._changed.notify_all()

    def close(self) -> None:
        """Let go of whoever waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
