# SPDX-License-Identifier: Apache-2.0
"""Image quality against scikit-image and torchmetrics."""

import numpy as np
import pytest
import torch
from skimage import data as pictures
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import peak_signal_noise_ratio as torchmetrics_psnr
from torchmetrics.functional.image import structural_similarity_index_measure as torchmetrics_ssim

from semlink.metrics import mse, psnr_db, ssim

WANG = {"gaussian_weights": True, "use_sample_covariance": False, "sigma": 1.5}


def natural(side: int) -> torch.Tensor:
    """Tiles of a photograph, (n, 3, side, side)."""
    photo = torch.from_numpy(pictures.astronaut()).permute(2, 0, 1).float() / 255
    tiles = photo.unfold(1, side, side).unfold(2, side, side)
    return tiles.permute(1, 2, 0, 3, 4).reshape(-1, 3, side, side)[:12]


def cases() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(0)
    x = torch.rand(6, 3, 32, 32, generator=g)
    tiles, small = natural(64), natural(28)[:, :1]
    noisy = (tiles + 0.1 * torch.randn(tiles.shape, generator=g)).clamp(0, 1)
    blurred = torch.nn.functional.avg_pool2d(tiles, 5, 1, 2)
    levels = torch.tensor([0.0, 0.2, 0.7, 1.0]).view(4, 1, 1, 1)
    return {
        "random": (x, torch.rand(6, 3, 32, 32, generator=g)),
        "noisy": (tiles, noisy),
        "blurred": (tiles, blurred),
        "unrelated": (small, small.roll(1, 0)),
        "flat": (levels.expand(4, 1, 28, 28), levels.flip(0).expand(4, 1, 28, 28)),
        "flat and dithered": (
            levels.expand(4, 1, 28, 28),
            (levels + 0.01 * torch.randn(4, 1, 28, 28, generator=g)).clamp(0, 1),
        ),
    }


def by_scikit_image(x: torch.Tensor, y: torch.Tensor, **options: object) -> torch.Tensor:
    values = [
        structural_similarity(a, b, data_range=1.0, channel_axis=0, **options)
        for a, b in zip(x.double().numpy(), y.double().numpy(), strict=True)
    ]
    return torch.tensor(values, dtype=torch.float32)


@pytest.mark.parametrize("case", cases())
def test_wang2004_is_scikit_image_with_gaussian_weights(case: str):
    x, y = cases()[case]
    torch.testing.assert_close(ssim(x, y), by_scikit_image(x, y, **WANG), rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", cases())
def test_skimage_variant_is_the_default_of_scikit_image(case: str):
    x, y = cases()[case]
    torch.testing.assert_close(ssim(x, y, "skimage"), by_scikit_image(x, y), rtol=0, atol=1e-5)


def test_the_variants_differ_so_that_their_names_matter():
    x, y = cases()["noisy"]
    means = [ssim(x, y, variant).mean().item() for variant in ("wang2004", "skimage", "global")]
    assert min(abs(a - b) for i, a in enumerate(means) for b in means[:i]) > 0.005


def test_torchmetrics_agrees_where_no_window_touches_its_padding():
    # It averages over the padded image too. Its map inside the image is the common ground.
    x, y = cases()["noisy"]
    _, full = torchmetrics_ssim(
        x, y, data_range=1.0, gaussian_kernel=True, sigma=1.5, reduction="none", return_full_image=True
    )
    assert full.shape == x.shape
    inner = full[..., 5:-5, 5:-5].mean((1, 2, 3))
    torch.testing.assert_close(ssim(x, y), inner, rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", ["random", "noisy", "blurred"])
def test_mse_and_psnr_agree_with_scikit_image_and_torchmetrics(case: str):
    x, y = cases()[case]
    rows = list(zip(x.double().numpy(), y.double().numpy(), strict=True))
    np.testing.assert_allclose(mse(x, y), [mean_squared_error(a, b) for a, b in rows], rtol=1e-5)
    np.testing.assert_allclose(
        psnr_db(x, y), [peak_signal_noise_ratio(a, b, data_range=1.0) for a, b in rows], rtol=1e-5
    )
    per_image = torchmetrics_psnr(x, y, data_range=1.0, reduction="none", dim=(1, 2, 3))
    torch.testing.assert_close(psnr_db(x, y), per_image, rtol=1e-5, atol=0)
