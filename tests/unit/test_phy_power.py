# SPDX-License-Identifier: Apache-2.0
"""The power constraint and full-resolution analog modulation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semlink._errors import SemlinkError
from semlink.phy import AWGN, mean_power, normalise_power, peak_power, to_features, to_symbols


def draw(batch: int, n: int, seed: int = 0, dtype: torch.dtype = torch.complex64) -> torch.Tensor:
    return torch.randn(batch, n, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def power(symbols: torch.Tensor) -> torch.Tensor:
    """Measure in float64, by a route the product does not use."""
    return (symbols.to(torch.complex128) * symbols.to(torch.complex128).conj()).real.mean(1)


@settings(max_examples=100, deadline=None)
@given(
    exponents=st.lists(st.floats(-18, 18), min_size=1, max_size=6),
    n=st.sampled_from([1, 2, 7, 64, 1000]),
    seed=st.integers(0, 2**31),
)
def test_each_row_has_unit_energy_whatever_its_batch_mates(exponents, n, seed):
    rows = draw(len(exponents), n, seed) * torch.tensor([10.0**e for e in exponents])[:, None]
    together = normalise_power(rows)
    assert together.dtype == torch.complex64
    assert (power(together) - 1).abs().max() < 1e-6
    alone = torch.cat([normalise_power(row[None]) for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-7)


def test_direction_is_kept_and_scale_is_not():
    x = draw(3, 50)
    unit = normalise_power(x)
    torch.testing.assert_close(unit, x / power(x).sqrt().float()[:, None])
    torch.testing.assert_close(normalise_power(x * 7.5e8), unit)
    torch.testing.assert_close(normalise_power(unit), unit)


def test_one_spike_in_a_silent_row_has_unit_energy():
    x = torch.zeros(1, 100, dtype=torch.complex64)
    x[0, 3] = 1e-18
    unit = normalise_power(x)
    assert unit[0, 3].real.item() == pytest.approx(10, rel=1e-6)
    assert peak_power(unit).item() == pytest.approx(100, rel=1e-6)


def test_a_zero_row_stays_zero_and_disturbs_nobody():
    x = draw(3, 16)
    expected = normalise_power(x[[0, 2]])
    x[1] = 0
    unit = normalise_power(x)
    assert (unit[1] == 0).all()
    torch.testing.assert_close(unit[[0, 2]], expected)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-18, 1e-6, 1e18, 1e30])
def test_gradients_are_finite_from_silence_to_thunder(scale):
    x = (draw(2, 8) * torch.tensor([[1.0], [scale]])).requires_grad_()
    cotangent = draw(2, 8, 1)
    normalise_power(x).backward(cotangent)
    assert x.grad is not None
    assert torch.view_as_real(x.grad).isfinite().all()
    assert (x.grad[0].abs() > 0).all()
    if scale:
        # The result does not change along x, so the gradient is orthogonal to x.
        along = (x.grad.to(torch.complex128) * x.detach().to(torch.complex128).conj()).sum(1).real
        across = x.grad.abs().double().norm(dim=1) * x.detach().abs().double().norm(dim=1)
        assert (along.abs() / across).max() < 1e-5


def test_gradcheck_in_double():
    x = draw(2, 5, dtype=torch.complex128).requires_grad_()
    assert torch.autograd.gradcheck(normalise_power, (x,))
    y = (draw(2, 5, dtype=torch.complex128) * 1e-3).requires_grad_()
    assert torch.autograd.gradcheck(normalise_power, (y,), eps=1e-9)


def test_mean_and_peak_power():
    x = torch.tensor([[3 + 4j, 0, 1j, 0], [1, 1, 1, 1]], dtype=torch.complex64)
    assert mean_power(x).tolist() == [6.5, 1]
    assert peak_power(x).tolist() == [25, 1]


def test_features_ride_in_pairs_on_the_rails():
    features = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    torch.testing.assert_close(to_symbols(features) * math.sqrt(2), torch.tensor([[1 + 2j, 3 + 4j]]))
    wide = torch.randn(4, 128, generator=torch.Generator().manual_seed(3))
    assert to_symbols(wide).shape == (4, 64)
    torch.testing.assert_close(to_features(to_symbols(wide)), wide)


def test_unit_features_make_unit_symbols():
    features = torch.randn(6, 128, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    features = (features / features.square().mean(1, keepdim=True).sqrt()).float()
    assert (power(to_symbols(features)) - 1).abs().max() < 1e-6


def test_noise_on_a_unit_feature_has_variance_n0():
    # d real entries are d / 2 symbols, so each entry of unit power meets noise of 1 / SNR, not of half or twice that.
    features = torch.randn(100, 2000, generator=torch.Generator().manual_seed(5))
    received = AWGN()(to_symbols(features), 10.0, torch.Generator().manual_seed(6))
    error = (to_features(received.symbols) - features).double().square()
    assert abs(error.mean() - 0.1) < 5 * error.std() / math.sqrt(error.numel())


def test_odd_dimensions_are_refused():
    with pytest.raises(SemlinkError, match="7 real features: an even number"):
        to_symbols(torch.zeros(2, 7))


def test_bfloat16_features_become_complex64_and_gradients_come_back():
    features = torch.randn(2, 8, generator=torch.Generator().manual_seed(7)).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        symbols = normalise_power(to_symbols(features))
        back = to_features(symbols)
    assert symbols.dtype == torch.complex64
    assert back.dtype == torch.float32
    assert (power(symbols) - 1).abs().max() < 1e-6
    back[:, 0].sum().backward()
    assert features.grad is not None
    assert (features.grad != 0).any()
