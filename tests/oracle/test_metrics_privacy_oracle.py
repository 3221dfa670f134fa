# SPDX-License-Identifier: Apache-2.0
"""Privacy accounting against scipy's distributions, numerical integration and arithmetic of 60 digits."""

import math

import mpmath
import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad

from semlink.metrics.privacy import clopper_pearson, composed_delta, gaussian_delta, gaussian_epsilon, gaussian_mu


@pytest.mark.parametrize(("mu", "epsilon"), [(0.3, 0.05), (1.0, 1.0), (2.5, 0.9), (4.0, 10.0)])
def test_gaussian_delta_is_the_hockey_stick_divergence_of_two_normals(mu, epsilon):
    def excess(y: float) -> float:
        return max(0.0, stats.norm.pdf(y - mu) - math.exp(epsilon) * stats.norm.pdf(y))

    expected, _ = quad(excess, -10, mu + 10, points=[epsilon / mu + mu / 2], epsabs=1e-12, limit=200)
    assert gaussian_delta(mu, epsilon) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(("mu", "epsilon"), [(0.01, 0.05), (1e-3, 1e-4), (90.0, 4434.0), (0.27, 1.0), (500.0, 1.3e5)])
def test_gaussian_delta_loses_no_digits_where_its_terms_cancel_or_overflow(mu, epsilon):
    with mpmath.workdps(60):
        m, e = mpmath.mpf(mu), mpmath.mpf(epsilon)
        exact = float(mpmath.ncdf(m / 2 - e / m) - mpmath.exp(e) * mpmath.ncdf(-m / 2 - e / m))
    assert gaussian_delta(mu, epsilon) == pytest.approx(exact, rel=1e-7)


@pytest.mark.parametrize("delta", [1e-9, 1e-5, 0.2])
def test_gaussian_inverses_in_sixty_digits(delta):
    with mpmath.workdps(60):

        def exact(mu: mpmath.mpf, epsilon: mpmath.mpf) -> mpmath.mpf:
            return mpmath.ncdf(mu / 2 - epsilon / mu) - mpmath.exp(epsilon) * mpmath.ncdf(-mu / 2 - epsilon / mu)

        for epsilon in (0.05, 0.9, 8.0):
            mu = mpmath.findroot(lambda m, e=epsilon: exact(m, e) - delta, gaussian_mu(epsilon, delta))
            assert gaussian_mu(epsilon, delta) == pytest.approx(float(mu), rel=1e-9)
        epsilon = mpmath.findroot(lambda e: exact(mpmath.mpf(90), e) - delta, gaussian_epsilon(90.0, delta))
        assert gaussian_epsilon(90.0, delta) == pytest.approx(float(epsilon), rel=1e-9)


@pytest.mark.parametrize(("epsilon", "releases", "total"), [(0.05, 128, 2.0), (0.9, 100, 60.0), (0.01, 12_800, 5.0)])
def test_composition_is_the_hockey_stick_divergence_of_two_binomials(epsilon, releases, total):
    truth, lies = 1 / (1 + math.exp(-epsilon)), np.arange(releases + 1)
    one, other = (stats.binom.pmf(lies, releases, p) for p in (1 - truth, truth))
    expected = np.maximum(0, one - math.exp(total) * other).sum()
    assert composed_delta(epsilon, releases, total) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (1, 1), (0, 50), (17, 50), (50, 50), (9_500, 50_000)])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_clopper_pearson_is_that_of_scipy(successes, trials, level):
    expected = stats.binomtest(successes, trials).proportion_ci(level, method="exact")
    np.testing.assert_allclose(clopper_pearson(successes, trials, level), expected, rtol=1e-9, atol=1e-15)
