"""One writer a store: a lock that is freed at once when its holder dies, and never before.

No lock here expires by time: one that does is what lets two writers write.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from pathlib import Path

import filelock
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from propagation.errors import StoreError
from sync.database import WRITE, Database, advisory, words

# by which the server notices that we went away without a word
_KEEPALIVES = "tcp_keepalives_idle = 10", "tcp_keepalives_interval = 3", "tcp_keepalives_count = 3"
_MINE = sa.text(
    "SELECT count(*) FROM pg_locks "
    "WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND classid = :purpose AND granted"
)


class Lock(ABC):
    """The right to write to one store; threads may share it.

    wanted: acquired and not released; where it is no longer held, it was lost.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._guard = threading.Lock()

    def acquire(self) -> bool:
        """Take it without waiting; whether it is ours now, or was already. Raises StoreError where that fails."""
        with self._guard:
            if not (self._is_held() or self._take()):
                return False
            self.wanted = True
            return True

    def held(self) -> bool:
        """Whether it is ours, asked anew of who grants it."""
        with self._guard:
            return self._is_held()

    def release(self) -> None:
        """Give it back, if it is ours."""
        with self._guard:
            self.wanted = False
            self._drop()

    @abstractmethod
    def _take(self) -> bool: ...

    @abstractmethod
    def _is_held(self) -> bool: ...

    @abstractmethod
    def _drop(self) -> None: ...


class FileLock(Lock):
    """For a database in a file: the kernel's lock on an empty file beside it, which stays there."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path.absolute()
        self._lock = filelock.FileLock(self._path, thread_local=False)
        self._inode: tuple[int, int] | None = None

    def _take(self) -> bool:
        self._drop()
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            return False
        except OSError as error:
            raise StoreError(f"{self._path} cannot be locked ({error}); let its folder be written to") from error
        self._inode = _inode(self._path)
        return True

    def _is_held(self) -> bool:
        # who deletes the file lets another process lock a new one
        return self._lock.is_locked and self._inode == _inode(self._path)

    def _drop(self) -> None:
        self._lock.release(force=True)


class SessionLock(Lock):
    """For PostgreSQL: an advisory lock of a session of its own, which ends with the session.

    A pooler that hands sessions from client to client, as PgBouncer does by transaction, is in its way.
    """

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._url = database.url
        self._engine = database.engine.execution_options(isolation_level="AUTOCOMMIT")
        self._session: sa.Connection | None = None

    def _take(self) -> bool:
        self._drop()
        try:
            self._session = self._engine.connect()
            for setting in _KEEPALIVES:
                self._session.exec_driver_sql(f"SET {setting}")
            taken = self._session.execute(advisory("pg_try_advisory_lock", WRITE)).scalar_one()
        except SQLAlchemyError as error:
            self._drop()
            raise StoreError(
                f"the store {self._url} cannot be locked ({words(error)}); see that it can be reached"
            ) from error
        if not taken:
            self._drop()
        return bool(taken)

    def _is_held(self) -> bool:
        if self._session is None:
            return False
        try:
            found = self._session.execute(_MINE, {"purpose": WRITE}).scalar_one()
        except SQLAlchemyError:
            found = 0
        if not found:
            self._drop()  # or the session would be begun anew, without the lock
        return bool(found)

    def _drop(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.invalidate()  # ends the session without asking the server, which may be gone
            session.close()


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
