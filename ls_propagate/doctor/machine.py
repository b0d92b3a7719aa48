"""Checks of this machine: settings, folder, store, artefacts, mirror, daemon."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa

from ls_propagate import pipeline
from ls_propagate.doctor.case import MEGABYTE, Case, Found, bad, doubtful, good
from ls_propagate.models import check_torch
from ls_propagate.settings import FILE, UNetSettings, load_settings
from plugin.web import check_exposure
from propagation.artefacts import MANIFEST, read_artefact
from propagation.errors import ArtefactError, PropagateError
from propagation.events import CampaignStarted, Event, RoundStarted, from_record

LITTLE, TOO_LITTLE = 1024 * MEGABYTE, 100 * MEGABYTE


def settings(case: Case) -> Found:
    """They load, and fit together."""
    case.settings = load_settings(case.config)
    settings = case.settings
    file = case.config or FILE
    where = f"{file}" if file.is_file() else f"the environment alone; there is no {file}"
    secret, password = (
        given.get_secret_value() if given else None
        for given in (settings.webhook_secret, settings.daemon_password)
    )
    check_exposure(
        settings.daemon_host, {"LS_PROPAGATE_DAEMON_PASSWORD": password, "LS_PROPAGATE_WEBHOOK_SECRET": secret}
    )
    if settings.webhook_url and not secret:
        return bad("webhook_url is set, but no secret", "set LS_PROPAGATE_WEBHOOK_SECRET to a long random text")
    chosen = settings.segmenter
    if chosen is None:
        return doubtful(f"from {where}; no segmenter is set", "add [segmenter] before ls-propagate detect")
    paths = {name: path for name, path in chosen if isinstance(path, Path)}
    missing = [f"segmenter.{name} = {path}" for name, path in paths.items() if not path.exists()]
    if missing:
        return doubtful(f"from {where}; there is no {missing[0]}", "correct it before ls-propagate detect")
    if isinstance(chosen, UNetSettings):
        check_torch()
    return good(f"from {where}; segmenter {chosen.name}, strategy {settings.strategy.name}")


def folder(case: Case) -> Found:
    """data_dir can be written to, and has room."""
    return _room(case.settings.data_dir, "data_dir")


def store(case: Case) -> Found:
    """It opens, with the schema of this version; one that isn't there yet is not made."""
    address = sa.make_url(case.settings.store_url)
    if address.get_backend_name() == "sqlite" and not Path(address.database or "").is_file():
        return doubtful("there is none yet", "run: ls-propagate connect PROJECT", lacking=True)
    case.store = case.closing.enter_context(pipeline.open_store(case.settings))
    return good(f"{case.store.url} opens")


def artefacts(case: Case) -> Found:
    """The mask table and the trees that the store names are there, unchanged, and those of the campaign."""
    said: list[str] = []
    fingerprints = {}
    for fact, kind, command in (("table", "masks", "detect"), ("trees", "trees", "cluster")):
        name = case.store.fact(fact)
        if name is None:
            return good("; ".join([*said, f"no {kind} yet, until ls-propagate {command}"]))
        fingerprints[fact] = unchanged(case.settings.artefacts / name, kind)
        said.append(f"{name} is unchanged")
    begun = [event for event in case.store.stream() if isinstance(event, CampaignStarted | RoundStarted)]
    if begun and {"table": begun[-1].table, "trees": begun[-1].trees} != fingerprints:
        return bad(
            "the campaign began with other artefacts than the store names",
            "restore a backup: ls-propagate restore FILE",
        )
    return good("; ".join(said))


def unchanged(folder: Path, kind: str) -> str:
    """The fingerprint of an artefact, taken anew of all its files. Raises ArtefactError where they changed."""
    artefact = read_artefact(folder, kind)
    body = json.loads((folder / MANIFEST).read_text())
    told = body.pop("fingerprint")
    for name, (_, digest) in body["files"].items():
        with (folder / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise ArtefactError(f"{folder / name} has changed since it was written; restore it from a backup")
    if hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest() != told:
        raise ArtefactError(f"{folder / MANIFEST} has changed since it was written; restore it from a backup")
    return artefact.fingerprint


def mirror(case: Case) -> Found:
    """The mirror of the event log says what the store says, and has room to grow."""
    path = case.settings.mirror_file
    room = _room(path.parent, "the folder of mirror")
    if room.state == "bad":
        return room
    if not path.exists():
        return Found(room.state, f"{path} is not there yet, until ls-propagate sync; {room.said}", room.remedy)
    remedy = "see which of both was changed, then move the mirror away, and sync writes it anew"
    events = case.store.stream()
    number = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):  # the next sync cuts it off
                number -= 1
                break
            event = next(events, None)
            if event is None:
                return bad(f"{path} is ahead of the store from its line {number} on", remedy)
            if _entry(line) != event:
                return bad(f"line {number} of {path} differs from the store", remedy)
    behind = sum(1 for _ in events)
    if behind:
        return doubtful(
            f"{path} lacks the last {behind} of the store's events", "run: ls-propagate sync, which adds them"
        )
    return Found(room.state, f"{path} has all {number} events of the store; {room.said}", room.remedy)


def _entry(line: bytes) -> Event | None:
    try:
        record = json.loads(line)
        return from_record(record["kind"], record["body"])
    except (ValueError, LookupError, TypeError, PropagateError):
        return None


def daemon(case: Case) -> Found:
    """Whether one runs, as the lock tells, and whether it is well, as it says itself."""
    settings = case.settings
    lock = case.store.lock()
    free = lock.acquire()
    lock.release()
    address, told = _health(settings.daemon_host, settings.daemon_port) if settings.daemon_port else ("", None)
    if free and told is not None:
        return doubtful(f"none runs on this store, but something answers at {address}", "set another daemon_port")
    if free and case.store.fact("trees") is not None:
        return doubtful("none runs on this store", "run: ls-propagate sync, unless the campaign is finished")
    if free:
        return good("none runs on this store; no campaign has begun")
    if not settings.daemon_port:
        return good("one runs; daemon_port is 0, so where it answers isn't known")
    if told is None:
        return doubtful(
            f"one runs, but nothing answers at {address}",
            "see that daemon_host and daemon_port are those that it runs with; with --once it has no server",
        )
    if "ready" not in told:
        return doubtful(f"one runs, but what answers at {address} is something else", "set another daemon_port")
    if not told["ready"]:
        return doubtful(f"one runs, but is not ready: {told.get('reason')}", "see its log")
    return good(f"one runs, and answers at {address}: {told.get('reason')}")


def _health(host: str, port: int) -> tuple[str, dict[str, Any] | None]:
    """The address of the daemon's health, and what it says there; None where nothing answers."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}/health"
    try:
        answer = httpx.get(address, timeout=5)
    except (httpx.HTTPError, httpx.InvalidURL):
        return address, None
    try:
        told = answer.json()
    except ValueError:
        told = {}
    return address, told if isinstance(told, dict) else {}


def _room(path: Path, setting: str) -> Found:
    there = path.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return bad(
            f"{setting} {path} cannot be written to", f"let this account write to {there}, or set {setting}"
        )
    free = shutil.disk_usage(there).free
    said = f"{setting} {path}{'' if there == path.absolute() else ' can be made'}; {free / MEGABYTE:,.0f} MB free"
    if free < TOO_LITTLE:
        return bad(said, "make room on its disk, before a write fails")
    if free < LITTLE:
        return doubtful(said, "make room on its disk")
    return good(said)
