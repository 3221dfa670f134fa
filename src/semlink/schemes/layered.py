# SPDX-License-Identifier: Apache-2.0
"""Layers of encryption and noise over any scheme: shuffled, turned and noisy symbols.

    image ─> base's transmitter ─> permutation(key, nonce) ─> symmetries(key, nonce) ─> (x + w) / sqrt(1 + V)
                                                                                                │ channel
    answer <─ base's receiver <─ inverse permutation <─ inverse symmetry <─ y sqrt(1 + V) <─────┘

A layer is a pair of functions, symbols to symbols and what was received to what the base would have received, so every
objective of the base trains as it is, over a channel that has the layers around it. An adversary that the base trains
for itself hears that channel: the noise, and neither shuffle nor turns, as one who holds the key does.

    shuffle     permutes complex symbols
    sign_flips  one of the eight symmetries of the square for each symbol: a sign for either rail, and whether they
                swap. Each maps a square constellation to itself and is x -> u x or x -> u conj(x) with u in
                {1, j, -1, -j}
    noise       w of fixed power V = noise_scale^2, drawn by the transmitter and known to no one; the public constant
                keeps the mean energy 1, on average over w

All is undone exactly, gains included. From y = h u x + n follows conj(u) y = h x + n', from y = h u conj(x) + n follows
u conj(y) = conj(h) x + n', and n' has the law of n. Gains and noise variances of their own travel with their symbols
through the inverse permutation. The noise variance that the base is told has the artificial noise in it: N0 (1 + V) +
V, to which, where there are gains, y and h are scaled, for there it would be N0 (1 + V) + |h|^2 V, another for each
symbol.

What it is worth. The key, nonces and fixed nonces (``fresh=False``) are those of deepjscc_encryption.py, and so is what
she who lacks the key still sees: under ``shuffle`` alone the multiset of an image's symbols, under ``sign_flips`` alone
the magnitude of each rail up to a swap, under both the multiset of those. None of it hides the energy. One constant
transformation, which is what a fixed nonce gives, is linear over the reals: she learns it with her decoder, or from
some known plaintexts. The layers keep nothing from a holder of the key. ``noise`` keeps something from everyone, Bob
too, and that is all it promises: without a bound on how far the symbols of two images are apart there is no epsilon,
and n repetitions of an image average it down by 10 log10 n dB. For a guarantee, use deepjscc-dp.

Sources: S. Guo et al. (see deepjscc.py), section V-A, layers of defence on one another; deepjscc_encryption.py for the
shuffle. The symmetries, the composition and the noise's constant are ours.
"""

import math
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from semlink import phy
from semlink._errors import SemlinkError, check_flag, check_name, check_positive
from semlink.nn import Phase
from semlink.nn.objective import Optimiser
from semlink.schemes.base import Carry, Design, Scheme, Sent, schemes
from semlink.schemes.key import Key, check_nonces, draw_nonces, keyed_bits, permutations
from semlink.schemes.network import NetworkScheme
from semlink.schemes.options import check_options

_KINDS = (torch.float32, torch.float64, torch.int64)  # of a base's header


class _Turns(NamedTuple):
    """What the key says of a batch: order (B, n) int64, swap (B, n) bool, signs (B, n, 2) float32; None if left out."""

    order: Tensor | None
    swap: Tensor | None
    signs: Tensor | None


@schemes.register("layered")
class Layered(Scheme):
    """Another scheme inside layers of encryption and noise.

    Args:
        design: dimensions of the link, the base's.
        base: the scheme inside, any that has no key of its own. Default deepjscc.
        shuffle: permute the symbols. Default true: as deepjscc-encryption.
        sign_flips: turn each symbol by a symmetry of the square. Default false: as deepjscc-encryption.
        fresh: a new nonce for each message; false shuffles and turns every message alike. Default true: as
            deepjscc-encryption.
        noise: none, laplace (independent on each rail) or gaussian. Default none, for noise costs utility.
        noise_scale: root mean square of the noise on a symbol of unit energy, for both laws. Default 0.5, an SNR of
            6 dB before any channel: ours, the low end of the SNRs of Guo et al. Leave it out without noise.
        **others: options of the base.

    Attributes:
        base: the scheme inside.
        key: set before transmitting. A receiver without it answers as with a wrong key: no error betrays which.

    Raises:
        SemlinkError: the base is unknown, has a key of its own or refuses its options; or an option is wrong.
    """

    secret: ClassVar[str | None] = "key"

    def __init__(
        self,
        design: Design,
        base: str = "deepjscc",
        shuffle: bool = True,
        sign_flips: bool = False,
        fresh: bool = True,
        noise: str = "none",
        noise_scale: float | None = None,
        **others: Any,
    ) -> None:
        super().__init__(design)
        kind = schemes[str(base)]
        if kind.secret is not None:
            raise SemlinkError(f"option base is '{base}', which has a key of its own; name a scheme without one")
        if issubclass(kind, NetworkScheme):
            raise SemlinkError(f"option base is '{base}', which is of several users; name a scheme of one")
        self.shuffle = check_flag("option shuffle", shuffle)
        self.sign_flips = check_flag("option sign_flips", sign_flips)
        self.fresh = check_flag("option fresh", fresh)
        self.noise = check_name("noise", str(noise), ("none", "laplace", "gaussian"))
        if self.noise == "none" and noise_scale is not None:
            raise SemlinkError("option noise_scale has no meaning without noise; leave it out, or choose the noise")
        self.noise_power = 0.0
        if self.noise != "none":
            self.noise_power = check_positive("option noise_scale", 0.5 if noise_scale is None else noise_scale) ** 2
        check_options(base, others)
        self.base = kind(design, **others)
        self.key: Key | None = None

    def prepare(self, images: Tensor) -> None:
        """Let the base measure what it must."""
        self.base.prepare(images)

    def cover(self, symbols: Tensor, nonces: Tensor, generator: torch.Generator) -> Tensor:
        """Return what goes on the air for the base's ``symbols: (B, n)``.

        Raises:
            SemlinkError: a keyed layer has no key, or there is not one nonce for each image.
        """
        if self.key is not None:
            order, swap, signs = self._turns(self.key, nonces, symbols)
        elif self.shuffle or self.sign_flips:
            raise SemlinkError("layered cannot transmit without its key; set link.scheme.key or give --key-file")
        else:
            order = swap = signs = None
        if order is not None:
            symbols = symbols.gather(1, order)
        if swap is not None and signs is not None:
            rails = torch.view_as_real(symbols)
            symbols = torch.view_as_complex(signs * torch.where(swap[..., None], rails.flip(-1), rails))
        if self.noise == "none":
            return symbols
        return (symbols + self._drawn(symbols, generator)) / math.sqrt(1 + self.noise_power)

    def uncover(self, received: phy.Received, nonces: Tensor | None) -> phy.Received:
        """Return what the base would have received; without nonces or a key the noise's constant alone is undone."""
        received = self._without_constant(received)
        if self.key is None or nonces is None:
            return received
        order, swap, signs = self._turns(self.key, nonces, received.symbols)
        symbols, csi, n0 = received.symbols, received.csi, received.noise_variance
        if swap is not None and signs is not None:
            rails = torch.view_as_real(symbols) * signs
            symbols = torch.view_as_complex(torch.where(swap[..., None], rails.flip(-1), rails).contiguous())
            if csi is not None:
                mirrored = swap ^ (signs.prod(-1) < 0)  # x -> u conj(x)
                csi = torch.where(mirrored, csi.conj().resolve_conj(), csi)
        if order is None:
            return phy.Received(symbols, csi, n0)
        return phy.Received(_back(symbols, order), csi if csi is None else _back(csi, order), _back(n0, order))

    def transmit(self, images: Tensor, generator: torch.Generator, nonces: Tensor | None = None) -> Sent:
        """Let the base transmit, then put the layers on.

        Args:
            images: (B, C, H, W) float32 in [0, 1].
            generator: draws what the base draws, then the nonces that are not given, then the noise.
            nonces: (B,) int64, non-negative; a value must never serve twice under one key.

        Raises:
            SemlinkError: no key is set (nothing is ever sent in the clear instead), or there is not one nonce for each
                image.
        """
        sent = self.base.transmit(images, generator)
        nonces = draw_nonces(len(images), generator, self.fresh) if nonces is None else nonces
        check_nonces(nonces, len(images))
        return Sent(self.cover(sent.symbols, nonces, generator), sent.payload_bits, _pack(nonces, sent.header))

    def receive(self, received: phy.Received, header: Tensor | None = None) -> Tensor:
        """Take the layers off with the receiver's key and let the base answer."""
        nonces, of_base = _unpack(header, received.symbols.device)
        return self.base.receive(self.uncover(received, nonces), of_base)

    def observe(self, received: phy.Received, header: Tensor | None, with_secret: bool) -> Tensor:
        """Return what the base's listener gets, with the keyed layers taken off if ``with_secret``."""
        nonces, of_base = _unpack(header, received.symbols.device)
        seen = self.uncover(received, nonces) if with_secret else self._without_constant(received)
        return self.base.observe(seen, of_base, with_secret=False)

    def phases(self, optimiser: Optimiser, carry: Carry, label_smoothing: float) -> list[Phase]:
        """Return the base's phases over a channel with the layers around it."""

        def layered(symbols: Tensor, generator: torch.Generator) -> phy.Received:
            nonces = draw_nonces(len(symbols), generator, self.fresh)
            return self.uncover(carry(self.cover(symbols, nonces, generator), generator), nonces)

        return self.base.phases(optimiser, layered, label_smoothing)

    @property
    def core(self) -> Scheme:
        """The base's."""
        return self.base.core

    def adapt(self, snr_db: float) -> bool:
        """Tell the base's transmitter."""
        return self.base.adapt(snr_db)

    def describe(self) -> dict[str, Any]:
        """Return what the base says of itself for a record."""
        return self.base.describe()

    def _turns(self, key: Key, nonces: Tensor, symbols: Tensor) -> _Turns:
        """Return the key's choices for ``symbols: (B, n)``: from 64-bit words of keystream, then three bits each."""
        batch, uses = symbols.shape
        check_nonces(nonces, batch)
        order = permutations(key, nonces, uses).to(symbols.device) if self.shuffle else None
        if not self.sign_flips:
            return _Turns(order, None, None)
        bits = keyed_bits(key, nonces, 8 * uses, 3 * uses).to(symbols.device).unflatten(1, (uses, 3))
        return _Turns(order, bits[..., 0].bool(), 1 - 2 * bits[..., 1:].float())

    def _drawn(self, symbols: Tensor, generator: torch.Generator) -> Tensor:
        """Draw w, mean energy V a symbol."""
        if self.noise == "gaussian":
            return phy.noise(tuple(symbols.shape), self.noise_power, generator, symbols.device)
        # The difference of two exponentials of mean b is Laplace(b), of variance 2 b^2: V = 4 b^2 over two rails.
        uniform = torch.rand(2, *symbols.shape, 2, generator=generator, device=generator.device, dtype=torch.float64)
        one, other = -torch.log1p(-uniform)
        rails = (math.sqrt(self.noise_power) / 2 * (one - other)).float()
        return torch.view_as_complex(rails).to(symbols.device)

    def _without_constant(self, received: phy.Received) -> phy.Received:
        """Undo the public constant; the artificial noise counts as noise from here on."""
        if self.noise == "none":
            return received
        channel = (1 + self.noise_power) * received.noise_variance
        symbols, csi, n0 = received.symbols * math.sqrt(1 + self.noise_power), received.csi, channel + self.noise_power
        if csi is None:
            return phy.Received(symbols, None, n0)
        level = (n0 / (channel + self.noise_power * torch.view_as_real(csi).square().sum(-1))).sqrt()
        return phy.Received(symbols * level, csi * level, n0)


def _back(values: Tensor, order: Tensor) -> Tensor:
    """Undo ``gather(1, order)`` on (B, n); one value for a whole image, (B, 1), stays."""
    if values.shape[1] == 1:
        return values
    return torch.zeros_like(values).scatter(1, order, values)


def _pack(nonces: Tensor, header: Tensor | None) -> Tensor:
    """Put nonces and the base's header into one int64 tensor: (B, 1), or (B, 2 + k) for a header of k columns.

    The second column says of what kind the header is; its numbers follow as the bits of float64 or as they are.
    """
    if header is None:
        return nonces[:, None]
    if header.dtype not in _KINDS or header.ndim not in (1, 2):
        raise SemlinkError(
            f"a header of {header.dtype} and {header.ndim} axes: layers carry (B,) or (B, k) of "
            "float32, float64 or int64"
        )
    kind = torch.full_like(nonces, 2 * _KINDS.index(header.dtype) + header.ndim - 1)
    rows = header.detach().reshape(len(nonces), -1).cpu()
    bits = rows if rows.dtype == torch.int64 else rows.double().view(torch.int64)
    return torch.cat([torch.stack([nonces, kind], dim=1), bits.to(nonces.device)], dim=1)


def _unpack(header: Tensor | None, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """Undo :func:`_pack`; the base's part goes to ``device``."""
    if header is None:
        return None, None
    if header.dtype != torch.int64 or header.ndim != 2 or header.shape[1] == 0:
        raise SemlinkError(
            f"header of shape {tuple(header.shape)}, {header.dtype}: what transmit returned, (B, k) int64, is expected"
        )
    if header.shape[1] == 1:
        return header[:, 0], None
    kind, bits = header[:, 1].unique().tolist(), header[:, 2:].contiguous()
    if len(kind) != 1 or not 0 <= kind[0] < 2 * len(_KINDS):
        raise SemlinkError("the header's second column is not what transmit returned; hand the header on as it came")
    dtype, axes = _KINDS[kind[0] // 2], kind[0] % 2 + 1
    rows = bits if dtype == torch.int64 else bits.view(torch.float64).to(dtype)
    return header[:, 0], (rows if axes == 2 else rows.flatten()).to(device)
