# SPDX-License-Identifier: Apache-2.0
"""UIS-ToSC: each term against what it claims, and the defects of the public code, none of which may come back."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from semlink import phy
from semlink._errors import SemlinkError
from semlink.data import ImageSet
from semlink.nn import Backbone, Optimiser
from semlink.schemes import Design, Link, Task
from semlink.schemes.deepjscc_lbvq import DeepJSCCLBVQ
from semlink.schemes.uis_tosc import UISToSC
from semlink.training import Batches, Fit, make_fabric

SHAPES = [(1, 28, 28), (3, 32, 32), (3, 64, 64)]
SMALL = (1, 8, 8)
PARTS = {"loss", "utility", "informativeness_nats", "security", "quantisation", "perplexity"}


def make(shape=SMALL, kind="classify", uses=16, **options):
    torch.manual_seed(0)
    design = Design(Task(kind, shape, 0 if kind == "reconstruct" else 5), uses, Backbone(16, 16))
    scheme = UISToSC(design, **{"dimension": 16, **options})
    scheme.prepare(images_of(40, shape))
    return scheme


def images_of(count=12, shape=SMALL, seed=1):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


def targets_of(kind, count=12):
    return torch.rand(count, 5).round() if kind == "attributes" else torch.arange(count) % 5


def awgn(symbols, generator):
    return phy.AWGN()(symbols, 12.0, generator)


def noiseless(symbols, generator):
    return phy.AWGN()(symbols, 100.0, generator)


def losses_of(scheme, carry=awgn, progress=0.99, images=None, seed=3):
    game = scheme.phases(Optimiser(), carry, 0.0)[0]
    game.optimiser.rate_at(progress)
    images = images_of() if images is None else images
    return game.module(images, targets_of("classify", len(images)), torch.Generator().manual_seed(seed))


def value(tensor):
    return float(tensor.detach())


# Utility: the task through the real modulation


def test_in_training_the_receiver_gets_codewords_of_decided_indices(monkeypatch):
    """Defect 9 of the public code: a receiver that sees in training what it never will again."""
    scheme = make().train()
    answered, carried = [], []
    monkeypatch.setattr(scheme, "answer", lambda codewords: answered.append(codewords) or torch.zeros(12, 5))

    def carry(symbols, generator):
        carried.append((symbols, awgn(symbols, generator)))
        return carried[-1][1]

    losses_of(scheme, carry)
    (codewords,) = answered
    (symbols, bob), (again, eve) = carried
    decided = scheme.modem.decide(bob, False).argmax(-1)
    assert torch.equal(codewords, scheme.codebook.vectors[decided])
    sent = scheme.modem.scaled(scheme.modem.point).demodulate(symbols)
    assert 0.01 < (decided != sent).float().mean() < 0.3  # 16-QAM at 12 dB: 11 %
    assert torch.equal(symbols, again)
    assert not torch.isclose(bob.symbols, eve.symbols).any()  # Eve's noise is her own


def test_the_gradient_passes_straight_through_to_x_and_to_the_received_codewords():
    scheme = make().train()
    x, _, choice = scheme.choose(images_of(), torch.Generator())
    bob = awgn(scheme.modem.modulate(choice.argmax(-1)), torch.Generator().manual_seed(0))
    game = scheme.phases(Optimiser(), awgn, 0.0)[0].module
    received = game.received(x, bob)
    weights = torch.randn(received.shape, generator=torch.Generator().manual_seed(1))
    to_x, to_book = torch.autograd.grad((received * weights).sum(), [x, scheme.codebook.vectors])
    assert torch.equal(to_x, weights)
    expected = torch.zeros_like(to_book)
    expected.index_add_(0, scheme.modem.decide(bob, False).argmax(-1).flatten(), weights.flatten(0, 1))
    assert torch.allclose(to_book, expected, atol=1e-5)


def test_the_nearest_codeword_is_sent_in_training_as_in_evaluation():
    scheme = make()
    x, _, choice = scheme.train().choose(images_of(), torch.Generator())
    nearest = torch.cdist(x, scheme.codebook.vectors.expand(12, -1, -1)).argmin(-1)
    assert torch.equal(choice.argmax(-1), nearest)
    assert choice.detach().max() == 1
    assert choice.detach().sum(-1).eq(1).all()
    scheme.eval()
    again = scheme.choose(images_of(), torch.Generator())
    assert torch.equal(
        again.choice.argmax(-1), torch.cdist(again.x, scheme.codebook.vectors.expand(12, -1, -1)).argmin(-1)
    )


# Informativeness: the entropy of what is sent


def test_informativeness_is_the_exact_entropy_of_the_transmitted_indices():
    """Against numpy, from the symbols that left; defect 3: a rate of features that Eve never sees."""
    scheme, sent = make().train(), []

    def carry(symbols, generator):
        sent.append(symbols)
        return awgn(symbols, generator)

    parts = losses_of(scheme, carry, images=images_of(200))
    indices = scheme.modem.scaled(scheme.modem.point).demodulate(sent[0]).numpy()
    total = 0.0
    for position in range(16):
        p = np.bincount(indices[:, position], minlength=16) / 200
        total -= (p[p > 0] * np.log(p[p > 0])).sum()
    assert value(parts["informativeness_nats"]) == pytest.approx(total, rel=1e-5)
    assert 0 < total < 16 * math.log(16)
    with torch.no_grad():  # what is not sent does not count
        scheme.decoder.logits.weight.mul_(3)
        nn.init.normal_(scheme.adversary.decoder.draw.weight)
    assert value(losses_of(scheme, images=images_of(200))["informativeness_nats"]) == pytest.approx(total, rel=0.05)


def test_a_transmitter_that_says_the_same_of_every_image_informs_of_nothing():
    scheme = make().train()
    nn.init.zeros_(scheme.encoder.stages[-1].weight)
    assert value(losses_of(scheme)["informativeness_nats"]) == pytest.approx(0, abs=1e-5)


# Security, and the fit of the codebook


def test_quantisation_by_hand():
    for commitment in (0.0, 0.25, 2.0):
        scheme = make(commitment=commitment).train()
        x, _, choice = scheme.choose(images_of(), torch.Generator())
        distance = (x - scheme.codebook.vectors[choice.argmax(-1)]).square().mean()
        parts = losses_of(make(commitment=commitment).train())
        assert value(parts["quantisation"]) == pytest.approx((1 + commitment) * value(distance), rel=1e-5)


def test_the_adversary_hears_decided_indices_position_by_position(monkeypatch):
    scheme = make(uses=32, dimension=16).train()
    heard = []
    monkeypatch.setattr(scheme.adversary, "forward", lambda h: heard.append(h) or torch.zeros(12, *SMALL))
    carried = []

    def carry(symbols, generator):
        carried.append(awgn(symbols, generator))
        return carried[-1]

    losses_of(scheme, carry)
    decided = scheme.modem.decide(carried[1], False).argmax(-1)  # Eve's, not Bob's
    maps = heard[0].detach().view(12, 2, 16, 16)  # vector of a position, codeword, position
    for position in range(16):
        for vector in range(2):
            assert torch.equal(maps[:, vector, :, position].argmax(1), decided[:, 2 * position + vector])
    assert heard[0].detach().sum(1).eq(32).all()


def test_codewords_that_merely_move_do_not_mislead_her():
    """Another book with the same choices is the same to her."""
    scheme = make().eval()
    game = scheme.phases(Optimiser(), noiseless, 0.0)[0].module
    before = game.hear(images_of(), torch.Generator().manual_seed(0))
    with torch.no_grad():  # book and code scaled alike: every choice stays
        scheme.codebook.vectors.mul_(5)
        scheme.level.running_var.div_(25)
        scheme.level.eps /= 25
    assert torch.equal(game.hear(images_of(), torch.Generator().manual_seed(0)), before)


def test_security_is_bounded_and_measured_at_known_points(monkeypatch):
    """Defects 4 and 6: an adversary who cannot draw the image, and a reward without end."""
    images = images_of()
    for drawing, expected in ((images, 0.0), (1 - images, 1.0), (images + 1e4, 1.0)):
        scheme = make().train()
        monkeypatch.setattr(scheme.adversary, "forward", lambda h, drawing=drawing: drawing)
        assert value(losses_of(scheme)["security"]) == expected
    scheme = make()
    monkeypatch.setattr(scheme.adversary, "forward", lambda h: scheme.adversary.mean_image.expand(12, *SMALL))
    assert value(losses_of(scheme)["security"]) == pytest.approx(1, abs=1e-6)


# The loss


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0), (0.05, 0), (0.15, 0.5), (0.2, 1), (0.9, 1)])
def test_the_loss_is_the_sum_of_its_parts_with_their_weights(progress, share, monkeypatch):
    scheme = make(utility_weight=0.7, informativeness_weight=0.03, security_weight=2.0).train()
    monkeypatch.setattr(scheme.adversary, "forward", lambda h: 0.5 * images_of() + 0.5 * scheme.adversary.mean_image)
    parts = losses_of(scheme, progress=progress)
    assert set(parts) == PARTS
    assert value(parts["security"]) == pytest.approx(0.25, abs=1e-5)
    expected = 0.7 * parts["utility"] + parts["quantisation"] - 2.0 * 0.25
    expected = expected + share * 0.03 * parts["informativeness_nats"]
    assert value(parts["loss"]) == pytest.approx(value(expected), rel=1e-5)


def test_published_weights_are_the_defaults():
    scheme = make()
    assert (scheme.utility_weight, scheme.informativeness_weight, scheme.security_weight) == (1, 1e-2, 0.5)
    assert (scheme.commitment, scheme.modem.constellation.order, scheme.modem.constellation.family) == (0.25, 16, "qam")
    assert scheme.payload_bits == 64
    assert isinstance(scheme, DeepJSCCLBVQ)


def trained(steps, **options):
    """The parts after some steps on noisy shades of grey, of a code that starts with all its codewords in use."""
    scheme = make(anneal_start=0.0, anneal_end=0.0, **options).train()
    transceiver, adversary = scheme.phases(Optimiser(), awgn, 0.0)
    players = [(p, torch.optim.Adam(p.parameters, 5e-3)) for p in (transceiver, adversary)]
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        shade = torch.rand(48, 4, generator=generator)
        images = F.interpolate(shade.view(48, 1, 2, 2), scale_factor=4)
        if step == 0:
            scheme.adversary.measure(images)
        for phase, optimiser in players:
            for p in scheme.parameters():
                p.requires_grad_(any(p is q for q in phase.parameters))
            for _ in range(phase.steps):
                parts = phase.module(images, (shade[:, 0] * 5).long(), generator)
                optimiser.zero_grad()
                parts["loss"].backward()
                optimiser.step()
            if phase is transceiver:
                kept = {name: value(part) for name, part in parts.items()}
    return kept


def test_each_part_pulls_where_it_says():
    none = {"informativeness_weight": 0.0, "security_weight": 0.0, "adversary_steps": 2}
    free = trained(40, **none)
    assert (
        trained(40, **{**none, "informativeness_weight": 0.2})["informativeness_nats"]
        < 0.7 * free["informativeness_nats"]
    )
    assert trained(40, **{**none, "utility_weight": 0.0})["utility"] > free["utility"] + 0.2
    assert trained(40, **{**none, "commitment": 3.0})["quantisation"] < 3 * free["quantisation"]


# The game


def test_the_codebook_is_trained_by_every_term_that_claims_to():
    """Defect 2: a codebook that no optimiser moves."""
    scheme = make().train()
    phases = scheme.phases(Optimiser("adamw", 1e-2), awgn, 0.0)
    assert [any(p is scheme.codebook.vectors for p in phase.parameters) for phase in phases] == [True, False]
    parts = losses_of(scheme)
    for name in ("utility", "informativeness_nats", "quantisation"):
        (gradient,) = torch.autograd.grad(parts[name], scheme.codebook.vectors, retain_graph=True)
        assert gradient.ne(0).any(), name
    for name in ("utility", "informativeness_nats", "quantisation"):  # and the encoder by each
        (gradient,) = torch.autograd.grad(parts[name], scheme.encoder.stages[-1].weight, retain_graph=True)
        assert gradient.ne(0).any(), name
    heard = scheme.overheard(scheme.choose(images_of(), torch.Generator()).choice)
    scheme.adversary.decoder.draw.bias.data.fill_(0.5)
    near = scheme.adversary.bounded(0.8 * images_of() + 1e-3 * scheme.adversary(heard), images_of()).mean()
    for target in (scheme.codebook.vectors, scheme.encoder.stages[-1].weight):  # security reaches both by the choice
        (gradient,) = torch.autograd.grad(near, target, retain_graph=True)
        assert gradient.ne(0).any()
    before = scheme.codebook.vectors.detach().clone()
    optimiser = phases[0].optimiser.build(phases[0].parameters)
    losses_of(scheme)["loss"].backward()
    optimiser.step()
    assert (scheme.codebook.vectors != before).all()


@pytest.mark.parametrize("kind", ["classify", "attributes", "reconstruct"])
@pytest.mark.parametrize("shape", SHAPES)
def test_each_player_reaches_all_of_its_own_parameters_and_none_of_the_other_s(kind, shape):
    scheme = make(shape, kind, uses=32, dimension=32).train()
    phases = scheme.phases(Optimiser(), awgn, 0.1)
    named = dict(scheme.named_parameters())
    owned = [{name for name, p in named.items() if any(p is q for q in phase.parameters)} for phase in phases]
    assert owned[0] | owned[1] == set(named)
    assert owned[1] == {name for name in named if name.startswith("adversary.")}
    assert not owned[0] & owned[1]
    buffers = {k: v.clone() for k, v in scheme.state_dict().items() if k not in named}
    for phase, mine in zip(phases, owned, strict=True):
        scheme.load_state_dict(buffers, strict=False)
        for name, p in named.items():
            p.grad = None
            p.requires_grad_(name in mine)
        phase.module(images_of(10, shape), targets_of(kind, 10), torch.Generator().manual_seed(2))["loss"].backward()
        for name, p in named.items():
            if name in mine:
                assert p.grad is not None, name
                assert p.grad.isfinite().all(), name
                assert p.grad.ne(0).any(), name
            else:
                assert p.grad is None, name
        # Defect 7: statistics of the one (BatchNorm, counts of codewords) that drift while the other learns.
        moved = {k for k, v in scheme.state_dict().items() if k in buffers and not torch.equal(v, buffers[k])}
        assert all(k.startswith("adversary.") == (phase.name == "adversary") for k in moved)
        assert moved
        assert ("modem.usage" in moved) == (phase.name == "transceiver")


def test_a_link_sends_and_answers_and_the_adversary_has_no_part_in_it():
    for shape in SHAPES:
        scheme = make(shape, uses=32, dimension=32)
        losses_of(scheme.train(), images=images_of(12, shape))
        link, images, generator = Link(scheme, phy.AWGN(), 12.0), images_of(12, shape), torch.Generator()
        sent = link.transmit(images)
        assert (sent.channel_uses, sent.payload_bits) == (32, 128)
        received = link.channel(sent.symbols, generator=generator.manual_seed(0))
        before = link.receive(received)
        assert before.shape == (12, 5)
        for module in scheme.adversary.modules():
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                tensor.data.fill_(7)
        del scheme.adversary
        assert torch.equal(link.transmit(images).symbols, sent.symbols)
        assert torch.equal(link.receive(received), before)


def train(folder, fabric, seed=3, die_after=None):
    torch.manual_seed(seed)
    scheme = UISToSC(
        Design(Task("classify", SMALL, 5), 16, Backbone(16, 16)), dimension=16, adversary_steps=2, restarts=2
    )
    scheme.prepare(images_of(40))
    torch.manual_seed(len(folder.name))
    pictures = ImageSet((images_of(40) * 255).to(torch.uint8), torch.arange(40) % 5)
    phases = scheme.phases(Optimiser("sgd", 0.05, schedule="triangle"), awgn, 0.0)
    done = 0

    def validate():
        nonlocal done
        done += 1
        if done - 1 == die_after:
            raise InterruptedError
        return {"restarted": float(scheme.adversary.restarted)}

    history = Fit(scheme, phases, Batches([pictures], 10, None, seed), validate, 3, seed, folder).run(fabric)
    return scheme.state_dict(), [{k: v for k, v in row.items() if k != "epoch_seconds"} for row in history]


def test_a_killed_and_resumed_training_is_bit_identical_and_another_seed_is_another(tmp_path):
    fabric = make_fabric(torch.device("cpu"), "fp32")
    whole, history = train(tmp_path / "whole", fabric)
    assert {f"transceiver.{name}" for name in PARTS} | {"adversary.loss"} == set(history[0]["losses"])
    folder = tmp_path / "killed"
    with pytest.raises(InterruptedError):
        train(folder, fabric, die_after=1)
    resumed, rows = train(folder, fabric)
    assert rows == history
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    other, _ = train(tmp_path / "other", fabric, seed=4)
    assert not torch.equal(other["codebook.vectors"], whole["codebook.vectors"])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"utility_weight": -1.0}, "utility_weight"),
        ({"informativeness_weight": math.nan}, "informativeness_weight"),
        ({"security_weight": math.inf}, "security_weight"),
        ({"commitment": "none"}, "commitment"),
        ({"adversary_steps": 0}, "adversary_steps"),
        ({"restarts": 1.5}, "restarts"),
        ({"anneal_start": 0.5, "anneal_end": 0.4}, "anneal_end"),
        ({"codewords": 15}, "codewords"),
        ({"modulation": "fsk"}, "modulation"),
        ({"uses": 24}, "24 channel uses"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_one_line(options, named):
    with pytest.raises(SemlinkError, match=named) as caught:
        make(**options)
    assert "\n" not in str(caught.value)
