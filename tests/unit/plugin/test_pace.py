"""How much is sent to a server in one call, and when it is left alone: against simulated servers and clocks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from plugin.label_studio.pace import FIRST, LONGEST, MOST, SHARE, STALE, TARGET, Pace


class Clock:
    """A time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.rests: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.rests.append(seconds)
        self.now += seconds


def settled(made: list[tuple[int, float]]) -> float:
    """The size of the latest calls, but for the few that are of another size."""
    return float(np.median([items for items, _ in made[-10:]]))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pace(clock: Clock) -> Pace:
    return Pace(clock, clock.sleep)


def send(pace: Pace, seconds: Callable[[int], float], calls: int = 40) -> list[tuple[int, float]]:
    """Items and seconds of some calls, each as large as the pace asks for."""
    made = []
    for _ in range(calls):
        items = pace.size("tasks")
        made.append((items, seconds(items)))
        pace.took("tasks", *made[-1])
    return made


def test_a_first_call_is_small(pace: Pace) -> None:
    assert pace.size("tasks") == FIRST
    assert pace.size("patches", 5) == 5


@pytest.mark.parametrize("each", [0.001, 0.002, 0.004, 0.02, 0.1])
@pytest.mark.parametrize("fixed", [0.0, 0.02, 0.1])
def test_calls_come_to_last_eight_tenths_of_a_second(pace: Pace, fixed: float, each: float) -> None:
    made = send(pace, lambda items: fixed + each * items)
    lasting = np.array([seconds for _, seconds in made[-10:]])  # some calls are of another size, to learn
    assert np.all(lasting < 1.6 * TARGET)
    assert np.median(lasting) == pytest.approx(TARGET, rel=0.15)


def test_calls_that_vary_stay_near_it(pace: Pace) -> None:
    random = np.random.default_rng(0)
    made = send(pace, lambda items: (0.05 + 0.003 * items) * random.lognormal(0, 0.1), calls=200)
    lasting = np.array([seconds for _, seconds in made[20:]])
    assert np.median(lasting) == pytest.approx(TARGET, rel=0.2)
    assert np.quantile(lasting, 0.95) < 2 * TARGET


def test_calls_never_grow_beyond_the_most(pace: Pace) -> None:
    assert max(items for items, _ in send(pace, lambda items: 1e-6 * items)) == MOST == 1000


def test_calls_that_take_no_time_at_all_are_no_trouble(pace: Pace) -> None:
    assert settled(send(pace, lambda items: 0.0)) == MOST


def test_calls_grow_step_by_step(pace: Pace) -> None:
    sizes = [5]
    for _ in range(12):
        pace.took("patches", sizes[-1], 1e-4)
        sizes.append(pace.size("patches", 5))
    largest = np.maximum.accumulate(sizes)
    assert np.all(largest[1:] <= 4 * largest[:-1])
    assert largest[-1] == MOST


def test_calls_shrink_where_the_server_slows_and_grow_where_it_recovers(pace: Pace) -> None:
    quick = settled(send(pace, lambda items: 0.02 + 0.001 * items))
    slow = send(pace, lambda items: 0.02 + 0.01 * items, calls=30)
    assert settled(slow) < quick / 5
    assert all(seconds < 1.6 * TARGET for _, seconds in slow[15:])
    assert settled(send(pace, lambda items: 0.02 + 0.001 * items)) > 0.7 * quick


def test_one_stalled_call_does_not_make_the_next_ones_tiny(pace: Pace) -> None:
    usual = settled(send(pace, lambda items: 0.02 + 0.002 * items))
    pace.took("tasks", int(usual), 30.0)
    assert settled(send(pace, lambda items: 0.02 + 0.002 * items, calls=4)) > usual / 3


def test_a_server_that_does_one_item_in_all_that_time_gets_one(pace: Pace) -> None:
    assert send(pace, lambda items: 5.0 * items)[-1][0] == 1


def test_a_server_that_recounts_the_project_each_time_gets_larger_calls(pace: Pace) -> None:
    made = send(pace, lambda items: 1.0 + 0.01 * items)
    assert settled(made) > 100  # for 0.8 s there is no size at all
    assert all(seconds < 1.5 * (1 + SHARE) for _, seconds in made)


def test_where_others_are_served_slowly_calls_are_short_whatever_that_costs(pace: Pace) -> None:
    settled_alone = settled(send(pace, lambda items: 1.0 + 0.01 * items))
    for seconds in (0.02, 0.5, 0.5, 0.5):
        pace.felt("user", seconds)
    made = send(pace, lambda items: 1.0 + 0.01 * items)
    assert settled(made) < settled_alone / 2
    assert np.median([seconds for _, seconds in made[-10:]]) == pytest.approx(2.0, rel=0.1)


def test_kinds_of_calls_are_told_apart(pace: Pace) -> None:
    send(pace, lambda items: 0.1 * items)
    assert pace.size("tasks") < 20
    assert pace.size("predictions") == FIRST


def test_what_was_too_large_is_not_sent_again(pace: Pace) -> None:
    pace.refused("tasks", FIRST)
    assert pace.size("tasks") == FIRST // 2
    assert max(items for items, _ in send(pace, lambda items: 1e-6 * items)) == FIRST // 2
    for _ in range(10):
        pace.refused("tasks", pace.size("tasks"))
    assert pace.size("tasks") == 1


def test_an_idle_server_is_not_left_alone(pace: Pace, clock: Clock) -> None:
    pace.took("tasks", 100, 3.0)
    pace.rest()
    for seconds in (0.02, 0.03, 0.05, 0.1, 0.15):
        pace.felt("user", seconds)
        pace.rest()
    assert clock.rests == []


def test_a_slow_bulk_call_alone_is_no_reason_to_rest(pace: Pace, clock: Clock) -> None:
    pace.felt("user", 0.02)
    for _ in range(5):
        pace.took("tasks", 100, 60.0)
        pace.rest()
    assert clock.rests == []


def test_a_server_whose_quick_calls_are_slow_is_left_alone(pace: Pace, clock: Clock) -> None:
    pace.felt("user", 0.1)
    pace.took("tasks", 100, 0.8)
    for _ in range(3):
        pace.felt("user", 0.6)
    pace.rest()
    (rest,) = clock.rests
    assert 0.8 <= rest <= LONGEST
    pace.took("tasks", 100, 600.0)
    pace.rest()
    assert clock.rests[1] == LONGEST


def test_one_slow_call_among_quick_ones_is_no_reason_to_rest(pace: Pace, clock: Clock) -> None:
    pace.took("tasks", 100, 0.8)
    for seconds in (0.02, 0.02, 2.0, 0.02):
        pace.felt("user", seconds)
        pace.rest()
    assert clock.rests == []


def test_the_rests_end_where_the_server_recovers(pace: Pace, clock: Clock) -> None:
    pace.took("tasks", 100, 0.8)
    for seconds in (0.05, 1.0, 1.0, 1.0, 0.05, 0.05):
        pace.felt("user", seconds)
    pace.rest()
    assert clock.rests == []


def test_calls_that_are_always_slow_are_no_reason_to_rest(pace: Pace, clock: Clock) -> None:
    pace.took("tasks", 100, 0.8)
    for _ in range(20):
        pace.felt("unannotated", 2.0)
        pace.felt("user", 0.02)
        pace.rest()
    assert clock.rests == []


def test_the_best_time_is_forgotten_as_a_project_grows(pace: Pace, clock: Clock) -> None:
    pace.took("tasks", 100, 0.8)
    for seconds in np.linspace(0.2, 1.0, 6000):
        pace.felt("unannotated", float(seconds))
        pace.rest()
    assert clock.rests == []


def test_a_server_not_felt_for_a_while_is_to_be_felt_again(pace: Pace, clock: Clock) -> None:
    assert pace.numb
    pace.felt("user", 0.02)
    assert not pace.numb
    clock.now += STALE + 1
    assert pace.numb
