# SPDX-License-Identifier: Apache-2.0
"""IRSC: networks that learn to live with interference, told the channels or not.

    image_k ─> semantic encoder ─> [H] ─> JSC encoder ─> ||X_k||_F^2 = Nt N ─> channel ─> Y_k
    image_k <─ semantic decoder <─────── JSC decoder <─ [H] <──────────────────────────── Y_k

``irsc-csir`` feeds H, as 2 K^2 Nt Nr reals, to the decoders; ``irsc-csitr`` to encoders and decoders; ``csi-free`` is
the same network without. Loss: the users' mean squared errors, weighted (network.py).

Source: Y. Wang et al., arXiv:2406.16878, sections II and III, Table I: an FC layer with ReLU, a layer that fuses
features and H with ReLU where there is H, an FC layer to 64 reals; at the receiver a fusing layer with ReLU, an FC
layer with ReLU, an FC layer to 784 with Tanh. The hidden widths cannot be read there; 256 is ours.
"""

import torch
from torch import Tensor

from semlink import phy
from semlink._errors import SemlinkError, check_flag
from semlink.nn.stacked import stacked_mlp
from semlink.schemes.base import Design, Sent, schemes
from semlink.schemes.network import NetworkScheme, State, reals_of


class _Learned(NetworkScheme):
    """Fully connected transmitters and receivers.

    Args:
        width: features between the layers.
        options: as NetworkScheme.
    """

    told_receiver = False

    def __init__(self, design: Design, width: int = 256, **options: bool | int | float | str) -> None:
        super().__init__(design, **options)  # pyright: ignore[reportArgumentType]
        medium, uses = self.medium, design.channel_uses
        sent, heard = 2 * medium.transmit_antennas * uses, 2 * self.heard_antennas * uses
        fused = [width + self.csi_features, width] if self.feedback else [width]
        told = self.told_features if self.told_receiver else 0
        self.semantic_encoder = self.make_encoder(width)
        self.jsc_encoder = stacked_mlp(self.users, [*fused, sent])
        self.jsc_decoder = stacked_mlp(self.users, [heard + told, width, width])
        self.semantic_decoder = self.make_decoder(width)

    @property
    def told_features(self) -> int:
        """Real numbers that each receiver is told."""
        return self.csi_features

    def transmit(self, images: Tensor, generator: torch.Generator, state: State | None = None) -> Sent:
        """Encode, for the channels in ``state`` where transmitters are told them."""
        del generator
        features = self.semantic_encoder(images)
        if self.feedback:
            features = torch.cat([features, self.csi_of(_present(state))], 2)
        reals = self.jsc_encoder(features).float()
        return Sent(to_block(reals, self.medium.transmit_antennas))

    def receive(self, received: phy.Received, header: Tensor | None = None, state: State | None = None) -> Tensor:
        """Decode, with what receivers are told of H."""
        heard = reals_of(received.symbols)
        if self.told_receiver:
            heard = torch.cat([heard, self.csi_of(_present(state))], 2)
        return self.semantic_decoder(self.jsc_decoder(heard).relu())


def _present(state: State | None) -> State:
    if state is None:
        raise SemlinkError("this scheme works with the channels: give the state that 'draw' returned")
    return state


def to_block(reals: Tensor, antennas: int) -> Tensor:
    """Return ``reals: (B, K, 2 Nt N)`` as blocks (B, K, Nt, N) complex64 of energy Nt N (equation 2)."""
    return phy.normalise_block(torch.view_as_complex(reals.unflatten(2, (antennas, -1, 2))))


@schemes.register("csi-free")
class CSIFree(_Learned):
    """Nobody is told the channels."""


@schemes.register("irsc-csir")
class IRSCCSIR(_Learned):
    """Receivers are told the channels.

    Args:
        local: whether each is told the gains to itself alone, which it can measure; paper B tells it all of H.
        width: features between the layers.
        options: as NetworkScheme.
    """

    told_receiver = True

    def __init__(
        self, design: Design, local: bool = False, width: int = 256, **options: bool | int | float | str
    ) -> None:
        self.local = check_flag("local", local)
        super().__init__(design, width, **options)

    @property
    def told_features(self) -> int:
        """Real numbers that each receiver is told: 2 K^2 Nt Nr, or those of its own K channels."""
        return self.csi_features // self.users if self.local else self.csi_features

    def csi_of(self, state: State) -> Tensor:
        """Return all of H for each receiver, or the gains to itself: (B, K, told_features) float32."""
        return torch.view_as_real(phy.local_csi(state.known)).flatten(2) if self.local else super().csi_of(state)


@schemes.register("irsc-csitr")
class IRSCCSITR(_Learned):
    """Receivers and transmitters are told the channels."""

    told_receiver = True
    feedback = True
