"""A campaign on the real server with a network between that drops, doubles, cuts and garbles."""

from __future__ import annotations

import logging
import threading
import time
import types
from collections.abc import Callable
from typing import Any

import pytest
import stamina

from ls_propagate import pipeline
from propagation.errors import ServerError
from tests.faults.invariants import check
from tests.faults.proxy import FAULTS, Proxy, between
from tests.faults.sites import annotator_at_work, prepare, scene, through
from tests.faults.worlds import SOAK

Site = Any
ENOUGH = 2000 if SOAK else 60
RATE = 0.25
log = logging.getLogger(__name__)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between attempts are short."""

    def retry_context(again: Any, **more: Any) -> Any:
        return stamina.retry_context(again, **(more | {"wait_initial": 0.01, "wait_max": 0.02}))

    monkeypatch.setattr("plugin.label_studio.wire.stamina", types.SimpleNamespace(retry_context=retry_context))
    monkeypatch.setattr("plugin.label_studio.wire.LONGEST_WAIT", 0.02)
    monkeypatch.setattr("sync.daemon.RETRY_SECONDS", 0.02)


def run(site: Site, proxy: Proxy) -> int:
    """Run the daemon through the proxy to the end, as a supervisor would; how often it was started."""
    settings, starts = through(site.settings, proxy.url), 0
    deadline = time.monotonic() + 600
    while True:
        starts += 1
        assert time.monotonic() < deadline, "the campaign never ends"
        try:
            with pipeline.open_gateway(settings) as gateway, pipeline.open_store(settings) as store:
                daemon = pipeline.open_daemon(gateway, store, settings)
                daemon.run(threading.Event(), every=0.05, until_finished=True)
                return starts
        except ServerError as error:
            log.warning("started again after: %s", error)


def test_whatever_the_network_does_nothing_is_lost_or_twice(connect: Callable[[str], Site]) -> None:
    seed, faults = 0, dict.fromkeys(FAULTS, 0)
    while sum(faults.values()) < ENOUGH:
        site = prepare(connect(f"faults-{seed}"), seed=seed)
        with between(site.server.url, RATE, seed) as proxy, annotator_at_work(site, delay=0.1):
            starts = run(site, proxy)
        for kind, count in proxy.counts.items():
            faults[kind] += count
        print(f"campaign {seed}: {proxy.requests} requests, {proxy.faults} faults, {starts} starts")
        check(scene(site), doubled=True)
        seed += 1
    print(faults)
    assert min(faults.values()) > 0, faults
