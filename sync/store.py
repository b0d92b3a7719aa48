"""The daemon's store: the event log, the source project's tasks, and a few facts, in one SQL database."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError

from propagation.errors import StoreError
from propagation.events import Event, from_record, to_record

SCHEMA = 1

metadata = sa.MetaData()
_events = sa.Table(
    "events",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String(40), nullable=False),
    sa.Column("body", sa.JSON, nullable=False),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False),
)
_tasks = sa.Table(
    "source_tasks",
    metadata,
    sa.Column("image", sa.Text, primary_key=True),
    sa.Column("task", sa.Integer, nullable=False, unique=True),
    sa.Column("location", sa.Text, nullable=False),
)
_facts = sa.Table(
    "facts",
    metadata,
    sa.Column("name", sa.String(40), primary_key=True),
    sa.Column("value", sa.JSON, nullable=False),
)


@dataclass(frozen=True)
class SourceTask:
    """A task of the pool: the key of its image, and where the image is."""

    image: str
    task: int
    location: str


class Store:
    """One campaign's database.

    url: an SQLAlchemy URL; SQLite is put into WAL mode. Its event log has one writer: a second one that
    appends behind its back makes the next ``append`` fail.
    """

    def __init__(self, url: str) -> None:
        try:
            address = sa.make_url(url)
            if address.get_backend_name() == "sqlite" and address.database:
                Path(address.database).parent.mkdir(parents=True, exist_ok=True)
            self._engine = sa.create_engine(address)
        except (ArgumentError, ImportError, OSError) as error:
            raise StoreError(
                f"the store setting cannot be used ({error}); correct it, or install its driver"
            ) from error
        if address.get_backend_name() == "sqlite":
            sa.event.listen(self._engine, "connect", _prepare_sqlite)
        self._seq = 0
        try:
            self._prepare()
        except StoreError:
            self.close()
            raise

    def _prepare(self) -> None:
        with self._transaction() as connection:
            metadata.create_all(connection)
        schema = self.fact("schema")
        if schema is None:
            self.remember(schema=SCHEMA)
        elif schema != SCHEMA:
            raise StoreError(
                f"the store {self._engine.url!r} has schema {schema}, this version knows {SCHEMA}; update it"
            )

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except IntegrityError as error:
            raise StoreError(
                "another process writes to this store; stop one of them, then start the other again"
            ) from error
        except SQLAlchemyError as error:
            raise StoreError(
                f"the store {self._engine.url!r} failed ({error}); see that it can be reached and written to"
            ) from error

    def events(self) -> list[Event]:
        """The whole event log; what is appended next continues it."""
        with self._transaction() as connection:
            rows = connection.execute(sa.select(_events).order_by(_events.c.seq)).all()
        self._seq = rows[-1].seq if rows else 0
        return [from_record(row.kind, row.body) for row in rows]

    def append(self, events: Sequence[Event], **facts: Any) -> None:
        """Append events and remember facts, all or nothing.

        Raises StoreError when another writer has appended since ``events`` was read.
        """
        now = datetime.now(UTC)
        rows = []
        for seq, event in enumerate(events, self._seq + 1):
            kind, body = to_record(event)
            rows.append({"seq": seq, "kind": kind, "body": body, "at": now})
        with self._transaction() as connection:
            if rows:
                connection.execute(sa.insert(_events), rows)
            _set(connection, facts)
        self._seq += len(rows)

    def fact(self, name: str) -> Any:
        """A remembered fact, or None."""
        with self._transaction() as connection:
            return connection.execute(sa.select(_facts.c.value).where(_facts.c.name == name)).scalar()

    def remember(self, **facts: Any) -> None:
        """Remember facts by name, in place of what was remembered."""
        with self._transaction() as connection:
            _set(connection, facts)

    def source_tasks(self) -> list[SourceTask]:
        """The tasks of the pool."""
        with self._transaction() as connection:
            rows = connection.execute(sa.select(_tasks).order_by(_tasks.c.task)).all()
        return [SourceTask(row.image, row.task, row.location) for row in rows]

    def set_source_tasks(self, tasks: Sequence[SourceTask]) -> None:
        """Replace the tasks of the pool."""
        with self._transaction() as connection:
            connection.execute(sa.delete(_tasks))
            if tasks:
                connection.execute(sa.insert(_tasks), [vars(task) for task in tasks])


def _set(connection: sa.Connection, facts: Mapping[str, Any]) -> None:
    for name, value in facts.items():
        connection.execute(sa.delete(_facts).where(_facts.c.name == name))
        connection.execute(sa.insert(_facts).values(name=name, value=value))


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA busy_timeout=10000")
