"""What the product's two servers share: who is let in, what every answer bears, and how they are run."""

from __future__ import annotations

import base64
import errno
import gc
import hmac
import ipaddress
import socket
import threading
from collections.abc import Container, Mapping
from typing import Any
from urllib.parse import urlsplit

import waitress
from flask import Flask, Response, abort, jsonify, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed, MisdirectedRequest, Unauthorized

from propagation.errors import SettingsError

REALM = 'Basic realm="ls-propagate"'
#: Borne by every answer that has no policy of its own: none is a page, none belongs into another site's page,
#: none is kept on the way.
HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
SAID: Mapping[int, str] = {
    400: "the request cannot be read; correct it",
    404: "there is nothing at this address; see /openapi.json for what there is",
    405: "this address does not take this method; see /openapi.json for those it takes",
    413: "the body is larger than this server takes; send less at once",
    500: "this failed here; the server's log says why",
}
THREADS = 4


def guard(app: Flask, password: str | None, unguarded: Container[str], largest: int) -> None:
    """Let in whom the server is for, and answer all others, and every error, in JSON.

    password: what a request must bear by basic authentication, as any user. Without one, only requests that
    call this machine by a loopback name are answered: a web page whose own name was turned to this machine
    calls it by that name. unguarded: paths that neither is asked of. largest: bytes of a request's body.
    """
    app.config["MAX_CONTENT_LENGTH"] = largest
    app.url_map.merge_slashes = False  # an address is known or not: nothing is redirected

    @app.before_request
    def let_in() -> None:
        if request.path not in unguarded:
            admit(password)
        if (request.content_length or 0) > largest:
            abort(413)

    @app.errorhandler(HTTPException)
    def say(error: HTTPException) -> Response:
        status = error.code or 500
        answer = jsonify(error=SAID.get(status, error.description))
        answer.status_code = status
        if isinstance(error, MethodNotAllowed) and error.valid_methods:
            answer.headers["Allow"] = ", ".join(error.valid_methods)
        if status == Unauthorized.code:
            answer.headers["WWW-Authenticate"] = REALM
        return answer

    @app.after_request
    def add_headers(answer: Response) -> Response:
        for name, value in HEADERS.items():
            answer.headers.setdefault(name, value)
        return answer


def admit(password: str | None) -> None:
    """Refuse the request that is being answered unless it bears the password; see ``guard``."""
    if password:
        if not matches(_password(request.headers.get("Authorization", "")), password):
            raise Unauthorized(
                "give this server's password by basic authentication; in Label Studio, in the model's settings"
            )
    elif not is_loopback(_host_name(request.host)):
        raise MisdirectedRequest(
            "without a password this server answers to loopback names only; "
            "call it as 127.0.0.1 or localhost, or set its password"
        )


def describe(app: Flask, description: Mapping[str, Any]) -> None:
    """Serve a server's OpenAPI description at /openapi.json."""

    @app.get("/openapi.json")
    def openapi() -> Response:
        return jsonify(description)


def refusal(status: int, why: str) -> tuple[Response, int]:
    """An answer that says in words why a request is not answered otherwise."""
    return jsonify(error=why), status


def matches(given: bytes, secret: str) -> bool:
    """Whether a secret was given, in UTF-8 or Latin-1, compared in a time that does not tell how much fits."""
    # Label Studio sends Latin-1, browsers and curl UTF-8
    known = {secret.encode("utf-8", "replace"), secret.encode("latin-1", "xmlcharrefreplace")}
    return any(hmac.compare_digest(given, one) for one in known)


def read_json() -> Any:
    """The JSON of the request's body; None where it has none, or one that cannot be read."""
    try:
        return request.get_json(silent=True)
    except RecursionError:  # lists in lists in lists
        return None


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own, whoever asks."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(host: str, needed: Mapping[str, str | None]) -> None:
    """Refuse to serve others without the secrets that keep them out.

    needed: environment variable to the secret that it holds. Raises SettingsError where ``host`` is not
    loopback and one of them is missing or empty.
    """
    missing = [name for name, secret in needed.items() if not secret]
    if missing and not is_loopback(host):
        raise SettingsError(
            f"the host {host} can be reached by others; set {' and '.join(missing)}, or serve on 127.0.0.1"
        )


class Served:
    """A server that answers in threads of its own until it is closed."""

    def __init__(self, app: Flask, listening: socket.socket) -> None:
        # what was loaded until now stays: without this, every few large answers the collector looks all of it over
        gc.freeze()
        self.port: int = listening.getsockname()[1]
        self._sockets: dict[Any, Any] = {}
        self._server = waitress.create_server(
            app,
            map=self._sockets,
            sockets=[listening],
            threads=THREADS,
            ident=None,
            # a little more than the app takes, so that it is the app that says so
            max_request_body_size=app.config["MAX_CONTENT_LENGTH"] + 2**20,
            asyncore_use_poll=True,  # select takes no file number above 1023
            clear_untrusted_proxy_headers=True,
        )
        self._thread = threading.Thread(target=self._server.run, name="web", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when the server has been closed."""
        self._thread.join()

    def close(self) -> None:
        """Stop taking requests, and wait for those that are being answered."""
        self._server.trigger.pull_trigger(self._stop)
        self._thread.join()

    def _stop(self) -> None:
        self._server.task_dispatcher.shutdown()
        for one in list(self._sockets.values()):
            one.close()


def serve(app: Flask, host: str, port: int, name: str) -> Served:
    """Serve an app on a host and port; port 0 is any that is free.

    name: what the settings of host and port begin with. Raises SettingsError where the host is not this
    machine's, or the port is taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise SettingsError(f"{name}_host: there is no host {host!r} ({error}); correct it") from error
    try:
        listening = socket.create_server(address[:2], family=family)
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise SettingsError(f"{name}_host: {host} is no address of this machine; correct it") from error
        raise SettingsError(
            f"{name}_port: {host} port {port} cannot be served ({error.strerror}); "
            f"stop what is there, or set {name}_port to another (0 for any that is free)"
        ) from error
    return Served(app, listening)


def _password(authorization: str) -> bytes:
    """The password in a header of basic authentication; empty where it is none."""
    scheme, _, encoded = authorization.partition(" ")
    try:
        return base64.b64decode(encoded).partition(b":")[2] if scheme.lower() == "basic" else b""
    except ValueError:
        return b""


def _host_name(host: str) -> str:
    """The name or address in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
