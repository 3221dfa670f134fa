# SPDX-License-Identifier: Apache-2.0
"""What an attacker draws who has intercepted nothing: the floor under every inversion."""

import torch
from torch import Tensor

from semlink.data import ImageSet


def mean_image(known: ImageSet) -> Tensor:
    """Return the pixel-wise mean of ``known``: (C, H, W) float32. Of all constant guesses it has the least MSE."""
    return known.images.float().mean(dim=0) / 255


def class_means(known: ImageSet, classes: int) -> Tensor:
    """Return the mean image of each class: (classes, C, H, W); a class without images gets the overall mean."""
    means = mean_image(known).repeat(classes, 1, 1, 1)
    for label in torch.unique(known.targets).tolist():
        means[label] = known.images[known.targets == label].float().mean(dim=0) / 255
    return means
