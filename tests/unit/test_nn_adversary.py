# SPDX-License-Identifier: Apache-2.0
"""The inner adversary: what she is paid for, when she starts anew, and what she and her victim may not move."""

import contextlib
import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from semlink._errors import SemlinkError
from semlink.bench.presets import PRESETS
from semlink.data import ImageSet
from semlink.nn import Optimiser
from semlink.nn.adversary import Adversary, Game, still
from semlink.training import Batches, Fit, make_fabric

SHAPE = (3, 8, 8)


@pytest.fixture(scope="module")
def fabric():
    return make_fabric(torch.device("cpu"), "fp32")


def images_of(count=12, seed=0, shape=SHAPE):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


def make(steps=2, restarts=2, shape=SHAPE, seed=0):
    torch.manual_seed(seed)
    adversary = Adversary(32, shape, 16, steps, restarts)
    adversary.measure(images_of(shape=shape))
    return adversary


# What she is paid for


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64)])
def test_bounded_privacy_at_known_points(shape):
    adversary, images = make(shape=shape), images_of(shape=shape)
    mean = images.mean(0)
    assert torch.allclose(adversary.mean_image, mean)

    def bounded(drawn):
        return adversary.bounded(drawn, images)

    assert bounded(images).eq(0).all()
    assert torch.allclose(bounded(mean.expand_as(images)), torch.ones(12), atol=1e-6)
    # Between the two it is the squared share of the way that is missing.
    assert torch.allclose(bounded(images + 0.6 * (mean - images)), torch.full((12,), 0.36), atol=1e-5)
    for worse in (1 - images, 9 * images, images - 1e6, torch.zeros_like(images) - 3):
        assert bounded(worse).eq(1).all()
    mixed = torch.cat([images[:6], 1 - images[6:]])
    assert bounded(mixed).tolist() == [0.0] * 6 + [1.0] * 6  # image by image, not on the mean


def test_nothing_beyond_the_mean_image_pays_not_even_its_direction():
    adversary, images = make(), images_of()
    for drawn, pays in ((1 - images, False), (images + 10, False), (images + 0.05, True)):
        drawn.requires_grad_()
        adversary.bounded(drawn, images).sum().backward()
        assert bool(drawn.grad.ne(0).any()) == pays


def test_an_image_that_is_the_mean_image_divides_by_no_zero():
    adversary = make()
    plain = adversary.mean_image.expand(2, *SHAPE)
    drawn = torch.stack([plain[0], plain[0] + 1]).requires_grad_()
    value = adversary.bounded(drawn, plain)
    value.sum().backward()
    assert value.tolist() == [0, 1]
    assert drawn.grad.isfinite().all()


def test_a_drawing_that_is_no_number_does_not_pass_for_privacy():
    assert make().bounded(torch.full((12, *SHAPE), math.nan), images_of()).isnan().all()


def test_she_can_draw_all_of_0_to_1_and_beyond():
    adversary = make().eval()
    nn.init.normal_(adversary.decoder.draw.weight, std=3.0)
    drawn = adversary(torch.randn(20, 32))
    assert drawn.min() < 0
    assert drawn.max() > 1
    assert drawn.dtype == torch.float32


def test_she_is_narrower_than_those_who_judge():
    for scale in (s for p in PRESETS.values() for s in (p.colour, p.grey)):
        width = Adversary(32, SHAPE, scale.backbone.width, 5, 3).decoder.width
        assert width <= scale.decoder_width / 2
        assert width == {16: 8, 64: 32, 256: 64}[scale.backbone.width]


@pytest.mark.parametrize(("steps", "restarts"), [(0, 1), (-1, 1), (1.5, 1), (True, 1), (1, -1), (1, "3")])
def test_numbers_that_make_no_sense_are_refused(steps, restarts):
    with pytest.raises(SemlinkError, match=r"whole number of at least [01]") as caught:
        Adversary(32, SHAPE, 16, steps, restarts)
    assert "\n" not in str(caught.value)


# When she starts anew


@pytest.mark.parametrize("restarts", [0, 1, 3])
def test_restarts_fall_at_even_shares_of_training(restarts):
    adversary, steps = make(restarts=restarts), 24
    weight, at = adversary.decoder.draw.weight, []
    for step in range(steps):
        before = weight.detach().clone()
        if adversary.restart_if_due(step / steps):
            at.append(step)
        assert torch.equal(before, weight) == (step not in at)
    assert at == [steps * (i + 1) // (restarts + 1) for i in range(restarts)]
    assert int(adversary.restarted) == restarts


def test_a_restart_leaves_nothing_behind_and_no_trace_in_torch_s_generator():
    adversary, other = make(), make()
    start = {k: v.clone() for k, v in adversary.decoder.state_dict().items()}
    adversary.train()(torch.randn(8, 32))  # moves BatchNorm
    for p in adversary.decoder.parameters():
        nn.init.constant_(p, 3.0)
    state = torch.get_rng_state()
    assert adversary.restart_if_due(0.4)
    assert torch.equal(torch.get_rng_state(), state)
    fresh = adversary.decoder.state_dict()
    for name, value in start.items():
        drawn_at_random = bool((value != value.flatten()[0]).any())
        assert torch.equal(value, fresh[name]) != drawn_at_random, name  # as at the start, but not the same weights
    assert other.restart_if_due(0.4)
    for name, value in other.decoder.state_dict().items():
        assert torch.equal(value, fresh[name]), name  # the same whatever she was before
    adversary.restart_if_due(0.7)
    assert not torch.equal(adversary.decoder.seed.weight, other.decoder.seed.weight)  # and the next is another
    third = make(seed=1)
    third.restart_if_due(0.4)
    assert not torch.equal(third.decoder.seed.weight, other.decoder.seed.weight)  # as is that of another run


# A small game, trained by the loop


class Victim(nn.Module):
    """A transmitter with BatchNorm, and a guess of an image's brightness; both players are parts of it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.BatchNorm1d(32))
        self.guess = nn.Linear(32, 1)
        self.adversary = Adversary(32, SHAPE, 16, steps=3, restarts=2)
        self.seen: list[tuple[str, int, bool, bool]] = []


class Brightness(Game):
    def __init__(self, victim: Victim) -> None:
        super().__init__(0.25, 0.75)
        self.victim = victim
        self.steps = 0

    def hear(self, images, generator):
        self.victim.seen.append(("adversary", len(images), self.victim.encoder.training, torch.is_grad_enabled()))
        return self.victim.encoder(images) + 0.1 * torch.randn(len(images), 32, generator=generator)

    def forward(self, images, targets, generator):
        self.victim.seen.append(("victim", len(images), self.victim.encoder.training, torch.is_grad_enabled()))
        self.steps += 1
        code = self.victim.encoder(images)
        task = (self.victim.guess(code)[:, 0] - images.mean((1, 2, 3))).square().mean()
        return {
            "loss": task - 0.1 * self.victim.adversary.privacy(code, images).mean(),
            "anneal": torch.tensor(self.anneal),
        }


class Killed(Exception):
    """Stands for the end of a process."""


def train(folder, fabric, epochs=4, die_after=None):
    torch.manual_seed(7)
    victim = Victim()
    game = Brightness(victim)
    torch.manual_seed(len(folder.name))  # what stands in torch's own generator must not matter
    users = [ImageSet((images_of(60) * 255).to(torch.uint8), torch.zeros(60, dtype=torch.int64))]
    phases = game.phases(victim, victim.adversary, Optimiser("sgd", 0.05, 1e-3, schedule="triangle"))
    done = 0

    def validate():
        nonlocal done
        done += 1
        if done - 1 == die_after:
            raise Killed
        return {"restarted": float(victim.adversary.restarted)}

    history = Fit(victim, phases, Batches(users, 12, None, 3), validate, epochs, 3, folder).run(fabric)
    return victim, game, history, phases


def untimed(history):
    return [{name: value for name, value in row.items() if name != "epoch_seconds"} for row in history]


def test_a_killed_and_resumed_game_ends_bit_by_bit_where_the_whole_one_does(tmp_path, fabric):
    whole, game, history, _ = train(tmp_path / "whole", fabric)
    assert [row["validation"]["restarted"] for row in history] == [0, 1, 2, 2]  # in the middle of epochs 2 and 3
    for epochs in (1, 2, 3):
        folder = tmp_path / f"killed-after-{epochs}"
        with pytest.raises(Killed):
            train(folder, fabric, die_after=epochs)
        resumed, rest, rows, _ = train(folder, fabric)
        assert rest.steps == game.steps * (4 - epochs) // 4
        assert untimed(rows) == untimed(history)
        for name, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), name


def test_she_takes_her_steps_on_shares_of_batches_with_the_victim_in_evaluation(tmp_path, fabric):
    victim, _, history, phases = train(tmp_path / "run", fabric)
    rounds = 4 * 5
    assert Counter(victim.seen) == {
        ("adversary", 2, False, False): 3 * rounds,  # 12 images, 2 k = 6
        ("victim", 12, True, True): rounds,
    }
    assert [phase.name for phase in phases] == ["transceiver", "adversary"]
    norm = victim.encoder[2]
    assert int(norm.num_batches_tracked) == rounds  # by the victim's steps alone
    hers = victim.adversary.decoder.layers[0]
    assert 0 < int(hers.num_batches_tracked) < 3 * rounds  # since her last restart, by her own steps alone
    assert int(hers.num_batches_tracked) % 3 == 0
    means = [row["losses"]["transceiver.anneal"] for row in history]
    expected = [sum(min(max((e / 4 + s / 20 - 0.25) / 0.5, 0), 1) for s in range(5)) / 5 for e in range(4)]
    assert means == pytest.approx(expected)
    assert (means[0], means[3]) == (0, 1)


def test_neither_player_moves_what_the_other_has_measured_or_learned():
    torch.manual_seed(0)
    victim = Victim().train()
    victim.adversary.measure(images_of())
    victim.adversary.restarted.fill_(2)
    mine, hers = Brightness(victim).phases(victim, victim.adversary, Optimiser())
    assert int(victim.adversary.restarted) == 0  # whatever another training had left there
    assert {id(p) for p in mine.parameters} | {id(p) for p in hers.parameters} == {id(p) for p in victim.parameters()}
    assert not {id(p) for p in mine.parameters} & {id(p) for p in hers.parameters}
    images, generator = images_of(), torch.Generator().manual_seed(0)
    for phase, moves in ((mine, "encoder"), (hers, "adversary")):
        before = {k: v.clone() for k, v in victim.state_dict().items()}
        phase.module(images, None, generator)
        moved = {k.split(".")[0] for k, v in victim.state_dict().items() if not torch.equal(v, before[k])}
        assert moved == {moves}
        assert all(part.training for part in victim.modules())


def test_her_optimiser_starts_anew_with_her():
    victim = Victim()
    _, hers = Brightness(victim).phases(victim, victim.adversary, Optimiser())
    optimiser = hers.optimiser.build(hers.parameters)
    hers.optimiser.rate_at(0.0)
    hers.module(images_of(), None, torch.Generator())["loss"].backward()
    optimiser.step()
    hers.optimiser.rate_at(0.3)
    assert len(optimiser.state) == len(hers.parameters)
    hers.optimiser.rate_at(0.34)
    assert not optimiser.state
    assert hers.optimiser.rate_at(0.34) == hers.optimiser.rate_at(1.0) == 3e-3


def test_still_restores_each_part_as_it_was():
    module = nn.Sequential(nn.BatchNorm1d(3), nn.Sequential(nn.Dropout(), nn.Linear(3, 3))).train()
    module[1].eval()
    module[1][0].train()
    modes = [part.training for part in module.modules()]
    with contextlib.suppress(Killed), still(module):
        assert not any(part.training for part in module.modules())
        raise Killed
    assert [part.training for part in module.modules()] == modes
    assert len(set(modes)) == 2


def test_trained_alone_she_learns_to_draw_what_she_hears():
    torch.manual_seed(0)
    adversary, generator = Adversary(32, SHAPE, 256, 5, 0), torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(adversary.parameters(), 2e-3)

    def some(count):  # four quarters of an image, each of its own brightness
        code = torch.randn(count, 4, generator=generator)
        quarters = (0.5 + 0.1 * code).view(count, 1, 2, 2)
        return F.interpolate(quarters, scale_factor=4).expand(-1, 3, -1, -1), code.repeat(1, 8)

    adversary.measure(some(500)[0])
    for _ in range(80):
        images, heard = some(26)
        loss = (adversary(heard) - images).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    images, heard = some(100)
    assert adversary.privacy(heard, images).mean() < 0.35
    assert adversary.privacy(heard.flip(0), images).mean() > 0.8  # of other images: nothing
