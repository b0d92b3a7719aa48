"""A daemon on the real server that is killed at random moments, again and again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from ls_propagate.demo.run import read_back
from propagation.events import Certified, Decided
from tests.faults.invariants import check
from tests.faults.sites import annotator_at_work, daemon_process, prepare, scene
from tests.faults.worlds import SOAK

Site = Any
ENOUGH = 200 if SOAK else 6
SECONDS_A_PAGE = 0.3 if SOAK else 0.1
LIVES = 1.2  # seconds of a process, on average


def outcome(site: Site) -> tuple[set[tuple[str, str]], dict[int, int], dict[str, int]]:
    """What was decided in the end, and what Label Studio holds.

    How many answers were there when a set was certified depends on when somebody looked, and is left out. A page
    is counted once: who is killed while it is imported may have it imported again before the server is done with
    the first time, and the annotator may answer both.
    """
    events = site.store.events()
    clusters = {event.cluster: event.decision for event in events if isinstance(event, Decided)}
    levels = {event.certificate: event.level for event in events if isinstance(event, Certified)}
    held = read_back(site.gateway, site.connection)
    pages = list(site.gateway.tasks(site.connection.pages, ["data", "annotations"]))
    held["pages"] = len({page["data"]["page"] for page in pages})
    held["answers"] = len({page["data"]["page"] for page in pages if page["annotations"]})
    return set(clusters.items()), levels, held


def run(site: Site, chance: random.Random, kills: int) -> int:
    """Daemon after daemon until one finishes, the first ``kills`` of them killed; how many that were."""
    died = 0
    deadline = time.monotonic() + 600
    with annotator_at_work(site, SECONDS_A_PAGE):
        while True:
            process = daemon_process(site)
            process.start()
            try:
                process.join(min(4 * LIVES, chance.expovariate(1 / LIVES)) if died < kills else 300)
                ended = process.exitcode
            finally:
                process.kill()
                process.join()
            if ended is not None:
                assert ended == 0, site.output.read_text()
                return died
            died += 1
            assert died <= kills, "the campaign never ends"
            assert time.monotonic() < deadline, "the campaign never ends"


def test_a_daemon_killed_at_any_moment_ends_as_one_that_was_not(connect: Callable[[str], Site]) -> None:
    calm = prepare(connect("calm"))
    run(calm, random.Random(), 0)
    check(scene(calm))
    expected, chance, died, number = outcome(calm), random.Random(0), 0, 0
    while died < ENOUGH:
        site = prepare(connect(f"killed-{number}"))
        kills = run(site, chance, ENOUGH - died)
        print(f"campaign {number}: {kills} kills")
        assert kills
        check(scene(site))
        assert outcome(site) == expected
        died, number = died + kills, number + 1
