"""A lost store made again: from the mirror it is the same, without it as much as Label Studio tells."""

import json

import pytest

from ls_propagate import pipeline
from ls_propagate.recovery import rebuild
from propagation.errors import StoreError
from propagation.events import Decided, PageAnswered
from sync.store import Store


def finished(office):
    """A whole campaign whose log is mirrored, with the lock held as the daemon does."""
    store = Store(office.settings.store_url, office.settings.mirror_file)
    office.store.close()
    office.store = store
    office.prepared()
    with pipeline.writing(store):
        list(store.stream())
        office.finished()
    return office


def lose(office):
    """The store's files are deleted; a new, empty one."""
    office.store.close()
    for path in office.settings.data_dir.glob("store.sqlite*"):
        path.unlink()
    office.store = Store(office.settings.store_url, office.settings.mirror_file)
    return office


def what_stands(office):
    campaign = pipeline.open_campaign(office.store, office.settings)
    return {
        "accepted": campaign.accepted().tolist(),
        "verdict": campaign.verdict.tolist(),
        "state": campaign.state,
        "pages": {name: (page.task, page.answer) for name, page in campaign.pages.items()},
        "written": {task: campaign.standing(task).tolist() for task in campaign.ours},
        "name": campaign.name,
    }


def annotations(office):
    fields = ["annotations", "result", "updated_at"]
    return list(office.gateway.tasks(office.project, fields))


def test_from_its_mirror_a_store_is_the_same_as_before(office):
    finished(office)
    before, log = what_stands(office), office.store.events()
    mirrored = office.settings.mirror_file.read_bytes()
    tasks, written = office.store.source_tasks(), annotations(office)
    lose(office)
    (said,) = rebuild(office.gateway, office.settings, str(office.project))
    assert f"{len(log)} entries" in said
    assert what_stands(office) == before
    assert office.store.events() == log
    assert office.store.source_tasks() == tasks
    with pipeline.writing(office.store):
        daemon = pipeline.open_daemon(office.gateway, office.store, office.settings)
        step = daemon.step()
        assert (step.finished, step.pages, step.images_written, step.decisions) == (True, 0, 0, 0)
    assert annotations(office) == written
    assert office.settings.mirror_file.read_bytes() == mirrored


def test_a_torn_last_line_of_the_mirror_is_left_out(office):
    finished(office)
    log = office.store.events()
    mirror = office.settings.mirror_file
    mirror.write_bytes(mirror.read_bytes()[:-7])
    lose(office)
    rebuild(office.gateway, office.settings, "cells")
    assert office.store.events() == log[:-1]


@pytest.mark.parametrize("broken", [b"{}\n", b"no json\n", b'{"seq": 7, "kind": "x", "body": {}, "at": ""}\n'])
def test_a_broken_mirror_is_told_and_nothing_is_stored(office, broken):
    finished(office)
    mirror = office.settings.mirror_file
    lines = mirror.read_bytes().splitlines(keepends=True)
    mirror.write_bytes(b"".join([*lines[:3], broken, *lines[4:]]))
    lose(office)
    with pytest.raises(StoreError, match=r"line 4 of the mirror .* is broken"):
        rebuild(office.gateway, office.settings, "cells")
    assert office.store.events() == []


def test_without_a_mirror_the_verdicts_come_back_and_what_is_lost_is_listed(office):
    finished(office)
    before, written = what_stands(office), annotations(office)
    answers = sum(isinstance(event, PageAnswered) for event in office.store.events())
    office.settings.mirror_file.unlink()
    lose(office)
    said, *lost = rebuild(office.gateway, office.settings, "cells")
    assert said.startswith(f"From Label Studio: {len(before['pages'])} pages, {answers} of them answered")
    assert any("no promise" in line for line in lost)
    after = what_stands(office)
    for name in ("verdict", "pages", "written", "name"):
        assert after[name] == before[name]
    assert not any(isinstance(event, Decided) for event in office.store.events())
    # and the campaign goes on from there, to the same end
    with pipeline.writing(office.store):
        office.finished()
    assert what_stands(office)["accepted"] == before["accepted"]
    assert annotations(office) == written
    assert pipeline.open_campaign(office.store, office.settings).claim == "estimate"


def test_with_other_settings_than_those_of_the_campaign_nothing_is_made_up(office):
    finished(office)
    office.settings.mirror_file.unlink()
    lose(office)
    other = office.changed(strategy=office.settings.strategy.__class__(samples=9))
    with pytest.raises(StoreError, match=r"no trees in .* belong to the campaign; set data_dir, LABEL_STUDIO_URL"):
        rebuild(office.gateway, other, "cells")
    assert office.store.events() == []


def test_a_store_with_a_log_is_not_rebuilt(office):
    finished(office)
    with pytest.raises(StoreError, match="has an event log already; rebuild into an empty one"):
        rebuild(office.gateway, office.settings, "cells")


def test_what_people_changed_after_the_loss_is_read_afterwards(office):
    finished(office)
    lose(office)
    page = next(
        iter(
            office.gateway.tasks(
                pipeline.connect(office.gateway, office.store, "cells").pages, ["annotations", "data"]
            )
        )
    )
    office.store.close()
    lose(office)
    everything = [crop["alias"] for crop in page["data"]["crops"]]
    marks = {"from_name": "wrong", "to_name": "page", "type": "choices", "value": {"choices": everything}}
    office.gateway.edit(page["annotations"][0]["id"], [marks])
    rebuild(office.gateway, office.settings, "cells")
    with pipeline.writing(office.store):
        office.finished()
    campaign = pipeline.open_campaign(office.store, office.settings)
    rows = campaign.rows_of(everything)
    assert not campaign.accepted()[rows].any()
    kept = json.dumps(annotations(office))
    assert not any(mask in kept for mask in everything)
