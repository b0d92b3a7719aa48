"""Campaigns on a real Label Studio that last long enough for something to go wrong in them."""

from __future__ import annotations

import dataclasses
import multiprocessing
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ls_propagate import clustering, pipeline
from ls_propagate.settings import Settings, load_settings
from propagation.campaign import Campaign
from propagation.errors import ServerError
from sync.pages import VerifyProjects
from sync.source import Source
from tests.faults.invariants import Scene
from tests.faults.worlds import SOAK


def prepare(site: Any, seed: int = 0) -> Any:
    """The site with small pages and frequent writes, its campaign begun."""
    text = site.config.read_text().replace("seed = 0", f"seed = {seed}")
    if not SOAK:
        text = text.replace("budget = 300", "budget = 120")
    bare = "gold_share = 0\noverlap = 0\n"
    site.config.write_text(f"write_every = 20\npoll_seconds = 0.1\n{bare}{text}page_size = 5\n")
    settings = load_settings(site.config, label_studio_url=site.server.url, label_studio_api_key=site.server.token)
    pipeline.detect(site.gateway, site.store, settings)
    clustering.cluster(site.gateway, site.store, settings)
    return dataclasses.replace(site, settings=settings)


def scene(site: Any) -> Scene:
    """A site to be checked."""
    table, trees = pipeline.load_table(site.store, site.settings), pipeline.load_trees(site.store, site.settings)
    connection = site.connection
    labeling = pipeline.labeling_of(site.gateway, connection, site.settings, table.categories)
    return Scene(
        site.store,
        site.gateway,
        Source(connection.project, labeling, site.gateway.user().id),
        VerifyProjects(connection.pages, connection.crops),
        lambda: Campaign(table, trees, site.settings.strategy),
    )


@contextmanager
def annotator_at_work(site: Any, delay: float) -> Iterator[None]:
    """An annotator who takes ``delay`` seconds a page, beside the test."""
    stop = threading.Event()
    with site.annotator() as annotator:
        annotator._delay = delay

        def work() -> None:
            while not stop.is_set():
                # a page's second task may be deleted while it is open: who submits it goes on to the next
                with suppress(ServerError):
                    annotator.run(stop)

        worker = threading.Thread(target=work)
        worker.start()
        try:
            yield
        finally:
            stop.set()
            worker.join()


def through(settings: Settings, url: str) -> Settings:
    """The settings with another address of Label Studio."""
    return settings.model_copy(update={"label_studio_url": url})


# daemons as processes that start at once

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["ls_propagate.pipeline", "sklearn.ensemble", __name__])


def daemon_process(site: Any) -> Any:
    """``ls-propagate sync --until-finished`` as a process of its own, which was loaded before."""
    return _forks.Process(target=_sync, args=[site.config, site.server.url, site.server.token, site.output])


def _sync(config: Path, url: str, token: str, output: Path) -> None:
    import os

    from ls_propagate.cli import main

    os.environ.update(LABEL_STUDIO_URL=url, LABEL_STUDIO_API_KEY=token)
    sys.argv = ["ls-propagate", "sync", "--until-finished", "--config", str(config)]
    with output.open("a") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    main()
