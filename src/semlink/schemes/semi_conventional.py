# SPDX-License-Identifier: Apache-2.0
"""Linear precoders and filters designed for each channel, with networks around them: CSI at both ends.

    image_k ─> encoder ─> s_k (d streams of N) ─> V_k s_k = X_k ─> channel ─> Y_k ─> U_k^H Y_k ─> decoder ─> image_k

The precoders V_k and the filters U_k minimise the largest mean square error of all users' streams, by
phy.minimise_max_mse. Networks see neither channels nor filters; they train through them, on a bank of channels that are
designed beforehand, and are tested on others. At equal channel uses one stream (d = 1) sends N symbols, two send 2 N.

Source: Y. Wang et al., arXiv:2406.16878, section IV-B, equation 9, whose V_k is Nt x Nr, which reads as d = 2 for its
2x2 antennas; its transceivers are those of A. Dong et al., IEEE Trans. Veh. Technol. 65(8), 2016.
"""

import hashlib
from abc import abstractmethod
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from semlink import phy
from semlink._errors import SemlinkError, check_whole
from semlink.nn.stacked import stacked_mlp
from semlink.schemes.base import Design, Sent, schemes
from semlink.schemes.network import NetworkScheme, State, reals_of

_KEPT = 32  # batches of channels whose designs are remembered


class Precoded(NetworkScheme):
    """Transmitters that precode ``streams`` streams over ``span`` channel uses at a time, for each channel.

    Args:
        streams: d of each user.
        span: channel uses that are precoded as one, as if they were antennas.
        bank: channels that training draws from; their transceivers are designed once.
        options: as NetworkScheme.

    Raises:
        SemlinkError: more streams than antennas at either end, or ``span`` does not divide the channel uses.
    """

    feedback = True
    _bank: State | None

    def __init__(
        self, design: Design, streams: int, span: int, bank: int = 4096, **options: bool | int | float | str
    ) -> None:
        super().__init__(design, **options)  # pyright: ignore[reportArgumentType]
        if self.fading == "batch":
            raise SemlinkError("fading is 'batch': this scheme designs for each channel of a bank; take image or never")
        if design.channel_uses % check_whole("span", span):
            raise SemlinkError(f"span is {span}: it must divide the {design.channel_uses} channel uses")
        most = span * min(self.medium.transmit_antennas, self.medium.receive_antennas)
        if check_whole("streams", streams) > most:
            raise SemlinkError(f"streams is {streams}: from 1 to {most} fit the antennas")
        self.streams, self.span, self._bank_size = streams, span, check_whole("bank", bank)
        self._bank_seed, self._bank = int(torch.randint(2**62, ())), None
        self._kept: dict[bytes, tuple[Tensor, Tensor, Tensor]] = {}

    def describe(self) -> dict[str, Any]:
        """Add the streams, and whether alignment could free them of interference: designs run where it cannot, too.

        That is counted as of any channels of ``span`` times the antennas.
        """
        medium, span = self.medium, self.span
        antennas = (span * medium.transmit_antennas, span * medium.receive_antennas)
        return super().describe() | {
            "streams": self.streams,
            "span": span,
            "alignment_feasible": phy.alignment_feasible(self.users, *antennas, self.streams),
        }

    def check_state(self, state: State, batch: int) -> None:
        """Pass channels as any network does, with designs of this scheme's streams or none."""
        super().check_state(state, batch)
        medium = self.medium
        for name, antennas in (("precoders", medium.transmit_antennas), ("filters", medium.receive_antennas)):
            held, wanted = getattr(state, name), (batch, self.users, self.span * antennas, self.streams)
            if held is not None and held.shape != wanted:
                raise SemlinkError(
                    f"the state holds {name} of shape {tuple(held.shape)}: {wanted} is expected; "
                    f"give the one that this network's 'draw({batch})' returned"
                )

    @property
    def reals(self) -> int:
        """Real numbers that each user sends: 2 d N / span."""
        return 2 * self.streams * self.design.channel_uses // self.span

    def prepare(self, images: Tensor) -> None:
        """Draw the channels to train on and design their transceivers."""
        generator = torch.Generator().manual_seed(self._bank_seed)
        self._bank = self.prepared(super().training_state(self._bank_size, generator, torch.device("cpu")))

    def training_state(self, batch: int, generator: torch.Generator, device: torch.device) -> State:
        """Draw channels from the bank."""
        if self._bank is None:
            raise SemlinkError("a precoded scheme trains on a bank of channels: call 'prepare' first")
        if self._bank.gains.device != device:
            self._bank = self._bank.on(device)
        chosen = torch.randint(self._bank_size, (batch,), generator=generator, device=generator.device).to(device)
        return self._bank.of(chosen)

    def prepared(self, state: State) -> State:
        """Design precoders and filters for what is known of the channels, unless that is done.

        Validation meets the same channels each epoch, so the last designs are kept.
        """
        if state.precoders is not None:
            return state
        known = hashlib.sha256(state.known.cpu().numpy().tobytes() + state.snr_db.cpu().numpy().tobytes()).digest()
        if known not in self._kept:
            precoders, filters, mse = self.design_for(extended(state.known, self.span), state.snr_db)
            self._kept[known] = precoders.to(torch.complex64), filters.to(torch.complex64), mse
            if len(self._kept) > _KEPT:
                del self._kept[next(iter(self._kept))]
        precoders, filters, mse = (held.to(state.known.device) for held in self._kept[known])
        return replace(state, precoders=precoders, filters=filters, mse=mse)

    @abstractmethod
    def design_for(self, H: Tensor, snr_db: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return V, U and the mean square error of each stream, (B, K, d) float32, or (B, K, 1) for all of a user's."""

    def precode(self, reals: Tensor, state: State | None) -> Tensor:
        """Return blocks (B, K, Nt, N) of ``reals: (B, K, 2 d N / span)``, their energy at most Nt N.

        Streams have unit mean energy each; those of one image may be alike, so several precoded ones can add up to more
        than their sum of energies, and are scaled down then.
        """
        if state is None or state.precoders is None:
            raise SemlinkError("transmitters precode for the channels: give the state that 'draw' returned")
        streams = torch.view_as_complex(reals.unflatten(2, (self.streams, -1, 2)))
        unit = phy.normalise_power(streams.flatten(0, 2)).reshape(streams.shape)
        blocks = (state.precoders @ unit).unflatten(2, (self.span, -1)).transpose(2, 3).flatten(3)
        if self.streams == 1:
            return blocks
        allowed = self.medium.transmit_antennas * blocks.shape[3]
        energy = torch.view_as_real(blocks).square().sum((2, 3, 4))[..., None, None]
        return blocks * (allowed / energy.clamp_min(allowed)).sqrt()

    def filtered(self, received: phy.Received, state: State | None) -> Tensor:
        """Return what the filters make of ``received``: (B, K, 2 d N / span) float32."""
        if state is None or state.filters is None:
            raise SemlinkError("receivers filter for the channels: give the state that 'draw' returned")
        heard = received.symbols.unflatten(3, (self.span, -1)).transpose(2, 3).flatten(2, 3)
        return reals_of(state.filters.mH @ heard)

    def listen(self, received: phy.Received, state: State, without_own: bool = False) -> Tensor:
        """Return the linear MMSE estimate of each user's streams at the receiver before, and the level of the noise."""
        if state.precoders is None:
            raise SemlinkError("receivers filter for the channels: give the state that 'draw' returned")
        arriving = extended(state.known, self.span) @ state.precoders[:, None]  # (B, receivers, transmitters, ...)
        stacked = arriving
        if without_own:
            own = torch.eye(self.users, dtype=torch.bool, device=arriving.device)[:, :, None, None]
            stacked = arriving.masked_fill(own, 0)
        stacked = stacked.transpose(2, 3).flatten(3)
        eye = torch.eye(stacked.shape[2], dtype=stacked.dtype, device=stacked.device)
        covariance = stacked @ stacked.mH + received.noise_variance[:, :, None, None] * eye
        wanted = arriving.roll(-1, 2).diagonal(dim1=1, dim2=2).movedim(-1, 1)  # receiver j and transmitter j + 1
        heard = received.symbols.unflatten(3, (self.span, -1)).transpose(2, 3).flatten(2, 3)
        streams = torch.linalg.solve(covariance, wanted).mH @ heard
        level = received.noise_variance.log10()[:, None].expand(-1, self.users, 1)
        return torch.cat([reals_of(streams), level], 2).roll(1, 1)


def extended(H: Tensor, span: int) -> Tensor:
    """Return the channels of ``span`` uses as one: (B, K, K, span Nr, span Nt), H on its diagonal blocks."""
    return torch.kron(torch.eye(span, dtype=H.dtype, device=H.device), H) if span > 1 else H


@schemes.register("semi-conventional")
class SemiConventional(Precoded):
    """Networks before the precoder and behind the filter.

    Args:
        streams: d of each user; as many as antennas are the paper's literal Nt x Nr precoder.
        starts: of the design of each channel's transceivers, of which the best is taken.
        width: features between the layers of the networks.
        options: as Precoded.
    """

    def __init__(
        self, design: Design, streams: int = 1, starts: int = 1, width: int = 256, **options: bool | int | float | str
    ) -> None:
        super().__init__(design, streams, 1, **options)  # pyright: ignore[reportArgumentType]
        self.starts = check_whole("starts", starts)
        self.semantic_encoder = self.make_encoder(width)
        self.jsc_encoder = stacked_mlp(self.users, [width, self.reals])
        self.jsc_decoder = stacked_mlp(self.users, [self.reals, width, width])
        self.semantic_decoder = self.make_decoder(width)

    def design_for(self, H: Tensor, snr_db: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return V, U and the mean square error of a stream, the same for a user's all, (B, K, 1) float32."""
        found = phy.minimise_max_mse(H, snr_db, self.streams, self.starts)
        return found.precoders, found.filters, found.mse.float()[..., None] / self.streams

    def transmit(self, images: Tensor, generator: torch.Generator, state: State | None = None) -> Sent:
        """Encode, then precode."""
        del generator
        return Sent(self.precode(self.jsc_encoder(self.semantic_encoder(images)).float(), state))

    def receive(self, received: phy.Received, header: Tensor | None = None, state: State | None = None) -> Tensor:
        """Filter, then decode."""
        return self.semantic_decoder(self.jsc_decoder(self.filtered(received, state)).relu())
