# SPDX-License-Identifier: Apache-2.0
"""Parts of variational feature encoding: the rate of a noisy feature, mixing, scales that follow the noise.

The rate of a feature f that is received as y = f + sigma n is the divergence of y's distribution from a prior that does
not depend on the image, here the log-uniform p(y) ~ 1 / |y|, under which only the SNR of the feature counts:

    KL( N(f, sigma^2) || 1 / |y| ) = E ln|f / sigma + n| - E ln|n|        (0 for f = 0)
                                   ~ ln(1 + snr) / 2 + K1 sigmoid(K3 ln snr - K2),    snr = f^2 / sigma^2

The first term is what a Gaussian channel can carry at that SNR, in nats. The fit is that of D. Molchanov, A. Ashukha,
D. Vetrov, "Variational dropout sparsifies deep neural networks", ICML 2017, eq. (14), whose alpha is 1 / snr.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semlink import phy

K1, K2, K3 = 0.63576, 1.87320, 1.48695
_HIDDEN = 16


def log_uniform_kl(snr: Tensor) -> Tensor:
    """Return the rate of features of SNR ``snr >= 0`` (f^2 / sigma^2, per real dimension), in nats, of the same shape.

    Value and gradient are finite for every finite SNR, 0 too; the fit is within 0.01 nat of the integral.
    """
    # The floor, 120 dB below the noise, keeps the logarithm finite; its share of the result is below 1e-18.
    return snr.log1p() / 2 + K1 * torch.sigmoid(K3 * (snr + 1e-12).log() - K2)


def noise_level(received: phy.Received) -> Tensor:
    """Return the root of the MMSE error of a unit-energy symbol, mean over an image: (B, 1), 0 (no noise) to 1.

    Without fading it is ``sqrt(N0 / (1 + N0))``: close to sigma where noise is weak, and bounded in a deep fade.
    """
    gain = 1.0 if received.csi is None else torch.view_as_real(received.csi).square().sum(-1)
    return _error(received.noise_variance, gain).mean(1, keepdim=True).sqrt()


def _error(noise_variance: Tensor, gain: float | Tensor = 1.0) -> Tensor:
    return noise_variance / (gain + noise_variance)


class UnitRows(nn.Module):
    """A linear map whose rows are scaled to unit length: ``(B, d) -> (B, d)``; it starts as a random rotation.

    Whatever it mixes, an output is as large as the input allows; a scale put on it alone says how large it is sent.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(features, features)))

    def forward(self, features: Tensor) -> Tensor:
        """Mix a batch of features."""
        return F.linear(features, F.normalize(self.weight, dim=1))


class FixedScale(nn.Module):
    """A learned scale for each of ``features`` dimensions, the same at every noise level; it starts at 1."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))

    def forward(self, noise_variance: Tensor | None) -> Tensor:
        """Return the scales, (1, d)."""
        del noise_variance
        return self.weight[None]


class MonotoneScale(nn.Module):
    """Scales that never fall when the noise rises: weights that count by their size, increasing activations.

    So a dimension that is active at one noise level is active at every higher one. The last bias, one for each
    dimension, starts at 1.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        widths = (1, _HIDDEN, _HIDDEN, _HIDDEN, features)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.uniform_(last.weight, -1 / _HIDDEN, 1 / _HIDDEN)
        nn.init.ones_(last.bias)

    def forward(self, noise_variance: Tensor) -> Tensor:
        """Return the scales, (B, d), 0 or more, for complex noise variances ``(B, 1)``."""
        x = _error(noise_variance).sqrt()
        for i, layer in enumerate(self.layers):
            x = F.linear(x.tanh() if i else x, layer.weight.abs(), layer.bias)  # pyright: ignore[reportArgumentType,reportCallIssue]
        return x.relu()


class Inlet(nn.Module):
    """First layers of a receiver: undo the mixing, then refine, with the noise level if ``adaptive``.

    ``(B, d) -> (B, d)``. The mixing is undone exactly at the start: the link begins as one without mixing.
    """

    def __init__(self, mixing: UnitRows, adaptive: bool) -> None:
        super().__init__()
        features = len(mixing.weight)
        self.unmix = nn.Linear(features, features)
        with torch.no_grad():
            self.unmix.weight.copy_(mixing.weight.T)
            self.unmix.bias.zero_()
        self.noise = nn.Sequential(nn.Linear(1, _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, _HIDDEN)) if adaptive else None
        wide = features + (_HIDDEN if adaptive else 0)
        self.refine = nn.Sequential(nn.Linear(wide, features), nn.GELU(), nn.Linear(features, features))

    def forward(self, features: Tensor, level: Tensor) -> Tensor:
        """Return features for the answering network; ``level: (B, 1)`` is what :func:`noise_level` returns."""
        unmixed = self.unmix(features)
        seen = unmixed if self.noise is None else torch.cat([unmixed, self.noise(level)], 1)
        return unmixed + self.refine(seen)
