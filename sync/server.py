"""The daemon's own server: Label Studio's webhooks in; health, figures and the progress board out."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import Any, Protocol

from flask import Flask, Response, jsonify, request

from plugin import web
from plugin.board import render
from propagation.errors import StoreError
from sync.board import Board
from sync.monitor import ACTIONS, OTHER, Monitor
from sync.store import Hint

log = logging.getLogger(__name__)

SECRET_HEADER = "X-Propagate-Secret"  # noqa: S105  the name of it
LARGEST = 20 * 2**20  # bytes: Label Studio sends the task and the whole project along
LARGEST_READ = 2**20  # bytes: what is larger holds many masks, and to read it would keep an annotator waiting
MOST_TASKS = 1000  # that a hint names; of more, it names none, which means any
LARGEST_ID = 2**63 - 1
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Inbox(Protocol):
    """Where hints go: the store, as far as this server uses it."""

    def notice(self, hint: Hint) -> None: ...


def create_app(
    store: Inbox,
    monitor: Monitor,
    wake: Callable[[], None],
    secret: str | None,
    password: str | None,
    board: Board | None = None,
) -> Flask:
    """The daemon's WSGI application.

    wake: makes the daemon look at once. secret: what a webhook must bear in the header X-Propagate-Secret;
    without one every webhook is refused. password: what all else but health must bear by basic
    authentication, as any user; without one, that is answered to loopback names only. board: of the progress
    board; without one, there never are figures.
    """
    app = Flask(__name__, static_folder=None)
    web.guard(app, password, {"/webhook", "/health", "/health/live", "/health/ready"}, LARGEST)
    description = json.loads(files(__package__).joinpath("openapi.json").read_text("utf-8"))
    web.describe(app, description)

    @app.post("/webhook")
    def webhook() -> tuple[Response, int]:
        if not secret:
            return web.refusal(
                403,
                "this daemon has no secret for webhooks, so it takes none; set LS_PROPAGATE_WEBHOOK_SECRET",
            )
        if not web.matches(request.headers.get(SECRET_HEADER, "").encode("latin-1", "replace"), secret):
            return web.refusal(
                403, f"a webhook bears the daemon's secret in the header {SECRET_HEADER}; set it there"
            )
        # what cannot be read is a hint all the same: it only makes the daemon look, which reads the truth itself
        hint = read_hint(web.read_json() if (request.content_length or 0) <= LARGEST_READ else None)
        monitor.hinted(hint.action)
        try:
            store.notice(hint)
        except StoreError as error:
            log.warning("a webhook could not be noted: %s", error)
            return web.refusal(503, "the hint could not be stored; the daemon looks all the same")
        finally:
            wake()
        return jsonify(status="noted"), 200

    @app.get("/health")
    def health() -> Response:
        ready, reason = monitor.ready()
        return jsonify(live=True, ready=ready, reason=reason)

    @app.get("/health/live")
    def live() -> Response:
        return jsonify(live=True)

    @app.get("/health/ready")
    def is_ready() -> tuple[Response, int]:
        ready, reason = monitor.ready()
        return jsonify(ready=ready, reason=reason), 200 if ready else 503

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(monitor.metrics(), content_type=METRICS_TYPE)

    @app.get("/board")
    def progress_board() -> tuple[Response, int]:
        edition = board.edition if board else None
        page = render.waiting(monitor.ready()[1]) if edition is None else edition.page
        answer = Response(page, content_type="text/html; charset=utf-8")
        answer.headers["Content-Security-Policy"] = render.POLICY
        return answer, 503 if edition is None else 200

    @app.get("/board.json")
    def figures() -> tuple[Response, int] | Response:
        edition = board.edition if board else None
        if edition is None:
            return web.refusal(503, f"there are no figures here yet: {monitor.ready()[1]}")
        answer = Response(edition.body, content_type="application/json")
        answer.set_etag(edition.version)
        answer.make_conditional(request)
        return answer

    @app.get("/board.css")
    def style() -> Response:
        return Response(render.asset("board.css"), content_type="text/css; charset=utf-8")

    @app.get("/board.js")
    def script() -> Response:
        return Response(render.asset("board.js"), content_type="text/javascript; charset=utf-8")

    @app.get("/")
    def index() -> Response:
        if request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html":
            return Response(status=302, headers={"Location": "board"})
        return jsonify({path: next(iter(ways.values()))["summary"] for path, ways in description["paths"].items()})

    return app


def serve(app: Flask, host: str, port: int) -> web.Served:
    """Serve the daemon's application until it is closed; port 0 is any that is free.

    Raises SettingsError naming the setting where the host is none or the port is taken.
    """
    return web.serve(app, host, port, "daemon")


def read_hint(body: Any) -> Hint:
    """What a webhook's body says, whatever it is; of an action that Label Studio does not have, "other"."""
    if not isinstance(body, dict):
        return Hint(OTHER, None)
    action, project = body.get("action"), body.get("project")
    tasks = tuple(dict.fromkeys(_tasks(body)))
    return Hint(
        action=action if isinstance(action, str) and action in ACTIONS else OTHER,
        project=_id(project),
        tasks=tasks if len(tasks) <= MOST_TASKS else (),
    )


def _tasks(body: dict[str, Any]) -> Iterator[int]:
    """The ids of the tasks that a webhook is about, as it names one or several."""
    for name in ("task", "tasks"):
        named = body.get(name)
        for task in named if isinstance(named, list) else [named]:
            number = _id(task)
            if number is not None:
                yield number


def _id(thing: Any) -> int | None:
    """The id of a thing that a webhook tells of."""
    number = thing.get("id") if isinstance(thing, dict) else None
    return number if type(number) is int and 0 < number <= LARGEST_ID else None
