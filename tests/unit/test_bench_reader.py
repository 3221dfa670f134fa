# SPDX-License-Identifier: Apache-2.0
"""The reader of reconstructions: what it is trained on, resuming, and what is refused."""

import dataclasses
import json

import pytest
import torch

from semlink import data
from semlink._errors import SemlinkError
from semlink.bench import code, links, reader
from semlink.bench.presets import PRESETS, Schedule, preset
from semlink.data import DataSet, ImageSet, describe
from semlink.metrics import correct
from semlink.nn import Optimiser
from semlink.training import checkpoint

CPU = torch.device("cpu")
DIGITS = ("digits", "default", "smoke", 0, "fp32")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reader") / "reader"
    reader.train_reader(*DIGITS, folder, CPU)
    return folder


def copied(trained, tmp_path):
    for name in reader.FILES:
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    return tmp_path


def test_it_reads_clean_images_and_the_record_says_how_well(trained):
    found, reads = reader.read(trained), reader.load_reader(trained, describe("digits"), CPU)
    assert sorted(path.name for path in trained.iterdir()) == sorted([*reader.FILES, "lock"])
    sets = data.load("digits")
    known = sets.attacker_validation.subset(torch.arange(found.images["attacker_validation"]))
    images, targets = known.batch(torch.arange(len(known)))
    with torch.no_grad():
        logits = reads.answer(images)
    right = correct(logits, targets)
    assert found.measured["accuracy"].mean == pytest.approx(100 * float(right.mean()), abs=1e-5)
    assert found.measured["accuracy"].unit == "%"
    assert set(found.measured) == {"accuracy", "balanced_accuracy"}
    assert not reads.training
    assert found.data == sets.provenance
    assert (found.preset, found.seed, found.precision) == ("smoke", 0, "fp32")
    assert found.schedule == json.loads(json.dumps(preset("smoke").grey.link.describe()))
    assert found.images == {"attacker": 512, "attacker_validation": min(512, len(sets.attacker_validation))}
    assert found.step_sha256 == code.modules_sha256("semlink.bench.reader")
    rows = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert all(set(row["validation"]) == {"loss"} for row in rows)


def test_the_features_are_what_the_logits_are_made_of(trained):
    reads = reader.load_reader(trained, describe("digits"), CPU)
    images = torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features, logits = reads.features(images), reads.answer(images)
        torch.testing.assert_close(reads.classifier.logits(features) / 8, logits)
    assert features.shape == (5, preset("smoke").grey.backbone.head)
    assert logits.dtype == features.dtype == torch.float32


def test_it_learns_to_read(tmp_path):
    reader.train_reader("digits", "default", "short", 0, "fp32", tmp_path, CPU)
    assert reader.read(tmp_path).measured["accuracy"].low > 50, "chance is 10"


@pytest.mark.parametrize("name", ["digits", "cifar10", "celeba"])
def test_it_has_the_networks_of_a_link_but_for_the_narrow_place(name):
    link, reads = links.create("deepjscc", data=name, preset="cpu").scheme, reader.build(describe(name), "cpu", 0)
    pairs = [(link.encoder, reads.encoder), (link.decoder, reads.classifier)]
    shapes = [[[tuple(p.shape) for p in part.parameters()] for part in pair] for pair in pairs]
    assert shapes[0][0][:-2] == shapes[0][1][:-2]
    assert shapes[1][0][1:] == shapes[1][1][1:]
    sizes = [sum(p.numel() for p in part.parameters()) for part in (link, reads)]
    assert sizes[0] < sizes[1] < 1.25 * sizes[0]


def test_it_sees_the_attackers_images_alone(tmp_path, monkeypatch):
    held = data.load("digits")
    poison = ImageSet(torch.full_like(held.transceiver.images, 7), held.transceiver.targets)
    seen = []
    of_set = ImageSet.subset

    def subset(self, indices):
        seen.append(self)
        return of_set(self, indices)

    monkeypatch.setattr(
        data,
        "load",
        lambda name, variant: dataclasses.replace(held, transceiver=poison, test=poison, validation=poison),
    )
    monkeypatch.setattr(ImageSet, "subset", subset)
    reader.train_reader(*DIGITS, tmp_path, CPU)
    assert seen
    assert not any(part is poison for part in seen)


def test_every_parameter_gets_a_gradient():
    for name in ("digits", "celeba"):
        shown = describe(name)
        reads = reader.build(shown, "smoke", 0).train()
        images = torch.rand(4, *shown.image_shape, generator=torch.Generator().manual_seed(0))
        targets = torch.arange(4) if shown.kind == "classes" else torch.ones(4, shown.targets)
        reads(images, targets, torch.Generator())["loss"].backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in reads.parameters())


def test_labels_are_smoothed_in_training_only():
    shown, generator = describe("digits"), torch.Generator()
    images, targets = torch.rand(8, 1, 28, 28), torch.arange(8)
    plain = reader.Reader(shown, preset("smoke").grey.backbone).eval()
    smooth = reader.Reader(shown, preset("smoke").grey.backbone, 0.9).eval()
    smooth.load_state_dict(plain.state_dict())
    assert plain(images, targets, generator)["loss"] == smooth(images, targets, generator)["loss"]
    assert plain.train()(images, targets, generator)["loss"] != smooth.train()(images, targets, generator)["loss"]


class Killed(Exception):
    pass


def test_an_interrupted_training_goes_on_to_the_same_reader(trained, tmp_path):
    def die(moment):
        if moment.epoch == 2:
            raise Killed

    with pytest.raises(Killed):
        reader.train_reader(*DIGITS, tmp_path, CPU, die)
    assert (tmp_path / "checkpoint.json").exists()
    assert not (tmp_path / "reader.json").exists()
    (tmp_path / ".weights.safetensors.killed.part").write_bytes(b"half")
    epochs = []
    reader.train_reader(*DIGITS, tmp_path, CPU, lambda moment: epochs.append(moment.epoch))
    assert set(epochs) == {2}
    assert reader.read(tmp_path).weights_sha256 == reader.read(trained).weights_sha256
    assert not list(tmp_path.glob("checkpoint*")) + list(tmp_path.glob(".*.part"))


def test_what_is_done_is_left_alone(trained):
    before = {name: (trained / name).stat().st_mtime_ns for name in reader.FILES}
    reader.train_reader(*DIGITS, trained, CPU, lambda moment: pytest.fail("it trained again"))
    assert before == {name: (trained / name).stat().st_mtime_ns for name in reader.FILES}


def test_another_reader_is_not_taken_for_this_one(trained):
    with pytest.raises(SemlinkError, match=r"holds another reader \(seed 0 there, 1 here\); choose another folder"):
        reader.train_reader("digits", "default", "smoke", 1, "fp32", trained, CPU)
    with pytest.raises(SemlinkError, match="preset 'smoke' there, 'short' here"):
        reader.train_reader("digits", "default", "short", 0, "fp32", trained, CPU)
    with pytest.raises(SemlinkError, match="does not fit this Semlink"):
        reader.load_reader(trained, describe("cifar10"), CPU)


def test_the_weights_depend_on_the_seed_alone(trained):
    state = torch.random.get_rng_state()
    one, again, other = (reader.build(describe("digits"), "smoke", seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


@pytest.mark.parametrize("file", ["weights.safetensors", "reader.json"])
def test_damage_is_named_with_its_remedy(trained, tmp_path, file):
    folder = copied(trained, tmp_path)
    whole = (folder / file).read_bytes()
    (folder / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SemlinkError, match=f"{file} is .*damaged.*(remove|restore)") as caught:
        reader.load_reader(folder, describe("digits"), CPU)
    assert "\n" not in str(caught.value)
    (folder / file).unlink()
    with pytest.raises(SemlinkError, match=file):
        reader.load_reader(folder, describe("digits"), CPU)


def test_weights_of_another_network_are_refused(trained, tmp_path):
    folder = copied(trained, tmp_path)
    checkpoint.save_tensors(folder / "weights.safetensors", {"stranger": torch.zeros(1)})
    found = reader.read(folder)
    digest = reader.sha256_file(folder / "weights.safetensors")
    reader.record.write(folder / "reader.json", found.model_copy(update={"weights_sha256": digest}))
    with pytest.raises(SemlinkError, match=r"does not fit this Semlink; remove .* and train the reader again"):
        reader.load_reader(folder, describe("digits"), CPU)


def test_attributes_are_read_all_at_once(tmp_path, monkeypatch):
    generator = torch.Generator().manual_seed(0)

    def some(count: int) -> ImageSet:
        present = torch.rand(count, 1, generator=generator) < 0.4
        images = torch.randint(0, 100, (count, 3, 64, 64), generator=generator, dtype=torch.uint8)
        images += (150 * present[..., None, None]).to(torch.uint8)  # plain to see
        targets = torch.cat([present.expand(-1, 30), ~present.expand(-1, 10)], dim=1).float()
        return ImageSet(images, targets)

    names = describe("celeba").attributes
    sizes = {"transceiver": 8, "validation": 8, "attacker": 160, "attacker_validation": 64, "test": 8}
    faces = DataSet(
        "celeba",
        "default",
        "attributes",
        names,
        **{role: some(n) for role, n in sizes.items()},
        augmentation=None,
        provenance={"name": "celeba", "variant": "default"},
    )
    monkeypatch.setattr(data, "load", lambda name, variant: faces)
    scale = dataclasses.replace(preset("smoke").colour, link=Schedule(4, 16, Optimiser("adamw", 1e-2)))
    monkeypatch.setitem(PRESETS, "smoke", dataclasses.replace(preset("smoke"), colour=scale))
    reader.train_reader("celeba", "default", "smoke", 0, "fp32", tmp_path, CPU)
    measured = reader.read(tmp_path).measured
    assert set(measured) == {"accuracy", *(f"balanced_accuracy.{name}" for name in names)}
    assert min(measured[f"balanced_accuracy.{name}"].mean for name in names) > 90
    assert measured["accuracy"].n == 64
    assert reader.load_reader(tmp_path, describe("celeba"), CPU).answer(torch.rand(2, 3, 64, 64)).shape == (2, 40)
