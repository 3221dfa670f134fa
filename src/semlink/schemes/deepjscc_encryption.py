# SPDX-License-Identifier: Apache-2.0
"""DeepJSCC with encryption by key-guided shuffling of the features.

    image ─> Encoder ─> features (2n) ─> permutation(key, nonce) ─> x ─> channel ─> y ─> inverse permutation ─> answer

The permutation comes from a ChaCha20 keystream under (key, nonce). Nonces are public message numbers that both ends
count, so they cost no channel use. Here they are drawn, 63 bits wide, from the caller's generator, so that no state
has to be kept. A generator that starts again from its seed repeats them: an experiment wants that; a real sender must
not, and passes ``nonces`` never used before.

What it is worth. Over i.i.d. noise a permutation costs no utility: permuting, adding noise and permuting back has the
distribution of adding noise. With a fresh nonce per message an eavesdropper without the key still sees the multiset of
feature values. With a fixed nonce (``fresh=False``) the permutation is one constant matrix: an attacker who can query
the transmitter learns it as part of her decoder, and about ten known plaintexts give it away. The size of the key
space, 128! = 716 bits for 128 features, is no argument for security.

Sources: S. Guo et al. (see deepjscc.py), section III-A; the shuffle itself as in Chen et al., "Shuffling for semantic
secrecy", arXiv:2507.07401. X. Luo et al., arXiv:2209.09008, which Guo et al. cite for it, trains an encryption network
instead.
"""

from typing import ClassVar

import torch
from torch import Tensor

from semlink import phy
from semlink._errors import SemlinkError
from semlink.schemes.base import Design, Sent, schemes
from semlink.schemes.deepjscc import DeepJSCC
from semlink.schemes.key import Key, permutations


@schemes.register("deepjscc-encryption")
class DeepJSCCEncryption(DeepJSCC):
    """Shuffled DeepJSCC.

    Attributes:
        key: set before transmitting. A receiver without it answers as with a wrong key: no error betrays which.
        fresh: a new nonce for each message; False shuffles every message alike.

    Raises:
        SemlinkError: as DeepJSCC, or ``fresh`` is neither true nor false.
    """

    secret: ClassVar[str | None] = "key"

    def __init__(self, design: Design, fresh: bool = True) -> None:
        super().__init__(design)
        if not isinstance(fresh, bool):  # "no" would count as true, and a fixed nonce be taken for a fresh one
            raise SemlinkError(f"option fresh is {fresh!r}: true or false is expected")
        self.key: Key | None = None
        self.fresh = fresh

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
            highest = 2**63 - 1 if self.fresh else 1
            nonces = torch.randint(highest, (len(images),), generator=generator, device=generator.device)
        features = self.features(images)  # pyright: ignore[reportCallIssue]
        order = _order(self.key, nonces, features)
        return Sent(phy.to_symbols(features.gather(1, order)), header=nonces)

    def receive(self, received: phy.Received, header: Tensor | None = None) -> Tensor:
        """Unshuffle with the receiver's key and answer."""
        features = self.observe(received, header, with_secret=True)
        return self.answer(features)  # pyright: ignore[reportCallIssue]

    def observe(self, received: phy.Received, header: Tensor | None, with_secret: bool) -> Tensor:
        """Return the received features, in their own order if ``with_secret``, as sent otherwise."""
        shuffled = phy.to_features(phy.equalise(received))
        if not with_secret or self.key is None or header is None:
            return shuffled
        return torch.zeros_like(shuffled).scatter(1, _order(self.key, header, shuffled), shuffled)


def _order(key: Key, nonces: Tensor, features: Tensor) -> Tensor:
    """Return the permutation of each row of ``features: (B, d)``."""
    # Fewer rows would pass gather and scatter, and lose the last images in silence; fractions would share a nonce.
    if nonces.dtype != torch.int64 or nonces.shape != features.shape[:1]:
        raise SemlinkError(
            f"nonces of shape {tuple(nonces.shape)}, {nonces.dtype}: "
            f"one int64 for each of {len(features)} images is expected"
        )
    return permutations(key, nonces, features.shape[1]).to(features.device)
