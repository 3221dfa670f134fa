# SPDX-License-Identifier: Apache-2.0
"""From attacks to verdicts: of each metric the strongest attack, beside what needs no interception and what no attack
can exceed.

The strongest is furthest above its baseline, on the same images. Metrics have units that cannot be compared, so they
are sorted by where a value lies between the baseline (0) and learning all that the metric can show (1): of PSNR that is
the share of the baseline's error that is gone. What is above its baseline by more than chance comes first, after Holm's
correction for all comparisons of the audit, as many attacks tried on nothing find something. Differences are paired
image by image.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from semlink.bench.audit_record import Verdict
from semlink.bench.judge import GALLERY
from semlink.bench.record import Measurement
from semlink.bench.trying import Outcome
from semlink.metrics import Interval, holm, paired_difference, unpaired_difference

MOST_ATTRIBUTES = 3  # for which a metric is shown, the worst ones
_LEVEL = 0.05
_BITS = ("infonce_bits", "label_bits")
_BASELINE = {"accuracy": "prior", "balanced_accuracy": "prior"}
_NO_BOUND = ("least", "hard_capacity_bits")  # the one is another of them, the other holds for some eavesdroppers only
_WHOLE = {"%": 100.0}  # what who sees the image itself reaches; of other units 1
_NOTHING = Measurement(mean=0.0, low=0.0, high=0.0, n=2, unit="bit", method="nothing is heard")
_EVEN = Measurement(mean=50.0, low=50.0, high=50.0, n=2, unit="%", method="chance")


class Known(NamedTuple):
    """What needs no interception: measurements, and per-image values."""

    measured: Mapping[str, Measurement]
    values: Mapping[str, Tensor]


class Compared(NamedTuple):
    """An attack's value of a metric beside its baseline."""

    outcome: Outcome
    value: Measurement
    baseline: Measurement
    baseline_by: str
    p_value: float


def verdicts(
    outcomes: Sequence[Outcome],
    known: Mapping[int, Mapping[str, Known]],
    classes: int | None,
    most: Mapping[str, float],
) -> list[Verdict]:
    """Return a verdict a metric, the worst first.

    Args:
        outcomes: attacks that were made; references are left out.
        known: by number of test images and name, what needs no interception.
        classes: how many, None of attributes.
        most: what the metrics are for one who sees the image itself, where that is no matter of course.
    """
    found: dict[str, list[Compared]] = {}
    for outcome in outcomes:
        if not outcome.case.reference:
            for metric, value in outcome.tried.results.items():
                found.setdefault(metric, []).append(_compared(outcome, metric, value, known[outcome.tried.images]))
    every = [each for row in found.values() for each in row]
    adjusted = dict(zip(map(id, every), holm([each.p_value for each in every]), strict=True))
    judged = [
        _verdict(metric, row, any(adjusted[id(each)] <= _LEVEL for each in row if _above(each)), classes, most)
        for metric, row in found.items()
        if metric.partition(".")[0] != ("accuracy" if classes is None else "balanced_accuracy")
    ]
    judged.sort(key=lambda each: (not each.leaks, -each.share))
    shown: dict[str, int] = {}
    for each in list(judged):
        base = each.metric.partition(".")[0]
        shown[base] = shown.get(base, 0) + 1
        if shown[base] > MOST_ATTRIBUTES:
            judged.remove(each)
    return judged


def _compared(outcome: Outcome, metric: str, value: Measurement, known: Mapping[str, Known]) -> Compared:
    base = metric.partition(".")[0]
    if base in _BITS:
        return Compared(outcome, value, _NOTHING, "nothing", _p(value, _NOTHING))
    if base == "verification_auc":
        return Compared(outcome, value, _EVEN, "guessing", _p(value, _EVEN))
    name = _BASELINE.get(base, "mean_image")
    guess = known[name]
    if metric in outcome.values and metric in guess.values:
        p_value = paired_difference(outcome.values[metric], guess.values[metric]).p_value
    else:
        p_value = _p(value, guess.measured[metric])
    words = {"prior": "always the commonest answer", "mean_image": "the mean image every time"}[name]
    return Compared(outcome, value, guess.measured[metric], words, 1.0 if p_value is None else p_value)


def _above(each: Compared) -> bool:
    return each.value.mean > each.baseline.mean


def _p(value: Measurement, base: Measurement) -> float:
    found = unpaired_difference(_interval(value), _interval(base)).p_value
    return 1.0 if found is None else found


def _interval(value: Measurement) -> Interval:
    one_sided = "one-sided" in value.method  # its upper end is the estimate; mirrored it has twice the error level
    high, level = (2 * value.mean - value.low, 2 * value.level - 1) if one_sided else (value.high, value.level)
    return Interval(value.mean, value.low, high, value.n, value.method, level)


def _verdict(
    metric: str, row: Sequence[Compared], leaks: bool, classes: int | None, most: Mapping[str, float]
) -> Verdict:
    worst = max(row, key=lambda each: each.value.mean - each.baseline.mean)  # some are judged on fewer images
    ceiling, by = _ceiling(metric.partition(".")[0], worst.outcome.tried.ceilings_bits, most.get(metric), classes)
    all_ = math.log2(worst.value.n) if metric == "infonce_bits" else most.get(metric, _WHOLE.get(worst.value.unit, 1.0))
    return Verdict(
        metric=metric,
        value=worst.value,
        attack=worst.outcome.tried.attack,
        threat=worst.outcome.tried.threat,
        sees=worst.outcome.tried.sees,
        converged=worst.outcome.tried.converged,
        baseline=worst.baseline,
        baseline_by=worst.baseline_by,
        ceiling=None if ceiling is None else round(ceiling, 4),
        ceiling_by=by,
        share=round(_share(metric, worst.value.mean, worst.baseline.mean, all_), 4),
        leaks=leaks,
    )


def _share(metric: str, value: float, baseline: float, whole: float) -> float:
    """Return where ``value`` lies between ``baseline`` (0) and learning all (1)."""
    if metric == "psnr_db":
        return max(0.0, 1 - 10 ** ((baseline - value) / 10))
    return min(1.0, max(0.0, (value - baseline) / (whole - baseline))) if whole > baseline else 0.0


def _ceiling(
    metric: str, bits: Mapping[str, float], entropy: float | None, classes: int | None
) -> tuple[float | None, str | None]:
    """Return what no attack exceeds, and the name of the bound in bits that says so; None if all do not."""
    bits = {name: value for name, value in bits.items() if name not in _NO_BOUND}
    name = min(bits, key=bits.__getitem__)
    if metric in _BITS:
        within = entropy is not None and entropy < bits[name]
        return (entropy, "entropy of the label") if within else (bits[name], name)
    choices = {"accuracy": classes, "retrieval": GALLERY}.get(metric)
    share = fano(bits[name], choices) if choices else 1.0
    return (100 * share, name) if share < 1 else (None, None)


def fano(bits: float, choices: int) -> float:
    """Return the largest share of right answers that ``bits`` of information about one of ``choices`` allow.

    The choices are equally likely. Fano: log2 M - I <= h(e) + e log2(M - 1) for the error e; of those e the least is
    found by halving, as the right side rises up to e = 1 - 1 / M.
    """
    missing, low, high = math.log2(choices) - bits, 0.0, 1 - 1 / choices
    if missing <= 0:
        return 1.0
    for _ in range(60):
        e = (low + high) / 2
        entropy = -e * math.log2(e) - (1 - e) * math.log2(1 - e)
        low, high = (e, high) if entropy + e * math.log2(choices - 1) < missing else (low, e)
    return 1 - low
