# SPDX-License-Identifier: Apache-2.0
"""Readers of the authors' formats: IDX, the CIFAR-10 binary version, CelebA's text files and JPEGs. No pickles."""

import gzip
import hashlib
import zlib
from pathlib import Path

import numpy as np

from semlink._errors import SemlinkError
from semlink.data.sources import Published, damaged, how_to_get, locate, missing

FACE_PIXELS = 64
_ORIGINAL = (178, 218)  # width, height of CelebA's aligned images


def content(name: str, file: Published) -> bytes:
    """Return the unpacked bytes of a published file of the set ``name``.

    Raises:
        SemlinkError: the file is missing, unreadable, a damaged gzip stream, or of the wrong size.
    """
    path = locate(file)
    try:
        # One byte more than allowed is read at most, so that a wrong file cannot fill the memory.
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            found = stream.read(file.size + 1)
    except FileNotFoundError:
        raise missing(name, path) from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise damaged(name, path, "is a damaged or truncated gzip file", f"{file.size:,} bytes of content") from None
    except OSError as error:
        raise SemlinkError(f"{path} cannot be read ({error.strerror}); make it readable for this user") from None
    if len(found) != file.size:
        holds = f"more than {file.size:,}" if len(found) > file.size else f"{len(found):,}"
        raise damaged(name, path, f"holds {holds} bytes", f"{file.size:,}")
    return found


def verify(name: str, file: Published) -> None:
    """Compare a file with the published SHA-256.

    Raises:
        SemlinkError: as ``content``, or the sums differ.
    """
    found = hashlib.sha256(content(name, file)).hexdigest()
    if found != file.sha256:
        raise damaged(name, locate(file), f"has SHA-256 {found[:16]}...", f"{file.sha256[:16]}... (published content)")


def read_idx(name: str, file: Published, dimensions: int) -> np.ndarray:
    """Return the uint8 array of an IDX file, packed with gzip or not.

    Layout: two zero bytes, 0x08 for uint8, the number of axes, a big-endian uint32 for each axis, the values.

    Raises:
        SemlinkError: as ``content``, or the magic number or the lengths of the axes are wrong.
    """
    data = content(name, file)
    magic = bytes((0, 0, 8, dimensions))
    if data[:4] != magic:
        raise damaged(name, locate(file), f"begins with {data[:4].hex()}", f"the IDX magic number {magic.hex()}")
    start = 4 + 4 * dimensions
    shape = np.frombuffer(data, ">u4", dimensions, offset=4).astype(int).tolist()
    values = np.frombuffer(data, np.uint8, offset=start)
    if int(np.prod(shape, dtype=object)) != values.size:
        raise damaged(name, locate(file), f"announces the shape {tuple(shape)}", f"{values.size:,} values")
    return values.reshape(shape)


def read_cifar10(name: str, file: Published) -> tuple[np.ndarray, np.ndarray]:
    """Return images (n, 3, 32, 32) uint8 and labels (n,) uint8 of a batch of the binary version.

    Each record is one label byte and 3,072 pixel bytes: red, green, blue, each row by row.

    Raises:
        SemlinkError: as ``content``, or a label is not in 0..9.
    """
    records = np.frombuffer(content(name, file), np.uint8).reshape(-1, 3_073)
    labels = records[:, 0]
    if labels.max(initial=0) > 9:
        raise damaged(name, locate(file), f"holds the label {labels.max()}", "labels 0 to 9")
    return records[:, 1:].reshape(-1, 3, 32, 32), labels


def read_partition(path: Path) -> dict[str, int]:
    """Return the partition (0 train, 1 valid, 2 test) or the identity of every file name in a two-column list.

    Raises:
        SemlinkError: a line is not a file name and a number.
    """
    rows = {}
    for number, line in enumerate(_lines(path), 1):
        fields = line.split()
        if len(fields) != 2 or not fields[1].isdigit():
            raise SemlinkError(f"{path} line {number} is '{line[:40]}', expected 'NUMBER.jpg NUMBER'; get it again")
        rows[fields[0]] = int(fields[1])
    return rows


def read_attributes(path: Path, wanted: set[str]) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Return the attribute names and, for every ``wanted`` file name, its row: (A,) uint8 in {0, 1}.

    The file holds a count, the names, and one line per image with -1 or 1 for each name.

    Raises:
        SemlinkError: a row has another length or another value.
    """
    lines = _lines(path)
    names = tuple(lines[1].split()) if len(lines) > 1 else ()
    rows = {}
    for number, line in enumerate(lines[2:], 3):
        file, _, values = line.partition(" ")
        if file not in wanted:
            continue
        row = np.array(values.split(), dtype=object)
        positive = row == "1"
        if len(row) != len(names) or not (positive | (row == "-1")).all():
            raise SemlinkError(
                f"{path} line {number} is '{line[:40]}...', expected a file name and {len(names)} values -1 or 1; "
                + how_to_get("celeba")
            )
        rows[file] = positive.astype(np.uint8)
    return names, rows


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        raise missing("celeba", path) from None
    except ValueError:
        raise damaged("celeba", path, "is not plain text", "the published list") from None
    except OSError as error:
        raise SemlinkError(f"{path} cannot be read ({error.strerror}); make it readable for this user") from None


def read_face(path: Path) -> np.ndarray:
    """Return (3, 64, 64) uint8 from a JPEG of 64x64 (taken as it is) or of CelebA's 178x218.

    The latter is cropped to its central 178x178 and resized with Pillow's LANCZOS filter.

    Raises:
        SemlinkError: the file is no whole JPEG, or of another size.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=("JPEG",)) as image:
            pixels = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise damaged("celeba", path, "is damaged or truncated", "a whole JPEG image") from None
    if pixels.size == _ORIGINAL:
        width, height = _ORIGINAL
        top = (height - width) // 2
        pixels = pixels.crop((0, top, width, top + width)).resize((FACE_PIXELS, FACE_PIXELS), Image.Resampling.LANCZOS)
    if pixels.size != (FACE_PIXELS, FACE_PIXELS):
        size = f"is {pixels.width}x{pixels.height}"
        raise damaged("celeba", path, size, f"{FACE_PIXELS}x{FACE_PIXELS} or {_ORIGINAL[0]}x{_ORIGINAL[1]}")
    return np.asarray(pixels).transpose(2, 0, 1)
