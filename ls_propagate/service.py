"""``sync``: the daemon under its lock, with its server and its webhooks, for as long as it is wanted."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

from ls_propagate.pipeline import connection_of, open_daemon, open_overview, place_of
from ls_propagate.settings import Settings
from plugin import web
from plugin.label_studio.gateway import Gateway
from propagation.campaign import Campaign
from propagation.errors import ServerError, SettingsError, StoreError
from propagation.events import Commanded, CommandRefused
from sync.board import Board
from sync.daemon import Step
from sync.monitor import Monitor
from sync.server import SECRET_HEADER, create_app, serve
from sync.store import Hint, Store

log = logging.getLogger(__name__)

LOCK_SECONDS = 1.0  # between two tries to get the lock
OBEYED_SECONDS = 60.0  # that are waited for a running daemon to obey
CLOCKS_APART = timedelta(minutes=5)  # of the machines that share a store, at most
RETRY_SECONDS = 5.0  # after the store has failed


@contextmanager
def serving(
    settings: Settings, store: Store, monitor: Monitor, wake: Callable[[], None], board: Board | None = None
) -> Iterator[int]:
    """Serve webhooks, health, figures and the progress board; yields the port.

    Raises SettingsError where others could reach the server and nothing keeps them out, and where webhooks are
    wanted without a secret.
    """
    secret, password = (
        given.get_secret_value() if given else None
        for given in (settings.webhook_secret, settings.daemon_password)
    )
    web.check_exposure(
        settings.daemon_host,
        {"LS_PROPAGATE_DAEMON_PASSWORD": password, "LS_PROPAGATE_WEBHOOK_SECRET": secret},
    )
    if settings.webhook_url and not secret:
        raise SettingsError("webhook_url is set, but no secret for webhooks; set LS_PROPAGATE_WEBHOOK_SECRET")
    app = create_app(store, monitor, wake, secret, password, board)
    served = serve(app, settings.daemon_host, settings.daemon_port)
    try:
        yield served.port
    finally:
        served.close()


def run(
    settings: Settings,
    store: Store,
    gateway: Gateway,
    monitor: Monitor,
    stop: threading.Event,
    wake: threading.Event,
    told: Callable[[Step], None],
    until_finished: bool = False,
    board: Board | None = None,
) -> Campaign | None:
    """Wait for the store's lock, then run the daemon until it is stopped; the campaign, or None without a turn.

    A store that fails after the campaign has begun is waited for: its lock is taken anew, and the log read again.
    """
    board = board or Board(settings.terms)
    begun = False

    def passed(step: Step) -> None:
        nonlocal begun
        begun = True
        monitor.passed(step, step.seconds)
        if step.questions:
            _meet(store, gateway, daemon.campaign)
        show()
        overview.look(daemon.history, step.finished)
        told(step)

    def show() -> None:
        board.look(daemon.history, lambda: place_of(store, settings))

    def alive() -> None:
        monitor.alive()
        show()
        overview.look(daemon.history, False)

    while _turn(store, monitor, stop):
        try:
            daemon = open_daemon(gateway, store, settings)
            overview = open_overview(gateway, store, settings)
            _hook(settings, store, gateway)
            monitor.began()
            show()
            daemon.alive = alive
            daemon.run(stop, settings.poll_seconds, passed, until_finished, wake, monitor.failed)
            return daemon.campaign
        except StoreError as error:
            if not begun:
                raise
            log.warning("%s; trying again in %.0f s", error, RETRY_SECONDS)
            monitor.failed(error)
        finally:
            store.lock().release()
            board.close()
        stop.wait(RETRY_SECONDS)
    return None


def command(
    settings: Settings, store: Store, gateway: Gateway, said: Sequence[Commanded], patience: float = OBEYED_SECONDS
) -> list[Commanded | CommandRefused]:
    """Have commands obeyed, by the daemon that runs on the store, or here; what is known to have become of them.

    They are in the inbox first, so that the next daemon finds them where this is cut off.
    """
    begin = datetime.now(UTC) - CLOCKS_APART
    sources = {event.source for event in said}
    store.notice(Hint("COMMANDS", None, commands=tuple(asdict(event) for event in said)))
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if store.lock().acquire():
            try:
                open_daemon(gateway, store, settings).obey()
            finally:
                store.lock().release()
            break
        if len(_judged(store, begin, sources)) == len(sources):
            break
        time.sleep(LOCK_SECONDS)
    return _judged(store, begin, sources)


def _judged(store: Store, begin: datetime, sources: set[str]) -> list[Commanded | CommandRefused]:
    events = store.since(begin)
    return [e for e in events if isinstance(e, Commanded | CommandRefused) and e.source in sources]


def _turn(store: Store, monitor: Monitor, stop: threading.Event) -> bool:
    """Wait until the store's lock is ours; False when told to stop before."""
    told = False
    while not stop.is_set():
        try:
            if store.lock().acquire():
                return True
        except StoreError as error:
            if not told:
                log.warning("%s; waiting for it", error)
        else:
            if not told:
                log.warning("another daemon runs on this store; waiting for its turn to end")
        told = True
        monitor.waiting()
        stop.wait(LOCK_SECONDS)
    return False


def _meet(store: Store, gateway: Gateway, campaign: Campaign) -> None:
    """Remember what annotators are called, where one has answered whose name is not known."""
    known = store.fact("people") or {}
    by = {str(page.answer.by) for page in campaign.pages.values() if page.answer}
    if by <= known.keys():
        return
    try:
        names = {str(number): name for number, name in gateway.people().items()}
    except ServerError as error:
        log.warning("%s; the progress board shows annotators by their numbers", error)
        return
    store.remember(people={number: names.get(number, f"account {number}") for number in by})


def _hook(settings: Settings, store: Store, gateway: Gateway) -> None:
    """Let Label Studio send its webhooks, where the settings say how it reaches us."""
    if settings.webhook_url and settings.webhook_secret:
        connection = connection_of(store)
        headers = {SECRET_HEADER: settings.webhook_secret.get_secret_value()}
        for project in filter(None, (connection.project, connection.pages, connection.board)):
            gateway.ensure_webhook(project, f"{settings.webhook_url}/webhook", headers)
