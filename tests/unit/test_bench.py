# SPDX-License-Identifier: Apache-2.0
"""Recipes, runs, records: what is measured, how often, and what is written of it."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from semlink import data, phy
from semlink._errors import SemlinkError
from semlink.attacks import Inversion, Threat
from semlink.bench import (
    answering,
    attack,
    attacker,
    code,
    cost,
    create,
    default_folder,
    evaluate,
    evaluator,
    held_precision,
    links,
    load,
    make_recipe,
    presets,
    record,
    scoring,
    train,
    trainer,
)
from semlink.metrics import psnr_db
from semlink.schemes import Key, Link
from semlink.training import Fit, checkpoint, seeded

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sets() -> data.DataSet:
    """The images that a run of preset smoke uses."""
    return links.image_sets(make_recipe("deepjscc", preset="smoke"))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "run"
    train(make_recipe("deepjscc", preset="smoke"), folder, CPU)
    return folder


@pytest.fixture(scope="module")
def attacked(run) -> Path:
    return attack(run, Threat(12.0), CPU, perceptual="none")


# Recipes


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"scheme": "deepjsc"}, "unknown scheme 'deepjsc'; did you mean 'deepjscc'"),
        ({"data": "digit"}, "unknown data set 'digit'; did you mean 'digits'"),
        ({"variant": "authors"}, "unknown variant of digits 'authors'"),
        ({"task": "attributes"}, "use 'classify' or 'reconstruct'"),
        ({"channel": "rice"}, "unknown channel 'rice'; did you mean 'rician'"),
        ({"preset": "cqu"}, "unknown preset 'cqu'; did you mean 'cpu'"),
        ({"snr_db": math.inf}, "snr_db is inf"),
        ({"snr_db": math.nan}, "snr_db is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, f"seed is {2**63}"),
        ({"key": Key(bytes(32))}, "scheme 'deepjscc' takes no key"),
        ({"channel_uses": 60}, "60 channel uses"),
        ({"widht": 3}, "unknown option of deepjscc 'widht'"),
    ],
)
def test_a_link_that_makes_no_sense_is_refused_in_one_line(settings, said):
    with pytest.raises(SemlinkError, match=said.replace("(", r"\(")) as caught:
        create(**({"scheme": "deepjscc", "preset": "smoke"} | settings))
    assert "\n" not in str(caught.value)


def test_a_recipe_survives_json_with_the_types_of_its_options():
    recipe = make_recipe("layered", snr_db=7, seed=5, a=True, b=1, c=1.0, d="one")
    back = record.Recipe.model_validate(json.loads(json.dumps(recipe.model_dump())))
    assert back == recipe
    assert [type(value) for value in back.options.values()] == [bool, int, float, str]
    assert isinstance(back.snr_db, float)


def test_every_recipe_has_a_folder_of_its_own():
    base = {"scheme": "deepjscc", "data": "digits", "preset": "smoke"}
    others = [
        {},
        {"snr_db": 11.5},
        {"seed": 1},
        {"channel": "rayleigh"},
        {"task": "reconstruct"},
        {"preset": "cpu"},
        {"data": "cifar10"},
        {"data": "cifar10", "variant": "authors-25k"},
        {"scheme": "deepjscc-encryption"},
        {"scheme": "deepjscc-encryption", "fresh": False},
        {"channel_uses": 32},
    ]
    folders = [default_folder(make_recipe(**(base | other))) for other in others]
    assert len(set(folders)) == len(others)
    assert all(folder.parts[0] == "runs" and len(folder.parts) == 2 for folder in folders)


def test_initial_weights_depend_on_the_seed_alone():
    def weights(seed: int) -> torch.Tensor:
        return torch.cat(
            [p.detach().flatten() for p in create("deepjscc", preset="smoke", seed=seed).scheme.parameters()]
        )

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = weights(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))


# Records


def test_a_record_of_a_run_says_what_was_run(run):
    said = record.read(run / "record.json", record.TrainRecord)
    assert (said.kind, said.format, said.recipe.seed, said.recipe.precision) == ("train", 2, 0, "fp32")
    assert said.code_sha256 == record.code_sha256()
    assert said.step_sha256 == said.started_by_step_sha256 == code.modules_sha256(*trainer.modules("deepjscc", "awgn"))
    assert said.libraries["torch"] == torch.__version__
    assert said.data["sha256"] == data.load("digits").provenance["sha256"]
    assert said.machine["processes"] == 1
    assert said.schedule["training_images"] == 512
    assert [row["epoch"] for row in said.history] == [1, 2]
    assert said.channel_uses == 64
    link = load(run)
    assert said.parameters["total"] == sum(p.numel() for p in link.scheme.parameters())
    assert said.parameters["total"] == said.parameters["encoder"] + said.parameters["decoder"]


def test_multiply_adds_agree_with_counting_by_hand():
    link, counted = create("deepjscc", data="cifar10", preset="smoke"), 0
    said = sum(cost.multiply_adds(link).values())

    def count(module, inputs, output):
        nonlocal counted
        if isinstance(module, nn.Conv2d):
            counted += output.numel() * module.in_channels * math.prod(module.kernel_size)
        else:
            counted += output.numel() * module.in_features

    for module in link.scheme.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    shape = link.scheme.design.task.image_shape
    sent = link.transmit(torch.zeros(1, *shape))
    link.receive(link.channel(sent.symbols), sent.header)
    whitening = 32 * 32 * 24 * 3 * 2 * 2  # a fixed layer, not a module of torch
    assert said == counted + whitening


def test_a_record_of_another_kind_or_version_is_refused(run, attacked, tmp_path):
    with pytest.raises(SemlinkError, match=r"record\.json is damaged: field 'kind'.*; restore it from a copy"):
        record.read(run / "record.json", record.EvaluateRecord)
    raw = json.loads((run / "record.json").read_text())
    path = tmp_path / "record.json"
    for version, age in ((3, "a newer"), (1, "an older"), ("2", "an older"), (None, "an older")):
        path.write_text(json.dumps(raw | {"format": version}))
        with pytest.raises(SemlinkError, match=f"format {version}, made by {age} Semlink"):
            record.read(path, record.TrainRecord)
    path.write_text(json.dumps(raw | {"surprise": 1}))
    with pytest.raises(SemlinkError, match="field 'surprise'"):
        record.read(path, record.TrainRecord)
    with pytest.raises(SemlinkError, match=r"nowhere\.json cannot be read: No such file"):
        record.read(tmp_path / "nowhere.json", record.TrainRecord)


def test_the_precision_of_a_run_is_found_or_not(run, tmp_path):
    assert held_precision(run) == "fp32"
    assert held_precision(tmp_path) is None
    for content in ("", "[]", "{}", '{"recipe": 3}', "\x00"):
        (tmp_path / "recipe.json").write_text(content)
        assert held_precision(tmp_path) is None


# Evaluation


def symbols_of(link: Link, images: torch.Tensor) -> torch.Tensor:
    return torch.cat([link.transmit(part).symbols for part in images.split(100)])


def test_without_noise_the_evaluation_is_the_accuracy_of_the_link(run, sets):
    link, test = load(run), sets.test
    images, targets = test.batch(torch.arange(len(test)))
    symbols = symbols_of(link, images)
    received = phy.Received(symbols, None, torch.full((len(test), 1), 1e-20))
    right = (link.receive(received).argmax(1) == targets).float().mean().item()
    said = evaluate(run, [200.0, -60.0], 1, 0, CPU)
    assert said.points[0]["accuracy"].mean == pytest.approx(100 * right, abs=1e-4)
    assert abs(said.points[1]["accuracy"].mean - 10) < 500 * math.sqrt(0.09 / len(test))  # noise alone: chance
    energy = torch.view_as_real(symbols).square().sum(-1)
    assert said.power["peak"] == pytest.approx(energy.max().item(), rel=1e-3)
    assert said.power["mean"] == pytest.approx(1, abs=1e-6)
    assert said.power["largest_deviation_from_1"] < 1e-6


def test_each_image_is_encoded_once_and_its_draws_are_averaged_first(run, sets, monkeypatch):
    n, encoded, utilities = len(sets.test), 0, []
    transmit, accuracy = Link.transmit, answering.accuracy

    def counting(self, images, generator=None):
        nonlocal encoded
        encoded += len(images)
        return transmit(self, images, generator)

    def spying(utility):
        utilities.append(utility)
        return accuracy(utility)

    monkeypatch.setattr(Link, "transmit", counting)
    monkeypatch.setattr(answering, "accuracy", spying)
    said = evaluate(run, [0.0, 12.0], 3, 0, CPU)
    assert encoded == n
    assert [utility.shape for utility in utilities] == [(3, n), (3, n)]
    for utility, point in zip(utilities, said.points, strict=True):
        measured = point["accuracy"]
        assert measured.n == n
        assert measured.mean == pytest.approx(100 * utility.mean().item(), abs=1e-4)
        assert not torch.equal(utility[0], utility[1])  # every draw has noise of its own
        each = utility.mean(0)
        error = 100 * each.std().item() / math.sqrt(n)
        assert measured.high - measured.low == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_a_transmitter_that_adapts_is_told_each_snr_of_the_grid(sets, tmp_path):
    train(make_recipe("vl-vfe", preset="smoke"), tmp_path / "r", CPU)
    said = evaluate(tmp_path / "r", [4.0, 20.0], 1, 0, CPU)
    link = load(tmp_path / "r")
    images, targets = sets.test.batch(torch.arange(len(sets.test)))
    for point in said.points:
        snr_db = point["snr_db"]
        link.scheme.told_snr_db = snr_db
        sent = link.transmit(images)
        noise = seeded(0, "test noise", snr_db)
        right = []
        for indices in torch.arange(len(images)).split(scoring.BATCH):
            received = link.channel(sent.symbols[indices], snr_db, noise)
            right.append(link.receive(received, sent.header[indices]).argmax(1) == targets[indices])
        assert point["accuracy"].mean == pytest.approx(100 * torch.cat(right).float().mean().item(), abs=1e-4)
    link.scheme.told_snr_db = 4.0
    low = link.transmit(images[:8]).symbols
    link.scheme.told_snr_db = 20.0
    assert not torch.equal(low, link.transmit(images[:8]).symbols)


def test_the_noise_depends_on_seed_and_snr_and_not_on_the_grid_or_the_batches(run, monkeypatch):
    def points(grid, seed=0):
        return evaluate(run, grid, 2, seed, CPU).model_dump()["points"]

    both = points([3.0, 6.0])
    assert points([6.0]) == both[1:]
    assert points([6]) == both[1:]  # a whole number is the same SNR
    assert points([6.0], seed=1) != both[1:]
    monkeypatch.setattr(scoring, "BATCH", 250)
    monkeypatch.setattr(evaluator, "BATCH", 250)
    for small, large in zip(points([3.0, 6.0]), both, strict=True):
        assert small["accuracy"]["mean"] == pytest.approx(large["accuracy"]["mean"], abs=0.2)  # two answers in 1,024


def test_the_evaluation_is_kept_and_reads_back(run):
    said = evaluate(run, [12.0], 2, 0, CPU)
    kept = record.read(run / "evaluate.json", record.EvaluateRecord)
    assert kept == said
    assert kept.weights_sha256 == record.read(run / "record.json", record.TrainRecord).weights_sha256
    assert (kept.draws, kept.noise_seed) == (2, 0)


def test_a_grid_or_draws_that_make_no_sense(run):
    for grid, said in (
        ([], "the SNR grid is empty"),
        ([1.0, math.nan], "snr_db is nan"),
        ([math.inf], "snr_db is inf"),
    ):
        with pytest.raises(SemlinkError, match=said):
            evaluate(run, grid, 1, 0, CPU)
    with pytest.raises(SemlinkError, match="draws is 0"):
        evaluate(run, [12.0], 0, 0, CPU)


def test_a_link_for_images_is_judged_by_its_images(sets, tmp_path):
    train(make_recipe("deepjscc", preset="smoke", task="reconstruct", channel="rayleigh"), tmp_path / "r", CPU)
    said = evaluate(tmp_path / "r", [200.0], 1, 0, CPU)
    assert set(said.points[0]) == {"snr_db", "psnr_db", "ssim"}
    link = load(tmp_path / "r")
    images, _ = sets.test.batch(torch.arange(len(sets.test)))
    drawn = link.receive(phy.Received(symbols_of(link, images), None, torch.zeros(len(images), 1)))
    expected = psnr_db(drawn, images).mean().item()  # without noise a fade is undone
    assert said.points[0]["psnr_db"].mean == pytest.approx(expected, abs=1e-3)


def test_weights_of_another_architecture_are_refused_in_one_line(run, tmp_path, monkeypatch):
    smoke = presets.PRESETS["smoke"]
    wider = dataclasses.replace(smoke.grey, backbone=dataclasses.replace(smoke.grey.backbone, width=24))
    monkeypatch.setitem(presets.PRESETS, "smoke", dataclasses.replace(smoke, grey=wider))
    with pytest.raises(
        SemlinkError, match=r"weights\.safetensors does not fit 'deepjscc' of this Semlink; use"
    ) as caught:
        load(run)
    assert "\n" not in str(caught.value)


# Keys


def test_a_key_is_asked_for_compared_and_never_put_into_another_link(run, tmp_path):
    key = Key(bytes(range(32)))
    recipe = make_recipe("deepjscc-encryption", preset="smoke", key=key)
    assert recipe.key == key.describe()
    for check, said in (
        (None, "uses your key, which is stored nowhere; give it again"),
        (Key(bytes(32)), "another key"),
    ):
        with pytest.raises(SemlinkError, match=said):
            links.check_key(recipe, check, tmp_path)
        with pytest.raises(SemlinkError, match=said):
            train(recipe, tmp_path / "run", CPU, key=check)
    links.check_key(recipe, key, tmp_path)
    with pytest.raises(SemlinkError, match="holds a link without a key; leave the key out"):
        load(run, key)
    test_key = make_recipe("deepjscc-encryption", preset="smoke", seed=3)
    assert test_key.key is not None
    assert test_key.key["kind"] == "test"
    assert test_key.key != make_recipe("deepjscc-encryption", preset="smoke", seed=4).key


# Attacks


@pytest.mark.parametrize(
    ("losses", "fall"),
    [
        ([], None),
        ([4.0, 3.0, 2.0, 1.0], None),
        ([5.0, 4.0, 3.0, 2.0, 1.0], 0.5),  # 2 before the last epoch, 1 in it
        ([5.0, 4.0, 3.0, 2.0, 2.0], 0.0),
        ([5.0, 4.0, 3.0, 2.0, 9.0], 0.0),  # a rise is no fall
        ([1.0] * 8 + [0.98, 0.99], 0.02),  # the best of two epochs of ten
        ([1.0] * 7 + [0.5, 0.5, 0.5], 0.0),  # it fell before the last fifth began
        ([1.0] * 5 + [0.9, 0.9], 0.1),  # a fifth of seven epochs is rounded up, to two
        ([0.0] * 5, 0.0),
        ([-1.0] * 4 + [-1.5], 0.5),  # a loss may be negative
        ([1.0, 1.0, 1.0, 1.0, math.nan], None),
        ([math.nan, 1.0, 1.0, 1.0, 1.0], None),
    ],
)
def test_the_fall_of_the_last_fifth(losses, fall):
    found = attacker.last_fifth_fall(losses)
    assert found == (None if fall is None else pytest.approx(fall))


def test_the_record_of_an_attack(attacked, sets):
    said = record.read(attacked, record.JudgeRecord)
    assert (said.converged, said.last_fifth_fall) == (False, None)  # two epochs say nothing
    assert said.images == {"attacker": 512, "attacker_validation": 250, "test": 512}
    assert set(said.results) == {"psnr_db", "ssim", "mi_leakage"}
    assert set(said.baselines) == {"mean_image", "class_mean"}
    assert said.settings["perceptual"] == "none"
    assert said.threat == Threat(12.0).describe()
    assert all(measured.n == 512 for measured in said.results.values())
    images, targets = sets.test.batch(torch.arange(512))
    own, own_targets = sets.attacker.batch(torch.arange(len(sets.attacker)))
    mean = psnr_db(own.mean(0).expand_as(images), images).mean().item()
    means = torch.stack([own[own_targets == label].mean(0) for label in range(10)])
    by_class = psnr_db(means[targets], images).mean().item()
    assert said.baselines["mean_image"]["psnr_db"].mean == pytest.approx(mean, abs=1e-3)
    assert said.baselines["class_mean"]["psnr_db"].mean == pytest.approx(by_class, abs=1e-3)
    drawn = checkpoint.load_file(attacked.with_suffix(".safetensors"))
    assert torch.equal(drawn["originals"], images[:10])
    assert drawn["drawn"].shape == drawn["originals"].shape
    assert drawn["drawn"].min() >= 0
    assert drawn["drawn"].max() <= 1


def test_a_finished_attack_is_not_run_again_and_another_is(run, attacked, monkeypatch):
    content, begun = attacked.read_bytes(), []

    class Begun(Exception):
        pass

    def run_again(self, fabric, watch):
        begun.append(self.folder.name)
        raise Begun

    monkeypatch.setattr(Fit, "run", run_again)
    assert attack(run, Threat(12), CPU, perceptual="none") == attacked  # a whole number is the same SNR
    assert attacked.read_bytes() == content
    assert begun == []
    others = [(Threat(11.0), {}), (Threat(12.0), {"seed": 1}), (Threat(12.0), {"precision": "bf16"})]
    for threat, settings in others:
        with pytest.raises(Begun):
            attack(run, threat, CPU, perceptual="none", **settings)
    assert len(set(begun) | {attacked.stem}) == 4


def test_an_attack_that_changes_its_victim_is_void(run, monkeypatch):
    forward = Inversion.forward

    def meddling(self, images, targets, generator):
        self.tap._link.scheme.encoder.stages[0][2].running_mean += 1e-3  # BatchNorm's statistics count too
        return forward(self, images, targets, generator)

    before = set(run.glob("attack-*.json"))
    monkeypatch.setattr(Inversion, "forward", meddling)
    with pytest.raises(RuntimeError, match="attack 'inversion' changed its victim; its result is void"):
        attack(run, Threat(5.0), CPU, perceptual="none")
    assert set(run.glob("attack-*.json")) == before


def test_the_same_attack_twice_has_the_same_record(run, attacked):
    first = record.read(attacked, record.JudgeRecord).model_dump(exclude={"timing"})
    attacked.unlink()  # what the error about a damaged record advises
    assert attack(run, Threat(12.0), CPU, perceptual="none") == attacked
    second = record.read(attacked, record.JudgeRecord).model_dump(exclude={"timing"})
    for said in (first, second):
        for row in said["history"]:
            row.pop("epoch_seconds")
    assert first == second


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"seed": -1}, "seed is -1"), ({"seed": 2**64}, "seed is"), ({"name": "inversoin"}, "did you mean 'inversion'")],
)
def test_an_attack_that_makes_no_sense(run, settings, said):
    with pytest.raises(SemlinkError, match=said):
        attack(run, Threat(12.0), CPU, perceptual="none", **settings)
    with pytest.raises(SemlinkError, match="snr_db is nan"):
        attack(run, Threat(math.nan), CPU, perceptual="none")
