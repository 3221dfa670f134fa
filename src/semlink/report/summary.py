# SPDX-License-Identifier: Apache-2.0
"""Three sentences for a newcomer, derived from the records whatever they say.

Two numbers are called different if the 95 % interval of their difference leaves out zero. Records hold intervals, not
single images, so the difference is taken as if its sides were independent; on shared test images, which make both
rise and fall together, that errs on the side of seeing no difference.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from semlink.bench.record import Measurement
from semlink.report.gather import Attacked, Run, gather


def takeaways(runs: Sequence[Path]) -> list[str]:
    """Return three sentences with the measured numbers: what got through, what Eve got, what the key is worth.

    Raises:
        SemlinkError: there is no run folder; one is no finished run; a record is damaged.
    """
    return sentences(gather(runs))


def sentences(runs: Sequence[Run]) -> list[str]:
    """Return the sentences of :func:`takeaways` for runs that are read already."""
    open_links = [run for run in runs if run.recipe.key is None]
    plain = next((run for run in open_links if run.recipe.scheme == "deepjscc"), (open_links or [None])[0])
    fixed = next((run for run in runs if run.recipe.options.get("fresh") is False), None)
    rest = [run for run in runs if run is not plain and run is not fixed]
    rest = rest if plain is None else [run for run in rest if _comparable(plain, run)]
    other = next((run for run in rest if run.recipe.key is not None), (rest or [None])[0])
    if fixed is not None and other is not None and not _comparable(fixed, other):
        fixed = None
    first, second = (link for link in (plain or other or fixed, other if plain else None))
    return [_utility(first or runs[0], second), _leakage(first or runs[0], second), _key(other, fixed)]


def _utility(first: Run, second: Run | None) -> str:
    curve, rival = first.curve(first.metric), second.curve(first.metric) if second else {}
    if not curve and rival and second:
        first, curve, second, rival = second, rival, None, {}
    if not curve:
        return f"How well {_called(first)} does its task has not been measured yet; '{first.missing()[0][1]}' does it."
    shared = sorted(set(curve) & set(rival)) or sorted(curve)
    snr_db = min(shared, key=lambda value: abs(value - first.recipe.snr_db))
    here = curve[snr_db]
    did = {
        "classify": f"labels {_with_unit(here)} of {here.n:,} test images correctly",
        "attributes": f"gets {_with_unit(here)} of the attributes of {here.n:,} test images right",
    }.get(first.recipe.task, f"rebuilds {here.n:,} test images at {_with_unit(here)} PSNR")
    said = f"At {_number(snr_db, 'g')} dB {_called(first)} {did}"
    if second is None or snr_db not in rival:
        return f"{said}, sending {first.train.channel_uses} symbols an image."
    there, defence = rival[snr_db], "encryption" if second.recipe.key else second.label
    chance = "the test images drawn do not explain this, but with one training of each, luck in training may"
    verdict = {
        1: f"with {defence} {_gap(there, here)} more ({chance})",
        0: f"a difference of {_apart(there, here)}, not to be told from zero, so {defence} had no measurable cost",
        -1: f"with {defence} {_gap(here, there)} less ({chance})",
    }[sign(there, here)]
    return f"{said} and {_called(second)} {_with_unit(there)}: {verdict}."


def _leakage(first: Run, second: Run | None) -> str:
    known = [(run, hit) for run in (first, second) if run and (hit := _strongest(run, with_secret=False))]
    if not known:
        missing = f"'semlink attack {(second or first).command_name}' does it"
        return f"What an eavesdropper without a key learns has not been measured yet; {missing}."
    last = known[-1][1]
    guess = last.record.baselines["mean_image"]["psnr_db"]
    heard = {hit.record.snr_db for _, hit in known}
    at = f" listening at {_number(heard.pop(), 'g')} dB" if len(heard) == 1 else ""
    got = " and ".join(f"of {_short(run)} at {_rebuilt(hit)}" for run, hit in known)
    source = "from the latter " if len(known) > 1 else ""
    gains = [sign(_psnr(hit), guess) for _, hit in known]
    verdict = {
        1: f"{source}she gained {_gap(_psnr(last), guess)} over that guess",
        0: f"{source}she gained nothing measurable over that guess",
        -1: f"{source}she got {_gap(guess, _psnr(last))} less than that guess gives",
    }[gains[-1]]
    if gains[-1] < 1 and not last.record.converged:
        verdict += ", but her attack had not converged, so this is no evidence that the link withstands her"
    elif gains[-1] < 1 and len(gains) > 1 and gains[0] < 1:
        verdict += f", but as she gained nothing from {_short(first)} either, her attack is too weak to judge by"
    return (
        f"Without a key an eavesdropper{at} rebuilt the images {got}, "
        f"where showing the mean image every time scores {_with_unit(guess)}: {verdict}."
    )


def _key(fresh: Run | None, fixed: Run | None) -> str:
    fresh = fresh if fresh and fresh.recipe.key else None
    if fresh is None and fixed is None:
        return "None of these links uses a key, so nothing here says what encryption would change."
    without = _strongest(fresh, with_secret=False) if fresh else None
    clauses, pillars = [], []
    if fresh and (holder := _strongest(fresh, with_secret=True)):
        clause = f"with the key she rebuilt the images of {_short(fresh)} at {_rebuilt(holder)}"
        clauses.append(clause + _than(holder, without, "without it"))
        pillars += ["the secrecy of the key"] if without and sign(_psnr(holder), _psnr(without)) > 0 else []
    if fixed and (repeated := _strongest(fixed, with_secret=False)):
        it, them = ("it", "them") if clauses else ("the key", "the images")
        clause = f"without {it}, but with one nonce for all messages, she rebuilt {them} at {_rebuilt(repeated)}"
        clauses.append(clause + _than(repeated, without, "with a fresh nonce each"))
        better = without and sign(_psnr(repeated), _psnr(without)) > 0
        pillars += ["a fresh nonce for every message"] if better else []
        if not better and not repeated.record.converged:
            clauses[-1] += " (no evidence that one nonce is safe)"
    if not clauses:
        command = f"semlink attack {fresh.command_name} --with-key" if fresh else "semlink attack"
        return f"What the key is worth has not been measured yet; '{command}' does it."
    said = "; ".join(clauses)
    if pillars and without and without.record.converged:
        said += f": what protection there is rests on {' and on '.join(pillars)}"
    return said[0].upper() + said[1:] + "."


def _than(hit: Attacked, other: Attacked | None, condition: str) -> str:
    if other is None:
        return ""
    a, b = _psnr(hit), _psnr(other)
    return {
        1: f", {_gap(a, b)} more than {condition}",
        0: f", not measurably different from {_with_unit(b)} {condition}",
        -1: f", {_gap(b, a)} less than {condition}, so that attack fell short of what it could know",
    }[sign(a, b)]


def sign(a: Measurement, b: Measurement) -> int:
    """Return 1 if ``a`` is clearly above ``b``, -1 if clearly below, 0 if the data cannot tell."""
    half, difference = _half(a, b), a.mean - b.mean
    return 0 if abs(difference) <= half else 1 if difference > 0 else -1


def _half(a: Measurement, b: Measurement) -> float:
    """Return half the width of the interval of the difference."""
    return math.hypot(a.high - a.low, b.high - b.low) / 2


def _apart(a: Measurement, b: Measurement) -> str:
    unit = "points" if a.unit == "%" else a.unit
    return f"{_number(a.mean - b.mean, '.1f')} ± {_half(a, b):.1f} {unit}"


def _comparable(a: Run, b: Run) -> bool:
    apart = {"scheme", "options", "key"}
    return a.recipe.model_dump(exclude=apart) == b.recipe.model_dump(exclude=apart)


def _strongest(run: Run, with_secret: bool) -> Attacked | None:
    fitting = (a for a in run.attacks if a.with_secret == with_secret and "psnr_db" in a.record.results)
    usable = (a for a in fitting if "psnr_db" in a.record.baselines.get("mean_image", {}))
    return max(usable, key=lambda a: _psnr(a).mean, default=None)


def _psnr(hit: Attacked) -> Measurement:
    return hit.record.results["psnr_db"]


def _rebuilt(hit: Attacked) -> str:
    return f"{_with_unit(_psnr(hit))} PSNR" + ("" if hit.record.converged else " (attack not converged)")


def _called(run: Run) -> str:
    if run.recipe.key:
        return f"the encrypted link ({run.label})"
    return f"the {'unprotected ' if run.recipe.scheme == 'deepjscc' else ''}link ({run.label})"


def _short(run: Run) -> str:
    return _called(run).split(" (")[0] if run.recipe.key or run.recipe.scheme == "deepjscc" else _called(run)


def _gap(a: Measurement, b: Measurement) -> str:
    size, unit = abs(a.mean - b.mean), "points" if a.unit == "%" else a.unit
    return f"less than 0.1 {unit}" if size < 0.05 else f"{size:.1f} {unit}"


def _with_unit(value: Measurement) -> str:
    return f"{_number(value.mean, '.1f')} {value.unit}"


def _number(value: float, form: str) -> str:
    return f"{value:z{form}}".replace("-", "−")
