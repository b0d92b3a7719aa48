"""Requests to Label Studio: sent, repeated where that is safe, and understood.

An answer that cannot be understood is an error of the server, whatever it is: as long as nothing there has shown
itself to be Label Studio, that it is another server; after that, that it stumbles, as with a proxy's own pages.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, NoReturn, TypeVar
from urllib.parse import urlsplit

import httpx
import stamina
from label_studio_sdk.core.api_error import ApiError
from label_studio_sdk.core.client_wrapper import SyncClientWrapper
from stamina.instrumentation import RetryDetails, set_on_retry_hooks

from propagation.errors import Missing, NotLabelStudio, Refused, ServerError, Unreachable

log = logging.getLogger(__name__)

T = TypeVar("T")
Observe = Callable[[str, float, bool], None]
#: When a request may be sent again: never, once the server is done with it, or always.
Repeat = Literal["never", "done", "always"]

ATTEMPTS = 4
ATTEMPTS_SECONDS = 45.0  # after which no further attempt is begun
LONGEST_WAIT = 60.0  # seconds that the server may ask us to wait
STUMBLES = (408, 425, 429)
MAYBE_RUNNING = (408, 502, 504)  # answers of a proxy that waited in vain, or lost what it waited for
MISREAD = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
REFRESH = "api/token/refresh/"
OWN_PAGE = "<title>404 | Label Studio</title>"  # how imports say that there is no such project
NO_CHOICE = "{'project': ['Select a valid choice"  # how the Data Manager's views do
#: The server that ``label-studio start`` runs. It sends its headers one by one; on a connection that has been used
#: before, they wait for each other's receipt: 40 ms an answer.
STUTTERS = "WSGIServer"
LEADS_TO = "leads_to"  # under which an answer's Location is found, among its extensions


class Passing(Exception):
    """An attempt failed as the next one may not.

    done: whether the server has finished with the request; after: seconds that it asks us to wait.
    """

    def __init__(self, error: ServerError, done: bool = False, after: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.done = done
        self.after = after


class Forbidden(Refused):
    """The server knows the token, and does not do this; said: why not."""

    def __init__(self, message: str, said: str) -> None:
        super().__init__(message)
        self.said = said


class TooLarge(ServerError):
    """The server, or a proxy before it, takes no request of this size; nothing of it was taken."""


class Wire:
    """Sends requests to one server, as one account.

    url: address, ending in a slash; token: a personal access token or a legacy one. observe: is told of each
    request: its name, its seconds, and whether it went well. Raises Refused for a token that has expired or that
    no server can have made.
    """

    def __init__(
        self, url: str, token: str, timeout: float, transport: httpx.BaseTransport | None, observe: Observe
    ) -> None:
        self.url = url.rstrip("/")
        self._base = self.url + "/"
        self._observe = observe
        self._known = False
        self._token = token
        if not _could_be_token(token):
            # the HTTP library would refuse it too, in a message that shows it
            raise self._refused("it is empty or has a character that no token has, a line break perhaps")
        # not led on: to follow would make a GET of a POST, and send others the token
        self.http = httpx.Client(
            timeout=timeout,
            follow_redirects=False,
            transport=transport,
            event_hooks={"response": [self._notice, _hold]},
        )
        try:
            # the part of the SDK that exchanges a personal access token for the one that is sent; its own requests
            # repeat whatever they like, and take longer to write a large body than the server takes to store it;
            # and the whole client loads pandas and much else
            self._wrapper = SyncClientWrapper(base_url=self._base, api_key=token, httpx_client=self.http)
        except (ApiError, TypeError, ValueError, ArithmeticError) as error:
            self.http.close()
            said = (
                error.body.get("detail") if isinstance(error, ApiError) and isinstance(error.body, dict) else None
            )
            raise self._refused(said or "it is none that Label Studio makes") from error

    def close(self) -> None:
        """Close the connections to the server."""
        self.http.close()

    def _notice(self, answer: httpx.Response) -> None:
        if answer.headers.get("server", "").startswith(STUTTERS):
            self.http.headers["Connection"] = "close"

    def get(self, name: str, path: str, read: Callable[[Any], T], **params: Any) -> T:
        """``call`` by GET."""
        return self.call(name, "GET", path, read, params=params)

    def call(
        self,
        name: str,
        method: str,
        path: str,
        read: Callable[[Any], T],
        repeat: Repeat = "always",
        body: Any = None,
        **request: Any,
    ) -> T:
        """Send a request and read its answer's JSON; None where the answer is empty.

        read: raises what Python raises for JSON of another form than expected. Raises ServerError's kinds,
        whatever the answer is.
        """
        if body is not None:
            text = json.dumps(body, separators=(",", ":"), allow_nan=False)
            request |= {"content": text.encode(), "headers": {"Content-Type": "application/json"}}

        def attempt() -> T:
            with self.observed(name):
                return self._understood(method, path, self._send(method, path, **request), read)

        return self.repeated(attempt, repeat)

    def answer(self, method: str, path: str, **request: Any) -> httpx.Response:
        """What the server answers to one request, sent once: refusals too, which ``call`` raises."""
        try:
            with self.observed("answer"):
                return self._send(method, path, **request)
        except Passing as passing:
            raise passing.error from passing.__cause__

    def repeated(self, attempt: Callable[[], T], repeat: Repeat = "always") -> T:
        """Make an attempt, and again where it raises Passing and may be repeated; raises its error in the end."""

        def again(error: Exception) -> bool | float:
            if not isinstance(error, Passing) or repeat == "never" or (repeat == "done" and not error.done):
                return False
            return min(error.after, LONGEST_WAIT) if error.after else True

        try:
            for trial in stamina.retry_context(
                again, attempts=ATTEMPTS, timeout=ATTEMPTS_SECONDS, wait_initial=0.5, wait_max=8
            ):
                with trial:
                    return attempt()
        except Passing as passing:
            raise passing.error from passing.__cause__
        raise AssertionError

    @contextmanager
    def observed(self, name: str) -> Iterator[None]:
        """Tell of what happens inside: its seconds, and whether it went well."""
        began, ok = time.monotonic(), False
        try:
            yield
            ok = True
        finally:
            self._observe(name, time.monotonic() - began, ok)

    def headers(self) -> dict[str, str]:
        """The headers of the caller's account; a personal access token is exchanged for a fresh one here."""
        try:
            own = self._wrapper.get_headers()
            if not _could_be_token(own["Authorization"].partition(" ")[2]):
                raise ValueError("it cannot be sent")
            return own
        except ApiError as error:
            self._not_logged_in(error)
        except MISREAD as error:  # the exchange was not answered in JSON
            raise self._garbled("POST", REFRESH, "what is no answer to it") from error

    def unreachable(self, error: Exception) -> Unreachable:
        """What is said of a server that does not answer."""
        return Unreachable(
            f"no answer from Label Studio at {self.url} ({why(error)}); start it, or correct LABEL_STUDIO_URL"
        )

    def refuse(self, answer: httpx.Response) -> None:
        """Raises Refused where an answer is the server's own, and says that the token is not accepted."""
        if answer.status_code == httpx.codes.UNAUTHORIZED and _detail(answer) is not None:
            raise self._refused(_said(answer))

    def _send(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, **request: Any
    ) -> httpx.Response:
        try:
            own = self.headers()
            return self.http.request(method, self._base + path, headers={**own, **(headers or {})}, **request)
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise self.unreachable(error) from error
        except httpx.HTTPError as error:
            never_there = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
            raise Passing(self.unreachable(error), done=never_there) from error

    def _understood(self, method: str, path: str, answer: httpx.Response, read: Callable[[Any], T]) -> T:
        if not answer.is_success:
            self._fail(method, path, answer)
        try:
            value = read(answer.json() if answer.content else None)
        except MISREAD as error:
            raise self._garbled(method, path, "what is no answer to it") from error
        self._known = True
        return value

    def _garbled(self, method: str, path: str, what: str) -> Exception:
        if not self._known:
            return NotLabelStudio(
                f"what answers at {self.url} is not Label Studio; correct LABEL_STUDIO_URL (with its sub-path, "
                "if any)"
            )
        return Passing(
            ServerError(
                f"{method} {path}: {self.url} answers {what}; if this goes on, look at the proxy before it and in "
                "the server's log"
            )
        )

    def _not_logged_in(self, error: ApiError) -> NoReturn:
        status, body = error.status_code or 0, error.body
        if status in (400, 401, 403):
            said = body.get("detail") if isinstance(body, dict) else body
            raise self._refused(_shortened(str(said), self._token)) from error
        if status in STUMBLES or status >= httpx.codes.INTERNAL_SERVER_ERROR:
            raise Passing(self._failed("POST", REFRESH, status, ""), done=True) from error
        raise self._garbled("POST", REFRESH, f"{status} to it") from error

    def _fail(self, method: str, path: str, answer: httpx.Response) -> NoReturn:
        """Raise what an answer stands for that is no success."""
        status, said = answer.status_code, _said(answer)
        # what is not the server's own may be a proxy's, for a fault that passes
        foreign = self._known and _detail(answer) is None and OWN_PAGE not in answer.text
        if answer.is_redirect and not self._known:
            where = without_secrets(answer.extensions.get(LEADS_TO, ""))
            raise NotLabelStudio(f"{self.url} leads to {where}; correct LABEL_STUDIO_URL to where Label Studio is")
        if answer.is_redirect or (foreign and status in (401, 403, 404)):
            raise self._garbled(method, path, f"{status}, as Label Studio does not,")
        if status == httpx.codes.UNAUTHORIZED:
            raise self._refused(said)
        if status == httpx.codes.FORBIDDEN:
            raise Forbidden(str(self._refused(said)), said)
        if status == httpx.codes.NOT_FOUND or NO_CHOICE in said:
            if not self._probe():
                raise self._garbled(method, path, f"{status}, as Label Studio does not,")
            raise Missing(f"{method} {path}: {self.url} has no such thing ({said}); it may have been deleted")
        if status == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
            raise TooLarge(
                f"{method} {path}: {self.url} takes no request of this size; raise what the proxy before it takes "
                "(nginx: client_max_body_size)"
            )
        error = self._failed(method, path, status, said)
        if status in STUMBLES or answer.is_server_error:
            raise Passing(error, done=status not in MAYBE_RUNNING, after=asked_to_wait(answer))
        raise error

    def _failed(self, method: str, path: str, status: int, said: str) -> ServerError:
        because = f" ({said})" if said else ""
        return ServerError(
            f"{method} {path}: {self.url} answers {status}{because}; "
            "look in the server's log, then run the command again"
        )

    def _probe(self) -> bool:
        """Whether it is Label Studio that answers."""
        try:
            is_label_studio(self.http.get(self._base + "api/version").json())
        except (httpx.HTTPError, *MISREAD):
            return False
        return True

    def _refused(self, said: str) -> Refused:
        if "legacy token" in said:
            return Refused(
                f"{self.url} has legacy tokens switched off; make a personal access token on its Account & "
                "Settings page and set LABEL_STUDIO_API_KEY to it"
            )
        return Refused(
            f"{self.url} refuses the token ({said}); make a new one on its Account & Settings page and set "
            "LABEL_STUDIO_API_KEY to it"
        )


def _hold(answer: httpx.Response) -> None:
    """Keep the HTTP library from reading where an answer leads: it fails where that is no address."""
    if "location" in answer.headers:
        answer.extensions[LEADS_TO] = answer.headers.pop("location")


def is_label_studio(version: Any) -> None:
    """Raises as reading JSON does, unless this is what Label Studio answers about its version."""
    if "version" not in version["label-studio-os-package"]:
        raise ValueError("it has no version")


def why(error: Exception) -> str:
    """What an error of the HTTP library says."""
    return str(error) or type(error).__name__


def asked_to_wait(answer: httpx.Response) -> float | None:
    """The seconds that a server asks to wait by its Retry-After, None where it doesn't."""
    told = answer.headers.get("retry-after", "").strip()
    if told.isdecimal():
        return float(told)
    try:
        return max(0.0, (parsedate_to_datetime(told) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def without_secrets(address: str) -> str:
    """An address without its query and password."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return "what is no address"
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _detail(answer: httpx.Response) -> str | None:
    """What Label Studio itself says in an error answer; None where the answer is not its own."""
    try:
        body = answer.json()
    except ValueError:
        return None
    return str(body["detail"]) if isinstance(body, dict) and "detail" in body else None


def _said(answer: httpx.Response) -> str:
    """What an error answer says, without its markup, and without the token should it be repeated there."""
    return _shortened(_told(answer), *answer.request.headers.get("authorization", "").split()[1:])


def _shortened(said: str, *secrets: str) -> str:
    """What a message may show of a text; secrets first, of which the rest would show a part."""
    for secret in secrets:
        said = said.replace(secret, "…")
    return said[:300]


def _could_be_token(text: str) -> bool:
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


def _told(answer: httpx.Response) -> str:
    try:
        body = answer.json()
    except ValueError:
        return "no reason given" if "html" in answer.headers.get("content-type", "") else answer.text
    if not isinstance(body, dict):
        return str(body)
    return " ".join(str(body[name]) for name in ("detail", "validation_errors") if body.get(name))


def _tell(details: RetryDetails) -> None:
    log.info("%s; trying again in %.1f s", details.caused_by, details.wait_for)


set_on_retry_hooks([_tell])
