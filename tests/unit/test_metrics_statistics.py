# SPDX-License-Identifier: Apache-2.0
"""Intervals and tests: closed forms, what the unit is, and coverage in simulation."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from semlink._errors import SemlinkError
from semlink.metrics import (
    Interval,
    accuracy,
    balanced_accuracy,
    bootstrap_interval,
    holm,
    mean_interval,
    paired_difference,
    seed_difference,
    seed_interval,
    unpaired_difference,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def check_coverage(hits: int, trials: int) -> None:
    assert abs(hits / trials - 0.95) < 5 * math.sqrt(0.95 * 0.05 / trials), f"{hits} of {trials}"


def covers(interval: Interval, truth: float) -> bool:
    """Also holds the p-value to the interval: below 1 - level exactly where the interval leaves 0 out."""
    if interval.p_value is not None:
        assert (interval.p_value < 1 - interval.level) == (not interval.low <= 0 <= interval.high)
    return interval.low <= truth <= interval.high


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
        hits += covers(mean_interval(trial), 0)
        naive += covers(mean_interval(trial.flatten()), 0)
    check_coverage(hits, trials)
    assert naive < 0.7 * trials


def test_coverage_of_the_bootstrap():
    trials, hits = 2000, 0
    g = seeded()
    for values in torch.rand(trials, 200, generator=g):
        hits += covers(bootstrap_interval(values, generator=g, resamples=1000), 0.5)
    check_coverage(hits, trials)


def test_coverage_of_the_paired_difference():
    # The images' common part is large, the schemes' part on each image and the draws' noise are small.
    trials, g = 10_000, seeded()
    image = 5 * torch.randn(trials, 1, 8, generator=g)
    gain = 0.3 + 0.5 * torch.randn(trials, 1, 8, generator=g)
    a = image + gain + 0.5 * torch.randn(trials, 6, 8, generator=g)
    b = image + 0.5 * torch.randn(trials, 4, 8, generator=g)
    check_coverage(sum(covers(paired_difference(x, y), 0.3) for x, y in zip(a, b, strict=True)), trials)


def test_coverage_over_three_seeds():
    trials = 10_000
    check_coverage(
        sum(covers(seed_interval(v), 70) for v in 70 + 2 * torch.randn(trials, 3, generator=seeded())), trials
    )


def test_coverage_of_the_difference_over_paired_seeds():
    trials, g = 10_000, seeded()
    seed = 3 * torch.randn(trials, 3, generator=g)
    a, b = (seed + torch.randn(trials, 3, generator=g) for _ in range(2))
    paired = [seed_difference(x + 1, y, paired=True) for x, y in zip(a, b, strict=True)]
    check_coverage(sum(covers(each, 1) for each in paired), trials)


def test_coverage_of_the_difference_over_other_seeds():
    trials, g = 10_000, seeded()
    # A pooled variance would cover 89 %. With fewer seeds Welch's approximation strays from 95 % by up to 1.5 %.
    a, b = 3 * torch.randn(trials, 8, generator=g) + 1, torch.randn(trials, 12, generator=g)
    hits = sum(covers(seed_difference(x, y, paired=False), 1) for x, y in zip(a, b, strict=True))
    check_coverage(hits, trials)


def test_coverage_of_the_difference_of_two_intervals():
    # Accuracies of 300 images each (one draw: Wilson) less those of 25 images (many draws: Student t).
    trials, g = 10_000, seeded()
    ability = torch.rand(trials, 25, generator=g)
    many = (torch.rand(trials, 12, 25, generator=g) < ability[:, None]).float()
    once = (torch.rand(trials, 300, generator=g) < 0.8).float()
    hits = sum(covers(unpaired_difference(accuracy(x), accuracy(y)), 0.3) for x, y in zip(once, many, strict=True))
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


def test_p_values_of_differences_that_do_not_vary():
    values = torch.rand(4, 20, generator=seeded())
    same = paired_difference(values, values)
    assert (same.mean, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    assert paired_difference(values + 1, torch.zeros(20)).p_value == pytest.approx(0, abs=1e-12)
    for paired in (True, False):
        a = torch.full((3,), 0.1, dtype=torch.float64)  # 0.1 three times has a rounded mean that is not 0.1
        shifted = seed_difference(a, 0 * a, paired=paired)
        assert (shifted.low, shifted.high, shifted.p_value) == (shifted.mean, shifted.mean, 0)
        assert shifted.mean == pytest.approx(0.1)
        assert seed_difference(a, a, paired=paired).p_value == 1


def test_only_differences_have_a_p_value():
    values = torch.rand(20, generator=seeded())
    assert mean_interval(values).p_value is None
    assert seed_interval(values).p_value is None
    assert bootstrap_interval(values, generator=seeded(), resamples=100).p_value is None
    # Two values, 0 and 2: t is 1 with one degree of freedom, whose two tails beyond 1 hold a half.
    assert paired_difference(torch.tensor([0.0, 2.0]), torch.zeros(2)).p_value == pytest.approx(0.5)


def test_seeds_are_counted_and_named():
    a, b = torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0, 3.0])
    # One degree of freedom, as for two images: mean 2, standard error 1.
    alone = seed_interval(a)
    assert (alone.mean, alone.n, alone.method) == (2, 2, "student-t over seeds")
    assert alone.high == pytest.approx(2 + math.tan(0.475 * math.pi))
    paired = seed_difference(a, b[1:], paired=True)
    assert (paired.mean, paired.n, paired.method) == (0.5, 2, "paired student-t over seeds")
    other = seed_difference(a, b, paired=False)
    assert (other.mean, other.n, other.method) == (1, 5, "welch student-t over seeds")


def test_the_difference_of_intervals_finds_their_standard_errors():
    a, exact = mean_interval(torch.randn(7, generator=seeded())), mean_interval(torch.ones(5))
    less = unpaired_difference(a, exact)  # nothing is added to the error of a, nor to its degrees of freedom
    assert (less.mean, less.n, less.method) == (a.mean - 1, 12, "unpaired, from intervals")
    assert (less.low, less.high) == pytest.approx((a.low - 1, a.high - 1))
    assert unpaired_difference(exact, exact).p_value == 1
    assert unpaired_difference(exact, mean_interval(torch.zeros(5))).p_value == 0

    # Two of 1 +- 1.96 standard errors of 3 and 4: their difference has 5, and nobody knows the degrees of freedom.
    z = 1.959963984540054
    normal = [Interval(1, 1 - z * error, 1 + z * error, 100, "bootstrap") for error in (3, 4)]
    assert width(unpaired_difference(*normal)) == pytest.approx(2 * 5 * z)
    uneven = replace(normal[0], low=1 - z * 2, high=1 + z * 4)
    assert width(unpaired_difference(uneven, normal[1])) == pytest.approx(2 * 5 * z)


def test_the_difference_of_intervals_takes_any_levels():
    values = torch.randn(2, 9, generator=seeded())
    wide, narrow = (mean_interval(values[0], level) for level in (0.99, 0.8))
    other = mean_interval(values[1])
    assert unpaired_difference(wide, other).p_value == pytest.approx(unpaired_difference(narrow, other).p_value)
    assert [unpaired_difference(x, other).level for x in (wide, narrow)] == [0.99, 0.95]


def test_an_interval_cut_at_1_keeps_its_standard_error():
    shares = torch.tensor([1.0, 1.0, 1.0, 0.9, 0.5])
    cut, whole, other = accuracy(shares), mean_interval(shares), mean_interval(torch.rand(6, generator=seeded()))
    assert cut.high == 1 < whole.high
    assert unpaired_difference(cut, other) == unpaired_difference(whole, other)
    assert width(unpaired_difference(other, cut)) == pytest.approx(width(unpaired_difference(whole, other)))


def test_holm_by_hand():
    # 0.01 x 4; 0.02 x 3; 0.03 x 2, but not below the 0.06 before it; 0.04 x 1, likewise.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([0, 1, 0]) == [0, 1, 0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


p_value = some.one_of(some.floats(0, 1), some.sampled_from([0.0, 0.01, 0.02, 0.5, 1.0]))  # ties, too


@given(some.data(), some.lists(p_value, min_size=1, max_size=12))
def test_holm_properties(data: some.DataObject, p: list[float]):
    adjusted = holm(p)
    assert all(was <= now <= 1 for was, now in zip(p, adjusted, strict=True))
    by_p = [now for _, now in sorted(zip(p, adjusted, strict=True))]
    assert by_p == sorted(by_p)
    order = data.draw(some.permutations(range(len(p))))
    assert holm([p[i] for i in order]) == [adjusted[i] for i in order]
    larger = [data.draw(some.floats(each, 1)) for each in p]
    assert all(was <= now for was, now in zip(adjusted, holm(larger), strict=True))


@pytest.mark.parametrize(("correlation", "real"), [(0, 0), (0.5, 0), (0.9, 0), (0, 6)])
def test_holm_keeps_the_family_wise_error(correlation: float, real: int):
    # Ten two-sided tests with a common part; ``real`` of them look for effects too large to miss.
    trials, g = 10_000, seeded()
    common, own = torch.randn(trials, 1, generator=g), torch.randn(trials, 10, generator=g)
    z = math.sqrt(correlation) * common + math.sqrt(1 - correlation) * own
    z[:, :real] += 20
    p = torch.erfc(z.abs().double() / math.sqrt(2))
    wrong = sum(min(holm(trial)[real:]) <= 0.05 for trial in p.tolist()) / trials
    error = math.sqrt(0.05 * 0.95 / trials)
    assert wrong < 0.05 + 4 * error
    if correlation == 0:  # 1 - (1 - 0.05 / m)^m of the m tests without effect: nothing of the 5 % is given away
        assert wrong > 1 - (1 - 0.05 / (10 - real)) ** (10 - real) - 4 * error
    assert (p[:, real:].amin(1) <= 0.05).double().mean() > 2 * wrong


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
    with pytest.raises(SemlinkError, match="seeds needs at least 2 of them, got 1; train with another seed"):
        seed_interval(torch.ones(1))
    with pytest.raises(SemlinkError, match="got 0"):
        seed_difference(torch.ones(3), torch.ones(0), paired=False)
    with pytest.raises(SemlinkError, match=r"\(seeds,\) is expected"):
        seed_interval(torch.ones(3, 100))
    with pytest.raises(SemlinkError, match="1 of 3 seeds have a value that is not finite"):
        seed_interval(torch.tensor([1.0, math.nan, 2.0]))
    with pytest.raises(SemlinkError, match="3 and 4 seeds cannot be paired"):
        seed_difference(torch.ones(3), torch.ones(4), paired=True)
    for p in (-0.01, 1.01, math.nan):
        with pytest.raises(SemlinkError, match="p-value"):
            holm([0.5, p])
    for level in (1.0, 95.0, -0.1, math.nan):
        with pytest.raises(SemlinkError, match="confidence level"):
            mean_interval(torch.ones(3), level=level)


@pytest.mark.parametrize(
    "broken",
    [{"low": 2.0, "high": 0.0}, {"low": -math.inf}, {"mean": math.nan}, {"level": 0.0}, {"level": 95.0}, {"n": 1}],
)
def test_an_interval_that_is_none_is_named(broken):
    good = Interval(1.0, 0.0, 2.0, 10, "student-t over images")
    with pytest.raises(SemlinkError, match="no standard error"):
        unpaired_difference(good, replace(good, **broken))
