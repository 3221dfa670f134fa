# SPDX-License-Identifier: Apache-2.0
"""Numbers about images, labels and leakage: one value per image, and intervals over images or training seeds.

Every quality or leakage metric takes ``(B, C, H, W)`` images in [0, 1] and returns ``(B,)``; averaging is left to
:mod:`semlink.metrics.statistics`, which averages the noise draws of one image before it counts images.

How much an eavesdropper learns is bracketed: ``upper_bounds_bits`` beside ``infonce_bits``, ``nwj_bits`` or
``classifier_bits``.
"""

from semlink.metrics.answers import correct, correct_attributes
from semlink.metrics.bounds import LowerBound, classifier_bits, infonce_bits, nwj_bits, smile_estimate_bits
from semlink.metrics.ceilings import (
    Capacity,
    constellation_capacity,
    discrete_capacity,
    hard_capacity,
    laplace_bits,
    ldp_bits,
    upper_bounds_bits,
)
from semlink.metrics.estimators import copula_mi_bits, gaussian_mi_bits, ksg_mi_bits
from semlink.metrics.fisher import FisherLeakage, NotDifferentiable, fisher_leakage, unbiased_mse_bound
from semlink.metrics.identity import retrieval, verification_auc
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
    "Capacity",
    "FisherLeakage",
    "Interval",
    "LowerBound",
    "NotDifferentiable",
    "accuracy",
    "attribute_accuracy",
    "attribute_balanced_accuracy",
    "auc",
    "average_precision",
    "balanced_accuracy",
    "bootstrap_interval",
    "classifier_bits",
    "constellation_capacity",
    "copula_mi_bits",
    "correct",
    "correct_attributes",
    "discrete_capacity",
    "fisher_leakage",
    "gaussian_mi_bits",
    "hard_capacity",
    "holm",
    "infonce_bits",
    "ksg_mi_bits",
    "laplace_bits",
    "ldp_bits",
    "mean_interval",
    "mi_leakage",
    "mi_null",
    "mse",
    "nwj_bits",
    "paired_difference",
    "psnr_db",
    "retrieval",
    "seed_difference",
    "seed_interval",
    "smile_estimate_bits",
    "ssim",
    "unbiased_mse_bound",
    "unpaired_difference",
    "upper_bounds_bits",
    "verification_auc",
]
