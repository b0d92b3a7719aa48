"""Annotators who err: what their rates make of a bound, and what gold answers say of the rates."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from propagation.annotators import PERFECT, Gold, Rates, quantile
from propagation.certificate import Certificate


def least_no(rates, wrong, size):
    return int(rates.least_no(np.array([wrong]), np.array([size]))[0])


# rates


@given(wrong=st.integers(0, 200), size=st.integers(0, 200))
def test_annotators_who_never_err_answer_no_on_every_wrong_mask(wrong, size):
    assert least_no(PERFECT, wrong, size) == wrong
    assert PERFECT.answered_no(np.array([0.3])).tolist() == [0.3]


@pytest.mark.parametrize("wrong", [0, 1, 15, 150, 1000])
@pytest.mark.parametrize(("miss", "false_alarm"), [(0.05, 0.0), (0.05, 0.03), (0.3, 0.1), (0.0, 0.05)])
def test_fewer_no_than_the_least_come_with_no_more_than_the_chance_of_doubt(wrong, miss, false_alarm):
    rng = np.random.default_rng([wrong, 21])
    no = rng.binomial(wrong, 1 - miss, 100_000) + rng.binomial(1000 - wrong, false_alarm, 100_000)
    for doubt in (0.2, 0.02):
        limit = least_no(Rates(miss, false_alarm, doubt), wrong, 1000)
        assert (no < limit).mean() <= doubt
        # and it isn't needlessly low: twice the doubt's worth of deviations
        assert limit >= no.mean() - 2 * 2.6 * no.std() - 2


@settings(max_examples=100)
@given(
    wrong=st.integers(0, 300),
    more=st.integers(0, 100),
    miss=st.floats(0.0, 0.4),
    false_alarm=st.floats(0.0, 0.4),
    doubt=st.floats(0.0001, 0.3),
)
def test_worse_annotators_bring_fewer_sure_no(wrong, more, miss, false_alarm, doubt):
    rates = Rates(miss, false_alarm, doubt)
    here = least_no(rates, wrong, 400)
    assert least_no(Rates(min(miss + 0.1, 1), false_alarm, doubt), wrong, 400) <= here
    assert least_no(Rates(miss, false_alarm + 0.1, doubt), wrong, 400) >= here
    assert least_no(Rates(miss, false_alarm, doubt / 2), wrong, 400) <= here
    assert 0 <= here <= 400
    # but for what one draw in the quantiles may differ by
    assert least_no(Rates(miss, 0.0, doubt), wrong + more, 400) >= least_no(Rates(miss, 0.0, doubt), wrong, 400)


def test_with_no_chance_left_to_the_errors_nothing_is_sure():
    assert least_no(Rates(0.05, 0.0, 0.0), 100, 400) == 0


def test_the_expected_share_of_no_has_both_errors_in_it():
    assert Rates(0.1, 0.2).answered_no(np.array([0.0, 0.5, 1.0])).tolist() == pytest.approx([0.2, 0.55, 0.9])


@settings(max_examples=300, deadline=None)
@given(
    trials=st.integers(0, 5000),
    rate=st.one_of(st.sampled_from([0.0, 1.0]), st.floats(1e-6, 1 - 1e-6)),
    chance=st.floats(1e-6, 1 - 1e-6),
)
def test_quantiles_are_the_least_numbers_that_are_likely_enough(trials, rate, chance):
    found = int(quantile(chance, np.array([trials]), rate)[0])
    assert 0 <= found <= trials
    # whoever sums up otherwise may be off by a rounding error
    assert binom.cdf(found, trials, rate) >= chance - 1e-9
    assert found == 0 or binom.cdf(found - 1, trials, rate) < chance + 1e-9


@settings(max_examples=100, deadline=None)
@given(miss=st.floats(0.001, 0.6), doubt=st.floats(0.0001, 0.3), no=st.integers(0, 300))
def test_masks_that_may_have_been_missed_are_those_of_the_most_wrong_masks_that_bring_so_few_no(miss, doubt, no):
    most = no
    while binom.ppf(doubt / 4, most + 1, 1 - miss) <= no:
        most += 1
    assert Rates(miss, 0.0, doubt).missed(no) == binom.ppf(1 - doubt / 4, most, miss)


# gold


def test_gold_answers_add_up():
    assert Gold(1, 2, 3, 4) + Gold(10, 20, 30, 40) == Gold(11, 22, 33, 44)


def test_without_gold_anything_may_be_missed_and_nothing_is_certified():
    rates = Gold().rates(0.01, 0.005)
    assert rates.miss == 1
    assert rates.false_alarm == 0
    made = Certificate(np.ones(300, np.uint16), np.zeros(300, bool), np.array([0.05]), 0.85, 0.05, (1,))
    rows = made.draw(1, 200)
    made.issue(rows)
    made.answer(rows, np.ones(200, dtype=bool))
    assert made.proven(rates) == 0
    assert made.bad_from(rates).tolist() == [0]
    assert made.bound(1, rates) == 0
    assert made.proven() == 1


@pytest.mark.parametrize("gold", [Gold(20, 20, 20, 20), Gold(20, 0, 20, 20), Gold(5, 5, 0, 0), Gold(0, 0, 5, 5)])
def test_annotators_who_answer_by_chance_or_worse_tell_nothing(gold):
    rates = gold.rates(0.01, 0.005)
    assert rates.false_alarm <= 1 - rates.miss


@settings(max_examples=100, deadline=None)
@given(shown=st.integers(1, 300), data=st.data(), alpha=st.sampled_from([0.1, 0.01]))
def test_the_bounds_lie_beyond_what_was_seen_and_follow_it(shown, data, alpha):
    errors = data.draw(st.integers(0, shown))
    rates = Gold(shown, errors, shown, errors).rates(alpha, 0.001)
    assert rates.miss >= errors / shown
    assert rates.false_alarm <= errors / shown
    if errors:
        fewer = Gold(shown, errors - 1, shown, errors - 1).rates(alpha, 0.001)
        assert fewer.miss <= rates.miss
    stricter = Gold(shown, errors, shown, errors).rates(alpha / 10, 0.001)
    assert stricter.miss >= rates.miss
    assert stricter.false_alarm <= rates.false_alarm
    # more of the same answers are a surer word
    twice = Gold(2 * shown, 2 * errors, 2 * shown, 2 * errors).rates(alpha, 0.001)
    assert twice.miss <= rates.miss + 1e-9


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.4])
def test_the_true_rates_lie_within_their_bounds_at_all_times_at_once(rate):
    """Of 600 runs of 200 gold answers, at most 5 % at an error of 5 % each: found 0.8 to 2.7 %."""
    alpha, shown, runs = 0.1, 200, 600
    errors = np.cumsum(np.random.default_rng(int(100 * rate)).random((runs, shown)) < rate, axis=1)
    lowest = np.array([_missed_least(many, rate, alpha) for many in range(1, shown + 1)])
    highest = np.array([_marked_most(many, rate, alpha) for many in range(1, shown + 1)])
    assert (errors < lowest).any(axis=1).mean() <= alpha / 2
    assert (errors > highest).any(axis=1).mean() <= alpha / 2
    # and the bounds say something by the end
    assert highest[-1] < shown
    assert Gold(shown, round(rate * shown), 0, 0).rates(alpha, 0.1).miss < rate + 0.15


def _missed_least(shown, rate, alpha):
    """The fewest misses at which the bound of the miss rate is no less than ``rate``: it grows with them."""
    return _first(lambda errors: Gold(shown, errors, 0, 0).rates(alpha, 0.1).miss >= rate, shown)


def _marked_most(shown, rate, alpha):
    """The most false alarms at which their bound is no more than ``rate``."""
    gold = Gold(10_000, 0, shown, 0)
    return _first(lambda errors: (gold + Gold(0, 0, 0, errors)).rates(alpha, 0.1).false_alarm > rate, shown) - 1


def _first(holds, most):
    """The first number from 0 on of which something holds that holds from then on; most + 1 for none."""
    low, high = -1, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def test_many_good_gold_answers_bring_a_small_bound():
    rates = Gold(200, 6, 200, 20).rates(0.01, 0.005)
    assert 0.03 < rates.miss < 0.12
    assert 0.02 < rates.false_alarm < 0.1
    assert rates.doubt == 0.005


def test_more_gold_never_wears_the_bound_out():
    """With a steady share of errors the bound falls with every batch of answers."""
    bounds = [Gold(20 * many, many, 0, 0).rates(0.01, 0.005).miss for many in range(1, 30)]
    assert all(later <= earlier for earlier, later in itertools.pairwise(bounds))
