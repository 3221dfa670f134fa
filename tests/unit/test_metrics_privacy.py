# SPDX-License-Identifier: Apache-2.0
"""Privacy accounting against closed forms, brute force and mechanisms whose loss is known."""

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from semlink._errors import SemlinkError
from semlink.metrics.privacy import (
    accuracy_ceiling,
    audited_epsilon,
    channel_mu,
    clopper_pearson,
    composed_delta,
    composed_epsilon,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_mu,
)

PHI = NormalDist().cdf
DELTAS = some.floats(-9, -0.1).map(lambda exponent: 10**exponent)


@pytest.mark.parametrize("mu", [0.01, 0.5, 2.0, 7.0])
def test_gaussian_delta_at_epsilon_0_is_the_total_variation_of_two_normals(mu):
    assert gaussian_delta(mu, 0.0) == pytest.approx(2 * PHI(mu / 2) - 1, rel=1e-12)


@settings(deadline=None)
@given(some.floats(-3, 4).map(lambda exponent: 10**exponent), DELTAS)
def test_gaussian_mu_is_the_largest_that_keeps_epsilon_and_delta(epsilon, delta):
    mu = gaussian_mu(epsilon, delta)
    assert gaussian_delta(mu, epsilon) == pytest.approx(delta, rel=1e-6)
    assert gaussian_delta(1.001 * mu, epsilon) > delta
    assert gaussian_epsilon(mu, delta) == pytest.approx(epsilon, rel=1e-5)


def test_analytic_noise_is_less_than_the_classical_and_valid_where_that_is_not():
    """Dwork and Roth, theorem A.1: sensitivity * sqrt(2 ln(1.25 / delta)) / epsilon, for epsilon below 1."""
    for epsilon, delta in [(0.1, 1e-5), (0.5, 1e-8), (0.99, 1e-3)]:
        classical = math.sqrt(2 * math.log(1.25 / delta)) / epsilon
        assert 0.5 * classical < 1 / gaussian_mu(epsilon, delta) < classical
    classical = math.sqrt(2 * math.log(1.25 / 0.1)) / 100
    assert gaussian_delta(1 / classical, 100.0) > 0.1 > 0.99 * gaussian_delta(gaussian_mu(100.0, 0.1), 100.0)


def test_a_gaussian_so_private_that_delta_alone_pays_has_epsilon_0():
    assert gaussian_epsilon(0.01, 0.1) == 0
    assert gaussian_epsilon(0.01, 1e-3) > 0


def test_the_channel_alone_protects_nothing_at_12_db():
    """128 features of unit mean square lie at most 2 sqrt(128) apart; each gets noise of variance 10^-1.2."""
    mu = channel_mu(2 * math.sqrt(128), 12.0)
    assert mu == pytest.approx(2 * math.sqrt(128) / math.sqrt(10**-1.2), rel=1e-12)
    assert mu == pytest.approx(90, abs=0.2)
    assert gaussian_epsilon(mu, 1e-5) > mu**2 / 2
    assert channel_mu(1.0, 0.0) == 1
    assert channel_mu(1.0, -20.0) == pytest.approx(0.1)


def worst_delta(epsilon, releases, total):
    """Sum over every sequence of answers of ``releases`` randomised responses."""
    truth = math.exp(epsilon) / (1 + math.exp(epsilon))
    excess = 0.0
    for answers in itertools.product([0, 1], repeat=releases):
        one = math.prod(truth if a else 1 - truth for a in answers)
        other = math.prod(1 - truth if a else truth for a in answers)
        excess += max(0.0, one - math.exp(total) * other)
    return excess


@pytest.mark.parametrize(("epsilon", "releases"), [(0.3, 1), (1.0, 5), (0.05, 9), (3.0, 4)])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_composition_is_that_of_randomised_responses(epsilon, releases, share):
    total = share * epsilon * releases
    expected = worst_delta(epsilon, releases, total)
    assert composed_delta(epsilon, releases, total) == pytest.approx(expected, rel=1e-9, abs=1e-13)


@settings(deadline=None, max_examples=50)
@given(some.floats(0.01, 3), some.integers(1, 2000), DELTAS)
def test_composed_epsilon_has_its_delta_and_beats_the_theorems_that_came_before(epsilon, releases, delta):
    total, basic = composed_epsilon(epsilon, releases, delta), releases * epsilon
    assert 0 <= total < basic
    assert composed_delta(epsilon, releases, total) <= delta * (1 + 1e-6)
    if total:
        assert composed_delta(epsilon, releases, total * (1 - 1e-6)) > delta * (1 - 1e-9)
    # Dwork, Rothblum and Vadhan (FOCS 2010), theorem III.3
    advanced = math.sqrt(2 * releases * math.log(1 / delta)) * epsilon + releases * epsilon * math.expm1(epsilon)
    assert total <= advanced


def test_many_small_budgets_compose_to_far_less_than_their_sum():
    assert composed_epsilon(0.05, 128, 1e-5) < 0.4 * 128 * 0.05
    assert composed_epsilon(0.9, 1, 1e-5) == pytest.approx(0.9, rel=1e-4)


def test_ceilings_of_the_published_budgets():
    percent = [round(100 * accuracy_ceiling(epsilon, 10), 2) for epsilon in (0.05, 0.1, 0.9, 5.0)]
    assert percent == [10.46, 10.94, 21.46, 94.28]
    percent = [round(100 * accuracy_ceiling(epsilon, 2), 1) for epsilon in (0.05, 0.1, 0.9, 5.0)]
    assert percent == [51.2, 52.5, 71.1, 99.3]
    assert accuracy_ceiling(0.0, 7) == pytest.approx(1 / 7)
    assert accuracy_ceiling(1e6, 10) == 1


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("delta", [0.0, 0.01, 0.3])
def test_the_ceiling_is_reached_by_saying_the_truth_now_and_then_and_else_answering_at_random(classes, delta):
    """With probability delta the truth, else randomised response over K classes: (epsilon, delta)-DP by design."""
    epsilon = 1.3
    truth = math.exp(epsilon) / (math.exp(epsilon) + classes - 1)
    lie = (1 - truth) / (classes - 1)
    response = (1 - delta) * (np.full((classes, classes), lie) + (truth - lie) * np.eye(classes)) + delta * np.eye(
        classes
    )
    excess = np.maximum(0, response[0] - math.exp(epsilon) * response[1]).sum()
    assert excess == pytest.approx(delta, abs=1e-12)
    assert accuracy_ceiling(epsilon, classes, delta) == pytest.approx(response.diagonal().mean(), rel=1e-12)


def test_clopper_pearson_ends_are_where_the_tails_are():
    tail = 0.025
    low, high = clopper_pearson(3, 20)
    at_least = sum(math.comb(20, k) * low**k * (1 - low) ** (20 - k) for k in range(3, 21))
    at_most = sum(math.comb(20, k) * high**k * (1 - high) ** (20 - k) for k in range(4))
    assert (at_least, at_most) == (pytest.approx(tail), pytest.approx(tail))
    assert clopper_pearson(0, 20) == (0, pytest.approx(1 - tail ** (1 / 20)))
    assert clopper_pearson(20, 20) == (pytest.approx(tail ** (1 / 20)), 1)
    assert clopper_pearson(20, 20, 0.5)[0] > clopper_pearson(20, 20)[0]


def test_an_audit_uses_the_pessimistic_end_of_either_share():
    least, most = clopper_pearson(80, 100)[0], clopper_pearson(20, 100)[1]
    assert audited_epsilon(80, 100, 20, 100) == pytest.approx(math.log(least / most))
    assert audited_epsilon(80, 100, 20, 100, delta=0.1) == pytest.approx(math.log((least - 0.1) / most))
    assert audited_epsilon(80, 100, 20, 100, level=0.5) > audited_epsilon(80, 100, 20, 100)
    assert audited_epsilon(800, 1000, 20, 100) > audited_epsilon(80, 100, 20, 100)
    assert audited_epsilon(80, 100, 200, 1000) > audited_epsilon(80, 100, 20, 100)


def test_an_audit_that_sees_nothing_bounds_nothing():
    assert audited_epsilon(50, 100, 50, 100) == 0
    assert audited_epsilon(20, 100, 80, 100) == 0
    assert audited_epsilon(100, 100, 0, 100, delta=0.99) == 0


def test_the_complement_of_an_event_counts_as_well():
    """Of 100 outputs of either input, 100 and 60 in the event are weak evidence; 0 and 40 outside it are strong."""
    least, most = clopper_pearson(100, 100)[0], clopper_pearson(60, 100)[1]
    assert audited_epsilon(100, 100, 60, 100) == pytest.approx(math.log((1 - most) / (1 - least)))
    assert audited_epsilon(100, 100, 60, 100) > math.log(least / most)


def test_an_audit_refutes_a_true_claim_as_rarely_as_its_level_says():
    """Randomised response meets its epsilon exactly, so every bound above it is an error: 5 % of audits at most."""
    epsilon, trials, audits = 1.0, 400, 4000
    truth = math.exp(epsilon) / (1 + math.exp(epsilon))
    rng = np.random.default_rng(0)
    hits, false_hits = rng.binomial(trials, truth, audits), rng.binomial(trials, 1 - truth, audits)
    bounds = np.array([audited_epsilon(int(a), trials, int(b), trials) for a, b in zip(hits, false_hits, strict=True)])
    assert (bounds > epsilon).mean() <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / audits)
    assert (bounds > 0.7 * epsilon).mean() > 0.5
    assert (bounds > epsilon / 2).mean() > 0.99, "half of the claim is refuted nearly always"


@pytest.mark.parametrize("bad", [0, -1.0, math.nan, math.inf, True, "1"])
def test_budgets_are_positive_numbers(bad):
    for call in (
        lambda: gaussian_mu(bad, 1e-5),
        lambda: composed_epsilon(bad, 3, 1e-5),
        lambda: gaussian_epsilon(bad, 1e-5),
        lambda: channel_mu(bad, 12.0),
    ):
        with pytest.raises(SemlinkError, match="a finite number above 0 is expected"):
            call()


@pytest.mark.parametrize("bad", [0, 1, -0.1, math.nan, True, "0.1"])
def test_deltas_and_levels_are_probabilities(bad):
    for call in (
        lambda: gaussian_mu(1.0, bad),
        lambda: gaussian_epsilon(1.0, bad),
        lambda: composed_epsilon(1.0, 3, bad),
        lambda: clopper_pearson(1, 2, bad),
    ):
        with pytest.raises(SemlinkError, match="a number between 0 and 1 is expected"):
            call()


@pytest.mark.parametrize("bad", [0, -3, 1.5, True])
def test_counts_are_whole(bad):
    for call in (
        lambda: composed_epsilon(1.0, bad, 0.1),
        lambda: composed_delta(1.0, bad, 0.1),
        lambda: accuracy_ceiling(1.0, bad),
        lambda: clopper_pearson(0, bad),
    ):
        with pytest.raises(SemlinkError, match="a whole number of at least 1 is expected"):
            call()


def test_other_nonsense_is_refused_in_one_line():
    for call, said in [
        (lambda: accuracy_ceiling(-0.1, 10), "epsilon is -0.1: .* at least 0"),
        (lambda: accuracy_ceiling(math.nan, 10), "epsilon is nan"),
        (lambda: accuracy_ceiling(1.0, 1), "classes is 1: at least 2"),
        (lambda: accuracy_ceiling(1.0, 10, 2.0), "delta is 2.0"),
        (lambda: gaussian_delta(1.0, -1.0), "epsilon is -1.0"),
        (lambda: composed_delta(1.0, 3, -1.0), "total is -1.0"),
        (lambda: clopper_pearson(21, 20), "21 successes in 20 trials: from 0 to 20"),
        (lambda: audited_epsilon(1, 2, -1, 2), "-1 successes"),
    ]:
        with pytest.raises(SemlinkError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)
