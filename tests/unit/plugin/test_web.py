"""What both servers share: nobody unwanted is let in, every error is said in JSON, and nothing ends a server."""

from __future__ import annotations

import errno
import gc
import gzip
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from flask import Flask, Response, jsonify
from flask.testing import FlaskClient

from plugin import web
from propagation.errors import SettingsError

LARGEST = 1000
PASSWORD = "geheim: größe ☃"


def make_app(password: str | None = None) -> Flask:
    app = Flask(__name__, static_folder=None)
    web.guard(app, password, {"/open"}, LARGEST)

    @app.get("/open")
    @app.get("/guarded")
    def answer() -> Response:
        return jsonify(answered=True)

    @app.post("/echo")
    def echo() -> Response:
        return jsonify(read=repr(web.read_json()))

    @app.get("/broken")
    def broken() -> Response:
        raise RuntimeError("geheim, at /srv/geheim/path.py")

    return app


@pytest.fixture
def client() -> FlaskClient:
    return make_app().test_client()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "localhost", "LOCALHOST"])
def test_loopback_is_known(host: str) -> None:
    assert web.is_loopback(host)
    web.check_exposure(host, {"LS_PROPAGATE_DAEMON_PASSWORD": None})


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "::", "", "192.168.1.5", "example.com", "localhost.example.com", "127.0.0.1.nip.io", "2130706433"],
)
def test_what_others_can_reach_is_not_served_without_its_secrets(host: str) -> None:
    assert not web.is_loopback(host)
    needed = {"LS_PROPAGATE_DAEMON_PASSWORD": "", "LS_PROPAGATE_WEBHOOK_SECRET": None, "LS_PROPAGATE_OTHER": "set"}
    with pytest.raises(
        SettingsError, match="set LS_PROPAGATE_DAEMON_PASSWORD and LS_PROPAGATE_WEBHOOK_SECRET, or"
    ):
        web.check_exposure(host, needed)
    web.check_exposure(host, dict.fromkeys(needed, "set"))


@pytest.mark.parametrize("host", ["evil.example:9091", "127.0.0.1.evil.example", "", "[::2]", "::1", "a]b", "é"])
def test_without_a_password_a_page_that_turned_its_name_to_this_machine_reads_nothing(
    client: FlaskClient, host: str
) -> None:
    answer = client.get("/guarded", headers={"Host": host})
    assert answer.status_code == 421
    assert "127.0.0.1 or localhost" in answer.get_json()["error"]
    assert client.get("/open", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["localhost", "localhost:9091", "127.0.0.1:9091", "[::1]:9091"])
def test_without_a_password_loopback_names_are_answered(client: FlaskClient, host: str) -> None:
    assert client.get("/guarded", headers={"Host": host}).status_code == 200


def test_with_a_password_any_name_is_answered_to_who_knows_it() -> None:
    client = make_app(PASSWORD).test_client()
    headers = {"Host": "host.docker.internal:9091"}
    assert client.get("/guarded", headers=headers, auth=("any", PASSWORD)).status_code == 200
    refused = client.get("/guarded", headers=headers, auth=("any", "geheim"))
    assert refused.status_code == 401
    assert refused.headers["WWW-Authenticate"].startswith("Basic ")
    assert "geheim" not in refused.get_data(as_text=True)
    assert client.get("/open", headers=headers).status_code == 200


def test_what_there_is_is_not_told_without_the_password() -> None:
    client = make_app(PASSWORD).test_client()
    assert [client.get(path).status_code for path in ("/guarded", "/nothing", "/open/")] == [401] * 3


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "http://localhost//open", 404),
        ("GET", "/open/", 404),
        ("GET", "/%ff%00", 404),
        ("DELETE", "/open", 405),
        ("GET", "/broken", 500),
    ],
)
def test_errors_are_said_in_json(client: FlaskClient, method: str, path: str, status: int) -> None:
    answer = client.open(path, method=method)
    assert answer.status_code == status
    assert list(answer.get_json()) == ["error"]
    assert "geheim" not in answer.get_data(as_text=True)
    assert "Traceback" not in answer.get_data(as_text=True)


def test_a_wrong_method_is_told_the_right_ones(client: FlaskClient) -> None:
    assert "GET" in client.delete("/open").headers["Allow"]


@pytest.mark.parametrize("path", ["/open", "/nothing", "/broken"])
def test_every_answer_bears_the_headers_that_keep_it_to_itself(client: FlaskClient, path: str) -> None:
    headers = client.get(path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert headers["Cache-Control"] == "no-store"
    assert "Access-Control-Allow-Origin" not in headers


@pytest.mark.parametrize("path", ["/echo", "/open", "/nothing"])
def test_a_body_that_is_too_large_is_refused(client: FlaskClient, path: str) -> None:
    answer = client.post(path, data=b"x" * (LARGEST + 1))
    assert answer.status_code == 413
    assert "larger" in answer.get_json()["error"]


UNREADABLE = {
    "nothing": b"",
    "broken": b'{"action": ',
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "a huge number": b"9" * 100_000,
    "not UTF-8": b'"\xff\xfe"',
    "compressed": gzip.compress(b'{"action": "a"}'),
}


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
def test_a_body_that_is_no_json_is_read_as_nothing(body: bytes) -> None:
    with Flask(__name__).test_request_context(data=body, content_type="application/json"):
        assert web.read_json() is None


@pytest.mark.parametrize(
    "body", [b"NaN", b"-Infinity", b'"\\ud800"', b'{"a": 1e999}', b'{"a": 1, "a": 2}', b"null"]
)
def test_odd_json_does_no_harm(client: FlaskClient, body: bytes) -> None:
    assert client.post("/echo", data=body, content_type="application/json").status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/json; charset=no-such"},
        {"Content-Type": "multipart/form-data"},
        {"Content-Type": "x" * 5000},
        {"Content-Encoding": "gzip"},
        {"Transfer-Encoding": "chunked"},
        {"Content-Length": "-5"},
        {"Content-Length": "1e3"},
        {"Accept": "\xff/;q=;;"},
        {"Cookie": "=;=;\xff"},
        {"If-Modified-Since": "never"},
        {"Range": "bytes=5-1"},
        {"Authorization": "Basic " + "=" * 999},
        {"X-Forwarded-Host": "evil.example"},
    ],
)
def test_odd_headers_do_no_harm(client: FlaskClient, headers: dict[str, str]) -> None:
    assert client.post("/echo", data=b"{}", headers=headers).status_code < 500
    assert client.get("/guarded", headers=headers).status_code < 500


@pytest.mark.parametrize(
    "given", [b"", b"g", b"geheim", PASSWORD.encode()[:-1], PASSWORD.encode() + b"\n", b"\xff"]
)
def test_only_the_whole_secret_matches(given: bytes) -> None:
    assert not web.matches(given, PASSWORD)
    assert web.matches(PASSWORD.encode(), PASSWORD)
    assert web.matches("größe".encode("latin-1"), "größe")


@pytest.fixture
def served() -> Iterator[web.Served]:
    served = web.serve(make_app(), "127.0.0.1", 0, "daemon")
    yield served
    served.close()


def get(served: web.Served, path: str = "/guarded", **more: Any) -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{served.port}{path}", timeout=10, **more)


def test_a_server_answers_until_it_is_closed() -> None:
    served = web.serve(make_app(), "localhost", 0, "daemon")
    answer = get(served)
    assert answer.json() == {"answered": True}
    assert "server" not in answer.headers
    served.close()
    served.wait()
    with pytest.raises(httpx.ConnectError):
        get(served)


def test_a_port_that_is_taken_is_named(served: web.Served) -> None:
    with pytest.raises(
        SettingsError, match=rf"daemon_port: 127\.0\.0\.1 port {served.port} .*set daemon_port to another"
    ):
        web.serve(make_app(), "127.0.0.1", served.port, "daemon")


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 300, "192.0.2.1"])
def test_a_host_that_is_not_ours_is_named(host: str) -> None:
    with pytest.raises(SettingsError, match=r"^backend_host: .*correct it$"):
        web.serve(make_app(), host, 0, "backend")


def test_requests_do_not_make_the_collector_look_at_what_was_loaded_before() -> None:
    gc.unfreeze()
    try:
        loaded: list[Any] = [[]]
        assert any(one is loaded for one in gc.get_objects())
        web.serve(make_app(), "127.0.0.1", 0, "daemon").close()
        assert not any(one is loaded for one in gc.get_objects())
    finally:
        gc.unfreeze()


HOSTILE = {
    "noise": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20 + b"\r\n\r\n",
    "no version": b"GET /open\r\n\r\n",
    "odd version": b"GET /open HTTP/9.9\r\n\r\n",
    "odd method": b"\xff\xfe /open HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "odd path": b"GET http://[::1/%zz\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no host": b"GET /guarded HTTP/1.1\r\n\r\n",
    "split header": b"GET /open HTTP/1.1\r\nHost: a\r\n b\r\nX: \x00\r\n\r\n",
    "two lengths": b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}x",
    "length and chunks": b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "odd chunks": b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n\r\n",
    "other coding": b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
    "large header": b"GET /open HTTP/1.1\r\nX: " + b"x" * 300_000 + b"\r\n\r\n",
    "huge length": b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999\r\n\r\n",
}


@pytest.mark.parametrize("sent", HOSTILE.values(), ids=HOSTILE)
def test_hostile_bytes_get_a_short_answer_and_the_server_lives_on(served: web.Served, sent: bytes) -> None:
    answer = b""
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        try:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                answer += part
        except OSError as error:  # it may hang up before all is sent
            if error.errno not in (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN):
                raise
    assert b"Traceback" not in answer
    assert b"HTTP/1.1 5" not in answer.replace(b"HTTP/1.1 501 Not Implemented", b"")
    assert get(served).json() == {"answered": True}


def test_chunks_beyond_the_limit_are_refused(served: web.Served) -> None:
    chunks = (b"x" * 100 for _ in range(20))
    answer = httpx.post(f"http://127.0.0.1:{served.port}/echo", content=chunks, timeout=10)
    assert answer.status_code == 413
    assert "larger" in answer.json()["error"]
