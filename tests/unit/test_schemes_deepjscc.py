# SPDX-License-Identifier: Apache-2.0
"""What every scheme of a single user must keep, and DeepJSCC itself."""

import pytest
import torch
import torch.nn.functional as F
from scheme_keys import SINGLE_USER

from semlink import phy, schemes
from semlink._errors import SemlinkError
from semlink.bench.cost import multiply_adds
from semlink.nn import Backbone, Optimiser
from semlink.schemes import Design, Key, Link, Task
from semlink.schemes.task import KINDS

SHAPES = [(1, 28, 28), (3, 32, 32), (3, 64, 64)]
SMALL = Backbone(16, 16)
every_scheme = pytest.mark.parametrize("key", SINGLE_USER)
GRAIN = {"deepjscc-lbvq": 16, "uis-tosc": 16}  # an index for each position of a 4x4 map
#: Whose energy is 1 image by image; that of the others is 1 on average over noise, messages or images.
NORMALISED = ["deepjscc", "deepjscc-encryption", "escs", "ibal", "layered", "vfe", "vl-vfe"]


def task_of(kind, shape):
    return Task(kind, shape, 0 if kind == "reconstruct" else 5)


def make(key, kind="classify", shape=(3, 32, 32), uses=16, **options):
    torch.manual_seed(0)
    scheme = schemes.schemes[key](Design(task_of(kind, shape), uses, SMALL), **options)
    if scheme.secret is not None:
        scheme.key = Key.for_test(0)
    return scheme


def batch_of(kind, shape, count=6):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, *shape, generator=generator)
    if kind == "classify":
        return images, torch.arange(count) % 5
    return images, torch.randint(0, 2, (count, 5), generator=generator).float()


def warmed(scheme):
    """Let BatchNorm see some images: with its initial statistics a code hardly depends on the image."""
    scheme.train()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _ in range(8):
            sent = scheme.transmit(torch.rand(16, *scheme.design.task.image_shape, generator=generator), generator)
            scheme.receive(awgn(sent.symbols, generator), sent.header)
    return scheme.eval()


def awgn(symbols, generator):
    return phy.AWGN()(symbols, 12.0, generator)


@every_scheme
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_parameter_gets_gradient_from_the_phase_that_owns_it_and_no_other(key, kind, shape):
    scheme = make(key, kind, shape)
    scheme.prepare(torch.rand(20, *shape))
    scheme.train()
    named = {id(p): name for name, p in scheme.named_parameters()}
    phases = scheme.phases(Optimiser(), awgn, 0.1)
    owned = [id(p) for phase in phases for p in phase.parameters]
    assert sorted(owned) == sorted(named), "a parameter has no phase, or two"

    for phase in phases:
        mine = {id(p) for p in phase.parameters}
        for parameter in scheme.parameters():
            parameter.grad = None
            parameter.requires_grad_(id(parameter) in mine)  # as the training loop holds the others still
        phase.module(*batch_of(kind, shape), torch.Generator().manual_seed(2))["loss"].backward()
        for parameter in scheme.parameters():
            name = named[id(parameter)]
            if id(parameter) not in mine:
                assert parameter.grad is None, f"{name} got gradient from {phase.name}"
                continue
            assert parameter.grad is not None, f"{name} is out of the graph of {phase.name}"
            assert torch.isfinite(parameter.grad).all(), name
            reached = parameter.grad.flatten(1).abs().sum(1) if parameter.ndim > 1 else parameter.grad
            assert (reached != 0).float().mean() > 0.9, f"{name}: units without gradient"


@pytest.mark.parametrize("key", NORMALISED)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_symbols_have_unit_mean_energy_per_image_whatever_the_batch_mates(key, kind, shape):
    scheme = warmed(make(key, kind, shape, uses=24))
    images = batch_of(kind, shape)[0]
    images[0] *= 1e-3
    images[1] = 0
    images[2] = 1
    with torch.no_grad():
        sent = scheme.transmit(images, torch.Generator().manual_seed(0))
    assert sent.symbols.dtype == torch.complex64
    assert sent.symbols.shape == (6, 24)
    assert sent.channel_uses == 24
    energy = torch.view_as_real(sent.symbols).double().square().sum(-1).mean(-1)
    assert (energy - 1).abs().max() < 1e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_the_code_of_an_image_is_its_own_in_evaluation(shape):
    scheme = warmed(make("deepjscc", shape=shape))
    images = batch_of("classify", shape)[0]
    with torch.no_grad():
        together = scheme.features(images)
        with_others = scheme.features(torch.cat([images[:1], torch.zeros(3, *shape)]))
    assert (together[0] - with_others[0]).abs().max() < 1e-5
    assert (together[0] - together[1]).abs().max() > 0.1
    assert torch.allclose(together.double().square().mean(1), torch.ones(6).double(), atol=1e-6)


def test_the_classifier_of_the_presets_has_the_size_of_the_papers_table():
    design = Design(Task("classify", (3, 32, 32), 10), 64, Backbone(256, 640))
    for kind in (schemes.DeepJSCC, schemes.DeepJSCCEncryption):
        scheme = kind(design)
        if scheme.secret is not None:
            scheme.key = Key.for_test(0)
        assert sum(p.numel() for p in scheme.parameters()) == pytest.approx(3.19e6, rel=0.02)
        counted = multiply_adds(Link(scheme, phy.AWGN(), 12.0))
        assert sum(counted.values()) == pytest.approx(0.085e9, rel=0.03)
        symbols = scheme.transmit(torch.rand(1, 3, 32, 32), torch.Generator()).symbols
        assert torch.view_as_real(symbols).numel() == 128


def test_multiply_adds_of_the_first_layers_by_hand():
    """Whitening: 8 C filters of 4 C weights at S^2 positions; then 3x3 convolutions."""
    scheme = make("deepjscc", shape=(1, 8, 8), uses=8)
    encoder = 8 * 4 * 64 + 12 * 8 * 9 * 64 + 12 * 12 * 9 * 16 + 1 * 12 * 16
    classifier = (16 * 1 * 9 + 16 * 16 * 9) * 16 + 16 * 16 * 9 * 4 + 16 * 5
    assert multiply_adds(Link(scheme, phy.AWGN(), 12.0)) == {"transmitter": encoder, "receiver": classifier}


@every_scheme
@pytest.mark.parametrize("uses", [0, -8, 1, 4, 7, 12, 63, 65])
def test_channel_uses_that_fill_no_latent_map_are_refused(key, uses):
    with pytest.raises(SemlinkError, match=rf"^{uses} channel uses: .*multiple of {GRAIN.get(key, 8)}") as caught:
        make(key, uses=uses)
    assert "\n" not in str(caught.value)


@every_scheme
@pytest.mark.parametrize("uses", [8, 16, 64, 128])
def test_channel_uses_asked_for_are_channel_uses_sent(key, uses):
    if uses % GRAIN.get(key, 8):
        with pytest.raises(SemlinkError, match=f"^{uses} channel uses: .*multiple of 16"):
            make(key, uses=uses)
        return
    scheme = make(key, "reconstruct", uses=uses).eval()
    sent = scheme.transmit(torch.rand(2, 3, 32, 32), torch.Generator().manual_seed(0))
    assert sent.symbols.shape[1] == sent.channel_uses == uses
    assert (sent.payload_bits is not None) == (key in ("deepjscc-aes", *GRAIN))
    received = awgn(sent.symbols, torch.Generator().manual_seed(0))
    assert scheme.receive(received, sent.header).shape == (2, 3, 32, 32)


def test_the_layout_of_stored_weights():
    """Trained links lie in files under these names: a change here orphans them."""

    def block(name, at=("0", "2")):
        convolution, norm = at
        statistics = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        return [f"{name}.{convolution}.weight", *(f"{name}.{norm}.{s}" for s in statistics)]

    encoder = ["encoder.whitening.weight", "encoder.whitening.mean"]
    for i in range(6):
        encoder += block(f"encoder.stages.{i}")
    encoder += ["encoder.stages.6.weight", "encoder.stages.6.bias"]
    classifier = [*block("decoder.layers.0"), *block("decoder.layers.1.block"), *block("decoder.layers.3")]
    expected = [*encoder, *classifier, "decoder.logits.weight"]
    for key in ("deepjscc", "deepjscc-encryption"):
        assert list(make(key).state_dict()) == expected


def test_preparing_measures_the_first_layer_and_nothing_else():
    scheme = make("deepjscc")
    before = {k: v.clone() for k, v in scheme.state_dict().items()}
    images = torch.rand(30, 3, 32, 32) * torch.tensor([1.0, 0.5, 0.1]).view(3, 1, 1)
    scheme.prepare(images)
    changed = {k for k, v in scheme.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"encoder.whitening.weight", "encoder.whitening.mean"}
    assert torch.allclose(scheme.encoder.whitening.mean.flatten(), images.mean((0, 2, 3)), atol=1e-6)


@every_scheme
def test_csi_is_used_fading_without_noise_changes_nothing(key):
    scheme = warmed(make(key))
    images, generator = torch.rand(8, 3, 32, 32), torch.Generator().manual_seed(4)
    with torch.no_grad():
        sent = scheme.transmit(images, generator)
        plain = scheme.receive(phy.AWGN()(sent.symbols, 120.0, generator), sent.header)
        for block in ("image", "symbol"):
            faded = phy.Rayleigh(block)(sent.symbols, 120.0, generator)
            assert (faded.symbols - sent.symbols).abs().mean() > 0.3
            assert torch.allclose(scheme.receive(faded, sent.header), plain, atol=1e-3)


@every_scheme
def test_the_answer_depends_on_what_arrives_and_only_on_that(key):
    scheme = warmed(make(key))
    link = Link(scheme, phy.AWGN(), 12.0)
    sent = link.transmit(torch.rand(4, 3, 32, 32))
    one = link.channel(sent.symbols, generator=torch.Generator().manual_seed(1))
    other = link.channel(sent.symbols, generator=torch.Generator().manual_seed(2))
    assert torch.equal(link.receive(one, sent.header), link.receive(one, sent.header))
    assert not torch.equal(link.receive(one, sent.header), link.receive(other, sent.header))


def test_a_link_runs_in_evaluation_without_gradient_at_its_design_snr():
    scheme = make("deepjscc")
    assert scheme.training
    link = Link(scheme, phy.AWGN(), 7.0)
    assert not scheme.training
    sent = link.transmit(torch.rand(3, 3, 32, 32))
    received = link.channel(sent.symbols)
    assert received.noise_variance.flatten().tolist() == pytest.approx([10**-0.7] * 3)
    assert link.channel(sent.symbols, torch.tensor([0.0, 10.0, 20.0])).noise_variance.flatten().tolist() == (
        pytest.approx([1, 0.1, 0.01])
    )
    output = link.receive(received)
    assert output.shape == (3, 5)
    assert not output.requires_grad
    assert not sent.symbols.requires_grad


def test_received_images_lie_in_0_1_and_may_leave_it_while_training():
    link = Link(warmed(make("deepjscc", "reconstruct")), phy.AWGN(), 12.0)
    torch.nn.init.normal_(link.scheme.decoder.draw.weight, std=1.0)
    received = link.channel(link.transmit(torch.rand(3, 3, 32, 32)).symbols)
    raw, shown = link.scheme.receive(received), link.receive(received)
    assert raw.min() < 0
    assert raw.max() > 1
    assert torch.equal(shown, raw.clamp(0, 1))
    assert (shown.min(), shown.max()) == (0, 1)


def test_a_generator_repeats_the_noise_and_none_never_does():
    link = Link(make("deepjscc"), phy.AWGN(), 5.0)
    symbols = link.transmit(torch.ones(2, 3, 32, 32)).symbols

    def heard(generator=None):
        return link.channel(symbols, generator=generator).symbols

    assert torch.equal(heard(torch.Generator().manual_seed(3)), heard(torch.Generator().manual_seed(3)))
    assert not torch.equal(heard(), heard())
    other = Link(make("deepjscc"), phy.AWGN(), 5.0)
    assert not torch.equal(other.channel(symbols).symbols, heard())


def test_a_few_steps_learn_two_classes_through_the_channel():
    scheme = make("deepjscc", shape=(1, 8, 8), uses=8)
    (phase,) = scheme.phases(Optimiser(), awgn, 0.0)
    generator = torch.Generator().manual_seed(0)
    optimiser = phase.optimiser.build(phase.parameters)
    for _ in range(40):
        targets = torch.randint(0, 2, (64,), generator=generator)
        images = 0.3 * torch.rand(64, 1, 8, 8, generator=generator)
        images[targets == 1, :, :4] += 0.5
        loss = phase.module(images, targets, generator)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    link = Link(scheme, phy.AWGN(), 12.0)
    sent = link.transmit(images)
    answers = link.receive(link.channel(sent.symbols, generator=generator)).argmax(1)
    assert (answers == targets).float().mean() > 0.95


def test_the_default_phase_is_the_task_loss_through_the_channel():
    scheme = warmed(make("deepjscc"))
    torch.nn.init.normal_(scheme.decoder.logits.weight, std=10.0)  # sure of itself: smoothing costs it much
    images, labels = batch_of("classify", (3, 32, 32))
    losses = []
    for smoothing in (0.0, 0.3):
        (phase,) = scheme.phases(Optimiser(), awgn, smoothing)
        losses.append(float(phase.module(images, labels, torch.Generator().manual_seed(7))["loss"].detach()))
        received = awgn(scheme.transmit(images, torch.Generator()).symbols, torch.Generator().manual_seed(7))
        expected = F.cross_entropy(scheme.receive(received), labels, label_smoothing=smoothing)
        assert losses[-1] == pytest.approx(float(expected.detach()), rel=1e-6)
    assert abs(losses[0] - losses[1]) > 0.01


def test_task_losses_by_hand():
    images = torch.rand(2, 1, 4, 4)
    logits, labels = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]]), torch.tensor([0, 1])
    logs = logits.double() - logits.double().exp().sum(1, keepdim=True).log()
    soft = torch.full((2, 3), 0.3 / 3).double() + 0.7 * F.one_hot(labels, 3)
    loss = Task("classify", (1, 4, 4), 3).loss(logits, images, labels, 0.3)
    assert float(loss) == pytest.approx(float(-(soft * logs).sum(1).mean()), rel=1e-6)

    attributes = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    right = torch.sigmoid(logits.double() * (2 * attributes - 1))
    loss = Task("attributes", (1, 4, 4), 3).loss(logits, images, attributes, 0.3)
    assert float(loss) == pytest.approx(float(-right.log().mean()), rel=1e-6)

    loss = Task("reconstruct", (1, 4, 4), 0).loss(images + 0.25, images, labels, 0.3)
    assert float(loss) == pytest.approx(0.0625, rel=1e-5)


def test_tasks_follow_the_targets_of_the_data():
    assert Task.create(None, (1, 8, 8), "classes", 10) == Task("classify", (1, 8, 8), 10)
    assert Task.create(None, (1, 8, 8), "attributes", 40) == Task("attributes", (1, 8, 8), 40)
    for natural in ("classes", "attributes"):
        assert Task.create("reconstruct", (1, 8, 8), natural, 40) == Task("reconstruct", (1, 8, 8), 0)
    with pytest.raises(SemlinkError, match=r"'attributes'.*'classify' or 'reconstruct'"):
        Task.create("attributes", (1, 8, 8), "classes", 10)
    with pytest.raises(SemlinkError, match="did you mean 'reconstruct'"):
        Task.create("reconstuct", (1, 8, 8), "classes", 10)


def test_unknown_schemes_and_taken_keys_are_refused():
    with pytest.raises(SemlinkError, match="unknown scheme 'deepjsc'; did you mean 'deepjscc'"):
        schemes.schemes["deepjsc"]
    with pytest.raises(SemlinkError, match="registered already"):
        schemes.schemes.register("deepjscc")(schemes.DeepJSCC)
    assert {"deepjscc", "deepjscc-encryption"} <= set(schemes.keys())
