"""A daemon that dies at any call of the server and at any commit, and the one that takes over."""

from dataclasses import asdict
from itertools import count

import pytest

from propagation.events import Commanded
from sync.store import Hint, Store
from tests.faults.invariants import check
from tests.faults.worlds import STRATEGIES, Crash, Unsteady, make_campaign, scene, without_waiting_for_models

CHANGING = {"import_tasks", "import_predictions", "predictions_to_annotations", "update_annotation", "upload"}
COMMITS = [name for name in ("append", "remember", "notice", "forget_hints") if hasattr(Store, name)]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    without_waiting_for_models(monkeypatch)


@pytest.fixture(params=list(STRATEGIES))
def strategy(request):
    return request.param


def end(world):
    """What a campaign came to; nothing of it is twice, lost or half."""
    store = Store(world.url)
    check(scene(world, store))
    store.close()
    return world.outcome()


def undisturbed(make_world, strategy):
    """What comes of a campaign that nothing disturbs, and the calls of the server that it takes."""
    world = make_campaign(make_world, strategy)
    gateway = Unsteady(world.gateway)
    world.run(world.daemon(gateway))
    outcome = end(world)
    assert outcome["accepted"]
    assert set(gateway.calls) >= CHANGING
    world.close()
    return outcome, gateway.calls


def taken_over(world, opened):
    """Whether the daemon died; if so, annotators went on meanwhile, and another took over."""
    try:
        world.run(opened())
    except Crash:
        world.close()
        world.annotate()
        Unsteady(world.gateway).elapse(300)
        world.run(world.daemon())
        return True
    return False


@pytest.mark.parametrize("when", ["before", "midway", "after"])
def test_a_death_at_any_call_of_the_server_changes_no_outcome(make_world, strategy, when):
    expected, calls = undisturbed(make_world, strategy)
    for k, call in enumerate(calls, 1):
        if when == "midway" and call != "tasks":
            continue
        world = make_campaign(make_world, strategy)
        gateway = Unsteady(world.gateway)
        gateway.fail(k, when, Crash())
        assert taken_over(world, lambda w=world, g=gateway: w.daemon(g)), k
        assert end(world) == expected, (k, call)
        world.close()


class Commits:
    """Counts the store's commits; the k-th ends the process, before or after it."""

    def __init__(self, patch, k, when):
        self.number, self.names = 0, set()
        for name in COMMITS:
            patch.setattr(Store, name, self._counted(name, getattr(Store, name), k, when))

    def _counted(self, name, commit, k, when):
        def counted(store, *args, **kwargs):
            self.number += 1
            self.names.add(name)
            dies = self.number == k
            if dies and when == "before":
                raise Crash
            answer = commit(store, *args, **kwargs)
            if dies:
                raise Crash
            return answer

        return counted


def commanded(make_world, strategy):
    """A campaign at its end, with a board, and commands that wait."""
    world = make_campaign(make_world, strategy)
    world.board = world.gateway.create_project("board", "<View/>", "", {}).id
    daemon = world.daemon()
    world.run(daemon)
    campaign = daemon.campaign
    accepted = sorted(
        (key for key, state in campaign.states().items() if state == "accepted"),
        key=lambda key: -len(campaign.rows(*key)),
    )
    said = [("undo", accepted[0]), ("reject", accepted[-1]), ("ask", accepted[0])]
    said += [("accept", key) for key, state in campaign.states().items() if state == "rejected"]
    for number, (command, key) in enumerate(said):
        fields = asdict(Commanded(campaign.cluster(*key), command, "somebody", "now", f"terminal/{number}"))
        daemon.store.notice(Hint("COMMANDS", None, commands=(fields,)))
    world.close()
    return world


def test_a_death_while_commands_are_obeyed_changes_no_outcome(make_world, strategy):
    world = commanded(make_world, strategy)
    gateway = Unsteady(world.gateway)
    before = world.outcome()
    world.run(world.daemon(gateway))
    expected, calls = end(world), gateway.calls
    assert expected["accepted"] != before["accepted"]
    assert {"update_annotation", "delete_annotation"} & set(calls)
    world.close()
    for k, call in enumerate(calls, 1):
        for when in ("before", "after"):
            world = commanded(make_world, strategy)
            gateway = Unsteady(world.gateway)
            gateway.fail(k, when, Crash())
            assert taken_over(world, lambda w=world, g=gateway: w.daemon(g)), k
            assert end(world) == expected, (k, call, when)
            world.close()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_death_at_any_commit_changes_no_outcome(make_world, monkeypatch, strategy, when):
    expected, _ = undisturbed(make_world, strategy)
    for k in count(1):
        world = make_campaign(make_world, strategy)
        with monkeypatch.context() as patch:
            Commits(patch, k, when)
            died = taken_over(world, world.daemon)
        assert end(world) == expected, k
        world.close()
        if not died:
            break
    assert k > 20
