# SPDX-License-Identifier: Apache-2.0
"""Fisher information leakage: closed forms, exact Jacobians, and encoders to which it does not apply.

Statistical comparisons have fixed seeds and allow four standard errors, where nothing else is said.
"""

import math

import pytest
import torch
from torch import nn

import semlink
from semlink._errors import SemlinkError
from semlink.metrics import NotDifferentiable, fisher_leakage, unbiased_mse_bound


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_images(count: int = 5) -> torch.Tensor:
    return torch.rand(count, 3, 4, 4, generator=seeded(9), dtype=torch.float64)


def linear(features: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(features, 48, generator=seeded(seed), dtype=torch.float64)


def test_orthogonal_rows_need_no_luck():
    """W W^T is diagonal, so every probe of signs finds the trace: 12 rows of length 3 in 48 pixels."""
    w = 3 * torch.linalg.qr(linear(12).T)[0].T
    found = fisher_leakage(lambda x: x.flatten(1) @ w.T, some_images(), 0.25, seeded())
    torch.testing.assert_close(found.dfil, torch.full((5,), 12 * 9 / (0.25 * 48), dtype=torch.float64))
    assert found.error.max() < 1e-9


@pytest.mark.parametrize("probes", [4, 64])
def test_linear_encoders_have_the_norm_of_their_matrix(probes):
    w = linear(20)
    found = fisher_leakage(lambda x: x.flatten(1) @ w.T, some_images(200), 0.5, seeded(), probes)
    truth = float(w.square().sum()) / (0.5 * 48)
    off = (found.dfil - truth) / found.dfil.std()
    assert abs(float(off.mean())) < 4 / math.sqrt(200)
    gram = w @ w.T
    spread = math.sqrt(2 * float((gram - gram.diag().diag()).square().sum())) / (0.5 * 48)  # of one probe
    assert float(found.error.square().mean().sqrt()) == pytest.approx(spread / math.sqrt(probes), rel=0.2)
    assert float(found.dfil.std()) == pytest.approx(spread / math.sqrt(probes), rel=0.25)  # five of 200 images' errors


def test_half_of_complex_noise_is_on_each_rail():
    w = torch.linalg.qr(linear(12).T)[0].T

    def rails(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ w.T

    paired = fisher_leakage(lambda x: torch.view_as_complex(rails(x).view(-1, 6, 2)), some_images(), 0.2, seeded())
    torch.testing.assert_close(paired.dfil, fisher_leakage(rails, some_images(), 0.1, seeded()).dfil)
    torch.testing.assert_close(paired.dfil, torch.full((5,), 12 / (0.1 * 48), dtype=torch.float64))


def small_network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 10), nn.Tanh()]
    return nn.Sequential(*layers).double().eval()


def test_a_network_has_the_trace_of_its_exact_jacobian():
    network, images = small_network(), some_images(6)
    jacobian = torch.func.vmap(torch.func.jacrev(network))(images.unsqueeze(1)).reshape(6, 10, 48)
    truth = jacobian.square().sum((1, 2)) / (0.01 * 48)
    found = fisher_leakage(network, images, 0.01, seeded(), probes=400)
    assert ((found.dfil - truth).abs() < 4 * found.error).all()
    assert (found.error < 0.1 * truth).all()
    assert truth.max() > 1.2 * truth.min(), "images differ, so a mean over them would show"
    assert found.dfil.shape == found.error.shape == (6,)
    assert all(p.grad is None for p in network.parameters())


def test_the_number_of_images_does_not_matter():
    network, images = small_network(), some_images(6)
    whole = fisher_leakage(network, images, 0.1, seeded(), probes=300)
    for i in (0, 5):
        alone = fisher_leakage(network, images[i : i + 1], 0.1, seeded(7), probes=300)
        assert abs(whole.dfil[i] - alone.dfil[0]) < 4 * math.hypot(whole.error[i], alone.error[0])


def test_probes_are_drawn_from_the_generator():
    network, images = small_network(), some_images()
    first, again = (fisher_leakage(network, images, 1.0, seeded(3)) for _ in range(2))
    assert torch.equal(first.dfil, again.dfil)
    assert not torch.equal(first.dfil, fisher_leakage(network, images, 1.0, seeded(4)).dfil)


def test_it_works_where_gradients_are_off():
    network, images = small_network(), some_images()
    with torch.no_grad():
        found = fisher_leakage(network, images, 1.0, seeded(3))
    assert torch.equal(found.dfil, fisher_leakage(network, images, 1.0, seeded(3)).dfil)
    assert not found.dfil.requires_grad
    assert not images.requires_grad


def test_the_best_unbiased_estimate_meets_the_bound_and_others_stay_above():
    variance, images = 0.04, torch.rand(400, 48, generator=seeded(), dtype=torch.float64)
    turned = 2 * torch.linalg.qr(linear(48))[0]
    for w, tight in [(turned, True), (linear(48) + 8 * torch.eye(48), False)]:
        noise = math.sqrt(variance) * torch.randn(400, 48, generator=seeded(1), dtype=torch.float64)
        estimate = torch.linalg.solve(w, (images @ w.T + noise).T).T
        errors = (estimate - images).square().mean(1)
        bound = unbiased_mse_bound(fisher_leakage(lambda x, w=w: x @ w.T, images[:1], variance, seeded(), 400).dfil)
        near = 4 * float(errors.std()) / math.sqrt(400)
        assert float(bound) < float(errors.mean()) + near
        assert (abs(float(bound) - float(errors.mean())) < near) == tight
    assert float(unbiased_mse_bound(torch.tensor([100.0]))) == pytest.approx(0.01)
    assert unbiased_mse_bound(torch.tensor([0.0, 2.0])).tolist() == [math.inf, 0.5]


class StraightThrough(torch.autograd.Function):
    """Rounds to multiples of 1/8 and passes the gradient on."""

    @staticmethod
    def forward(ctx, x):
        return (8 * x).round() / 8

    @staticmethod
    def backward(ctx, *gradients):
        return gradients[0]


def noisy(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1) + 0.1 * torch.randn(x.shape[0], 48, dtype=x.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "encoder",
    [
        lambda x: StraightThrough.apply(small_network().to(x.dtype)(x)),
        lambda x: (lambda z: z + (z.round() - z).detach())(3 * x.flatten(1)),
        lambda x: (8 * x.flatten(1)).round(),
        lambda x: (256 * x.flatten(1)).round(),
        lambda x: (x.flatten(1) > 0.5).long(),
        lambda x: x.flatten(1).detach(),
        lambda x: x.flatten(1) + (2 * x.flatten(1)).detach(),
        lambda x: torch.from_numpy(x.detach().numpy()).flatten(1),
        lambda x: 0 * x.flatten(1),
        noisy,
    ],
    ids=["ste", "ste-by-detach", "coarse", "fine", "index", "detached", "in-part", "numpy", "constant", "noisy"],
)
def test_it_does_not_apply_to_what_has_no_derivative(encoder, dtype):
    torch.manual_seed(0)
    with pytest.raises(NotDifferentiable, match=r"no dFIL: .* upper bounds in bits in its place") as caught:
        fisher_leakage(encoder, some_images(8).to(dtype), 0.1, seeded())
    assert isinstance(caught.value, SemlinkError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_applies_to_networks_in_either_precision(dtype, seed):
    found = fisher_leakage(small_network().to(dtype), some_images().to(dtype), 0.1, seeded(seed))
    assert (found.dfil > 0).all()
    assert found.dfil.dtype == torch.float64


def test_links():
    images = torch.rand(2, 3, 32, 32, generator=seeded())

    def leakage(key: str):
        scheme = semlink.create(key, data="cifar10", channel="awgn", snr_db=12).scheme
        return fisher_leakage(lambda x: scheme.transmit(x, seeded(5)).symbols, images, 10**-1.2, seeded(), probes=4)

    assert (leakage("deepjscc").dfil > 0).all()
    with pytest.raises(NotDifferentiable):
        leakage("deepjscc-lbvq")


def test_nonsense_is_refused_in_one_line():
    network, images = small_network(), some_images()
    for call, said in [
        (lambda: fisher_leakage(network, images, 0.0, seeded()), "noise_variance is 0.0"),
        (lambda: fisher_leakage(network, images, math.nan, seeded()), "noise_variance is nan"),
        (lambda: fisher_leakage(network, images, 1.0, seeded(), probes=1), "probes is 1: .* at least 2"),
        (lambda: fisher_leakage(small_network().train(), images, 1.0, seeded()), "training mode"),
        (lambda: fisher_leakage(lambda x: x.sum(), images, 1.0, seeded()), "a row for each image"),
        (lambda: fisher_leakage(lambda x: x.flatten(1)[:2], images, 1.0, seeded()), "a row for each image"),
        (lambda: fisher_leakage(lambda x: (x, x), images, 1.0, seeded()), "must return a tensor"),
        (lambda: unbiased_mse_bound(torch.tensor([1.0, -0.5])), "dFIL from -0.5"),
        (lambda: unbiased_mse_bound(torch.tensor([math.nan])), "dFIL from nan"),
    ]:
        with pytest.raises(SemlinkError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)
