# SPDX-License-Identifier: Apache-2.0
"""Image quality: MSE, PSNR and three named readings of SSIM, one float32 value per image.

All are differentiable and computed in float32, whatever autocast says. That values lie in [0, 1] is not checked: a
decoder in training may leave the range.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from semlink._errors import SemlinkError, check_name

SSIM_VARIANTS = ("wang2004", "skimage", "global")

PSNR_CAP_DB = 100.0
_C1, _C2 = 0.01**2, 0.03**2  # (K L)^2 with K1 = 0.01, K2 = 0.03 and the range L = 1
_CHUNK = 1 << 17  # pixels handled at a time: the maps of one chunk stay in cache and memory stays bounded


def mse(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean squared error of each pair.

    Args:
        x: (B, C, H, W) floating, in [0, 1].
        y: same shape.

    Returns:
        (B,) float32.

    Raises:
        SemlinkError: the shapes differ, are not (B, C, H, W), or the values are integers.
    """
    chunks = _chunks(*pair(x, y))
    return torch.cat([mse_loss(a, b, reduction="none").mean((1, 2, 3)) for a, b in chunks])


def psnr_db(x: Tensor, y: Tensor) -> Tensor:
    """Return 10 log10(1 / MSE) of each pair, at most 100 dB.

    The cap stands for "identical": without it one identical pair would make the average over images infinite. It is
    reached only where the root mean squared error is below 1e-5, far under half a grey level of 8 bits (0.002).

    Args:
        x: (B, C, H, W) floating, in [0, 1].
        y: same shape.

    Returns:
        (B,) float32. What is reported is the mean of this over images, not the PSNR of the mean MSE.

    Raises:
        SemlinkError: as :func:`mse`.
    """
    return -10 * torch.log10(mse(x, y).clamp_min(10 ** (-PSNR_CAP_DB / 10)))


def ssim(x: Tensor, y: Tensor, variant: str = "wang2004") -> Tensor:
    """Return the structural similarity of each pair: per channel, then the mean over channels.

    ``wang2004``: Gaussian window of 11x11, sigma 1.5, averaged where the window lies inside the image (Z. Wang et al.,
    IEEE Trans. Image Process. 13(4), 2004). ``skimage``: uniform window of 7x7 and sample covariances, the default of
    scikit-image. ``global``: one window as large as the image, with uniform weights: eq. (8) of the IRSC paper
    (arXiv:2406.16878) read literally; its unnamed constants are taken as Wang's.

    Args:
        x: (B, C, H, W) floating, in [0, 1].
        y: same shape.
        variant: one of ``SSIM_VARIANTS``.

    Returns:
        (B,) float32 in [-1, 1].

    Raises:
        SemlinkError: as :func:`mse`; the variant is unknown; the image is smaller than the window.
    """
    check_name("SSIM variant", variant, SSIM_VARIANTS)
    x, y = pair(x, y)
    height, width = x.shape[2:]
    down, across = _window(variant, height), _window(variant, width)
    if height < len(down) or width < len(across):
        raise SemlinkError(
            f"images of {height}x{width} pixels are smaller than the {len(down)}x{len(across)} window of SSIM variant "
            f"'{variant}'; use larger images or variant 'global'"
        )
    size = len(down) * len(across)
    unbias = size / (size - 1) if variant == "skimage" else 1.0
    with torch.autocast(x.device.type, enabled=False):
        rows, columns = _bands(down, height).to(x.device), _bands(across, width).to(x.device).T
        return torch.cat([_ssim(a, b, rows, columns, unbias) for a, b in _chunks(x, y)])


def pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return both images as float32, or raise SemlinkError if they are no pair of (B, C, H, W) floating tensors."""
    if x.shape != y.shape:
        raise SemlinkError(
            f"images of shapes {tuple(x.shape)} and {tuple(y.shape)} cannot be compared; shapes must agree"
        )
    if x.ndim != 4 or not x.numel():
        raise SemlinkError(f"images of shape {tuple(x.shape)}: (B, C, H, W), none of them 0, is expected")
    for image in (x, y):
        if not image.is_floating_point():
            raise SemlinkError(f"images are {image.dtype}: floating values in [0, 1] are expected; divide bytes by 255")
    return x.float(), y.float()


def _chunks(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Return the pairs, a few whole images at a time."""
    step = max(1, _CHUNK // x[0].numel())
    return zip(x.split(step), y.split(step), strict=True)


def _window(variant: str, size: int) -> Tensor:
    """Return the one-dimensional window (n,), float64, of sum 1, for a side of ``size`` pixels."""
    if variant == "wang2004":
        weights = torch.exp(-torch.arange(-5, 6, dtype=torch.float64).square() / (2 * 1.5**2))
    else:
        weights = torch.ones(7 if variant == "skimage" else size, dtype=torch.float64)
    return weights / weights.sum()


def _bands(window: Tensor, size: int) -> Tensor:
    """Return (size - n + 1, size) float32, whose product with a signal is its filtering by ``window``, valid part."""
    offset = torch.arange(size) - torch.arange(size - len(window) + 1).unsqueeze(1)
    inside = (offset >= 0) & (offset < len(window))
    return torch.where(inside, window[offset.clamp(0, len(window) - 1)], 0.0).float()


def _ssim(x: Tensor, y: Tensor, rows: Tensor, columns: Tensor, unbias: float) -> Tensor:
    # Covariances do not care about offsets, float32 does: E[x^2] - E[x]^2 of a bright flat image would err by more than
    # C2 / 10^4. So each channel is centred first, and its mean returns only in the luminance term.
    offset_x, offset_y = x.mean((2, 3), keepdim=True), y.mean((2, 3), keepdim=True)
    x, y = x - offset_x, y - offset_y
    # Only the sum of both variances occurs in the formula, so four blurs do, not five.
    blurred = rows @ (torch.stack([x, y, x * x + y * y, x * y]) @ columns)
    mean_x, mean_y, square, product = blurred.unbind(0)
    variances = unbias * (square - mean_x * mean_x - mean_y * mean_y)
    covariance = unbias * (product - mean_x * mean_y)
    mean_x, mean_y = mean_x + offset_x, mean_y + offset_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x * mean_x + mean_y * mean_y + _C1)
    return (luminance * ((2 * covariance + _C2) / (variances + _C2))).mean((1, 2, 3))
