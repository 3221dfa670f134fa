# SPDX-License-Identifier: Apache-2.0
"""Lower bounds of leakage: exact values, the true density ratio as critic, and what the limits promise.

Statistical comparisons have fixed seeds and allow four standard errors, where nothing else is said.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from semlink._errors import SemlinkError
from semlink.metrics import (
    LowerBound,
    classifier_bits,
    infonce_bits,
    nwj_bits,
    smile_estimate_bits,
    upper_bounds_bits,
)
from semlink.metrics.statistics import t_quantile
from semlink.phy import qam, soft_mutual_information_bits

LN2 = math.log(2)
SAMPLES = 400


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian_pairs(rho: float, dimensions: int, samples: int = SAMPLES, seed: int = 0) -> tuple[torch.Tensor, ...]:
    a, other = torch.randn(2, samples, dimensions, dtype=torch.float64, generator=seeded(seed))
    return a, rho * a + math.sqrt(1 - rho**2) * other


def log_ratio(a: torch.Tensor, y: torch.Tensor, rho: float) -> torch.Tensor:
    """Return ln p(a_i, y_j) / (p(a_i) p(y_j)) of Gaussian pairs, (N, N)."""
    x, z, rest = a[:, None], y[None], 1 - rho**2
    density = -0.5 * math.log(rest) - (rho**2 * (x**2 + z**2) - 2 * rho * x * z) / (2 * rest)
    return density.sum(-1)


def information_bits(rho: float, dimensions: int) -> float:
    return -dimensions / 2 * math.log2(1 - rho**2)


def error_of(bound: LowerBound) -> float:
    return (bound.bits - bound.low_bits) / t_quantile(bound.level, bound.n - 1)


def entropy_bits(p: float) -> float:
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p)


@pytest.mark.parametrize(("rho", "dimensions"), [(0.0, 1), (0.3, 1), (0.7, 1), (0.5, 3), (0.8, 2)])
def test_the_true_density_ratio_reaches_the_information_of_gaussian_pairs(rho, dimensions):
    scores = log_ratio(*gaussian_pairs(rho, dimensions), rho)
    truth = information_bits(rho, dimensions)
    for bound in (infonce_bits(scores), nwj_bits(1 + scores)):
        assert bound.low_bits <= truth, bound.method
        assert abs(bound.bits - truth) <= 4 * error_of(bound) + 1e-12, bound.method
        assert error_of(bound) <= 0.1, bound.method


def test_a_worse_critic_finds_less():
    a, y = gaussian_pairs(0.8, 1, 800)
    truth = information_bits(0.8, 1)
    for blind in (0.2, 0.4):  # the critic of a weaker dependence
        scores = log_ratio(a, y, blind)
        for bound, best in (
            (infonce_bits(scores), infonce_bits(log_ratio(a, y, 0.8))),
            (nwj_bits(1 + scores), nwj_bits(1 + log_ratio(a, y, 0.8))),
        ):
            assert bound.bits < best.bits - 4 * error_of(bound)
            assert bound.bits < truth - 4 * error_of(bound)


def test_infonce_is_log_n_less_the_cross_entropy():
    scores = torch.randn(50, 50, generator=seeded())
    loss = torch.nn.functional.cross_entropy(scores.double(), torch.arange(50))
    bound = infonce_bits(scores)
    assert bound.bits == pytest.approx(math.log2(50) - float(loss) / LN2, abs=1e-12)
    assert (bound.n, bound.level) == (50, 0.95)
    shifted = scores + 10 * torch.randn(50, 1, generator=seeded(1))  # what rows share tells nothing
    assert infonce_bits(shifted).bits == pytest.approx(bound.bits, abs=1e-5)


@pytest.mark.parametrize("samples", [3, 16, 100])
def test_infonce_saturates_at_log_n(samples):
    bound = infonce_bits(1e4 * torch.eye(samples))
    assert bound.cap_bits == math.log2(samples)
    assert bound.bits == pytest.approx(math.log2(samples), abs=1e-12)
    assert bound.low_bits == pytest.approx(bound.bits, abs=1e-9)
    assert nwj_bits(torch.eye(samples)).cap_bits is None


@settings(max_examples=50, deadline=None)
@given(some.integers(3, 20), some.floats(0.1, 300), some.integers(0, 1000))
def test_infonce_is_never_above_log_n(samples, scale, seed):
    scores = scale * torch.randn(samples, samples, dtype=torch.float64, generator=seeded(seed))
    scores += scale * torch.eye(samples)
    bound = infonce_bits(scores)
    assert bound.low_bits <= bound.bits <= bound.cap_bits + 1e-12
    assert bound.cap_bits == math.log2(samples)


def test_constant_critics():
    zeros = torch.zeros(20, 20)
    assert infonce_bits(zeros + 7).bits == pytest.approx(0, abs=1e-12)
    assert nwj_bits(zeros).bits == pytest.approx(-1 / (math.e * LN2), rel=1e-12)  # 0 - e^-1 nats
    assert nwj_bits(zeros + 1).bits == pytest.approx(0, abs=1e-12)  # the best for independent variables
    assert nwj_bits(zeros + 2).bits == pytest.approx((2 - math.e) / LN2, rel=1e-12)
    assert smile_estimate_bits(zeros + 2) == pytest.approx(0, abs=1e-12)


def test_nwj_and_smile_by_hand():
    f = torch.tensor([[2.0, 0.5, -1.0], [0.0, 9.0, 1.0], [-8.0, 3.0, 1.5]])
    unrelated = [0.5, -1.0, 0.0, 1.0, -8.0, 3.0]
    hits = (2 + 9 + 1.5) / 3
    nwj = hits - sum(math.exp(s - 1) for s in unrelated) / 6
    assert nwj_bits(f).bits == pytest.approx(nwj / LN2, rel=1e-12)
    for clip in (5.0, 2.0):
        mean = sum(math.exp(min(max(s, -clip), clip)) for s in unrelated) / 6
        assert smile_estimate_bits(f, clip) == pytest.approx((hits - math.log(mean)) / LN2, rel=1e-12)


@pytest.mark.parametrize("bound_of", [infonce_bits, nwj_bits])
def test_the_limit_is_the_jackknife_over_samples(bound_of):
    scores = torch.randn(30, 30, dtype=torch.float64, generator=seeded())
    scores[3, 7] = 60 if bound_of is infonce_bits else 4  # one column all but makes up its row
    bound = bound_of(scores, level=0.9)
    replicates = []
    for k in range(30):
        kept = torch.arange(30) != k
        replicates.append(bound_of(scores[kept][:, kept]).bits)
    spread = torch.tensor(replicates, dtype=torch.float64)
    error = math.sqrt(29 / 30 * float((spread - spread.mean()).square().sum()))
    assert bound.low_bits == pytest.approx(bound.bits - t_quantile(0.9, 29) * error, rel=1e-9)
    assert bound.level == 0.9
    assert bound_of(scores, level=0.5).low_bits == pytest.approx(bound.bits)


@pytest.mark.parametrize("name", ["infonce", "nwj", "classifier"])
def test_errors_are_the_spread_and_limits_err_as_often_as_they_say(name):
    """400 experiments: the share of limits that are too high is 5 % but for 4.4 (four standard errors)."""
    trials, samples, rho = 400, 80, 0.6
    bounds = []
    for trial in range(trials):
        if name == "classifier":  # Y tells the class, so only the share of the classes varies: I = h(0.3)
            labels = (torch.rand(samples, generator=seeded(trial)) < 0.3).long()
            bounds.append(classifier_bits(torch.nn.functional.one_hot(labels, 2).float().log(), labels))
            continue
        scores = log_ratio(*gaussian_pairs(rho, 1, samples, seed=trial), rho)
        bounds.append(infonce_bits(scores) if name == "infonce" else nwj_bits(1 + scores))
    values = torch.tensor([bound.bits for bound in bounds])
    errors = torch.tensor([error_of(bound) for bound in bounds])
    # The spread of 400 values is known to 1 / sqrt(800) of itself if they are normal; five times that is 18 %.
    assert float(errors.square().mean().sqrt() / values.std()) == pytest.approx(1, abs=0.18)
    truth = entropy_bits(0.3) if name == "classifier" else information_bits(rho, 1)
    if name != "infonce":  # which loses a little to log N
        assert abs(float(values.mean()) - truth) < 4 * float(values.std()) / math.sqrt(trials) + 0.01
    too_high = sum(bound.low_bits > truth for bound in bounds) / trials
    assert too_high < 0.05 + 4 * math.sqrt(0.05 * 0.95 / trials)


def binary_channel(p: float = 0.1, copies: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Return labels and received bits with exactly the joint distribution of a binary symmetric channel."""
    wrong = round(20 * p / 2)
    labels = torch.tensor([0] * 10 + [1] * 10)
    received = torch.tensor([0] * (10 - wrong) + [1] * wrong + [1] * (10 - wrong) + [0] * wrong)
    return labels.repeat(copies), received.repeat(copies)


def predictor(received: torch.Tensor, believed: float) -> torch.Tensor:
    right = torch.tensor([[1 - believed, believed], [believed, 1 - believed]], dtype=torch.float64)
    return right[received].log()


def test_the_posterior_of_a_binary_channel_gives_its_information():
    labels, received = binary_channel(0.1)
    truth = 1 - entropy_bits(0.1)
    bound = classifier_bits(predictor(received, 0.1), labels)
    assert bound.bits == pytest.approx(truth, abs=1e-12)
    assert bound.cap_bits == pytest.approx(1, abs=1e-12)
    assert bound.low_bits < truth
    for believed in (0.02, 0.3, 0.5):
        lost = 0.1 * math.log2(0.1 / believed) + 0.9 * math.log2(0.9 / (1 - believed))
        found = classifier_bits(predictor(received, believed), labels)
        assert found.bits == pytest.approx(truth - lost, abs=1e-12)
    assert classifier_bits(predictor(received, 0.5), labels).bits == pytest.approx(0, abs=1e-12)
    worse_than_none = classifier_bits(predictor(received, 0.9), labels)
    assert worse_than_none.bits < 0


def test_more_samples_bring_the_limit_nearer_as_their_root():
    near = classifier_bits(predictor(binary_channel(copies=100)[1], 0.1), binary_channel(copies=100)[0])
    far = classifier_bits(predictor(binary_channel(copies=4)[1], 0.1), binary_channel(copies=4)[0])
    assert error_of(far) / error_of(near) == pytest.approx(math.sqrt(1999 / 79), rel=1e-9)
    spread = math.sqrt(0.09) * math.log2(9)  # two values, log2 1.8 and log2 0.2, with odds 9 to 1
    assert error_of(near) == pytest.approx(spread / math.sqrt(1999), rel=1e-9)


def test_a_classifier_that_knows_finds_the_entropy():
    labels = torch.tensor([0] * 8 + [1] * 4 + [2] * 2 + [3] * 2)
    bound = classifier_bits(torch.nn.functional.one_hot(labels, 5).float().log(), labels)
    assert bound.bits == bound.cap_bits == pytest.approx(1.75, abs=1e-12)
    balanced = torch.arange(16) % 4
    sure = classifier_bits(torch.nn.functional.one_hot(balanced, 4).float().log(), balanced)
    assert sure.bits == sure.low_bits == 2


def test_a_classifier_without_a_clue_finds_nothing():
    logits = torch.randn(3000, 4, generator=seeded())
    labels = torch.randint(4, (3000,), generator=seeded(1))
    assert classifier_bits(logits.log_softmax(1), labels).low_bits < 0
    prior = torch.bincount(labels, minlength=4) / 3000
    assert classifier_bits(prior.log().expand(3000, 4), labels).bits == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("snr_db", [0, 6, 15])
def test_lower_and_upper_bounds_bracket_16qam(snr_db):
    """A is the index, Y the symbol received: the information is a known integral, and the posterior is known."""
    n, constellation, n0 = 1200, qam(16), 10 ** (-snr_db / 10)
    indices = torch.randint(16, (n,), generator=seeded())
    noise = math.sqrt(n0 / 2) * torch.randn(n, 2, generator=seeded(1))
    y = torch.view_as_complex(noise) + constellation.modulate(indices)
    posterior = constellation.posteriors(y[None], n0)[0].double()
    ratio = (16 * posterior).log().T[indices]  # row i: ln p(y_j | a_i) / p(y_j)
    ratio = ratio.clamp(min=-300)
    truth = soft_mutual_information_bits(constellation, snr_db)
    ceilings = upper_bounds_bits(1, snr_db, payload_bits=4, constellation=constellation)
    assert all(truth <= ceiling + 1e-5 for ceiling in ceilings.values())
    for bound in (infonce_bits(ratio), nwj_bits(1 + ratio), classifier_bits(posterior.log(), indices)):
        assert bound.low_bits <= truth, bound.method
        assert abs(bound.bits - truth) <= 4 * error_of(bound) + 0.01, bound.method  # 0.01: InfoNCE loses to log N


def test_smile_has_no_direction():
    """The variables are independent and the critic says 50 of every pair: SMILE sees 45 nats, the bounds see none."""
    scores = torch.full((40, 40), 50.0)
    assert smile_estimate_bits(scores) == pytest.approx(45 / LN2)
    assert infonce_bits(scores).bits == pytest.approx(0, abs=1e-12)
    assert nwj_bits(scores).bits < 0


def test_unclipped_smile_is_near_the_information():
    scores = log_ratio(*gaussian_pairs(0.6, 1), 0.6)
    assert smile_estimate_bits(scores, 100) == pytest.approx(smile_estimate_bits(scores + 3, 100), abs=1e-12)
    # Its two means have the errors of NWJ's at the best critic.
    assert abs(smile_estimate_bits(scores, 100) - information_bits(0.6, 1)) < 4 * error_of(nwj_bits(1 + scores))


def test_nonsense_is_refused_in_one_line():
    square, labels = torch.zeros(4, 4), torch.tensor([0, 1, 0, 1])
    even = torch.full((4, 2), 0.5).log()
    broken = square.clone()
    broken[0, 1] = math.nan
    sure = torch.tensor([[1.0, 0.0]] * 4).log()
    for call, said in [
        (lambda: infonce_bits(torch.zeros(4, 5)), r"scores of shape \(4, 5\): \(N, N\) of at least 3"),
        (lambda: infonce_bits(torch.zeros(2, 2)), r"\(2, 2\)"),
        (lambda: nwj_bits(torch.zeros(4)), r"scores of shape \(4,\)"),
        (lambda: smile_estimate_bits(broken), "1 of 16 scores are not finite"),
        (lambda: infonce_bits(broken), "1 of 16 scores are not finite"),
        (lambda: nwj_bits(square + 800), "scores reach 800: .* below 700"),
        (lambda: smile_estimate_bits(square, 0.0), "clip is 0.0"),
        (lambda: infonce_bits(square, level=1.0), "level is 1.0: a confidence from 0.5"),
        (lambda: nwj_bits(square, level=0.05), "level is 0.05"),
        (lambda: classifier_bits(even, labels, level=math.nan), "level is nan"),
        (lambda: classifier_bits(even, labels[:3]), r"\(4, 2\) and labels \(3,\)"),
        (lambda: classifier_bits(even[:2], labels[:2]), "at least 3 samples"),
        (lambda: classifier_bits(even[:, 0], labels), r"\(N, K\) and \(N,\)"),
        (lambda: classifier_bits(even + 1, labels), "do not sum to 1 in every row; give log_softmax"),
        (lambda: classifier_bits(even - 1, labels), "do not sum to 1"),
        (lambda: classifier_bits(even * math.nan, labels), "do not sum to 1"),
        (lambda: classifier_bits(even, labels + 1), "labels from 1 to 2: whole numbers from 0 to 1"),
        (lambda: classifier_bits(even, labels - 1), "labels from -1"),
        (lambda: classifier_bits(even, labels.float()), "whole numbers"),
        (lambda: classifier_bits(sure, labels), "given probability 0"),
    ]:
        with pytest.raises(SemlinkError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)
