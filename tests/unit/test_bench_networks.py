# SPDX-License-Identifier: Apache-2.0
"""Networks of several users from recipe to record: made by name, trained, resumed, measured, counted and drawn."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from boards import Quiet
from safetensors.torch import load_file
from scheme_keys import NETWORKS, SINGLE_USER

import semlink
from semlink import data
from semlink._errors import SemlinkError
from semlink.bench import (
    PRESETS,
    create,
    drawing,
    evaluate,
    evaluator,
    load,
    make_recipe,
    recipes,
    record,
    runner,
    train,
    trainer,
)
from semlink.bench.cost import multiply_adds
from semlink.bench.engines import InProcess
from semlink.bench.graph import build
from semlink.bench.scoring import score
from semlink.bench.store import Store
from semlink.metrics import psnr_db, ssim
from semlink.schemes import Network, NetworkScheme, Task, adaptive_precoding
from semlink.schemes.network import NetworkObjective
from semlink.training.checkpoint import load_tensors

CPU = torch.device("cpu")
RESULTS = Path(__file__).parents[2] / "results"


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Designs that are half done: nothing here asks how good they are."""
    monkeypatch.setattr(adaptive_precoding, "ITERATIONS", 10)


@pytest.fixture
def tiny(monkeypatch):
    """The smallest preset with 192 images of each split and three epochs for networks."""
    smoke = PRESETS["smoke"]
    network = dataclasses.replace(smoke.network, epochs=3, batch_size=48)
    monkeypatch.setitem(PRESETS, "smoke", dataclasses.replace(smoke, images=192, network=network))


def recipe_of(scheme, **settings):
    few = {"bank": 16} if scheme in ("semi-conventional", "adaptive-precoding") else {}
    return make_recipe(scheme, **{"preset": "smoke", "channel_uses": 8, "width": 24} | few | settings)


def untimed(found):
    content = found.model_dump(exclude={"timing"})
    for row in content["history"]:
        del row["epoch_seconds"]
    return content


# By name


@pytest.mark.parametrize("key", NETWORKS)
def test_a_network_is_made_by_its_name(key):
    made = recipe_of(key)
    assert (made.channel, made.task) == ("interference", "reconstruct")
    assert made == recipe_of(key, channel="interference", task="reconstruct")
    network = create(key, preset="smoke", channel_uses=8)
    assert isinstance(network, Network)
    assert (network.scheme.users, network.snr_db) == (2, 12.0)
    output = network.deliver(torch.rand(2, 2, 1, 28, 28), 12.0, torch.Generator().manual_seed(0))
    assert output.shape == (2, 2, 1, 28, 28)
    assert recipe_of(key, task="classify").task == "classify"


@pytest.mark.parametrize("key", SINGLE_USER)
def test_a_link_of_one_user_is_no_network(key):
    assert make_recipe(key).channel == "awgn"
    assert make_recipe(key, channel="interference-3").channel == "interference-3"  # one among three
    with pytest.raises(SemlinkError, match=rf"scheme '{key}' is of one user: data 'digits\+mnist' is of several"):
        make_recipe(key, data="digits+mnist")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"channel": "awgn"}, "scheme 'csi-free' is of several users, on channel 'interference', not 'awgn'"),
        ({"channel": "rayleigh"}, "scheme 'csi-free' is of several users, on channel 'interference', not 'rayleigh'"),
        (
            {"channel": "interference-3"},
            "scheme 'csi-free' is of several users, on channel 'interference', not 'interference-3'",
        ),
        ({"channel": "interferense"}, "unknown channel 'interferense'; did you mean 'interference'"),
        ({"data": "digits+minst"}, "unknown data set 'minst'; did you mean 'mnist'"),
        ({"data": "digits+cifar10"}, "differ in shape; users must send alike images"),
        ({"variant": "authors-25k"}, "unknown variant of digits 'authors-25k'"),
        ({"task": "attributes"}, "'attributes'"),
        ({"key": semlink.schemes.Key.for_test(0)}, "takes no key"),
    ],
)
def test_what_makes_no_sense_of_a_network_is_named(settings, said):
    with pytest.raises(SemlinkError) as refused:
        make_recipe("csi-free", **settings)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_options_that_no_network_has_are_named():
    with pytest.raises(SemlinkError, match="unknown option of csi-free 'streams'"):
        create("csi-free", preset="smoke", streams=2)
    with pytest.raises(SemlinkError, match="users is -1: a whole number of at least 1"):
        create("csi-free", preset="smoke", users=-1)


def test_the_images_of_a_recipe_are_those_of_its_users(tiny):
    assert semlink.bench.links.users_of(make_recipe("deepjscc")) is None
    for options, users in (({}, 2), ({"users": 3}, 3)):
        made = recipe_of("csi-free", **options)
        assert semlink.bench.links.users_of(made) == users
        sets = semlink.bench.links.image_sets(made)
        assert sets.test.images.shape == (192, users, 1, 28, 28)
        assert torch.equal(sets.test.images, data.load("digits", users=users).test.images[:192])


# Training


def interrupted(monkeypatch, folder, made, step):
    """Train until the ``step``-th batch."""
    forward, steps = NetworkObjective.forward, 0

    def mortal(self, *arguments):
        nonlocal steps
        steps += 1
        if steps == step:
            raise KeyboardInterrupt
        return forward(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(NetworkObjective, "forward", mortal)
        with pytest.raises(KeyboardInterrupt):
            train(made, folder, CPU)
    assert not (folder / "record.json").exists()


@pytest.mark.parametrize(
    ("scheme", "options"),
    [
        ("irsc-csir", {}),
        ("irsc-csitr", {"users": 3}),
        ("csi-free", {"fairness": "step", "users": 3}),
        ("semi-conventional", {"csi_error": 0.1, "snr_high_db": 5.0, "snr_db": 3.0}),
        ("dispersion", {"fairness": "off"}),
    ],
)
def test_a_training_that_was_interrupted_ends_as_one_that_was_not(tmp_path, monkeypatch, tiny, scheme, options):
    made = recipe_of(scheme, **options)
    whole = train(made, tmp_path / "whole", CPU)
    for step in (6, 7):  # of four an epoch: in the second, then in the third
        interrupted(monkeypatch, tmp_path / "killed", made, step)
    resumed = train(made, tmp_path / "killed", CPU)
    assert untimed(resumed) == untimed(whole)
    one, other = (tmp_path / name / "weights.safetensors" for name in ("whole", "killed"))
    assert one.read_bytes() == other.read_bytes()
    weights = load_tensors(one, whole.weights_sha256, "")["user_weights"]
    assert float(weights.sum()) == pytest.approx(1, abs=1e-6)
    assert whole.describes["user_weights"] == pytest.approx(weights.tolist(), abs=1e-6)
    equal = torch.allclose(weights, torch.full_like(weights, 1 / len(weights)), atol=1e-5)
    assert equal == (options.get("fairness") == "off")
    assert [set(row["losses"]) for row in whole.history] == [{"loss", "best_user", "worst_user"}] * 3
    assert all(row["losses"]["best_user"] <= row["losses"]["worst_user"] for row in whole.history)
    network = load(tmp_path / "killed")
    assert isinstance(network, Network)
    assert torch.equal(network.scheme.user_weights, weights)


def test_the_weights_of_the_next_epoch_are_the_shares_of_the_last(tmp_path, monkeypatch, tiny):
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    weigh = NetworkScheme.weigh

    def noting(self, losses):
        seen.append((self.user_weights.clone(), losses.detach().clone()))
        return weigh(self, losses)

    monkeypatch.setattr(NetworkScheme, "weigh", noting)
    train(recipe_of("csi-free", users=3), tmp_path / "run", CPU)
    used, losses = (torch.stack(each) for each in zip(*seen, strict=True))
    assert used.shape == (12, 3)  # three epochs of four steps, and no validation among them
    expected = torch.cat([torch.full((1, 3), 1 / 3), losses.reshape(3, 4, 3).sum(1)[:2]])
    expected = (expected / expected.sum(1, keepdim=True)).repeat_interleave(4, 0)
    assert torch.allclose(used, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([], False),
        ([20.0, 20.5], False),
        ([20.0, 20.5, 20.51], False),  # above the first, which is all there was before the last two
        ([20.5, 20.0, 20.51], True),
        ([20.0, 20.5, 20.51, 20.515], True),
        ([20.0, 20.5, 20.51, 20.53], False),
        ([20.0, 20.5, 20.4, 20.3], True),
    ],
)
def test_when_validation_has_stalled(scores, expected):
    assert trainer.stalled(2, [{"validation": {"psnr_db": score}} for score in scores]) is expected
    fine = [
        {"validation": {"accuracy": score / 20}} for score in scores
    ]  # a twentieth of the steps, and of what counts
    assert trainer.stalled(2, fine) is expected


def test_the_learning_rate_is_that_of_the_schemes_option(tmp_path, tiny):
    assert trainer.schedule(recipe_of("csi-free")).optimiser == PRESETS["paper"].network.optimiser
    done = train(recipe_of("csi-free", learning_rate=3e-4), tmp_path / "run", CPU)
    assert done.schedule["optimiser"]["learning_rate"] == 3e-4
    other = train(recipe_of("csi-free"), tmp_path / "other", CPU)
    first, same = (row.history[0]["losses"]["loss"] for row in (done, other))
    assert first > same  # so much slower that it shows in the first epoch


def test_a_training_ends_when_validation_has_stalled_and_not_before(tmp_path, monkeypatch, tiny):
    plan = dataclasses.replace(PRESETS["smoke"].network, epochs=8, patience=2)
    monkeypatch.setitem(PRESETS, "smoke", dataclasses.replace(PRESETS["smoke"], network=plan))
    scores = iter([20.0, 20.5, 20.51, 20.512, 25.0])
    monkeypatch.setattr(trainer, "_validate", lambda *_: {"psnr_db": next(scores)})
    done = train(recipe_of("csi-free"), tmp_path / "run", CPU)
    assert [row["validation"]["psnr_db"] for row in done.history] == [20.0, 20.5, 20.51, 20.512]
    assert done.schedule["patience"] == 2


def test_networks_are_trained_by_the_presets_own_schedule_without_augmentation(tmp_path, monkeypatch, tiny):
    shown = []
    monkeypatch.setattr(NetworkObjective, "forward", noting_images(NetworkObjective.forward, shown))
    done = train(recipe_of("csi-free"), tmp_path / "run", CPU)
    assert done.schedule["epochs"] == 3
    assert done.schedule["batch_size"] == 48
    assert done.schedule["optimiser"]["betas"] == [0.9, 0.98]
    known = {image.numpy().tobytes() for image in data.load("digits").transceiver.images}
    raw = (torch.cat(shown) * 255).round().to(torch.uint8)
    assert raw.shape == (3 * 192, 2, 1, 28, 28)
    assert {image.numpy().tobytes() for image in raw.flatten(0, 1)} <= known


def noting_images(forward, shown):
    def call(self, images, *others):
        shown.append(images)
        return forward(self, images, *others)

    return call


def test_one_user_trains_too(tmp_path, tiny):
    assert train(recipe_of("csi-free", users=1), tmp_path / "run", CPU).describes["user_weights"] == [1.0]


# Measuring


def test_a_record_has_each_user_and_their_mean(tmp_path, tiny):
    train(recipe_of("dispersion"), tmp_path / "run", CPU)
    found = evaluate(tmp_path / "run", [0.0, 12.0], 2, 0, CPU)
    assert found == record.read(tmp_path / "run" / "evaluate.json", record.EvaluateRecord)
    names = {f"{name}{user}" for name in ("ssim", "ssim_global", "psnr_db") for user in ("", ".1", ".2")}
    for point in found.points:
        assert set(point) == {"snr_db", *names}
        for name in ("ssim", "ssim_global", "psnr_db"):
            assert point[name].mean == pytest.approx((point[f"{name}.1"].mean + point[f"{name}.2"].mean) / 2, abs=1e-5)
            assert point[f"{name}.1"].unit == point[name].unit == ("dB" if name == "psnr_db" else "1")
            assert point[name].n == 192
    assert found.points[1]["psnr_db"].mean > found.points[0]["psnr_db"].mean
    assert found.power["mean"] == pytest.approx(1, abs=1e-5)
    assert (found.positives, found.constant) == ({}, {})
    each = load_file(tmp_path / "run" / "evaluate.safetensors")
    assert each["targets"].shape == (192, 2)
    assert float(each["ssim.2@12"].mean()) == pytest.approx(found.points[1]["ssim.2"].mean, abs=1e-5)


def test_values_are_those_of_the_delivered_images(tiny):
    network = create("csi-free", preset="smoke", channel_uses=8)
    test = semlink.bench.links.image_sets(recipe_of("csi-free")).test
    delivered = []
    receive = network.receive
    network.receive = lambda *given: delivered.append(receive(*given)) or delivered[-1]
    _, rows = evaluator.measure(network, test, [5.0], 1, 0, CPU)
    images, output = test.images.float() / 255, torch.cat(delivered)
    for k in range(2):
        for name, each in (
            ("psnr_db", psnr_db(output[:, k], images[:, k])),
            ("ssim", ssim(output[:, k], images[:, k])),
            ("ssim_global", ssim(output[:, k], images[:, k], "global")),
        ):
            assert torch.allclose(rows[5.0][f"{name}.{k + 1}"][0], each, atol=1e-5), name


def test_links_that_classify_are_right_in_percent(tmp_path, tiny):
    train(recipe_of("csi-free", task="classify"), tmp_path / "run", CPU)
    (point,) = evaluate(tmp_path / "run", [12.0], 1, 0, CPU).points
    assert set(point) == {"snr_db", "accuracy", "accuracy.1", "accuracy.2"}
    assert point["accuracy"].unit == "%"
    assert 0 <= point["accuracy"].mean <= 100
    assert point["accuracy"].mean == pytest.approx((point["accuracy.1"].mean + point["accuracy.2"].mean) / 2)


def test_the_score_of_a_group_is_the_mean_over_its_users():
    output, images = torch.rand(5, 3, 1, 8, 8), torch.rand(5, 3, 1, 8, 8)
    each = [psnr_db(output[:, k], images[:, k]) for k in range(3)]
    found = score(Task("reconstruct", (1, 8, 8), 0), output, images, torch.zeros(5, 3))
    assert torch.allclose(found, torch.stack(each).mean(0))
    logits = torch.eye(5).expand(3, 5, 5).transpose(0, 1)
    targets = torch.tensor([[0, 0, 0], [1, 1, 0], [2, 0, 0], [0, 0, 0], [4, 4, 4]])
    found = score(Task("classify", (1, 8, 8), 5), logits, images, targets)
    assert found.tolist() == pytest.approx([1, 2 / 3, 1 / 3, 0, 1])


@pytest.fixture
def met(monkeypatch):
    """What each evaluation meets: its channels, what is known of them, and the noise."""
    found: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    carry = NetworkScheme.carry

    def noting(self, symbols, state, generator):
        before = generator.clone_state()
        noise = torch.rand(4, generator=before)
        found.append((state.gains, state.snr_db, noise))
        return carry(self, symbols, state, generator)

    monkeypatch.setattr(NetworkScheme, "carry", noting)
    return found


def test_every_scheme_is_measured_over_the_same_channels_and_noise(met, tiny):
    test = semlink.bench.links.image_sets(recipe_of("csi-free")).test.subset(torch.arange(60))
    seen = {}
    for key in NETWORKS:
        if key == "interference-free":
            continue  # meets none
        met.clear()
        evaluator.measure(create(key, preset="smoke", channel_uses=8), test, [2.0, 5.0], 2, 3, CPU)
        seen[key] = [*met]
    first = seen.pop("csi-free")
    assert len(first) == 4  # SNRs by draws
    for other in seen.values():
        for one, two in zip(first, other, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    gains = [each[0] for each in first]
    assert not any(torch.equal(gains[0], each) for each in gains[1:])
    assert [each[1].unique().item() for each in first] == [2.0, 2.0, 5.0, 5.0]


def test_an_evaluation_repeats_and_goes_by_its_seed(tiny):
    network = create("dispersion", preset="smoke", channel_uses=8)
    test = semlink.bench.links.image_sets(recipe_of("dispersion")).test.subset(torch.arange(20))
    one, again, other = (evaluator.measure(network, test, [5.0], 1, seed, CPU)[1][5.0]["ssim"] for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


# Cost


@pytest.mark.parametrize("key", NETWORKS)
@pytest.mark.parametrize("users", [2, 3])
def test_one_call_tells_what_a_network_costs(key, users):
    network = create(key, preset="smoke", channel_uses=16, users=users)
    found = semlink.cost(network, torch.rand(6, users, 1, 28, 28))
    assert (found.channel_uses, found.payload_bits) == (16, None)
    assert found.parameters["total"] == sum(p.numel() for p in network.scheme.parameters())
    assert set(found.multiply_adds) == {"transmitter", "receiver"}
    assert 0 < found.mean_power < 1 + 1e-5
    if key not in ("semi-conventional", "adaptive-precoding"):
        assert found.mean_power == pytest.approx(1, abs=1e-5)
    assert min(found.transmit_seconds, found.receive_seconds) > 0


def test_multiply_adds_of_a_network_by_hand():
    for users in (1, 2, 3):
        network = create("csi-free", preset="smoke", channel_uses=16, users=users, width=32)
        reals, pixels = 2 * 2 * 16, 28 * 28
        assert multiply_adds(network) == {
            "transmitter": users * (pixels * 32 + 32 * reals),
            "receiver": users * (reals * 32 + 32 * 32 + 32 * pixels),
        }


# Recipes

NETWORK = '[links.a]\nscheme = "csi-free"\nchannel = "interference"\n'
SINGLE = '[links.b]\nscheme = "deepjscc"\n'
FIGURE = '[figures.f]\nmetric = "ssim"\nover = "users"\n'


@pytest.fixture
def written(tmp_path):
    def write(text):
        (tmp_path / "bench.toml").write_text('title = "t"\n' + text)
        return str(tmp_path / "bench.toml")

    return write


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            NETWORK + FIGURE + "at_db = 5",
            "figures.f.at_db: a figure over 'users' is drawn at_db one SNR of the grid: 4, 8,",
        ),
        (
            NETWORK + FIGURE,
            "figures.f.at_db: a figure over 'users' is drawn at_db one SNR of the grid: 4, 8, 12, 16, 20",
        ),
        (
            NETWORK + FIGURE.replace('over = "users"\n', "") + "at_db = 4",
            "figures.f.at_db: a figure over SNR shows all of it; leave at_db out",
        ),
        (
            NETWORK + FIGURE.replace("users", "user") + "at_db = 4",
            "figures.f.at_db: over is 'user': scheme 'csi-free' of link 'a' has no such number",
        ),
        (
            NETWORK + FIGURE.replace("users", "fairness") + "at_db = 4",
            "figures.f.at_db: over is 'fairness': scheme 'csi-free' of link 'a' has no such number",
        ),
        (
            NETWORK + FIGURE + 'at_db = 4\nattacks = ["e"]\n[attacks.e]\nattack = "cross-link"',
            "figures.f.at_db: a figure over 'users' shows links; leave 'attacks' out",
        ),
        (
            NETWORK + SINGLE + FIGURE + "at_db = 4",
            "figures.f.at_db: over is 'users': scheme 'deepjscc' of link 'b' has",
        ),
        (NETWORK + "[evaluation]\nmetrics = ['ssim.3']", "evaluation.metrics: 'ssim.3' is of user 3"),
        (NETWORK + "[evaluation]\nmetrics = ['ssim.0']", "evaluation.metrics: 'ssim.0' is of user 0"),
        (SINGLE + "[evaluation]\nmetrics = ['ssim.1']", "evaluation.metrics: 'ssim.1' is of user 1"),
        (NETWORK + "[evaluation]\nmetrics = ['lpips.1']", "evaluation.metrics: 'lpips' has no parts"),
        (NETWORK + 'data = "digits+minst"', "links.a.data: unknown data set 'minst'; did you mean 'mnist'"),
        (NETWORK.replace("interference", "interferense"), "links.a.channel: unknown channel 'interferense'"),
        (
            NETWORK + '[evaluation]\nmetrics = ["accuracy"]\n[figures.f]\nmetric = "accuracy"',
            "figures.f.metric: none of its links is measured by 'accuracy'",
        ),
    ],
)
def test_mistakes_about_users_are_told_by_field(written, text, said):
    with pytest.raises(SemlinkError) as refused:
        recipes.load(written(text))
    assert said in str(refused.value), str(refused.value)
    assert ", line " in str(refused.value)
    assert "\n" not in str(refused.value)


def test_parts_of_users_that_there_are_pass(written):
    text = NETWORK + 'options = { users = 3 }\n[evaluation]\nmetrics = ["ssim.3", "psnr_db.1", "ssim_global"]\n'
    text += '[figures.f]\nmetric = "ssim.3"\n'
    assert recipes.load(written(text)).evaluation.metrics == ["ssim.3", "psnr_db.1", "ssim_global"]


def test_the_channel_of_a_network_must_be_named_in_a_recipe(written):
    with pytest.raises(
        SemlinkError,
        match=r"line 2: links\.a\.channel: scheme 'csi-free' is of several users, on channel 'interference', not ",
    ):
        recipes.load(written('[links.a]\nscheme = "csi-free"\n'))


@pytest.mark.parametrize(("option", "values"), [("csi_error", (0.0, 0.1)), ("cross_gain_db", (-10, 0.0))])
def test_a_figure_over_another_number_of_the_schemes(written, tmp_path, option, values):
    text = NETWORK + f"options = {{ {option} = {values[0]} }}\n" + NETWORK.replace(".a]", ".b]")
    text += "options = { width = 8 }\n" + FIGURE.replace("users", option) + "at_db = 4\n"
    graph = build(recipes.load(written(text)), Store(tmp_path / "store"))
    (spec,) = (cell.spec for cell in graph.cells if cell.step == "draw")
    assert (spec["over"], spec["at_db"]) == (option, 4)
    default = 0.0
    assert spec["series"] == {"a": ["csi-free", values[0]], "b": ["csi-free, width 8", default]}


def test_what_is_over_snr_says_nothing_in_the_hash(written):
    plain = recipes.load(written(NETWORK + '[figures.f]\nmetric = "ssim"\n'))
    assert recipes.load(written(NETWORK + '[figures.f]\nmetric = "ssim"\nover = "snr_db"\n')).sha256 == plain.sha256
    over = [recipes.load(written(NETWORK + FIGURE + f"at_db = {at}")).sha256 for at in (4, 8)]
    assert len({plain.sha256, *over}) == 3


def test_landed_records_are_of_the_packaged_recipes():
    """What recipes have learned to say since changes no hash of theirs."""
    landed = {path: json.loads(path.read_text()) for path in sorted(RESULTS.rglob("record.json"))}
    assert len(landed) >= 12
    for path, found in landed.items():
        if "recipe_sha256" in found:
            assert recipes.load(found["name"], found["variant"]).sha256 == found["recipe_sha256"], path


@pytest.mark.parametrize("name", ["paper-b/fig3", "paper-b/fig5"])
def test_the_recipes_of_paper_b(name):
    for variant in recipes.variants(name):
        read = recipes.load(name, variant)
        schemes = {link.scheme for link in read.links.values()}
        assert schemes == {*NETWORKS} or (variant != "default" and schemes < {*NETWORKS})
        assert {link.channel for link in read.links.values()} == {"interference"}
        assert {link.channel_uses for link in read.links.values()} - {32 if variant == "equal-symbols" else 16} <= {16}
        for link, entry in read.links.items():
            made = make_recipe(entry.scheme, data=entry.data, channel_uses=16, preset=entry.preset, **entry.options)
            users = semlink.bench.links.users_of(made)
            assert users == (2 if name.endswith("fig3") else int(link[-1]))
        for figure in read.figures.values():
            assert figure.metric in read.evaluation.metrics


BENCH = """
title = "Company"
[defaults]
channel = "interference"
channel_uses = 8
preset = "smoke"
precision = "fp32"
[links.two]
scheme = "dispersion"
options = { width = 24 }
[links.three]
scheme = "dispersion"
options = { width = 24, users = 3 }
[links.free-three]
scheme = "csi-free"
options = { users = 3 }
[evaluation]
snr_db = [0, 12]
draws = 1
metrics = ["ssim", "ssim.1"]
[figures.users]
metric = "ssim"
over = "users"
at_db = 12
[figures.snr]
metric = "ssim.1"
"""


def test_a_bench_of_networks_is_drawn_over_users(tmp_path, tiny):
    (tmp_path / "bench.toml").write_text(BENCH)
    store = Store(tmp_path / "store")
    graph = build(recipes.load(str(tmp_path / "bench.toml")), store)
    outcome = runner.run(graph, store, InProcess(CPU), Quiet())
    assert not outcome.failed
    cells = {cell.spec["name"]: cell for cell in graph.cells if cell.step == "draw"}
    measured = {
        cell.link: record.of_step(store.folder(cell.name), "evaluate").points
        for cell in graph.cells
        if cell.step == "evaluate"
    }
    inputs = {role: store.folder(name) for role, name in cells["users"].inputs.items()}
    spec = cells["users"].spec
    drawn = drawing.curves(spec, drawing.read_rows(spec, inputs))
    assert {curve.label: [*curve.points] for curve in drawn} == {"dispersion, width 24": [2, 3], "csi-free": [3]}
    at_12 = {(curve.label, users): shown.mean for curve in drawn for users, shown in curve.points.items()}
    for label, users, link in (
        ("dispersion, width 24", 2, "two"),
        ("dispersion, width 24", 3, "three"),
        ("csi-free", 3, "free-three"),
    ):
        assert at_12[label, users] == pytest.approx(measured[link][1]["ssim"].mean, abs=1e-6)
    inputs = {role: store.folder(name) for role, name in cells["snr"].inputs.items()}
    over_snr = drawing.curves(cells["snr"].spec, drawing.read_rows(cells["snr"].spec, inputs))
    assert {curve.label: [*curve.points] for curve in over_snr} == {
        link: [0, 12] for link in ("two", "three", "free-three")
    }
    for cell in cells.values():
        assert {path.name for path in store.folder(cell.name).iterdir()} >= {"figure.png", "figure.pdf"}
