"""Logs: lines or JSON, everybody's, and never a secret in them."""

import json
import logging
import re
import subprocess
import sys
import warnings
from datetime import UTC, datetime, timedelta

import pytest
import structlog

from ls_propagate import logs

SECRET = "s3cr&t/größe \"q' \\ %"
OTHERS = ("tok-3f9a", "hunter2")


@pytest.fixture(autouse=True)
def as_before():
    """What the process logs like afterwards."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    libraries = {name: logging.getLogger(name).level for name in (*logs.QUIET, logs.BUSY)}
    with warnings.catch_warnings():
        yield
        logging.captureWarnings(False)
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in libraries.items():
        logging.getLogger(name).setLevel(before)


@pytest.fixture
def said(capsys):
    """Configure the logs, let something be logged, and hand back what was written."""

    def written(log_format="text", level="warning", secrets=(SECRET, *OTHERS), by="sync.daemon"):
        logs.configure(log_format, level, secrets)

        class Told:
            log = logging.getLogger(by)

            def __str__(self):
                out, err = capsys.readouterr()
                assert out == ""
                return err

        return Told()

    return written


def spellings():
    """A secret in all the ways in which it may come into a log."""
    return [
        SECRET,
        repr(SECRET),
        json.dumps(SECRET),
        json.dumps(SECRET, ensure_ascii=False),
        "http://x/?p=" + "s3cr%26t%2Fgr%C3%B6%C3%9Fe%20%22q%27%20%5C%20%25",
        "s3cr%26t%2Fgr%C3%B6%C3%9Fe+%22q%27+%5C+%25",
        repr(SECRET.encode()),
        "s3cr&amp;t/größe &quot;q&#x27; \\ %",
        {"deep": [{SECRET: {SECRET}}, (SECRET,)]},
        ValueError(SECRET),
        SECRET.encode(),
        SECRET.encode("latin-1"),
        "s3cr%2526t%252Fgr%25C3%25b6%25c3%259Fe%2520%2522q%2527%2520%255C%2520%2525",
        "s3cr&amp;t/gr&#246;&#xdf;e &#34;q&#39; \\ %",
    ]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_secret_is_in_any_part_of_a_record(said, log_format):
    told = said(log_format)
    for one in spellings():
        told.log.warning(str(one))
        told.log.warning("%s and %r", one, one)
        told.log.warning("named %(it)s", {"it": one})
        told.log.warning("extra", extra={"it": one, "token": "unheard-of"})
        try:
            try:
                raise KeyError(one if not isinstance(one, dict) else str(one))
            except KeyError as error:
                raise RuntimeError(f"because of {one}") from error
        except RuntimeError:
            told.log.exception("failed with %s", one)
    logging.getLogger(f"named.{OTHERS[0]}").warning("%s", OTHERS[1])
    structlog.get_logger("stamina").warning("retried", args=(SECRET,), caused_by=repr(ValueError(SECRET)))
    logging.getLogger("py.warnings").warning("a warning about %s", OTHERS[0])
    written = str(told)
    assert written.count("***") > 60
    for part in ("s3cr", "größe", "gr%C3", "gr\\u00f6", "gr\\xc3", *OTHERS, "unheard-of"):
        assert part not in written, part


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Authorization: Token 0123456789abcdef", "Authorization: ***"),
        ("headers {'authorization': 'Basic dXNlcjpwYXNz', 'x': 1}", "headers {'authorization': ***"),
        ("[(b'Authorization', b'Bearer abc')]", "[(b'Authorization', ***"),
        ("sent Token 0123456789abcdef here", "sent Token *** here"),
        ("sent Bearer abc.DEF-1_2 here", "sent Bearer *** here"),
        ("sent Basic dXNlcjpwYXNz here", "sent Basic *** here"),
        (
            "GET https://b.example/i.png?X-Amz-Credential=AKIA%2F1&X-Amz-Date=1&X-Amz-Signature=9f9f&page=2",
            "GET https://b.example/i.png?X-Amz-Credential=***&X-Amz-Date=***&X-Amz-Signature=***&page=2",
        ),
        ("https://b.example/i.png?sv=1&sig=a%2Fb%3D&sp=r", "https://b.example/i.png?sv=1&sig=***&sp=r"),
        ("/i.png?Expires=1&Signature=ab~&Key-Pair-Id=K", "/i.png?Expires=1&Signature=***&Key-Pair-Id=K"),
        ("/i.png?X-Goog-Signature=77&x=1", "/i.png?X-Goog-Signature=***&x=1"),
        ("/i.png?token=abc", "/i.png?token=***"),
        ("connect(password='abc', user='me')", "connect(password='***', user='me')"),
        ("redirected to /login?next=%2Fi.png%3Ftoken%3Dabc", "redirected to /login?next=%2Fi.png%3Ftoken%3D***"),
        ("postgresql://me:pa55@db.example/x", "postgresql://me:***@db.example/x"),
        ("exchanged for eyJhbGciOiJIUzI1NiJ9.eyJ1c2VyIjoxfQ.s-_x, then", "exchanged for ***, then"),
    ],
)
def test_what_looks_like_a_secret_is_hidden_though_nobody_named_it(said, text, left):
    told = said("json")
    told.log.warning("%s", text)
    assert json.loads(str(told))["message"] == left


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:8080 refuses the token (Invalid token.); make a new one",
        "the token is invalid, a token of its own",
        "a legacy token doesn't show it",
        "legacy token authentication has been disabled",
        "GET http://127.0.0.1:8080/api/tasks/?project=1&page=2&include=id,signal=3 answers 500",
        "basic things; a bearer of news",
        "mail to someone@example.com",
    ],
)
def test_plain_sentences_and_addresses_stay_as_they_are(said, text):
    told = said()
    told.log.warning("%s", text)
    assert str(told) == f"WARNING sync.daemon: {text}\n"


def test_numbers_stay_numbers_in_json_unless_they_are_a_secret(said):
    told = said("json", secrets=("4711",))
    told.log.warning(
        "n", extra={"pages": 12, "share": 0.5, "none": None, "yes": True, "pin": 4711, "nan": float("nan")}
    )
    line = json.loads(str(told))
    assert (line["pages"], line["share"], line["none"], line["yes"]) == (12, 0.5, None, True)
    assert (line["pin"], line["nan"]) == ("***", "nan")


def test_json_is_an_object_a_line_with_time_level_logger_and_message(said):
    told = said("json")
    told.log.warning("page %s\nwas left", "p1", extra={"page": "p1"})
    try:
        _ = 1 // 0
    except ZeroDivisionError:
        told.log.exception("failed")
    first, second = map(json.loads, str(told).splitlines())
    assert list(first) == ["time", "level", "logger", "message", "page"]
    assert (first["level"], first["logger"], first["message"]) == ("warning", "sync.daemon", "page p1\nwas left")
    assert first["time"].endswith("Z")
    assert abs(datetime.fromisoformat(first["time"]) - datetime.now(UTC)) < timedelta(minutes=1)
    assert second["level"] == "error"
    assert "Traceback" in second["exception"]
    assert "ZeroDivisionError" in second["exception"]


def test_text_is_level_logger_and_message_with_the_trace_below(said):
    told = said()
    told.log.warning("page %s was left", "p1")
    try:
        _ = 1 // 0
    except ZeroDivisionError:
        told.log.exception("failed")
    written = str(told)
    assert written.startswith("WARNING sync.daemon: page p1 was left\nERROR sync.daemon: failed\nTraceback ")
    assert written.endswith("ZeroDivisionError: integer division or modulo by zero\n")


@pytest.mark.parametrize(("level", "shown"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_the_level_says_what_is_shown(said, level, shown):
    told = said(level=level)
    for name in ("debug", "info", "warning", "error"):
        getattr(told.log, name)("x")
    assert len(str(told).splitlines()) == shown


@pytest.mark.parametrize(
    "library", ["httpx", "httpcore.http11", "werkzeug", "waitress", "sqlalchemy.engine", "alembic.env"]
)
def test_libraries_are_quiet_unless_one_debugs_and_their_warnings_are_ours(said, library):
    for level, told_of in (("warning", 1), ("info", 1), ("debug", 2)):
        told = said(level=level, by=library)
        told.log.info("GET http://x/?token=%s", SECRET)
        told.log.warning("with Authorization: Token %s", OTHERS[0])
        written = str(told)
        assert len(written.splitlines()) == told_of, level
        assert "s3cr" not in written
        assert OTHERS[0] not in written


def test_a_server_whose_threads_are_busy_is_no_news(said):
    told = said(by="waitress.queue")
    told.log.warning("Task queue depth is 1")
    assert str(told) == ""


def test_a_library_that_brings_an_output_of_its_own_writes_to_ours(said):
    library = logging.getLogger("fern")
    library.addHandler(logging.StreamHandler())
    told = said(by="fern")
    told.log.warning("%s", SECRET)
    assert str(told) == "WARNING fern: ***\n"


def test_a_record_that_cannot_be_written_is_told_without_its_arguments(said):
    told = said()
    (ours,) = (handler for handler in logging.getLogger().handlers if isinstance(handler, logs.Handler))
    ours.handle(told.log.makeRecord("sync.daemon", logging.WARNING, __file__, 1, "%d pages", (SECRET,), None))
    assert re.fullmatch(
        r"ERROR sync\.daemon: a record of \S+test_logs\.py:\d+ cannot be written \(TypeError\)\n", str(told)
    )


def test_a_process_that_logs_json_writes_nothing_else_to_stderr():
    program = """
import logging, threading, warnings, structlog
from ls_propagate import logs
logs.configure("json", "info", ["tok-3f9a"])
warnings.warn("about tok-3f9a", stacklevel=1)
logging.getLogger("a").info("of %d", "tok-3f9a")
structlog.get_logger("stamina").warning("retry %s", "tok-3f9a", wait_for=1.5)
logging.getLogger("fern").error("tok-3f9a")
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert [json.loads(line)["logger"] for line in run.stderr.splitlines()] == [
        "py.warnings",
        "a",
        "stamina",
        "fern",
    ]
    assert "tok-3f9a" not in run.stderr
    assert run.stdout == ""


def test_configured_again_it_writes_once_and_hides_what_is_known_by_then(said):
    said(secrets=())
    told = said(secrets=(SECRET,))
    told.log.warning("%s", SECRET)
    assert str(told) == "WARNING sync.daemon: ***\n"


@pytest.mark.parametrize(
    "secret", ["smile 😀 now", "line\nbreak\tand tab", "broken \udc9f", "token with its newline\n"]
)
def test_a_secret_of_odd_characters_is_hidden_however_it_is_shown(said, secret):
    told = said("json", secrets=(secret,))
    for one in (
        secret,
        secret.strip(),
        repr(secret),
        json.dumps(secret),
        repr(repr(secret)),
        [secret],
        ascii(secret),
    ):
        told.log.warning("%s", one)
    for line in str(told).splitlines():
        assert re.fullmatch(r"""[\['"\\]*\*\*\*[]'"\\n]*""", json.loads(line)["message"]), line


def test_a_longer_secret_is_hidden_whole_though_a_shorter_one_is_in_it(said):
    told = said(secrets=("abc", "abcdef", ""))
    told.log.warning("abcdef abc")
    assert str(told) == "WARNING sync.daemon: *** ***\n"


def test_what_is_printed_hides_the_same(said):
    assert logs.hidden("sig=ab") == "sig=***"
    said()
    assert logs.hidden(f"error: {SECRET}") == "error: ***"
