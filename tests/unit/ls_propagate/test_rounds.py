"""A further round through the steps and the daemon: found anew, clustered, begun when no page is out."""

import json
import threading
from types import SimpleNamespace

import pytest
from pydantic import SecretStr

from ls_propagate import clustering, pipeline, recovery, service
from ls_propagate.doctor.machine import artefacts
from propagation.errors import StoreError
from propagation.events import RoundStarted
from sync.board import Board
from sync.monitor import Monitor
from sync.store import Store


def find_more(office, box, keep=8):
    """The same model's results, made anew: the first of an image a pixel lower, the others as before."""
    file = office.settings.segmenter.predictions
    results = json.loads(file.read_text())
    for number, result in enumerate(results):
        place = number % 12
        if place < keep:
            rle = box(place % 4 * 8 + 1, place // 4 * 8 + 2, 5, 5)
            result["segmentation"]["counts"] = rle["counts"].decode()
    file.write_text(json.dumps(results))


def detect(office):
    return pipeline.detect(office.gateway, office.store, office.settings, further=True)


def cluster(office):
    return clustering.cluster(office.gateway, office.store, office.settings)


def written(office):
    return {
        region["meta"]["propagate"]["mask"]
        for task in office.gateway.tasks(office.project, ["annotations", "result"])
        for annotation in task["annotations"]
        for region in annotation["result"]
    }


def test_no_further_round_before_the_first(office):
    pipeline.connect(office.gateway, office.store, str(office.project))
    with pytest.raises(StoreError, match="ls-propagate detect"):
        detect(office)


def test_a_round_of_what_was_rejected_leaves_what_was_accepted(office, box):
    office.prepared().finished(wrong="Y")
    before = written(office)
    assert len(before) == 16
    find_more(office, box)
    table, _ = detect(office)
    assert len(table) == 24
    trees, pushed = cluster(office)
    assert [(tree.name, len(tree)) for tree in trees] == [("x", 16), ("Y", 8), ("Y@2", 8)]
    assert pushed == 2
    campaign = pipeline.open_campaign(office.store, office.settings)
    assert campaign.round == 2
    assert campaign.accepted().sum() == 16
    office.finished(wrong="nothing")
    assert written(office) >= before


def test_a_step_that_is_run_again_begins_no_other_round(office, box):
    office.prepared().finished()
    find_more(office, box)
    detect(office)
    cluster(office)
    assert cluster(office)[1] == 0
    assert sum(isinstance(event, RoundStarted) for event in office.store.events()) == 1


def test_where_nothing_is_open_there_is_no_further_round(office):
    office.prepared().finished(wrong="nothing")
    with pytest.raises(StoreError, match="nothing to begin"):
        detect(office)


def test_a_page_that_is_out_holds_the_round_back_until_it_is_answered(office, box):
    office.prepared()
    daemon = pipeline.open_daemon(office.gateway, office.store, office.settings)
    daemon.step()
    find_more(office, box, keep=12)
    detect(office)
    cluster(office)
    assert office.store.fact("following")
    assert not daemon.step().finished
    asked = len(daemon.campaign.pages)
    office.store.lock().release()
    office.finished()
    campaign = pipeline.open_campaign(office.store, office.settings)
    assert (campaign.round, len(campaign.pages)) == (1, asked)
    assert office.store.fact("following")
    steps, stop = [], threading.Event()

    def watched(step):
        steps.append(step)
        if len(steps) > 1 or not step.finished:
            stop.set()

    given = office.settings, office.store, office.gateway, Monitor(), stop, threading.Event(), watched
    service.run(*given, board=Board(office.settings.terms))
    campaign = pipeline.open_campaign(office.store, office.settings)
    assert (campaign.round, office.store.fact("following")) == (2, None)
    assert steps[0].finished
    assert steps[-1].waiting


@pytest.mark.parametrize("mirrored", [True, False])
def test_a_lost_store_is_made_again_in_its_round(office, box, mirrored, tmp_path):
    if mirrored:
        office.store.close()
        office.store = Store(office.settings.store_url, office.settings.mirror_file)
    office.prepared().finished()
    find_more(office, box)
    detect(office)
    cluster(office)
    office.finished(wrong="nothing")
    before = pipeline.open_campaign(office.store, office.settings)
    settings = office.changed(store=SecretStr(f"sqlite:///{tmp_path / 'again.sqlite'}"))
    recovery.rebuild(office.gateway, settings, str(office.project))
    again = Store(settings.store_url)
    campaign = pipeline.open_campaign(again, settings)
    assert campaign.round == 2
    assert campaign.verdict.tolist() == before.verdict.tolist()
    assert campaign.written == before.written
    assert artefacts(SimpleNamespace(store=again, settings=settings)).state == "good"
    again.close()
