# SPDX-License-Identifier: Apache-2.0
"""Upper bounds of leakage: capacities in closed form, numerical maxima, and channels that come near the bounds."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy.integrate import quad
from scipy.optimize import minimize, minimize_scalar

from semlink._errors import SemlinkError
from semlink.metrics import (
    constellation_capacity,
    discrete_capacity,
    hard_capacity,
    laplace_bits,
    ldp_bits,
    upper_bounds_bits,
)
from semlink.phy import (
    capacity_bits,
    mutual_information_bits,
    psk,
    q_function,
    qam,
    soft_mutual_information_bits,
    transition_matrix,
)

SNRS_DB = [-10, 0, 6, 12, 18, 30]


def entropy_bits(p: float) -> float:
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p)


@pytest.mark.parametrize("p", [0.01, 0.1, 0.3, 0.49])
def test_binary_symmetric_channels(p):
    found = discrete_capacity(np.array([[1 - p, p], [p, 1 - p]]))
    assert found.bits == pytest.approx(1 - entropy_bits(p), abs=1e-12)
    assert found.gap_bits == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.9])
def test_z_channels(p):
    found = discrete_capacity(np.array([[1, 0], [p, 1 - p]]))
    truth = math.log2(1 + (1 - p) * p ** (p / (1 - p)))
    assert 0 < found.gap_bits <= 1e-6
    assert found.bits - found.gap_bits - 1e-12 <= truth <= found.bits + 1e-12


@pytest.mark.parametrize("p", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("inputs", [2, 5])
def test_erasure_channels(p, inputs):
    erasing = np.hstack([(1 - p) * np.eye(inputs), np.full((inputs, 1), p)])
    assert discrete_capacity(erasing).bits == pytest.approx((1 - p) * math.log2(inputs), abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_channels_without_symmetry_by_a_general_optimiser(seed):
    rng = np.random.default_rng(seed)
    w = rng.dirichlet(np.full(5, 0.4), size=4)

    def lost(logits: np.ndarray) -> float:
        p = np.exp(logits - logits.max())
        return -mutual_information_bits(w, p / p.sum())

    best = -min(minimize(lost, rng.normal(size=4), tol=1e-12).fun for _ in range(3))
    found = discrete_capacity(w)
    assert best <= found.bits + 1e-9
    assert best >= found.bits - found.gap_bits - 1e-6
    assert mutual_information_bits(w) <= found.bits


def test_useless_inputs_are_left_out():
    # The third input is a mixture of the two others, the fourth a copy of the first.
    w = np.array([[0.9, 0.1], [0.1, 0.9], [0.5, 0.5], [0.9, 0.1]])
    found = discrete_capacity(w)
    assert found.bits == pytest.approx(1 - entropy_bits(0.1), abs=2e-6)
    assert mutual_information_bits(w) < found.bits - 0.05


def test_an_upper_bound_holds_however_few_the_rounds(monkeypatch):
    w = np.array([[1, 0], [0.9, 0.1]])
    truth = math.log2(1 + 0.1 * 0.9**9)
    for rounds in (1, 2, 5):
        monkeypatch.setattr("semlink.metrics.ceilings._ROUNDS", rounds)
        found = discrete_capacity(w)
        assert found.gap_bits > 1e-6
        assert found.bits - found.gap_bits <= truth <= found.bits


def bpsk_information(snr_db: float) -> float:
    """Return 1 - E log2(1 + e^-L), L ~ N(4 snr, 8 snr) the log-likelihood ratio of the bit sent."""
    snr = 10 ** (snr_db / 10)
    mean, sigma = 4 * snr, math.sqrt(8 * snr)

    def integrand(t: float) -> float:
        return math.exp(-t * t / 2) / math.sqrt(2 * math.pi) * np.logaddexp(0, -(mean + sigma * t)) / math.log(2)

    return 1 - quad(integrand, -12, 12, limit=400, points=[-mean / sigma] if mean < 12 * sigma else None)[0]


@pytest.mark.parametrize("snr_db", SNRS_DB)
def test_bpsk_and_qpsk(snr_db):
    assert constellation_capacity(psk(2), snr_db).bits == pytest.approx(bpsk_information(snr_db), abs=1e-5)
    half = bpsk_information(snr_db - 10 * math.log10(2))  # a rail of QPSK has half of the energy
    assert constellation_capacity(qam(4), snr_db).bits == pytest.approx(2 * half, abs=1e-5)
    assert constellation_capacity(psk(4), snr_db).bits == pytest.approx(2 * half, abs=1e-5)
    wrong = q_function(math.sqrt(10 ** (snr_db / 10)))
    hard = 2 * (1 - entropy_bits(wrong)) if wrong > 0 else 2.0
    assert hard_capacity(qam(4), snr_db).bits == pytest.approx(hard, abs=1e-7)  # points are float32
    assert hard_capacity(psk(4), snr_db).bits == pytest.approx(hard, abs=1e-7)


def pam_information(prior: np.ndarray, points: np.ndarray, sigma: float) -> float:
    """Return I(X; Y) of real points in Gaussian noise: h(Y) - h(noise) on a fine grid."""
    y, step = np.linspace(points.min() - 9 * sigma, points.max() + 9 * sigma, 8001, retstep=True)
    density = np.exp(-((y[:, None] - points) ** 2) / (2 * sigma**2)) @ prior / (sigma * math.sqrt(2 * math.pi))
    return float(-(density * np.log2(density + 1e-300)).sum() * step - 0.5 * math.log2(2 * math.pi * math.e * sigma**2))


@pytest.mark.parametrize("snr_db", SNRS_DB)
def test_16qam_by_a_search_over_the_inner_points(snr_db):
    levels = qam(16).points.real[:4].double().numpy()
    sigma = math.sqrt(10 ** (-snr_db / 10) / 2)

    def lost(inner: float) -> float:
        return -pam_information(np.array([0.5 - inner, inner, inner, 0.5 - inner]), levels, sigma)

    best = -2 * min(lost(0.0), minimize_scalar(lost, bounds=(0, 0.5), method="bounded", options={"xatol": 1e-9}).fun)
    found = constellation_capacity(qam(16), snr_db)
    assert 0 <= found.gap_bits <= 2e-6
    assert best <= found.bits + 1e-5
    assert best >= found.bits - found.gap_bits - 1e-5


@settings(max_examples=25, deadline=None)
@given(some.sampled_from([psk(2), psk(8), qam(4), qam(16)]), some.floats(-20, 40))
def test_the_best_input_is_no_worse_than_the_uniform_one(constellation, snr_db):
    best = constellation_capacity(constellation, snr_db).bits
    hard = hard_capacity(constellation, snr_db)
    assert soft_mutual_information_bits(constellation, snr_db) <= best + 1e-9
    assert mutual_information_bits(transition_matrix(constellation, snr_db)) <= hard.bits + 1e-9
    assert hard.bits - hard.gap_bits <= best + 1e-5
    assert best <= math.log2(constellation.order) + 3e-6


def test_maximising_matters():
    assert constellation_capacity(qam(16), 6).bits > soft_mutual_information_bits(qam(16), 6) + 0.05
    assert hard_capacity(qam(16), 6).bits > mutual_information_bits(transition_matrix(qam(16), 6)) + 0.05


def test_a_scale_is_an_snr():
    inner = torch.zeros(16)
    inner[[5, 6, 9, 10]] = 1  # of energy 1/5, scaled to 1
    louder, shift_db = qam(16).scaled_under(inner), 10 * math.log10(5)
    for capacity in (constellation_capacity, hard_capacity):
        assert capacity(louder, 3).bits == pytest.approx(capacity(qam(16), 3 + shift_db).bits, abs=1e-5)


def randomised_response(epsilon: float, inputs: int) -> np.ndarray:
    w = np.ones((inputs, inputs)) + (math.exp(epsilon) - 1) * np.eye(inputs)
    return w / w.sum(1, keepdims=True)


@pytest.mark.parametrize("epsilon", [0.05, 0.5, 1.0, 3.0, 6.0])
def test_randomised_response_is_below_the_ldp_ceiling_and_nearly_reaches_it(epsilon):
    reached = [discrete_capacity(randomised_response(epsilon, inputs)).bits for inputs in range(2, 120)]
    assert max(reached) <= ldp_bits(epsilon) + 1e-12
    assert max(reached) >= 0.97 * ldp_bits(epsilon)  # the best number of inputs is not whole


def test_subset_selection_reaches_the_ldp_ceiling():
    # Two of six: an output names a pair of inputs, e^epsilon as likely if the input is one of the two. A third of the
    # inputs is best where 1 + u = epsilon k / (k - 1) is 1 + (k - 1) / 3, k = e^epsilon.
    low, high = 0.5, 2.0
    for _ in range(60):
        epsilon = (low + high) / 2
        k = math.exp(epsilon)
        low, high = (low, epsilon) if epsilon * k / (k - 1) < 1 + (k - 1) / 3 else (epsilon, high)
    subsets = [{i, j} for i in range(6) for j in range(i)]
    w = np.array([[k if i in subset else 1 for subset in subsets] for i in range(6)])
    assert discrete_capacity(w / w.sum(1, keepdims=True)).bits == pytest.approx(ldp_bits(epsilon), abs=1e-9)


def test_ldp_at_the_ends():
    assert ldp_bits(0) == 0
    assert ldp_bits(1e-3) == pytest.approx(1e-6 / 8 / math.log(2), rel=1e-3)
    assert ldp_bits(50) == pytest.approx((50 - math.log(50) - 1) / math.log(2), rel=1e-9)
    assert ldp_bits(5000) < 5000 / math.log(2)


def laplace_channel(inputs: np.ndarray, scale: float) -> np.ndarray:
    """Return the transition matrix of x + Laplace noise, outputs sorted into 200 bins."""
    edges = np.linspace(inputs.min() - 12 * scale, inputs.max() + 12 * scale, 201)
    edges[0], edges[-1] = -np.inf, np.inf
    apart = (edges - inputs[:, None]) / scale
    below = np.where(apart < 0, 0.5 * np.exp(np.minimum(apart, 0)), 1 - 0.5 * np.exp(-np.maximum(apart, 0)))
    return np.diff(below, axis=1)


@pytest.mark.parametrize("ratio", [0.025, 0.45, 2.0, 8.0])
def test_laplace_noise_lets_no_more_through(ratio):
    scale = 0.7
    reached = discrete_capacity(laplace_channel(np.linspace(-ratio * scale, ratio * scale, 25), scale)).bits
    bound = laplace_bits(1, ratio * scale, scale)
    assert reached <= min(bound, ldp_bits(2 * ratio))  # such a release is (2 r / b)-LDP
    assert reached >= 0.6 * bound


def test_the_ball_in_two_dimensions():
    rail = laplace_channel(np.array([-1.0, 0.0, 1.0]), 0.8)
    corners = [(0, 1), (2, 1), (1, 0), (1, 2), (1, 1)]
    w = np.array([np.outer(rail[i], rail[j]).ravel() for i, j in corners])
    reached = discrete_capacity(w).bits
    assert reached <= laplace_bits(2, 1.0, 0.8)
    assert reached >= 0.75 * laplace_bits(2, 1.0, 0.8)


def test_the_laplace_bound_is_the_mean_size_of_what_is_received():
    for r, b in [(0.3, 1.0), (2.0, 0.5)]:
        size = quad(lambda y, r=r, b=b: abs(y) * math.exp(-abs(y - r) / b) / (2 * b), -60, 60, points=[0, r])[0]
        assert laplace_bits(1, r, b) == pytest.approx(math.log2(size / b), abs=1e-6)
        for d in (2, 128):
            assert laplace_bits(d, r, b) == pytest.approx(d * math.log2(1 + (size / b - 1) / d), abs=1e-6)
    assert laplace_bits(10, 1, 1) > laplace_bits(9, 1, 1)


def test_sixteen_symbols_at_12_db():
    found = upper_bounds_bits(16, 12, payload_bits=64, constellation=qam(16))
    assert list(found) == ["payload", "constellation", "channel"]
    assert found["payload"] == 64
    assert found["constellation"] == pytest.approx(16 * constellation_capacity(qam(16), 12).bits)
    assert found["constellation"] == pytest.approx(57.33, abs=0.01)  # 57.27 at uniform indices
    assert found["channel"] == pytest.approx(16 * math.log2(1 + 10**1.2))
    assert 16 * hard_capacity(qam(16), 12).bits == pytest.approx(53.13, abs=0.01)  # 52.96 at uniform indices


def test_only_what_applies_is_there():
    analog = upper_bounds_bits(64, 12)
    assert list(analog) == ["channel"]
    assert analog["channel"] == capacity_bits(64, 12) == pytest.approx(260.8, abs=0.05)
    assert list(upper_bounds_bits(16, 12, payload_bits=64)) == ["payload", "channel"]
    assert list(upper_bounds_bits(16, 12, constellation=psk(16))) == ["constellation", "channel"]


def test_nonsense_is_refused_in_one_line():
    for call, said in [
        (lambda: discrete_capacity(np.array([0.5, 0.5])), r"transition matrix of shape \(2,\): rows of probabilities"),
        (lambda: discrete_capacity(np.array([[0.5, 0.6]])), "sum to 1"),
        (lambda: discrete_capacity(np.array([[1.5, -0.5]])), "sum to 1"),
        (lambda: discrete_capacity(np.array([[math.nan, 1]])), "sum to 1"),
        (lambda: discrete_capacity(np.zeros((0, 3))), r"shape \(0, 3\)"),
        (lambda: constellation_capacity(qam(16), math.nan), "snr_db is nan: a number from -100 to 100"),
        (lambda: hard_capacity(qam(16), math.inf), "snr_db is inf"),
        (lambda: ldp_bits(-0.1), "epsilon is -0.1"),
        (lambda: ldp_bits(math.inf), "epsilon is inf"),
        (lambda: laplace_bits(0, 1.0, 1.0), "features is 0"),
        (lambda: laplace_bits(3, 0.0, 1.0), "l1_radius is 0.0"),
        (lambda: laplace_bits(3, 1.0, -1.0), "scale is -1.0"),
        (lambda: upper_bounds_bits(0, 12), "channel_uses is 0: a whole number of at least 1"),
        (lambda: upper_bounds_bits(16, 12, payload_bits=0), "payload_bits is 0"),
        (lambda: upper_bounds_bits(16, math.nan), "snr_db is nan"),
    ]:
        with pytest.raises(SemlinkError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)
