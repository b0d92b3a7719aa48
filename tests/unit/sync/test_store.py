"""The store, in SQLite and in PostgreSQL: all or nothing, one writer, and what was put in comes out."""

import re
import sqlite3
import statistics
import sys
import threading
import time
import tracemalloc
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from propagation.errors import StoreError
from propagation.events import (
    CampaignStarted,
    CertificateOpened,
    Decided,
    ImageTaken,
    MasksWritten,
    PageAnswered,
    PageIssued,
    PagePosted,
    PageReturned,
    WriteIntended,
)
from sync import store as rooms
from sync.store import SCHEMA, Hint, SourceTask, Store

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


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, make_url):
    return make_url(request.param)


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


def test_the_log_is_read_a_few_at_a_time(opened, monkeypatch):
    monkeypatch.setattr(rooms, "AT_ONCE", 3)
    for count in range(len(EVENTS) + 1):
        store = opened()
        assert list(store.stream()) == EVENTS[:count]
        store.append(EVENTS[count : count + 1])
    stream = opened().stream()
    assert [next(stream), next(stream)] == EVENTS[:2]


def test_a_long_log_is_streamed_in_little_memory(opened):
    store = opened()
    page = "p" * 20_000
    for first in range(0, 4000, 500):
        store.append([PagePosted(page, first + task) for task in range(500)])
    reader = opened()
    tracemalloc.start()
    try:
        assert sum(event.task for event in reader.stream()) == sum(range(4000))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50_000_000 < 4000 * len(page)


def test_who_has_read_the_log_in_part_appends_nothing(opened):
    opened().append(EVENTS)
    store = opened()
    next(store.stream())
    with pytest.raises(StoreError, match="another process"):
        store.append(EVENTS[:1])
    assert opened().events() == EVENTS


def test_a_second_writer_moves_no_fact_either(opened):
    first, second = opened(), opened()
    first.append(EVENTS[:1], cursor="first")
    with pytest.raises(StoreError, match="another process"):
        second.append([], cursor="second")
    assert opened().fact("cursor") == "first"


def test_of_writers_at_the_same_moment_one_wins(opened):
    stores = [opened() for _ in range(4)]
    for round_ in range(5):
        for store in stores:
            store.events()
        start = threading.Barrier(len(stores))

        def write(store, start=start, number=round_):
            start.wait()
            try:
                store.append([ImageTaken(f"{number}/{n}") for n in range(20)], winner=stores.index(store))
            except StoreError:
                return None
            return stores.index(store)

        with ThreadPoolExecutor(len(stores)) as pool:
            winners = {number for number in pool.map(write, stores) if number is not None}
        assert winners == {opened().fact("winner")}
    assert opened().events() == [ImageTaken(f"{number}/{n}") for number in range(5) for n in range(20)]


def test_long_texts_and_odd_ones_are_kept(opened):
    odd = [ImageTaken("x" * 600_000), ImageTaken("a\x00b\ud800 \u2028\r\n“ü”"), ImageTaken("")]
    opened().append(odd)
    assert opened().events() == odd


TEXT = st.text(st.characters(exclude_categories=()), max_size=20)
ANY_EVENT = st.one_of(
    st.builds(ImageTaken, TEXT),
    st.builds(
        PageAnswered,
        TEXT,
        st.integers(),
        TEXT,
        st.integers(),
        st.none() | st.floats(allow_nan=False, allow_infinity=False),
        st.lists(st.sampled_from(["yes", "no", "unsure"])).map(tuple),
    ),
    st.builds(CertificateOpened, st.integers(), TEXT, st.floats(0, 1), TEXT, st.lists(st.floats(0, 1)).map(tuple)),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(log=st.lists(ANY_EVENT, max_size=8), cut=st.integers(0, 8))
def test_any_events_come_out_as_they_went_in(opened, log, cut):
    store = opened()
    before = store.events()
    store.append(log[:cut])
    store.append(log[cut:])
    assert store.events() == before + log


def test_hints_are_kept_in_order_until_they_are_forgotten(opened):
    said = [Hint("ANNOTATION_CREATED", 7, (1, 2)), Hint("PROJECT_DELETED", None), Hint("Größe \x00", 10**30, (0,))]
    store = opened()
    assert store.hints() == []
    for hint in said:
        store.notice(hint)
    numbers, hints = zip(*opened().hints(), strict=True)
    assert list(hints) == said
    assert list(numbers) == sorted(numbers)
    store.forget_hints(numbers[1])
    assert store.hints() == [(numbers[2], said[2])]
    store.forget_hints(numbers[2])
    store.notice(said[0])
    (number, hint) = opened().hints()[0]
    assert hint == said[0]
    assert number > numbers[2]


def test_hints_from_many_threads_get_in_while_the_log_grows(opened):
    store = opened()
    slow: list[float] = []

    def webhook(worker):
        for number in range(20):
            begun = time.perf_counter()
            store.notice(Hint("ANNOTATION_CREATED", worker, (number,)))
            slow.append(time.perf_counter() - begun)

    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(webhook, worker) for worker in range(4)]
        while not all(job.done() for job in jobs):
            store.append([ImageTaken(str(number)) for number in range(200)])
        for job in jobs:
            job.result()
    assert sorted((hint.project, hint.tasks) for _, hint in store.hints()) == [
        (worker, (number,)) for worker in range(4) for number in range(20)
    ]
    assert statistics.median(slow) < 1  # the time that Label Studio waits for its webhooks


def test_no_hint_is_forgotten_before_it_was_read(opened):
    """One that was begun earlier and committed later must not have a number that is forgotten already."""
    writer, reader = opened(), opened()
    read: list[int] = []

    def forget():
        while len(read) < 120:
            if hints := reader.hints():
                read.extend(hint.tasks[0] for _, hint in hints)
                reader.forget_hints(hints[-1][0])

    with ThreadPoolExecutor(5) as pool:
        reading = pool.submit(forget)
        for task in range(120):
            pool.submit(writer.notice, Hint("a", 1, (task,)))
        reading.result(60)
    assert sorted(read) == list(range(120))


def test_a_reader_keeps_no_writer_waiting_and_sees_one_state(opened):
    store, other = opened(), opened()
    store.append(EVENTS[:1])
    count = sa.select(sa.func.count()).select_from(rooms.EVENTS)
    with other.database.reading() as connection:
        assert connection.execute(count).scalar() == 1
        store.append(EVENTS[1:3])
        assert connection.execute(count).scalar() == 1
    assert len(other.events()) == 3


def test_the_address_is_told_without_its_password(opened, url):
    told = opened().url
    given = sa.make_url(url)
    assert told == given.render_as_string(hide_password=True)
    assert given.password is None or given.password not in told


def test_the_schema_is_remembered_and_a_newer_one_refused(opened):
    store = opened()
    assert store.fact("schema") == SCHEMA
    store.remember(schema=SCHEMA + 1)
    with pytest.raises(StoreError, match=f"has schema {SCHEMA + 1}, this version knows {SCHEMA}"):
        opened()


def test_sqlite_writes_ahead(make_url):
    url = make_url("sqlite")
    Store(url).close()
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
    [
        "nonsense",
        "",
        "oracle9://host/x",
        "mysql://user:secret@host/x",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file:x?uri=true",
        "sqlite://user:secret@/store.sqlite",
        "sqlite:////dev/null/store.sqlite",
        "postgresql://user:secret@host:secret/x",
        "postgresql://user:sec@ret@host/x",
    ],
)
def test_an_address_that_cannot_be_used_is_refused_without_its_password(url):
    with pytest.raises(StoreError, match="the store setting cannot be used") as caught:
        Store(url)
    assert not re.search("sec|ret", str(caught.value))


def test_postgresql_is_told_with_its_words_and_without_its_password(postgres):
    def address(**changed):
        return sa.make_url(postgres.create(f"words {uuid.uuid4()}")).set(**changed)

    gone = address(drivername="postgresql", database="gone", query={"application_name": "hidden"})
    wrong = address(password="mistaken")
    nobody = address(host="127.0.0.1", port=1)
    for url, words in [(gone, 'database "gone" does not exist'), (wrong, "authentication"), (nobody, "refused")]:
        with pytest.raises(StoreError, match=f"{words}.*see that it can be reached") as caught:
            Store(url.render_as_string(hide_password=False))
        said = str(caught.value)
        assert not re.search(f"{url.password}|hidden|SELECT|\n", said)


def test_a_plain_postgresql_address_is_taken(postgres):
    store = Store(postgres.create("plain").replace("+psycopg", ""))
    store.append(EVENTS)
    assert store.events() == EVENTS
    store.close()


def test_a_missing_driver_is_told_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StoreError, match=r"pip install label-studio-propagate\[postgresql\]"):
        Store("postgresql://user:secret@127.0.0.1/x")


def test_a_postgresql_that_was_started_anew_is_found_again(postgres, make_url):
    url = make_url("postgresql")
    store = Store(url)
    store.append(EVENTS[:1])
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    store.append(EVENTS[1:])
    assert store.events() == EVENTS
    store.close()
