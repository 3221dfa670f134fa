# SPDX-License-Identifier: Apache-2.0
"""The named legacy estimators against the code they stand for."""

import math
import warnings

import numpy as np
import pytest
import torch
from skimage import data as pictures
from skimage.metrics import normalized_mutual_information
from sklearn.metrics import mutual_info_score

from semlink.metrics import mi_leakage


def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """Photograph tiles and noisy, blurred and dark copies, with few and many grey levels, (n, 3, 32, 32)."""
    g = torch.Generator().manual_seed(0)
    photo = torch.from_numpy(pictures.astronaut()).permute(2, 0, 1).float() / 255
    tiles = photo.unfold(1, 32, 64).unfold(2, 32, 64).permute(1, 2, 0, 3, 4).reshape(-1, 3, 32, 32)[:10]
    noisy = (tiles + 0.05 * torch.randn(tiles.shape, generator=g)).clamp(0, 1)
    blurred = torch.nn.functional.avg_pool2d(tiles, 7, 1, 3)
    coarse = (5 * tiles).round() / 5
    narrow = (40 + 100 * torch.rand(tiles.shape, generator=g)).round() / 255  # grey levels on the edges of the bins
    return torch.cat([tiles] * 5), torch.cat([noisy, blurred, coarse, 0.4 * tiles, narrow])


def bytes_of(image: torch.Tensor) -> np.ndarray:
    return np.rint(255 * image.numpy()).astype(np.uint8).ravel()


def joint_histogram_nats(x: np.ndarray, y: np.ndarray, **options: object) -> float:
    joint, _, _ = np.histogram2d(x.astype(float), y.astype(float), **options)
    p = joint / joint.sum()
    outer = p.sum(1, keepdims=True) * p.sum(0, keepdims=True)
    return float((p[p > 0] * np.log(p[p > 0] / outer[p > 0])).sum())


def test_brett20_is_numpy_histogram2d_over_the_range_of_the_data():
    x, y = pairs()
    expected = [joint_histogram_nats(bytes_of(a), bytes_of(b), bins=20) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(mi_leakage(x, y, "brett20-nats"), expected, rtol=1e-5)


def test_sk256_is_scikit_learn_and_matlab256_is_it_in_bits():
    x, y = pairs()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that 256 labels look continuous
        expected = [mutual_info_score(bytes_of(a), bytes_of(b)) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(mi_leakage(x, y, "sk256-nats"), expected, rtol=1e-5)
    np.testing.assert_allclose(mi_leakage(x, y, "matlab256-bits"), np.array(expected) / math.log(2), rtol=1e-5)


def test_skimage_nmi_is_scikit_image():
    x, y = pairs()
    expected = [
        normalized_mutual_information(bytes_of(a).astype(float), bytes_of(b).astype(float))
        for a, b in zip(x, y, strict=True)
    ]
    np.testing.assert_allclose(mi_leakage(x, y, "skimage-nmi"), expected, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_semlink32_is_histogram2d_over_0_to_255_with_the_correction(channels: int):
    x, y = (v[:, :channels] for v in pairs())
    expected = []
    for a, b in zip(x, y, strict=True):
        values = []
        for u, v in zip(a, b, strict=True):
            options = {"bins": 32, "range": [[0, 255], [0, 255]]}
            joint, _, _ = np.histogram2d(bytes_of(u).astype(float), bytes_of(v).astype(float), **options)
            used = (joint.sum(1) > 0).sum() + (joint.sum(0) > 0).sum() - (joint > 0).sum() - 1
            values.append(joint_histogram_nats(bytes_of(u), bytes_of(v), **options) + used / (2 * u.numel()))
        expected.append(np.mean(values) / math.log(2))
    np.testing.assert_allclose(mi_leakage(x, y), expected, rtol=1e-5, atol=1e-6)
