# SPDX-License-Identifier: Apache-2.0
"""Sending codeword indices as constellation points, and deciding what was sent.

index ─> point[index] ─> constellation, scaled under the index distribution ─> x ─> channel
one-hot (hard) or P(index | y) (soft), (B, n, K) <─ decision <─ zero forcing (when there is CSI) <─ y
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semlink import phy

_MEMORY = 0.99  # of the running distribution: an average over the last hundred batches or so
_KEEP = 0.95  # a new assignment must spare 5 % of the expected distance, so that networks need not follow trifles
_SEARCHES = 160  # random starts of the assignment's search times K


class IndexModem(nn.Module):
    """Indices to symbols and back.

    In training :meth:`count` keeps a running distribution of the indices, as BatchNorm keeps its statistics; it is a
    buffer, frozen in evaluation, and the constellation has unit mean energy under it. Which index rides on which point
    is a buffer too.

    Attributes:
        constellation: K points, of unit energy under uniform indices.
        usage: (K,) float32, the distribution of indices.
        point: (K,) int64, the point of each index; natural order until :meth:`assign` is called.
        batches: how often :meth:`count` was called.
    """

    usage: Tensor
    point: Tensor
    batches: Tensor

    def __init__(self, constellation: phy.Constellation) -> None:
        super().__init__()
        self.constellation = constellation
        self.register_buffer("usage", torch.full((constellation.order,), 1 / constellation.order))
        self.register_buffer("point", torch.arange(constellation.order))
        self.register_buffer("batches", torch.tensor(0))

    @torch.no_grad()
    def count(self, indices: Tensor) -> None:
        """Let the indices of a training batch, (B, n) int64, enter the running distribution."""
        share = torch.bincount(indices.flatten(), minlength=len(self.usage)) / indices.numel()
        self.usage.lerp_(share.to(self.usage), 1 - _MEMORY)
        self.batches += 1

    def modulate(self, indices: Tensor) -> Tensor:
        """Map ``indices: (B, n) int64`` to symbols (B, n) complex64."""
        return self.scaled(self.point).modulate(self.point[indices])

    def decide(self, received: phy.Received, soft: bool) -> Tensor:
        """Return weights of the indices, (B, n, K) float32: the nearest point's one-hot, or posteriors if ``soft``.

        Posteriors take the running distribution as the prior.
        """
        seen, constellation = phy.zero_force(received), self.scaled(self.point)
        if not soft:
            nearest = constellation.demodulate(seen.symbols)
            return F.one_hot(self.point.argsort()[nearest], constellation.order).float()
        of_points = constellation.posteriors(seen.symbols, seen.noise_variance, self._by_point(self.point))
        return of_points[..., self.point]

    def scaled(self, point: Tensor) -> phy.Constellation:
        """Return the constellation with unit mean energy when indices ride on the points ``point: (K,)``."""
        return self.constellation.scaled_under(self._by_point(point))

    def assign(self, distances: Tensor, snr_db: float) -> None:
        """Put indices whose codewords are near each other, ``distances: (K, K)``, on points that are easily confused.

        A quadratic assignment problem: the expected distance (:meth:`expected_distance`) is minimised by pairwise
        exchange (scipy) from the present assignment and from random ones. The present one stays unless that spares 5 %.
        """
        from scipy.optimize import quadratic_assignment  # here, since only this needs it and importing it takes a while

        order, rng = len(self.usage), np.random.default_rng(0)
        flow = self.usage.cpu().double().numpy()[:, None] * distances.cpu().numpy()
        transition = phy.transition_matrix(self.constellation, snr_db)
        present = self.point.cpu().numpy()
        starts = [present, *(rng.permutation(order) for _ in range(max(1, _SEARCHES // order)))]
        found = []
        for start in starts:
            options = {"partial_guess": np.stack([np.arange(order), start], axis=1), "rng": rng}
            found.append(
                torch.from_numpy(quadratic_assignment(flow, transition, method="2opt", options=options).col_ind)
            )
        costs = [self.expected_distance(distances, snr_db, point) for point in found]
        if min(costs) < _KEEP * self.expected_distance(distances, snr_db, self.point):
            self.point.copy_(found[int(np.argmin(costs))])

    def expected_distance(self, distances: Tensor, snr_db: float, point: Tensor) -> float:
        """Return ``sum_ij p_i P(point_j decided | point_i sent) distances_ij`` of hard decisions over AWGN."""
        to, constellation = point.cpu(), self.scaled(point)
        transition = torch.from_numpy(phy.transition_matrix(constellation, snr_db))[to][:, to]
        return float((self.usage.cpu().double()[:, None] * transition * distances.cpu()).sum())

    def _by_point(self, point: Tensor) -> Tensor:
        """Return the distribution of the points, (K,)."""
        return self.usage[point.to(self.usage.device).argsort()]


def mean_snr_db(received: phy.Received) -> float:
    """Return Es/N0 in dB of what was received, its mean noise variance taken (unit symbol energy)."""
    return -10 * math.log10(float(received.noise_variance.mean()))
