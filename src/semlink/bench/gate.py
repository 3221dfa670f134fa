# SPDX-License-Identifier: Apache-2.0
"""Limits on what may leak, for a build that is to fail above them.

A limit is exceeded unless the whole 95 % interval of every attack lies at or below it: the upper end counts, so that
too few test images are never a way to pass. An attack that has not converged counts like any other, since what it found
is found; a metric that was not measured does not pass. Of a lower bound in bits, which has no upper limit, the estimate
counts.
"""

import math
from collections.abc import Sequence

from semlink._errors import SemlinkError, check_name
from semlink.bench.audit_record import AuditRecord
from semlink.bench.trying import DRAWN, INFERRED


def limits(pairs: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """Parse ``METRIC=VALUE``, as ``psnr_db=18``; of attributes, ``names``, also ``balanced_accuracy.Male=60``.

    Raises:
        SemlinkError: a metric is unknown, a value is no finite number, or a metric has two limits.
    """
    found: dict[str, float] = {}
    for pair in pairs:
        metric, equals, text = pair.partition("=")
        if not equals:
            raise SemlinkError(f"--fail-above {pair}: METRIC=VALUE is expected, as psnr_db=18")
        base, dot, part = metric.partition(".")
        check_name("metric of --fail-above", base, {*DRAWN, *INFERRED})
        if dot:
            check_name(f"part of {base}", part, names)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise SemlinkError(f"--fail-above {pair}: '{text}' is no finite number")
        if metric in found:
            raise SemlinkError(f"--fail-above gives {metric} two limits; give it one")
        found[metric] = value
    return found


def exceeded(done: AuditRecord, wanted: dict[str, float]) -> list[str]:
    """Return a sentence for each limit that the audit does not keep."""
    said = []
    for metric, limit in wanted.items():
        counted = [each for each in done.tried if metric in each.results and not each.reference]
        if not counted:
            said.append(f"{metric} was not measured, so it is not known to be at most {limit:g}; see 'not tested'")
            continue
        by = max(counted, key=lambda each: each.results[metric].high)
        value = by.results[metric]
        if value.high > limit:
            span = f"{value.mean:g} [{value.low:g}, {value.high:g}] {value.unit}"
            said.append(f"{metric} is {span} by {by.attack} at {by.snr_db:g} dB, above the limit of {limit:g}")
    return said
