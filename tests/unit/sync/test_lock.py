"""The lock: one holder, freed at once when it dies, and known to be lost when it is."""

import signal
import subprocess
import sys
import threading
import time

import pytest
import sqlalchemy as sa

from propagation.errors import StoreError
from propagation.events import ImageTaken
from sync.store import Store

HOLDER = """
import sys, time
from sync.store import Store
store = Store(sys.argv[1])
print(store.lock().acquire(), flush=True)
time.sleep(600)
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, make_url):
    return make_url(request.param)


@pytest.fixture
def opened():
    """Opens a store once more, as another process would."""
    stores = []

    def again(url):
        stores.append(Store(url))
        return stores[-1]

    yield again
    for store in stores:
        store.close()


@pytest.fixture
def holder(url):
    """Another process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, url], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "True\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def end_sessions(url):
    """What a restart of the server, or its administrator, does to all that are connected."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def test_one_holds_it_and_the_next_gets_it_once_it_is_released(opened, url):
    first, second = opened(url).lock(), opened(url).lock()
    assert not first.held()
    assert first.acquire()
    assert first.acquire()
    assert first.held()
    assert not second.acquire()
    assert not second.held()
    second.release()
    assert first.held()
    first.release()
    assert not first.held()
    assert second.acquire()


def test_a_store_that_is_closed_gives_it_back(opened, url):
    first = opened(url)
    assert first.lock().acquire()
    first.close()
    assert opened(url).lock().acquire()


def test_who_is_killed_gives_it_back_at_once(opened, url, holder):
    lock = opened(url).lock()
    assert not lock.acquire()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    end = time.monotonic() + 5  # a server hears of it a moment later
    while not lock.acquire():
        assert time.monotonic() < end
    assert lock.held()


def test_who_hangs_keeps_it(opened, url, holder):
    holder.send_signal(signal.SIGSTOP)
    time.sleep(0.5)
    assert not opened(url).lock().acquire()


def test_readers_and_webhooks_need_no_lock(opened, url, holder):
    store = opened(url)
    assert store.events() == []
    assert store.hints() == []


def test_stores_beside_each_other_have_a_lock_each(opened, make_url, url):
    assert opened(url).lock().acquire()
    assert opened(make_url(url.split("+")[0].split(":")[0])).lock().acquire()


def test_threads_share_it(opened, url):
    lock, seen = opened(url).lock(), []
    assert lock.acquire()
    thread = threading.Thread(target=lambda: seen.extend([lock.held(), lock.acquire()]))
    thread.start()
    thread.join()
    assert seen == [True, True]


def test_who_lost_it_appends_nothing_even_if_nobody_else_has(make_url, opened):
    url = make_url("postgresql")
    store = opened(url)
    assert store.lock().acquire()
    store.append([ImageTaken("a")])
    end_sessions(url)
    with pytest.raises(StoreError, match=r"the lock on the store .* was lost.*start this one again") as caught:
        store.append([ImageTaken("b")])
    assert sa.make_url(url).password not in str(caught.value)
    assert opened(url).events() == [ImageTaken("a")]


def test_a_session_that_ended_holds_nothing(make_url, opened):
    url = make_url("postgresql")
    lock = opened(url).lock()
    assert lock.acquire()
    end_sessions(url)
    assert not lock.held()
    other = opened(url).lock()
    assert other.acquire()
    assert not lock.held()
    assert not lock.acquire()
    other.release()
    assert lock.acquire()
    assert lock.held()


def test_stores_in_schemas_of_one_database_have_a_lock_each(make_url, opened):
    url = make_url("postgresql")
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA other")
    other = f"{url}?options=-csearch_path%3Dother"
    assert opened(url).lock().acquire()
    beside = opened(other)
    beside.append([ImageTaken("there")])
    assert beside.lock().acquire()
    assert not opened(other).lock().acquire()
    assert opened(url).events() == []


def test_a_lock_file_that_was_deleted_is_no_lock(make_url, opened):
    url = make_url("sqlite")
    first, second = opened(url), opened(url)
    assert first.lock().acquire()
    path = first.database.file.with_name(f"{first.database.file.name}.lock")
    path.unlink()
    assert not first.lock().held()
    assert second.lock().acquire()
    assert not first.lock().acquire()
    with pytest.raises(StoreError, match="was lost"):
        first.append([ImageTaken("a")])


def test_the_lock_is_that_of_the_file_however_it_is_named(make_url, opened, tmp_path):
    url = make_url("sqlite")
    first = opened(url)
    assert first.lock().acquire()
    link = tmp_path / "link.sqlite"
    link.symlink_to(first.database.file)
    assert not opened(f"sqlite:///{link}").lock().acquire()


def test_a_lock_that_cannot_be_made_is_told_in_words(make_url, opened):
    store = opened(make_url("sqlite"))
    store.database.file.with_name(f"{store.database.file.name}.lock").mkdir()
    with pytest.raises(StoreError, match=r"\.lock cannot be locked .*; let its folder be written to"):
        store.lock().acquire()


def test_a_server_that_lets_nobody_in_is_told_in_words(make_url, opened):
    url = make_url("postgresql")
    lock = opened(url).lock()
    engine = sa.create_engine(make_url("postgresql"), poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f'ALTER DATABASE "{sa.make_url(url).database}" ALLOW_CONNECTIONS false')
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
            (sa.make_url(url).database,),
        )
    with pytest.raises(
        StoreError, match=r"cannot be locked .*not currently accepting.*see that it can be reached"
    ):
        lock.acquire()
    assert not lock.held()
