# SPDX-License-Identifier: Apache-2.0
"""An audit in words: what metrics mean to a reviewer, how Eve heard, what to take away, a table for the terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from semlink.bench.audit_record import AuditRecord, Tried, Verdict
from semlink.bench.record import Measurement
from semlink.report.text import columns, intervals

_BOUNDS = {
    "channel_bits": "capacity of her channel",
    "payload_bits": "payload",
    "soft_capacity_bits": "capacity of the constellation",
    "laplace_bits": "Laplace noise",
    "ldp_bits": "local differential privacy",
    "entropy of the label": "entropy of the label",
}
_UNITS = {"1": "", "%": " %"}


class Meaning(NamedTuple):
    """What a metric says of Eve: what she does, in what unit it is counted, and both in a sentence."""

    does: str
    unit: str
    sentence: str


_MEANINGS = {
    "psnr_db": Meaning("Draw the image", "PSNR (dB)", "draws the images at {} PSNR"),
    "ssim": Meaning("Draw its structure", "SSIM", "draws the structure of the images at an SSIM of {}"),
    "mi_leakage": Meaning("Copy its grey levels", "MI leakage (bit)", "copies grey levels to {} of MI leakage"),
    "retrieval": Meaning(
        "Find the image among 500", "found (%)", "finds {} of the images among 500 by what she drew of them"
    ),
    "verification_auc": Meaning(
        "Recognise the person", "ROC AUC (%)", "tells by what she drew whether two images are of one person, AUC {}"
    ),
    "accuracy": Meaning("Name what it shows", "right (%)", "names what {} of the images show"),
    "balanced_accuracy": Meaning("Tell", "balanced accuracy (%)", "tells {1} with a balanced accuracy of {0}"),
    "label_bits": Meaning("Learn of the label", "at least (bit)", "learns at least {} of the label"),
    "infonce_bits": Meaning("Learn of the image", "at least (bit)", "learns at least {} of the image"),
}


def meaning(metric: str) -> Meaning:
    """Return the words for a metric; of one of several, as ``balanced_accuracy.Male``, with its part."""
    base, _, part = metric.partition(".")
    found = _MEANINGS.get(base, Meaning(base, "", base + " {}"))
    if not part:
        return found
    does = found.does.removesuffix("the label").strip()
    return found._replace(
        does=f"{does} '{part.replace('_', ' ')}'", sentence=found.sentence.replace("the label", "{1}")
    )


def hearing(threat: Mapping[str, Any], bob_db: float) -> str:
    """Return how well Eve hears, beside Bob."""
    snr_db = float(threat["snr_db"])
    better = snr_db - bob_db
    beside = "as Bob" if not better else f"{abs(better):g} dB {'better' if better > 0 else 'worse'} than Bob"
    more = [f"{n} {what}" for what in ("antennas", "transmissions") if (n := threat.get(what) or 1) > 1]
    more += ["with the key"] if threat.get("with_secret") else []
    return ", ".join([f"{snr_db:g} dB, {beside}", *more]).replace("-", "−")


def granted(tried: Tried | Verdict) -> str:
    """Return what an attack is given beside what is heard."""
    return f" (sees the {' and the '.join(tried.sees)})" if tried.sees else ""


def bound(name: str | None) -> str:
    """Return the words for the name of an upper bound."""
    return _BOUNDS.get(name or "", (name or "").replace("_", " "))


def amount(value: Measurement | float, unit: str) -> str:
    """Return a number with its unit, without an interval."""
    mean = value.mean if isinstance(value, Measurement) else value
    digits = {"%": 1, "dB": 1}.get(unit, 2)
    return f"{mean:z.{digits}f}".replace("-", "−") + _UNITS.get(unit, f" {unit}")


def takeaways(done: AuditRecord) -> list[str]:
    """Return a few sentences: the worst that was found, the drawings, what was not found, what it rests on."""
    bob_db, leaks = done.link["snr_db"], [each for each in done.verdicts if each.leaks]
    said = [_said(each, bob_db) for each in leaks[:1]]
    said += [_said(each, bob_db) for each in leaks[1:] if each.metric in ("accuracy", "psnr_db")]
    if quiet := [_lower(meaning(each.metric).does) for each in done.verdicts if not each.leaks]:
        what = f"{', '.join(quiet[:-1])} or {quiet[-1]}" if len(quiet) > 1 else quiet[0]
        said.append(
            f"No attack could {what} better than by guessing, as far as {done.tried[0].images:,} images can tell."
        )
    made = [each for each in done.tried if not each.reference]
    open_ = sum(not each.converged for each in made)
    none = "none of which converged" if open_ == len(made) else f"{open_} of which did not converge"
    rest = f"{none}: an attack that did not supports no claim of safety" if open_ else "all of which converged"
    late = sum(each.why.startswith("out of time") for each in done.untested)
    more = f" {late} more did not fit into the time; --minutes gives more of it." if late else ""
    said.append(f"This rests on {len(made)} attacks, {rest}.{more}")
    return said


def _said(verdict: Verdict, bob_db: float) -> str:
    part = verdict.metric.partition(".")[2].replace("_", " ")
    value = meaning(verdict.metric).sentence.format(amount(verdict.value, verdict.value.unit), part)
    guess = f"{verdict.baseline_by} gives {amount(verdict.baseline, verdict.value.unit)}"
    if verdict.baseline_by == "nothing":
        guess = "without listening there is nothing to be learned"
    how = f"By {verdict.attack}{granted(verdict)} at {hearing(verdict.threat, bob_db)}"
    unsure = "" if verdict.converged else " (attack not converged)"
    return f"{how}, Eve {value}{unsure}, where {guess}."


def _lower(words: str) -> str:
    return words[:1].lower() + words[1:]


def audited(done: AuditRecord, page: Path) -> str:
    """Return what ``semlink audit`` prints: a line a metric, the worst first."""
    rows = [["Eve can", "value [95 %]", "guessing", "of all", "by"]]
    for each in done.verdicts:
        words, how = meaning(each.metric), f"{each.attack} at {hearing(each.threat, done.link['snr_db'])}"
        rows.append(
            [
                f"{_lower(words.does)}, {words.unit}",
                intervals([each.value])[0],
                amount(each.baseline, each.value.unit),
                f"{100 * each.share:.0f} %" if each.leaks else "no more than chance",
                how + ("" if each.converged else " (not converged)"),
            ]
        )
    link = done.link
    head = f"{done.target['name']} on {done.data['name']}, {link['channel']} at {link['snr_db']:g} dB, worst first"
    made = f"{len(done.tried)} attacks in {done.seconds / 60:.1f} minutes; {len(done.untested)} things not tested"
    return "\n".join([head, *columns(rows), made, f"Report: {page}"])
