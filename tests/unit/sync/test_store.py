"""The store: all or nothing, one writer, and what was put in comes out."""

import sqlite3

import pytest
import sqlalchemy as sa

from propagation.errors import StoreError
from propagation.events import (
    CampaignStarted,
    Decided,
    ImageTaken,
    MasksWritten,
    PageAnswered,
    PageIssued,
    PagePosted,
    PageReturned,
    WriteIntended,
)
from sync.store import SCHEMA, SourceTask, Store

EVENTS = [
    CampaignStarted("c", {"samples": 15, "budget": None, "share": 0.85}, "table", "trees"),
    PageIssued("p", 1, "Größe “x”", ("m1", "m2"), ("x/3", "x/4")),
    PagePosted("p", 17),
    PageAnswered("p", 3, "2026-01-01T00:00:00.000001Z", 2, 1.25, ("yes", "no")),
    PageAnswered("p", 3, "later", 2, None, ("unsure", "no")),
    PageReturned("p", 3, "later still"),
    ImageTaken("/data/ü b.png"),
    Decided("x/3", "accept", 15, 13),
    WriteIntended(5, "digest"),
    MasksWritten("/data/ü b.png", 5, 6, ("m1",)),
    MasksWritten("/data/ü b.png", 5, 6, ()),
]


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'deep' / 'store.sqlite'}"


@pytest.fixture
def opened(url):
    """Opens the store once more, as another process would."""
    stores = []

    def again():
        stores.append(Store(url))
        return stores[-1]

    yield again
    for store in stores:
        store.close()


def test_events_are_read_as_they_were_appended(opened):
    store = opened()
    store.append(EVENTS[:4])
    store.append(EVENTS[4:])
    assert store.events() == EVENTS
    assert opened().events() == EVENTS


def test_what_is_appended_next_continues_the_log(opened):
    opened().append(EVENTS[:3])
    later = opened()
    later.events()
    later.append(EVENTS[3:])
    assert opened().events() == EVENTS


def test_a_second_writer_is_refused_and_writes_nothing(opened):
    first, second = opened(), opened()
    first.events()
    second.events()
    first.append(EVENTS[:2], cursor="first")
    with pytest.raises(StoreError, match="another process writes to this store; stop one"):
        second.append(EVENTS[2:], cursor="second", other=1)
    assert opened().events() == EVENTS[:2]
    assert opened().fact("cursor") == "first"
    assert opened().fact("other") is None


def test_a_writer_that_was_refused_stays_refused_until_it_reads_again(opened):
    first, second = opened(), opened()
    first.append(EVENTS[:1])
    for _ in range(2):
        with pytest.raises(StoreError):
            second.append(EVENTS[1:2])
    second.events()
    second.append(EVENTS[1:2])
    assert opened().events() == EVENTS[:2]


def test_an_append_that_fails_leaves_neither_events_nor_facts(opened):
    store = opened()
    store.remember(cursor="old")
    with pytest.raises(Exception, match="serializable"):
        store.append(EVENTS, cursor="new", broken=object())
    assert store.events() == []
    assert store.fact("cursor") == "old"
    store.append(EVENTS)
    assert store.events() == EVENTS


def test_facts_are_replaced_by_name(opened):
    store = opened()
    assert store.fact("a") is None
    store.remember(a={"x": [1, None]}, b="2")
    store.remember(a="new")
    store.append([], b=3)
    assert (opened().fact("a"), opened().fact("b")) == ("new", 3)


def test_source_tasks_are_replaced_as_a_whole(opened):
    store = opened()
    store.set_source_tasks([SourceTask("b", 2, "b?1"), SourceTask("a", 1, "a?1")])
    assert store.source_tasks() == [SourceTask("a", 1, "a?1"), SourceTask("b", 2, "b?1")]
    store.set_source_tasks([SourceTask("a", 7, "a?2")])
    assert opened().source_tasks() == [SourceTask("a", 7, "a?2")]
    store.set_source_tasks([])
    assert store.source_tasks() == []


def test_the_schema_is_remembered_and_a_newer_one_refused(opened):
    store = opened()
    assert store.fact("schema") == SCHEMA
    store.remember(schema=SCHEMA + 1)
    with pytest.raises(StoreError, match=f"has schema {SCHEMA + 1}, this version knows {SCHEMA}"):
        opened()


def test_sqlite_writes_ahead(opened, url):
    opened()
    connection = sqlite3.connect(sa.make_url(url).database)
    try:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    finally:
        connection.close()


def test_a_file_that_is_no_database_is_refused(tmp_path):
    path = tmp_path / "store.sqlite"
    path.write_text("not a database, " * 100)
    with pytest.raises(StoreError, match=r"store\.sqlite failed"):
        Store(f"sqlite:///{path}")


@pytest.mark.parametrize(
    "url",
    ["nonsense", "", "oracle9://host/x", "sqlite://user:secret@/store.sqlite", "sqlite:////dev/null/store.sqlite"],
)
def test_an_address_that_cannot_be_used_is_refused_without_its_password(url):
    with pytest.raises(StoreError, match="the store setting cannot be used") as caught:
        Store(url)
    assert "secret" not in str(caught.value)
