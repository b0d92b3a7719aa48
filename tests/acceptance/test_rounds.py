"""A further round in a real Label Studio, by the command line, beside a daemon that runs."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ls_propagate import clustering, pipeline
from ls_propagate.demo.run import answered, least_iou, regions_by_mask
from ls_propagate.settings import load_settings
from propagation.quality import RIGHT_IOU, truth_iou

Site = Any


def changed(site: Site, name: str, change: Callable[[str], str]) -> Site:
    """The site with other settings, in a file of their own."""
    config = site.config.with_name(name)
    config.write_text(change(site.config.read_text()))
    settings = load_settings(config, label_studio_url=site.server.url, label_studio_api_key=site.server.token)
    return dataclasses.replace(site, settings=settings, config=config)


def better(site: Site, folder: Path) -> Site:
    """The site with the results of a better model, which draws nine in ten objects as they are."""
    truth = json.loads((folder / "pool" / "ground_truth.json").read_text())["annotations"]
    old = json.loads((folder / "pool" / "predictions.json").read_text())
    results = [
        {**before, "segmentation": after["segmentation"], "score": 0.9} if place % 10 else before
        for place, (before, after) in enumerate(zip(old, truth, strict=True))
    ]
    predictions = site.config.with_name("better.json")
    predictions.write_text(json.dumps(results))
    named = f"predictions = {json.dumps(str(site.settings.segmenter.predictions))}"
    assert named in site.config.read_text()
    return changed(
        site, "later.toml", lambda told: told.replace(named, f"predictions = {json.dumps(str(predictions))}")
    )


def said(site: Site, *words: str) -> str:
    """What a command says that ends well."""
    apart = dataclasses.replace(site, config=site.config.with_name("command.toml"))
    apart.config.write_text(site.config.read_text())
    assert apart.command(*words).wait(240) == 0, apart.output.read_text()
    text: str = apart.output.read_text()
    return text


def ours(site: Site) -> dict[int, int]:
    """Task to the propagated annotation that it has."""
    tasks = list(site.gateway.tasks(site.connection.project, ["annotations", "result", "parent_prediction"]))
    assert max(len(task["annotations"]) for task in tasks) == 1
    written = ((task["id"], task["annotations"][0]) for task in tasks if task["annotations"])
    return {task: annotation["id"] for task, annotation in written if annotation["parent_prediction"]}


def test_a_better_model_finds_what_the_first_round_rejected(connect: Callable[[str], Site]) -> None:
    # without gold: enough of it in the second round would ask more of the proof of the first
    site = changed(connect("rounds"), "first.toml", lambda told: f"poll_seconds = 0.2\ngold_share = 0\n{told}")
    pipeline.detect(site.gateway, site.store, site.settings)
    clustering.cluster(site.gateway, site.store, site.settings)
    daemon = pipeline.open_daemon(site.gateway, site.store, site.settings)
    with site.annotator() as annotator:
        answered(daemon, annotator)
    asked, first = daemon.campaign.questions_asked, set(regions_by_mask(site.gateway, site.connection))
    before = ours(site)
    assert len(first) > 100
    later = better(site, site.settings.segmenter.predictions.parent.parent)
    running = later.command("sync")
    deadline = time.monotonic() + 300

    def waited_for(what: Callable[[], bool]) -> None:
        while not what():
            assert running.poll() is None, later.output.read_text()
            assert time.monotonic() < deadline, later.output.read_text()
            time.sleep(0.3)

    try:
        waited_for(lambda: "Nothing left to ask." in later.output.read_text())
        assert "masks in" in said(later, "detect", "--further")
        assert "The next round begins with the daemon" in said(later, "cluster")
        waited_for(lambda: site.store.fact("following") is None)
        with later.annotator_at_work():
            waited_for(lambda: later.output.read_text().count("Nothing left to ask.") == 2)
        assert running.poll() is None
    finally:
        running.terminate()
        assert running.wait(60) == 0, later.output.read_text()

    campaign = pipeline.open_campaign(site.store, later.settings)
    table, accepted = campaign.table, campaign.accepted()
    assert campaign.round == 2
    assert asked < campaign.questions_asked <= asked + later.settings.strategy.budget
    written = set(regions_by_mask(site.gateway, site.connection))
    assert written == set(table.ids[accepted].tolist())
    assert len(written) > len(first)
    print("XX", len(first), len(written), asked, campaign.questions_asked)
    assert first - written <= set(table.ids[campaign.verdict == 0].tolist()), (
        "only what was judged wrong is taken back"
    )
    assert (least_iou(site.gateway, site.connection, table) or 0) >= 0.98
    assert (truth_iou(table, site.truth)[accepted] > RIGHT_IOU).mean() >= campaign.strategy.target
    after = ours(site)
    assert {task: after.get(task, number) for task, number in before.items()} == before
    versions = Counter(
        prediction["model_version"]
        for task in site.gateway.tasks(site.connection.project, ["predictions", "model_version"])
        for prediction in task["predictions"]
    )
    assert len(versions) >= 2

    said(later, "undo", *sorted({str(name) for name in campaign.reasons() if name}))
    assert not regions_by_mask(site.gateway, site.connection)
