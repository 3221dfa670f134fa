# SPDX-License-Identifier: Apache-2.0
"""Secret keys and what is derived from them."""

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from semlink._errors import SemlinkError

ENVIRONMENT_VARIABLE = "SEMLINK_KEY"
_WRITE_ONE = "write one with: openssl rand -hex 32 > my.key"


class Key:
    """A 256-bit key. It prints as its kind only and cannot be serialised; records carry :meth:`describe`."""

    __slots__ = ("_secret", "kind")

    def __init__(self, secret: bytes, kind: str = "user") -> None:
        if len(secret) != 32:
            raise SemlinkError(f"a key has 32 bytes, this one has {len(secret)}; {_WRITE_ONE}")
        self._secret = secret
        self.kind = kind

    @classmethod
    def from_hex(cls, text: str, source: str) -> "Key":
        """Parse 64 hex digits; an error names ``source``, never the text."""
        try:
            secret = bytes.fromhex(text.strip())
        except ValueError:
            raise SemlinkError(f"{source} does not hold a key: 64 hex digits are expected; {_WRITE_ONE}") from None
        if len(secret) != 32:
            raise SemlinkError(f"{source} holds {len(secret)} bytes: a key is 64 hex digits; {_WRITE_ONE}")
        return cls(secret)

    @classmethod
    def from_file(cls, path: Path) -> "Key":
        """Read a key of 64 hex digits."""
        try:
            text = path.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not text"
            raise SemlinkError(
                f"key file {path} cannot be read ({reason}): 64 hex digits are expected; {_WRITE_ONE}"
            ) from None
        return cls.from_hex(text, f"key file {path}")

    @classmethod
    def from_environment(cls) -> "Key | None":
        """Read the key in SEMLINK_KEY, if it is set."""
        text = os.environ.get(ENVIRONMENT_VARIABLE)
        return None if text is None else cls.from_hex(text, f"the environment variable {ENVIRONMENT_VARIABLE}")

    @classmethod
    def for_test(cls, seed: int) -> "Key":
        """Return the benchmark key of ``seed``: anyone can derive it, so it protects nothing."""
        return cls(hashlib.sha256(f"semlink test key {seed}".encode()).digest(), kind="test")

    def describe(self) -> dict[str, str]:
        """Return what a record may say: the kind, and a one-way fingerprint to recognise the key by."""
        fingerprint = hashlib.sha256(b"semlink key fingerprint" + self._secret).hexdigest()[:16]
        return {"kind": self.kind, "fingerprint": fingerprint}

    def keystream(self, nonce: int, size: int) -> bytes:
        """Return ``size`` bytes of ChaCha20 (RFC 8439 core) under this key and ``nonce``."""
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

        if not 0 <= nonce < 2**64:
            raise SemlinkError(f"nonce {nonce}: message numbers run from 0 to 2^64 - 1")
        # The 16 bytes are a 64-bit block counter, from 0, and a 64-bit nonce.
        cipher = algorithms.ChaCha20(self._secret, bytes(8) + nonce.to_bytes(8, "little"))
        return Cipher(cipher, mode=None).encryptor().update(bytes(size))

    def __repr__(self) -> str:
        return f"Key(kind={self.kind!r})"

    def __reduce__(self) -> str:
        raise TypeError("a key is never serialised; load it again where it is needed")


def permutations(key: Key, nonces: Tensor, length: int) -> Tensor:
    """Return one keyed permutation per message: ``nonces (B,) int64 -> (B, length) int64``.

    Each row sorts ``length`` 64-bit words of keystream, which is uniform over all orders but for ties, of probability
    below ``length**2 / 2**65``. Messages that share a nonce share the work.
    """
    values, inverse = torch.unique(nonces.cpu(), return_inverse=True)
    words = np.stack([np.frombuffer(key.keystream(int(n), 8 * length), dtype="<u8") for n in values])
    return torch.from_numpy(np.argsort(words, axis=1, kind="stable"))[inverse]


def draw_nonces(count: int, generator: torch.Generator, fresh: bool = True) -> Tensor:
    """Draw a nonce of 63 bits for each of ``count`` messages, 0 for all if not ``fresh``: (count,) int64."""
    return torch.randint(2**63 - 1 if fresh else 1, (count,), generator=generator, device=generator.device)


def check_nonces(nonces: Tensor, count: int) -> Tensor:
    """Return ``nonces``; SemlinkError unless they are (count,) int64."""
    # Fewer rows would pass gather and scatter, and lose the last images in silence; fractions would share a nonce.
    if nonces.dtype != torch.int64 or nonces.shape != (count,):
        raise SemlinkError(
            f"nonces of shape {tuple(nonces.shape)}, {nonces.dtype}: one int64 for each of {count} images is expected"
        )
    return nonces


def keyed_bits(key: Key, nonces: Tensor, skip: int, count: int) -> Tensor:
    """Return ``count`` bits of each message's keystream behind its first ``skip`` bytes: (B, count) uint8.

    Messages that share a nonce share the work.
    """
    values, inverse = torch.unique(nonces.cpu(), return_inverse=True)
    size = -(-count // 8)
    rows = [np.frombuffer(key.keystream(int(n), skip + size), dtype=np.uint8, offset=skip) for n in values]
    return torch.from_numpy(np.unpackbits(np.stack(rows), axis=1, count=count))[inverse]
