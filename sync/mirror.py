"""The event log once more, as a file of JSON lines: for people, other tools, and the day the database is lost.

Only who holds the store's lock writes the file, and the store is always ahead: what is committed there is
added here, and what a crash kept from being added is added later.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from propagation.errors import StoreError

_BEGIN = b'{"seq": '


class Mirror:
    """The file at ``path`` of a log.

    log: the lines of all that is in the store, in order, read anew at each call. Raises StoreError where the
    file holds something else than the log does, and where it cannot be written.
    """

    def __init__(self, path: Path, log: Callable[[], Iterator[bytes]]) -> None:
        self._path = path
        self._log = log
        self._size = -1  # bytes known to agree with the log

    def add(self, lines: Sequence[bytes]) -> None:
        """Write what was just committed; all that is missing, where the file is not as it was left."""
        with self._told():
            if not self._path.exists() or self._path.stat().st_size != self._size:
                self.catch_up()
                return
            self._size = -1
            with self._path.open("ab") as file:
                file.writelines(lines)
                self._size = _keep(file)

    def catch_up(self) -> None:
        """Compare the file with the log from its beginning, cut off a torn last line, and add what is missing."""
        self._size = -1
        with self._told():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            log = self._log()
            with self._path.open("a+b") as file:
                file.seek(0)
                agreed = 0
                for number, found in enumerate(file, 1):
                    if not found.endswith(b"\n") and found[: len(_BEGIN)] == _BEGIN[: len(found)]:
                        break
                    self._compare(number, found, next(log, None))
                    agreed += len(found)
                file.truncate(agreed)
                file.writelines(log)
                self._size = _keep(file)

    def _compare(self, number: int, found: bytes, known: bytes | None) -> None:
        if known is None:
            raise StoreError(
                f"the mirror {self._path} is ahead of the store from its line {number} on: the store was put "
                "back to an earlier state, or is another one; move the mirror away, and it is written anew"
            )
        if found != known:
            raise StoreError(
                f"line {number} of the mirror {self._path} differs from the store; see which of them was changed, "
                "then move the mirror away, and it is written anew"
            )

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"the mirror {self._path} cannot be written ({error}); make room or let it be written to, then "
                "start again: what is committed is added to it"
            ) from error


def line(seq: int, kind: str, body: str, at: str) -> bytes:
    """An entry of the log as a line of the mirror; body: JSON."""
    return _BEGIN + f'{seq}, "kind": "{kind}", "body": {body}, "at": "{at}"}}\n'.encode()


def _keep(file: IO[bytes]) -> int:
    """Have what was written on the disk; the size of the file."""
    file.flush()
    os.fsync(file.fileno())
    return os.fstat(file.fileno()).st_size
