# SPDX-License-Identifier: Apache-2.0
"""Closed forms and properties of MSE, PSNR and SSIM."""

import pytest
import torch

from semlink._errors import SemlinkError
from semlink.metrics import SSIM_VARIANTS, mse, psnr_db, ssim


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_a_constant_offset_has_its_square_as_mse_and_its_psnr():
    x = 0.5 * images(3, 3, 8, 8)
    y = x + torch.tensor([0.1, 0.01, 0.5]).view(3, 1, 1, 1)
    torch.testing.assert_close(mse(x, y), torch.tensor([0.01, 0.0001, 0.25]), rtol=1e-4, atol=0)
    torch.testing.assert_close(psnr_db(x, y), torch.tensor([20.0, 40.0, 6.0206]), rtol=1e-4, atol=0)


def test_psnr_of_identical_images_is_the_cap_and_of_one_grey_level_is_not():
    x = images(2, 1, 8, 8)
    assert psnr_db(x, x).tolist() == [100.0, 100.0]
    one_level = x.clone()
    one_level[:, :, 0, 0] += 1 / 255
    expected = -10 * torch.log10(torch.tensor(1 / 255**2 / 64))
    torch.testing.assert_close(psnr_db(x, one_level), expected.expand(2), rtol=1e-4, atol=0)


@pytest.mark.parametrize("variant", SSIM_VARIANTS)
def test_ssim_is_one_for_identical_images_symmetric_and_per_image(variant: str):
    x, y = images(5, 3, 28, 32), images(5, 3, 28, 32, seed=1)
    torch.testing.assert_close(ssim(x, x, variant), torch.ones(5))
    both = ssim(x, y, variant)
    assert both.shape == (5,)
    assert both.dtype == torch.float32
    torch.testing.assert_close(both, ssim(y, x, variant))
    alone = torch.cat([ssim(x[i : i + 1], y[i : i + 1], variant) for i in range(5)])
    torch.testing.assert_close(both, alone)


@pytest.mark.parametrize("variant", SSIM_VARIANTS)
def test_constant_images_leave_only_the_luminance_term(variant: str):
    x, y = torch.full((1, 1, 16, 16), 0.9), torch.full((1, 1, 16, 16), 0.7)
    expected = (2 * 0.9 * 0.7 + 1e-4) / (0.9**2 + 0.7**2 + 1e-4)
    assert ssim(x, y, variant).item() == pytest.approx(expected, abs=1e-6)


def test_global_ssim_is_the_equation_with_statistics_of_the_whole_image():
    x, y = images(4, 1, 28, 28), images(4, 1, 28, 28, seed=1)
    y = 0.6 * x + 0.4 * y
    a, b = x.flatten(1).double(), y.flatten(1).double()
    mean_a, mean_b = a.mean(1), b.mean(1)
    covariance = (a * b).mean(1) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    expected = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    expected /= (mean_a**2 + mean_b**2 + c1) * (a.var(1, correction=0) + b.var(1, correction=0) + c2)
    torch.testing.assert_close(ssim(x, y, "global"), expected.float(), rtol=0, atol=1e-6)


def test_negated_pattern_has_negative_ssim():
    x = images(1, 1, 32, 32)
    assert ssim(x, 1 - x).item() < -0.5


@pytest.mark.parametrize("variant", SSIM_VARIANTS)
def test_a_large_batch_equals_its_parts(variant: str):
    x, y = images(300, 3, 32, 32), images(300, 3, 32, 32, seed=1)  # several chunks
    torch.testing.assert_close(ssim(x, y, variant)[250:], ssim(x[250:], y[250:], variant))


@pytest.mark.parametrize("variant", SSIM_VARIANTS)
def test_ssim_gradient_is_that_of_finite_differences_and_finite_on_flat_images(variant: str):
    x, y = images(1, 1, 12, 12), images(1, 1, 12, 12, seed=1)
    step, direction = 1e-2, torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    direction /= direction.norm()
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(ssim(x, y, variant).sum(), x)
    difference = (ssim(x + step * direction, y, variant) - ssim(x - step * direction, y, variant)) / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(difference.item(), rel=0.02, abs=1e-4)
    flat = torch.zeros(1, 1, 12, 12, requires_grad=True)
    ssim(flat, flat.detach(), variant).sum().backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


def test_autocast_does_not_coarsen_ssim():
    x, y = images(4, 3, 32, 32), images(4, 3, 32, 32, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = ssim(x, y)
    assert torch.equal(inside, ssim(x, y))


def test_mistakes_are_named():
    x = images(2, 3, 16, 16)
    for metric in (mse, psnr_db, ssim):
        with pytest.raises(SemlinkError, match=r"\(2, 3, 16, 16\) and \(2, 1, 16, 16\)"):
            metric(x, x[:, :1])
        with pytest.raises(SemlinkError, match="divide bytes by 255"):
            metric((255 * x).byte(), (255 * x).byte())
        with pytest.raises(SemlinkError, match=r"\(B, C, H, W\)"):
            metric(x[0], x[0])
    with pytest.raises(SemlinkError, match="did you mean 'wang2004'"):
        ssim(x, x, "wang2003")
    with pytest.raises(SemlinkError, match="8x8 pixels are smaller than the 11x11 window"):
        ssim(x[..., :8, :8], x[..., :8, :8])
