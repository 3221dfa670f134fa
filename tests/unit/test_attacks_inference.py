# SPDX-License-Identifier: Apache-2.0
"""Inference where the answer is known: from pixels, from noise, and from what the link delivers alone."""

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

from semlink import data, phy
from semlink._errors import SemlinkError
from semlink.attacks import SymbolInference, Tap, Threat, delivered_floor
from semlink.bench.attacker import fingerprint
from semlink.nn import Backbone, Optimiser
from semlink.schemes import Design, Link, Scheme, Sent, Task

SHAPE = (1, 8, 8)


class Pixels(Scheme):
    """Sends the pixels themselves, two to a symbol."""

    def transmit(self, images, generator):
        return Sent(phy.to_symbols(images.flatten(1)))

    def receive(self, received, header=None):
        return received.symbols


def tap_of(snr_db, shape=SHAPE):
    scheme = Pixels(Design(Task("classify", shape, 2), math.prod(shape) // 2, Backbone(16, 16)))
    return Tap(Link(scheme, phy.AWGN(), snr_db), Threat(snr_db))


def trained(tap, images, targets, kind, outputs, steps=200, width=32):
    torch.manual_seed(0)
    attack = SymbolInference(tap, width, kind, outputs)
    (phase,) = attack.phases(Optimiser(learning_rate=3e-3, schedule="cosine", warm_up=0.1))
    optimiser, generator = phase.optimiser.build(phase.parameters), torch.Generator().manual_seed(1)
    attack.train()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = phase.optimiser.rate_at(step / steps)
        chosen = torch.randint(len(images), (64,), generator=generator)
        losses = phase.module(images[chosen], targets[chosen], generator)
        optimiser.zero_grad()
        losses["loss"].backward()
        optimiser.step()
    return attack.eval()


@torch.no_grad()
def inferred(attack, images, seed=5):
    return attack.infer(attack.tap.intercept(images, torch.Generator().manual_seed(seed)), 0.0)


@pytest.fixture(scope="module")
def digits():
    sets = data.load("digits")
    return [each.batch(torch.arange(1000)) for each in (sets.attacker, sets.test)]


def test_from_pixels_it_is_as_good_as_good_classifiers_of_digits(digits):
    (images, targets), (test, truth) = digits
    attack = trained(tap_of(40.0, (1, 28, 28)), images, targets, "classes", 10, steps=400, width=64)
    right = inferred(attack, test).argmax(1) == truth
    for oracle, margin in ((LogisticRegression(max_iter=200), 0.0), (SVC(), 3.0)):
        theirs = torch.from_numpy(oracle.fit(images.flatten(1), targets).predict(test.flatten(1))) == truth
        lead = right.double() - theirs.double()
        assert lead.mean() > -margin * lead.std() / len(lead) ** 0.5, (oracle, right.double().mean())


def test_the_better_she_hears_the_more_she_infers(digits):
    (images, targets), (test, truth) = digits
    shares = [
        (inferred(trained(tap_of(snr_db, (1, 28, 28)), images, targets, "classes", 10), test).argmax(1) == truth)
        .double()
        .mean()
        for snr_db in (-20.0, -5.0, 20.0)
    ]
    assert shares == sorted(shares)
    assert shares[-1] > shares[0] + 0.3


def test_from_noise_it_infers_the_prior():
    generator = torch.Generator().manual_seed(0)
    prior = torch.tensor([0.7, 0.2, 0.1])
    images, truth = torch.rand(3000, *SHAPE, generator=generator), torch.multinomial(prior, 3000, True)
    attack = trained(tap_of(-60.0), images, truth, "classes", 3, steps=300)
    logits = inferred(attack, images)
    likelihood = -logits.log_softmax(1).gather(1, truth[:, None]).double()
    entropy, error = -(prior * prior.log()).sum(), likelihood.std() / 3000**0.5
    assert entropy - 4 * error < likelihood.mean() < entropy + 4 * error + 0.05  # 0.05: 300 steps of training
    share = (logits.argmax(1) == truth).double().mean()
    assert share < 0.7 + 4 * (0.7 * 0.3 / 3000) ** 0.5


def test_attributes_that_show_are_inferred_and_others_are_at_their_prior():
    generator = torch.Generator().manual_seed(0)
    shows, hidden = (torch.rand(2000, generator=generator) < p for p in (0.5, 0.8))
    images = (0.3 + 0.4 * shows.float())[:, None, None, None] + 0.2 * torch.rand(2000, *SHAPE, generator=generator)
    targets = torch.stack([shows, hidden], 1).float()
    attack = trained(tap_of(0.0), images[:1000], targets[:1000], "attributes", 2)
    logits = inferred(attack, images[1000:])
    right = ((logits > 0) == targets[1000:].bool()).double().mean(0)
    best = torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(0.4 * 8 / 2))  # 64 pixels, 0.4 apart, in noise of 1
    assert abs(right[0] - best) < 4 * (best * (1 - best) / 1000) ** 0.5
    assert right[1] < 0.8 + 4 * (0.16 / 1000) ** 0.5
    losses = attack(images[:8], targets[:8], torch.Generator().manual_seed(3))
    chances = attack.infer(attack.tap.intercept(images[:8], torch.Generator().manual_seed(3)), 0.0).double().sigmoid()
    by_hand = -torch.where(targets[:8].bool(), chances, 1 - chances).log().mean()
    assert losses["loss"].item() == pytest.approx(by_hand.item(), rel=1e-5)


@pytest.mark.parametrize(("kind", "outputs"), [("classes", 3), ("attributes", 5)])
def test_every_parameter_gets_gradient_and_results_repeat(kind, outputs):
    images = torch.rand(40, *SHAPE, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(40) % 3 if kind == "classes" else (images.flatten(1)[:, :5] > 0.5).float()
    first, again = (trained(tap_of(10.0), images, targets, kind, outputs, steps=3) for _ in range(2))
    assert fingerprint(first) == fingerprint(again)
    assert torch.equal(inferred(first, images), inferred(again, images))
    assert inferred(first, images).shape == (40, outputs)
    first.zero_grad()
    first.train()(images, targets, torch.Generator().manual_seed(0))["loss"].backward()
    for name, parameter in first.named_parameters():
        reached = parameter.grad.flatten(1).abs().sum(1) if parameter.ndim > 1 else parameter.grad
        assert (reached != 0).float().mean() > 0.9, name


def test_the_floor_of_classes_by_hand():
    delivered = torch.tensor([0, 0, 0, 1, 1])
    targets = torch.tensor([0, 0, 2, 1, 1])
    floor = delivered_floor(delivered, targets, torch.tensor([1, 0, 2]), 3)
    assert floor.dtype == torch.float32
    wanted = torch.tensor([[1 / 5, 3 / 5, 1 / 5], [3 / 6, 1 / 6, 2 / 6], [1 / 3, 1 / 3, 1 / 3]])  # 2: never seen
    assert torch.allclose(floor.exp(), wanted)


def test_the_floor_of_attributes_by_hand():
    delivered = torch.tensor([0, 0, 0, 1])
    targets = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    floor = delivered_floor(delivered, targets, torch.tensor([0, 1, 5]), 2)
    assert torch.allclose(floor.exp(), torch.tensor([[3 / 2, 1 / 4], [2.0, 2.0], [1.0, 1.0]]))


def test_delivered_attributes_tell_jointly():
    """Each of the two says nothing about their exclusive or, and both say all."""
    delivered = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]).repeat(25, 1)
    either = (delivered[:, 0] ^ delivered[:, 1])[:, None].float()
    floor = delivered_floor(delivered, either, torch.tensor([[1, 0], [1, 1]]), 1)
    assert torch.allclose(floor.exp(), torch.tensor([[26.0], [1 / 26]]))
    alone = delivered_floor(delivered[:, :1], either, torch.tensor([[0], [1]]), 1)
    assert torch.equal(alone, torch.zeros(2, 1))
    classes = delivered_floor(delivered, either[:, 0].long(), torch.tensor([[1, 0], [1, 1]]), 2)
    assert torch.allclose(classes.exp(), torch.tensor([[1 / 27, 26 / 27], [26 / 27, 1 / 27]]))


def test_a_table_of_more_than_ten_attributes_is_refused():
    ten = torch.ones(3, 10, dtype=torch.int64)
    assert delivered_floor(ten, torch.zeros(3, 1), ten[:1], 1).exp().item() == pytest.approx(1 / 4)
    eleven = torch.ones(3, 11, dtype=torch.int64)
    with pytest.raises(SemlinkError, match=r"11 attributes are delivered: .* 10 or fewer; choose") as caught:
        delivered_floor(eleven, torch.zeros(3, 1), eleven, 1)
    assert "\n" not in str(caught.value)
