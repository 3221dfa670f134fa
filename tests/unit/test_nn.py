# SPDX-License-Identifier: Apache-2.0
"""Blocks, coders and the schedules of optimisers."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from semlink._errors import SemlinkError
from semlink.nn import Backbone, Classifier, Encoder, ImageDecoder, Optimiser, Phase
from semlink.nn.blocks import Conv3x3, ConvBlock, Residual, Whitening
from semlink.nn.coders import padded_side
from semlink.nn.stacked import NETWORKS

SMALL = Backbone(16, 16)


def correlated_images(count, channels=3, side=12):
    """Smooth images whose colours share most of their variance, so that raw patches are far from white."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(count, channels, side + 2, side + 2, generator=generator)
    smooth = torch.nn.functional.avg_pool2d(noise, 3, stride=1)
    mixed = smooth + 2 * smooth.mean(dim=1, keepdim=True)
    return (0.4 + 0.3 * mixed).clamp(0, 1)


def patches_of(images, mean):
    """(N, C, H, W) -> (positions, 4 C) float64 by plain slicing, in the order channel, row, column."""
    x = (images - mean).double().numpy()
    h, w = x.shape[2:]
    corners = [x[:, :, i : h - 1 + i, j : w - 1 + j] for i in (0, 1) for j in (0, 1)]
    stacked = np.stack(corners, axis=2)  # N, C, 4, h - 1, w - 1
    return stacked.transpose(0, 3, 4, 1, 2).reshape(-1, 4 * x.shape[1])


@pytest.mark.parametrize("channels", [1, 3])
def test_whitened_patches_are_uncorrelated_and_of_unit_variance_but_for_the_floor(channels):
    images = correlated_images(600, channels)  # more than one part of the measurement
    whitening = Whitening(channels)
    whitening.measure(images)
    assert torch.allclose(whitening.mean.flatten(), images.mean(dim=(0, 2, 3)), atol=1e-6)

    raw = patches_of(images, whitening.mean)
    covariance = raw.T @ raw / len(raw)
    spread = np.abs(covariance - np.diag(np.diag(covariance))).max() / np.diag(covariance).max()
    assert spread > 0.3, "the test images are white already"
    values = np.linalg.eigvalsh(covariance)[::-1]

    out = whitening(images)
    assert out.shape == (600, 8 * channels, 12, 12)
    inner = out[:, : 4 * channels, :-1, :-1].permute(0, 2, 3, 1).reshape(-1, 4 * channels).double().numpy()
    whitened = inner.T @ inner / len(inner)
    expected = values / (values + 1e-3 * values.max())
    assert np.abs(whitened - np.diag(expected)).max() < 1e-4
    assert torch.equal(out[:, 4 * channels :], -out[:, : 4 * channels])


def test_whitening_measures_the_images_not_their_last_part():
    images = torch.cat([correlated_images(500), torch.zeros(3, 3, 12, 12)])
    one, other = Whitening(3), Whitening(3)
    one.measure(images)
    other.measure(images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))])
    products = [torch.einsum("iabc,idef->abcdef", w.weight[:12], w.weight[:12]) for w in (one, other)]
    assert torch.allclose(*products, rtol=1e-3, atol=1e-2)  # eigenvectors may change sign, their products may not


def test_whitening_is_no_parameter_and_passes_its_image_on_before_it_is_measured():
    whitening = Whitening(3)
    assert list(whitening.parameters()) == []
    assert set(whitening.state_dict()) == {"weight", "mean"}
    basis = whitening.weight[:12].flatten(1)
    assert torch.allclose(basis @ basis.T, torch.eye(12), atol=1e-5)


def test_whitening_pads_at_the_far_edges_with_the_mean():
    whitening = Whitening(1)
    whitening.weight.zero_()
    whitening.weight[0, 0] = torch.tensor([[1.0, 10.0], [100.0, 1000.0]])
    out = whitening(torch.tensor([[[[1.5, 2.5], [3.5, 4.5]]]]))[0, 0]
    assert out.tolist() == [[4321, 402], [43, 4]]


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (1, 4), (4, 4), (2, 7), (8, 8)])
def test_convolution_of_small_maps_is_that_of_the_library(kind, shape):
    generator = torch.Generator().manual_seed(0)
    x, slope = (torch.randn(6, channels, *shape, generator=generator) for channels in (5, 7))
    ours, theirs = Conv3x3(5, 7), nn.Conv2d(5, 7, 3, padding=1, bias=False)
    theirs.load_state_dict(ours.state_dict())
    found = []
    for layer in (ours, theirs):
        given = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=kind is torch.bfloat16):
            y = layer(given)
        assert y.dtype == kind
        y.backward(slope.to(kind))
        found.append((y.float(), given.grad, layer.weight.grad))
    for mine, reference in zip(*found, strict=True):
        assert mine.dtype == reference.dtype == torch.float32
        error = (mine - reference).norm() / reference.norm()
        assert error < (1e-6 if kind is torch.float32 else 0.01)  # sums of bfloat16, which has 8 bits


def test_conv_block_pools_before_the_norm_and_residual_adds():
    block = ConvBlock(3, 8, pool=True)
    assert block(torch.rand(2, 3, 6, 6)).shape == (2, 8, 3, 3)
    assert [type(layer) for layer in block] == [Conv3x3, nn.MaxPool2d, nn.BatchNorm2d, nn.GELU]
    residual, x = Residual(4).eval(), torch.rand(2, 4, 5, 5)
    assert torch.equal(residual(x), x + residual.block(x))
    assert not torch.allclose(residual(x), x)


@pytest.mark.parametrize(("side", "padded"), [(5, 8), (8, 8), (9, 16), (28, 32), (32, 32), (33, 64), (64, 64)])
def test_padded_side_is_the_next_power_of_two(side, padded):
    assert padded_side((1, side, side)) == padded


@pytest.mark.parametrize("shape", [(3, 32, 31), (1, 4, 4), (1, 1, 1)])
def test_sides_that_cannot_be_coded_are_refused_with_their_size(shape):
    with pytest.raises(SemlinkError, match=f"{shape[1]}x{shape[2]}"):
        Encoder(shape, 8, SMALL)
    with pytest.raises(SemlinkError, match=f"{shape[1]}x{shape[2]}"):
        ImageDecoder(16, shape, 16)


def test_stages_halve_towards_the_image_and_end_in_the_width():
    assert Backbone(256, 640).stages(32) == [48, 128, 256]
    assert Backbone(256, 640).stages(64) == [24, 64, 128, 256]
    assert Backbone(16, 16).stages(64) == [8, 8, 8, 16]


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64)])
def test_every_image_ends_in_a_4x4_map_and_comes_back_in_its_shape(shape):
    images = torch.rand(2, *shape)
    latent = Encoder(shape, 6, SMALL)(images)
    assert latent.shape == (2, 6, 4, 4)
    assert Classifier(6, 7, SMALL)(latent).shape == (2, 7)
    assert ImageDecoder(96, shape, 16)(latent.flatten(1)).shape == images.shape


def test_padding_and_cropping_keep_the_image_in_the_middle():
    encoder = Encoder((1, 28, 28), 4, SMALL).eval()
    image = torch.rand(1, 1, 28, 28)
    seen = {}
    encoder.whitening.register_forward_hook(lambda m, given, out: seen.update(image=given[0]))
    encoder(image)
    assert seen["image"].shape == (1, 1, 32, 32)
    assert torch.equal(seen["image"][..., 2:-2, 2:-2], image)
    assert seen["image"].sum() == pytest.approx(float(image.sum()), rel=1e-6)

    decoder = ImageDecoder(4, (1, 28, 28), 16).eval()
    decoder.draw.register_forward_hook(lambda m, given, out: seen.update(drawn=out))
    out = decoder(torch.randn(1, 4))
    assert torch.equal(out, seen["drawn"][..., 2:-2, 2:-2])


def test_logits_are_scaled_down():
    classifier = Classifier(4, 3, SMALL).eval()
    latent = torch.randn(5, 4, 4, 4)
    assert torch.allclose(8 * classifier(latent), classifier.layers(latent) @ classifier.logits.weight.T, atol=1e-6)


def test_decoder_reaches_black_and_white_exactly_once_clamped():
    """A sigmoid would come near and never arrive."""
    torch.manual_seed(0)
    decoder = ImageDecoder(8, (1, 8, 8), 16)
    codes = torch.randn(6, 8)
    targets = (torch.rand(6, 1, 8, 8) > 0.5).float()
    optimiser = torch.optim.Adam(decoder.parameters(), 0.01)
    for _ in range(250):
        loss = (decoder(codes) - targets).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    drawn = decoder(codes)
    assert loss < 0.01
    assert drawn.min() < 0
    assert drawn.max() > 1
    clamped = drawn.clamp(0, 1)
    assert (clamped == 0)[targets == 0].float().mean() > 0.2
    assert (clamped == 1)[targets == 1].float().mean() > 0.2


@pytest.mark.parametrize(("kind", "shape"), [("fully-connected", (1, 28, 28)), ("convolutional", (3, 32, 32))])
def test_a_decoder_of_several_users_ends_in_a_hyperbolic_tangent_moved_to_the_range_of_pixels(kind, shape):
    decoder = NETWORKS[kind][1](2, 8, shape)
    last = decoder.layer if kind == "fully-connected" else decoder.stages
    before = []
    last.register_forward_hook(lambda module, given, output: before.append(output))
    drawn = decoder(20 * torch.randn(50, 2, 8, generator=torch.Generator().manual_seed(0)))
    assert drawn.shape == (50, 2, *shape)
    torch.testing.assert_close(drawn.flatten(), before[0].tanh().flatten() / 2 + 0.5)


def test_untrained_decoder_starts_around_middle_grey():
    assert torch.equal(ImageDecoder(8, (3, 32, 32), 16).draw.bias, torch.full((3,), 0.5))


def test_triangle_rises_from_a_fifth_and_falls_to_nothing():
    plan = Optimiser("sgd", 0.5, schedule="triangle", warm_up=0.25)
    assert plan.rate_at(0) == pytest.approx(0.1)
    assert plan.rate_at(0.125) == pytest.approx(0.3)
    assert plan.rate_at(0.25) == pytest.approx(0.5)
    assert plan.rate_at(0.625) == pytest.approx(0.25)
    assert plan.rate_at(1) == pytest.approx(0)


def test_cosine_rises_from_nothing_and_falls_along_half_a_wave():
    plan = Optimiser("adamw", 2e-3, schedule="cosine", warm_up=0.1)
    assert plan.rate_at(0) == 0
    assert plan.rate_at(0.05) == pytest.approx(1e-3)
    assert plan.rate_at(0.1) == pytest.approx(2e-3)
    assert plan.rate_at(0.55) == pytest.approx(1e-3)
    assert plan.rate_at(0.325) == pytest.approx(2e-3 * (0.5 + 0.5 * math.sqrt(0.5)))
    assert plan.rate_at(1) == pytest.approx(0, abs=1e-12)


def test_constant_stays_and_no_warm_up_starts_at_the_peak():
    assert {Optimiser(learning_rate=0.3).rate_at(p) for p in (0, 0.1, 0.2, 1)} == {0.3}
    assert Optimiser(learning_rate=0.3, schedule="triangle", warm_up=0).rate_at(0) == pytest.approx(0.3)


@pytest.mark.parametrize("schedule", ["triangle", "cosine"])
def test_schedules_have_one_peak_at_the_end_of_the_warm_up(schedule):
    plan = Optimiser(learning_rate=1.0, schedule=schedule, warm_up=0.2)
    rates = [plan.rate_at(i / 1000) for i in range(1001)]
    assert max(range(1001), key=rates.__getitem__) == 200
    assert rates[:201] == sorted(rates[:201])
    assert rates[200:] == sorted(rates[200:], reverse=True)
    assert min(rates) >= 0


@pytest.mark.parametrize(
    ("kind", "torch_kind", "shrink"),
    [("sgd", torch.optim.SGD, 1 - 0.1 * 0.5 * 1.8), ("adamw", torch.optim.AdamW, 1 - 0.1 * 0.5)],
)
def test_decay_acts_on_weights_of_two_or_more_dimensions_only(kind, torch_kind, shrink):
    """One step on a gradient of zero: decay alone moves weights, Nesterov momentum counting it 1.8 times at once."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    built = Optimiser(kind, 0.1, weight_decay=0.5, betas=(0.8, 0.95)).build(list(model.parameters()))
    assert type(built) is torch_kind
    decay = {id(p): group["weight_decay"] for group in built.param_groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    for parameter in model.parameters():
        assert decay[id(parameter)] == (0.5 if parameter.ndim >= 2 else 0)
        parameter.grad = torch.zeros_like(parameter)
    before = [p.detach().clone() for p in model.parameters()]
    built.step()
    for old, new in zip(before, model.parameters(), strict=True):
        assert torch.allclose(new, old * (shrink if old.ndim >= 2 else 1.0))


def test_optimisers_are_what_their_names_say():
    weight = nn.Parameter(torch.ones(2, 2))
    sgd = Optimiser("sgd", 0.1, betas=(0.85, 0.9)).build([weight]).param_groups
    assert len(sgd) == 1, "an empty group is left out"
    assert (sgd[0]["momentum"], sgd[0]["nesterov"], sgd[0]["lr"]) == (0.85, True, 0.1)
    adam = Optimiser("adamw", 0.1, betas=(0.85, 0.9)).build([weight]).param_groups
    assert adam[0]["betas"] == (0.85, 0.9)
    assert Optimiser().build([nn.Parameter(torch.ones(2))]).param_groups[0]["weight_decay"] == 0


def test_a_phase_moves_what_its_module_has_unless_told():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    assert [id(p) for p in Phase("all", model, Optimiser()).parameters] == [id(model.weight)]
    assert Phase("one", model, Optimiser(), [model.bias]).parameters[0] is model.bias
