# SPDX-License-Identifier: Apache-2.0
"""Two records of benches side by side: what changed, and which numbers differ by more than chance."""

from typing import Any, Literal

from semlink._errors import SemlinkError
from semlink.bench import results
from semlink.bench.record import Measurement, Strict
from semlink.bench.results import BenchRecord
from semlink.bench.rows import About, Row
from semlink.bench.store import Store
from semlink.metrics import Interval, holm, unpaired_difference


class Changed(Strict):
    """Something that is not the same in both records; None where there is nothing.

    ``of`` names the links, attacks or steps to which it happened, and is empty if it happened to all in both records.
    """

    what: str
    of: list[str]
    first: Any
    second: Any


class Compared(About):
    """A number of both records: ``difference`` is second minus first, ``p_holm`` is corrected over all numbers.

    ``over`` says what the difference is over: training seeds, if both sides have several; else the test images of one
    seed, paired; else the two intervals.
    """

    first: Measurement
    second: Measurement
    over: Literal["seeds", "images", "intervals"]
    difference: Measurement
    p_value: float
    p_holm: float


class Comparison(Strict):
    """What changed between two records, the numbers that both have, and those that only one has."""

    changed: list[Changed]
    numbers: list[Compared]
    only_first: list[Row]
    only_second: list[Row]


def compare(first: BenchRecord, second: BenchRecord, store: Store | None = None) -> Comparison:
    """Compare two records.

    Differences are over training seeds if both have several; else over test images, paired if ``store`` still holds the
    values of each image, and otherwise from the two intervals as if the images were unrelated, which is cautious.

    Raises:
        SemlinkError: they have no number in common; per-image values in ``store`` are damaged.
    """
    there, here = ({row.key: row for row in each.rows} for each in (first, second))
    pairs = [(row, here[key]) for key, row in there.items() if key in here]
    if not pairs and first.costs and second.costs and not (there or here):
        raise SemlinkError("benches of costs are not compared, for no interval goes with a cost; read both tables")
    if not pairs:
        names = " and ".join(f"{each.name} (variant {each.variant})" for each in (first, second))
        raise SemlinkError(f"{names} have no number in common; compare records of the same links, metrics and SNRs")
    found = [_difference(first, second, a, b, store) for a, b in pairs]
    corrected = holm([results.p_value(interval) for *_, interval in found])
    return Comparison(
        changed=_changes(first, second),
        numbers=[
            Compared(
                link=row.link,
                attack=row.attack,
                metric=row.metric,
                snr_db=row.snr_db,
                first=a,
                second=b,
                over=over,
                difference=Measurement.of(interval, b.unit),
                p_value=results.p_value(interval),
                p_holm=p_holm,
            )
            for (row, _), (a, b, over, interval), p_holm in zip(pairs, found, corrected, strict=True)
        ],
        only_first=[row for key, row in there.items() if key not in here],
        only_second=[row for key, row in here.items() if key not in there],
    )


def _difference(
    first: BenchRecord, second: BenchRecord, a: Row, b: Row, store: Store | None
) -> tuple[Measurement, Measurement, Literal["seeds", "images", "intervals"], Interval]:
    """Return the two numbers to compare, what their difference is over, and the difference."""
    if (interval := results.over_seeds(b, a)) is not None:
        return a.shown, b.shown, "seeds", interval
    common = sorted(a.seeds.keys() & b.seeds.keys())  # one at most, but for baselines, which are the same for all
    of_a, of_b = (row.seeds[common[0]] if common else row.shown for row in (a, b))
    if store is not None and _images(first, a) == _images(second, b):
        values = [results.per_image(record.cells, store, row) for record, row in ((second, b), (first, a))]
        if (interval := results.paired_images(*values)) is not None:
            return of_a, of_b, "images", interval
    return of_a, of_b, "intervals", unpaired_difference(_interval(of_b), _interval(of_a))


def _images(found: BenchRecord, row: Row) -> Any:
    entry = found.recipe["links"][row.link]
    return found.data.get(results.data_key(entry["data"], entry["variant"]))


def _interval(shown: Measurement) -> Interval:
    return Interval(shown.mean, shown.low, shown.high, shown.n, shown.method, shown.level)


def _changes(first: BenchRecord, second: BenchRecord) -> list[Changed]:
    """Return what changed: in the recipe, in the data, in what made the cells."""
    changed = []
    for part in ("links", "attacks"):
        changed += _shared(f"recipe.{part}", first.recipe[part], second.recipe[part])
    rest = [
        {key: value for key, value in each.recipe.items() if key not in ("links", "attacks", "name")}
        for each in (first, second)
    ]
    changed += _differing("recipe", *rest)
    changed += _differing("data", first.data, second.data)
    there, here = _made(first), _made(second)
    both = [of for of in there if of in here]
    hashes = [{of: side[of].pop("step_sha256") for of in both} for side in (there, here)]
    if code := [of for of in both if hashes[0][of] != hashes[1][of]]:  # hashes differ from step to step anyway
        before, after = ({of: each[of] for of in code} for each in hashes)
        changed.append(Changed(what="code", of=code if len(code) < len(both) else [], first=before, second=after))
    return changed + _shared("", *({of: side[of] for of in both} for side in (there, here)))


def _shared(what: str, first: dict[str, Any], second: dict[str, Any]) -> list[Changed]:
    """Return what differs between things of one kind by name, each change once for all those that share it."""
    both = [name for name in first if name in second]
    found: dict[str, tuple[Changed, list[str]]] = {}
    for name in both:
        for each in _differing(what, first[name], second[name]):
            found.setdefault(repr(each), (each, []))[1].append(name)
    alone = _differing(what, *({name: side[name] for name in side if name not in both} for side in (first, second)))
    return [each.model_copy(update={"of": of if len(of) < len(both) else []}) for each, of in found.values()] + alone


def _differing(what: str, first: Any, second: Any) -> list[Changed]:
    """Return what differs, table by table; a table that only one side has is one difference."""
    if isinstance(first, dict) and isinstance(second, dict):
        keys = dict.fromkeys([*first, *second])
        return [d for key in keys for d in _differing(f"{what}.{key}".lstrip("."), first.get(key), second.get(key))]
    return [] if first == second else [Changed(what=what, of=[], first=first, second=second)]


def _made(found: BenchRecord) -> dict[str, dict[str, str]]:
    """Return what made the cells of each step, by flat names; several values of one thing are joined by "or"."""
    facts: dict[str, dict[str, dict[str, None]]] = {}
    for made in found.made:
        for what, value in made.facts.items():
            facts.setdefault(made.of, {}).setdefault(what, {})[value] = None
    return {of: {what: " or ".join(sorted(values)) for what, values in each.items()} for of, each in facts.items()}
