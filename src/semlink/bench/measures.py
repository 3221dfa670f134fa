# SPDX-License-Identifier: Apache-2.0
"""What can be measured, by name: of links, of what an eavesdropper draws, and of what she answers.

A part after a dot chooses one of several, as in ``auc.Male`` or ``mi_legacy.brett20-nats``.
"""

from collections.abc import Sequence

#: Of answers about targets: a link's own, an eavesdropper's from what she hears, or a reader's from what she draws.
ANSWERED = ("accuracy", "balanced_accuracy", "auc", "average_precision")
#: Of what a link delivers.
LINK = (*ANSWERED, "psnr_db", "ssim")
#: Of what an eavesdropper draws.
DRAWN = ("psnr_db", "ssim", "lpips", "mi_leakage", "mi_legacy", "retrieval", "verification_auc", "infonce_bits")
#: Of what an eavesdropper answers.
INFERRED = (*ANSWERED, "label_bits")

UNITS = {
    "psnr_db": "dB",
    "ssim": "1",
    "lpips": "1",
    "mi_leakage": "bit",
    "mi_legacy": "1",
    "retrieval": "%",
    "verification_auc": "%",
    "infonce_bits": "bit",
    "label_bits": "bit",
    **dict.fromkeys(ANSWERED, "%"),
}

#: What metrics are called in tables and figures.
TITLES = {
    "accuracy": "Accuracy (%)",
    "balanced_accuracy": "Balanced accuracy (%)",
    "auc": "ROC AUC (%)",
    "average_precision": "Average precision (%)",
    "psnr_db": "PSNR (dB)",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "mi_leakage": "MI leakage (bit)",
    "mi_legacy": "MI as printed elsewhere",
    "retrieval": "Found among 500 images (%)",
    "verification_auc": "Same person, ROC AUC (%)",
    "infonce_bits": "I(image; heard), InfoNCE lower bound (bit)",
    "label_bits": "I(label; heard), lower bound (bit)",
}


#: Of these each attribute is measured for itself, so a part names one.
PARTED = (*ANSWERED, "label_bits")


def wanted(name: str, metrics: Sequence[str]) -> bool:
    """Say whether ``name``, as ``auc.Male``, is among ``metrics`` or one of them in all its parts."""
    return name in metrics or name.partition(".")[0] in metrics
