# SPDX-License-Identifier: Apache-2.0
"""Inversion that knows the codebook: a decoder on expected codewords, against learned vector quantisation.

    symbol y (n) ─┬─> posterior of its K points ─> expected codeword (n, d) ─┬─> 4x4 map ─> ImageDecoder ─> image
                  └──────────────────────────────────────────────────────────┘

What is behind a constellation point, an arbitrary index, is what a decoder of symbols has to learn; she who has the
receiver's codebook looks it up. P(k | y) is proportional to p_k exp(-a |y - x_k|^2), which is exact over AWGN if a is
1 / N0. It starts there, at the SNR she hears with, and its scale is learned: artificial noise, or what an equaliser
leaves of fading, makes it another. The symbols go in as well, so that nothing is lost where the posterior is wrong.

May see: as Inversion; and the receiver's codebook, which index rides on which point, and how often each is sent, all
of which are public. May not see: the encoder, or any other weights of the link.

Source: S. Guo et al. (see inversion.py), section IV-B, whose attacker knows the codebook; how she uses it is not said.
The posterior mean of the codeword is that of the link's own soft decisions (deepjscc_lbvq.py).
"""

import torch
from torch import Tensor, nn

from semlink._errors import SemlinkError
from semlink.attacks.base import Tap, Threat, attacks
from semlink.attacks.inversion import Inversion
from semlink.nn import ImageDecoder
from semlink.nn.coders import LATENT_SIDE
from semlink.phy import to_features
from semlink.schemes.deepjscc_lbvq import DeepJSCCLBVQ


@attacks.register("codebook-inversion")
class CodebookInversion(Inversion):
    """Inversion from expected codewords and symbols; arguments as of Inversion.

    Raises:
        SemlinkError: the victim has no codebook; and as of Inversion.
    """

    sees = frozenset({"codebook"})

    def __init__(self, tap: Tap, width: int, taps: int) -> None:
        super().__init__(tap, width, taps)
        scheme = tap.victim.scheme.core
        if not isinstance(scheme, DeepJSCCLBVQ):
            raise SemlinkError(
                f"attack 'codebook-inversion' needs a codebook, and {type(scheme).__name__} sends no indices of "
                "codewords; attack it by 'inversion'"
            )
        self.decoder = CodewordDecoder(scheme, tap.threat, width)

    def reconstruct(self, intercepted: Tensor, snr_db: float) -> Tensor:
        """Draw images, with posteriors at the SNR that is told."""
        return self.decoder(intercepted, snr_db).float().clamp(0, 1)


class CodewordDecoder(nn.Module):
    """``(B, 2n) -> (B, C, H, W)``, from expected codewords and what was heard, as a 4x4 map of the link's positions.

    Attributes:
        trust: () log of the learned scale of 1 / N0.
    """

    points: Tensor
    usage: Tensor
    vectors: Tensor

    def __init__(self, scheme: DeepJSCCLBVQ, threat: Threat, width: int) -> None:
        super().__init__()
        self.snr_db = threat.snr_db
        self.receptions = threat.antennas * threat.transmissions
        self.trust = nn.Parameter(torch.zeros(()))
        modem = scheme.modem
        points = to_features(modem.scaled(modem.point).points[modem.point, None])  # of the indices in their order
        for name, value in (("points", points), ("usage", modem.usage), ("vectors", scheme.codebook.vectors)):
            self.register_buffer(name, value.detach().cpu().clone())
        codewords, (_, dimension) = scheme.design.channel_uses, scheme.codebook.vectors.shape
        self.draw = ImageDecoder(codewords * (dimension + 2), scheme.design.task.image_shape, width)

    def posterior(self, features: Tensor, snr_db: float) -> Tensor:
        """Return P(index | heard): (B, 2n) -> (B, n, K)."""
        heard = features.float().unflatten(1, (-1, 1, 2))
        precision = self.trust.exp() * self.receptions * 10 ** (snr_db / 10)
        # Features are sqrt(2) times the rails, so half their squared distance is that of the symbols.
        exponents = -precision * (heard - self.points).square().sum(-1) / 2
        return torch.softmax(exponents + self.usage.clamp_min(1e-12).log(), -1)

    def forward(self, features: Tensor, snr_db: float | None = None) -> Tensor:
        """Look up and draw; at the threat's own SNR if none is given."""
        with torch.autocast(features.device.type, enabled=False):  # a posterior in bfloat16 would be a coarse one
            expected = self.posterior(features, self.snr_db if snr_db is None else snr_db) @ self.vectors
            both = torch.cat([expected, features.float().unflatten(1, (-1, 2))], -1)
        return self.draw(both.reshape(len(both), LATENT_SIDE**2, -1).transpose(1, 2).flatten(1))
