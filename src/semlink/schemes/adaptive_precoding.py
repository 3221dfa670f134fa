# SPDX-License-Identifier: Apache-2.0
"""Precoding for what reaches everybody, with networks that know how well it went: CSI at both ends.

    image_k ─> encoder ─> [gates of q_k] ─> s_k ─> V_k s_k ─> channel ─> Y_k ─> U_k^H Y_k ─> decoder [q_k] ─> image_k

Three things differ from semi-conventional. Transceivers minimise the sum of mean square errors, not the largest: a user
in a bad channel is not paid for by all others, and over channels everybody has good ones. They begin where the largest
is least, so their sum is never above that of semi-conventional. Where there are more users than alignment can serve,
K > Nt + Nr - 1, several channel uses are precoded as one and fewer streams are sent in them, so that what is sent can
be told apart; there a start in random directions finds precoders that one in the users' strongest does not. And
what precoder and filter leave of each stream, its mean square error q_k, which both ends can compute, differs by orders
of magnitude between channels: the encoder gates its features by it, so that a bad channel carries what matters most,
and the decoder is told how far to trust what it hears. Streams are rotated so that the best comes first.

Loss: as network.py.
"""

import torch
from torch import Tensor, nn

from semlink import phy
from semlink._errors import SemlinkError, check_flag, check_name, check_whole
from semlink.nn.stacked import StackedLinear, stacked_mlp
from semlink.phy.transceivers import random_directions
from semlink.schemes.base import Design, Sent, schemes
from semlink.schemes.network import State
from semlink.schemes.semi_conventional import Precoded

ROUNDS, ITERATIONS = 64, 48  # of the design: for the largest error, then for the sum
SPAN = 4
CRITERIA = ("sum", "largest")


@schemes.register("adaptive-precoding")
class AdaptivePrecoding(Precoded):
    """Networks that are told the mean square errors of their streams.

    Args:
        streams: d of each user in ``span`` channel uses; 0: as many as can be told apart, (Nt + Nr - 1) span / K.
        span: channel uses that are precoded as one; 0: 1 where one stream of every user can be aligned, else 4.
        criterion: what the transceivers minimise: the sum of mean square errors, or the largest, as semi-conventional.
        told: whether encoders and decoders know the errors; with neither this nor the sum it is semi-conventional.
        width: features between the layers of the networks.
        options: as Precoded.
    """

    def __init__(
        self,
        design: Design,
        streams: int = 0,
        span: int = 0,
        criterion: str = "sum",
        told: bool = True,
        width: int = 256,
        **options: bool | int | float | str,
    ) -> None:
        users, *antennas = [check_whole(name, options.get(name, 2)) for name in _SIZES]  # pyright: ignore[reportArgumentType]
        most = max(1, sum(antennas) - 1)  # users that one stream each can be aligned for
        span = check_whole("span", span, 0) or (1 if users <= most else SPAN)
        streams = check_whole("streams", streams, 0) or max(1, span * min(most, users) // users)
        super().__init__(design, streams, span, **options)  # pyright: ignore[reportArgumentType]
        self.criterion = check_name("criterion", criterion, CRITERIA)
        known = self.streams + 1 if check_flag("told", told) else 0
        self.semantic_encoder = self.make_encoder(width)
        self.gates = StackedLinear(self.users, known, width) if known else None
        if self.gates is not None:
            nn.init.zeros_(self.gates.weight)  # every gate begins at 1: what q is good for is learned
            nn.init.zeros_(self.gates.bias)
        self.jsc_encoder = stacked_mlp(self.users, [width, self.reals])
        self.jsc_decoder = stacked_mlp(self.users, [self.reals + known, width, width])
        self.semantic_decoder = self.make_decoder(width)

    def design_for(self, H: Tensor, snr_db: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return V, U and the mean square error of each stream, the best first, (B, K, d) float32."""
        if self.criterion == "largest":
            found = phy.minimise_max_mse(H, snr_db, self.streams)
        else:
            if self.span > 1:  # the same for every channel: a design must not depend on what stands beside it
                start = random_directions(H[:1], self.streams, torch.Generator().manual_seed(0)).expand(
                    len(H), -1, -1, -1
                )
            else:
                start = phy.minimise_max_mse(H, snr_db, self.streams, iterations=ROUNDS).precoders
            found = phy.minimise_sum_mse(H, snr_db, self.streams, ITERATIONS, start)
        V, U, mse = phy.by_quality(H, found)
        return V, U, mse.float()

    def transmit(self, images: Tensor, generator: torch.Generator, state: State | None = None) -> Sent:
        """Encode for the quality of the channel, then precode."""
        del generator
        features = self.semantic_encoder(images)
        if self.gates is not None:
            features = features * 2 * self.gates(self._quality(state)).sigmoid()
        return Sent(self.precode(self.jsc_encoder(features).float(), state))

    def receive(self, received: phy.Received, header: Tensor | None = None, state: State | None = None) -> Tensor:
        """Filter, then decode what was heard, knowing its quality."""
        heard = self.filtered(received, state)
        if self.gates is not None:
            heard = torch.cat([heard, self._quality(state)], 2)
        return self.semantic_decoder(self.jsc_decoder(heard).relu())

    def _quality(self, state: State | None) -> Tensor:
        """Return what both ends know of the streams: (B, K, d + 1), logarithms of errors and of the SNR."""
        if state is None or state.mse is None:
            raise SemlinkError("both ends know the quality of the channels: give the state that 'draw' returned")
        level = (state.snr_db / 10)[:, None, None].expand(-1, self.users, 1)
        return torch.cat([state.mse.clamp(1e-5, 1).log10(), level], 2)


_SIZES = ("users", "transmit_antennas", "receive_antennas")
