# SPDX-License-Identifier: Apache-2.0
"""Numbers about images, labels and leakage: one value per image, and intervals over images or training seeds.

Every quality or leakage metric takes ``(B, C, H, W)`` images in [0, 1] and returns ``(B,)``; averaging is left to
:mod:`semlink.metrics.statistics`, which averages the noise draws of one image before it counts images.
"""

from semlink.metrics.answers import correct, correct_attributes
from semlink.metrics.leakage import MI_VARIANTS, mi_leakage, mi_null
from semlink.metrics.quality import SSIM_VARIANTS, mse, psnr_db, ssim
from semlink.metrics.ranking import auc, average_precision
from semlink.metrics.statistics import (
    Interval,
    bootstrap_interval,
    holm,
    mean_interval,
    paired_difference,
    seed_difference,
    seed_interval,
    unpaired_difference,
)
from semlink.metrics.utility import (
    accuracy,
    attribute_accuracy,
    attribute_balanced_accuracy,
    balanced_accuracy,
)

__all__ = [
    "MI_VARIANTS",
    "SSIM_VARIANTS",
    "Interval",
    "accuracy",
    "attribute_accuracy",
    "attribute_balanced_accuracy",
    "auc",
    "average_precision",
    "balanced_accuracy",
    "bootstrap_interval",
    "correct",
    "correct_attributes",
    "holm",
    "mean_interval",
    "mi_leakage",
    "mi_null",
    "mse",
    "paired_difference",
    "psnr_db",
    "seed_difference",
    "seed_interval",
    "ssim",
    "unpaired_difference",
]
