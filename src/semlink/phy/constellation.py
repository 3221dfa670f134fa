# SPDX-License-Identifier: Apache-2.0
"""PSK and square QAM: mapping indices to symbols, and back by hard or soft decisions.

The noise variance ``n0`` is complex everywhere: n ~ CN(0, n0), n0 / 2 on each rail. Over fading, demodulate what
:func:`semlink.phy.zero_force` returns, with its noise variance.
"""

import functools
import math
from typing import Literal

import torch
from torch import Tensor, nn

from semlink._errors import SemlinkError, check_name

Family = Literal["psk", "qam"]
Labelling = Literal["natural", "gray"]


class Constellation(nn.Module):
    """M points of the complex plane, with bit labels.

    Points (as real pairs: weight files and ``.to(dtype)`` treat complex buffers badly) and labels are buffers, so a
    scale that was measured and frozen travels with a scheme's weights. Square QAM is a product of two rails of sqrt(M)
    levels: index ``row * sqrt(M) + column``, rows on the imaginary rail; the leading half of the bits labels the row.

    Attributes:
        rails: (M, 2) float32, real and imaginary parts of the points.
        bits: (M, log2 M) uint8, the label of each index, most significant bit first.
        order: M.
        family: ``psk`` or ``qam``.
        labelling: ``natural`` or ``gray``.
    """

    rails: Tensor
    bits: Tensor

    def __init__(self, rails: Tensor, bits: Tensor, family: Family, labelling: Labelling) -> None:
        super().__init__()
        self.order = len(rails)
        self.family: Family = family
        self.labelling: Labelling = labelling
        self.register_buffer("rails", rails.float())
        self.register_buffer("bits", bits.to(torch.uint8))

    @property
    def points(self) -> Tensor:
        """The constellation, (M,) complex64."""
        return torch.view_as_complex(self.rails.float())

    def extra_repr(self) -> str:
        """Show what it is when a scheme is printed."""
        return f"order={self.order}, family={self.family}, labelling={self.labelling}"

    def scaled_under(self, distribution: Tensor) -> "Constellation":
        """Return this constellation with unit mean energy when index i is sent with probability ``distribution[i]``.

        A scale for uniform indices lets an encoder that prefers the corners send more power than it may: up to 2.55 dB
        more for 16-QAM. Measure the distribution on training images, scale once, keep it.

        Args:
            distribution: (M,) non-negative, of any positive sum (counts will do).

        Raises:
            SemlinkError: the shape is wrong, an entry is negative or not finite, or all are zero.
        """
        p = distribution.detach().double().to(self.rails.device)
        if p.shape != (self.order,) or not bool(((p >= 0) & p.isfinite()).all()) or not bool(p.sum() > 0):
            raise SemlinkError(
                f"an index distribution needs {self.order} finite, non-negative numbers, not all zero; "
                "count the indices of training images"
            )
        energy = (p / p.sum() * self.rails.double().square().sum(1)).sum()
        return Constellation(self.rails.double() / energy.sqrt(), self.bits, self.family, self.labelling)

    def modulate(self, indices: Tensor) -> Tensor:
        """Map ``indices: (B, n) int64`` to symbols (B, n) complex64."""
        return self.points.index_select(0, indices.flatten()).view(indices.shape)  # half the time of points[indices]

    def demodulate(self, symbols: Tensor) -> Tensor:
        """Return the nearest point's index for ``symbols: (B, n) complex64``: (B, n) int64.

        PSK rounds the angle, QAM each rail to one of sqrt(M) levels: M distances are never formed.
        """
        rails = torch.view_as_real(symbols)
        if self.family == "psk":
            turns = (symbols.angle() - self.points[0].angle()) * (self.order / (2 * math.pi))
            return turns.round().long().remainder(self.order)
        side = math.isqrt(self.order)
        spacing = self.rails.amax() * 2 / (side - 1)
        column, row = (rails / spacing + (side - 1) / 2).round().clamp(0, side - 1).long().unbind(-1)
        return row * side + column

    def posteriors(self, symbols: Tensor, n0: float | Tensor, prior: Tensor | None = None) -> Tensor:
        """Return ``P(index | y)``, differentiable in ``y``: (B, n, M) float32.

        Args:
            symbols: (B, n) complex64, received.
            n0: complex noise variance, a number, (B, 1) or (B, n).
            prior: (M,) probabilities of the indices; uniform if None.
        """
        exponents = self._exponents(symbols, n0)
        return torch.softmax(exponents if prior is None else exponents + prior.log().to(exponents), dim=-1)

    def llr(self, symbols: Tensor, n0: float | Tensor, method: Literal["exact", "max-log"] = "exact") -> Tensor:
        """Return ``ln P(bit = 1 | y) - ln P(bit = 0 | y)`` for uniform indices: (B, n, log2 M) float32.

        Positive means 1. ``max-log`` keeps the nearest point of each kind; ``exact`` sums over all. A bit of QAM
        depends on one rail alone, so sqrt(M) distances on each rail suffice.

        Args:
            symbols: (B, n) complex64, received.
            n0: complex noise variance, a number, (B, 1) or (B, n).
            method: ``exact`` or ``max-log``.

        Raises:
            SemlinkError: the method is unknown.
        """
        check_name("LLR method", method, ("exact", "max-log"))
        combine = torch.logaddexp if method == "exact" else torch.maximum
        if self.family == "psk":
            places, levels, labels = symbols[None], self.points, self.bits
        else:
            side, half = math.isqrt(self.order), self.bits.shape[1] // 2
            # the imaginary rail holds the leading bits
            places, levels, labels = (
                torch.stack([symbols.imag, symbols.real]),
                self.rails[:side, 0],
                self.bits[:side, half:],
            )
        # level by level: sums over a small last axis are several times slower
        exponents = [-(places - level).abs().square() / n0 for level in levels]
        found = []
        for bit in labels.bool().T.tolist():
            one = functools.reduce(combine, (each for each, is_one in zip(exponents, bit, strict=True) if is_one))
            zero = functools.reduce(combine, (each for each, is_one in zip(exponents, bit, strict=True) if not is_one))
            found.append(one - zero)
        return torch.stack(found, -1).movedim(0, -2).flatten(-2)

    def expected_symbol(self, probabilities: Tensor) -> Tensor:
        """Return ``sum_i p_i c_i``, differentiable in p: (B, n, M) float32 -> (B, n) complex64.

        One-hot rows give exactly what :meth:`modulate` gives.
        """
        wide = probabilities if probabilities.dtype == torch.float64 else probabilities.float()
        # Not a matrix product: autocast or a lowered matmul precision would round the points to bfloat16 or TF32.
        return torch.view_as_complex((wide[..., None] * self.rails).sum(-2))

    def _exponents(self, symbols: Tensor, n0: float | Tensor) -> Tensor:
        """Return ``-|y - c_i|^2 / n0``: (B, n, M) float32."""
        squares = (torch.view_as_real(symbols)[..., None, :] - self.rails).square().sum(-1)
        return -squares / _align(n0, squares)


def _align(n0: float | Tensor, like: Tensor) -> float | Tensor:
    """Give a tensor ``n0`` of (B, 1) or (B, n) the trailing axes that it must broadcast over."""
    if not isinstance(n0, Tensor) or n0.ndim == 0:
        return n0
    return n0.reshape(*n0.shape, *[1] * (like.ndim - n0.ndim))


def _gray(values: Tensor) -> Tensor:
    return values ^ (values >> 1)


def _binary(values: Tensor, width: int) -> Tensor:
    """Write (M,) integers as (M, width) bits, most significant first."""
    return (values[:, None] >> torch.arange(width - 1, -1, -1)) & 1


def psk(order: int, labelling: Labelling = "natural") -> Constellation:
    """Return M-PSK on the unit circle; index i has angle ``2 pi i / M``, for QPSK 45 degrees more.

    Raises:
        SemlinkError: ``order`` is not a power of two, or the labelling is unknown.
    """
    check_name("labelling", labelling, ("natural", "gray"))
    if order < 2 or order & (order - 1):
        raise SemlinkError(f"PSK of order {order}: a power of two (2, 4, 8, 16, ...) is expected")
    index = torch.arange(order)
    angle = 2 * math.pi * index.double() / order + (math.pi / 4 if order == 4 else 0)
    bits = _binary(_gray(index) if labelling == "gray" else index, order.bit_length() - 1)
    return Constellation(torch.stack([angle.cos(), angle.sin()], dim=1), bits, "psk", labelling)


def qam(order: int, labelling: Labelling = "natural") -> Constellation:
    """Return square M-QAM of unit mean energy under uniform indices.

    Index ``row * sqrt(M) + column``: columns ascend along the real axis, rows along the imaginary one. ``gray`` labels
    each rail so that neighbours differ in one bit.

    Raises:
        SemlinkError: ``order`` is not an even power of two, or the labelling is unknown.
    """
    check_name("labelling", labelling, ("natural", "gray"))
    side = math.isqrt(max(order, 0))
    if side < 2 or side * side != order or side & (side - 1):
        raise SemlinkError(f"square QAM of order {order}: an even power of two (4, 16, 64, 256, ...) is expected")
    row, column = torch.arange(order) // side, torch.arange(order) % side
    rails = (2 * torch.stack([column, row], dim=1) - (side - 1)).double() / math.sqrt(2 * (order - 1) / 3)
    labels = _gray(row) * side + _gray(column) if labelling == "gray" else row * side + column
    return Constellation(rails, _binary(labels, order.bit_length() - 1), "qam", labelling)
