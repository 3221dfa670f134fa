# SPDX-License-Identifier: Apache-2.0
"""Intervals and accuracies against scipy and scikit-learn."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy import stats
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from semlink.metrics import (
    Interval,
    accuracy,
    attribute_accuracy,
    attribute_balanced_accuracy,
    balanced_accuracy,
    bootstrap_interval,
    correct,
    correct_attributes,
    holm,
    mean_interval,
    paired_difference,
    seed_difference,
    seed_interval,
    unpaired_difference,
)
from semlink.metrics.statistics import t_quantile


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=200, deadline=None)
@given(some.floats(0.5, 0.9995), some.one_of(some.floats(1, 1e6), some.just(np.inf)))
def test_t_quantile_is_that_of_scipy(probability: float, freedom: float):
    assert t_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), rel=1e-7, abs=1e-9)


@pytest.mark.parametrize(("n", "level"), [(2, 0.95), (5, 0.9), (30, 0.99), (10_000, 0.95)])
def test_mean_interval_is_that_of_scipy(n: int, level: float):
    values = torch.randn(3, n, generator=seeded())
    images = values.double().mean(0).numpy()
    low, high = stats.t.interval(level, n - 1, images.mean(), stats.sem(images))
    interval = mean_interval(values, level)
    np.testing.assert_allclose([interval.low, interval.high], [low, high], rtol=1e-6)


def check(interval: Interval, expected, level: float = 0.95) -> None:
    """Hold an interval and its p-value to the result of one of scipy's t tests."""
    np.testing.assert_allclose([interval.low, interval.high], expected.confidence_interval(level), rtol=1e-9)
    assert interval.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    assert interval.level == level


@pytest.mark.parametrize(("shift", "level"), [(0.0, 0.95), (0.5, 0.9), (20.0, 0.95)])
def test_paired_difference_is_the_paired_t_test(shift: float, level: float):
    a, b = torch.randn(2, 3, 40, generator=seeded(), dtype=torch.float64)
    expected = stats.ttest_rel(a.mean(0).numpy() + shift, b.mean(0).numpy())
    check(paired_difference(a + shift, b, level), expected, level)


@pytest.mark.parametrize("seeds", [2, 3, 10])
def test_seeds_have_the_t_tests_of_scipy(seeds: int):
    a, b = torch.randn(2, seeds, generator=seeded(seeds), dtype=torch.float64)
    alone, expected = seed_interval(a), stats.ttest_1samp(a.numpy(), 0).confidence_interval(0.95)
    np.testing.assert_allclose([alone.low, alone.high], expected, rtol=1e-9)
    check(seed_difference(a + 1, b, paired=True), stats.ttest_rel(a.numpy() + 1, b.numpy()))
    longer = torch.cat([b, 4 * a])
    check(seed_difference(a, longer, paired=False), stats.ttest_ind(a.numpy(), longer.numpy(), equal_var=False))


@pytest.mark.parametrize("levels", [(0.95, 0.95), (0.5, 0.95), (0.99, 0.8)])
def test_the_difference_of_two_t_intervals_is_welch_s(levels: tuple[float, float]):
    g = seeded()
    a, b = 3 * torch.randn(12, generator=g, dtype=torch.float64) + 1, torch.randn(50, generator=g, dtype=torch.float64)
    expected = stats.ttest_ind(a.numpy(), b.numpy(), equal_var=False)
    check(unpaired_difference(mean_interval(a, levels[0]), mean_interval(b, levels[1])), expected, max(levels))


def closed_testing(p: list[float]) -> list[float]:
    """Adjust p-values the long way: a hypothesis falls when every intersection it belongs to falls by Bonferroni."""
    groups = [g for size in range(1, len(p) + 1) for g in combinations(range(len(p)), size)]
    bonferroni = {g: min(1.0, len(g) * min(p[i] for i in g)) for g in groups}
    return [max(value for g, value in bonferroni.items() if i in g) for i in range(len(p))]


@settings(deadline=None)
@given(some.lists(some.one_of(some.floats(0, 1), some.sampled_from([0.0, 0.01, 0.02, 1.0])), min_size=1, max_size=8))
def test_holm_is_closed_testing_with_bonferroni(p: list[float]):
    assert holm(p) == closed_testing(p)


def test_bootstrap_is_the_percentile_one():
    values = torch.rand(200, generator=seeded()) ** 3
    expected = stats.bootstrap(
        (values.numpy(),), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    interval = bootstrap_interval(values, generator=seeded(1), resamples=20_000)
    error = values.std().item() / 200**0.5
    np.testing.assert_allclose([interval.low, interval.high], expected, rtol=0, atol=0.1 * error)


@pytest.mark.parametrize(("right", "n"), [(0, 10), (7, 10), (10, 10), (9123, 10_000)])
def test_accuracy_of_one_draw_is_the_wilson_interval(right: int, n: int):
    interval = accuracy((torch.arange(n) < right).float())
    expected = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert interval.mean == right / n
    np.testing.assert_allclose([interval.low, interval.high], expected, rtol=1e-9, atol=1e-12)


def test_accuracies_are_those_of_scikit_learn():
    g = seeded()
    labels = torch.multinomial(torch.tensor([0.6, 0.3, 0.1]), 500, replacement=True, generator=g)
    logits = torch.randn(500, 3, generator=g) + 1.5 * torch.nn.functional.one_hot(labels, 3)
    right, said = correct(logits, labels), logits.argmax(1)
    assert accuracy(right).mean == pytest.approx(accuracy_score(labels, said))
    assert balanced_accuracy(right, labels).mean == pytest.approx(balanced_accuracy_score(labels, said))


def test_attribute_accuracies_are_those_of_scikit_learn():
    g = seeded()
    attributes = (torch.rand(300, 40, generator=g) < torch.linspace(0.05, 0.95, 40)).float()
    logits = torch.randn(300, 40, generator=g) + 2 * attributes - 1
    right, said = correct_attributes(logits, attributes), logits > 0
    plain, balanced = attribute_accuracy(right), attribute_balanced_accuracy(right, attributes)
    assert len(plain) == len(balanced) == 40
    for i in range(40):
        assert plain[i].mean == pytest.approx(accuracy_score(attributes[:, i], said[:, i]))
        assert balanced[i].mean == pytest.approx(balanced_accuracy_score(attributes[:, i], said[:, i]))


def test_balanced_accuracy_of_two_classes_has_welch_s_interval():
    # The mean of two class means has the standard error and degrees of freedom of Welch's test of their difference.
    g = seeded()
    labels = torch.arange(2).repeat_interleave(torch.tensor([12, 80]))
    shares = torch.rand(4, 92, generator=g).round()
    a, b = (shares.double().mean(0)[labels == c].numpy() for c in (0, 1))
    difference = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    interval = balanced_accuracy(shares, labels)
    assert interval.high - interval.low == pytest.approx((difference.high - difference.low) / 2, rel=1e-6)
