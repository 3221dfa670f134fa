# SPDX-License-Identifier: Apache-2.0
"""Keys: where they come from, where they never go, and the permutations they make."""

import copy
import hashlib
import itertools
import json
import math
import pickle

import numpy as np
import pytest
import torch

from semlink._errors import SemlinkError
from semlink.schemes import Key
from semlink.schemes.key import permutations

SECRET = bytes(range(100, 132))
ZERO = Key(bytes(32))


@pytest.mark.parametrize(
    ("nonce", "start", "expected"),
    [
        # RFC 8439, A.1: vectors 1 and 2 (blocks 0 and 1 of the zero nonce), and 5 (last byte of the nonce is 2).
        (0, 0, "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7da41597c5157488d7724e03fb8d84a37"),
        (0, 64, "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed29b721769ce64e43d57133b074d839d5"),
        (
            2 << 56,
            0,
            "c2c64d378cd536374ae204b9ef933fcd1a8b2288b3dfa49672ab765b54ee27c78a970e0e955c14f3a88e741b97c286f7",
        ),
    ],
)
def test_keystream_is_chacha20(nonce, start, expected):
    expected = bytes.fromhex(expected)
    assert ZERO.keystream(nonce, start + len(expected))[start:] == expected


def test_keystream_under_another_key():
    """RFC 8439, A.1, vector 3 is block 1 under a key whose last byte is 1."""
    stream = Key(bytes(31) + b"\x01").keystream(0, 128)
    assert stream[64:80].hex() == "3aeb5224ecf849929b9d828db1ced4dd"


@pytest.mark.parametrize("nonce", [-1, 2**64])
def test_nonces_have_64_bits(nonce):
    with pytest.raises(SemlinkError, match=f"^nonce {nonce}: .*from 0"):
        ZERO.keystream(nonce, 8)
    assert len(ZERO.keystream(2**64 - 1, 8)) == 8


def test_a_permutation_sorts_the_keystream():
    words = np.frombuffer(ZERO.keystream(7, 8 * 50), dtype="<u8").tolist()
    order = permutations(ZERO, torch.tensor([7]), 50)[0].tolist()
    assert order == sorted(range(50), key=words.__getitem__)


def test_every_row_is_a_permutation_and_follows_key_and_nonce_alone():
    nonces = torch.tensor([9, 3, 9, 2**62, 0])
    rows = permutations(ZERO, nonces, 128)
    assert rows.dtype == torch.int64
    assert rows.shape == (5, 128)
    assert torch.equal(rows.sort(dim=1).values, torch.arange(128).expand(5, 128))
    assert torch.equal(rows[0], rows[2]), "messages that share a nonce share the permutation"
    for i, j in itertools.combinations((0, 1, 3, 4), 2):
        assert not torch.equal(rows[i], rows[j])
    for i, nonce in enumerate(nonces):
        assert torch.equal(permutations(ZERO, nonce[None], 128)[0], rows[i])
    assert not torch.equal(permutations(Key(SECRET), nonces, 128), rows)


def test_all_orders_of_three_are_equally_likely():
    count = 12_000
    rows = permutations(Key(SECRET), torch.arange(count), 3)
    codes = rows @ torch.tensor([9, 3, 1])
    found = torch.bincount(codes, minlength=27)
    found = found[found > 0].double()
    assert len(found) == math.factorial(3)
    sigma = math.sqrt(count * (1 / 6) * (5 / 6))
    assert (found - count / 6).abs().max() < 5 * sigma


def test_every_feature_goes_everywhere_equally_often():
    """Chi-square of the counts (feature, position): (d - 1)^2 degrees of freedom, variance twice that."""
    count, d = 10_000, 16
    rows = permutations(Key(SECRET), torch.arange(count) + 2**40, d)
    table = torch.stack([torch.bincount(rows[:, i], minlength=d) for i in range(d)]).double()
    statistic = float(((table - count / d) ** 2 / (count / d)).sum())
    freedom = (d - 1) ** 2
    assert abs(statistic - freedom) < 5 * math.sqrt(2 * freedom)


def test_a_key_shows_its_kind_and_nothing_else():
    key = Key(SECRET)
    hidden = [SECRET.hex(), str(SECRET)[2:-1], SECRET.hex()[:16], str(list(SECRET))[1:-1]]
    shown = [repr(key), str(key), f"{key}", f"{[key]}", json.dumps(key.describe()), repr(key.describe())]
    assert repr(key) == "Key(kind='user')"
    for text in shown:
        for secret in hidden:
            assert secret not in text
    assert not hasattr(key, "__dict__")


@pytest.mark.parametrize(
    "serialise", [copy.copy, copy.deepcopy, json.dumps, *[lambda k, p=p: pickle.dumps(k, p) for p in range(6)]]
)
def test_a_key_cannot_be_serialised(serialise):
    with pytest.raises(TypeError):
        serialise(Key(SECRET))


def test_records_tell_keys_apart_by_a_one_way_fingerprint():
    described = Key(SECRET).describe()
    assert described == Key(SECRET).describe()
    assert set(described) == {"kind", "fingerprint"}
    assert described["fingerprint"] != ZERO.describe()["fingerprint"]
    assert len(described["fingerprint"]) == 16
    assert not hashlib.sha256(SECRET).hexdigest().startswith(described["fingerprint"])
    assert described["fingerprint"] not in Key(SECRET).keystream(0, 4096).hex()


def test_test_keys_are_derived_and_marked():
    assert Key.for_test(3).kind == "test"
    assert Key.for_test(3).describe()["kind"] == "test"
    assert repr(Key.for_test(3)) == "Key(kind='test')"
    assert Key.for_test(3).describe() == Key.for_test(3).describe()
    assert Key.for_test(3).describe() != Key.for_test(4).describe()
    assert Key.for_test(3).keystream(0, 32) == Key.for_test(3).keystream(0, 32)
    assert Key.from_hex(SECRET.hex(), "here").kind == "user"


@pytest.mark.parametrize("text", [SECRET.hex(), SECRET.hex().upper() + "\n", f"  {SECRET.hex()}\r\n"])
def test_a_key_is_64_hex_digits_from_a_file_or_the_environment(tmp_path, monkeypatch, text):
    path = tmp_path / "my.key"
    path.write_bytes(text.encode())
    monkeypatch.setenv("SEMLINK_KEY", text)
    for key in (Key.from_file(path), Key.from_environment(), Key.from_hex(text, "here")):
        assert key is not None
        assert key.keystream(1, 64) == Key(SECRET).keystream(1, 64)
        assert key.kind == "user"


def test_no_key_in_the_environment_is_none(monkeypatch):
    monkeypatch.delenv("SEMLINK_KEY", raising=False)
    assert Key.from_environment() is None


BAD = [
    "",
    "\n",
    "correct horse battery staple",
    "deadbeef",
    "c0ffee" * 10,  # 60 digits
    "c0ffee" * 12,  # 72 digits
    "ab" * 31 + "a",
    "ab" * 31 + "zz",
    "0x" + "cd" * 31,
    "ab" * 32 + "\n" + "ab" * 32,
    "ключ" * 16,
]


def complains_without_content(call, source, text):
    with pytest.raises(SemlinkError) as caught:
        call()
    message = str(caught.value)
    assert source in message
    assert "64 hex digits" in message
    assert "openssl rand -hex 32" in message
    assert "\n" not in message
    for start in range(max(1, len(text.strip()) - 5)):
        piece = text.strip()[start : start + 6]
        assert not piece or piece not in message.replace(source, "")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("text", BAD)
def test_bad_keys_are_refused_in_one_line_that_names_the_source_and_not_the_content(tmp_path, monkeypatch, text):
    path = tmp_path / "my.key"
    path.write_text(text, encoding="utf-8")
    monkeypatch.setenv("SEMLINK_KEY", text)
    complains_without_content(lambda: Key.from_file(path), f"key file {path}", text)
    complains_without_content(Key.from_environment, "SEMLINK_KEY", text)
    complains_without_content(lambda: Key.from_hex(text, "the setting"), "the setting", text)


def test_key_files_that_are_no_text_or_not_there_are_refused(tmp_path):
    raw = tmp_path / "raw.key"
    raw.write_bytes(SECRET[:28] + b"\xff\xfe\xfd\xfc")
    complains_without_content(lambda: Key.from_file(raw), f"key file {raw}", SECRET[:28].decode("latin-1"))
    for missing, reason in ((tmp_path / "no.key", "No such file"), (tmp_path, "directory")):
        with pytest.raises(SemlinkError, match=reason) as caught:
            Key.from_file(missing)
        assert str(missing) in str(caught.value)


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_other_sizes_are_refused(size):
    with pytest.raises(SemlinkError, match=f"32 bytes, this one has {size}"):
        Key(bytes(size))
