"""What is sent, what is sent again, and what is said of answers that a healthy Label Studio would not give."""

from __future__ import annotations

import time
import types
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import jwt
import pytest

from plugin.label_studio.wire import ATTEMPTS, LONGEST_WAIT, Forbidden, Repeat, TooLarge, Wire, is_label_studio
from propagation.errors import Missing, NotLabelStudio, Refused, ServerError, Unreachable

URL = "http://label-studio.example/labels"
TOKEN = "0123456789abcdef0123456789abcdef01234567"
VERSION = {"label-studio-os-package": {"version": "1.23.2"}}
BUSY = httpx.Response(500, json={"detail": "database is locked"})
PAGE = httpx.Response(502, html="<h1>Bad Gateway</h1>")
DOWN = httpx.ConnectError("refused")
CUT = httpx.RemoteProtocolError("peer closed")

Answer = httpx.Response | Exception


class Server:
    """What was sent, and what is answered: the next of some answers, the last one again and again."""

    def __init__(self, *answers: Answer, token: str = TOKEN, known: bool = False) -> None:
        self.answers: list[Answer] = [httpx.Response(200, json=VERSION)] if known else []
        self.answers += answers
        self.sent: list[httpx.Request] = []
        self.seen: list[tuple[str, float, bool]] = []
        self.wire = Wire(URL + "/", token, 60, httpx.MockTransport(self), lambda *told: self.seen.append(told))
        if known:
            self.wire.get("version", "api/version", is_label_studio)
            self.sent.clear()
            self.seen.clear()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.sent.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    def get(self) -> Any:
        return self.wire.get("thing", "api/things/", lambda answer: answer["id"])

    def write(self, repeat: Repeat) -> Any:
        return self.wire.call("make", "POST", "api/things/", lambda answer: answer["id"], repeat, body={"a": 1})

    def failure(self, kind: type[Exception], ask: Callable[[Server], object] = get) -> str:
        """The message of the error of this kind that a call raises."""
        with pytest.raises(ServerError) as raised:
            ask(self)
        assert type(raised.value) is kind
        return str(raised.value)


def good() -> httpx.Response:
    return httpx.Response(200, json={"id": 7})


def refusal(status: int, said: str) -> httpx.Response:
    return httpx.Response(status, json={"detail": said})


def personal(**claims: Any) -> str:
    return jwt.encode({"exp": int(time.time()) + 3600, "token_type": "refresh", **claims}, "k" * 32)


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long it would have been waited between attempts."""
    seconds: list[float] = []
    monkeypatch.setattr("tenacity.nap.time", types.SimpleNamespace(sleep=seconds.append))
    return seconds


# what is sent again


@pytest.mark.parametrize("failure", [BUSY, PAGE, DOWN, CUT, httpx.ReadTimeout(""), httpx.Response(429)])
def test_what_may_be_repeated_is_sent_again(failure: Answer, waits: list[float]) -> None:
    server = Server(failure, failure, good())
    assert server.get() == 7
    assert len(server.sent) == 3
    assert len({(request.method, str(request.url), request.content) for request in server.sent}) == 1
    assert len(waits) == 2
    assert all(0.5 <= seconds <= 8 for seconds in waits)


@pytest.mark.parametrize("failure", [BUSY, PAGE, DOWN, CUT, httpx.Response(503), httpx.Response(429)])
def test_what_is_never_to_be_repeated_is_sent_once(failure: Answer) -> None:
    server = Server(failure, known=True)
    with pytest.raises(ServerError):
        server.write("never")
    assert len(server.sent) == 1


@pytest.mark.parametrize("failure", [BUSY, DOWN, httpx.ConnectTimeout(""), httpx.Response(503)])
def test_what_the_server_is_done_with_may_be_sent_again(failure: Answer) -> None:
    server = Server(failure, good(), known=True)
    assert server.write("done") == 7
    assert len(server.sent) == 2


@pytest.mark.parametrize(
    "failure",
    [PAGE, CUT, httpx.ReadTimeout(""), httpx.Response(504), httpx.Response(408), httpx.Response(200, text="{")],
    ids=["bad gateway", "cut off", "too slow", "gateway timeout", "timeout", "truncated"],
)
def test_what_may_be_running_still_is_not_begun_anew(failure: Answer) -> None:
    server = Server(failure, known=True)
    with pytest.raises(ServerError):
        server.write("done")
    assert len(server.sent) == 1


@pytest.mark.parametrize("status", [400, 404, 409, 413, 422])
def test_what_would_be_answered_alike_is_not_sent_again(status: int) -> None:
    server = Server(refusal(status, "no"), httpx.Response(200, json=VERSION), known=True)
    with pytest.raises(ServerError, match=rf"{URL}.*; "):
        server.get()
    assert sum(request.url.path.endswith("things/") for request in server.sent) == 1


def test_a_read_that_keeps_failing_is_given_up_with_the_last_reason() -> None:
    server = Server(DOWN, BUSY)
    said = server.failure(ServerError)
    assert "GET api/things/: " + URL + " answers 500 (database is locked); look in the server's log" in said
    assert len(server.sent) == ATTEMPTS


@pytest.mark.parametrize(
    ("asked", "waited"),
    [("7", 7.0), (" 7 ", 7.0), ("86400", LONGEST_WAIT), ("9" * 400, LONGEST_WAIT)],
    ids=["seconds", "with blanks", "a day", "for ever"],
)
def test_the_wait_that_the_server_asks_for_is_kept_and_limited(
    asked: str, waited: float, waits: list[float]
) -> None:
    Server(httpx.Response(429, headers={"retry-after": asked}), good()).get()
    assert waits == [waited]


def test_the_server_may_ask_to_wait_until_a_time(waits: list[float]) -> None:
    until = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    Server(httpx.Response(503, headers={"retry-after": until}), good()).get()
    assert 25 < waits[0] <= 30


@pytest.mark.parametrize(
    "asked",
    [
        "",
        "0",
        "-5",
        "soon",
        "1e3",
        "Mon",
        "Thu, 01 Jan 1970 00:00:00 GMT",
        "Mon, 01 Jan 2029 00:00:00 -0000",
        ", ,",
    ],
)
def test_a_wait_that_makes_no_sense_is_left_aside(asked: str, waits: list[float]) -> None:
    Server(httpx.Response(503, headers={"retry-after": asked}), good()).get()
    assert len(waits) == 1
    assert waits[0] < 10


def test_each_request_is_told_of_with_its_outcome() -> None:
    server = Server(BUSY, good())
    server.get()
    assert [(name, ok) for name, _, ok in server.seen] == [("thing", False), ("thing", True)]
    assert all(seconds >= 0 for _, seconds, _ in server.seen)


def test_one_request_is_sent_once_whatever_is_answered() -> None:
    server = Server(BUSY)
    assert server.wire.answer("GET", "api/things/").status_code == 500
    assert len(server.sent) == 1


def test_one_request_that_is_not_answered_is_named() -> None:
    server = Server(CUT)
    assert URL in server.failure(Unreachable, lambda server: server.wire.answer("GET", "api/things/"))
    assert len(server.sent) == 1


def test_calls_go_below_the_servers_path_with_the_token() -> None:
    server = Server(good())
    server.write("never")
    assert str(server.sent[0].url) == f"{URL}/api/things/"
    assert server.sent[0].headers["authorization"] == f"Token {TOKEN}"
    assert server.sent[0].headers["content-type"] == "application/json"
    assert server.sent[0].content == b'{"a":1}'


def test_numbers_that_json_does_not_have_are_not_sent() -> None:
    server = Server(good())
    with pytest.raises(ValueError, match="JSON"):
        server.wire.call("make", "POST", "api/things/", dict, "never", body={"score": float("nan")})
    assert server.sent == []


# what answers stand for

GARBLED = [
    pytest.param(httpx.Response(200, content=content), id=name)
    for name, content in {
        "truncated": b'{"id": 1, "tit',
        "no text": b"\xff\xfe\x00",
        "page": b"<html>login</html>",
        "empty": b"",
        "null": b"null",
        "list": b"[]",
        "text": b'"id"',
        "other": b'{"status": "UP"}',
        "deep": b"[" * 100_000,
    }.items()
]


@pytest.mark.parametrize("answer", GARBLED)
def test_what_nobody_could_read_is_another_server_while_none_is_known(answer: httpx.Response) -> None:
    server = Server(answer)
    said = server.failure(NotLabelStudio)
    assert f"what answers at {URL} is not Label Studio; correct LABEL_STUDIO_URL" in said
    assert len(server.sent) == 1


@pytest.mark.parametrize("answer", GARBLED)
def test_what_nobody_could_read_passes_with_a_server_that_is_known(answer: httpx.Response) -> None:
    server = Server(answer, good(), known=True)
    assert server.get() == 7
    said = Server(answer, known=True).failure(ServerError)
    assert f"GET api/things/: {URL} answers what is no answer to it" in said
    assert "look at the proxy" in said


@pytest.mark.parametrize("status", [301, 302, 307, 401, 403, 404, 502, 503])
def test_a_proxys_own_page_passes_with_a_server_that_is_known(status: int) -> None:
    page = httpx.Response(status, html="<h1>maintenance</h1>", headers={"location": "/maintenance"})
    server = Server(page, good(), known=True)
    assert server.get() == 7
    assert len(server.sent) == 2


def test_another_servers_lead_is_named_without_its_secrets() -> None:
    leads = httpx.Response(302, headers={"location": "https://me:pw@login.example/in?ticket=secret"})
    said = Server(leads).failure(NotLabelStudio)
    assert f"{URL} leads to https://login.example/in; correct LABEL_STUDIO_URL" in said


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_lead_is_followed(method: str) -> None:
    server = Server(httpx.Response(302, headers={"location": "https://evil.example/"}), known=True)
    with pytest.raises(ServerError):
        server.wire.call("thing", method, "api/things/", dict, "never")
    assert {request.url.host for request in server.sent} == {"label-studio.example"}
    assert len(server.sent) == 1


def test_what_is_gone_is_missing_where_label_studio_says_so() -> None:
    server = Server(refusal(404, "No Project matches"), httpx.Response(200, json=VERSION), known=True)
    said = server.failure(Missing)
    assert f"GET api/things/: {URL} has no such thing (No Project matches); it may have been deleted" in said


@pytest.mark.parametrize("other", [httpx.Response(404), httpx.Response(200, json={}), DOWN])
def test_what_is_gone_on_another_server_is_another_server(other: Answer) -> None:
    assert "LABEL_STUDIO_URL" in Server(refusal(404, "Not Found"), other).failure(NotLabelStudio)


@pytest.mark.parametrize(("status", "kind"), [(401, Refused), (403, Forbidden)])
def test_a_refusal_names_its_reason_and_the_remedy(status: int, kind: type[ServerError]) -> None:
    server = Server(refusal(status, "User inactive"))
    said = server.failure(kind)
    assert f"{URL} refuses the token (User inactive); make a new one on its Account & Settings page" in said
    assert len(server.sent) == 1


def test_a_request_that_is_too_large_names_the_proxys_setting() -> None:
    said = Server(httpx.Response(413, html="<h1>Too Large</h1>"), known=True).failure(TooLarge)
    assert "client_max_body_size" in said


@pytest.mark.parametrize("status", [400, 418, 500, 503])
def test_a_failure_names_the_call_and_what_to_do(status: int) -> None:
    said = Server(httpx.Response(status, json={"validation_errors": {"data": ["is empty"]}})).failure(ServerError)
    assert f"GET api/things/: {URL} answers {status} (" in said
    assert "is empty" in said
    assert "look in the server's log, then run the command again" in said


def test_markup_of_an_error_page_is_not_shown() -> None:
    said = Server(httpx.Response(500, html="<h1>Server Error</h1>")).failure(ServerError)
    assert "no reason given" in said
    assert "<h1>" not in said


def test_a_long_answer_is_shown_in_part() -> None:
    for answer in (httpx.Response(400, text="x" * 100_000), httpx.Response(400, json=["x" * 100_000])):
        assert len(Server(answer).failure(ServerError)) < 1000


@pytest.mark.parametrize(
    ("error", "said"),
    [(CUT, "peer closed"), (httpx.ReadTimeout(""), "ReadTimeout"), (httpx.DecodingError("bad gzip"), "bad gzip")],
)
def test_a_server_that_does_not_answer_is_named(error: Exception, said: str) -> None:
    expected = f"no answer from Label Studio at {URL} ({said}); start it, or correct LABEL_STUDIO_URL"
    assert Server(error).failure(Unreachable) == expected


# tokens


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500])
@pytest.mark.parametrize("before", [0, 285])
def test_a_token_that_the_server_repeats_is_not_shown(status: int, before: int) -> None:
    for told in (
        refusal(status, "x" * before + f"Token {TOKEN} is none"),
        httpx.Response(status, text="x" * before + TOKEN),
        httpx.Response(status, json=["x" * before + TOKEN]),
    ):
        with pytest.raises(ServerError) as raised:
            Server(told, httpx.Response(200, json=VERSION)).get()
        assert TOKEN[:8] not in str(raised.value)


def test_a_personal_token_is_exchanged_once_and_sent_to_the_exchange_alone() -> None:
    token, access = personal(), personal(token_type="access")
    server = Server(httpx.Response(200, json={"access": access}), good(), token=token)
    server.get()
    server.get()
    assert [request.url.path for request in server.sent] == [
        "/labels/api/token/refresh/",
        "/labels/api/things/",
        "/labels/api/things/",
    ]
    assert server.sent[1].headers["authorization"] == f"Bearer {access}"
    assert token.encode() not in b"".join(repr(request.headers).encode() for request in server.sent[1:])


@pytest.mark.parametrize("failure", [BUSY, DOWN, CUT, httpx.Response(429, json={})])
def test_an_exchange_that_fails_is_tried_again_even_before_a_write(failure: Answer) -> None:
    access = httpx.Response(200, json={"access": personal()})
    server = Server(failure, access, good(), token=personal())
    assert server.write("always") == 7


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, html="<h1>hello</h1>"),
        httpx.Response(200, json={}),
        httpx.Response(200, json={"access": None}),
        httpx.Response(200, json={"access": "schlüssel"}),
        httpx.Response(200, json={"access": "two\nlines"}),
        httpx.Response(404, json={"detail": "Not Found"}),
        httpx.Response(302, json=[]),
    ],
    ids=["page", "other", "none", "letters", "line break", "missing", "elsewhere"],
)
def test_an_exchange_that_nobody_could_read_is_another_server(answer: httpx.Response) -> None:
    assert "LABEL_STUDIO_URL" in Server(answer, good(), token=personal()).failure(NotLabelStudio)


@pytest.mark.parametrize("status", [400, 401, 403])
@pytest.mark.parametrize("before", [0, 285])
def test_a_refused_exchange_names_its_reason_and_not_the_token(status: int, before: int) -> None:
    token = personal()
    server = Server(refusal(status, "blacklisted " + "x" * before + token), token=token)
    said = server.failure(Refused)
    assert "blacklisted" in said
    assert "LABEL_STUDIO_API_KEY" in said
    assert token[:8] not in said


@pytest.mark.parametrize("token", ["", "two words", f"{TOKEN}\n", "schlüssel", personal(exp=1), personal(exp="x")])
def test_a_token_that_no_server_can_have_made_is_refused_without_showing_it(token: str) -> None:
    with pytest.raises(Refused, match="make a new one on its Account & Settings page") as raised:
        Server(good(), token=token)
    assert not token or token.strip() not in str(raised.value)
