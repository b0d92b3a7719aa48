"""Migrations: from every released schema to today's, with nothing lost, once, and all or nothing."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from propagation.campaign import Campaign
from propagation.errors import StoreError
from propagation.events import CampaignStarted, ImageTaken, MasksWritten
from sync import migrations
from sync.database import Database
from sync.store import SCHEMA, Hint, Store, metadata

DATA = Path(__file__).parents[2] / "data"
FIRST = DATA / "store-schema-1.sql"  # a campaign, as the first release left it: the dump of its database
OPEN = """
import sys
from sync.store import Store
store = Store(sys.argv[1])
print(len(store.events()))
store.close()
"""


def dumped():
    """The tables of the first release's database: their columns' names, and their rows."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(FIRST.read_text())
        connection.row_factory = sqlite3.Row
        return {
            table: [dict(row) for row in connection.execute(f"SELECT * FROM {table}")]
            for table in ("events", "source_tasks", "facts")
        }


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, make_url):
    return make_url(request.param)


@pytest.fixture
def ask(url):
    database = Database(url)

    def run(statement, *values):
        with database.writing() as connection:
            result = connection.exec_driver_sql(statement, *values)
            return result.all() if result.returns_rows else None

    yield run
    database.close()


@pytest.fixture
def old(url, ask):
    """The first release's database, before anything of today has seen it."""
    file = Database(url).file
    if file:
        with closing(sqlite3.connect(file)) as connection:
            connection.executescript(FIRST.read_text())
        return url
    database = Database(url)
    with database.writing() as connection:
        command.upgrade(migrations.config(connection), "0001")
        connection.exec_driver_sql("DROP TABLE alembic_version")
    database.close()
    for table, rows in dumped().items():
        for row in rows:
            ask(f"INSERT INTO {table} VALUES ({', '.join(['%s'] * len(row))})", tuple(map(str, row.values())))
    return url


@pytest.fixture
def opened():
    stores = []

    def again(url):
        stores.append(Store(url))
        return stores[-1]

    yield again
    for store in stores:
        store.close()


def test_a_store_of_the_first_release_is_brought_on_with_nothing_lost(old, ask, opened):
    texts = "SELECT seq, kind, CAST(body AS TEXT), CAST(at AS TEXT) FROM events ORDER BY seq"
    before = [tuple(map(str, row)) for row in ask(texts)]
    store = opened(old)
    assert [tuple(map(str, row)) for row in ask(texts)] == before
    assert len(before) == 49
    events = store.events()
    assert isinstance(events[0], CampaignStarted)
    assert sum(isinstance(event, MasksWritten) for event in events) == 6
    tasks = [(task.image, task.task, task.location) for task in store.source_tasks()]
    assert tasks == [tuple(row.values()) for row in dumped()["source_tasks"]]
    assert store.fact("connection")["title"] == "Größe “cells”"
    assert store.fact("cursor:verify") == "2026-01-01T00:00:00.042000Z"
    assert {name for (name,) in ask("SELECT name FROM facts")} == {row["name"] for row in dumped()["facts"]}
    assert store.fact("schema") == SCHEMA
    store.notice(Hint("ANNOTATION_CREATED", 1))
    store.append([ImageTaken("new")])
    assert opened(old).events() == [*events, ImageTaken("new")]


def test_a_campaign_of_the_first_release_is_where_it_was(old, opened, world):
    campaign = Campaign(world.table, world.trees, world.strategy)
    events = opened(old).events()
    for event in events:
        campaign.apply(event)
    assert list(campaign.next_round()) == []
    assert not campaign.waiting_pages
    accepted = set(world.table.ids[campaign.accepted()].tolist())
    written = {event.image: event.masks for event in events if isinstance(event, MasksWritten)}
    assert set().union(*(masks for image, masks in written.items() if not campaign.is_taken(image))) == accepted
    assert len(accepted) > 10
    assert all(world.truth[mask] for mask in accepted)


def tables_of(url):
    database = Database(url)
    with database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        found = compare_metadata(context, metadata)
    database.close()
    return found


def test_the_tables_are_those_that_the_code_knows(url, opened):
    opened(url)
    assert tables_of(url) == []


def test_the_tables_of_an_old_store_become_those_that_the_code_knows(old, opened):
    opened(old)
    assert tables_of(old) == []


def test_revisions_are_one_line_that_ends_at_the_schema():
    revisions = list(ScriptDirectory.from_config(migrations.config(None)).walk_revisions())
    assert [int(found.revision) for found in revisions] == list(range(SCHEMA, 0, -1))


def test_of_many_processes_that_open_an_old_store_one_brings_it_on(old, ask):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN, old], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    said = [process.communicate() for process in processes]
    assert said == [("49\n", "")] * 4
    assert ask("SELECT version_num FROM alembic_version") == [("0002",)]


def test_of_many_processes_that_make_a_store_one_makes_it(url, ask):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN, url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    assert [process.communicate() for process in processes] == [("0\n", "")] * 4


def test_what_fails_on_the_way_leaves_the_old_store_as_it_was(old, ask, opened):
    ask("CREATE TABLE inbox (somebody INTEGER)")
    with pytest.raises(StoreError, match=r"inbox.* already exists"):
        opened(old)
    # neither the mark of the first revision nor today's schema
    with pytest.raises(StoreError, match="alembic_version"):
        ask("SELECT * FROM alembic_version")
    assert [int(value) for (value,) in ask("SELECT value FROM facts WHERE name = 'schema'")] == [1]
    ask("DROP TABLE inbox")
    assert len(opened(old).events()) == 49


def test_a_first_release_that_broke_off_as_it_made_its_store_is_no_hindrance(old, ask, opened):
    ask("DELETE FROM facts WHERE name = 'schema'")
    assert opened(old).fact("schema") == SCHEMA


def test_a_store_of_a_later_release_is_refused_and_left_alone(old, ask, opened):
    ask("UPDATE facts SET value = '9' WHERE name = 'schema'")
    with pytest.raises(StoreError, match=f"has schema 9, this version knows {SCHEMA}; update it"):
        opened(old)
    with pytest.raises(StoreError, match="inbox"):
        ask("SELECT * FROM inbox")


def test_a_revision_that_is_not_known_is_refused(old, ask, opened):
    ask("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
    ask("INSERT INTO alembic_version VALUES ('of another program')")
    with pytest.raises(
        StoreError, match=r"cannot be brought from schema 1 to 2 .*of another program.*set another"
    ):
        opened(old)


def test_a_folder_with_odd_signs_is_no_hindrance(tmp_path, opened):
    store = opened(f"sqlite:///{tmp_path / '100 % ü' / 'store.sqlite'}")
    assert store.fact("schema") == SCHEMA
    assert sa.make_url(store.url).database.endswith("100 % ü/store.sqlite")
