# SPDX-License-Identifier: Apache-2.0
"""Which answers of the receiver are right: one value per image, apart from how they are averaged."""

from torch import Tensor

from semlink._errors import SemlinkError


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Return 1 where the largest logit is the label's, else 0; logits with a NaN count as wrong.

    Args:
        logits: (B, classes).
        labels: (B,) int64.

    Returns:
        (B,) float32.

    Raises:
        SemlinkError: the shapes do not fit.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise SemlinkError(
            f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)}: (B, classes) and (B,) are expected"
        )
    return ((logits.argmax(1) == labels) & ~logits.isnan().any(1)).float()


def correct_attributes(logits: Tensor, attributes: Tensor) -> Tensor:
    """Return 1 where the sign of a logit says the attribute (positive: present), else 0; a NaN counts as wrong.

    Args:
        logits: (B, A).
        attributes: (B, A), 0 or 1.

    Returns:
        (B, A) float32.

    Raises:
        SemlinkError: the shapes differ.
    """
    if logits.ndim != 2 or logits.shape != attributes.shape:
        raise SemlinkError(
            f"logits {tuple(logits.shape)} and attributes {tuple(attributes.shape)}: (B, A) twice is expected"
        )
    return (((logits > 0) == (attributes > 0.5)) & ~logits.isnan()).float()
