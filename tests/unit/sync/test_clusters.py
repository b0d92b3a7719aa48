"""The cluster board, and commands from there and from beside the daemon, to what is written."""

from contextlib import suppress
from dataclasses import asdict

import numpy as np
import pytest

from plugin.label_studio.clusters import BOARD_SETTINGS, COMMANDS, tabs
from plugin.label_studio.tabs import add_tabs
from propagation.campaign import NO
from propagation.errors import ServerError
from propagation.events import Commanded
from sync import clusters
from sync.store import Hint
from tests.faults.invariants import check
from tests.faults.worlds import STRATEGIES, make_campaign, scene, without_waiting_for_models


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    without_waiting_for_models(monkeypatch)
    monkeypatch.setattr("sync.daemon.BOARD_SECONDS", 0.0)
    monkeypatch.setattr(clusters, "NEW_AT_ONCE", 100)


@pytest.fixture(params=list(STRATEGIES))
def world(request, make_world):
    """A world with a board."""
    made = make_campaign(make_world, request.param)
    made.board = made.gateway.create_project("board", "<View/>", "", BOARD_SETTINGS).id
    return made


@pytest.fixture
def finished(world):
    """A campaign at its end, and its daemon."""
    daemon = world.daemon()
    world.run(daemon)
    assert daemon.campaign.accepted().any()
    return world, daemon


def cards(world):
    """The board's tasks by cluster."""
    fields = ["data", *clusters.FIELDS[1:]]
    return {task["data"]["cluster"]: task for task in world.gateway.tasks(world.board, fields)}


def choosing(command):
    title = next(title for title, known in COMMANDS.items() if known == command)
    return [{"from_name": "command", "to_name": "sheet", "type": "choices", "value": {"choices": [title]}}]


def say(world, cluster, command, by=7):
    return world.gateway.submit(cards(world)[cluster]["id"], choosing(command), by=by)


def held(world):
    """The masks that are written."""
    return {
        region["meta"]["propagate"]["mask"]
        for made in world.annotations().values()
        for annotation in made
        for region in annotation["result"]
    }


def largest(daemon, state="accepted"):
    found = [key for key, now in daemon.campaign.states().items() if now == state]
    key = max(found, key=lambda key: len(daemon.campaign.rows(*key)))
    return daemon.campaign.cluster(*key)


def masks(daemon, cluster):
    rows = daemon.campaign.rows(*daemon.campaign.find(cluster))
    return set(daemon.campaign.table.ids[rows].tolist())


def commands(world):
    return [event for event in world.opened[-1].events() if isinstance(event, Commanded)]


# what the board shows


def test_the_board_shows_the_clusters_with_their_figures(finished):
    world, daemon = finished
    shown = cards(world)
    campaign = daemon.campaign
    states = {campaign.cluster(*key): state for key, state in campaign.states().items() if state != "split"}
    assert set(states) <= set(shown)
    for name, task in shown.items():
        data, rows = task["data"], campaign.rows(*campaign.find(name))
        assert data["state"] == states.get(name, "open")
        assert data["size"] == len(rows)
        assert data["asked"] == (campaign.verdict[rows] >= 0).sum()
        assert data["accepted"] == campaign.accepted()[rows].sum()
        assert isinstance(data["size"], int)
        assert data["sheet"].startswith("/data/upload/")
    tabs = {task["data"]["tab"] for task in shown.values()}
    assert "accepted" in tabs


def test_only_what_changed_is_sent(finished):
    world, daemon = finished
    daemon.step()
    world.gateway.calls.clear()
    daemon.step()
    assert not {"update_task", "import_tasks", "upload", "delete_tasks"} & set(world.gateway.calls)


def test_a_new_process_knows_the_cards_again(finished):
    world, _ = finished
    before = {name: task["id"] for name, task in cards(world).items()}
    world.gateway.calls.clear()
    world.daemon().step()
    assert {name: task["id"] for name, task in cards(world).items()} == before
    assert "import_tasks" not in world.gateway.calls


def test_of_two_cards_of_one_cluster_that_which_nobody_annotated_is_deleted(finished):
    world, _ = finished
    name, task = next(iter(cards(world).items()))
    number = say(world, name, "reject")
    world.gateway.import_tasks(world.board, [{"data": task["data"]}])
    world.daemon().step()
    (kept,) = [t for t in world.gateway.tasks(world.board, ["data"]) if t["data"]["cluster"] == name]
    assert kept["id"] == task["id"]
    assert number in [a["id"] for a in cards(world)[name]["annotations"]]


def test_few_cards_are_added_and_changed_at_once(world, monkeypatch):
    monkeypatch.setattr(clusters, "NEW_AT_ONCE", 1)
    monkeypatch.setattr(clusters, "PATCHES_AT_ONCE", 1)
    daemon = world.daemon()
    for number in range(3):
        daemon.step()
        assert len(cards(world)) <= number + 1
        world.gateway.calls.clear()
        world.annotate()
    daemon.step()
    assert world.gateway.calls.count("update_task") <= 1


def test_no_more_cards_than_matter_are_made(finished, monkeypatch):
    world, _ = finished
    made = world.gateway.create_project("board", "<View/>", "", BOARD_SETTINGS).id
    world.board = made
    monkeypatch.setattr(clusters, "MOST", 2)
    world.daemon().step()
    assert len(cards(world)) == 2


def test_the_board_keeps_its_tabs_though_every_card_is_replaced(world):
    add_tabs(world.gateway, world.board, tabs())
    daemon = world.daemon()
    daemon.step()
    before = {task["id"] for task in cards(world).values()}
    world.run(daemon)
    assert not before & {task["id"] for task in cards(world).values()}
    assert list(world.gateway.tabs(world.board).values()) == tabs()


def test_a_board_that_was_deleted_is_done_without(finished, caplog):
    world, daemon = finished
    del world.gateway._projects[world.board]
    daemon.step()
    daemon.step()
    assert "the cluster board is gone" in caplog.text


# commands


def test_what_is_rejected_is_taken_out_and_comes_back_by_undo(finished):
    world, daemon = finished
    before = held(world)
    name = largest(daemon)
    number = say(world, name, "reject")
    daemon.step()
    assert held(world) == before - masks(daemon, name)
    card = cards(world)[name]["data"]
    assert (card["state"], card["tab"], card["accepted"]) == ("rejected by command", "rejected", 0)
    assert "user 7" in card["said"]
    world.gateway.edit(number, choosing("undo"), by=8)
    daemon.step()
    assert held(world) == before
    assert [(said.command, said.by) for said in commands(world)] == [("reject", "user 7"), ("undo", "user 8")]
    store = world.opened[-1]
    check(scene(world, store))


def test_what_is_accepted_is_written_at_once_and_marked(world):
    daemon = world.daemon()
    daemon.step()
    world.annotate()
    daemon.step()
    name = next(iter(cards(world)))
    say(world, name, "accept")
    daemon.step()
    rows = daemon.campaign.rows(*daemon.campaign.find(name))
    wrong = set(daemon.campaign.table.ids[rows[daemon.campaign.verdict[rows] == NO]].tolist())
    assert masks(daemon, name) - held(world) == wrong
    marked = {
        region["meta"]["propagate"]["mask"]
        for made in world.annotations().values()
        for annotation in made
        for region in annotation["result"]
        if region["meta"]["propagate"]["decision"] == f"command/{name}"
    }
    assert marked == set(daemon.campaign.table.ids[daemon.campaign.by_command()].tolist())
    assert marked


def test_a_command_is_obeyed_once_however_often_it_is_read(finished):
    world, daemon = finished
    name = largest(daemon)
    say(world, name, "reject")
    for _ in range(2):
        daemon.step()
        daemon._begin_reading()
    world.daemon().step()
    assert len(commands(world)) == 1


def test_a_command_whose_annotation_is_deleted_is_taken_back(finished):
    world, daemon = finished
    before = held(world)
    number = say(world, largest(daemon), "reject")
    daemon.step()
    assert held(world) != before
    world.gateway.delete(number, by=7)
    daemon.step()
    assert held(world) == before
    daemon.step()
    assert [said.command for said in commands(world)] == ["reject", "undo"]


def test_what_cannot_be_obeyed_is_told_on_the_card(finished, caplog):
    world, daemon = finished
    name = next(n for n, t in cards(world).items() if t["data"]["state"] == "accepted")
    say(world, name, "split")
    daemon.step()
    said = cards(world)[name]["data"]["said"]
    if daemon.campaign.strategy.name == "calibrated":
        assert said.startswith(
            "Not obeyed: Split, by user 7, 2026-01-01 00:00 UTC: the calibrated strategy proves"
        )
        assert commands(world) == []
    else:
        assert commands(world) or "Not obeyed" in said


def test_a_refused_command_is_not_obeyed_later(world, caplog):
    daemon = world.daemon()
    daemon.step()
    name = next(iter(cards(world)))
    say(world, name, "undo")
    daemon.step()
    assert "nothing to undo" in cards(world)[name]["data"]["said"]
    world.run(daemon)
    assert daemon.campaign.accepted().any()
    assert commands(world) == []
    assert caplog.text.count("was not obeyed") == 1
    world.daemon().step()
    assert commands(world) == []
    assert "Not obeyed: Undo, by user 7" in cards(world)[name]["data"]["said"]


def test_a_card_that_somebody_spoke_on_tells_what_became_of_the_cluster(world):
    daemon = world.daemon()
    daemon.step()
    name = next(iter(cards(world)))
    say(world, name, "undo")
    world.run(daemon)
    key, card = daemon.campaign.find(name), cards(world)[name]["data"]
    assert card["state"] == daemon.campaign.states().get(key, clusters.ELSEWHERE)
    assert card["asked"] == daemon.campaign.known(*key)[0]
    assert card["tab"] != "open"


def test_a_card_shows_what_a_later_command_on_a_larger_cluster_made_of_it(finished):
    world, daemon = finished
    name = largest(daemon)
    root = daemon.campaign.cluster(0, daemon.campaign.trees[0].root)
    if not masks(daemon, name) <= masks(daemon, root):
        root = daemon.campaign.cluster(1, daemon.campaign.trees[1].root)
    say(world, name, "accept")
    daemon.step()
    assert cards(world)[name]["data"]["state"] == "accepted by command"
    daemon.store.notice(Hint("COMMANDS", None, commands=(said(root, "reject"),)))
    daemon.step()
    card = cards(world)[name]["data"]
    assert (card["state"], card["tab"], card["accepted"]) == ("rejected by command", "rejected", 0)
    daemon.store.notice(Hint("COMMANDS", None, commands=(said(root, "undo"),)))
    daemon.step()
    assert cards(world)[name]["data"]["state"] == "accepted by command"


def test_a_card_names_who_spoke_last_and_when(finished, monkeypatch):
    world, daemon = finished
    monkeypatch.setattr(world.gateway, "people", lambda: {7: "Ada Lovelace"})
    one, other = list(cards(world))[:2]
    say(world, one, "reject")
    say(world, other, "reject", by=8)
    daemon.step()
    assert cards(world)[one]["data"]["said"] == "Reject, by Ada Lovelace, 2026-01-01 00:00 UTC."
    assert "by user 8" in cards(world)[other]["data"]["said"]

    def away():
        raise ServerError("nobody may ask")

    monkeypatch.setattr(world.gateway, "people", away)
    world.daemon().step()
    assert "by user 7" in cards(world)[one]["data"]["said"]


def test_of_two_managers_on_one_card_the_later_is_obeyed_and_each_may_take_back(finished):
    world, daemon = finished
    before, name = held(world), largest(daemon)
    number = say(world, name, "reject", by=7)
    other = say(world, name, "accept", by=8)
    daemon.step()
    assert cards(world)[name]["data"]["state"] == "accepted by command"
    assert "user 8" in cards(world)[name]["data"]["said"]
    world.gateway.delete(other, by=8)
    daemon.step()
    assert cards(world)[name]["data"]["state"] == "rejected by command"
    assert not held(world) & masks(daemon, name)
    world.gateway.delete(number, by=7)
    daemon.step()
    assert held(world) == before
    check(scene(world, world.opened[-1]))


def test_what_was_written_by_command_goes_with_its_predictions(world):
    daemon = world.daemon()
    daemon.step()
    annotations, predictions = world.annotations(), world.predictions()
    root = daemon.campaign.cluster(0, daemon.campaign.trees[0].root)
    for command in ("accept", "undo"):
        daemon.store.notice(Hint("COMMANDS", None, commands=(said(root, command),)))
        daemon.step()
        assert (world.predictions() == predictions) == (command == "undo")
    assert world.annotations() == annotations


def test_an_undone_cluster_is_taken_out_and_stays_out(finished):
    world, daemon = finished
    before = held(world)
    name = largest(daemon)
    say(world, name, "undo")
    for _ in range(3):
        daemon.step()
        gone = before - held(world)
        assert gone
        assert gone <= masks(daemon, name)
    assert cards(world)[name]["data"]["tab"] == "stuck"
    world.daemon().step()
    assert before - held(world) == gone
    check(scene(world, world.opened[-1]))


def test_an_image_of_which_all_is_taken_back_is_as_before(finished):
    world, daemon = finished
    for name in [n for n, t in cards(world).items() if t["data"]["state"] == "accepted"]:
        say(world, name, "reject")
    for place, tree in enumerate(daemon.campaign.trees):
        root = daemon.campaign.cluster(place, tree.root)
        daemon.store.notice(Hint("COMMANDS", None, commands=(said(root, "reject"),)))
    daemon.step()
    assert held(world) == set()
    assert all(made == [] for made in world.annotations().values())
    for place, tree in enumerate(daemon.campaign.trees):
        root = daemon.campaign.cluster(place, tree.root)
        daemon.store.notice(Hint("COMMANDS", None, commands=(said(root, "accept"),)))
    daemon.step()
    right = daemon.campaign.table.ids[daemon.campaign.accepted()].tolist()
    assert held(world) == set(right)
    assert all(len(made) == 1 for made in world.annotations().values())
    check(scene(world, world.opened[-1]))


def test_what_a_person_edited_is_left_as_it_is(finished):
    world, daemon = finished
    name = largest(daemon)
    task, number = next((task, a["id"]) for task, made in world.annotations().items() for a in made)
    world.gateway.edit(number, [])
    say(world, name, "undo")
    daemon.step()
    (theirs,) = world.annotations()[task]
    assert (theirs["id"], theirs["result"]) == (number, [])


# from beside the daemon


def said(target, command):
    source = f"terminal/{target}/{command}"
    return asdict(Commanded(target, command, "somebody", "2026-11-22T10:00:00+00:00", source))


def test_commands_in_the_inbox_are_obeyed_once(finished):
    world, daemon = finished
    name = largest(daemon)
    hint = Hint("COMMANDS", None, commands=(said(name, "reject"), said("nowhere/1", "reject")))
    daemon.store.notice(hint)
    daemon.store.notice(hint)
    daemon.step()
    assert [event.target for event in commands(world)] == [name]
    assert daemon.store.hints() == []
    assert not held(world) & masks(daemon, name)


def test_who_obeys_for_once_asks_nothing_and_leaves_the_inbox(world):
    daemon = world.daemon()
    daemon.step()
    world.annotate()
    daemon.step()
    pages = len(world.pages())
    root = daemon.campaign.cluster(0, daemon.campaign.trees[0].root)
    daemon.store.notice(Hint("COMMANDS", None, commands=(said(root, "accept"),)))
    other = world.daemon()
    assert other.obey().commands == 1
    assert len(world.pages()) == pages
    assert held(world)
    world.daemon().step()
    assert len(commands(world)) == 1


def test_commands_in_the_inbox_are_obeyed_while_much_is_written(finished, monkeypatch):
    world, daemon = finished
    daemon.poll_every = 0.0
    one, other = (daemon.campaign.cluster(place, tree.root) for place, tree in enumerate(daemon.campaign.trees))
    update = world.gateway.update_annotation

    def noticing(*args):
        daemon.store.notice(Hint("COMMANDS", None, commands=(said(other, "reject"),)))
        monkeypatch.setattr(world.gateway, "update_annotation", update)
        return update(*args)

    monkeypatch.setattr(world.gateway, "update_annotation", noticing)
    daemon.store.notice(Hint("COMMANDS", None, commands=(said(one, "reject"),)))
    assert daemon.step().commands == 2
    daemon.step()
    assert held(world) == set()


def test_who_obeys_for_once_leaves_what_is_stuck_under_its_tab(make_world):
    world = make_campaign(make_world, "paper", budget=16)
    world.board = world.gateway.create_project("board", "<View/>", "", BOARD_SETTINGS).id
    world.run(world.daemon())
    tabs = {name: task["data"]["tab"] for name, task in cards(world).items()}
    assert "stuck" in tabs.values()
    world.close()
    world.daemon().obey()
    assert {name: task["data"]["tab"] for name, task in cards(world).items()} == tabs


@pytest.mark.parametrize("call", ["delete_annotation", "delete_prediction", "update_annotation", "tasks"])
def test_a_death_while_a_command_is_written_is_made_up_for(finished, monkeypatch, call):
    world, daemon = finished
    before = held(world)
    name = largest(daemon)
    say(world, name, "reject")

    def dies(*args, **kwargs):
        raise KeyboardInterrupt

    read = world.gateway.tasks
    done = []

    def dies_later(*args, **kwargs):
        done.append(1)
        if len(done) > 3:
            raise KeyboardInterrupt
        return read(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(world.gateway, call, dies_later if call == "tasks" else dies)
        with suppress(KeyboardInterrupt):
            daemon.step()
    world.close()
    world.run(world.daemon())
    assert held(world) == before - masks(daemon, name)
    assert np.sum([event.command == "reject" for event in commands(world)]) == 1
