# SPDX-License-Identifier: Apache-2.0
"""An audit: every attack that suits a link and fits the time, one record of what came out, the worst first.

<out>/audit.json              the record, written last
      work/<hash>/ATTACK-…/   a folder an attack: its checkpoint while it is trained, then weights, values and results
                  reader/     the classifier that reads what is drawn
                  shown.safetensors   test images and what the strongest attack drew of them; never of CelebA

The hash is of all that an attack depends on but for the time it is given, the victim's weights among it: another
encoder never meets the attacks on this one, and an audit that was killed goes on where it was.
"""

import hashlib
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from semlink._errors import SemlinkError, TrainingDiverged, check_positive
from semlink._files import exclusive
from semlink.bench import attacker, ceilings, judge, record
from semlink.bench.audit_record import AuditRecord, Bound, Shown, Untested, Verdict
from semlink.bench.battery import Case, Nature, assumptions, battery, called, left_out, nature, unsuited
from semlink.bench.pacing import Clock
from semlink.bench.record import Measurement
from semlink.bench.target import Target
from semlink.bench.trying import Outcome, Setting, Watchers, attempt, load, metrics, read
from semlink.bench.verdicts import Known, verdicts
from semlink.metrics import mi_leakage, mi_null, psnr_db
from semlink.training import checkpoint, describe_machine, seeded

PICTURES = "shown.safetensors"  # absent if none may be shown
RANKS = 3  # images shown of each end and of the middle
_TRIES = 0.9  # of the time goes to attacks, the rest to the page
_FISHER_IMAGES, _PROBES = 32, 16
_READING = "what a classifier reads off the drawings"


def audit(
    target: Target,
    out: Path,
    device: torch.device,
    watcher: Watchers,
    *,
    minutes: float = 8.0,
    attacks: Sequence[str] = (),
    seed: int = 0,
    precision: Literal["bf16", "fp32"] = "fp32",
    command: str = "",
    begun: float | None = None,
) -> tuple[AuditRecord, Path]:
    """Attack ``target`` for ``minutes``, write ``<out>/audit.json``, and return its record and the path of pictures.

    Args:
        target: what ``semlink.bench.target.resolve`` returned.
        out: folder.
        device: where it runs.
        watcher: makes the display of one training from its title.
        minutes: what fits is decided by the pace; the rest is listed as not tested.
        attacks: keys of attacks; the battery if there is none.
        seed: of the attackers.
        precision: of their trainings.
        command: what was typed, for the record.
        begun: when the time began to run, of ``time.perf_counter``; now if left out.

    Raises:
        SemlinkError: an attack is unknown, none fits into the time, or another process is at it.
        RuntimeError: the victim changed while it was attacked, which voids the audit.
    """
    check_positive("minutes", minutes)
    clock = Clock(_TRIES * 60 * minutes, time.perf_counter() if begun is None else begun)
    link = target.link
    link.scheme.to(device)
    before, kind = attacker.fingerprint(link.scheme), nature(target, device)
    cases = battery(target, kind, attacks)
    work = out / "work" / _identity(target, seed, precision, device)
    with exclusive(work):
        setting = Setting(target, device, seed, precision, work, watcher)
        untested = [] if read(setting, clock) else [Untested(what=_READING, why=_late(minutes))]
        outcomes = list[Outcome]()
        for case in cases:
            why = unsuited(target, setting.plan(case))
            try:
                made = None if why else attempt(setting, case, clock)
            except TrainingDiverged as error:
                made, why = None, f"its training diverged: {error}"
            if made:
                outcomes.append(made)
            else:
                untested.append(Untested(what=called(case), why=why or _late(minutes)))
        if not outcomes:
            raise SemlinkError(f"no attack suits {target.name} and fits into {minutes:g} minutes; raise --minutes")
        if attacker.fingerprint(link.scheme) != before:
            raise RuntimeError("the victim changed while it was attacked; the audit is void")
        known = _known(setting, outcomes)
        judged = verdicts(outcomes, known, _classes(target), _most(setting))
        strongest = _strongest(outcomes, judged)
        done = AuditRecord(
            code_sha256=record.code_sha256(),
            libraries={name: version(name) for name in record.LIBRARIES},
            machine=describe_machine(device),
            target={"name": target.name, "kind": target.kind, **link.scheme.describe()},
            victim_sha256=before,
            link=_described(target, kind, device),
            data=target.sets.provenance,
            preset=target.preset,
            seed=seed,
            precision=precision,
            minutes=minutes,
            seconds=round(sum(each.tried.training_seconds + each.tried.measuring_seconds for each in outcomes), 1),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            command=command,
            threat_model=assumptions(target, kind),
            verdicts=judged,
            tried=[each.tried for each in outcomes],
            baselines={name: dict(row.measured) for name, row in known[max(known)].items()},
            bounds=_bounds(setting, outcomes),
            shown=_shown(setting, strongest) if strongest else [],
            reader=setting.reads,
            shown_of=None if strongest is None else outcomes.index(strongest),
            untested=[*untested, *(Untested(what=what, why=why) for what, why in left_out(kind, cases, attacks))],
        )
        record.write(out / "audit.json", done)
    return done, work / PICTURES


def _late(minutes: float) -> str:
    return f"out of time: {minutes:g} minutes were given"


def _identity(target: Target, seed: int, precision: str, device: torch.device) -> str:
    sets, heard = (target.sets.name, target.sets.variant, target.preset), (target.channel, target.link.snr_db)
    whole = repr((target.identity, sets, heard, seed, precision, device.type, record.code_sha256()))
    return hashlib.sha256(whole.encode()).hexdigest()[:12]


def _classes(target: Target) -> int | None:
    return target.shown.targets if target.shown.kind == "classes" else None


def _described(target: Target, kind: Nature, device: torch.device) -> dict[str, Any]:
    images = target.sets.attacker_validation.batch(torch.arange(2))[0]
    sent = target.link.transmit(images.to(device), seeded(0, device=device))
    return {
        "scheme": target.recipe.scheme if target.recipe else None,
        "channel": target.channel,
        "snr_db": target.link.snr_db,
        "channel_uses": sent.channel_uses,
        "payload_bits": sent.payload_bits,
        "secret": target.link.scheme.secret,
        **kind._asdict(),
    }


def _known(setting: Setting, outcomes: Sequence[Outcome]) -> dict[int, dict[str, Known]]:
    """Return what needs no interception, by number of test images and name."""
    found: dict[int, dict[str, Known]] = {}
    kinds = [setting.build(Case(key, outcomes[0].case.threat)) for key in ("inversion", "inference")]
    for count in dict.fromkeys(outcome.tried.images for outcome in outcomes):
        row, sets = found.setdefault(count, {}), setting.sets(count)
        for eve in kinds:
            common = sets, setting.seed, metrics(eve)
            every = judge.baselines(setting.target.link, eve, *common, setting.device, setting.reader)
            for name, values in every.items():
                row[name] = Known(judge.summary(values, *common), {k: v.mean(0) for k, v in values.items()})
    return found


def _most(setting: Setting) -> dict[str, float]:
    """Return what metrics come to for one who sees the images themselves."""
    test = setting.target.sets.test
    images = test.batch(torch.arange(min(500, len(test))))[0]
    own = mi_leakage(images, images) - mi_null(images, images, seeded(setting.seed, "strangers"))
    if test.targets.ndim == 1:
        entropies = {"label_bits": _entropy(torch.bincount(test.targets))}
    else:
        counts = [torch.stack([n, len(test) - n]) for n in test.targets.sum(0)]
        entropies = {
            f"label_bits.{name}": _entropy(count)
            for name, count in zip(setting.target.sets.target_names, counts, strict=True)
        }
    return {"mi_leakage": float(own.mean()), **entropies}


def _entropy(counts: torch.Tensor) -> float:
    shares = counts[counts > 0].double() / counts.sum()
    return float(-(shares * shares.log2()).sum())


def _bounds(setting: Setting, outcomes: Sequence[Outcome]) -> list[Bound]:
    """Return the upper bounds of every threat, the worst first."""
    link, few = setting.target.link, setting.sets(_FISHER_IMAGES).test
    images, bounds = few.batch(torch.arange(len(few)))[0].to(setting.device), []
    for threat in dict.fromkeys(each.case.threat for each in outcomes):
        generator = seeded(setting.seed, "probes", device=setting.device)
        dfil = ceilings.fisher(link, images, threat, threat.snr_db, generator, _PROBES)
        bounds.append(
            Bound(
                threat=threat.describe(),
                bits=ceilings.upper_bounds(link, threat, threat.snr_db),
                dfil=None if dfil is None else Measurement.of(dfil, "1/pixel^2"),
            )
        )
    return sorted(bounds, key=lambda each: -each.bits["least"])


def _strongest(outcomes: Sequence[Outcome], judged: Sequence[Verdict]) -> Outcome | None:
    """Return the attack that draws best, by the verdict on PSNR."""
    best = next((each for each in judged if each.metric == "psnr_db"), None)
    wanted = None if best is None else (best.attack, best.threat)
    return next((each for each in outcomes if (each.tried.attack, each.tried.threat) == wanted), None)


@torch.no_grad()
def _shown(setting: Setting, strongest: Outcome) -> list[Shown]:
    """Choose test images by rank alone, keep what the strongest attack drew of them, and return which they are.

    Ranked is by PSNR, noise draws averaged; shown is one drawing more. CelebA's terms forbid showing faces.
    """
    if "celeba" in setting.target.sets.name:
        return []
    order = strongest.values["psnr_db"].argsort(descending=True).tolist()
    count = len(order)
    few, middle = min(RANKS, count // 3), count // 2
    ranks = [*range(few), *range(middle - few // 2, middle - few // 2 + few), *range(count - few, count)]
    index = torch.tensor([order[rank] for rank in ranks])
    originals, eve = setting.target.sets.test.batch(index)[0].to(setting.device), load(setting, strongest)
    heard = eve.tap.intercept(originals, seeded(setting.seed, "shown", device=setting.device))
    drawn = eve.reconstruct(heard, strongest.case.threat.snr_db)
    checkpoint.save_tensors(setting.work / PICTURES, {"originals": originals, "drawn": drawn})
    scores = psnr_db(drawn, originals).tolist()
    return [
        Shown(index=i, rank=rank + 1, of=count, psnr_db=round(score, 3))
        for i, rank, score in zip(index.tolist(), ranks, scores, strict=True)
    ]
