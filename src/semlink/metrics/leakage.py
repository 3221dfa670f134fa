# SPDX-License-Identifier: Apache-2.0
"""Mutual information between the grey levels of an image and of its reconstruction: "MI leakage", one value per pair.

Papers print such numbers without bins or unit, and common code differs by a factor of ten on the same pair. Here the
estimator has a name, and what is reported is the excess over unrelated pairs:

    excess = mi_leakage(images, drawn) - mi_null(images, drawn, generator)
    leakage_bits = bootstrap_interval(excess, generator=generator)

This measures likeness of grey levels, pixel by pixel. It is no bound on what the reconstruction reveals.

Variants (all on images rounded to 8 bits, as a file would hold them):
    semlink32: 32 bins of 8 grey levels, bits, Miller-Madow corrected, per channel, then the mean over channels.
    semlink32-luminance: the same on the luminance 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601), or the only channel.
    brett20-nats: joint histogram of all channels together, 20 bins over the range of each image, nats.
    sk256-nats: 256 grey levels as labels, all channels together, nats; scikit-learn's ``mutual_info_score``.
    matlab256-bits: the same in bits; File Exchange 13289 gives this for images that use the whole range 0 to 255 (on
        narrower ones its marginal and joint bins disagree).
    skimage-nmi: (H(x) + H(y)) / H(x, y) with 100 bins over the range of each image, 1 to 2; two flat images give 1.
"""

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from semlink._errors import SemlinkError, check_name
from semlink.metrics.quality import pair


class _Variant(NamedTuple):
    histogram_of: Literal["channel", "luminance", "image"]
    bins: int
    stretched: bool  # bins span the range of the data, as numpy.histogram does; otherwise 0 to 255
    result: Literal["bits", "corrected bits", "nats", "ratio"]


_VARIANTS = {
    "semlink32": _Variant("channel", 32, False, "corrected bits"),
    "semlink32-luminance": _Variant("luminance", 32, False, "corrected bits"),
    "brett20-nats": _Variant("image", 20, True, "nats"),
    "sk256-nats": _Variant("image", 256, False, "nats"),
    "matlab256-bits": _Variant("image", 256, False, "bits"),
    "skimage-nmi": _Variant("image", 100, True, "ratio"),
}
MI_VARIANTS = tuple(_VARIANTS)

_CELLS = 1 << 18  # pixels, or cells of histograms, that are worked on at a time


def mi_leakage(x: Tensor, y: Tensor, variant: str = "semlink32") -> Tensor:
    """Return the estimate of each pair, with nothing subtracted.

    Of unrelated images it is not 0: few pixels fill many bins, and smooth images agree by chance; see :func:`mi_null`.
    With the correction a value may be slightly negative, and an identical pair gives the entropy of its histogram plus
    (K - 1) / (2 N ln 2) bits for K occupied bins and N pixels (G. Miller, 1955).

    Args:
        x: (B, C, H, W) floating, in [0, 1].
        y: same shape.
        variant: one of ``MI_VARIANTS``.

    Returns:
        (B,) float32, in the unit of the variant.

    Raises:
        SemlinkError: shapes differ or are not (B, C, H, W); values are outside [0, 1]; the variant is unknown.
    """
    chosen = _VARIANTS[check_name("MI variant", variant, _VARIANTS)]
    a, b = (_grey_levels(images, chosen) for images in pair(x, y))
    return _estimates(a, b, chosen)


def mi_null(x: Tensor, y: Tensor, generator: torch.Generator, variant: str = "semlink32", shuffles: int = 1) -> Tensor:
    """Return what the estimator gives for unrelated pairs: each x with the y of another image.

    The partner is drawn by a random cyclic permutation, so no image meets its own reconstruction. An interval of the
    difference over images errs on the wide side (1.3 times too wide on CIFAR-10), since a bright or busy reconstruction
    raises its own estimate and the null of another image.

    Args:
        x: (B, C, H, W) floating, in [0, 1].
        y: same shape; its order is that of ``x``.
        generator: draws the permutations.
        variant: one of ``MI_VARIANTS``.
        shuffles: permutations averaged per image.

    Returns:
        (B,) float32, to be subtracted from :func:`mi_leakage` image by image.

    Raises:
        SemlinkError: as :func:`mi_leakage`; fewer than two images; ``shuffles`` below 1.
    """
    if len(x) < 2:
        raise SemlinkError(f"the null of MI leakage needs at least 2 images to pair with others, got {len(x)}")
    if shuffles < 1:
        raise SemlinkError(f"shuffles is {shuffles}: at least 1 is needed")
    chosen = _VARIANTS[check_name("MI variant", variant, _VARIANTS)]
    a, b = (_grey_levels(images, chosen) for images in pair(x, y))
    partners = _partners(len(x), shuffles, generator)
    return torch.stack([_estimates(a, b[other.to(b.device)], chosen) for other in partners]).mean(0)


def _partners(count: int, shuffles: int, generator: torch.Generator) -> Iterator[Tensor]:
    for _ in range(shuffles):
        ring = torch.randperm(count, generator=generator, device=generator.device)
        other = torch.empty_like(ring)
        other[ring] = ring.roll(1)  # everyone meets the neighbour on a ring in random order
        yield other


def _grey_levels(images: Tensor, variant: _Variant) -> Tensor:
    """Return (B, rows, N) uint8: one row for each histogram of an image."""
    if variant.histogram_of == "luminance" and images.shape[1] != 1:
        if images.shape[1] != 3:
            raise SemlinkError(f"images of {images.shape[1]} channels have no luminance; 1 or 3 (red, green, blue) do")
        red, green, blue = images.unbind(1)
        images = (0.299 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)
    rows, found = 1 if variant.histogram_of == "image" else images.shape[1], torch.empty_like(images, dtype=torch.uint8)
    step = max(1, _CELLS // images.shape[1:].numel())
    for part, place in zip(images.split(step), found.split(step), strict=True):
        levels = (255 * part).round_()
        low, high = (float(v) for v in levels.aminmax())
        if not (low >= 0 and high <= 255):  # NaN ends here too
            raise SemlinkError(
                f"image values reach from {low / 255:g} to {high / 255:g}: values in [0, 1] are expected"
            )
        place.copy_(levels)
    return found.reshape(len(images), rows, -1)


def _estimates(a: Tensor, b: Tensor, variant: _Variant) -> Tensor:
    """(B, rows, N) uint8 twice -> (B,) float32; a part at a time, so that its histograms stay in the cache."""
    step = max(1, _CELLS // (a.shape[1] * max(variant.bins**2, a.shape[2])))
    return torch.cat([_estimate(u, v, variant) for u, v in zip(a.split(step), b.split(step), strict=True)])


def _estimate(a: Tensor, b: Tensor, variant: _Variant) -> Tensor:
    """(B, rows, N) uint8 twice -> (B,) float32."""
    images, rows, pixels = a.shape
    x, y = _codes(a.flatten(0, 1), variant), _codes(b.flatten(0, 1), variant)
    joint, cells = torch.add(y, x, alpha=variant.bins), variant.bins**2
    corrected = variant.result == "corrected bits"
    if cells <= 4 * pixels:
        counts, _ = _count(joint, cells)
        counts = counts.view(-1, variant.bins, variant.bins)
        found = [_entropy_of_cells(each, pixels, corrected) for each in (counts.sum(2), counts.sum(1), counts)]
    else:
        found = [
            _entropy_of_samples(each, size) for each, size in ((x, variant.bins), (y, variant.bins), (joint, cells))
        ]
    entropy_x, entropy_y, entropy_xy = found
    value = entropy_x + entropy_y - entropy_xy
    if variant.result == "ratio":
        flat = (joint == joint[:, :1]).all(1)
        value = torch.where(flat, 1.0, (entropy_x + entropy_y) / entropy_xy)
    if variant.result.endswith("bits"):
        value = value / math.log(2)
    return value.view(images, rows).mean(1).float()


def _codes(levels: Tensor, variant: _Variant) -> Tensor:
    """Return the bin of each grey level, (rows, N) int32."""
    if not variant.stretched:
        return (levels >> (8 - variant.bins.bit_length() + 1)).int()  # bins of 2^k grey levels
    values = levels.double()
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    margin = 0.5 * (low == high)  # numpy's treatment of a flat image
    low, high = low - margin, high + margin
    edges = low + torch.arange(variant.bins, device=levels.device) * ((high - low) / variant.bins)
    # Grey levels often fall on an edge; the arithmetic above is numpy.linspace's, so that they fall to the same side.
    return torch.searchsorted(edges, values, right=True, out_int32=True) - 1


def _count(codes: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Return how often each row of codes (rows, N) int32 has each code, (rows cells,), and where every code counts."""
    rows = len(codes)
    first = torch.arange(0, cells * rows, cells, dtype=torch.int32, device=codes.device)
    index = (codes + first.unsqueeze(1)).flatten()
    return torch.bincount(index, minlength=rows * cells), index


def _entropy_of_cells(counts: Tensor, samples: int, corrected: bool) -> Tensor:
    """Return entropies in nats of counts (rows, ...) of so many samples, float64; the counts' own, or Miller-Madow."""
    numbers = torch.arange(samples + 1, dtype=torch.float64, device=counts.device)
    term = -torch.xlogy(numbers, numbers) / samples  # of a cell that holds so many
    if corrected:
        term += (numbers > 0) / (2 * samples)  # (K - 1) / 2N for K occupied cells
    sums = term.index_select(0, counts.flatten()).view(len(counts), -1).sum(1)
    return math.log(samples) - corrected / (2 * samples) + sums


def _entropy_of_samples(codes: Tensor, cells: int) -> Tensor:
    """Return the plug-in entropy in nats of each row of codes (rows, N) int32, float64.

    Looked up at the samples, not summed over the cells: 256 x 256 cells are many more than the pixels of an image.
    """
    counts, index = _count(codes, cells)
    numbers = torch.arange(codes.shape[1] + 1, dtype=torch.float64, device=codes.device)
    return math.log(codes.shape[1]) - numbers.log()[counts[index].view(codes.shape)].mean(1)
