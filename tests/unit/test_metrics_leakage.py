# SPDX-License-Identifier: Apache-2.0
"""MI leakage: closed forms, the null, and the vectorised estimator against a slow one."""

import math

import pytest
import torch

from semlink._errors import SemlinkError
from semlink.metrics import MI_VARIANTS, bootstrap_interval, mi_leakage, mi_null


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth(count: int, channels: int = 3, side: int = 16, seed: int = 0) -> torch.Tensor:
    """Smooth random images in [0, 1], unrelated to each other."""
    coarse = torch.rand(count, channels, 4, 4, generator=seeded(seed))
    return torch.nn.functional.interpolate(coarse, side, mode="bilinear")


def plug_in_bits(labels: list[int]) -> tuple[float, int]:
    counts = [labels.count(value) for value in set(labels)]
    return -sum(c / len(labels) * math.log2(c / len(labels)) for c in counts), len(counts)


def slow_semlink32(x: torch.Tensor, y: torch.Tensor) -> float:
    """One pair, (C, H, W), channel by channel, from the definition."""
    total = 0.0
    for a, b in zip(x, y, strict=True):
        u = [int(v) // 8 for v in (255 * a).round().flatten().tolist()]
        v = [int(v) // 8 for v in (255 * b).round().flatten().tolist()]
        corrected = [bits + (k - 1) / (2 * len(u) * math.log(2)) for bits, k in map(plug_in_bits, (u, v))]
        bits, k = plug_in_bits([32 * p + q for p, q in zip(u, v, strict=True)])
        total += sum(corrected) - bits - (k - 1) / (2 * len(u) * math.log(2))
    return total / len(x)


def test_vectorised_estimate_equals_the_slow_loop():
    x = smooth(7)
    y = (x + 0.1 * torch.randn(x.shape, generator=seeded(1))).clamp(0, 1)
    slow = torch.tensor([slow_semlink32(a, b) for a, b in zip(x, y, strict=True)])
    torch.testing.assert_close(mi_leakage(x, y), slow, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", MI_VARIANTS)
def test_a_batch_equals_its_images_one_by_one(variant: str):
    x = smooth(70)  # more than one chunk of the 256-bin variants
    y = (x + 0.1 * torch.randn(x.shape, generator=seeded(1))).clamp(0, 1)
    alone = torch.cat([mi_leakage(a[None], b[None], variant) for a, b in zip(x, y, strict=True)])
    assert torch.equal(mi_leakage(x, y, variant), alone)


def test_identical_images_give_corrected_entropy_of_their_histogram():
    x = smooth(4, channels=1)
    expected = []
    for image in x:
        bits, k = plug_in_bits([int(v) // 8 for v in (255 * image).round().flatten().tolist()])
        expected.append(bits + (k - 1) / (2 * image.numel() * math.log(2)))
    torch.testing.assert_close(mi_leakage(x, x), torch.tensor(expected), rtol=1e-5, atol=0)


def test_all_grey_levels_equally_often_give_whole_bits():
    x = (torch.arange(256).float() / 255).view(1, 1, 16, 16)
    correction = 31 / (2 * 256 * math.log(2))
    assert mi_leakage(x, x).item() == pytest.approx(5 + correction, abs=1e-5)
    assert mi_leakage(x, x, "matlab256-bits").item() == pytest.approx(8, abs=1e-5)
    assert mi_leakage(x, x, "sk256-nats").item() == pytest.approx(8 * math.log(2), abs=1e-5)
    assert mi_leakage(x, x, "skimage-nmi").item() == pytest.approx(2, abs=1e-6)
    assert mi_leakage(x, 1 - x).item() == pytest.approx(5 + correction, abs=1e-5)  # a negative tells as much


@pytest.mark.parametrize("variant", MI_VARIANTS)
def test_a_flat_reconstruction_tells_nothing(variant: str):
    x = smooth(2)
    nothing = 1.0 if variant == "skimage-nmi" else 0.0
    torch.testing.assert_close(mi_leakage(x, torch.full_like(x, 0.3), variant), torch.full((2,), nothing))
    flat = torch.full_like(x, 0.6)
    torch.testing.assert_close(mi_leakage(flat, flat, variant), torch.full((2,), nothing))


def test_luminance_is_the_weighted_sum_and_one_channel_is_its_own():
    x, y = smooth(3), smooth(3, seed=1)
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    grey_x, grey_y = ((weights * v).sum(1, keepdim=True) for v in (x, y))
    torch.testing.assert_close(mi_leakage(x, y, "semlink32-luminance"), mi_leakage(grey_x, grey_y))
    one = x[:, :1]
    assert torch.equal(mi_leakage(one, y[:, :1], "semlink32-luminance"), mi_leakage(one, y[:, :1]))


def test_gaussian_pairs_reach_their_mutual_information():
    # 32 bins of width 0.27 standard deviations lose about 1 %; 256x256 pixels leave a standard error below 0.01 bit.
    for rho in (0.0, 0.6, 0.9):
        a, b = torch.randn(2, 4, 1, 256, 256, generator=seeded())
        b = rho * a + math.sqrt(1 - rho**2) * b
        x, y = (0.5 + v / 8.5 for v in (a, b))
        measured = mi_leakage(x.clamp(0, 1), y.clamp(0, 1))
        exact = -0.5 * math.log2(1 - rho**2)
        assert (measured - exact).abs().max().item() < 0.01 + 0.03 * exact


def test_correction_removes_the_bias_of_independent_pixels():
    x, y = torch.rand(2, 50, 1, 128, 128, generator=seeded())
    corrected = mi_leakage(x, y)
    plug_in_bias = 31 * 31 / (2 * 128**2 * math.log(2))  # 0.042 bits to first order
    assert abs(corrected.mean().item()) < 0.1 * plug_in_bias
    # On 32x32 there is one pixel a cell and no formula helps; the null does, whatever the remaining bias is.
    x, y = torch.rand(2, 200, 1, 32, 32, generator=seeded())
    raw = mi_leakage(x, y)
    assert raw.mean().item() > 0.3
    excess = raw - mi_null(x, y, seeded(1))
    assert abs(excess.mean().item()) < 5 * excess.std().item() / math.sqrt(200)


def test_unrelated_images_leak_nothing_after_the_null_is_subtracted():
    x, y = smooth(300), smooth(300, seed=1)
    raw = mi_leakage(x, y)
    assert raw.mean().item() > 0.1  # smooth images agree by chance; without the null this would be called leakage
    excess = raw - mi_null(x, y, seeded(2), shuffles=4)
    assert abs(excess.mean().item()) < 5 * excess.std().item() / math.sqrt(300)
    leakage = bootstrap_interval(excess, generator=seeded(3))
    assert leakage.low < 0 < leakage.high


def test_better_reconstructions_leak_more():
    x = smooth(100)
    noise = torch.randn(x.shape, generator=seeded(1))
    means = [mi_leakage(x, (x + s * noise).clamp(0, 1)).mean().item() for s in (0.3, 0.1, 0.03, 0.0)]
    assert means == sorted(means)
    assert means[0] + 0.5 < means[-1]


def test_null_never_pairs_an_image_with_its_own():
    # Image i is flat but for i pixels, and carries its number in its histogram: only its own would be identical.
    for seed in range(20):
        x = torch.eye(5).view(5, 1, 1, 5)
        null = mi_null(x, x, seeded(seed), "matlab256-bits")
        assert null.max().item() < mi_leakage(x, x, "matlab256-bits").min().item() - 0.1


def test_null_depends_on_the_generator_alone():
    x, y = smooth(20), smooth(20, seed=1)
    assert torch.equal(mi_null(x, y, seeded(5)), mi_null(x, y, seeded(5)))
    assert not torch.equal(mi_null(x, y, seeded(5)), mi_null(x, y, seeded(6)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("variant", MI_VARIANTS)
def test_a_graphics_processor_finds_the_same(variant: str):
    x, y = smooth(50), smooth(50, seed=1)
    null = mi_null(x, y, seeded(5), variant, shuffles=2)
    torch.testing.assert_close(mi_leakage(x.cuda(), y.cuda(), variant).cpu(), mi_leakage(x, y, variant))
    torch.testing.assert_close(mi_null(x.cuda(), y.cuda(), seeded(5), variant, shuffles=2).cpu(), null)


def test_mistakes_are_named():
    x = smooth(2)
    with pytest.raises(SemlinkError, match="did you mean 'semlink32'"):
        mi_leakage(x, x, "semlink23")
    with pytest.raises(SemlinkError, match=r"reach from -1 to 1: values in \[0, 1\]"):
        mi_leakage(torch.linspace(-1, 1, 16).view(1, 1, 4, 4), x[:1, :1, :4, :4])
    with pytest.raises(SemlinkError, match="nan"):
        mi_leakage(torch.full_like(x, math.nan), x)
    with pytest.raises(SemlinkError, match="at least 2 images"):
        mi_null(x[:1], x[:1], seeded())
    with pytest.raises(SemlinkError, match="shapes must agree"):
        mi_leakage(x, x[:1])
    with pytest.raises(SemlinkError, match="2 channels have no luminance"):
        mi_leakage(x[:, :2], x[:, :2], "semlink32-luminance")
