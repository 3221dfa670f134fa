# SPDX-License-Identifier: Apache-2.0
"""The loop: one objective, alternating adversaries, joint users; resumed to the bit; stopped when it diverges."""

import contextlib
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from semlink._errors import SemlinkError
from semlink.data import Augmentation, ImageSet
from semlink.nn import Optimiser, Phase
from semlink.training import Batches, Fit, Moment, ScreenProgress, TrainingDiverged, make_fabric, seeded

CPU = torch.device("cpu")
STEADY = Optimiser("sgd", 0.05, betas=(0.5, 0.999))


@pytest.fixture(scope="module")
def fabric():
    return make_fabric(CPU, "fp32")


def image_set(n: int, first_target: int = 0, low: int = 0, high: int = 256) -> ImageSet:
    generator = torch.Generator().manual_seed(first_target + n)
    images = torch.randint(low, high, (n, 1, 8, 8), generator=generator).to(torch.uint8)
    return ImageSet(images, torch.arange(first_target, first_target + n))


def fit(model, phases, folder, *, users=None, epochs=4, validate=dict, keep_best=None, batch_size=8, seed=3) -> Fit:
    batches = Batches(users or [image_set(24)], batch_size, None, seed)
    return Fit(model, phases, batches, validate, epochs, seed, folder, keep_best)


class Mean(nn.Module):
    """Its minimum is known: the mean of all pixels, one per user."""

    def __init__(self, users: int = 1) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.zeros(users))
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, images, targets, generator):
        del generator
        self.seen.append((images, targets))
        rows = images.reshape(len(images), len(self.level), -1).transpose(0, 1).flatten(1)
        return {"loss": (rows - self.level[:, None]).square().mean(1).sum(), "level": self.level.detach().sum()}


def test_a_single_objective_reaches_its_minimum(tmp_path, fabric):
    model, users = Mean(), [image_set(24)]
    moments: list[Moment] = []
    work = fit(model, [Phase("only", model, STEADY)], tmp_path, users=users, epochs=60)
    history = work.run(fabric, moments.append)
    assert model.level.item() == pytest.approx(users[0].images.float().mean().item() / 255, abs=0.01)
    assert [row["epoch"] for row in history] == list(range(1, 61))
    assert set(history[0]) == {"epoch", "losses", "validation", "epoch_seconds"}
    assert set(history[0]["losses"]) == {"loss", "level"}  # a part that is only shown
    assert not model.training
    assert len(model.seen) == 60 * 3
    assert history[0]["losses"]["loss"] < model.seen[0][0].square().mean().item()  # of three steps, the first is worst
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert logged == history


def test_a_frozen_parameter_is_neither_moved_nor_thawed(tmp_path, fabric):
    model = Mean()
    fit(model, [Phase("only", model, STEADY)], tmp_path).run(fabric)
    assert torch.equal(model.frozen, torch.ones(2, 2))
    assert not model.frozen.requires_grad
    assert model.frozen.grad is None
    assert model.level.requires_grad


class Listener(Mean):
    """Keeps the noise that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[torch.Tensor] = []

    def forward(self, images, targets, generator):
        self.heard.append(torch.randn(1000, generator=generator))
        return super().forward(images, targets, generator)


def test_every_step_of_every_phase_and_epoch_has_noise_of_its_own(tmp_path, fabric):
    heard = []
    for seed in (3, 4):
        one, two = Listener(), Listener()
        both = nn.ModuleList([one, two])
        fit(both, [Phase("a", one, STEADY), Phase("b", two, STEADY)], tmp_path / str(seed), seed=seed).run(fabric)
        assert len(one.heard) == len(two.heard) == 4 * 3
        heard += one.heard + two.heard
    correlation = torch.corrcoef(torch.stack(heard)) - torch.eye(len(heard))
    assert correlation.abs().max() < 6 / 1000**0.5


class Game(nn.Module):
    """(x - 1)^2 + 2 (x - 1)(y + 2) - (y + 2)^2: x minimises, y maximises, the saddle is at (1, -2)."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.y = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        self.trace: list[tuple[str, float, float, bool, bool]] = []

    def player(self, name: str, sign: float) -> nn.Module:
        game = self

        class Player(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.game = game

            def forward(self, images, targets, generator):
                game.trace.append((name, game.x.item(), game.y.item(), game.x.requires_grad, game.y.requires_grad))
                x, y = game.x - 1, game.y + 2
                return {"loss": sign * (x * x + 2 * x * y - y * y).sum()}

        return Player()

    def phases(self, inner: int = 3) -> list[Phase]:
        return [
            Phase("min", self.player("min", 1.0), STEADY, [self.x]),
            Phase("max", self.player("max", -1.0), STEADY, [self.y], steps=inner),
        ]


def test_alternating_adversaries_take_turns_and_reach_the_saddle_point(tmp_path, fabric):
    game = Game()
    history = fit(game, game.phases(), tmp_path, epochs=60).run(fabric)
    assert game.x.item() == pytest.approx(1, abs=1e-4)
    assert game.y.item() == pytest.approx(-2, abs=1e-4)
    assert set(history[0]["losses"]) == {"min.loss", "max.loss"}
    assert [name for name, *_ in game.trace] == ["min", "max", "max", "max"] * 3 * 60
    early = game.trace[:40]
    for (name, x, y, x_learns, y_learns), (_, x_next, y_next, _, _) in itertools.pairwise(early):
        assert (x_learns, y_learns) == (name == "min", name == "max")
        if name == "min":
            assert x_next != x
            assert y_next == y  # bit for bit
        else:
            assert y_next != y
            assert x_next == x
    assert game.x.requires_grad
    assert game.y.requires_grad


def test_a_phase_of_many_steps_goes_through_the_images_again_in_another_order(tmp_path, fabric):
    model = Mean()
    fit(model, [Phase("only", model, STEADY, steps=3)], tmp_path, epochs=1).run(fabric)
    targets = torch.stack([targets for _, targets in model.seen])
    laps = targets.reshape(3, 24)
    assert all(torch.equal(lap.sort().values, torch.arange(24)) for lap in laps)
    assert not torch.equal(laps[0], laps[1])


def test_joint_users_are_stacked_and_each_reaches_its_own_minimum(tmp_path, fabric):
    users = [image_set(24, 0, 0, 60), image_set(40, 100, 100, 120), image_set(24, 200, 200, 256)]
    model = Mean(users=3)
    fit(model, [Phase("joint", model, STEADY)], tmp_path, users=users, epochs=60).run(fabric)
    for images, targets in model.seen[:9]:
        assert images.shape == (8, 3, 1, 8, 8)
        assert targets.shape == (8, 3)
        assert torch.equal(targets // 100, torch.arange(3).expand(8, 3))
        for k, user in enumerate(users):
            own = user.images[targets[:, k] - 100 * k].float() / 255
            assert torch.equal(images[:, k], own)
    for k, user in enumerate(users):
        assert model.level[k].item() == pytest.approx(user.images.float().mean().item() / 255, abs=0.01)


class Network(nn.Module):
    """A network with all that a checkpoint must bring back: batch norm, momentum, dropout, noise."""

    rounds: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 6, 3), nn.Dropout(0.3))
        self.head, self.critic = nn.Linear(96, 1), nn.Linear(96, 1)
        self.register_buffer("rounds", torch.zeros((), dtype=torch.int64))
        self.steps_here = 0

    def forward(self, images, targets, generator):
        latent = self.body(images).flatten(1)
        latent = latent + 0.1 * torch.randn(latent.shape, generator=generator)
        if self.training:
            self.rounds += 1
            self.steps_here += 1
        return {"loss": (self.head(latent)[:, 0] - targets / 24).square().mean()}


class Critic(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images, targets, generator):
        answer = self.network.critic(self.network.body(images).flatten(1))[:, 0]
        return {"loss": (answer - (targets % 2)).abs().mean()}


class Killed(Exception):
    """Stands for the end of a process."""


def train_network(folder: Path, fabric, kind: str, two: bool, keep_best: bool, die_after: int | None = None):
    torch.manual_seed(11)
    network = Network()
    torch.manual_seed(len(folder.name))  # what stands in torch's own generator must not matter
    optimiser = Optimiser(kind, 0.02, 1e-3, schedule="triangle")  # pyright: ignore[reportArgumentType]
    phases = [Phase("network", network, optimiser, [*network.body.parameters(), *network.head.parameters()])]
    if two:
        phases += [Phase("critic", Critic(network), Optimiser("adamw", 0.01), [*network.critic.parameters()], steps=2)]
    calls = 0

    def validate() -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls - 1 == die_after:
            raise Killed
        return {"score": abs(network.rounds.item() / 3 - 2.0), "weight": network.head.weight.sum().item()}

    users = [image_set(24)]
    batches = Batches(users, 8, Augmentation(1, flip=True), 3)
    work = Fit(network, phases, batches, validate, 5, 3, folder, "score" if keep_best else None)
    return network, work.run(fabric)


def untimed(history):
    return [{name: value for name, value in row.items() if name != "epoch_seconds"} for row in history]


@pytest.mark.parametrize("keep_best", [False, True])
@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_resumed_training_ends_where_the_uninterrupted_one_does(tmp_path, fabric, kind, two, keep_best):
    whole, history = train_network(tmp_path / "whole", fabric, kind, two, keep_best)
    for epochs in (0, 1, 3, 4):
        folder = tmp_path / f"killed-after-{epochs}"
        with pytest.raises(Killed):
            train_network(folder, fabric, kind, two, keep_best, die_after=epochs)
        kept = folder / "log.jsonl"
        assert len(kept.read_text().splitlines() if kept.exists() else []) == epochs
        resumed, rows = train_network(folder, fabric, kind, two, keep_best)
        assert resumed.steps_here == 3 * (5 - epochs)
        assert untimed(rows) == untimed(history)
        for name, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), name
    assert whole.rounds.item() == (6 if keep_best else 15)  # the best score was after two epochs of three rounds


def test_the_same_training_twice_is_the_same_and_leaves_torch_s_generator_alone(tmp_path, fabric):
    one, first = train_network(tmp_path / "a", fabric, "adamw", True, False)
    two, second = train_network(tmp_path / "b", fabric, "adamw", True, False)
    assert untimed(first) == untimed(second)
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())
    model = Mean()
    before = torch.get_rng_state()
    fit(model, [Phase("only", model, STEADY)], tmp_path / "c").run(fabric)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_finished_training_is_not_trained_again(tmp_path, fabric):
    model = Mean()
    history = fit(model, [Phase("only", model, STEADY)], tmp_path).run(fabric)
    again = Mean()
    assert fit(again, [Phase("only", again, STEADY)], tmp_path).run(fabric) == history
    assert again.seen == []
    assert torch.equal(again.level, model.level)


def test_a_validation_that_is_no_number_is_not_the_best(tmp_path, fabric):
    model, scores = Mean(), [math.nan, 0.5, math.nan, 0.7]
    levels = []

    def validate() -> dict[str, float]:
        levels.append(model.level.item())
        return {"loss": scores[len(levels) - 1]}

    fit(model, [Phase("only", model, STEADY)], tmp_path, validate=validate, keep_best="loss").run(fabric)
    assert model.level.item() == levels[1]


class Explodes(Mean):
    def forward(self, images, targets, generator):
        losses = super().forward(images, targets, generator)
        return losses if len(self.seen) < 8 else {"loss": losses["loss"] * math.inf}


def test_a_training_that_diverges_stops_and_keeps_what_it_had(tmp_path, fabric):
    model = Explodes()
    with pytest.raises(TrainingDiverged, match="epoch 3: the loss is not finite") as caught:
        fit(model, [Phase("only", model, STEADY)], tmp_path).run(fabric)
    assert "\n" not in str(caught.value)
    assert json.loads((tmp_path / "checkpoint.json").read_text())["epoch"] == 2
    assert model.level.requires_grad


def test_a_checkpoint_of_another_model_is_refused(tmp_path, fabric):
    model = Mean()
    fit(model, [Phase("only", model, STEADY)], tmp_path).run(fabric)
    other = Mean(users=2)
    with pytest.raises(SemlinkError, match=r"is of another model; remove the folder") as caught:
        fit(other, [Phase("only", other, STEADY)], tmp_path).run(fabric)
    assert str(tmp_path) in str(caught.value)


def test_denormals_are_flushed(tmp_path, fabric):
    assert torch.set_flush_denormal(False)
    tiny = torch.full((64,), 1e-39)
    assert (tiny * 0.5 != 0).all()
    try:
        model = Mean()
        fit(model, [Phase("only", model, STEADY)], tmp_path, epochs=1).run(fabric)
        assert (tiny * 0.5 == 0).all()
    finally:
        torch.set_flush_denormal(False)


def test_the_command_line_has_denormals_flushed_in_all_threads():
    check = """
import torch
from semlink.cli.common import device_for
torch.set_num_threads(2)
device_for("cpu")
tiny = torch.empty(1 << 20)
tiny.view(torch.int32).fill_(71362)  # 1e-40
print((tiny * 0.5).view(torch.int32).count_nonzero().item())
"""
    run = subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True)
    assert run.stdout.split() == ["0"]


def test_weights_of_convolutions_are_stored_channels_last(tmp_path, fabric):
    network, _ = train_network(tmp_path, fabric, "sgd", False, False)
    kernel = network.get_parameter("body.3.weight")
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert not kernel.is_contiguous()


def test_what_is_shown_is_of_the_epoch_it_is_shown_with(tmp_path, fabric):
    model, moments = Mean(), []

    def validate() -> dict[str, float]:
        return {"epoch": len(model.seen) / 3}

    fit(model, [Phase("only", model, STEADY)], tmp_path, validate=validate).run(fabric, moments.append)
    ends = [moment for moment in moments if round(moment.progress * 4, 6) >= moment.epoch]
    assert [moment.validation for moment in ends] == [{"epoch": 1.0}, {"epoch": 2.0}, {"epoch": 3.0}, {"epoch": 4.0}]
    assert [moment.progress for moment in ends] == [0.25, 0.5, 0.75, 1.0]
    assert ends[-1].seconds_left == 0
    assert all(math.isfinite(moment.seconds_left) and moment.seconds_left >= 0 for moment in moments)


def test_time_left_after_a_resume_counts_only_what_was_done_since(tmp_path, fabric, monkeypatch):
    now = 0.0
    monkeypatch.setattr("semlink.training.loop.time.perf_counter", lambda: now)

    def train(seconds: float, die_at: float = math.inf) -> list[float]:
        nonlocal now
        now, model, left = 0.0, Mean(), []

        def validate() -> dict[str, float]:
            nonlocal now
            now += seconds
            if now >= die_at:
                raise Killed
            return {}

        work = fit(model, [Phase("only", model, STEADY)], tmp_path, validate=validate)
        with contextlib.suppress(Killed):
            work.run(fabric, lambda moment: left.append(moment.seconds_left))
        return left

    assert train(1000.0, die_at=3000.0) == [3000.0, 2000.0]
    assert train(10.0) == [10.0, 0.0]  # at this machine's pace, not the other's


def test_without_a_terminal_every_epoch_gets_a_line(capsys):
    with ScreenProgress("title") as watch:
        for epoch in range(26):  # 15 / 26 * 26 is less than 15 in floating point
            half = Moment(epoch + 1, 26, (epoch + 0.5) / 26, 1.0, {"loss": 1.0}, {})
            watch(half)
            watch(Moment(epoch + 1, 26, (epoch + 1.0) / 26, 2.0, {"loss": 0.5}, {"accuracy": epoch / 100}))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 26
    assert " ".join(lines[14].split()) == "title: epoch 15/26 loss 0.5 | validation accuracy 0.14 2 s left"


def test_only_the_first_of_several_processes_speaks(capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with ScreenProgress("title") as watch:
        watch(Moment(1, 1, 1.0, 0.0, {"loss": 1.0}, {}))
    assert capsys.readouterr().err == ""


def test_the_channel_runs_in_float32_inside_bf16():
    from semlink.nn import Backbone
    from semlink.phy import AWGN
    from semlink.schemes import Design, Task, schemes
    from semlink.schemes.base import TaskObjective

    fabric = make_fabric(CPU, "bf16")
    scheme = schemes["deepjscc"](Design(Task("classify", (1, 8, 8), 10), 64, Backbone(16, 16)))
    carried, convolved = [], []

    def carry(symbols, generator):
        received = AWGN()(symbols, 12.0, generator)
        carried.append((symbols, received))
        return received

    scheme.get_submodule("encoder.stages.0.0").register_forward_hook(lambda m, i, output: convolved.append(output))
    objective = fabric.setup_module(TaskObjective(scheme, carry, 0.0))
    losses = objective(torch.rand(500, 1, 8, 8), torch.arange(500) % 10, seeded(0, "noise"))
    fabric.backward(losses["loss"])
    ((symbols, received),) = carried
    assert convolved[0].dtype == torch.bfloat16  # so the channel had a reason to be spared
    assert symbols.dtype == received.symbols.dtype == torch.complex64
    assert received.noise_variance.dtype == torch.float32
    variance = 10**-1.2
    torch.testing.assert_close(received.noise_variance, torch.full((500, 1), variance), rtol=1e-6, atol=0)
    noise = (received.symbols - symbols).detach()
    measured = torch.view_as_real(noise).double().square().sum(-1).mean().item()
    assert abs(measured / variance - 1) < 5 / math.sqrt(
        noise.numel()
    )  # |n|^2 is exponential: its deviation is its mean
    energy = torch.view_as_real(symbols.detach()).square().sum(-1).mean(1)
    torch.testing.assert_close(energy, torch.ones(500), rtol=0, atol=1e-6)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in scheme.parameters())
