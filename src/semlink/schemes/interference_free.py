# SPDX-License-Identifier: Apache-2.0
"""The upper bound of paper B: what is sent arrives, without noise and without interference.

    image_k ─> semantic encoder ─> JSC encoder ─> X_k ─────────────> JSC decoder ─> semantic decoder ─> image_k

It bounds what a network of this size gets through so many symbols, not what any network does.

Source: Y. Wang et al., arXiv:2406.16878, section IV-B.
"""

import torch
from torch import Tensor

from semlink import phy
from semlink.schemes.base import schemes
from semlink.schemes.irsc import CSIFree
from semlink.schemes.network import State


@schemes.register("interference-free")
class InterferenceFree(CSIFree):
    """The networks of ``csi-free`` on a perfect channel.

    Args:
        width: as CSIFree.
        options: as NetworkScheme.
    """

    @property
    def heard_antennas(self) -> int:
        """Nt: a decoder is given what was sent."""
        return self.medium.transmit_antennas

    def carry(self, symbols: Tensor, state: State, generator: torch.Generator) -> phy.Received:
        """Hand each receiver what its transmitter sent."""
        return phy.Received(symbols, None, torch.zeros(len(symbols), 1, device=symbols.device))
