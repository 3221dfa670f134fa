# SPDX-License-Identifier: Apache-2.0
"""Estimates of mutual information: Gaussian pairs, exact values, scikit-learn and SciPy.

Statistical comparisons have fixed seeds and allow four standard errors of the mean over pairs, and for nearest
neighbours, whose bias is known by size only, what the test says.
"""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import digamma
from sklearn.feature_selection import mutual_info_regression

from semlink._errors import SemlinkError
from semlink.metrics import copula_mi_bits, estimators, gaussian_mi_bits, ksg_mi_bits

LN2 = math.log(2)
ALL = [ksg_mi_bits, gaussian_mi_bits, copula_mi_bits]


def pairs(rho: float, dimensions: int, count: int = 20, samples: int = 400, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x, other = torch.randn(2, count, samples, dimensions, dtype=torch.float64, generator=generator)
    return x, rho * x + math.sqrt(1 - rho**2) * other


def mean_and_error(values: torch.Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


@pytest.mark.parametrize("estimator", ALL)
@pytest.mark.parametrize(("rho", "dimensions"), [(0.0, 1), (0.5, 1), (0.9, 1), (0.0, 2), (-0.6, 2)])
def test_gaussian_pairs(estimator, rho, dimensions):
    truth = -dimensions / 2 * math.log2(1 - rho**2)
    mean, error = mean_and_error(estimator(*pairs(rho, dimensions)))
    assert error < 0.03
    assert abs(mean - truth) < 4 * error + 0.02 * truth  # 2 %: neighbours and ranks of 400 samples are not local


def test_neighbours_see_what_lines_do_not():
    x, noise = pairs(0, 1)
    y = x.abs() + 0.1 * noise
    assert abs(mean_and_error(gaussian_mi_bits(x, y))[0]) < 0.05
    assert mean_and_error(ksg_mi_bits(x, y))[0] > 1.5


@pytest.mark.parametrize(("dx", "dy", "samples"), [(1, 1, 5), (2, 3, 12), (4, 1, 30)])
@pytest.mark.parametrize("rho", [0.0, 0.7])
def test_the_gaussian_estimate_has_no_bias(dx, dy, samples, rho):
    """Few samples: without the correction the mean is off by 0.1 to 1 bit."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8000, samples, dx, dtype=torch.float64, generator=generator)
    y = torch.randn(8000, samples, dy, dtype=torch.float64, generator=generator)
    y[..., 0] = rho * x[..., 0] + math.sqrt(1 - rho**2) * y[..., 0]
    mean, error = mean_and_error(gaussian_mi_bits(x, y))
    assert abs(mean + 0.5 * math.log2(1 - rho**2)) < 4 * error


def test_the_gaussian_estimate_is_entropies_of_scipy():
    x, y = (v[0] for v in pairs(0.5, 2, 1, 60))
    freedom = 59

    def entropy(values: np.ndarray) -> float:
        d = values.shape[1]
        bias = sum(digamma((freedom - i) / 2) for i in range(d)) + d * math.log(2 / freedom)
        return stats.multivariate_normal(cov=np.cov(values.T)).entropy() - bias / 2

    expected = (entropy(x.numpy()) + entropy(y.numpy()) - entropy(torch.cat([x, y], 1).numpy())) / LN2
    assert gaussian_mi_bits(x[None], y[None]).item() == pytest.approx(expected, abs=1e-10)


def test_the_copula_is_ranks_of_scipy():
    x, y = pairs(0.5, 2, 3, 50)
    x = (5 * x).round()  # ties share their mean rank

    def scores(values: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(stats.norm.ppf(stats.rankdata(values.numpy(), axis=1) / 51))

    torch.testing.assert_close(copula_mi_bits(x, y), gaussian_mi_bits(scores(x), scores(y)))


def test_monotone_maps_leave_the_copula_as_it_is():
    x, y = pairs(0.6, 2, 4, 100)
    torch.testing.assert_close(copula_mi_bits(x.exp(), y**3), copula_mi_bits(x, y))
    assert not torch.allclose(gaussian_mi_bits(x.exp(), y**3), gaussian_mi_bits(x, y), atol=0.01)


@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("rho", [0.0, 0.8])
def test_neighbours_agree_with_scikit_learn(k, rho):
    x, y = pairs(rho, 1, 3, 200)
    found = ksg_mi_bits(x, y, k)
    for i in range(3):
        expected = mutual_info_regression(x[i], y[i, :, 0], n_neighbors=k, discrete_features=False, random_state=0)
        # It cuts negative values to 0, and adds noise of 1e-10 that may exchange neighbours of equal distance.
        assert max(0.0, found[i].item()) == pytest.approx(expected[0] / LN2, abs=1e-6)


def slow_ksg(x: np.ndarray, y: np.ndarray, k: int) -> float:
    """Return the estimate in nats for (N, dx) and (N, dy), sample by sample."""
    x, y = ((v - v.mean(0)) / v.std(0, ddof=1) for v in (x, y))
    n, total = len(x), 0.0
    for i in range(n):
        in_x = np.abs(np.delete(x, i, 0) - x[i]).max(1)
        in_y = np.abs(np.delete(y, i, 0) - y[i]).max(1)
        radius = np.sort(np.maximum(in_x, in_y))[k - 1]
        total += digamma((in_x < radius).sum() + 1) + digamma((in_y < radius).sum() + 1)
    return digamma(k) + digamma(n) - total / n


@pytest.mark.parametrize(("dx", "dy", "k"), [(1, 2, 3), (3, 2, 4)])
def test_neighbours_in_more_dimensions_by_loops(dx, dy, k):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 90, dx, dtype=torch.float64, generator=generator)
    y = 5 * torch.randn(2, 90, dy, dtype=torch.float64, generator=generator) + x[..., :1]
    found = ksg_mi_bits(x, y, k)
    for i in range(2):
        assert found[i].item() == pytest.approx(slow_ksg(x[i].numpy(), y[i].numpy(), k) / LN2, abs=1e-10)


@pytest.mark.parametrize(("samples", "k"), [(50, 1), (200, 3), (200, 10)])
def test_identical_variables_reach_what_neighbours_can_count(samples, k):
    x = pairs(0, 1, 2, samples)[0]
    expected = (digamma(samples) - digamma(k)) / LN2
    torch.testing.assert_close(ksg_mi_bits(x, x, k), torch.full((2,), expected, dtype=torch.float64))
    torch.testing.assert_close(ksg_mi_bits(x, -x, k), torch.full((2,), expected, dtype=torch.float64))


@pytest.mark.parametrize("estimator", ALL)
def test_units_order_and_company_do_not_matter(estimator):
    x, y = pairs(0.6, 2, 3, 100)
    y = y[..., :1]
    found = estimator(x, y)
    assert found.shape == (3,)
    assert found.dtype == torch.float64
    torch.testing.assert_close(estimator(y, x), found)
    units = torch.tensor([1e-3, 255.0], dtype=torch.float64)
    torch.testing.assert_close(estimator(x * units + 7, 40 * y), found, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.cat([estimator(x[i : i + 1], y[i : i + 1]) for i in range(3)]), found)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(estimator(x[:, order], y[:, order]), found)
    torch.testing.assert_close(estimator(x.float(), y.float()), found, rtol=1e-4, atol=1e-3)


def test_rows_held_at_a_time_do_not_matter(monkeypatch):
    x, y = pairs(0.6, 1, 3, 100)
    found = ksg_mi_bits(x, y)
    monkeypatch.setattr(estimators, "_CHUNK", 3 * 100 * 7)
    torch.testing.assert_close(ksg_mi_bits(x, y), found)


@pytest.mark.parametrize("estimator", ALL)
def test_what_no_estimator_takes(estimator):
    x, y = pairs(0.5, 1, 2, 20)
    broken, flat = x.clone(), x.clone()
    broken[1, 3, 0] = math.inf
    flat[1] = 0.5
    for call, said in [
        (lambda: estimator(x[0], y), r"samples of shape \(20, 1\): \(pairs, samples, dimensions\)"),
        (lambda: estimator(x[:, :1], y[:, :1]), "samples of shape"),
        (lambda: estimator(x, y[:, :-1]), r"x \(2, 20, 1\) and y \(2, 19, 1\): the same pairs and samples"),
        (lambda: estimator(x, y[:1]), "the same pairs and samples"),
        (lambda: estimator(x, broken), "not finite"),
        (lambda: estimator(x, flat), "coordinate 0 of pair 1 is constant"),
    ]:
        with pytest.raises(SemlinkError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_what_single_estimators_refuse():
    x, y = pairs(0.5, 1, 2, 20)
    wide, other = pairs(0.5, 3, 2, 20)
    twice = torch.cat([x, 2 * x + 1], 2)
    coarse = (x > 0).double()
    for call, said in [
        (lambda: ksg_mi_bits(x, y, 20), "20 samples have no neighbour number 20: more than k"),
        (lambda: ksg_mi_bits(x, y, 0), "k is 0"),
        (lambda: ksg_mi_bits(wide, other), "20 samples of 6 dimensions in all: nearest neighbours need at least 64"),
        (lambda: ksg_mi_bits(coarse, coarse), "more than 3 samples coincide"),
        (lambda: gaussian_mi_bits(wide[:, :6], other[:, :6]), "6 samples of 6 dimensions in all: a covariance needs"),
        (lambda: gaussian_mi_bits(x, 3 - 2 * x), "coordinate of pair 0 is a linear function of others in x and y"),
        (lambda: gaussian_mi_bits(y, twice), "pair 0 is a linear function of others within y"),
        (lambda: gaussian_mi_bits(twice, y), "linear function of others in x and y together"),
        (lambda: copula_mi_bits(x, x.exp()), "linear function"),
    ]:
        with pytest.raises(SemlinkError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert ksg_mi_bits(x, y, 19).isfinite().all()
    assert gaussian_mi_bits(wide[:, :7], other[:, :7]).isfinite().all()
    assert ksg_mi_bits(*pairs(0.5, 3, 1, 64)).isfinite().all()


def test_rounding_does_not_hide_a_linear_function():
    x, other = pairs(0, 2, 40, 30)
    y = (x * 0.3).sum(2, keepdim=True) - 0.7
    for i in range(40):
        with pytest.raises(SemlinkError, match="linear function"):
            gaussian_mi_bits(x[i : i + 1], torch.cat([y, other], 2)[i : i + 1])
