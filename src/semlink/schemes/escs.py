# SPDX-License-Identifier: Apache-2.0
"""ESCS: a learned cipher between encoder and channel, trained against an eavesdropper who lacks the key.

    image ─> Encoder ─> features f (2n) ──┬──────── unencrypted mode ────────┬─> unit mean energy ─> x ─┬─> channel ─> y
                                          └─> encryptor(f, c) ───────────────┘                          └─> Eve
                                               ▲
    key, nonce ─> ChaCha20 ─> 128 bits, ±1 ─> key network ─> c = (scale, shift) in (-1, 1)^4n
                                               ▼
    answer <─ Classifier | ImageDecoder <─┬─ decryptor(y, c) <───────────────┬─ equaliser (when there is CSI) <─ y
                                          └──────── unencrypted mode ────────┘

Encryptor and decryptor are one kind of network with weights of their own, P2((P1 v) scale + S shift) + R(v, scale,
shift) with matrices P1, P2 and S and a network R of one hidden layer. P1, P2 begin as orthogonal matrices, in the
decryptor the inverses of the encryptor's, and scale near ±1: training starts from keyed sign flips in a random basis.

In each round the transceiver takes one step on

    loss = task(answer, encrypted) + task(answer, unencrypted) + lambda E[ 1 - privacy ]

and Eve several on her mean squared error in drawing the image from encrypted symbols, through noise of her own and
without the key (nn/adversary.py). ``privacy`` is her error over that of the mean image, at most 1: the transceiver
gains nothing by driving her beyond ignorance. Accounts of systems that followed have |loss of Eve - lambda| in its
place, to the same end. Each message has a session key of its own, in training as in use.

Mode: the transmitter's attribute ``encrypted``. Which it was the receiver knows by the header, a nonce or nothing.

What it is worth. All networks are public, the key and what is derived from it are not. An Eve like the one of training
learns little; nothing is proven of any other, and that she fails is a statement about her. The cipher is smooth: near
keys give near ciphertexts, the number of keys bounds no search, and with a repeated nonce it is one constant map, which
she learns. She who holds the key hears what Bob hears. For secrecy that is more than trained, see deepjscc_aes.py.

Sources: X. Luo, Z. Chen, M. Tao, F. Yang, "Encrypted semantic communication using adversarial training for privacy
preserving", IEEE Commun. Lett. 27(6), 2023, arXiv:2209.09008, for the parts, both modes and the alternation (for text;
no public code); M. Abadi, D. Andersen, "Learning to protect communications with adversarial neural cryptography",
arXiv:1610.06918, for pulling Eve to ignorance and not beyond. Sizes and the form of the cipher are ours; encoder and
answering network are DeepJSCC's.
"""

import hashlib
import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from semlink import phy
from semlink._errors import SemlinkError, check_flag, check_number
from semlink.nn import Phase
from semlink.nn.adversary import Adversary, Game
from semlink.nn.objective import Optimiser
from semlink.schemes.base import Carry, Design, Sent, schemes
from semlink.schemes.deepjscc import DeepJSCC
from semlink.schemes.key import Key, check_nonces, draw_nonces, keyed_bits

SESSION_BITS = 128
_ABSENT = Key(hashlib.sha256(b"semlink: a receiver without a key").digest())


@schemes.register("escs")
class ESCS(DeepJSCC):
    """DeepJSCC with an adversarially trained cipher.

    Args:
        design: dimensions of the link.
        encrypted: the mode of the transmitter; both are trained in any case. Default true.
        privacy_weight: lambda, what full privacy is worth in units of the task's loss. Default 1, of the order of the
            task's loss: ours, for the published weight is in units of a loss on text.
        adversary_steps: steps of the adversary for each of the transceiver's. Default 5: what adversarial defences take
            in the public code of GLASS.
        restarts: how often the adversary starts anew during training, at even distances. Default 3: ours.

    Attributes:
        key: set before transmitting in encrypted mode, and before training. A receiver without it answers as with a
            wrong key: no error betrays which.
        encrypted: may be set on a trained link.
        adversary: Eve of training, no part of the link.

    Raises:
        SemlinkError: as DeepJSCC, or an option has a value that makes no sense.
    """

    secret: ClassVar[str | None] = "key"

    def __init__(
        self,
        design: Design,
        encrypted: bool = True,
        privacy_weight: float = 1.0,
        adversary_steps: int = 5,
        restarts: int = 3,
    ) -> None:
        super().__init__(design)
        self.encrypted = check_flag("option encrypted", encrypted)
        self.privacy_weight = check_number("option privacy_weight", privacy_weight)
        self.key: Key | None = None
        features = 2 * design.channel_uses
        self.key_network = KeyNetwork(features)
        self.encryptor, self.decryptor = KeyedNetwork(features), KeyedNetwork(features)
        self.decryptor.invert(self.encryptor)
        self.adversary = Adversary(features, design.task.image_shape, design.backbone.width, adversary_steps, restarts)

    def prepare(self, images: Tensor) -> None:
        """Measure the whitening front end, and the mean image."""
        super().prepare(images)
        self.adversary.measure(images)

    def encrypt(self, features: Tensor, nonces: Tensor) -> Tensor:
        """Return the symbols (B, n) of ``features: (B, 2n)``, each message under a session key of its own.

        Raises:
            SemlinkError: no key is set, or there is not one nonce for each image.
        """
        if self.key is None:
            raise SemlinkError(
                "escs cannot encrypt without its key; set link.scheme.key or give --key-file, "
                "or set encrypted=false to send in the clear"
            )
        hidden = self.encryptor(features, self.key_network(session_keys(self.key, nonces, features)))
        return phy.normalise_power(phy.to_symbols(hidden.float()))

    def decrypt(self, heard: Tensor, nonces: Tensor) -> Tensor:
        """Return features (B, 2n) from those ``heard: (B, 2n)``, under the receiver's key or, without, a wrong one."""
        return self.decryptor(heard, self.key_network(session_keys(self.key or _ABSENT, nonces, heard))).float()

    def transmit(self, images: Tensor, generator: torch.Generator, nonces: Tensor | None = None) -> Sent:
        """Encode, and encrypt unless ``encrypted`` is off.

        Args:
            images: (B, C, H, W) float32 in [0, 1].
            generator: draws the nonces that are not given.
            nonces: (B,) int64, non-negative; a value must never serve twice under one key.

        Raises:
            SemlinkError: no key is set, there is not one nonce for each image, or there are nonces in unencrypted mode.
        """
        features = self.features(images)
        if not self.encrypted:
            if nonces is not None:
                raise SemlinkError("nonces have no meaning in unencrypted mode; leave them out, or set encrypted")
            return Sent(phy.to_symbols(features))
        nonces = draw_nonces(len(images), generator) if nonces is None else nonces
        return Sent(self.encrypt(features, nonces), header=nonces)

    def receive(self, received: phy.Received, header: Tensor | None = None) -> Tensor:
        """Decrypt if the header says so, and answer."""
        return self.answer(self.observe(received, header, with_secret=True))

    def observe(self, received: phy.Received, header: Tensor | None, with_secret: bool) -> Tensor:
        """Return the decrypted features if ``with_secret``, the received ones otherwise."""
        heard = super().observe(received, header, with_secret=False)
        return self.decrypt(heard, header) if with_secret and header is not None else heard

    def phases(self, optimiser: Optimiser, carry: Carry, label_smoothing: float) -> list[Phase]:
        """Return two phases: the transceiver's in both modes, and Eve's several steps."""
        return _Game(self, carry, label_smoothing).phases(self, self.adversary, optimiser)


class KeyNetwork(nn.Module):
    """Session keys to what both ends are told: ``(B, 128) of ±1 -> (B, 2d)``, scale and shift in (-1, 1)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(SESSION_BITS, features), nn.Tanh(), nn.Linear(features, 2 * features), nn.Tanh()
        )
        for layer in self.layers:
            if isinstance(layer, nn.Linear):  # twice the usual spread, so that the tanh saturates: scales begin near ±1
                nn.init.normal_(layer.weight, std=2 / math.sqrt(layer.in_features))
                nn.init.zeros_(layer.bias)

    def forward(self, bits: Tensor) -> Tensor:
        """Process a batch of session keys."""
        return self.layers(bits)


class KeyedNetwork(nn.Module):
    """Encryptor or decryptor: ``(B, d), (B, 2d) -> (B, d)``."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.enter = nn.Linear(features, features, bias=False)
        self.leave = nn.Linear(features, features, bias=False)
        self.shift = nn.Linear(features, features)
        self.refine = nn.Sequential(nn.Linear(3 * features, features), nn.GELU(), nn.Linear(features, features))
        nn.init.orthogonal_(self.enter.weight)
        nn.init.orthogonal_(self.leave.weight)
        for layer in (self.shift, self.refine[-1]):
            nn.init.normal_(layer.weight, std=0.1 / math.sqrt(features))  # pyright: ignore[reportArgumentType]

    @torch.no_grad()
    def invert(self, other: "KeyedNetwork") -> None:
        """Let the two matrices undo those of ``other``."""
        self.enter.weight.copy_(other.leave.weight.T)
        self.leave.weight.copy_(other.enter.weight.T)

    def forward(self, features: Tensor, code: Tensor) -> Tensor:
        """Encrypt or decrypt a batch."""
        scale, shift = code.chunk(2, dim=1)
        turned = self.leave(self.enter(features) * scale + self.shift(shift))
        return turned + self.refine(torch.cat([features, code], dim=1))


class _Game(Game):
    """The transceiver's objective: the task in both modes, and what Eve cannot draw."""

    def __init__(self, scheme: ESCS, carry: Carry, label_smoothing: float) -> None:
        super().__init__()
        self.scheme = scheme
        self.carry = carry
        self.label_smoothing = label_smoothing

    def hear(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return what Eve hears of ``images``, (B, 2n), in her own phase: encrypted symbols, whatever the mode."""
        scheme = self.scheme
        symbols = scheme.encrypt(scheme.features(images), draw_nonces(len(images), generator))
        return scheme.observe(self.carry(symbols, generator), None, with_secret=False)

    def forward(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return ``loss`` and, without weights, its parts ``encrypted``, ``plain`` and ``privacy``."""
        scheme = self.scheme
        features, nonces = scheme.features(images), draw_nonces(len(images), generator)
        symbols = scheme.encrypt(features, nonces)
        bob = scheme.observe(self.carry(symbols, generator), nonces, with_secret=True)
        plain = scheme.observe(self.carry(phy.to_symbols(features), generator), None, with_secret=False)
        eve = scheme.observe(self.carry(symbols, generator), None, with_secret=False)  # noise of her own
        # Both modes in one batch: the receiver's BatchNorm must measure what it will see in either.
        answers = scheme.answer(torch.cat([bob, plain])).float().chunk(2)
        encrypted, open_ = (scheme.design.task.loss(a, images, targets, self.label_smoothing) for a in answers)
        privacy = scheme.adversary.privacy(eve, images).mean()
        loss = encrypted + open_ + scheme.privacy_weight * (1 - privacy)
        return {"loss": loss, "encrypted": encrypted, "plain": open_, "privacy": privacy}


def session_keys(key: Key, nonces: Tensor, features: Tensor) -> Tensor:
    """Return the session key of each message as ±1: (B, 128) float32 on the device of ``features: (B, d)``."""
    bits = keyed_bits(key, check_nonces(nonces, len(features)), 0, SESSION_BITS)
    return 1 - 2 * bits.to(features.device).float()
