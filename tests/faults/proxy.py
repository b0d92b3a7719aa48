"""A proxy on loopback that does to requests and answers what networks, proxies and busy servers do."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

HOP_BY_HOP = {
    "connection",
    "keep-alive",
    "transfer-encoding",
    "content-length",
    "content-encoding",
    "host",
    "date",
}
GARBAGE = (b"", b"null", b"[]", b"{}", b'"ok"', b"<html>Welcome</html>", b'{"tasks": [{}], "total": 1}')


class Proxy:
    """Forwards to ``target``, and injects faults into a share of the requests. Seeded; threads may use it.

    kinds: the faults, each as likely as the other. counts: how many of each there were. requests: of all kinds.
    """

    def __init__(self, target: str, rate: float, seed: int) -> None:
        self.target = target
        self.rate = rate
        self.counts: Counter[str] = Counter()
        self.requests = 0
        self.url = ""
        self._chance = random.Random(seed)
        self._turn = threading.Lock()
        self._client = httpx.Client(timeout=120, follow_redirects=False)

    @property
    def faults(self) -> int:
        """How many there were."""
        return self.counts.total()

    def fault(self) -> tuple[str | None, random.Random]:
        """The fault of the next request, or None, and the chance that decides its details."""
        with self._turn:
            self.requests += 1
            detail = random.Random(self._chance.random())
            kind = self._chance.choice(list(FAULTS)) if self._chance.random() < self.rate else None
            if kind:
                self.counts[kind] += 1
            return kind, detail

    def forward(self, method: str, path: str, headers: dict[str, str], body: bytes) -> httpx.Response:
        """What the server answers."""
        kept = {name: value for name, value in headers.items() if name.lower() not in HOP_BY_HOP}
        request = self._client.build_request(
            method, self.target + path, headers={**kept, "accept-encoding": "identity"}, content=body
        )
        return self._client.send(request)

    def close(self) -> None:
        self._client.close()


@contextmanager
def between(target: str, rate: float, seed: int) -> Iterator[Proxy]:
    """A proxy that runs before the server at ``target``."""
    proxy = Proxy(target.rstrip("/"), rate, seed)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            kind, detail = proxy.fault()
            exchange = Exchange(
                self, lambda: proxy.forward(self.command, self.path, dict(self.headers), body), detail
            )
            (FAULTS[kind] if kind else forwarded)(exchange)

        do_POST = do_PATCH = do_PUT = do_DELETE = do_GET

        def log_message(self, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = False  # they are waited for

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # who asked has gone away

    with Server(("127.0.0.1", 0), Handler) as server:
        proxy.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            thread.join()
    proxy.close()


class Exchange:
    """One request, and the connection on which it is answered."""

    def __init__(
        self, handler: BaseHTTPRequestHandler, forward: Callable[[], httpx.Response], chance: random.Random
    ) -> None:
        self.forward = forward
        self.chance = chance
        self._handler = handler

    def answer(self, status: int, headers: dict[str, str], body: bytes, length: int | None = None) -> None:
        """Answer; ``length`` is told instead of the body's own."""
        self._handler.send_response(status)
        for name, value in headers.items():
            self._handler.send_header(name, value)
        self._handler.send_header("content-length", str(len(body) if length is None else length))
        self._handler.end_headers()
        self._handler.wfile.write(body)

    def hang_up(self) -> None:
        """Close the connection."""
        self._handler.close_connection = True
        self._handler.wfile.flush()
        self._handler.connection.shutdown(socket.SHUT_RDWR)


def _headers(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name not in HOP_BY_HOP}


def forwarded(exchange: Exchange) -> None:
    """No fault."""
    answer = exchange.forward()
    exchange.answer(answer.status_code, _headers(answer), answer.content)


def _dropped(exchange: Exchange) -> None:
    exchange.hang_up()


def _lost(exchange: Exchange) -> None:
    exchange.forward()
    exchange.hang_up()


def _doubled(exchange: Exchange) -> None:
    one, other = exchange.forward(), exchange.forward()
    answer = exchange.chance.choice([one, other])
    exchange.answer(answer.status_code, _headers(answer), answer.content)


def _delayed(exchange: Exchange) -> None:
    time.sleep(exchange.chance.uniform(0.05, 0.5))
    forwarded(exchange)


def _cut(exchange: Exchange) -> None:
    answer = exchange.forward()
    part = answer.content[: exchange.chance.randrange(max(1, len(answer.content)))]
    exchange.answer(answer.status_code, _headers(answer), part, len(answer.content) + 1)
    exchange.hang_up()


def _chopped(exchange: Exchange) -> None:
    answer = exchange.forward()
    part = answer.content[: exchange.chance.randrange(max(1, len(answer.content)))]
    exchange.answer(answer.status_code, _headers(answer), part)


def _too_many(exchange: Exchange) -> None:
    exchange.answer(429, {"content-type": "application/json", "retry-after": "1"}, b'{"detail": "slow down"}')


def _too_many_for_how_long(exchange: Exchange) -> None:
    exchange.answer(429, {"content-type": "text/plain"}, b"slow down")


def _failed(exchange: Exchange) -> None:
    if exchange.chance.random() < 0.5:
        exchange.forward()
    exchange.answer(500, {"content-type": "application/json"}, json.dumps({"detail": "broken"}).encode())


def _bad_gateway(exchange: Exchange) -> None:
    if exchange.chance.random() < 0.5:
        exchange.forward()
    exchange.answer(502, {"content-type": "text/html"}, b"<html><h1>502 Bad Gateway</h1></html>")


def _garbage(exchange: Exchange) -> None:
    if exchange.chance.random() < 0.5:
        exchange.forward()
    body = exchange.chance.choice(GARBAGE)
    kind = "text/html" if body.startswith(b"<") else "application/json"
    exchange.answer(200, {"content-type": kind}, body)


#: What may happen to a request. After ``lost``, ``cut``, ``chopped`` and perhaps the last three it took effect.
FAULTS: dict[str, Callable[[Exchange], None]] = {
    "dropped": _dropped,
    "lost": _lost,
    "doubled": _doubled,
    "delayed": _delayed,
    "cut": _cut,
    "chopped": _chopped,
    "too many": _too_many,
    "too many, who knows how long": _too_many_for_how_long,
    "failed": _failed,
    "bad gateway": _bad_gateway,
    "garbage": _garbage,
}
