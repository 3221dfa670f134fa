# SPDX-License-Identifier: Apache-2.0
"""CelebA: layout, cache, and what happens when a preparation is killed. Stand-in images are noise, not faces."""

import io
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semlink import data
from semlink._errors import SemlinkError
from semlink._files import sha256_file
from semlink.data import celeba, sources
from semlink.data.formats import read_face
from semlink.data.splits import Split

COUNT = 60  # of 80 rows: the user's images are a subset
ORIGINALS = Path(__file__).parents[3] / "shared" / "data" / "celeba" / "img_align_celeba_400.zip"

# What the test of a killed preparation runs in an interpreter of its own.
PREPARE = f"""
import os, sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_data_celeba import register
from semlink.data import celeba, load
whole = celeba.read_face
def slow(path):
    time.sleep(0.02)
    os.write(1, b"decoding\\n")  # in one piece, whichever thread
    return whole(path)
celeba.read_face = slow
register()
load("celeba")
"""


def register() -> None:
    """Make the lists in the data folder the published ones."""
    files = [data.data_root() / "celeba" / name for name in ("list_attr_celeba.txt", "list_eval_partition.txt")]
    sources.FILES["celeba"] = tuple(
        sources.Published(f"celeba/{path.name}", path.stat().st_size, sha256_file(path)) for path in files
    )


@pytest.fixture
def faces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in CelebA's layout, and the numbers of its images by partition: 40 / 12 / 8."""
    monkeypatch.setenv("SEMLINK_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(sources, "cache_root", lambda: tmp_path / "cache")
    monkeypatch.setattr(celeba, "cache_root", lambda: tmp_path / "cache")
    monkeypatch.setitem(sources.FILES, "celeba", sources.FILES["celeba"])  # restored afterwards
    root = tmp_path / "data" / "celeba"
    (root / "img_align_celeba").mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(1, COUNT + 1):
        size = (218, 178) if number % 2 else (64, 64)
        pixels = np.full((*size, 3), random.integers(0, 256, 3), np.uint8)
        Image.fromarray(pixels).save(root / "img_align_celeba" / f"{number:06d}.jpg")
    rows = [f"{number:06d}.jpg" for number in range(1, 81)]
    names = " ".join(f"A{k}" for k in range(40))
    signs = np.where(random.random((80, 40)) < 0.5, "-1", " 1")
    attributes = [f"{file} {' '.join(row)}" for file, row in zip(rows, signs, strict=True)]
    (root / "list_attr_celeba.txt").write_text("\r\n".join(["80", names, *attributes, ""]))
    partition = [0 if k < 40 else 1 if k < 52 else 2 for k in range(80)]
    (root / "list_eval_partition.txt").write_text("".join(f"{f} {p}\n" for f, p in zip(rows, partition, strict=True)))
    register()
    return root


def cached(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "celeba").glob("*.safetensors"))


def test_splits_follow_the_partition_and_targets_their_images(faces: Path) -> None:
    loaded = data.load("celeba")
    sizes = [len(getattr(loaded, role)) for role in Split._fields]
    assert sizes == [36, 4, 11, 1, 8]
    assert loaded.image_shape == (3, 64, 64)
    assert loaded.kind == "attributes"
    assert loaded.target_names == tuple(f"A{k}" for k in range(40))
    assert loaded.test.targets.dtype == torch.float32
    rows = [line.split() for line in (faces / "list_attr_celeba.txt").read_text().splitlines()[2:]]
    expected = {
        read_face(faces / "img_align_celeba" / row[0]).tobytes(): [float(v == "1") for v in row[1:]]
        for row in rows[:COUNT]
    }
    assert len(expected) == COUNT
    for role in Split._fields:
        part = getattr(loaded, role)
        for image, target in zip(part.images, part.targets, strict=True):
            assert expected.pop(image.numpy().tobytes()) == target.tolist()
    assert not expected
    assert "60 of 80 images" in loaded.provenance["source"]
    assert "identities not supplied" in loaded.provenance["source"]


def test_second_load_reads_the_cache_and_is_equal(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = data.load("celeba")
    assert len(cached(tmp_path)) == 1
    monkeypatch.setattr(celeba, "_prepare", None)  # a second preparation would fail
    second = data.load("celeba")
    assert first.provenance == second.provenance
    assert first.target_names == second.target_names
    for role in Split._fields:
        assert torch.equal(getattr(first, role).images, getattr(second, role).images)
        assert torch.equal(getattr(first, role).targets, getattr(second, role).targets)
    assert [p.name for p in (tmp_path / "cache" / "celeba" / ".semlink").iterdir()] == ["lock"]


def test_a_changed_image_is_prepared_anew(faces: Path, tmp_path: Path) -> None:
    before = data.load("celeba").provenance
    Image.new("RGB", (64, 64), (1, 2, 3)).save(faces / "img_align_celeba" / "000001.jpg")
    after = data.load("celeba").provenance
    assert before["sha256"] != after["sha256"]
    assert before["splits"] == after["splits"]
    assert len(cached(tmp_path)) == 2


@pytest.mark.parametrize("damage", ["truncated", "flipped", "renamed", "empty"])
def test_a_damaged_cache_is_made_again(
    faces: Path, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = data.load("celeba")
    copies = {role: getattr(before, role).targets.clone() for role in Split._fields}
    path = cached(tmp_path)[0]
    whole = path.read_bytes()
    changed = {
        "truncated": whole[:-100],
        "flipped": whole[:-1] + bytes([whole[-1] ^ 1]),
        "renamed": whole.replace(b"A17", b"A71", 1),
        "empty": b"",
    }[damage]
    path.write_bytes(changed)
    after = data.load("celeba")
    assert after.provenance == before.provenance
    assert after.target_names == before.target_names
    assert all(torch.equal(getattr(after, role).targets, copy) for role, copy in copies.items())
    assert len(path.read_bytes()) == len(whole)
    monkeypatch.setattr(celeba, "_prepare", None)
    assert data.load("celeba").provenance == before.provenance


def test_a_killed_preparation_leaves_nothing_and_the_next_one_succeeds(faces: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "SEMLINK_DATA": str(tmp_path / "data"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    child = subprocess.Popen(
        [sys.executable, "-c", PREPARE],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"decoding\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    child = subprocess.run([sys.executable, "-c", PREPARE], env=environment, check=True, capture_output=True)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 1


def test_leftovers_of_a_killed_preparation_are_cleared(faces: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "cache" / "celeba" / ".semlink"
    scratch.mkdir(parents=True)
    (scratch / "celeba64-dead.safetensors").write_bytes(b"half")
    data.load("celeba")
    assert [path.name for path in scratch.iterdir()] == ["lock"]


def test_damage_is_named(faces: Path, tmp_path: Path) -> None:
    image = faces / "img_align_celeba" / "000007.jpg"
    image.write_bytes(image.read_bytes()[:300])
    with pytest.raises(SemlinkError, match=r"000007\.jpg is damaged or truncated, .* 'semlink data fetch celeba'"):
        data.load("celeba")
    assert not cached(tmp_path)
    found = data.check("celeba")
    assert [(status.path.name, status.state) for status in found] == [
        ("list_attr_celeba.txt", "ok"),
        ("list_eval_partition.txt", "ok"),
        ("img_align_celeba", "damaged"),
        ("000007.jpg", "damaged"),
    ]
    partition = faces / "list_eval_partition.txt"
    partition.write_text(partition.read_text().replace("000001.jpg 0", "000001.jpg 1"))
    with pytest.raises(SemlinkError, match=r"list_eval_partition\.txt has SHA-256"):
        data.load("celeba")


def test_missing_partition_is_named(faces: Path) -> None:
    for number in range(41, 53):
        (faces / "img_align_celeba" / f"{number:06d}.jpg").unlink()
    with pytest.raises(SemlinkError, match="0 images of partition 1"):
        data.load("celeba")


def test_folder_without_images_is_named(faces: Path) -> None:
    for image in (faces / "img_align_celeba").iterdir():
        image.unlink()
    with pytest.raises(SemlinkError, match="img_align_celeba holds no JPEG file"):
        data.load("celeba")


def test_persons_must_not_be_shared(faces: Path) -> None:
    identity = faces / "identity_CelebA.txt"
    persons = {number: number // 3 if number < 40 else 1000 + number for number in range(1, 81)}
    lines = [f"{number:06d}.jpg {person}" for number, person in persons.items()]
    identity.write_text("\n".join(lines))
    for _ in range(2):  # as it is prepared, and from the cache
        sets = data.load("celeba")
        assert "identities checked" in sets.provenance["source"]
        assert sets.test.persons is not None
        assert sorted(sets.test.persons.tolist()) == [1000 + number for number in range(53, 61)]
        assert sets.test.subset(torch.tensor([3, 0])).persons.tolist() == sets.test.persons[[3, 0]].tolist()
    for shared, roles in ((45, "transceiver.*attacker"), (55, "transceiver.*test")):
        wrong = lines.copy()
        wrong[shared - 1] = f"{shared:06d}.jpg {persons[1]}"
        identity.write_text("\n".join(wrong))
        with pytest.raises(SemlinkError, match=f"{roles}.* same person 0"):
            data.load("celeba")
    identity.write_text("\n".join(lines[:10]))
    with pytest.raises(SemlinkError, match="names no person for"):
        data.load("celeba")


@pytest.mark.real_data("celeba")
def test_real_celeba(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(celeba, "cache_root", lambda: tmp_path)
    first = data.load("celeba")
    start = time.process_time()
    loaded = data.load("celeba")
    assert time.process_time() - start < 4.0  # 0.3 s where it was written
    assert first.provenance == loaded.provenance
    assert len(loaded.target_names) == 40
    assert loaded.target_names[20] == "Male"
    assert all(len(getattr(loaded, role)) > 0 for role in Split._fields)
    targets = loaded.transceiver.targets
    assert set(targets.unique().tolist()) == {0.0, 1.0}
    # 41.7 % of CelebA's faces are labelled male; subsets of a few thousand come close.
    assert abs(targets[:, 20].mean().item() - 0.43) < 0.05


@pytest.mark.real_data("celeba")
def test_originals_are_cropped_and_resized_as_the_64_pixel_versions_were(tmp_path: Path) -> None:
    if not ORIGINALS.exists():
        pytest.skip("the folder of offline data beside the repository is not there")
    ratios = []
    with zipfile.ZipFile(ORIGINALS) as originals:
        for name in originals.namelist():
            small = data.data_root() / "celeba" / name
            if not name.endswith(".jpg") or not small.exists():
                continue
            image = originals.read(name)
            assert Image.open(io.BytesIO(image)).size == (178, 218)
            (tmp_path / "original.jpg").write_bytes(image)
            error = read_face(tmp_path / "original.jpg").astype(float) - read_face(small)
            ratios.append(10 * np.log10(255**2 / np.mean(error**2)))
    assert len(ratios) == 400
    assert min(ratios) > 38.0
