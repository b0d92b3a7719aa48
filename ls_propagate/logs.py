"""Logs: lines for people or JSON for machines, on stderr, with every secret taken out of them."""

from __future__ import annotations

import html
import logging
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import structlog
from structlog.stdlib import ProcessorFormatter
from structlog.typing import EventDict, WrappedLogger

HIDDEN = "***"
Format = Literal["text", "json"]

#: Libraries that tell every request or statement; only at the level "debug" do they tell less than warnings.
QUIET = (
    "httpx",
    "httpcore",
    "werkzeug",
    "waitress",
    "sqlalchemy",
    "alembic",
    "urllib3",
    "filelock",
    "PIL",
    "fern",
)
BUSY = "waitress.queue"  # warns whenever a request has to wait for a thread

_NAMES = r"[\w-]*(?:token|signature|password|passwd|secret|credential|api[_-]?key|accesskeyid|(?<![a-z])sig)"
_PATTERNS = (
    # a header's value, to the end of the line
    (re.compile(r"(?i)(authorization\W{0,3}\s*[:=,]\s*)\S[^\n]*"), rf"\1{HIDDEN}"),
    # a scheme and its token; not "token is", which is a word of a sentence
    (
        re.compile(
            r"""\b((?i:token|bearer)|Basic)(\s+)(?![a-z]{1,15}(?:'[a-z])?[.,;:!?)'"]*(?:\s|$))[\w.~+/=:-]+"""
        ),
        rf"\1\2{HIDDEN}",
    ),
    # a parameter of an address, or an argument: its name tells
    (
        re.compile(rf"""(?i)(?<![\w-])((?:x-(?:amz|goog)-[\w-]+|{_NAMES})(?:=|%3D)['"]?)[^&\s'"<>]+"""),
        rf"\1{HIDDEN}",
    ),
    # a password before the host of an address
    (re.compile(r"""(://[^/\s:@'"]*:)[^\s@/'"]+@"""), rf"\1{HIDDEN}@"),
    # a JSON web token, wherever it stands
    (re.compile(r"\beyJ[\w-]{5,}\.[\w-]+(?:\.[\w-]*)?"), HIDDEN),
)
_TELLING = re.compile(rf"(?i)^(?:authorization|{_NAMES})$")


def hider(secrets: Iterable[str]) -> Callable[[str], str]:
    """What takes secrets out of a text: those given, however they are escaped, and all that looks like one."""
    wanted = {one for secret in secrets for one in (secret, secret.strip()) if one}
    spelled = ("".join(map(_spelled, one)) for one in sorted(wanted, key=lambda one: (-len(one), one)))
    known = re.compile("|".join(spelled) or "(?!)")

    def hide(text: str) -> str:
        text = known.sub(HIDDEN, text)
        for pattern, instead in _PATTERNS:
            text = pattern.sub(instead, text)
        return text

    return hide


def _spelled(character: str) -> str:
    """A pattern of one character as it may stand in an address, HTML, JSON, or in what Python shows of it."""
    if character.isascii() and character.isalnum():
        return character
    code = ord(character)
    units = character.encode("utf-16-be", "surrogatepass")
    utf8 = character.encode("utf-8", "surrogatepass")
    ways = [
        re.escape(character),
        "(?i:" + "".join(f"%(?:25)*{byte:02x}" for byte in utf8) + ")",
        "".join(rf"\\{{1,8}}x{byte:02x}" for byte in utf8),
        "".join(rf"\\{{1,8}}u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2)),
        rf"\\{{1,8}}(?:x{code:02x}|U{code:08x})",
        rf"&#(?:0*{code}|(?i:x0*{code:x}));",
        re.escape(html.escape(character)),
        {" ": r"\+", "\n": r"\\{1,8}n", "\r": r"\\{1,8}r", "\t": r"\\{1,8}t"}.get(character, "(?!)"),
    ]
    return rf"\\{{0,8}}(?:{'|'.join(ways)})"


class Handler(logging.Handler):
    """Writes to whatever stderr is by then."""

    def __init__(self, hide: Callable[[str], str], log_format: Format) -> None:
        super().__init__()
        self.hide = hide
        self.setFormatter(
            ProcessorFormatter(
                foreign_pre_chain=[structlog.stdlib.ExtraAdder()],
                processors=[
                    structlog.stdlib.add_log_level,
                    structlog.stdlib.add_logger_name,
                    structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
                    structlog.processors.format_exc_info,
                    ProcessorFormatter.remove_processors_meta,
                    structlog.processors.EventRenamer("message"),
                    self._take_out,
                    structlog.processors.JSONRenderer() if log_format == "json" else _as_text,
                ],
            )
        )

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception as error:
            # what logging itself would print here shows the arguments
            broken = f"a record of {record.pathname}:{record.lineno} cannot be written ({type(error).__name__})"
            line = self.format(logging.makeLogRecord({"name": record.name, "levelname": "ERROR", "msg": broken}))
        try:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
        except (OSError, ValueError):  # nobody reads it any more
            return

    def _take_out(self, _: WrappedLogger, __: str, event: EventDict) -> EventDict:
        first = {name: event[name] for name in ("time", "level", "logger", "message") if name in event}
        # what Ray adds begins with an underscore
        told = {name: value for name, value in {**first, **event}.items() if not str(name).startswith("_")}
        return {name: self._plain(value, str(name)) for name, value in told.items()}

    def _plain(self, value: Any, name: str = "") -> Any:
        """A value that JSON can hold, without secrets."""
        if value is None or isinstance(value, bool):
            return value
        if _TELLING.match(name):
            return HIDDEN
        if isinstance(value, int | float) and math.isfinite(value):
            return value if self.hide(str(value)) == str(value) else HIDDEN
        if isinstance(value, Mapping):
            return {self.hide(str(key)): self._plain(part, str(key)) for key, part in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self._plain(part) for part in value]
        return self.hide(str(value))


def _as_text(_: WrappedLogger, __: str, event: EventDict) -> str:
    """Level, logger, message, what else the record bears; traces below."""
    below = [event.pop(name) for name in ("exception", "stack_info", "stack") if event.get(name)]
    head = [event.pop(name, "") for name in ("level", "logger", "message", "time")]
    more = "".join(f" {name}={str(value)[:200]}" for name, value in event.items())
    return "\n".join([f"{head[0].upper()} {head[1]}: {head[2]}{more}", *below])


def configure(log_format: Format = "text", log_level: str = "warning", secrets: Iterable[str] = ()) -> None:
    """Send all logs of the process, libraries' included, to stderr. Called again, it changes how.

    log_format: "text", or "json": an object a line with time (ISO 8601, UTC), level, logger, message, and
    exception where there is one. log_level: "debug", "info", "warning" or "error".
    """
    level = logging.getLevelNamesMapping()[log_level.upper()]
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, Handler)]:
        root.removeHandler(handler)
    root.addHandler(Handler(hider(secrets), log_format))
    root.setLevel(level)
    for name in QUIET:
        library = logging.getLogger(name)
        library.handlers.clear()  # the SDK's has one of its own, past ours
        library.setLevel(level if level <= logging.DEBUG else max(level, logging.WARNING))
    logging.getLogger(BUSY).setLevel(level if level <= logging.DEBUG else logging.ERROR)
    logging.captureWarnings(True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


def hidden(text: str) -> str:
    """A text for the terminal, without the secrets that the logs hide."""
    handlers = (handler for handler in logging.getLogger().handlers if isinstance(handler, Handler))
    return next((handler.hide for handler in handlers), hider(()))(text)
