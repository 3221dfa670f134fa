# SPDX-License-Identifier: Apache-2.0
"""Cross-link leakage: in an interference channel every other receiver is an eavesdropper.

    image_k ─> transmitter k ─> ... + H_jk X_k + ... ─> Y_j ─┬─> own image ─> X_j again ─> Y_j - H_jj X_j ─┐
                                                             └──> decoder of image_k <─────────────────────┘

Receiver j decodes its own image, as it is meant to; sends it through its own transmitter's encoder, which is public, to
know what was sent to it; takes that out of what it heard, if its protocol tells it its channel; and decodes from both
what it can of another user's image. What it can compute beyond that is the scheme's (``NetworkScheme.overhear``): where
codes or precoders are known it estimates the other user's features as that user's receiver does. Receiver k - 1 listens
to user k, and the last one to the first: K of the K (K - 1) pairs. They stand for the others, since the channels of all
pairs are drawn alike; of two users they are all.

May see: what arrives at receiver j, through noise of its own; what its protocol tells it of the channels; every public
encoder, codebook and precoder. May not see: the channels' true gains if receivers estimate them; other receivers' Y.

Trained on groups of the attacker's images over the SNRs that the network was trained over; loss: mean squared error.
"""

import torch
from torch import Tensor

from semlink._errors import SemlinkError
from semlink.attacks.base import Drawing, Grant, Tap, Threat, attacks
from semlink.nn.stacked import SemanticDecoder, stacked_mlp
from semlink.schemes import Link, Network


class Neighbour(Tap):
    """What receivers hear of users that do not speak to them.

    Raises:
        SemlinkError: the victim is of one user, or the threat has means that a receiver of the network has not.
    """

    of_network = True

    def __init__(self, link: Link, threat: Threat, sees: frozenset[Grant] = frozenset()) -> None:
        super().__init__(link, threat, sees)
        assert isinstance(link, Network)
        if link.scheme.users < 2:
            raise SemlinkError("a cross-link attack is by the receiver of another user; the network has 1 user")
        if threat != Threat(threat.snr_db):
            raise SemlinkError(
                "a cross-link attack is by receivers of the network: their antennas, channels and CSI are its own"
            )
        self._network, self._prepared = link, False

    @property
    def users(self) -> int:
        """K."""
        return self._network.scheme.users

    @property
    def features(self) -> int:
        """Real features of each listener."""
        images = torch.zeros(1, *self._network.scheme.group_shape, device=next(self._link.scheme.parameters()).device)
        return self.overhear(images, torch.Generator().manual_seed(0), self.threat.snr_db).shape[2]

    @torch.no_grad()
    def overhear(self, images: Tensor, generator: torch.Generator, snr_db: float | None = None) -> Tensor:
        """Have groups ``images: (B, K, C, H, W)`` sent; return what is heard of each user, (B, K, features).

        ``snr_db`` is that of all channels; None draws them as in the network's training.
        """
        scheme, images = self._network.scheme, images.float()
        with torch.autocast(images.device.type, enabled=False):
            if snr_db is not None:
                state = self._network.draw(len(images), snr_db, generator)
            else:
                if not self._prepared:
                    scheme.prepare(images)
                    self._prepared = True
                state = scheme.training_state(len(images), generator, images.device)
            sent = scheme.transmit(images, generator, state)
            return scheme.overhear(scheme.carry(sent.symbols, state, generator), generator, state)


@attacks.register("cross-link")
class CrossLink(Drawing):
    """Decoders of what receivers overhear, one for each pair of a user and the receiver before.

    Args:
        tap: what they hear.
        width: a quarter of the features between the decoders' layers.
        taps: must be 0: there is no perceptual loss.

    Raises:
        SemlinkError: a perceptual loss is asked for.
    """

    tap: Neighbour
    tapped = Neighbour

    def __init__(self, tap: Neighbour, width: int, taps: int) -> None:
        super().__init__(tap)
        if taps:
            raise SemlinkError("attack 'cross-link' has no perceptual loss; take perceptual = 'none'")
        self.hidden = stacked_mlp(tap.users, [tap.features, 4 * width, 4 * width])
        self.decoder = SemanticDecoder(tap.users, 4 * width, tap.image_shape)

    def forward(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return ``loss``, the mean squared error over groups (B, K, C, H, W)."""
        del targets
        drawn = self._draw(self.tap.overhear(images, generator)).float()
        return {"loss": (drawn - images).square().mean()}

    def reconstruct(self, intercepted: Tensor, snr_db: float) -> Tensor:
        """Draw every user's image, (B, K, C, H, W), from what is overheard of it."""
        del snr_db
        return self._draw(intercepted).float()

    def _draw(self, heard: Tensor) -> Tensor:
        return self.decoder(self.hidden(heard).relu())
