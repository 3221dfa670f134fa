# SPDX-License-Identifier: Apache-2.0
"""Readers of the published formats, on whole and on damaged files."""

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semlink._errors import SemlinkError
from semlink.data import formats
from semlink.data.sources import Published

PIXELS = np.arange(2 * 3 * 4, dtype=np.uint8)
IDX = struct.pack(">BBBBIII", 0, 0, 8, 3, 2, 3, 4) + PIXELS.tobytes()


def zipped(content: bytes) -> bytes:
    """Compress without the time of day, which would give a case another name in each process that collects it."""
    return gzip.compress(content, mtime=0)


def published(data: bytes, path: str = "mnist/x-ubyte.gz") -> Published:
    return Published(path, len(data), hashlib.sha256(data).hexdigest())


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEMLINK_DATA", str(tmp_path))
    (tmp_path / "mnist").mkdir()
    (tmp_path / "cifar-10-batches-bin").mkdir()
    return tmp_path


def one_line(error: pytest.ExceptionInfo[SemlinkError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("packed", [True, False])
def test_idx_is_read_packed_and_unpacked(root: Path, packed: bool) -> None:
    if packed:
        (root / "mnist/x-ubyte.gz").write_bytes(zipped(IDX))
    else:
        (root / "mnist/x-ubyte").write_bytes(IDX)
    np.testing.assert_array_equal(formats.read_idx("mnist", published(IDX), 3), PIXELS.reshape(2, 3, 4))
    formats.verify("mnist", published(IDX))


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (zipped(IDX)[:-12], "damaged or truncated gzip"),
        (b"<html>not found</html>", "damaged or truncated gzip"),
        (b"", "holds 0 bytes, expected 40"),
        (zipped(IDX[:-1]), "holds 39 bytes, expected 40"),
        (zipped(IDX + b"!"), "holds more than 40 bytes, expected 40"),
        (zipped(b"\0\0\x0d\3" + IDX[4:]), "begins with 00000d03, expected the IDX magic number 00000803"),
        (zipped(IDX[:7] + b"\5" + IDX[8:]), r"announces the shape \(5, 3, 4\), expected 24 values"),
        (zipped(IDX[:4] + b"\xff" * 12 + IDX[16:]), r"announces the shape .* expected 24 values"),
    ],
)
def test_wrong_idx_is_named_with_what_was_expected_and_the_remedy(root: Path, stored: bytes, expected: str) -> None:
    path = root / "mnist/x-ubyte.gz"
    path.write_bytes(stored)
    with pytest.raises(SemlinkError, match=expected) as error:
        formats.read_idx("mnist", published(IDX), 3)
    assert str(path) in one_line(error)
    assert "semlink data fetch mnist" in one_line(error)


def test_one_changed_byte_is_found_by_the_sum(root: Path) -> None:
    (root / "mnist/x-ubyte.gz").write_bytes(zipped(IDX[:-1] + b"!"))
    with pytest.raises(SemlinkError, match="has SHA-256"):
        formats.verify("mnist", published(IDX))


def test_missing_file_is_named(root: Path) -> None:
    with pytest.raises(SemlinkError, match=r"x-ubyte.gz is missing; run 'semlink data fetch mnist'"):
        formats.content("mnist", published(IDX))


def test_something_that_is_no_file(root: Path) -> None:
    (root / "mnist/x-ubyte.gz").mkdir()
    with pytest.raises(SemlinkError, match="cannot be read") as error:
        formats.content("mnist", published(IDX))
    one_line(error)


def test_cifar10_record_layout(root: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    data = b"".join(bytes([label]) + pixels.tobytes() for label, pixels in zip((9, 0), image, strict=True))
    file = published(data, "cifar-10-batches-bin/b.bin")
    (root / file.path).write_bytes(data)
    pixels, labels = formats.read_cifar10("cifar10", file)
    np.testing.assert_array_equal(pixels, image)
    assert labels.tolist() == [9, 0]
    (root / file.path).write_bytes(b"\x0a" + data[1:])
    with pytest.raises(SemlinkError, match="holds the label 10, expected labels 0 to 9"):
        formats.read_cifar10("cifar10", file)


def test_pickled_cifar10_is_refused_by_name(root: Path) -> None:
    (root / "cifar-10-batches-py").mkdir()
    with pytest.raises(SemlinkError, match="pickled, so never read; the binary version") as error:
        formats.content("cifar10", published(b"x", "cifar-10-batches-bin/b.bin"))
    assert "semlink data fetch cifar10" in one_line(error)


def test_attributes_become_zero_and_one_for_the_wanted_rows(tmp_path: Path) -> None:
    path = tmp_path / "list_attr_celeba.txt"
    path.write_bytes(b"3\r\nBald Male Smiling \r\n000001.jpg -1  1  1\r\n000002.jpg x\r\n000003.jpg  1 -1 -1\r\n")
    names, rows = formats.read_attributes(path, {"000001.jpg", "000003.jpg"})
    assert names == ("Bald", "Male", "Smiling")
    assert {file: row.tolist() for file, row in rows.items()} == {"000001.jpg": [0, 1, 1], "000003.jpg": [1, 0, 0]}
    for wrong in (b"000001.jpg 1 1", b"000001.jpg 1 0 1", b"000001.jpg 1 1 1 1"):
        path.write_bytes(b"1\nBald Male Smiling\n" + wrong + b"\n")
        with pytest.raises(SemlinkError, match=r"line 3 is .* expected a file name and 3 values"):
            formats.read_attributes(path, {"000001.jpg"})


def test_partition_list(tmp_path: Path) -> None:
    path = tmp_path / "list_eval_partition.txt"
    path.write_bytes(b"000001.jpg 0\r\n000002.jpg 2\r\n")
    assert formats.read_partition(path) == {"000001.jpg": 0, "000002.jpg": 2}
    for wrong in (b"000001.jpg\n", b"000001.jpg x\n", b"000001.jpg 0 0\n"):
        path.write_bytes(wrong)
        with pytest.raises(SemlinkError, match="line 1 is"):
            formats.read_partition(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SemlinkError, match="not plain text"):
        formats.read_partition(path)


def test_a_64_pixel_face_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "000001.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    np.testing.assert_array_equal(formats.read_face(path), np.asarray(Image.open(path)).transpose(2, 0, 1))


def test_an_original_face_loses_its_top_and_bottom_20_rows(tmp_path: Path) -> None:
    path = tmp_path / "000001.jpg"
    pixels = np.zeros((218, 178, 3), np.uint8)
    pixels[20:198, :, 1] = 200  # green where the crop must lie, black outside
    pixels[20:198, :89, 0] = 200
    Image.fromarray(pixels).save(path, quality=100, subsampling=0)
    face = formats.read_face(path).astype(int)
    assert face.shape == (3, 64, 64)
    assert np.abs(face[1] - 200).max() <= 12  # JPEG rings at the border, one row of it reaches the edge
    assert np.abs(face[0, :, :30] - 200).max() <= 12
    assert face[0, :, 34:].max() <= 12


@pytest.mark.parametrize(("size", "expected"), [((64, 65), "is 64x65"), ((218, 178), "is 218x178")])
def test_face_of_another_size_is_named(tmp_path: Path, size: tuple[int, int], expected: str) -> None:
    path = tmp_path / "000001.jpg"
    Image.new("RGB", size).save(path)
    with pytest.raises(SemlinkError, match=f"{expected}, expected 64x64 or 178x218"):
        formats.read_face(path)


def test_truncated_or_foreign_face_is_named(tmp_path: Path) -> None:
    path = tmp_path / "000001.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    for stored in (whole[: len(whole) // 2], b"", b"\x89PNG\r\n"):
        path.write_bytes(stored)
        with pytest.raises(SemlinkError, match=r"000001\.jpg is damaged or truncated") as error:
            formats.read_face(path)
        one_line(error)
