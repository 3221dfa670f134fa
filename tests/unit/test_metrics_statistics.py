# SPDX-License-Identifier: Apache-2.0
"""Intervals: closed forms, what the unit is, and coverage in simulation."""

import math

import pytest
import torch

from semlink._errors import SemlinkError
from semlink.metrics import (
    Interval,
    accuracy,
    balanced_accuracy,
    bootstrap_interval,
    mean_interval,
    paired_difference,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def check_coverage(hits: int, trials: int) -> None:
    assert abs(hits / trials - 0.95) < 5 * math.sqrt(0.95 * 0.05 / trials), f"{hits} of {trials}"


def width(interval: Interval) -> float:
    return interval.high - interval.low


def test_two_images_have_the_interval_of_cauchy():
    # One degree of freedom: t_0.975 = tan(0.475 pi) = 12.706; values 0 and 2 have mean 1 and standard error 1.
    interval = mean_interval(torch.tensor([0.0, 2.0]))
    half = math.tan(0.475 * math.pi)
    assert (interval.mean, interval.n, interval.level) == (1.0, 2, 0.95)
    assert interval.low == pytest.approx(1 - half, rel=1e-9)
    assert interval.high == pytest.approx(1 + half, rel=1e-9)


def test_draws_of_one_image_are_averaged_not_counted():
    images = torch.randn(50, generator=seeded())
    copies = images.expand(20, 50)  # twenty draws without noise are no more knowledge than one
    assert mean_interval(copies) == mean_interval(images)
    assert mean_interval(copies).n == 50
    right = (torch.rand(50, generator=seeded()) < 0.7).float()
    assert accuracy(right.expand(20, 50)) == accuracy(right)
    labels = torch.arange(50) % 5
    assert balanced_accuracy(right.expand(20, 50), labels) == balanced_accuracy(right, labels)
    assert paired_difference(copies, 0 * images) == paired_difference(images, 0 * copies)
    ends = [bootstrap_interval(v, generator=seeded(1), resamples=200) for v in (copies, images)]
    assert ends[0].low == pytest.approx(ends[1].low)
    assert ends[0].n == 50


def test_coverage_of_the_mean_with_draws():
    # Images spread by 1, draws around each by 0.5: taking the 8 x 10 values as independent covers about half.
    trials = 2000
    g, hits, naive = seeded(), 0, 0
    image = torch.randn(trials, 1, 10, generator=g)
    values = image + 0.5 * torch.randn(trials, 8, 10, generator=g)
    for trial in values:
        interval = mean_interval(trial)
        hits += interval.low <= 0 <= interval.high
        wrong = mean_interval(trial.flatten())
        naive += wrong.low <= 0 <= wrong.high
    check_coverage(hits, trials)
    assert naive < 0.7 * trials


def test_coverage_of_the_bootstrap():
    trials, hits = 600, 0
    g = seeded()
    for values in torch.rand(trials, 400, generator=g):
        interval = bootstrap_interval(values, generator=g, resamples=400)
        hits += interval.low <= 0.5 <= interval.high
    check_coverage(hits, trials)


def test_bootstrap_takes_any_statistic_and_is_repeatable():
    values = torch.randn(1001, generator=seeded())
    median = bootstrap_interval(values, lambda v: v.median(-1).values, generator=seeded(1))
    assert median.mean == values.median().item()
    assert median == bootstrap_interval(values, lambda v: v.median(-1).values, generator=seeded(1))
    expected = 2 * 1.96 * math.sqrt(math.pi / 2 / 1001)  # the asymptotic width for a normal median
    assert width(median) == pytest.approx(expected, rel=0.2)
    mean = bootstrap_interval(values, generator=seeded(1))
    assert width(mean) == pytest.approx(width(mean_interval(values)), rel=0.1)
    many = bootstrap_interval(values, generator=seeded(1), resamples=10_000)  # several chunks
    assert width(many) == pytest.approx(width(mean), rel=0.1)


def test_coverage_of_accuracy_with_one_draw():
    # Right answers are whole numbers, so at one share coverage strays from 95 %; over many shares Wilson's averages it.
    trials, n, hits = 3000, 200, 0
    g = seeded()
    shares = 0.5 + 0.5 * torch.rand(trials, generator=g)
    for share in shares:
        interval = accuracy((torch.rand(n, generator=g) < share).float())
        hits += interval.low <= share.item() <= interval.high
    check_coverage(hits, trials)


def test_coverage_of_accuracy_with_several_draws():
    trials, n, hits = 1000, 200, 0
    g = seeded()
    for _ in range(trials):
        ability = torch.rand(n, generator=g)  # each image has its own chance of being right; their mean is 1/2
        interval = accuracy((torch.rand(5, n, generator=g) < ability).float())
        hits += interval.low <= 0.5 <= interval.high
    check_coverage(hits, trials)


def test_coverage_of_balanced_accuracy():
    count = torch.tensor([400, 60, 25])
    share = torch.tensor([0.9, 0.6, 0.5])
    labels = torch.arange(3).repeat_interleave(count)
    trials, hits = 1500, 0
    g = seeded()
    for _ in range(trials):
        interval = balanced_accuracy((torch.rand(3, len(labels), generator=g) < share[labels]).float(), labels)
        hits += interval.low <= share.mean().item() <= interval.high
    check_coverage(hits, trials)


def test_paired_difference_is_narrow_where_images_vary_and_schemes_do_not():
    g = seeded()
    image = torch.randn(300, generator=g)
    a = image + 0.1 * torch.randn(4, 300, generator=g) + 0.05
    b = image + 0.1 * torch.randn(6, 300, generator=g)
    paired = paired_difference(a, b)
    unpaired = math.hypot(width(mean_interval(a)), width(mean_interval(b)))
    assert width(paired) < 0.1 * unpaired
    assert 0 < paired.low < 0.05 < paired.high
    assert paired.n == 300
    assert "paired" in paired.method


def test_wider_for_more_confidence():
    values = torch.randn(30, generator=seeded())
    assert width(mean_interval(values, level=0.99)) > width(mean_interval(values)) > width(mean_interval(values, 0.5))


def test_mistakes_are_named():
    with pytest.raises(SemlinkError, match="at least 2 of them, got 1"):
        mean_interval(torch.ones(3, 1))
    with pytest.raises(SemlinkError, match="1 of 3 images have a value that is not finite"):
        mean_interval(torch.tensor([[1.0, 2.0, 3.0], [1.0, math.inf, 3.0]]))
    with pytest.raises(SemlinkError, match=r"\(draws, n\)"):
        mean_interval(torch.ones(2, 2, 2))
    with pytest.raises(SemlinkError, match="3 and 4 images"):
        paired_difference(torch.ones(3), torch.ones(4))
    with pytest.raises(SemlinkError, match="at least 100"):
        bootstrap_interval(torch.ones(3), generator=seeded(), resamples=10)
    for level in (1.0, 95.0, -0.1, math.nan):
        with pytest.raises(SemlinkError, match="confidence level"):
            mean_interval(torch.ones(3), level=level)
