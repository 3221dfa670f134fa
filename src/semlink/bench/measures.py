# SPDX-License-Identifier: Apache-2.0
"""What can be measured, by name: of links, of what an eavesdropper draws, and of what she answers.

A part after a dot chooses one of several, as in ``auc.Male`` or ``mi_legacy.brett20-nats``.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from semlink.bench.recipes import LinkEntry

#: Of answers about targets: a link's own, an eavesdropper's from what she hears, or a reader's from what she draws.
ANSWERED = ("accuracy", "balanced_accuracy", "auc", "average_precision")
#: Of what a link delivers.
LINK = (*ANSWERED, "psnr_db", "ssim", "ssim_global")
#: Of what an eavesdropper draws.
DRAWN = ("psnr_db", "ssim", "lpips", "mi_leakage", "mi_legacy", "retrieval", "verification_auc", "infonce_bits")
#: Of what an eavesdropper answers.
INFERRED = (*ANSWERED, "label_bits")

UNITS = {
    "psnr_db": "dB",
    "ssim": "1",
    "ssim_global": "1",
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
    "ssim_global": "SSIM over the whole image",
    "lpips": "LPIPS",
    "mi_leakage": "MI leakage (bit)",
    "mi_legacy": "MI as printed elsewhere",
    "retrieval": "Found among 500 images (%)",
    "verification_auc": "Same person, ROC AUC (%)",
    "infonce_bits": "I(image; heard), InfoNCE lower bound (bit)",
    "label_bits": "I(label; heard), lower bound (bit)",
}

#: What options of schemes are called on the axis of a figure.
AXES = {
    "channel_uses": "Channel uses an image",
    "users": "Users K",
    "csi_error": "Mean square error of the CSI",
    "cross_gain_db": "Gain of other users (dB)",
    "learning_rate": "Learning rate",
}

#: Of these each attribute is measured for itself, so a part names one.
PARTED = (*ANSWERED, "label_bits")
#: Of these each user of a network is measured beside their mean, so a part is a user's number, as ``ssim.2``.
BY_USER = ("accuracy", "psnr_db", "ssim", "ssim_global")


def is_metric(name: str) -> bool:
    """Say whether ``name`` is a metric or a part of one."""
    return name.partition(".")[0] in TITLES


def wanted(name: str, metrics: Sequence[str]) -> bool:
    """Say whether ``name``, as ``auc.Male``, is among ``metrics`` or one of them in all its parts."""
    return name in metrics or name.partition(".")[0] in metrics


def users(link: "LinkEntry") -> int:
    """Return how many users a link of a recipe has; 0 where it is of a single one."""
    from semlink.schemes import NetworkScheme, schemes

    if not issubclass(schemes[link.scheme], NetworkScheme):
        return 0
    said = link.options.get("users", 2)
    return said if isinstance(said, int) and said > 0 else 1  # what is wrong with it the scheme says


def series(link: "LinkEntry", over: str) -> str:
    """Return what links are called that differ in their option ``over`` alone."""
    others = [f"{name} {value}" for name, value in link.options.items() if name != over]
    return ", ".join([link.scheme, *others])


def option(link: "LinkEntry", name: str) -> float | None:
    """Return a link's channel uses, or the number that its scheme has as its option ``name``; None if there is none."""
    from semlink.schemes import schemes
    from semlink.schemes.options import options

    if name == "channel_uses":
        return link.channel_uses
    known = {each.name: each.default for each in options(schemes[link.scheme])}
    value = link.options.get(name, known.get(name))
    return value if isinstance(value, int | float) and not isinstance(value, bool) and name in known else None
