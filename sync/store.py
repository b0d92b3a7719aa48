"""The daemon's store: the event log, the source project's tasks, a few facts, and an inbox of hints, in SQL."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from propagation.errors import StoreError
from propagation.events import Event, from_record, to_record
from sync import migrations
from sync.database import ANOTHER_WRITES, NOTICE, Database, advisory, utc
from sync.lock import FileLock, Lock, SessionLock
from sync.mirror import Mirror, line

SCHEMA = migrations.SCHEMA
AT_ONCE = 500  # events read in one go

metadata = sa.MetaData()
EVENTS = sa.Table(
    "events",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String(40), nullable=False),
    sa.Column("body", sa.JSON, nullable=False),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False),
)
TASKS = sa.Table(
    "source_tasks",
    metadata,
    sa.Column("image", sa.Text, primary_key=True),
    sa.Column("task", sa.Integer, nullable=False, unique=True),
    sa.Column("location", sa.Text, nullable=False),
)
FACTS = sa.Table(
    "facts",
    metadata,
    sa.Column("name", sa.String(40), primary_key=True),
    sa.Column("value", sa.JSON, nullable=False),
)
INBOX = sa.Table(
    "inbox",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("body", sa.JSON, nullable=False),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    sqlite_autoincrement=True,  # an id is not used again, so that none is forgotten before it was read
)


@dataclass(frozen=True)
class SourceTask:
    """A task of the pool: the key of its image, and where the image is."""

    image: str
    task: int
    location: str


@dataclass(frozen=True)
class Hint:
    """What a webhook said, as far as it is used: the action, the project, and the tasks that it is about.

    commands: what somebody beside the daemon wants of it, as the fields of ``Commanded``.
    """

    action: str
    project: int | None
    tasks: tuple[int, ...] = ()
    commands: tuple[dict[str, str], ...] = ()


class Store:
    """One campaign's database.

    url: an SQLAlchemy URL of SQLite, which is put into WAL mode, or of PostgreSQL; as an attribute, it has no
    password. Opening a store brings its tables to today's schema. mirror: a file that repeats the event log,
    written by the process that holds the lock, from its first ``stream`` or ``append`` on.

    The event log has one writer: who has the lock; and one that appends behind its back makes the next
    ``append`` fail. Anybody else may read, and put hints into the inbox. Threads may share a store.
    """

    def __init__(self, url: str, mirror: Path | None = None) -> None:
        self.database = Database(url)
        self.url = self.database.url
        file = self.database.file
        self._lock: Lock = FileLock(Path(f"{file}.lock")) if file else SessionLock(self.database)
        self._mirror = None if mirror is None else Mirror(mirror, self._lines)
        self._seq = 0
        try:
            with self.database.reading() as connection:
                ready = migrations.schema(connection) == SCHEMA
            if not ready:
                with self.database.writing() as connection:
                    migrations.upgrade(connection)
        except StoreError:
            self.close()
            raise

    def close(self) -> None:
        """Give the lock and the connections back."""
        self._lock.release()
        self.database.close()

    def lock(self) -> Lock:
        """The right to write to the event log, always the same object."""
        return self._lock

    def stream(self) -> Iterator[Event]:
        """The whole event log, in order, a few at a time; what is appended next continues what was read."""
        return (event for event, _ in self.timed())

    def timed(self) -> Iterator[tuple[Event, datetime]]:
        """The same, each event with the time at which it was stored."""
        if self._mirror and self._lock.held():
            self._mirror.catch_up()
        self._seq = 0
        for row in self._log(EVENTS.c.seq, EVENTS.c.kind, EVENTS.c.body, EVENTS.c.at):
            self._seq = row.seq
            yield from_record(row.kind, row.body), row.at.replace(tzinfo=row.at.tzinfo or UTC)

    def since(self, at: datetime) -> list[Event]:
        """The events that were stored at a time or later, in order."""
        query = sa.select(EVENTS.c.kind, EVENTS.c.body).where(EVENTS.c.at >= at.astimezone(UTC))
        with self.database.reading() as connection:
            rows = connection.execute(query.order_by(EVENTS.c.seq)).all()
        return [from_record(row.kind, row.body) for row in rows]

    def events(self) -> list[Event]:
        """The whole event log; what is appended next continues it."""
        return list(self.stream())

    def begun(self) -> bool:
        """Whether the event log has an entry."""
        with self.database.reading() as connection:
            return connection.execute(sa.select(EVENTS.c.seq).limit(1)).first() is not None

    def append(self, events: Sequence[Event], **facts: Any) -> None:
        """Append events and remember facts, all or nothing.

        Raises StoreError when another writer has appended since the log was read, and when the lock was lost.
        """
        if self._lock.wanted and not self._lock.held():
            raise StoreError(
                f"the lock on the store {self.url} was lost, and another daemon may have taken over; start this "
                "one again"
            )
        now = datetime.now(UTC)
        rows: list[dict[str, Any]] = [
            {"seq": seq, "kind": kind, "body": body, "at": now}
            for seq, (kind, body) in enumerate(map(to_record, events), self._seq + 1)
        ]
        with self.database.writing() as connection:
            if (connection.execute(sa.select(sa.func.max(EVENTS.c.seq))).scalar() or 0) != self._seq:
                raise StoreError(ANOTHER_WRITES)
            if rows:
                connection.execute(sa.insert(EVENTS), rows)
            _set(connection, facts)
        self._seq += len(rows)
        if self._mirror and self._lock.wanted:
            self._mirror.add([line(row["seq"], row["kind"], json.dumps(row["body"]), utc(now)) for row in rows])

    def _log(self, *columns: sa.ColumnElement[Any]) -> Iterator[Any]:
        """The event log in order; a transaction for every few, since SQLite cannot tidy up during a long one."""
        query = sa.select(*columns).order_by(EVENTS.c.seq).limit(AT_ONCE)
        last = 0
        while True:
            with self.database.reading() as connection:
                rows = connection.execute(query.where(EVENTS.c.seq > last)).all()
            yield from rows
            if len(rows) < AT_ONCE:
                return
            last = rows[-1].seq

    def _lines(self) -> Iterator[bytes]:
        body = sa.cast(EVENTS.c.body, sa.Text)  # as it stands there, which is quicker by far
        for seq, kind, text, at in self._log(EVENTS.c.seq, EVENTS.c.kind, body, EVENTS.c.at):
            yield line(seq, kind, text, utc(at))

    def fact(self, name: str) -> Any:
        """A remembered fact, or None."""
        with self.database.reading() as connection:
            return connection.execute(sa.select(FACTS.c.value).where(FACTS.c.name == name)).scalar()

    def remember(self, **facts: Any) -> None:
        """Remember facts by name, in place of what was remembered."""
        with self.database.writing() as connection:
            _set(connection, facts)

    def source_tasks(self) -> list[SourceTask]:
        """The tasks of the pool."""
        with self.database.reading() as connection:
            rows = connection.execute(sa.select(TASKS).order_by(TASKS.c.task)).all()
        return [SourceTask(row.image, row.task, row.location) for row in rows]

    def set_source_tasks(self, tasks: Sequence[SourceTask]) -> None:
        """Replace the tasks of the pool."""
        with self.database.writing() as connection:
            connection.execute(sa.delete(TASKS))
            if tasks:
                connection.execute(sa.insert(TASKS), [vars(task) for task in tasks])

    def notice(self, hint: Hint) -> None:
        """Put a hint into the inbox; a few milliseconds, from any thread or process.

        Without commands it may be lost in a power cut, as any webhook may.
        """
        with self.database.writing(durable=bool(hint.commands)) as connection:
            if self.database.file is None:  # else one may be committed after a later one was read and forgotten
                connection.execute(advisory("pg_advisory_xact_lock", NOTICE))
            connection.execute(sa.insert(INBOX).values(body=asdict(hint), at=datetime.now(UTC)))

    def hints(self) -> list[tuple[int, Hint]]:
        """The inbox, oldest first, each hint with its number."""
        with self.database.reading() as connection:
            rows = connection.execute(sa.select(INBOX.c.id, INBOX.c.body).order_by(INBOX.c.id)).all()
        return [(row.id, _hint(row.body)) for row in rows]

    def forget_hints(self, up_to: int) -> None:
        """Take the hints up to a number out of the inbox."""
        with self.database.writing() as connection:
            connection.execute(sa.delete(INBOX).where(INBOX.c.id <= up_to))


def _hint(body: Mapping[str, Any]) -> Hint:
    lists = {name: tuple(value) for name, value in body.items() if isinstance(value, list)}
    return Hint(**{**body, **lists})


def _set(connection: sa.Connection, facts: Mapping[str, Any]) -> None:
    for name, value in facts.items():
        connection.execute(sa.delete(FACTS).where(FACTS.c.name == name))
        connection.execute(sa.insert(FACTS).values(name=name, value=value))
