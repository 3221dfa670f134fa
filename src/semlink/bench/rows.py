# SPDX-License-Identifier: Apache-2.0
"""Rows of a bench: what was measured of a link or of an attack on it, seed by seed, with its interval."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from semlink.bench import record
from semlink.bench.measures import wanted as is_wanted
from semlink.bench.record import JudgeRecord, Measurement, Record
from semlink.metrics import seed_interval

#: Attack of a row of a link that answers nothing but the commoner of two.
CONSTANT = "constant"
#: Attack of a row that no attack is needed for: what is known without listening, and the ends of a metric's scale.
BASELINES = (CONSTANT, "mean_image", "class_mean", "prior", "delivered_label", "unrelated_image", "identical_image")


class About(record.Strict):
    """A metric of a link, or of an attack on it, at one SNR, which is None for a baseline: that hears nothing."""

    link: str
    attack: str | None
    metric: str
    snr_db: float | None

    @property
    def key(self) -> tuple[str, str | None, str, float | None]:
        """What a number is about."""
        return self.link, self.attack, self.metric, self.snr_db

    @property
    def name(self) -> str:
        """What it is called in tables: the link, and the attack on it."""
        return f"{self.link}, {self.attack}" if self.attack else self.link


class Row(About):
    """What was measured: for each training seed, and over the seeds.

    ``over_seeds`` is None of one seed, and of a baseline, in which nothing is trained. ``converged`` is None where
    nothing was attacked, as are these two: ``trained_snr_db``, Es/N0 on the channel of the attack in training, and
    ``mean_image``, for each seed what the mean image scores on the very images that the attack was judged on. That one
    stands beside PSNR alone. Records of earlier versions have neither.
    """

    seeds: dict[int, Measurement]
    over_seeds: Measurement | None
    converged: bool | None
    trained_snr_db: float | None = None
    mean_image: dict[int, Measurement] | None = None

    @property
    def attacked(self) -> bool:
        """Whether the row is of what an eavesdropper does, and not of the link."""
        return self.attack not in (None, CONSTANT)

    @property
    def shown(self) -> Measurement:
        """The number to show: over the seeds (Student's t) if there are several, else of the one (over images)."""
        return self.over_seeds or next(iter(self.seeds.values()))


class Measured(NamedTuple):
    """A record and what it is of: a link, or an attack on it, and the training seed."""

    link: str
    attack: str | None
    seed: int
    record: Record


def rows(
    measured: Sequence[Measured], links: Iterable[str], attacks: Iterable[str], metrics: Iterable[str]
) -> Iterator[Row]:
    """Yield the rows of ``metrics`` in the order of ``links``: of each its own, its baselines, its ``attacks``."""
    attacks, metrics = list(attacks), list(metrics)
    for link in links:
        mine = [each for each in measured if each.link == link]
        own = {each.seed: each.record for each in mine if isinstance(each.record, record.EvaluateRecord)}
        yield from _series(link, None, {seed: each.points for seed, each in own.items()}, metrics, None)
        every = [(each.seed, each.record) for each in mine if isinstance(each.record, JudgeRecord)]
        for name in BASELINES:
            bare: dict[int, list[dict[str, Any]]] = {}
            for seed, each in sorted(every, key=lambda each: each[1].images["test"]):  # those of most images prevail
                if name in each.baselines:
                    bare[seed] = [bare.get(seed, [{}])[0] | each.baselines[name]]
            if name == CONSTANT:
                bare = {seed: [each.constant] for seed, each in own.items() if each.constant}
            yield from _series(link, name, bare, metrics, None)
        for attack in attacks:
            held = [each for each in mine if each.attack == attack]
            found = {each.seed: each.record for each in held if isinstance(each.record, JudgeRecord)}
            converged = all(each.converged for each in found.values())
            trained = next((each.snr_db for each in found.values()), None)
            guesses = {s: r.baselines["mean_image"] for s, r in found.items() if "mean_image" in r.baselines}
            guessed = {seed: guess["psnr_db"] for seed, guess in guesses.items() if "psnr_db" in guess}
            for row in _series(link, attack, {s: r.points for s, r in found.items()}, metrics, converged):
                beside = guessed if row.metric == "psnr_db" and guessed else None
                yield row.model_copy(update={"trained_snr_db": trained, "mean_image": beside})


def _series(
    link: str,
    attack: str | None,
    by_seed: dict[int, list[dict[str, Any]]],
    wanted: list[str],
    converged: bool | None,
) -> Iterator[Row]:
    # Of a bench that is not done a seed may lack what another has, as baselines of an attack that was not judged yet.
    names = dict.fromkeys(name for each in by_seed.values() for name in each[0] if is_wanted(name, wanted))
    for name in names:
        held = {seed: each for seed, each in by_seed.items() if name in each[0]}
        for i, point in enumerate(next(iter(held.values()))):
            seeds = {seed: each[i][name] for seed, each in held.items()}
            yield Row(
                link=link,
                attack=attack,
                metric=name,
                snr_db=point.get("snr_db"),
                seeds=seeds,
                over_seeds=None if attack in BASELINES else _over(seeds),
                converged=converged,
            )


def _over(seeds: dict[int, Measurement]) -> Measurement | None:
    if len(seeds) < 2:
        return None
    values = torch.tensor([each.mean for each in seeds.values()], dtype=torch.float64)
    return Measurement.of(seed_interval(values), next(iter(seeds.values())).unit)
