"""The monitor tells what it was told, whether the daemon is ready and why not, in few labels whatever comes."""

from __future__ import annotations

import threading

import pytest
from prometheus_client.parser import text_string_to_metric_families

from propagation.errors import AnswerError, StoreError, Unreachable
from sync.daemon import Step
from sync.monitor import ACTIONS, MOST_NAMES, PATIENCE, Monitor


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def monitor(clock: Clock) -> Monitor:
    return Monitor(every=2.0, clock=clock)


def figures(monitor: Monitor) -> dict[str, float]:
    """Each sample by its name and labels, as Prometheus reads them."""
    read = {}
    for family in text_string_to_metric_families(monitor.metrics().decode()):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            read[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return read


def test_what_passes_did_is_added_up(monitor: Monitor) -> None:
    monitor.passed(Step(questions=20, decisions=1, pages=3, images_written=2, waiting=3, accepted=70), 0.2)
    monitor.passed(Step(questions=5, problems=[AnswerError("x")], waiting=2, accepted=60, finished=True), 40)
    read = figures(monitor)
    assert read["ls_propagate_passes_total"] == 2
    assert read["ls_propagate_questions_answered_total"] == 25
    assert read["ls_propagate_decisions_total"] == 1
    assert read["ls_propagate_pages_posted_total"] == 3
    assert read["ls_propagate_images_written_total"] == 2
    assert read["ls_propagate_answers_left_out_total"] == 1
    assert read["ls_propagate_pages_waiting"] == 2
    assert read["ls_propagate_masks_accepted"] == 60
    assert read["ls_propagate_finished"] == 1
    assert read["ls_propagate_pass_seconds_sum"] == 40.2
    assert read["ls_propagate_pass_seconds_bucket{le=0.25}"] == 1
    assert read["ls_propagate_last_pass_timestamp_seconds"] > 1.7e9


def test_failures_are_counted_by_kind_and_never_quoted(monitor: Monitor) -> None:
    monitor.began()
    for error in (Unreachable("http://token@host"), Unreachable("again"), KeyError("token")):
        monitor.failed(error)
        _, reason = monitor.ready()
        assert "token" not in reason
    read = figures(monitor)
    assert read["ls_propagate_failures_total{kind=Unreachable}"] == 2
    assert read["ls_propagate_failures_total{kind=other}"] == 1
    assert b"token" not in monitor.metrics()


def test_calls_are_measured_by_name(monitor: Monitor) -> None:
    monitor.called("tasks", 0.3, True)
    monitor.called("tasks", 0.3, False)
    read = figures(monitor)
    assert read["ls_propagate_call_seconds_count{name=tasks}"] == 2
    assert read["ls_propagate_call_failures_total{name=tasks}"] == 1


def test_hints_are_counted_by_action(monitor: Monitor) -> None:
    for action in ("ANNOTATION_CREATED", "ANNOTATION_CREATED", "TASKS_DELETED", "other"):
        monitor.hinted(action)
    read = figures(monitor)
    assert read["ls_propagate_hints_total{action=ANNOTATION_CREATED}"] == 2
    assert read["ls_propagate_hints_total{action=TASKS_DELETED}"] == 1


def test_labels_stay_few_whatever_comes(monitor: Monitor) -> None:
    for number in range(5000):
        monitor.hinted(f"ACTION_{number}")
        monitor.called(f"call {number}", 0.1, False)
        monitor.failed(type(f"Error{number}", (Exception,), {})())
    read = figures(monitor)
    assert read["ls_propagate_hints_total{action=other}"] == 5000
    assert read["ls_propagate_failures_total{kind=other}"] == 5000
    assert read["ls_propagate_call_failures_total{name=other}"] == 5000 - MOST_NAMES
    assert len(monitor.metrics()) < 200_000


def test_two_monitors_share_nothing(monitor: Monitor) -> None:
    monitor.passed(Step(), 1)
    assert figures(Monitor())["ls_propagate_passes_total"] == 0


def test_readiness_follows_the_lock_and_the_passes(monitor: Monitor, clock: Clock) -> None:
    assert monitor.ready() == (False, "this daemon has not begun yet")
    monitor.waiting()
    assert monitor.ready() == (False, "another daemon holds the store's lock; this one waits for it")
    assert figures(monitor)["ls_propagate_holds_lock"] == 0
    monitor.began()
    assert monitor.ready() == (False, "no pass has ended well yet")
    assert figures(monitor)["ls_propagate_holds_lock"] == 1
    monitor.passed(Step(), 1)
    clock.now += PATIENCE
    assert monitor.ready() == (True, "the last pass ended well 300 s ago")
    clock.now += 11
    assert monitor.ready() == (False, "no pass has ended well for 311 s")
    monitor.passed(Step(), 1)
    assert monitor.ready()[0]
    monitor.waiting()
    assert not monitor.ready()[0]


def test_a_passing_failure_is_no_alarm_and_a_lasting_one_is_named(monitor: Monitor, clock: Clock) -> None:
    monitor.began()
    monitor.failed(StoreError("x"))
    assert monitor.ready() == (
        False,
        "no pass has ended well yet; the last one failed: The daemon's store cannot be used.",
    )
    monitor.passed(Step(), 1)
    monitor.failed(Unreachable("x"))
    assert monitor.ready()[0]
    clock.now += PATIENCE * 2
    ready, reason = monitor.ready()
    assert not ready
    assert reason.endswith("the last one failed: No answer from the server.")


def test_many_threads_lose_no_count(monitor: Monitor) -> None:
    def tell() -> None:
        for _ in range(200):
            monitor.hinted("TASKS_CREATED")
            monitor.called("tasks", 0.1, True)
            monitor.passed(Step(questions=1), 0.1)
            monitor.metrics()

    threads = [threading.Thread(target=tell) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    read = figures(monitor)
    assert read["ls_propagate_questions_answered_total"] == 800
    assert read["ls_propagate_hints_total{action=TASKS_CREATED}"] == 800
    assert read["ls_propagate_call_seconds_count{name=tasks}"] == 800


def test_the_names_are_as_prometheus_wants_them(monitor: Monitor) -> None:
    for family in text_string_to_metric_families(monitor.metrics().decode()):
        assert family.name.startswith(("ls_propagate_", "process_"))
        assert family.documentation
    assert "other" not in ACTIONS


def test_a_pass_that_takes_long_and_goes_on_leaves_it_ready(monitor: Monitor, clock: Clock) -> None:
    monitor.began()
    monitor.passed(Step(), 0.1)
    for _ in range(5):
        clock.now += PATIENCE
        monitor.alive()
    assert monitor.ready()[0]
    clock.now += 2 * PATIENCE
    assert not monitor.ready()[0]
