# SPDX-License-Identifier: Apache-2.0
"""What two papers claim, held to records: ``claims.toml`` says what, and by which test.

    claims.toml ──> tests ──┬──> comparisons, each borne out or not ──> held | not held | not testable
    results/**/record.json ─┘

Where the record has the paired difference of two links, that is taken: over training seeds if there is such a one, for
it speaks of schemes, else over test images, which speaks only of the links that were trained. Other differences are
between means whose intervals are taken for independent; those of the same images pair off better than that, so that
such a comparison is rather too careful. Attacks that have not converged do not bear out that a link leaks less.
"""

import itertools
import math
import statistics
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from semlink._errors import SemlinkError, check_name
from semlink.bench import recipes, record
from semlink.bench.record import Measurement
from semlink.bench.results import BenchRecord, LinkCost
from semlink.bench.rows import Row

Verdict = Literal["held", "not held", "not testable"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Test(_Strict):
    """One of four comparisons of links of a record, by every metric and at every SNR named.

    ``higher`` each above ``lower`` by more than ``margin``; two ``links`` alike ``within`` so much; ``links`` at
    ``least`` so much; or the standard deviation over trainings of each of ``links`` at most ``spread``. The first two
    may name a ``cost`` in place of ``metrics`` and ``snr_db``; its ratio less 1 is held to ``margin`` or ``within``.
    """

    record: str
    metrics: list[str] = []
    snr_db: list[float] = []
    cost: Literal["parameters", "multiply_adds", "epoch_seconds", "image_seconds"] | None = None
    attacks: list[str] = []
    higher: list[str] = []
    lower: list[str] = []
    margin: float = 0.0
    links: list[str] = []
    within: float | None = None
    least: float | None = None
    spread: float | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> "Test":
        kinds = [bool(self.higher and self.lower), *(x is not None for x in (self.within, self.least, self.spread))]
        if sum(kinds) != 1 or (not kinds[0] and not self.links) or (kinds[1] and len(self.links) != 2):
            raise ValueError("a test names 'higher' and 'lower', two 'links' and 'within', or 'links' and one bound")
        of_links = bool(self.metrics or self.snr_db or self.attacks)
        if bool(self.metrics and self.snr_db) == bool(self.cost) or (
            self.cost and (of_links or not (kinds[0] or kinds[1]))
        ):
            raise ValueError("a test names 'metrics' and 'snr_db', or compares links by 'cost'")
        return self


class Claim(_Strict):
    """A sentence of a paper, in our words, and how it is tested; or why it cannot be."""

    id: Annotated[str, Field(pattern=r"^[AB]\d+$")]
    where: str
    says: str
    note: str = ""
    tests: list[Test] = []
    untestable: str = ""

    @model_validator(mode="after")
    def _testable_or_not(self) -> "Claim":
        if bool(self.tests) == bool(self.untestable):
            raise ValueError("a claim has tests, or says in 'untestable' why there is none")
        return self


class Finding(NamedTuple):
    """A comparison: what is compared, the number with its interval, whether it bears the claim out, and over what that
    interval is: how many seeds or images; nothing of a number that has none."""

    said: str
    shown: str
    borne_out: bool
    over: str = ""


class Judgement(NamedTuple):
    """A claim with its verdict, the comparisons that it rests on, and what was missing."""

    claim: Claim
    verdict: Verdict
    findings: list[Finding]
    missing: list[str]


def claims() -> list[Claim]:
    """Return all claims."""
    return read(resources.files("semlink").joinpath("claims.toml").read_text(encoding="utf-8"), "claims.toml")


def read(text: str, name: str) -> list[Claim]:
    """Return the claims of a TOML text.

    Raises:
        SemlinkError: it is not TOML, a claim has a mistake or names no bench, or two have the same id; the message
            names it.
    """
    try:
        found = [(each.get("id", "?"), each) for each in tomllib.loads(text).get("claims", [])]
    except (tomllib.TOMLDecodeError, AttributeError, TypeError) as error:
        raise SemlinkError(f"{name} is not a list of claims: {error}") from None
    held: dict[str, Claim] = {}
    for known, each in found:
        try:
            claim = Claim.model_validate(each)
        except ValidationError as error:
            first = error.errors()[0]
            at = ".".join(map(str, first["loc"]))
            raise SemlinkError(f"{name}, claim {known}: {at}: {first['msg'].removeprefix('Value error, ')}") from None
        for test in claim.tests:
            check_name(f"bench of claim {claim.id}", test.record, recipes.names())
        if claim.id in held:
            raise SemlinkError(f"{name} has two claims {claim.id}; rename one")
        held[claim.id] = claim
    return list(held.values())


def records(folder: Path) -> list[BenchRecord]:
    """Return the records of benches in ``folder`` and below.

    Raises:
        SemlinkError: there is no such folder or no record in it, or one is damaged.
    """
    if not folder.is_dir():
        raise SemlinkError(f"there is no folder {folder} of results; name one that 'semlink bench --out' wrote to")
    found = [record.read(path, BenchRecord) for path in sorted(folder.rglob("record.json"))]
    if not found:
        raise SemlinkError(f"{folder} holds no record.json; name a folder that 'semlink bench --out' wrote to")
    return found


def judge(claim: Claim, held: Sequence[BenchRecord]) -> Judgement:
    """Hold a claim to records."""
    findings, missing = list[Finding](), list[str]()
    for test in claim.tests:
        named = [each for each in held if each.name == test.record]
        if not named:
            missing.append(f"no record of {test.record}")
            continue
        compared = _costed if test.cost else _compared
        for found in compared(test, min(named, key=lambda each: each.variant != "default")):
            findings.append(found) if isinstance(found, Finding) else missing.append(found)
    if claim.untestable:
        missing.append(claim.untestable)
    if any(not each.borne_out for each in findings):
        return Judgement(claim, "not held", findings, missing)
    return Judgement(claim, "not testable" if missing else "held", findings, missing)


def _compared(test: Test, held: BenchRecord) -> Iterator[Finding | str]:
    """Yield the comparisons of a test, or what of them is missing."""
    where = held.name + ("" if held.variant == "default" else f" ({held.variant})")
    for metric, snr_db in itertools.product(test.metrics, test.snr_db):
        at = f"{where}, {metric} at {snr_db:g} dB"
        for pair in itertools.product(test.higher, test.lower):
            yield _difference(test, held, metric, snr_db, *pair, at, test.margin, math.inf)
        if test.within is not None:
            yield _difference(test, held, metric, snr_db, test.links[0], test.links[1], at, -test.within, test.within)
            continue
        for link in test.links:
            found = _of(held, link, test, metric, snr_db)
            if found is None:
                yield f"{at}: {link} was not measured"
            elif test.least is not None:
                least, shown = f"{at}: {link} at least {test.least:g}", found[0].shown
                yield Finding(least, _shown(shown), shown.low >= test.least, _over(found[0]))
            elif len(found[0].seeds) < 2:
                yield f"{at}: {link} was trained once"
            else:
                spread = statistics.stdev(each.mean for each in found[0].seeds.values())
                said = (
                    f"{at}: standard deviation of {link} over {len(found[0].seeds)} trainings at most {test.spread:g}"
                )
                yield Finding(said, f"{spread:.3g}", spread <= (test.spread or 0))


def _costed(test: Test, held: BenchRecord) -> Iterator[Finding | str]:
    """Yield the comparisons of a test of costs, or what of them is missing."""
    costs = {each.link: value for each in held.costs if (value := _cost(each, test.cost or ""))}
    where = f"{held.name}, {(test.cost or '').replace('_', ' ')}"
    alike = [] if test.within is None else [(test.links[0], test.links[1])]
    for first, second in [*((high, low) for high in test.higher for low in test.lower), *alike]:
        if lacking := [link for link in (first, second) if link not in costs]:
            yield f"{where}: {lacking[0]} was not measured"
            continue
        ratio = costs[first] / costs[second]
        if test.within is None:
            said, borne_out = f"{first} above {1 + test.margin:g} times {second}", ratio > 1 + test.margin
        else:
            said, borne_out = f"{first} within {100 * test.within:g} % of {second}", abs(ratio - 1) <= test.within
        yield Finding(f"{where}: {said}", f"{ratio:.3g} times", borne_out)


def _cost(of: LinkCost, name: str) -> float | None:
    """Return a cost of a link, its adversary in training included; None if it was not measured."""
    if name == "parameters":
        return of.parameters["total"] + of.parameters.get("adversary", 0)
    if name == "multiply_adds":
        return sum(of.multiply_adds.values())
    if name == "epoch_seconds":
        return of.epoch_seconds
    return None if of.transmit_seconds is None else of.transmit_seconds + (of.receive_seconds or 0)


def _difference(
    test: Test, held: BenchRecord, metric: str, snr_db: float, high: str, low: str, at: str, least: float, most: float
) -> Finding | str:
    """Return whether ``high - low`` lies between ``least`` and ``most``, or which of the two is missing."""
    first, second = (_of(held, link, test, metric, snr_db) for link in (high, low))
    if first is None or second is None:
        return f"{at}: {high if first is None else low} was not measured"
    ours, theirs = first[0].shown, second[0].shown
    mean, half = ours.mean - theirs.mean, math.hypot(_half(ours), _half(theirs))
    bounds, over = (mean - half, mean + half), " and ".join(dict.fromkeys([_over(first[0]), _over(second[0])]))
    about = metric, snr_db, {high, low}
    paired = {e.over: e for e in held.differences if (e.metric, e.snr_db, {e.first, e.second}) == about}
    each = paired.get("seeds" if first[0].over_seeds and second[0].over_seeds else "images")
    if each and not test.attacks:
        sign = 1 if each.second == high else -1
        mean, ends = sign * each.difference.mean, (sign * each.difference.low, sign * each.difference.high)
        bounds, over = (min(ends), max(ends)), f"{each.difference.n} {each.over}"
    claimed = f"within {most:g} of" if math.isfinite(most) else f"above{f' by {least:g}' if least else ''}"
    said = f"{at}: {high} {claimed} {low}"
    shown = f"{mean:+.3g} [{bounds[0]:.3g}, {bounds[1]:.3g}]{_unit(ours)}"
    if not second[1]:  # such an attack supports no claim that a defence survives
        return Finding(said, f"{shown}, but the attack on {low} has not converged", borne_out=False, over=over)
    return Finding(said, shown, bounds[0] > least and bounds[1] < most, over)


def _of(held: BenchRecord, link: str, test: Test, metric: str, snr_db: float) -> tuple[Row, bool] | None:
    """Return what was measured of a link, by the strongest of the test's attacks, and whether all of these had
    converged."""
    attacks: Iterable[str | None] = test.attacks or [None]
    found = [
        row
        for row in held.rows
        if (row.link, row.metric, row.snr_db) == (link, metric, snr_db) and row.attack in attacks
    ]
    if not found:
        return None
    return max(found, key=lambda row: row.shown.mean), all(row.converged is not False for row in found)


def _over(row: Row) -> str:
    return f"{row.shown.n} {'seeds' if row.over_seeds else 'images'}"


def _half(measured: Measurement) -> float:
    return (measured.high - measured.low) / 2


def _shown(measured: Measurement) -> str:
    return f"{measured.mean:.4g} [{measured.low:.4g}, {measured.high:.4g}]{_unit(measured)}"


def _unit(measured: Measurement) -> str:
    return "" if measured.unit == "1" else f" {measured.unit}"


def markdown(found: Sequence[Judgement]) -> str:
    """Return a page: of each paper a table of its claims, and below it every comparison."""
    papers = {
        "A": "Guo et al., Semantic-enabled 6G communication: a task-oriented and privacy-preserving perspective",
        "B": "Wang et al., Benchmarking semantic communications for image transmission over MIMO interference channels",
    }
    lines = [
        "# What the papers claim, and what was found",
        "",
        "Made by `semlink claims --out docs/claims.md` from the records in [results](../results). A claim holds if the "
        "95 % interval of every comparison bears it out; it does not if one does not; it is not testable if what it "
        "speaks of was not measured. Claims are in our words.",
        "",
        "Intervals are over training seeds where links were trained several times; one over test images speaks only of "
        "the links that were trained, not of what another training would give. SSIM is measured twice: `ssim` is "
        "that of Wang et al. (2004), in windows of 11 x 11 pixels, and `ssim_global` equation (8) of paper B, over the "
        "whole image at once. Claims of paper B are held to both.",
    ]
    for paper, title in papers.items():
        these = [each for each in found if each.claim.id.startswith(paper)]
        if not these:
            continue
        lines += [
            "",
            f"## {title}",
            "",
            "| | claim | verdict | comparisons | over |",
            "| --- | --- | --- | --- | --- |",
        ]
        lines += [
            f"| {each.claim.id} | {each.claim.says} | {each.verdict} | {_count(each)} | {_overs(each)} |"
            for each in these
        ]
        for each in these:
            lines += ["", f"### {each.claim.id}: {each.verdict}", "", f"{each.claim.says} ({each.claim.where})"]
            lines += ["", each.claim.note] if each.claim.note else []
            lines += [""] if each.findings or each.missing else []
            lines += [f"- {'yes' if f.borne_out else '**no**'}: {_told(f)}" for f in each.findings]
            lines += [f"- missing: {said}" for said in each.missing]
    return "\n".join(lines) + "\n"


def text(found: Sequence[Judgement], details: bool) -> list[str]:
    """Return lines for a terminal; ``details`` adds every comparison."""
    lines = []
    for each in found:
        lines.append(f"{each.claim.id:4} {each.verdict:12} {_count(each):>16}  {each.claim.says}")
        if details:
            lines += [f"       {'yes' if f.borne_out else 'no ':3}  {_told(f)}" for f in each.findings]
            lines += [f"       missing: {said}" for said in each.missing]
    counts = [sum(each.verdict == verdict for each in found) for verdict in ("held", "not held", "not testable")]
    return [*lines, "", f"{counts[0]} held, {counts[1]} not held, {counts[2]} not testable"]


def _count(each: Judgement) -> str:
    return f"{sum(f.borne_out for f in each.findings)} of {len(each.findings)}" if each.findings else "none"


def _overs(each: Judgement) -> str:
    """Return over what the intervals of a claim's comparisons are."""
    return ", ".join(dict.fromkeys(f.over for f in each.findings if f.over))


def _told(found: Finding) -> str:
    return f"{found.said}: {found.shown}" + (f", over {found.over}" if found.over else "")
