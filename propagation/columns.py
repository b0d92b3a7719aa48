"""Large columns of a mask table in little memory: ids and runs in some bytes a mask, and what lies on disk."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

READS = 256  # of runs, after which their memory is given back


class Ids:
    """The ids of n masks, a byte a character: they read like an (n,) array of str, and can be sought.

    ordered: (n,) the ids in ASCII, ascending; rows: (n,) int32, the row of each of these.
    """

    def __init__(self, ordered: NDArray[np.bytes_], rows: NDArray[np.int32]) -> None:
        self.ordered = ordered
        self.rows = rows
        self._place = np.empty(len(rows), dtype=np.int32)
        self._place[rows] = np.arange(len(rows), dtype=np.int32)

    @classmethod
    def of(cls, ids: NDArray[np.str_] | NDArray[np.bytes_] | Ids) -> Ids:
        """The ids of an array, row by row."""
        if isinstance(ids, Ids):
            return ids
        text = ids.astype(np.bytes_)
        rows = np.argsort(text, kind="stable").astype(np.int32)
        return cls(text[rows], rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: Any) -> Any:
        """The id of a row, as str; those of a slice, a mask or an array of rows, as an array of str."""
        return self.ordered[self._place[at]].astype(np.str_)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype=dtype)

    def tolist(self) -> list[str]:
        """All of them, row by row."""
        found: list[str] = self[:].tolist()
        return found

    def find(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """The row of each id, -1 for one that no mask has."""
        wanted = np.array([one.encode() for one in ids], dtype=np.bytes_)
        if not len(self):
            return np.full(len(wanted), -1)
        at = np.minimum(np.searchsorted(self.ordered, wanted), len(self) - 1)
        return np.where(self.ordered[at] == wanted, self.rows[at], np.int64(-1))


class Runs:
    """The compressed runs of n masks, all in one array: they read like a list of bytes.

    text: uint8, one mask after the other; ends: (n + 1,) int64, where each begins and where the last one ends.
    """

    def __init__(self, text: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self.text = text
        self.ends = ends
        self._reads = 0

    @classmethod
    def of(cls, runs: Iterable[bytes] | NDArray[np.object_] | Runs) -> Runs:
        """The runs of masks, one after the other."""
        if isinstance(runs, Runs):
            return runs
        each = list(runs)
        ends = np.cumsum([0, *map(len, each)], dtype=np.int64)
        return cls(np.frombuffer(b"".join(each), dtype=np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __add__(self, other: Runs) -> Runs:
        """These masks, then the others."""
        ends = np.concatenate([self.ends, other.ends[1:] + self.ends[-1]])
        return Runs(np.concatenate([self.text, other.text]), ends)

    def __getitem__(self, row: int) -> bytes:
        """The runs of one mask. Raises IndexError for a row that is not there."""
        row = range(len(self))[row]
        self._reads += 1
        if self._reads % READS == 0:
            forget(self.text, self.ends)
        return self.text[self.ends[row] : self.ends[row + 1]].tobytes()


def forget(*arrays: NDArray[Any]) -> None:
    """Give back the memory of what was read of memory-mapped arrays; it is read again where it is needed."""
    for array in arrays:
        if array.flags.writeable:
            continue  # in memory, or perhaps with changes that nobody has written
        base: Any = array
        while isinstance(base, np.ndarray):
            base = base.base
        if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            base.madvise(mmap.MADV_DONTNEED)
