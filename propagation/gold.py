"""Gold: masks whose truth is known, a share of each page, so that annotators' errors can be counted."""

from __future__ import annotations

import hashlib
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from propagation.errors import SettingsError
from propagation.masks import MaskTable, read_table, write_table

NUMBERS = 2**80
WRONG_SHARE = 2 / 3  # of gold that is wrong: a miss breaks a promise, a mark only costs


def number_of(page: str) -> int:
    """A number below ``NUMBERS`` that is as good as random, and always the same of a page's name."""
    return int.from_bytes(hashlib.blake2b(page.encode(), digest_size=10).digest(), "big")


@dataclass(frozen=True)
class GoldPool:
    """The masks whose truth is known: (g,) ids, (g,) names of categories, (g,) whether a mask is right."""

    ids: NDArray[np.str_]
    category: NDArray[np.str_]
    right: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, table: MaskTable, right: NDArray[np.bool_]) -> GoldPool:
        """The pool of a mask table's masks."""
        return cls(
            np.array(table.ids.tolist(), dtype=np.str_),
            np.array(table.categories, dtype=np.str_)[table.category],
            right,
        )


@dataclass(frozen=True)
class Checks:
    """How answers are checked.

    pool: the gold, or None; share: of each page that is gold; tolerated: the rate of missed wrong masks from
    which an annotator's pages are asked again; least_seconds: a question that an answer takes at least, else its
    page is asked again, 0 for none; overlap: share of pages that a second annotator is asked as well.
    """

    pool: GoldPool | None = None
    share: float = 0.1
    tolerated: float = 0.25
    least_seconds: float = 0.0
    overlap: float = 0.0

    def __post_init__(self) -> None:
        for name, good, remedy in (
            ("gold_share", 0 <= self.share <= 0.5, "a share from 0 to 0.5"),
            ("tolerated_miss", 0 < self.tolerated < 1, "a share above 0 and below 1"),
            ("least_seconds", self.least_seconds >= 0, "0 or more"),
            ("overlap", 0 <= self.overlap <= 1, "a share from 0 to 1"),
        ):
            if not good:
                raise SettingsError(f"setting {name} must be {remedy}")

    @property
    def measures(self) -> bool:
        """Whether pages have gold."""
        return self.pool is not None and len(self.pool) > 0 and self.share > 0

    def room(self, page_size: int) -> int:
        """The questions of a page that are not gold."""
        return max(1, page_size - round(page_size * self.share)) if self.measures else page_size


UNCHECKED = Checks()


@dataclass(frozen=True)
class Drawn:
    """The gold of a page: mask ids, their truth, and their places among all that is shown."""

    ids: tuple[str, ...] = ()
    truth: tuple[bool, ...] = ()
    places: tuple[int, ...] = ()


class GoldDraws:
    """Draws gold for pages, what was shown least first."""

    def __init__(self, checks: Checks) -> None:
        self._checks = checks
        pool = checks.pool if checks.measures else None
        self._pool = pool
        self._row = {} if pool is None else {mask: row for row, mask in enumerate(pool.ids.tolist())}
        self._shown = np.zeros(len(self._row), dtype=np.int64)

    def ahead(self) -> GoldDraws:
        """A copy that draws ahead of what is noted here."""
        other = copy(self)
        other._shown = self._shown.copy()
        return other

    def showed(self, ids: tuple[str, ...]) -> None:
        """Note what was shown. What is in no pool any more is passed over."""
        for mask in ids:
            if mask in self._row:
                self._shown[self._row[mask]] += 1

    def draw(self, page: str, category: str, questions: int, page_size: int) -> Drawn:
        """The gold of a page of so many questions, by its name and what was shown before; noted as shown."""
        pool, share = self._pool, self._checks.share
        if pool is None:
            return Drawn()
        rng = np.random.default_rng(number_of(page))
        many = int(questions * share / (1 - share) + 1e-9 + rng.random())
        of_category = pool.category == category
        rows: list[int] = []
        for wanted in (rng.random(max(0, min(many, page_size - questions))) >= WRONG_SHARE).tolist():
            free = of_category.copy()
            free[rows] = False
            fitting = np.flatnonzero(free & (pool.right == wanted))
            fitting = fitting if len(fitting) else np.flatnonzero(free)
            if len(fitting):
                rows.append(int(fitting[np.lexsort((rng.random(len(fitting)), self._shown[fitting]))[0]]))
        self._shown[rows] += 1
        places = np.sort(rng.choice(questions + len(rows), len(rows), replace=False))
        return Drawn(tuple(pool.ids[rows].tolist()), tuple(pool.right[rows].tolist()), tuple(places.tolist()))


def write_gold(table: MaskTable, right: NDArray[np.bool_], folder: Path) -> None:
    """Write masks whose truth is known as the files of an artefact."""
    write_table(table, folder)
    np.save(folder / "right.npy", right)


def read_gold(folder: Path) -> tuple[MaskTable, NDArray[np.bool_]]:
    """The masks that ``write_gold`` wrote, and (g,) whether each is right."""
    return read_table(folder), np.load(folder / "right.npy")
