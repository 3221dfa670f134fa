# SPDX-License-Identifier: Apache-2.0
"""LPIPS against its formula, its shortcuts, and what it says without weights."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from semlink._errors import SemlinkError
from semlink.nn import perceptual
from semlink.nn.perceptual import Perceptual

NETS = ("vgg16", "alexnet")
TAPS = {"vgg16": (2, 7, 14, 21, 28), "alexnet": (0, 3, 6, 8, 10)}
POOLS = {"vgg16": (5, 10, 17, 24), "alexnet": (3, 6)}


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def weights_file(net: str) -> Path:
    return Path(os.environ["SEMLINK_DATA"]) / "weights" / f"lpips-{net}-fp16.safetensors"


@pytest.fixture(autouse=True)
def _weights_are_there(request: pytest.FixtureRequest):
    """A data folder need not hold the weights."""
    if request.node.get_closest_marker("real_data"):
        missing = "SEMLINK_DATA" not in os.environ or not all(weights_file(net).is_file() for net in NETS)
        if missing:
            pytest.skip("perceptual weights are not in SEMLINK_DATA")


def convolve(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray, stride: int, padding: int) -> np.ndarray:
    """(C, H, W) by windows and a sum, nothing else."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], axis=(1, 2))[:, ::stride, ::stride]
    return np.tensordot(kernel, windows, axes=((1, 2, 3), (0, 3, 4))) + bias[:, None, None]


def reference(net: str, x: np.ndarray, y: np.ndarray) -> list[float]:
    """The terms of LPIPS of one pair (3, H, W) in float64, tap by tap, from the published formula."""
    weights = {name: value.double().numpy() for name, value in load_file(weights_file(net)).items()}
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    a, b = ((2 * v - 1 - shift[:, None, None]) / scale[:, None, None] for v in (x, y))
    size, terms = (2 if net == "vgg16" else 3), []
    for number in range(TAPS[net][-1] + 1):
        if number in POOLS[net]:
            windows = [np.lib.stride_tricks.sliding_window_view(v, (size, size), axis=(1, 2)) for v in (a, b)]
            a, b = (w[:, ::2, ::2].max((3, 4)) for w in windows)
        if f"features.{number}.weight" in weights:
            kernel, bias = weights[f"features.{number}.weight"], weights[f"features.{number}.bias"]
            stride, padding = (4, 2) if kernel.shape[2] == 11 else (1, kernel.shape[2] // 2)
            a, b = (np.maximum(convolve(v, kernel, bias, stride, padding), 0) for v in (a, b))
        if number in TAPS[net]:
            unit = [v / (np.sqrt((v**2).sum(0)) + 1e-10) for v in (a, b)]
            head = weights[f"heads.{len(terms)}"]
            terms.append(float((head[:, None, None] * (unit[0] - unit[1]) ** 2).sum(0).mean()))
    return terms


@pytest.mark.real_data
@pytest.mark.parametrize(("net", "side"), [("vgg16", 28), ("vgg16", 32), ("alexnet", 32), ("alexnet", 64)])
def test_equals_the_published_formula(net: str, side: int):
    x, y = images(2, 3, side, side), images(2, 3, side, side, seed=1)
    y[1] = 0.9 * x[1] + 0.1 * y[1]
    terms = torch.tensor([reference(net, a, b) for a, b in zip(x.double().numpy(), y.double().numpy(), strict=True)])
    torch.testing.assert_close(Perceptual(net)(x, y), terms.sum(1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(Perceptual(net, taps=2)(x, y), terms[:, :2].sum(1), rtol=1e-4, atol=1e-6)


def test_compared_in_slices_as_the_formula_says_and_so_are_both_slopes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(perceptual, "_CACHED", 5 * 7)  # five positions at a time: the last slice is a short one
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(3, 7, 4, 3, generator=generator).relu().requires_grad_() for _ in range(2))
    with torch.no_grad():
        x[0, :, 1, 1] = y[1, :, 2, 0] = 0.0
    head, weights = torch.rand(7, generator=generator), torch.tensor([1.0, -2.0, 0.5])

    def formula(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        units = [v / (v.square().sum(1, keepdim=True).clamp_min(1e-40).sqrt() + 1e-10) for v in (a, b)]
        return ((units[0] - units[1]) ** 2 * head[:, None, None]).sum(1).mean((1, 2))

    results = []
    for distance in (lambda: perceptual._UnitDistance.apply(x, y, head), lambda: formula(x, y)):
        found = distance()
        results.append((found, *torch.autograd.grad((weights * found).sum(), (x, y))))
    silent = [
        (v == 0).all(1, keepdim=True) for v in (x, y)
    ]  # their slopes are as large as the tiny number lets them be
    for mine, other, hide in zip(*results, (None, *silent), strict=True):
        hidden = torch.zeros(()) if hide is None else hide
        torch.testing.assert_close(mine.where(hidden == 0, 0), other.where(hidden == 0, 0), rtol=1e-5, atol=1e-6)
        assert mine.isfinite().all()


@pytest.mark.real_data
@pytest.mark.parametrize("net", NETS)
def test_zero_for_identical_images_and_growing_with_noise(net: str):
    lpips, x = Perceptual(net), torch.nn.functional.interpolate(images(4, 3, 8, 8), 32, mode="bicubic").clamp(0, 1)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    assert lpips(x, x).tolist() == [0, 0, 0, 0]
    distances = torch.stack([lpips(x, (x + s * noise).clamp(0, 1)) for s in (0.01, 0.03, 0.1, 0.3)])
    assert (distances.diff(dim=0) > 0).all()


@pytest.mark.real_data
def test_gradient_reaches_the_image_and_nothing_can_be_trained():
    lpips = Perceptual("vgg16", taps=2).train()
    assert not lpips.training
    assert not list(lpips.parameters())
    assert not lpips.state_dict()
    assert not any(value.requires_grad for value in lpips.buffers())
    drawn, wanted = images(2, 3, 16, 16).requires_grad_(), images(2, 3, 16, 16, seed=1)
    with torch.no_grad():
        target = lpips.features(wanted)
    loss = lpips.distance(lpips.features(drawn), target).sum()
    torch.testing.assert_close(loss, lpips(drawn, wanted).sum())
    (gradient,) = torch.autograd.grad(loss, drawn)
    step, direction = 2e-2, gradient / gradient.norm()
    with torch.no_grad():
        difference = (lpips(drawn + step * direction, wanted) - lpips(drawn - step * direction, wanted)).sum() / (
            2 * step
        )
    assert difference.item() == pytest.approx(gradient.norm().item(), rel=0.05)


@pytest.mark.real_data
def test_only_the_layers_up_to_the_last_tap_are_loaded():
    sizes = [sum(value.numel() for value in Perceptual("vgg16", taps).buffers()) for taps in (1, 2, 5)]
    assert sizes[0] < sizes[1] < 300_000 < 14_000_000 < sizes[2]


@pytest.mark.real_data
def test_one_channel_is_three_equal_ones_and_batches_are_their_images():
    lpips = Perceptual("vgg16", taps=3)
    x, y = images(90, 1, 28, 28), images(90, 1, 28, 28, seed=1)  # more than one chunk
    grey = lpips(x, y)
    torch.testing.assert_close(grey[80:], lpips(x[80:].expand(-1, 3, -1, -1), y[80:].expand(-1, 3, -1, -1)))


@pytest.mark.real_data
def test_channels_last_and_autocast_change_little():
    lpips, x, y = Perceptual("vgg16"), images(2, 3, 32, 32), images(2, 3, 32, 32, seed=1)
    plain = lpips(x, y)
    moved = lpips.to(memory_format=torch.channels_last)
    torch.testing.assert_close(moved(x.to(memory_format=torch.channels_last), y), plain, rtol=1e-4, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = moved(x, y)
    assert coarse.dtype == torch.float32
    torch.testing.assert_close(coarse, plain, rtol=0.02, atol=1e-3)


@pytest.mark.real_data
def test_too_small_images_are_refused_at_the_very_size():
    for net, taps, side in (("vgg16", 5, 16), ("alexnet", 5, 31), ("alexnet", 2, 15)):
        lpips = Perceptual(net, taps)  # type: ignore[arg-type]
        assert lpips(images(1, 3, side, side), images(1, 3, side, side, seed=1)).isfinite().all()
        with pytest.raises(SemlinkError, match=f"{side - 1}x{side - 1} pixels are too small .* need {side}x{side}"):
            lpips.features(images(1, 3, side - 1, side - 1))


@pytest.mark.real_data
def test_other_mistakes_with_images_are_named():
    lpips = Perceptual("vgg16", taps=1)
    with pytest.raises(SemlinkError, match="4 channels"):
        lpips.features(images(1, 4, 32, 32))
    with pytest.raises(SemlinkError, match="shapes must agree"):
        lpips(images(1, 3, 32, 32), images(2, 3, 32, 32))


@pytest.mark.real_data
def test_a_truncated_file_or_another_network_s_is_named(tmp_path: Path):
    whole, short = weights_file("alexnet"), tmp_path / "short.safetensors"
    short.write_bytes(whole.read_bytes()[:-1000])
    with pytest.raises(SemlinkError, match=r"short.safetensors cannot be read .* perceptual = none"):
        Perceptual("alexnet", weights=short)
    with pytest.raises(SemlinkError, match=r"cannot be read .*features.2.weight.* VGG16"):
        Perceptual("vgg16", weights=whole)
    with pytest.raises(SemlinkError, match=r"features.0.weight has shape \(64, 3, 3, 3\), not \(64, 3, 11, 11\)"):
        Perceptual("alexnet", taps=1, weights=weights_file("vgg16"))
    other = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, other)
    with pytest.raises(SemlinkError, match=r"other.safetensors cannot be read"):
        Perceptual("vgg16", weights=other)


def test_without_weights_the_error_says_what_is_missing_and_how_to_do_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SEMLINK_DATA", str(tmp_path))
    with pytest.raises(
        SemlinkError, match=r"lpips-vgg16-fp16.safetensors not found; .*VGG16 .*perceptual = none"
    ) as info:
        Perceptual("vgg16")
    assert str(tmp_path) in str(info.value)
    assert "\n" not in str(info.value)
    monkeypatch.delenv("SEMLINK_DATA")
    with pytest.raises(
        SemlinkError, match=r"lpips-alexnet-fp16.safetensors .*SEMLINK_DATA.* not set.*perceptual = none"
    ):
        Perceptual("alexnet")


def test_unknown_names_and_numbers_of_taps_are_named():
    with pytest.raises(SemlinkError, match="did you mean 'vgg16'"):
        Perceptual("vgg19")  # type: ignore[arg-type]
    for taps in (0, 6):
        with pytest.raises(SemlinkError, match=f"taps is {taps}: a number from 1 to 5"):
            Perceptual("vgg16", taps)
