"""Confidence sequences: they hold at all looks together, and neither a growing share nor the hour is a difference."""

import numpy as np
import pytest

from ondol.rollout.sequences import FEWEST, Arms, Moments, Share

ALPHA = 0.05


def test_moments_in_batches_are_those_of_all_values():
    values = np.random.default_rng(0).normal(1e6, 1.0, 1000)
    found = Moments()
    for batch in np.split(values, [3, 3, 500]):
        found.add(Moments.of(batch))
    assert found.n == 1000
    assert found.mean == pytest.approx(values.mean())
    assert found.variance == pytest.approx(values.var(ddof=1))


def test_values_that_are_not_finite_are_left_out():
    assert Moments.of(np.array([1.0, np.nan, 3.0])) == Moments(n=2, mean=2.0, squares=2.0)
    assert Moments.of(np.array([np.nan])) == Moments()


@pytest.mark.parametrize("true", [0.001, 0.3])
def test_a_share_is_within_its_bounds_at_every_look(true):
    missed = 0
    for seed in range(100):
        share, found = Share(), False
        for failed in np.random.default_rng(seed).binomial(1, true, 300):
            share.add(1, int(failed))
            low, high = share.bounds(ALPHA, 0.01)
            found |= not low <= true <= high
        missed += found
    assert missed / 100 <= ALPHA


def test_bounds_of_a_share_are_where_the_mixture_excludes_it():
    """Beta(1/2, 1/2) and 7 of 50: the ratio of mixture and likelihood is 1 / alpha at both bounds."""
    from scipy.special import betaln

    low, high = Share(n=50, sum=7).bounds(ALPHA, 0.5)
    for share in (low, high):
        ratio = betaln(7.5, 43.5) - betaln(0.5, 0.5) - 7 * np.log(share) - 43 * np.log1p(-share)
        assert np.exp(ratio) == pytest.approx(1 / ALPHA)
    assert Share().bounds(ALPHA, 0.5) == (0, 1)
    assert Share(n=50, sum=0).bounds(ALPHA, 0.5).low == 0
    assert Share(n=50, sum=50).bounds(ALPHA, 0.5).high == 1


def test_a_model_that_fails_always_is_found_in_a_few_requests():
    assert Share(n=6, sum=6).bounds(0.005, 0.01).low > 0.01


def test_means_are_within_their_bounds_at_every_look_where_repeated_tests_are_not():
    missed = peeked = 0
    for seed in range(300):
        values = np.random.default_rng(seed).exponential(1.0, 3000) - 1.0
        moments, excluded, z_excluded = Moments(), False, False
        for batch in np.split(values, 60):
            moments.add(Moments.of(batch))
            if bounds := moments.bounds(ALPHA, 500):
                excluded |= not bounds.low <= 0 <= bounds.high
                z_excluded |= abs(moments.mean) > 1.96 * np.sqrt(moments.variance / moments.n)
        missed += excluded
        peeked += z_excluded
    assert missed / 300 <= ALPHA
    assert peeked / 300 > 3 * ALPHA


def draw_arms(seed: int, gain: float = 0.0) -> tuple[Arms, bool]:
    """A canary whose share grows while the values rise by the hour, and whether its bounds excluded `gain`."""
    random, arms, excluded = np.random.default_rng(seed), Arms(), False
    for look in range(60):
        share = (0.05, 0.25, 0.5)[look // 20]
        own = random.random(400) < share
        values = random.normal(look / 10, 1.0, 400) + gain * own
        arms.add(Moments.of(values[~own]), Moments.of(values[own]))
        excluded |= any(not low <= gain <= high for low, high in arms.bounds(ALPHA, 500))
    return arms, excluded


def test_a_difference_is_that_within_looks_whatever_the_shares_and_hours():
    found = [draw_arms(seed) for seed in range(200)]
    assert np.mean([excluded for _, excluded in found]) <= ALPHA
    assert np.mean([arms.challenger.mean - arms.champion.mean for arms, _ in found]) > 0.5  # what a plain mean shows
    assert np.mean([arms.difference for arms, _ in found]) == pytest.approx(0.0, abs=0.01)
    arms, excluded = draw_arms(0, gain=0.3)
    assert not excluded
    assert arms.bounds(ALPHA, 500)[0].low > 0


def test_a_challenger_alone_is_compared_with_the_champion_before():
    random, arms = np.random.default_rng(0), Arms()
    arms.add(Moments.of(random.normal(0, 1, 2000)), Moments())
    assert arms.bounds(ALPHA, 500) == []
    arms.add(Moments(), Moments.of(random.normal(1, 1, 2000)))
    [bounds] = arms.bounds(ALPHA, 500)
    assert 0.7 < bounds.low < 1 < bounds.high < 1.3


def test_a_challenger_alone_is_compared_with_the_last_hour_before():
    random, arms = np.random.default_rng(0), Arms()
    for look in range(24):
        arms.add(Moments.of(random.normal(0 if look < 12 else 5, 1, 200)), Moments())
    arms.add(Moments(), Moments.of(random.normal(5, 1, 2000)))
    [bounds] = arms.bounds(ALPHA, 500)
    assert -0.3 < bounds.low < 0 < bounds.high < 0.3


def test_too_few_values_have_no_bounds():
    arms = Arms()
    arms.add(Moments.of(np.ones(FEWEST)), Moments.of(np.ones(FEWEST - 1)))
    assert arms.bounds(ALPHA, 500) == []
    assert Moments.of(np.ones(FEWEST - 1)).bounds(ALPHA, 500) is None


def test_sums_of_two_records_do_not_share_a_default():
    one, other = Arms(), Arms()
    one.add(Moments.of(np.ones(3)), Moments.of(np.ones(3)))
    assert other == Arms()
    assert Arms.model_validate_json(one.model_dump_json()) == one
