# SPDX-License-Identifier: Apache-2.0
"""Answers about targets, by a receiver or an eavesdropper: what each comes to, and the measurements of a whole set."""

from collections.abc import Sequence

from torch import Tensor

from semlink.bench.record import Measurement
from semlink.metrics import (
    Interval,
    accuracy,
    attribute_accuracy,
    attribute_balanced_accuracy,
    auc,
    average_precision,
    balanced_accuracy,
    correct,
    correct_attributes,
    mean_interval,
)


def answers(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Return what each answer about the targets comes to, by name.

    Args:
        logits: (B, outputs).
        targets: (B,) classes, or (B, outputs) attributes.

    Returns:
        ``accuracy`` (B,), 1 or 0 or the share of right attributes; of attributes ``attributes``, which are right, and
        ``scores``, both (B, outputs).
    """
    if targets.ndim == 1:
        return {"accuracy": correct(logits, targets)}
    right = correct_attributes(logits, targets)
    return {"accuracy": right.mean(1), "attributes": right, "scores": logits.nan_to_num()}


def measured(found: dict[str, Tensor], targets: Tensor, names: Sequence[str]) -> dict[str, Measurement]:
    """Measure :func:`answers` of a whole set, each with an axis of noise draws before it.

    Of attributes each is measured for itself; accuracy flatters rare ones, the other metrics do not.

    Args:
        found: by name (draws, n), or (draws, n, outputs).
        targets: (n,) or (n, outputs).
        names: of the attributes.
    """
    if targets.ndim == 1:
        return {
            "accuracy": Measurement.of(accuracy(found["accuracy"]), "%", 100),
            "balanced_accuracy": Measurement.of(balanced_accuracy(found["accuracy"], targets), "%", 100),
        }
    intervals: dict[str, Sequence[Interval | None]] = {
        "accuracy": attribute_accuracy(found["attributes"]),
        "balanced_accuracy": attribute_balanced_accuracy(found["attributes"], targets),
    }
    ranked = [i for i, count in enumerate(targets.sum(0).tolist()) if 0 < count < len(targets)]  # others have no rank
    for metric, measure in {"auc": auc, "average_precision": average_precision}.items():
        each = {i: measure(found["scores"][..., i], targets[:, i]) for i in ranked}
        intervals[metric] = [each.get(i) for i in range(len(names))]
    return {"accuracy": Measurement.of(mean_interval(found["accuracy"]), "%", 100)} | {
        f"{metric}.{name}": Measurement.of(interval, "%", 100)
        for metric, of in intervals.items()
        for name, interval in zip(names, of, strict=True)
        if interval is not None
    }
