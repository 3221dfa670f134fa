# SPDX-License-Identifier: Apache-2.0
"""DeepJSCC with encryption by key-guided shuffling of the features.

    image ─> Encoder ─> features (2n) ─> permutation(key, nonce) ─> [signs(key, nonce)] ─> x ─> channel ─> y
                                              answer <─ inverse permutation <─ [the same signs] <──────────┘

The permutation comes from a ChaCha20 keystream under (key, nonce), and so do the signs, if they are asked for. Nonces
are public message numbers that both ends count, so they cost no channel use. Here they are drawn, 63 bits wide, from
the caller's generator, so that no state has to be kept. A generator that starts again from its seed repeats them: an
experiment wants that; a real sender must not, and passes ``nonces`` never used before.

What it is worth. Over i.i.d. noise a permutation costs no utility: permuting, adding noise and permuting back has the
distribution of adding noise; so do signs. With a fresh nonce per message an eavesdropper without the key still sees the
multiset of feature values, with signs that of their magnitudes. With a fixed nonce (``fresh=False``) the permutation is
one constant matrix, signs or not: an attacker who can query the transmitter learns it as part of her decoder, and about
ten known plaintexts give it away. The size of the key space, 128! = 716 bits for 128 features, is no argument for
security.

Sources: S. Guo et al. (see deepjscc.py), section III-A; the shuffle itself as in Chen et al., "Shuffling for semantic
secrecy", arXiv:2507.07401. X. Luo et al., arXiv:2209.09008, which Guo et al. cite for it, trains an encryption network
instead.
"""

from typing import ClassVar

import torch
from torch import Tensor

from semlink import phy
from semlink._errors import SemlinkError, check_flag
from semlink.schemes.base import Design, Sent, schemes
from semlink.schemes.deepjscc import DeepJSCC
from semlink.schemes.key import Key, check_nonces, draw_nonces, keyed_bits, permutations


@schemes.register("deepjscc-encryption")
class DeepJSCCEncryption(DeepJSCC):
    """Shuffled DeepJSCC.

    Args:
        design: dimensions of the link.
        fresh: a new nonce for each message; false shuffles every message alike. Default true, without which there is no
            secrecy from whoever can query the transmitter.
        sign_flips: flip signs too, each with probability one half, as the key says for each message. Default false:
            Guo et al. shuffle.

    Attributes:
        key: set before transmitting. A receiver without it answers as with a wrong key: no error betrays which.

    Raises:
        SemlinkError: as DeepJSCC, or an option is neither true nor false.
    """

    secret: ClassVar[str | None] = "key"

    def __init__(self, design: Design, fresh: bool = True, sign_flips: bool = False) -> None:
        super().__init__(design)
        self.key: Key | None = None
        self.fresh = check_flag("option fresh", fresh)
        self.sign_flips = check_flag("option sign_flips", sign_flips)

    def transmit(self, images: Tensor, generator: torch.Generator, nonces: Tensor | None = None) -> Sent:
        """Encode, normalise and shuffle.

        Args:
            images: (B, C, H, W) float32 in [0, 1].
            generator: draws the nonces that are not given.
            nonces: (B,) int64, non-negative; a value must never serve twice under one key.

        Raises:
            SemlinkError: no key is set (nothing is ever sent in the clear instead), or there is not one nonce for each
                image.
        """
        if self.key is None:
            raise SemlinkError(
                "deepjscc-encryption cannot transmit without its key; set link.scheme.key or give --key-file"
            )
        if nonces is None:
            nonces = draw_nonces(len(images), generator, self.fresh)
        features = self.features(images)  # pyright: ignore[reportCallIssue]
        shuffled = features.gather(1, _order(self.key, nonces, features))
        if self.sign_flips:
            shuffled = shuffled * _signs(self.key, nonces, features)
        return Sent(phy.to_symbols(shuffled), header=nonces)

    def receive(self, received: phy.Received, header: Tensor | None = None) -> Tensor:
        """Unshuffle with the receiver's key and answer."""
        features = self.observe(received, header, with_secret=True)
        return self.answer(features)  # pyright: ignore[reportCallIssue]

    def observe(self, received: phy.Received, header: Tensor | None, with_secret: bool) -> Tensor:
        """Return the received features, in their own order if ``with_secret``, as sent otherwise."""
        shuffled = phy.to_features(phy.equalise(received))
        if not with_secret or self.key is None or header is None:
            return shuffled
        if self.sign_flips:
            shuffled = shuffled * _signs(self.key, check_nonces(header, len(shuffled)), shuffled)
        return torch.zeros_like(shuffled).scatter(1, _order(self.key, header, shuffled), shuffled)


def _order(key: Key, nonces: Tensor, features: Tensor) -> Tensor:
    """Return the permutation of each row of ``features: (B, d)``."""
    return permutations(key, check_nonces(nonces, len(features)), features.shape[1]).to(features.device)


def _signs(key: Key, nonces: Tensor, features: Tensor) -> Tensor:
    """Return a sign for each of ``features: (B, d)``, from behind the 64-bit words that the permutation takes."""
    bits = keyed_bits(key, nonces, 8 * features.shape[1], features.shape[1])
    return 1 - 2 * bits.to(features.device).float()
