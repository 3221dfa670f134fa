# SPDX-License-Identifier: Apache-2.0
"""Learned dispersion codes with a linear MMSE front end: CSI at the receiver alone.

    image_k ─> encoder ─> s_k (m reals) ─> X_k = sum_i s_ki C_ki ─> ||X_k||_F^2 = Nt N ─> channel ─> Y_k
    image_k <─ decoder <─ [E(s_k | Y_k), its error] <─ linear MMSE: H, C of all users, N0 <─────────── Y_k

A receiver of Nr antennas hears 2 Nr N reals and cannot tell K users apart that fill 2 Nt N each. So each feature is
spread over antennas and channel uses by a code of its own, a matrix C_ki, learned through the receiver together with
the networks (linear dispersion codes, B. Hassibi and B. Hochwald, IEEE Trans. Inf. Theory 48(7), 2002, of which
Alamouti's is one); the receiver, who knows the codes as everybody does, computes the linear estimate of its user's
features among all others' and its error variance, and a network decodes from both. Nothing is fed back, and a
receiver needs its own row of H only.

Codes span ``span`` channel uses, so that the front end solves systems of 2 Nr ``span`` reals. Loss: as network.py.
"""

import torch
from torch import Tensor, nn

from semlink import phy
from semlink._errors import SemlinkError, check_whole
from semlink.nn.stacked import stacked_mlp
from semlink.schemes.base import Design, Sent, schemes
from semlink.schemes.network import NetworkScheme, State


@schemes.register("dispersion")
class Dispersion(NetworkScheme):
    """Spread features, separated by the receiver.

    Args:
        features: reals that each user sends in N channel uses; 0: 2 Nr N / K, as many as a receiver can separate.
        span: channel uses of a code.
        width: features between the layers of the networks.
        options: as NetworkScheme.

    Raises:
        SemlinkError: ``span`` does not divide the channel uses, or they do not divide the features.
    """

    def __init__(
        self, design: Design, features: int = 0, span: int = 4, width: int = 256, **options: bool | int | float | str
    ) -> None:
        super().__init__(design, **options)  # pyright: ignore[reportArgumentType]
        medium, uses = self.medium, design.channel_uses
        blocks, rest = divmod(uses, check_whole("span", span))
        if rest:
            raise SemlinkError(f"span is {span}: it must divide the {uses} channel uses")
        features = (
            check_whole("features", features, 0) or max(1, 2 * medium.receive_antennas * span // self.users) * blocks
        )
        if features % blocks:
            raise SemlinkError(f"features is {features}: a multiple of {blocks}, the codes' blocks, is expected")
        self.span, self.blocks, self.features = span, blocks, features
        self.semantic_encoder = self.make_encoder(width)
        self.jsc_encoder = stacked_mlp(self.users, [width, features])
        codes = torch.randn(self.users, blocks, medium.transmit_antennas, span, features // blocks, 2)
        self.codes = nn.Parameter(codes / codes.square().sum((2, 3, 5), keepdim=True).sqrt())
        self.jsc_decoder = stacked_mlp(self.users, [2 * features + 1, width, width])
        self.semantic_decoder = self.make_decoder(width)

    def carriers(self) -> Tensor:
        """Return C, (K, blocks, Nt, span, features / blocks) complex64, of energy Nt N for each user."""
        codes = torch.view_as_complex(self.codes.float())
        energy = codes.abs().square().sum((1, 2, 3, 4), keepdim=True)
        return codes * (self.medium.transmit_antennas * self.design.channel_uses / energy).sqrt()

    def transmit(self, images: Tensor, generator: torch.Generator, state: State | None = None) -> Sent:
        """Encode, spread, normalise."""
        del generator, state
        features = self.jsc_encoder(self.semantic_encoder(images)).float().unflatten(2, (self.blocks, -1))
        spread = torch.einsum("kbtsi,nkbi->nktbs", self.carriers(), features.to(torch.complex64))
        return Sent(phy.normalise_block(spread.flatten(3)))

    def receive(self, received: phy.Received, header: Tensor | None = None, state: State | None = None) -> Tensor:
        """Estimate the features of each user, then decode."""
        estimate, error = self.estimate(received)
        level = received.noise_variance.log10()[:, None].expand(-1, self.users, 1)
        return self.semantic_decoder(self.jsc_decoder(torch.cat([estimate, error, level], 2)).relu())

    def listen(self, received: phy.Received, state: State, without_own: bool = False) -> Tensor:
        """Return the linear MMSE estimate of each user's features at the receiver before, its error, and the noise."""
        estimate, error = self.estimate(received, 1, without_own)
        level = received.noise_variance.log10()[:, None].expand(-1, self.users, 1)
        return torch.cat([estimate, error, level], 2).roll(1, 1)

    def estimate(self, received: phy.Received, ahead: int = 0, without_own: bool = False) -> tuple[Tensor, Tensor]:
        """Return linear MMSE estimates of features and their mean square errors, both (B, K, features).

        Args:
            received: (B, K, Nr, N), with CSI.
            ahead: receiver k estimates what user k + ``ahead`` sends.
            without_own: what user k sends to receiver k was taken out of ``received``.

        Raises:
            SemlinkError: there is no CSI.
        """
        if received.csi is None:
            raise SemlinkError("the dispersion receiver separates users by their channels: CSI is needed")
        with torch.autocast(received.symbols.device.type, enabled=False):
            heard = _real_rows(received.symbols.unflatten(3, (self.blocks, self.span)).transpose(2, 3), 3)
            heard = heard.flatten(3)  # (B, K, blocks, 2 Nr span)
            # Features are real: H_kj C_ji is [[Re, -Im], [Im, Re]] of H times [Re; Im] of C, in one product for all
            gains = torch.cat([_real_rows(received.csi, 3), _real_rows(1j * received.csi, 3)], 4)
            codes = _real_rows(self.carriers().movedim(2, 1), 1)  # (K, 2 Nt, blocks, span, features / blocks)
            mixed = gains.permute(2, 0, 1, 3, 4).flatten(1, 3) @ codes.flatten(2)
            mixed = mixed.unflatten(2, codes.shape[2:]).unflatten(1, gains.shape[:2] + gains.shape[3:4])
            # of a feature of user j at receiver k: (B, K, blocks, 2 Nr span, K, features / blocks)
            mixed = mixed.permute(1, 2, 4, 3, 5, 0, 6).flatten(3, 4)
            wanted = torch.diagonal(mixed.roll(-ahead, 4), dim1=1, dim2=4).movedim(-1, 1)
            if without_own:
                own = torch.eye(self.users, dtype=torch.bool, device=mixed.device)
                mixed = mixed.masked_fill(own[:, None, None, :, None], 0)
            every = mixed.flatten(4)
            eye = torch.eye(every.shape[3], device=every.device)
            covariance = every @ every.mT
            least = 1e-6 * covariance.diagonal(dim1=3, dim2=4).mean(3)[..., None, None]  # float32 solves to that
            noise = (received.noise_variance[:, :, None, None, None] / 2).maximum(least)
            filters = torch.linalg.solve(covariance + noise * eye, wanted)
            estimate = (filters.mT @ heard[..., None])[..., 0]
            error = 1 - (wanted * filters).sum(3)
            return estimate.flatten(2), error.flatten(2)


def _real_rows(z: Tensor, dim: int) -> Tensor:
    """Return real parts, then imaginary ones, along ``dim``."""
    return torch.cat([z.real, z.imag], dim)
