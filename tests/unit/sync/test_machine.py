"""The daemon, its server, annotators and people in any order, found by chance; what must hold always holds."""

import types
from contextlib import suppress
from dataclasses import asdict

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from plugin.label_studio.clusters import COMMANDS
from propagation.errors import StoreError, Unreachable
from propagation.events import Commanded
from sync.store import Hint, Store
from tests.faults.invariants import check
from tests.faults.worlds import SOAK, STRATEGIES, Unsteady, make_campaign, scene, without_waiting_for_models

CHANCE = "by chance"
CHOICE = st.integers(0, 1000)  # of what there is, by its place
WHEN = st.sampled_from(["before", "midway", "after", "twice"])


def drawn(place):
    points = [[10, 10], [20, 10], [20, 20 + place % 50]]
    return [
        {
            "id": "mine",
            "from_name": "polygon",
            "to_name": "image",
            "type": "polygonlabels",
            "original_width": 32,
            "original_height": 32,
            "value": {"points": points, "polygonlabels": ["x"]},
        }
    ]


class Machine(RuleBasedStateMachine):
    """One campaign; each rule is something that one of those involved may do at any time."""

    def __init__(self, make_world, strategy, monkeypatch):
        super().__init__()
        self.world = make_campaign(make_world, strategy)
        self.world.board = self.world.gateway.create_project("board", "<View/>", "", {}).id
        self.gateway = Unsteady(self.world.gateway)
        self.theirs = {}
        self.overtaken = False
        clock = types.SimpleNamespace(monotonic=lambda: self.world.gateway._now.timestamp())
        monkeypatch.setattr("sync.changes.time", clock)
        monkeypatch.setattr("sync.daemon.time", clock)
        self.daemon = self.world.daemon(self.gateway)
        self.looking = Store(self.world.url)

    # the daemon

    @rule()
    def the_daemon_works(self):
        try:
            self.daemon.step()
        except Unreachable as error:
            assert str(error) == CHANCE  # noqa: PT017
        except StoreError:
            assert self.overtaken
            self.the_daemon_dies()

    @rule()
    def the_daemon_dies(self):
        self.daemon.store.close()
        self.daemon = self.world.daemon(self.gateway)
        self.overtaken = False

    @rule(times=st.integers(1, 3))
    def another_daemon_works_too(self, times):
        events = len(self.looking.events())
        other = self.world.daemon(self.gateway)
        for _ in range(times):
            with suppress(Unreachable):
                other.step()
        other.store.close()
        self.overtaken |= len(self.looking.events()) > events

    # the server and the network

    @rule(call=st.integers(1, 12), when=WHEN)
    def a_call_will_fail(self, call, when):
        self.gateway.fail(call, when, Unreachable(CHANCE))

    @rule(seconds=st.sampled_from([0.5, 5.0, 12.0, 40.0, 300.0, 2000.0]))
    def time_passes(self, seconds):
        self.gateway.elapse(seconds)

    # annotators

    @rule(choice=CHOICE, honest=st.booleans(), late=st.booleans())
    def an_annotator_answers(self, choice, honest, late):
        waiting = [page for page in self.world.pages() if not page["annotations"]]
        if waiting:
            page = waiting[choice % len(waiting)]
            if late:
                self.gateway.hide(page["id"])
            self.world.gateway.submit(page["id"], self._marks(page, choice, honest))

    def _marks(self, page, choice, honest):
        crops = [crop["alias"] for crop in page["data"]["crops"]]
        return self.world.marks(page) if honest else self.world.marking(crops[: choice % (len(crops) + 1)])

    @rule(choice=CHOICE)
    def an_annotator_skips(self, choice):
        waiting = [page for page in self.world.pages() if not page["annotations"]]
        if waiting:
            self.world.gateway.skip(waiting[choice % len(waiting)]["id"])

    def _answered(self, choice):
        answers = [(page, answer) for page in self.world.pages() for answer in page["annotations"]]
        return answers[choice % len(answers)] if answers else (None, None)

    @rule(choice=CHOICE, honest=st.booleans(), late=st.booleans())
    def an_annotator_changes_an_answer(self, choice, honest, late):
        page, answer = self._answered(choice)
        if answer and not answer["was_cancelled"]:
            if late:
                self.gateway.hide(page["id"])
            self.world.gateway.edit(answer["id"], self._marks(page, choice, honest))

    @rule(choice=CHOICE)
    def an_annotator_deletes_an_answer(self, choice):
        _, answer = self._answered(choice)
        if answer:
            self.world.gateway.delete(answer["id"])

    @rule(choice=CHOICE)
    def a_second_annotator_answers_too(self, choice):
        page, answer = self._answered(choice)
        if answer:
            self.world.gateway.submit(page["id"], self._marks(page, choice, honest=False), by=3)

    @rule(choice=CHOICE)
    def somebody_deletes_a_page_that_waits(self, choice):
        waiting = [page for page in self.world.pages() if not page["annotations"]]
        if waiting:
            self.world.gateway.delete_tasks(self.world.verify.pages, [waiting[choice % len(waiting)]["id"]])

    @rule()
    def a_webhook_tells(self):
        self.looking.notice(Hint("TASKS_DELETED", self.world.verify.pages))

    # people in the source project

    @precondition(lambda self: len(self.theirs) < 2)
    @rule(choice=CHOICE)
    def a_person_annotates_an_image(self, choice):
        tasks = list(self.world.annotations())
        result = drawn(choice)
        self.theirs[self.world.gateway.submit(tasks[choice % len(tasks)], result)] = result

    @precondition(lambda self: len(self.theirs) < 2)
    @rule(choice=CHOICE)
    def a_person_edits_what_was_written(self, choice):
        made = [a for made in self.world.annotations().values() for a in made if a["parent_prediction"]]
        if made:
            result = drawn(choice)
            number = made[choice % len(made)]["id"]
            self.world.gateway.edit(number, result)
            self.theirs[number] = result

    # managers

    def _cards(self):
        return list(self.world.gateway.tasks(self.world.board, ["data", "annotations", "result"]))

    @rule(choice=CHOICE, title=st.sampled_from(list(COMMANDS)))
    def a_manager_gives_a_command(self, choice, title):
        cards = self._cards()
        if cards:
            card = cards[choice % len(cards)]
            said = [{"from_name": "command", "to_name": "sheet", "type": "choices", "value": {"choices": [title]}}]
            if card["annotations"]:
                self.world.gateway.edit(card["annotations"][0]["id"], said, by=4)
            else:
                self.world.gateway.submit(card["id"], said, by=4)

    @rule(choice=CHOICE)
    def a_manager_deletes_a_command(self, choice):
        said = [annotation for card in self._cards() for annotation in card["annotations"]]
        if said:
            self.world.gateway.delete(said[choice % len(said)]["id"], by=4)

    @rule(choice=CHOICE, command=st.sampled_from(list(COMMANDS.values())))
    def a_command_is_put_into_the_inbox(self, choice, command):
        tree = self.world.trees[choice % 2]
        cluster = f"{tree.category}/{len(tree) + choice % (len(tree) - 1)}"
        said = Commanded(cluster, command, "somebody", "now", f"terminal/{choice}/{command}")
        self.looking.notice(Hint("COMMANDS", None, commands=(asdict(said),)))

    # what holds

    @invariant()
    def nothing_is_twice_half_or_taken_from_a_person(self):
        check(scene(self.world, self.looking), settled=False, theirs=self.theirs)

    def teardown(self):
        try:
            self.gateway.calm()
            self.the_daemon_dies()
            self.world.run(self.daemon)
            for _ in range(2):
                assert self.daemon.step().finished
            check(scene(self.world, self.looking), theirs=self.theirs, doubled=True)
        finally:
            self.looking.close()
            self.world.close()


@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_whatever_happens_nothing_is_asked_twice_lost_or_written_twice(make_world, monkeypatch, strategy):
    without_waiting_for_models(monkeypatch)
    size = settings(
        max_examples=1000 if SOAK else 30,
        stateful_step_count=80 if SOAK else 40,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(lambda: Machine(make_world, strategy, monkeypatch), settings=size)
