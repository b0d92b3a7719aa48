"""The database of a store, SQLite or PostgreSQL: its connections, its transactions, its errors in words."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError

from propagation.errors import StoreError

# a PostgreSQL that went away without a word is given up after some 20 s
PATIENCE: dict[str, Any] = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
ANOTHER_WRITES = "another process writes to this store; stop one of them, then start the other again"
BUSY_SECONDS = 10  # that SQLite waits for another process
UPGRADE, WRITE, NOTICE = range(0x70726F70, 0x70726F73)  # what advisory locks are for


class Database:
    """A database by its SQLAlchemy URL, which threads may share.

    url: for messages. file: that of SQLite, None for PostgreSQL. Raises StoreError where the URL cannot be used.
    """

    def __init__(self, url: str) -> None:
        self.address = _address(url)
        self.url = shown(self.address)
        self.file = (
            Path(self.address.database or "").resolve() if self.address.get_backend_name() == "sqlite" else None
        )
        options: dict[str, Any] = {}
        if self.file is None:
            given = {name: value for name, value in PATIENCE.items() if name not in self.address.query}
            options = {"connect_args": given, "pool_pre_ping": True}  # it may have been started anew since
        try:
            if self.file is not None:
                self.file.parent.mkdir(parents=True, exist_ok=True)
            # hide_parameters: an event's body has no place in a message
            self.engine = sa.create_engine(self.address, hide_parameters=True, **options)
        except (ImportError, OSError) as error:
            raise StoreError(
                f"the store setting cannot be used ({error}); name a file that can be made, or, for PostgreSQL, "
                "pip install label-studio-propagate[postgresql]"
            ) from error
        if self.file is None:
            self._readers = self.engine.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
            self._writers = self._hasty = self.engine.execution_options()
        else:
            sa.event.listen(self.engine, "connect", _prepare_sqlite)
            sa.event.listen(self.engine, "begin", _begin_sqlite)
            self._readers = self.engine.execution_options()
            self._writers = self.engine.execution_options(sqlite_begin="BEGIN IMMEDIATE")
            self._hasty = self._writers.execution_options(sqlite_synchronous="NORMAL")
        # SQLite lets who waits try again now and then; threads of one process queue here, which is much faster
        self._turn: AbstractContextManager[Any] = nullcontext() if self.file is None else threading.Lock()

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that sees one state of the database to its end, and keeps no writer waiting."""
        with self._told(), self._readers.begin() as connection:
            yield connection

    @contextmanager
    def writing(self, durable: bool = True) -> Iterator[sa.Connection]:
        """A transaction that writes all or nothing; with SQLite, one at a time.

        durable: whether it waits for the disk, so that what it wrote outlives a power cut.
        """
        with self._told(), self._turn, (self._writers if durable else self._hasty).begin() as connection:
            if not durable and self.file is None:
                connection.execute(sa.text("SET LOCAL synchronous_commit = off"))
            yield connection

    def close(self) -> None:
        """Give the connections back."""
        self.engine.dispose()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError as error:
            raise StoreError(ANOTHER_WRITES) from error
        except SQLAlchemyError as error:
            raise StoreError(
                f"the store {self.url} failed ({words(error)}); see that it can be reached and written to"
            ) from error


def shown(address: sa.URL) -> str:
    """An address for messages: without its password, nor options, which may hold one as well."""
    return address.set(query={}).render_as_string(hide_password=True)


def words(error: SQLAlchemyError) -> str:
    """What a database said, on one line, without the statement."""
    return " ".join(str(getattr(error, "orig", None) or error).split())


def utc(at: datetime) -> str:
    """A moment as text, in UTC; one from SQLite, which keeps no time zone, is in UTC already."""
    return (at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)).isoformat(timespec="microseconds")


def advisory(function: str, purpose: int) -> sa.Select[Any]:
    """A call of one of PostgreSQL's advisory lock functions; stores in schemas of their own don't meet."""
    store = sa.func.hashtext(sa.func.coalesce(sa.func.current_schema(), ""))
    return sa.select(getattr(sa.func, function)(purpose, store))


def _address(url: str) -> sa.URL:
    remedy = "set it to sqlite:///<file> or postgresql://<user>:<password>@<host>/<database>"
    try:
        address = sa.make_url(url)
    except (ArgumentError, ValueError):  # whose words may hold the password
        address = sa.make_url("unreadable://")
    kind = address.drivername
    if kind in ("sqlite", "sqlite+pysqlite"):
        if address.host or address.username or (address.database or ":memory:").startswith((":memory:", "file:")):
            raise StoreError(f"the store setting cannot be used, since it names no file; {remedy}")
        return address
    if kind not in ("postgresql", "postgresql+psycopg"):
        raise StoreError(f"the store setting cannot be used, since it is no address of a database; {remedy}")
    if "@" in (address.host or ""):
        raise StoreError(
            f"the store setting cannot be used, since it has two @; write that of the password as %40: {remedy}"
        )
    return address.set(drivername="postgresql+psycopg")


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions begin where we say, not where the driver guesses
    connection.execute(f"PRAGMA busy_timeout={BUSY_SECONDS * 1000}")
    end = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:  # SQLite itself doesn't wait where two switch to WAL at once
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.05)


def _begin_sqlite(connection: sa.Connection) -> None:
    options = connection.get_execution_options()
    connection.exec_driver_sql(f"PRAGMA synchronous={options.get('sqlite_synchronous', 'FULL')}")
    # one that reads first and then writes would be refused where another wrote in between, so a writer says so
    connection.exec_driver_sql(options.get("sqlite_begin", "BEGIN"))
