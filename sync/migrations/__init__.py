"""How a store's tables came about: one revision a released schema, run forward as a store is opened."""

from __future__ import annotations

import threading
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError

from propagation.errors import StoreError
from sync.database import UPGRADE, advisory, shown

SCHEMA = 2

_FIRST = {"events", "facts", "source_tasks"}
_facts = sa.table("facts", sa.column("name", sa.String), sa.column("value", sa.JSON))
_alembic = threading.Lock()  # Alembic's context is one for the whole process


def schema(connection: sa.Connection) -> int:
    """The schema of a database; 0 where it has none. Raises StoreError for one later than is known here."""
    found = None
    if sa.inspect(connection).has_table("facts"):
        found = connection.execute(sa.select(_facts.c.value).where(_facts.c.name == "schema")).scalar()
    number = int(found or 0)
    if number > SCHEMA:
        raise StoreError(
            f"the store {shown(connection.engine.url)} has schema {number}, this version knows {SCHEMA}; update it"
        )
    return number


def upgrade(connection: sa.Connection) -> None:
    """Bring a database to today's schema, in the transaction that the connection is in.

    Who begins that transaction must have SQLite write-locked; in PostgreSQL a lock is waited for here. So
    of many processes that open an old store, the first one upgrades it and the others find it done.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(advisory("pg_advisory_xact_lock", UPGRADE))
    before = schema(connection)
    if before == SCHEMA:
        return
    tables = set(sa.inspect(connection).get_table_names())
    try:
        with _alembic:
            if tables >= _FIRST and "alembic_version" not in tables:  # as released before there were migrations
                command.stamp(config(connection), "0001")
            command.upgrade(config(connection), "head")
    except CommandError as error:
        raise StoreError(
            f"the store {shown(connection.engine.url)} cannot be brought from schema {before} to {SCHEMA} "
            f"({error}); set another database as store, or restore a backup"
        ) from error
    # the first release, which knows no revisions, looks here, and refuses what it does not know
    connection.execute(sa.delete(_facts).where(_facts.c.name == "schema"))
    connection.execute(sa.insert(_facts).values(name="schema", value=SCHEMA))


def config(connection: sa.Connection) -> Config:
    """What Alembic's commands want to know, in place of a file."""
    told = Config()
    told.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    told.attributes["connection"] = connection
    return told
