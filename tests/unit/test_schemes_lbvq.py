# SPDX-License-Identifier: Apache-2.0
"""DeepJSCC-LBVQ: what is sent, what is learned from which part of the loss, assignments and decisions."""

import json
import math

import pytest
import torch

from semlink import phy
from semlink._errors import SemlinkError
from semlink.nn import Backbone, Optimiser
from semlink.nn.quantiser import entropy_nats, perplexity
from semlink.schemes import Design, Link, Task, schemes
from semlink.schemes.deepjscc_lbvq import DeepJSCCLBVQ
from semlink.schemes.task import KINDS

SHAPES = {"mnist, fashion-mnist": (1, 28, 28), "cifar10": (3, 32, 32), "celeba": (3, 64, 64)}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make(kind="classify", shape=(1, 8, 8), uses=16, outputs=5, dimension=16, seed=0, **options):
    torch.manual_seed(seed)
    task = Task(kind, shape, 0 if kind == "reconstruct" else outputs)
    return DeepJSCCLBVQ(Design(task, uses, Backbone(16, 16)), dimension=dimension, **options)


def batch_of(kind, shape, count=32, outputs=5):
    images = torch.rand(count, *shape, generator=seeded(1))
    if kind == "classify":
        return images, torch.arange(count) % outputs
    return images, torch.randint(0, 2, (count, outputs), generator=seeded(2)).float()


def awgn(snr_db):
    return lambda symbols, generator: phy.AWGN()(symbols, snr_db, generator)


def objective_of(scheme, snr_db=12.0):
    (phase,) = scheme.phases(Optimiser(), awgn(snr_db), 0.0)
    return phase.module


def two_classes(count, generator):
    """Images of two classes that cannot be confused."""
    targets = torch.arange(count) % 2
    images = 0.3 * torch.rand(count, 1, 8, 8, generator=generator)
    images[targets == 1, :, :4] += 0.5
    return images, targets


def trained(steps=40, rate=0.01, seed=0, snr_db=12.0, **options):
    """Train on two classes; return the scheme in evaluation mode and the losses of every step."""
    scheme, generator = make(outputs=2, seed=seed, **options), seeded(seed)
    (phase,) = scheme.train().phases(Optimiser(learning_rate=rate), awgn(snr_db), 0.0)
    optimiser, rows = phase.optimiser.build(phase.parameters), []
    for _ in range(steps):
        losses = phase.module(*two_classes(64, generator), generator)
        optimiser.zero_grad()
        losses["loss"].backward()
        optimiser.step()
        rows.append({name: value.item() for name, value in losses.items()})
    return scheme.eval(), rows


# Gradient


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_parameter_gets_gradient(kind, shape):
    """Encoder, codebook and receiver, on the shapes of all data sets: 9 in 10 of the units of each."""
    scheme = make(kind, shape, uses=32, codewords=4)
    scheme.prepare(torch.rand(20, *shape, generator=seeded()))
    losses = objective_of(scheme.train())(*batch_of(kind, shape), seeded(2))
    losses["loss"].backward()
    assert set(losses) == {"loss", "task", "entropy_nats", "perplexity"}
    for name, parameter in scheme.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        reached = parameter.grad.flatten(1).abs().sum(1) if parameter.ndim > 1 else parameter.grad
        assert (reached != 0).float().mean() > 0.9, name


@pytest.mark.parametrize("options", [{"modulation": "psk", "codewords": 8}, {"decision": "soft"}, {"codewords": 64}])
def test_gradient_reaches_encoder_and_codebook_from_the_task_alone(options):
    scheme = make(entropy_weight=0, **options).train()
    objective_of(scheme)(*batch_of("classify", (1, 8, 8)), seeded())["task"].backward()
    assert scheme.codebook.vectors.grad is not None
    assert (scheme.codebook.vectors.grad.abs().sum(1) > 0).all(), "codewords that were not sent are compared with too"
    for name, parameter in scheme.encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_both_ends_share_one_codebook_and_a_step_moves_it():
    scheme = make().train()
    assert [name for name, p in scheme.named_parameters() if p.shape == (16, 16) and "codebook" in name] == [
        "codebook.vectors"
    ]
    before = scheme.codebook.vectors.detach().clone()
    (phase,) = scheme.phases(Optimiser(learning_rate=0.01), awgn(12.0), 0.0)
    optimiser = phase.optimiser.build(phase.parameters)
    phase.module(*batch_of("classify", (1, 8, 8)), seeded())["loss"].backward()
    optimiser.step()
    assert ((scheme.codebook.vectors - before).abs() > 0).any(1).all()
    images = batch_of("classify", (1, 8, 8))[0]
    chosen, heard = scheme.eval().choose(images, seeded()).choice, torch.eye(16)[None, :16]
    answer = scheme.codebook.lookup(heard)
    with torch.no_grad():
        scheme.codebook.vectors.copy_(scheme.codebook.vectors.flip(0))
    assert not torch.equal(scheme.choose(images, seeded()).choice, chosen)
    assert torch.equal(scheme.codebook.lookup(heard), answer.flip(1))


@pytest.mark.parametrize("decision", ["hard", "soft"])
def test_in_training_the_receiver_gets_what_the_channel_leaves_and_errors_have_no_gradient(decision, monkeypatch):
    """At 0 dB three of four 16-QAM symbols are wrong. The codewords received are those decided, not those sent; the
    scores get the gradient of the relaxed draw alone, which knows nothing of the channel."""
    scheme = make(decision=decision).train()
    seen = {}
    choose, heard = scheme.choose, scheme.heard

    def noted_choose(images, generator):
        chosen = choose(images, generator)
        chosen.scores.retain_grad()
        return seen.setdefault("chosen", chosen)

    monkeypatch.setattr(scheme, "answer", lambda codewords: seen.setdefault("got", codewords).flatten(1)[:, :5])
    monkeypatch.setattr(scheme, "choose", noted_choose)
    monkeypatch.setattr(scheme, "heard", lambda received: seen.setdefault("heard", heard(received)))
    objective_of(scheme, 0.0)(*batch_of("classify", (1, 8, 8)), seeded())
    chosen, weights, got = seen["chosen"], seen["heard"], seen["got"]
    wrong = (weights.argmax(-1) != chosen.choice.argmax(-1)).float().mean()
    assert 0.6 < wrong < 0.85
    assert torch.allclose(got, scheme.codebook.lookup(weights), atol=1e-6)
    assert not weights.requires_grad

    towards = torch.randn(got.shape, generator=seeded(4))
    (found,) = torch.autograd.grad((got * towards).sum(), chosen.scores, retain_graph=True)
    (expected,) = torch.autograd.grad((scheme.codebook.lookup(chosen.choice) * towards).sum(), chosen.scores)
    assert torch.allclose(found, expected, atol=1e-6)
    assert found.abs().max() > 1e-3


# The loss


@pytest.mark.parametrize("weight", [0.0, 1e-3, 0.5])
def test_the_loss_is_the_task_minus_the_weighted_entropy_of_the_choices(weight):
    scheme = make(entropy_weight=weight).train()
    images, targets = batch_of("classify", (1, 8, 8))
    losses = objective_of(scheme)(images, targets, seeded())
    assert losses["loss"].item() == pytest.approx(losses["task"].item() - weight * losses["entropy_nats"].item())
    with torch.no_grad():
        chosen = make(entropy_weight=weight).train().choose(images, seeded())
    p = torch.softmax(chosen.scores, -1)
    assert losses["entropy_nats"].item() == pytest.approx(-(p * p.log()).sum(-1).mean().item(), rel=1e-5)
    shares = torch.bincount(chosen.choice.argmax(-1).flatten(), minlength=16) / (32 * 16)
    assert losses["perplexity"].item() == pytest.approx(perplexity(shares).item(), rel=1e-5)


def test_a_larger_entropy_weight_leaves_choices_less_decided():
    ends = [trained(entropy_weight=weight)[1][-1]["entropy_nats"] for weight in (0.0, 1.0)]
    assert ends[1] > ends[0] + 0.5
    assert ends[1] <= math.log(16) + 1e-5


def test_the_task_part_makes_the_link_work():
    rows = trained()[1]
    assert rows[0]["task"] > 0.5
    assert rows[-1]["task"] < 0.25


def test_no_codeword_can_fall_behind_for_good():
    """Whatever all vectors have in common, scores have mean 0 over a batch and start undecided, not at random."""
    scheme = make().train()
    common = 100 * torch.randn(16, 1, 1, generator=seeded())
    scheme.encoder.stages[-1].register_forward_hook(lambda module, given, output: output + common)
    scores = scheme.choose(batch_of("classify", (1, 8, 8))[0], seeded()).scores
    assert scores.mean((0, 1)).abs().max() < 1e-3
    assert 0.5 < scores.std() < 4


# What is sent


def test_symbols_are_points_of_the_scaled_constellation_and_payload_is_counted():
    for uses, codewords, modulation in [(16, 16, "qam"), (32, 8, "psk"), (16, 64, "qam")]:
        scheme = make(uses=uses, codewords=codewords, modulation=modulation).eval()
        sent = scheme.transmit(batch_of("classify", (1, 8, 8))[0], seeded())
        assert sent.symbols.dtype == torch.complex64
        assert (sent.channel_uses, sent.header) == (uses, None)
        assert sent.payload_bits == uses * math.log2(codewords)
        points = scheme.modem.scaled(scheme.modem.point).points
        assert (sent.symbols[..., None] - points).abs().amin(-1).max() < 1e-6


def test_mean_energy_is_1_over_training_images_and_frozen_in_evaluation():
    scheme, generator = make().train(), seeded()
    for _ in range(250):
        scheme.choose(two_classes(16, generator)[0], generator)
    scheme.eval()
    before = {name: value.clone() for name, value in scheme.state_dict().items()}
    power = phy.mean_power(scheme.transmit(two_classes(2000, generator)[0], generator).symbols)
    assert power.mean().item() == pytest.approx(1, abs=0.1)
    assert power.std() > 0.01, "it is not set image by image"
    assert all(torch.equal(value, before[name]) for name, value in scheme.state_dict().items())


def test_only_training_counts_and_draws():
    scheme, images = make().train(), batch_of("classify", (1, 8, 8))[0]
    first, second = (scheme.transmit(images, seeded(seed)).symbols for seed in (0, 1))
    assert not torch.allclose(first, second, atol=0.1), "indices are drawn"
    assert scheme.modem.batches == 2
    scheme.eval()
    first, second = (scheme.transmit(images, seeded(seed)).symbols for seed in (0, 1))
    assert torch.equal(first, second)
    assert torch.equal(scheme.choose(images, seeded()).choice.argmax(-1), scheme.choose(images, seeded())[1].argmax(-1))
    assert scheme.modem.batches == 2


@pytest.mark.parametrize("uses", [16, 32, 64])
def test_vectors_return_to_the_place_of_the_map_that_they_came_from(uses, monkeypatch):
    scheme = make(uses=uses).eval()
    images = batch_of("classify", (1, 8, 8), 3)[0]
    x = scheme.choose(images, seeded()).x
    assert x.shape == (3, uses, 16 * 16 // uses)
    latent = scheme.level(scheme.encoder(images))
    monkeypatch.setattr(scheme.decoder, "forward", lambda found: found)
    assert torch.equal(scheme.answer(x), latent)
    assert torch.equal(x[0, uses // 16 : 2 * uses // 16].flatten(), latent[0, :, 0, 1])  # the second position


# Decisions and assignments


def test_hard_and_soft_decisions_of_one_link():
    scheme, _ = trained(steps=60)
    link, generator = Link(scheme, phy.AWGN(), 12.0), seeded(9)
    images, targets = two_classes(1000, generator)
    sent = link.transmit(images)

    def accuracy(decision, snr_db):
        scheme.decision = decision
        received = link.channel(sent.symbols, snr_db, seeded(3))
        return (link.receive(received).argmax(1) == targets).float().mean().item()

    assert accuracy("hard", 12.0) > 0.95
    assert accuracy("soft", 12.0) > 0.95
    received = link.channel(sent.symbols, 0.0, seeded(3))
    scheme.decision = "soft"
    weights = scheme.heard(received)
    assert ((weights > 0.01) & (weights < 0.99)).any()
    scheme.decision = "hard"
    assert set(scheme.heard(received).unique().tolist()) == {0.0, 1.0}
    with pytest.raises(SemlinkError, match="unknown decision 'sof'; did you mean 'soft'"):
        scheme.decision = "sof"


def test_soft_codewords_are_nearer_to_those_sent_than_hard_ones():
    """The posterior mean has the least mean squared error of all estimates, hard ones among them."""
    scheme, _ = trained(steps=10)
    chosen = scheme.choose(two_classes(500, seeded())[0], seeded()).choice
    received = phy.AWGN()(scheme.modem.modulate(chosen.argmax(-1)), 4.0, seeded(1))
    errors = {}
    for decision in ("hard", "soft"):
        scheme.decision = decision
        found = scheme.codebook.lookup(scheme.heard(received)) - scheme.codebook.lookup(chosen)
        errors[decision] = found.detach().square().sum(-1).mean()
    assert errors["soft"] < 0.8 * errors["hard"]


def test_a_trained_link_takes_another_assignment_at_both_ends():
    scheme, _ = trained(steps=5)
    images = two_classes(50, seeded())[0]
    generator, weights = seeded(), scheme.choose(images, seeded()).choice
    before = scheme.modem.expected_distance(scheme.codebook.distances(), 4.0, scheme.modem.point)
    scheme.assign("optimised", 4.0)
    assert scheme.modem.expected_distance(scheme.codebook.distances(), 4.0, scheme.modem.point) < 0.95 * before
    assert scheme.modem.point.tolist() != list(range(16))
    sent = scheme.transmit(images, generator)
    assert torch.equal(scheme.heard(phy.AWGN()(sent.symbols, 60.0, generator)), weights)
    usage = scheme.modem.usage.double()
    energy = phy.mean_power(scheme.modem.modulate(torch.arange(16)[:, None])).double()
    assert (usage * energy).sum().item() == pytest.approx(usage.sum().item(), rel=1e-6)
    scheme.assign("natural", 4.0)
    assert scheme.modem.point.tolist() == list(range(16))
    with pytest.raises(SemlinkError, match="unknown assignment 'gray'"):
        scheme.assign("gray", 4.0)


def test_a_training_that_starts_from_trained_weights_counts_its_own_batches():
    scheme = make(assignment="optimised").train()
    scheme.modem.batches.fill_(5000)
    scheme.phases(Optimiser(), lambda symbols, generator: phy.AWGN()(symbols, 12.0, generator), 0.1)
    assert int(scheme.modem.batches) == 0


@pytest.mark.parametrize(("assignment", "due"), [("natural", []), ("optimised", [64, 128, 256])])
def test_assignments_are_searched_anew_after_powers_of_two(assignment, due, monkeypatch):
    scheme, found = make(assignment=assignment).train(), []
    monkeypatch.setattr(scheme, "assign", lambda which, snr_db: found.append((int(scheme.modem.batches), snr_db)))
    received = phy.AWGN()(torch.zeros(2, 16, dtype=torch.complex64), 7.0, seeded())
    for batches in range(1, 300):
        scheme.modem.batches.fill_(batches)
        scheme.settle(received)
    assert [batches for batches, _ in found] == due
    assert all(snr_db == pytest.approx(7) for _, snr_db in found)


def test_training_searches_by_itself():
    scheme, _ = trained(steps=65, assignment="optimised", snr_db=4.0)
    assert scheme.modem.point.tolist() != list(range(16))
    assert sorted(scheme.modem.point.tolist()) == list(range(16))


def test_the_record_tells_how_the_codebook_is_used():
    scheme = make()
    scheme.modem.usage.copy_(torch.tensor([0.5, 0.25, 0.25 - 0.003, 0.003] + [0.0] * 12))
    found = scheme.codebook_usage()
    assert found["used"] == 3
    p = scheme.modem.usage
    assert found["perplexity"] == pytest.approx(math.exp(entropy_nats(p).item()))
    assert found["entropy_bits"] == pytest.approx(entropy_nats(p).item() / math.log(2))
    said = scheme.describe()
    assert said == {"codebook": found, "points": list(range(16))}
    assert json.loads(json.dumps(said, allow_nan=False)) == said


# The whole


def test_training_repeats_with_its_seed_and_not_with_another():
    (one, rows), (same, again), (other, others) = (trained(steps=4, seed=seed) for seed in (0, 0, 1))
    assert rows == again
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in one.state_dict().items())
    assert rows != others
    assert not torch.equal(one.codebook.vectors, other.codebook.vectors)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_link_for_every_task_on_every_shape(kind, shape):
    link = Link(make(kind, shape), phy.Rayleigh(), 12.0)
    images = batch_of(kind, shape, 4)[0]
    output = link.receive(link.channel(link.transmit(images).symbols))
    assert output.shape == (images.shape if kind == "reconstruct" else (4, 5))
    assert output.isfinite().all()


def test_it_is_registered():
    assert schemes["deepjscc-lbvq"] is DeepJSCCLBVQ


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"codewords": 8}, "option codewords is 8: square QAM of order 8: an even power of two"),
        ({"codewords": 12, "modulation": "psk"}, "option codewords is 12: PSK of order 12: a power of two"),
        ({"codewords": 0}, "option codewords is 0: a whole number of at least 1"),
        ({"codewords": 16.0}, r"option codewords is 16\.0: a whole number"),
        ({"codewords": True}, "option codewords is True: a whole number"),
        ({"codewords": "16"}, "option codewords is '16': a whole number"),
        ({"codewords": 1, "modulation": "psk"}, "option codewords is 1: PSK of order 1"),
        ({"modulation": "fsk"}, "unknown modulation 'fsk'; .*known: psk, qam"),
        ({"decision": "firm"}, "unknown decision 'firm'; .*known: hard, soft"),
        ({"assignment": "gray"}, "unknown assignment 'gray'; .*known: natural, optimised"),
        ({"entropy_weight": -0.1}, "option entropy_weight is -0.1: a finite number of at least 0"),
        ({"entropy_weight": math.nan}, "option entropy_weight is nan"),
        ({"entropy_weight": True}, "option entropy_weight is True"),
        ({"dimension": 0}, "option dimension is 0: a whole number of at least 1"),
        (
            {"dimension": 16, "uses": 48},
            "option dimension is 16: 3 vectors share it at 48 .*multiple of 3",
        ),
        ({"uses": 8}, "^8 channel uses: each of the 16 positions .*use a multiple of 16$"),
        ({"uses": 24}, "^24 channel uses: .*multiple of 16$"),
        ({"uses": 0}, "^0 channel uses: .*multiple of 16$"),
        ({"uses": -16}, "^-16 channel uses: .*multiple of 16$"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(options, said):
    with pytest.raises(SemlinkError, match=said) as caught:
        make(**options)
    assert "\n" not in str(caught.value)
