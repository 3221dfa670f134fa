# SPDX-License-Identifier: Apache-2.0
"""DeepJSCC with a block cipher: quantised features, AES, square QAM, with or without LDPC.

    image ─> Encoder ─> features (d), unit mean square ─> clip, 2^b levels ─> bits (d b) ─> AES(key, nonce)
                                                                                                  │
                                        channel <─ x (n) <─ M-QAM, Gray labels <─ [LDPC, rate k / (n log2 M)]
                                           │
    answer <─ Classifier | ImageDecoder <─ levels <─ bits <─ AES^-1(key, nonce) <─ hard bits, or LLRs into LDPC

n channel uses carry n log2 M bits; d is the largest multiple of 16 whose ciphertext fits (into the code's rate if there
is one), at most 2n, as many features as deepjscc has. What is left of an uncoded block repeats the ciphertext and is
not listened to. Ciphertext bits are uniform, so the symbols of a message have unit energy on average over messages, and
those of one message vary about it.

What an error costs, which is the point of the scheme (Guo et al., section V-A: encryption without channel coding is
fragile). At bit error rate p on the channel,
    CTR    a bit error stays one bit error: p
    CBC    a wrong bit garbles its block of 128 and flips its own place in the next: (1 - (1 - p)^128) / 2 and more, so
           at p = 0.01, where 72 % of the blocks are hit, more than a third of the bits are wrong
    none   CTR under a published key, which whitens the bits so that all three have the same energy: as CTR
LDPC changes all three alike: below its threshold nothing gets through, above it nothing is lost.

What it is worth. Whoever hears every symbol without noise, and chose all images but one, learns of that one no more
than the fact that it was sent: AES-256 with a nonce per message is secure against chosen plaintext, whatever Eve's
channel. A nonce that serves twice under CTR gives away where two messages differ, under CBC that they begin alike. Both
modes flip what an active attacker flips: there is no authentication. The nonce, a public message number, travels as in
deepjscc_encryption.py and costs no channel use. With ``cipher="none"`` there is no secrecy at all.

Training runs the real chain, cipher and decoder with all, and lets its errors enter as a constant, heard - sent without
gradient (as DT-JSCC does with channel errors; so the quantiser is straight-through). The receiver thus learns from
garbled blocks as it will meet them; a surrogate with independent bit errors would train one CBC receiver for another
channel. Under CBC at a high error rate the encoder's gradient is a fiction, for nothing that it sends arrives.

Sources: NIST SP 800-38A (modes; appendix C for an IV made by enciphering a nonce) and FIPS 197; 3GPP TS 38.212 for the
code, by Sionna; S. Xie et al. (see deepjscc_lbvq.py); J. Max, "Quantizing for minimum distortion", IRE Trans. Inf.
Theory 6(1), 1960, for the clip.
"""

import dataclasses
import functools
import hashlib
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semlink import phy
from semlink._errors import SemlinkError, check_name, check_positive, check_whole
from semlink.nn import Phase
from semlink.nn.objective import Optimiser
from semlink.schemes.base import Carry, Design, Sent, schemes
from semlink.schemes.deepjscc import DeepJSCC
from semlink.schemes.key import Key, check_nonces, draw_nonces

BLOCK = 128  # bits of an AES block
_PUBLISHED = bytes(32)
_ABSENT = hashlib.sha256(b"semlink: a receiver without a key").digest()
_OWN_NONCE = 2**64 - 1  # no message's: those are below 2^63
_ITERATIONS = 20  # of belief propagation


@schemes.register("deepjscc-aes")
class DeepJSCCAES(DeepJSCC):
    """Quantised features under AES.

    Args:
        design: its ``channel_uses`` are a multiple of 8.
        cipher: ctr, cbc or none. Default ctr, which does not multiply errors.
        code: none or ldpc, the 5G code (needs the extra ``sionna``). Default none: what Guo et al. call fragile.
        code_rate: of the LDPC code, from 0.2 to 0.92; as much of it is used as whole features fill. Default 0.5: ours.
        order: M, of the square QAM. Default 16: as deepjscc-lbvq.
        feature_bits: b, bits of a feature. Default 2, with which 16-QAM carries uncoded as many features as deepjscc.
        clip: bound on a feature, in units of its root mean square. Default 2, half the range of the best uniform
            quantiser of a unit normal with 4 levels (1.99, Max); 1.6, 2.3 and 2.7 suit 1, 3 and 4 bits.

    Attributes:
        key: set before transmitting. A receiver without it answers as with a wrong key: no error betrays which.
        feature_count: d.
        cipher_bits: of the ciphertext: d b, or under CBC whole blocks.

    Raises:
        SemlinkError: the channel uses are not a multiple of 8 or carry too few bits, an option is wrong, or Sionna is
            needed and not installed.
    """

    secret: ClassVar[str | None] = "key"

    def __init__(
        self,
        design: Design,
        cipher: str = "ctr",
        code: str = "none",
        code_rate: float = 0.5,
        order: int = 16,
        feature_bits: int = 2,
        clip: float = 2.0,
    ) -> None:
        check_name("cipher", str(cipher), ("none", "ctr", "cbc"))
        check_name("code", str(code), ("none", "ldpc"))
        if isinstance(code_rate, bool) or not isinstance(code_rate, int | float) or not 0.2 <= code_rate <= 0.92:
            raise SemlinkError(f"option code_rate is {code_rate!r}: a number from 0.2 to 0.92 is expected")
        if check_whole("option feature_bits", feature_bits) > 16:
            raise SemlinkError(f"option feature_bits is {feature_bits}: at most 16 are expected")
        constellation = _constellation(order)
        if design.channel_uses < 1 or design.channel_uses % 8:
            raise SemlinkError(f"{design.channel_uses} channel uses: features fill 4x4 maps, so use a multiple of 8")
        air_bits = design.channel_uses * constellation.bits.shape[1]
        room = air_bits if code == "none" else int(air_bits * code_rate)
        maps = _maps(room, feature_bits, cipher, design.channel_uses)
        super().__init__(dataclasses.replace(design, channel_uses=8 * maps))  # networks for the features that are sent
        self.design = design
        self.key: Key | None = None
        self.cipher = cipher
        self.feature_bits = feature_bits
        self.clip = check_positive("option clip", clip)
        self.constellation = constellation
        self.feature_count = 16 * maps
        self.cipher_bits = _cipher_bits(self.feature_count * feature_bits, self.cipher)
        self.air_bits = air_bits
        self.coded = code == "ldpc"
        if self.coded:
            self._ldpc(torch.device("cpu"))

    @property
    def payload_bits(self) -> float:
        """d b, the bits that an image is sent as."""
        return float(self.feature_count * self.feature_bits)

    def quantise(self, features: Tensor) -> Tensor:
        """Return the bits of ``features: (B, d)``, most significant first: (B, d b) uint8."""
        levels = 1 << self.feature_bits
        step = 2 * self.clip / levels
        index = ((features.nan_to_num() + self.clip) / step).floor().clamp(0, levels - 1).long()
        return ((index[..., None] >> self._places(features.device)) & 1).flatten(1).to(torch.uint8)

    def dequantise(self, bits: Tensor) -> Tensor:
        """Return the middle of each level: (B, d b) uint8 -> (B, d) float32."""
        index = (bits.unflatten(1, (-1, self.feature_bits)).long() << self._places(bits.device)).sum(-1)
        return (index.float() + 0.5) * (2 * self.clip / (1 << self.feature_bits)) - self.clip

    def send(self, features: Tensor, nonces: Tensor) -> Sent:
        """Quantise ``features: (B, d)``, encipher, encode and modulate.

        Raises:
            SemlinkError: no key is set and one is needed, or there is not one nonce for each image.
        """
        check_nonces(nonces, len(features))
        if self.key is None and self.cipher != "none":
            raise SemlinkError("deepjscc-aes cannot transmit without its key; set link.scheme.key or give --key-file")
        bits = F.pad(self.quantise(features), (0, self.cipher_bits - int(self.payload_bits)))
        bits = self._through_cipher(bits, nonces, decrypt=False)
        if self.coded:
            with torch.autocast(bits.device.type, enabled=False):
                bits = self._ldpc(bits.device)[0](bits.float()).to(torch.uint8)
        else:
            bits = bits[:, torch.arange(self.air_bits, device=bits.device) % bits.shape[1]]
        label = _number(bits.unflatten(1, (self.design.channel_uses, -1)))
        index_of = _number(self.constellation.bits).argsort()
        return Sent(self.constellation.modulate(index_of[label]), payload_bits=self.payload_bits, header=nonces)

    def heard_bits(self, received: phy.Received, header: Tensor | None) -> Tensor:
        """Demodulate, decode and decipher: (B, d b) uint8."""
        seen = phy.zero_force(received)
        with torch.autocast(seen.symbols.device.type, enabled=False):
            if self.coded:
                llr = self.constellation.llr(seen.symbols, seen.noise_variance.clamp_min(1e-9)).flatten(1)
                bits = self._ldpc(llr.device)[1](llr.clamp(-1e3, 1e3)).to(torch.uint8)
            else:
                bits = self.constellation.bits[self.constellation.demodulate(seen.symbols)].flatten(1)
        nonces = torch.zeros(len(bits), dtype=torch.int64) if header is None else check_nonces(header, len(bits))
        bits = self._through_cipher(bits[:, : self.cipher_bits], nonces, decrypt=True)
        return bits[:, : int(self.payload_bits)]

    def heard(self, received: phy.Received, header: Tensor | None) -> Tensor:
        """Return the features that the receiver holds, (B, d)."""
        return self.dequantise(self.heard_bits(received, header))

    def transmit(self, images: Tensor, generator: torch.Generator, nonces: Tensor | None = None) -> Sent:
        """Encode, quantise, encipher and modulate.

        Args:
            images: (B, C, H, W) float32 in [0, 1].
            generator: draws the nonces that are not given.
            nonces: (B,) int64, non-negative; a value must never serve twice under one key.

        Raises:
            SemlinkError: no key is set (nothing is ever sent in the clear instead), or there is not one nonce for each
                image.
        """
        return self.send(self.features(images), draw_nonces(len(images), generator) if nonces is None else nonces)

    def receive(self, received: phy.Received, header: Tensor | None = None) -> Tensor:
        """Decipher with the receiver's key and answer."""
        return self.answer(self.heard(received, header))

    def observe(self, received: phy.Received, header: Tensor | None, with_secret: bool) -> Tensor:
        """Return the deciphered features and zeros behind them if ``with_secret``, the symbols as sent otherwise."""
        if not with_secret and self.cipher != "none":
            return super().observe(received, header, with_secret=False)
        return F.pad(self.heard(received, header), (0, 2 * self.design.channel_uses - self.feature_count))

    def phases(self, optimiser: Optimiser, carry: Carry, label_smoothing: float) -> list[Phase]:
        """Return one phase: the task through the real chain."""
        return [Phase("transceiver", ThroughCipher(self, carry, label_smoothing), optimiser)]

    def _places(self, device: torch.device) -> Tensor:
        return torch.arange(self.feature_bits - 1, -1, -1, device=device)

    def _through_cipher(self, bits: Tensor, nonces: Tensor, decrypt: bool) -> Tensor:
        """Encipher or decipher each row of ``bits: (B, m) uint8``."""
        if self.cipher == "none":
            secret = _PUBLISHED
        else:
            secret = _ABSENT if self.key is None else self.key.keystream(_OWN_NONCE, 32)
        mode = "cbc" if self.cipher == "cbc" else "ctr"
        rows = np.packbits(bits.cpu().numpy(), axis=1)
        done = [
            aes(mode, secret, _block(secret, mode, n), row.tobytes(), decrypt)
            for row, n in zip(rows, nonces.tolist(), strict=True)
        ]
        turned = np.unpackbits(np.frombuffer(b"".join(done), dtype=np.uint8).reshape(rows.shape), axis=1)
        return torch.from_numpy(turned[:, : bits.shape[1]]).to(bits.device)

    def _ldpc(self, device: torch.device) -> tuple[Any, Any]:
        return _ldpc(self.cipher_bits, self.air_bits, self.constellation.bits.shape[1], str(device))


class ThroughCipher(nn.Module):
    """The task's loss over the real chain, whose errors have no gradient; ``bit_errors`` is the share of wrong bits."""

    def __init__(self, scheme: DeepJSCCAES, carry: Carry, label_smoothing: float) -> None:
        super().__init__()
        self.scheme = scheme
        self.carry = carry
        self.label_smoothing = label_smoothing

    def forward(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the losses of one batch."""
        scheme = self.scheme
        features = scheme.features(images)
        with torch.no_grad():
            sent = scheme.send(features, draw_nonces(len(images), generator))
            bits = scheme.heard_bits(self.carry(sent.symbols, generator), sent.header)
            wrong = (bits != scheme.quantise(features)).float().mean()
        heard = features + (scheme.dequantise(bits) - features).detach()
        loss = scheme.design.task.loss(scheme.answer(heard).float(), images, targets, self.label_smoothing)
        return {"loss": loss, "bit_errors": wrong}


def aes(mode: str, secret: bytes, block: bytes, data: bytes, decrypt: bool) -> bytes:
    """Return ``data`` enciphered or deciphered by AES; ``block`` is CTR's first counter block or CBC's IV."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    cipher = Cipher(algorithms.AES(secret), {"ctr": modes.CTR, "cbc": modes.CBC}[mode](block))
    return (cipher.decryptor() if decrypt else cipher.encryptor()).update(data)


def _block(secret: bytes, mode: str, nonce: int) -> bytes:
    """Return what a message begins with: 64 bits of nonce and 64 of counter, for CBC enciphered, so that no one can
    foresee an IV.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    if nonce < 0:
        raise SemlinkError(f"nonce {nonce}: message numbers run from 0 to 2^63 - 1")
    counter = nonce.to_bytes(8, "big") + bytes(8)
    return counter if mode == "ctr" else Cipher(algorithms.AES(secret), modes.ECB()).encryptor().update(counter)


def _cipher_bits(bits: int, cipher: str) -> int:
    return -(-bits // BLOCK) * BLOCK if cipher == "cbc" else bits


def _maps(room: int, feature_bits: int, cipher: str, channel_uses: int) -> int:
    """Return how many 4x4 maps of features fit into ``room`` bits; at most two reals a channel use."""
    for maps in range(channel_uses // 8, 0, -1):
        if _cipher_bits(16 * maps * feature_bits, cipher) <= room:
            return maps
    least = _cipher_bits(16 * feature_bits, cipher)
    whole_blocks = f" in whole blocks of {BLOCK}" if cipher == "cbc" else ""
    raise SemlinkError(
        f"{channel_uses} channel uses carry {room} bits: a map of 16 features of {feature_bits} bits takes "
        f"{least}{whole_blocks}; use at least {-(-channel_uses * least // (8 * room)) * 8} channel uses"
    )


def _constellation(order: int) -> phy.Constellation:
    try:
        return phy.qam(check_whole("option order", order), "gray")
    except SemlinkError as error:
        raise SemlinkError(f"option order is {order!r}: {error}") from None


def _number(bits: Tensor) -> Tensor:
    """Read the last axis as a number, most significant bit first."""
    return (bits.long() << torch.arange(bits.shape[-1] - 1, -1, -1, device=bits.device)).sum(-1)


@functools.lru_cache
def _ldpc(k: int, n: int, bits_per_symbol: int, device: str) -> tuple[Any, Any]:
    """Return the 5G code's encoder (k bits to n) and decoder (LLRs, positive for 1, to k hard bits)."""
    try:
        from sionna.phy.fec.ldpc import LDPC5GDecoder, LDPC5GEncoder
    except ImportError:
        raise SemlinkError(
            "option code is 'ldpc', which needs Sionna; install it with: pip install 'semlink[sionna]'"
        ) from None
    try:
        encoder = LDPC5GEncoder(k, n, num_bits_per_symbol=bits_per_symbol, precision="single", device=device)
    except ValueError as error:
        raise SemlinkError(
            f"{k} bits cannot be coded into {n} ({str(error).rstrip('.')}); "
            "change code_rate, feature_bits or the channel uses"
        ) from None
    return encoder, LDPC5GDecoder(encoder, num_iter=_ITERATIONS, hard_out=True, precision="single", device=device)
