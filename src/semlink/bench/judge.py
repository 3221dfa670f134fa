# SPDX-License-Identifier: Apache-2.0
"""Judging a trained attack on the test set: what it draws or answers over a grid of SNRs, beside what is known anyway.

    Drawing ───> reconstruction ─┬─> likeness to the image, bits about it
                                 └─> Reader ─> answers ─┐
    Inference ─> answers ──────────────────────────────┴─> right or wrong, bits about the label

Every image is sent once, or as often as the threat says; the eavesdropper's SNRs and noise draws run on the stored
symbols, with noise of her own.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from semlink import data
from semlink._errors import SemlinkError, check_name
from semlink.attacks import Attack, Drawing, Inference, Neighbour, class_means, delivered_floor, mean_image
from semlink.bench import attacker, ceilings, code, links, record
from semlink.bench.answering import answers, measured
from semlink.bench.evaluator import finite
from semlink.bench.examples import examples
from semlink.bench.measures import DRAWN, INFERRED, UNITS, wanted
from semlink.bench.reader import Reader, load_reader
from semlink.bench.record import Measurement
from semlink.bench.scoring import BATCH, encode, part
from semlink.data import DataSet, ImageSet
from semlink.metrics import (
    MI_VARIANTS,
    Interval,
    LowerBound,
    bootstrap_interval,
    classifier_bits,
    infonce_bits,
    mean_interval,
    mi_leakage,
    mi_null,
    psnr_db,
    retrieval,
    ssim,
    verification_auc,
)
from semlink.nn import Perceptual
from semlink.schemes import Key, Link, Network
from semlink.training import checkpoint, seeded

#: LPIPS is the dearest metric by far: one draw of so many test images; its interval says how many.
LPIPS_IMAGES = 2000
#: A drawing is looked for among so many images; with fewer it is not, for the results could not be compared.
GALLERY = 500
#: InfoNCE compares so many test images with each other, and cannot exceed the logarithm of their number.
INFONCE_IMAGES = 2000
#: Per-image values by metric: (draws, n), or (draws, n, outputs).
Values = dict[str, Tensor]
#: What is measured of a whole set at once, by metric.
Wholes = dict[str, LowerBound | Interval]
#: From indices of test images to what is heard or drawn of them.
Drawn = Callable[[Tensor], Tensor]


def judge(
    run: Path,
    plan: attacker.Plan,
    work: Path,
    snr_db: Sequence[float],
    draws: int,
    seed: int,
    metrics: Sequence[str],
    device: torch.device,
    out: Path,
    key: Key | None = None,
    reader: Path | None = None,
) -> record.JudgeRecord:
    """Measure the attack trained in ``work`` on the run in ``run`` at every SNR of the grid.

    The record goes to ``out``; to ``.safetensors`` of the same name what each image came to, noise draws averaged,
    ``METRIC@SNR (n,) float32``, and of an attack that draws the ``examples``, in [0, 1]: what it draws at its own SNR
    of the first test images, and of those that rank first, in the middle and last, for which they are sent once more.

    Args:
        run: folder of the victim.
        plan: what was trained.
        work: folder of the trained attack.
        snr_db: grid of Es/N0 on her channel.
        draws: noise draws of each image.
        seed: of the noise.
        metrics: those of ``measures`` that suit the attack.
        device: where it runs.
        out: path of the record.
        key: of the user, if the link was trained with one.
        reader: folder of a trained reader; what is drawn is then read too.

    Raises:
        SemlinkError: the grid, a metric or the number of draws makes no sense; the key or perceptual weights are
            missing; a file is damaged.
        RuntimeError: the victim's weights or buffers changed (a defect in an attack, never accepted).
    """
    grid, begun = finite(snr_db), time.perf_counter()
    if draws < 1:
        raise SemlinkError(f"draws is {draws}: at least 1 noise draw per image is needed")
    for metric in metrics:
        base, _, variant = metric.partition(".")
        check_name("metric", base, (*DRAWN, *INFERRED))
        if base == "mi_legacy":
            check_name("MI variant", variant, MI_VARIANTS)
    trained = links.read_run(run)
    links.check_key(trained.recipe, key, run)
    link, shown = links.load(run, key), data.describe(trained.recipe.data)
    alone = not isinstance(link, Network)  # of a receiver of a network no bound is known here
    least = [{"snr_db": snr, **ceilings.upper_bounds(link, plan.threat, snr)} for snr in grid if alone]
    link.scheme.to(device)
    made = record.read(work / "record.json", record.AttackRecord)
    sets, eve = links.image_sets(trained.recipe), attacker.load_attack(link, plan, shown, work).to(device)
    most = min(len(sets.test), eve.most_images or len(sets.test))
    sets = dataclasses.replace(sets, test=sets.test.subset(torch.arange(most)))
    reads = load_reader(reader, shown, device) if reader else None
    before = attacker.fingerprint(link.scheme)
    found, wholes = values(link, eve, sets, grid, draws, seed, metrics, device, reads)
    if attacker.fingerprint(link.scheme) != before:
        raise RuntimeError(f"attack '{plan.name}' changed its victim while it was judged; its result is void")
    tensors = {f"{name}@{snr:g}": v.mean(0) for snr, row in found.items() for name, v in row.items()}
    if isinstance(eve, Drawing):
        own, noise = plan.threat.snr_db, seeded(seed, "shown", device=device)
        tensors |= examples(sets.test, found, own, lambda images: _drawn(eve, images.to(device), noise))
    checkpoint.save_tensors(out.with_suffix(".safetensors"), tensors)
    judged = record.JudgeRecord(
        **made.model_dump(include={"attack", "threat", "settings", "converged", "last_fifth_fall", "attacker_sha256"}),
        images=made.images | {"test": most},
        history=made.history,
        **record.origin(
            trained.recipe,
            trained.data,
            trained.weights_sha256,
            device,
            code.modules_sha256(*modules(plan.name, trained.recipe.scheme)),
            training_seconds=float(made.timing["training_seconds"]),
            judging_seconds=time.perf_counter() - begun,
        ),
        draws=draws,
        noise_seed=seed,
        points=[
            {"snr_db": snr, **summary(row, sets, seed, metrics), **whole(wholes[snr])} for snr, row in found.items()
        ],
        baselines={
            name: summary(row, sets, seed, metrics)
            for name, row in baselines(link, eve, sets, seed, metrics, device, reads).items()
        },
        ceilings_bits=least,
    )
    record.write(out, judged)
    return judged


def modules(attack: str, scheme: str) -> tuple[str, ...]:
    """Return the modules on which judging an attack depends, but for what they import."""
    return __name__, *attacker.modules(attack, scheme)


def _drawn(eve: Drawing, images: Tensor, noise: torch.Generator) -> Tensor:
    """Return what is drawn of ``images`` at the attack's own SNR."""
    own = eve.tap.threat.snr_db
    if isinstance(eve.tap, Neighbour):
        return eve.reconstruct(eve.tap.overhear(images, noise, own), own)
    return eve.reconstruct(eve.tap.intercept(images, noise), own)


@torch.no_grad()
def values(
    link: Link,
    eve: Attack,
    sets: DataSet,
    grid: Sequence[float],
    draws: int,
    seed: int,
    metrics: Sequence[str],
    device: torch.device,
    reader: Reader | None = None,
) -> tuple[dict[float, Values], dict[float, Wholes]]:
    """Return, for each SNR of the grid, per-image values of what ``eve`` makes of the test set, and what is of all."""
    repeats = range(eve.tap.threat.transmissions)
    nonces = [seeded(seed, "eavesdropped nonces", *[i] * (i > 0), device=device) for i in repeats]
    network = isinstance(eve.tap, Neighbour)  # what a network sends may depend on its channels
    sent = [encode(link, sets.test, each, device) for each in nonces if not network]
    tools = _Tools(sets, metrics, seed, device, reader)
    found: dict[float, Values] = {}
    wholes: dict[float, Wholes] = {}
    for snr_db in grid:
        noise = seeded(seed, "eavesdropper", snr_db, device=device)

        def heard(indices: Tensor, noise: torch.Generator = noise, snr_db: float = snr_db) -> Tensor:
            if isinstance(eve.tap, Neighbour):
                return eve.tap.overhear(sets.test.batch(indices)[0].to(device), noise, snr_db)
            return eve.tap.hear([part(each, indices) for each in sent], noise, snr_db)

        def made(indices: Tensor, heard: Drawn = heard, snr_db: float = snr_db) -> Tensor:
            if isinstance(eve, Inference):
                return eve.infer(heard(indices), snr_db).float()
            assert isinstance(eve, Drawing)
            return eve.reconstruct(heard(indices), snr_db)

        rows, wholes[snr_db] = list[dict[str, Tensor]](), {}
        for repeat in range(draws):
            every = torch.cat([made(indices) for indices in torch.arange(len(sets.test)).split(BATCH)])
            if isinstance(eve, Inference):
                rows.append(tools.answered(every))
                wholes[snr_db] |= tools.label_bits(every) if not repeat else {}
            else:
                rows.append(tools.drawn(every, dear=not repeat))
                wholes[snr_db] |= tools.of_the_whole(every) if not repeat else {}
        found[snr_db] = {name: torch.stack([row[name] for row in rows if name in row]) for name in rows[0]}
    return found, wholes


@torch.no_grad()
def baselines(
    link: Link,
    eve: Attack,
    sets: DataSet,
    seed: int,
    metrics: Sequence[str],
    device: torch.device,
    reader: Reader | None = None,
) -> dict[str, Values]:
    """Return per-image values of what is known without listening.

    Of drawings the attacker's mean image and the mean of the right class; of answers the prior, and what follows from
    the label that the link delivers. ``mi_legacy`` gets its scale: an unrelated image, and the image itself.
    """
    tools, test = _Tools(sets, metrics, seed, device, reader), sets.test
    if isinstance(eve, Inference):
        known = {"prior": _prior(sets.attacker, len(test), len(sets.target_names))}
        if (floor := _delivered(link, sets, seed, device)) is not None:
            known["delivered_label"] = floor
        return {name: {k: v[None] for k, v in tools.answered(logits).items()} for name, logits in known.items()}
    mean = mean_image(sets.attacker).to(device)
    guesses = {"mean_image": mean.expand(len(test), *mean.shape)}
    if link.scheme.design.task.kind == "classify":  # whose receiver knows the class
        guesses["class_mean"] = class_means(sets.attacker, len(sets.target_names)).to(device)[test.targets.to(device)]
    found = {name: tools.drawn(guess, dear=True) for name, guess in guesses.items()}
    if any(metric.startswith("mi_legacy") for metric in metrics):
        found["unrelated_image"] = tools.legacy(tools.images.roll(1, 0))
        found["identical_image"] = tools.legacy(tools.images)
    return {name: {metric: v[None] for metric, v in row.items()} for name, row in found.items()}


class _Tools:
    """What measures one drawing, or one round of answers, of the whole test set: per-image values by metric."""

    def __init__(
        self, sets: DataSet, metrics: Sequence[str], seed: int, device: torch.device, reader: Reader | None
    ) -> None:
        self.metrics, self.seed, self.reader = metrics, seed, reader
        self.targets, self.names, self.persons = sets.test.targets, sets.target_names, sets.test.persons
        self.images = torch.cat([sets.test.batch(i)[0] for i in torch.arange(len(sets.test)).split(BATCH)]).to(device)
        self.lpips = Perceptual("vgg16").to(device) if "lpips" in metrics else None

    def drawn(self, guess: Tensor, dear: bool) -> dict[str, Tensor]:
        """Measure drawings (n, C, H, W); the dearest metric only if ``dear``."""
        pairs, found = list(zip(guess.split(BATCH), self.images.split(BATCH), strict=True)), dict[str, Tensor]()
        for name, measure in {"psnr_db": psnr_db, "ssim": ssim}.items():
            if name in self.metrics:
                found[name] = torch.cat([_over_users(measure, a, b) for a, b in pairs]).cpu()
        if self.lpips is not None and dear:
            few = pairs[: LPIPS_IMAGES // BATCH]
            found["lpips"] = torch.cat([self.lpips(b, a) for a, b in few]).cpu()
        if "mi_leakage" in self.metrics:
            strangers = torch.Generator().manual_seed(self.seed)  # the same for every attack and baseline
            shown, drawn = self.images.flatten(0, -4), guess.flatten(0, -4)  # the images of groups one by one
            bits = (mi_leakage(shown, drawn) - mi_null(shown, drawn, strangers)).cpu()
            found["mi_leakage"] = bits.view(len(guess), -1).mean(1)
        if "retrieval" in self.metrics and len(guess) >= GALLERY:
            found["retrieval"] = retrieval(guess, self.images, GALLERY).cpu()
        if self.reader is not None:
            found |= self.answered(torch.cat([self.reader.answer(a).float() for a, _ in pairs]))
        return found | self.legacy(guess)

    def legacy(self, guess: Tensor) -> dict[str, Tensor]:
        """Return MI as others print it, nothing subtracted."""
        chosen = [metric.partition(".")[2] for metric in self.metrics if metric.startswith("mi_legacy.")]
        return {f"mi_legacy.{variant}": mi_leakage(self.images, guess, variant).cpu() for variant in chosen}

    def answered(self, logits: Tensor) -> dict[str, Tensor]:
        """Measure answers (n, outputs)."""
        return answers(logits.cpu(), self.targets)

    def of_the_whole(self, guess: Tensor) -> Wholes:
        """Measure what is of all drawings (n, C, H, W) at once."""
        found: Wholes = {"infonce_bits": self.image_bits(guess)} if "infonce_bits" in self.metrics else {}
        if "verification_auc" in self.metrics and self.reader is not None and self.persons is not None:
            drawn, shown = (
                torch.cat([self.reader.features(part) for part in of.split(BATCH)]) for of in (guess, self.images)
            )
            persons = self.persons.to(drawn.device)
            found["verification_auc"] = verification_auc(drawn, shown, persons, persons)
        return found

    def image_bits(self, guess: Tensor) -> LowerBound:
        """Bound I(image; heard) from below: the critic is the likeness of each image to each drawing.

        Its sharpness is chosen on the first half of the images, and the bound is of the second.
        """
        count = min(INFONCE_IMAGES, len(guess)) // 2
        a, b = self.images[: 2 * count].flatten(1).double(), guess[: 2 * count].flatten(1).double()
        halves = [-torch.cdist(x, y).square() for x, y in zip(a.split(count), b.split(count), strict=True)]
        spread = halves[0].std()
        found = {2.0**k: infonce_bits(2.0**k / spread * halves[0]).bits for k in range(-4, 11)}
        return infonce_bits(max(found, key=found.__getitem__) / spread * halves[1])

    def label_bits(self, logits: Tensor) -> Wholes:
        """Bound I(label; heard) from below, of each attribute apart."""
        logits, labels = logits.double().cpu(), self.targets.long()
        if labels.ndim == 1:
            every = {"label_bits": (logits, labels)}
        else:
            pairs = torch.stack([-logits, logits], -1) / 2
            every = {f"label_bits.{name}": (pairs[:, i], labels[:, i]) for i, name in enumerate(self.names)}
        return {
            name: classifier_bits(given.log_softmax(1), of)
            for name, (given, of) in every.items()
            if wanted(name, self.metrics)
        }


def _over_users(measure: Callable[[Tensor, Tensor], Tensor], drawn: Tensor, shown: Tensor) -> Tensor:
    """Return ``measure`` of each image, or of each group (B, K, C, H, W) the mean over its users: (B,)."""
    if drawn.ndim == 4:
        return measure(drawn, shown)
    return torch.stack([measure(drawn[:, k], shown[:, k]) for k in range(drawn.shape[1])]).mean(0)


def _prior(known: ImageSet, count: int, outputs: int) -> Tensor:
    """Return the logits of always giving the attacker's shares, (count, outputs)."""
    if known.targets.ndim == 1:
        return torch.bincount(known.targets, minlength=outputs).add(1).log().expand(count, outputs)
    shares = (known.targets.sum(0) + 1) / (len(known) + 2)
    return shares.logit().expand(count, outputs)


def _delivered(link: Link, sets: DataSet, seed: int, device: torch.device) -> Tensor | None:
    """Return logits that follow from the receiver's answer at the link's own SNR; None if it is not such a label."""
    task, labels = link.scheme.design.task, list[Tensor]()
    if task.kind == "reconstruct" or len(task.columns or sets.target_names) > 10:
        return None
    for name, images in (("attacker", sets.attacker), ("test", sets.test)):
        noise = seeded(seed, "delivered", name, device=device)
        outputs = [
            link.deliver(images.batch(i)[0].to(device), link.snr_db, noise).cpu()
            for i in torch.arange(len(images)).split(BATCH)
        ]
        logits = torch.cat(outputs)
        labels.append(logits.argmax(1) if task.kind == "classify" else (logits > 0).long())
    return delivered_floor(labels[0], sets.attacker.targets, labels[1], len(sets.target_names))


def summary(found: Values, sets: DataSet, seed: int, metrics: Sequence[str]) -> dict[str, Measurement]:
    """Return each metric with its interval; MI leakage is skewed, so its images are resampled."""
    shown = {}
    for name, each in found.items():
        base = name.partition(".")[0]
        if base == "mi_leakage":
            interval = bootstrap_interval(each, generator=torch.Generator().manual_seed(seed))
            shown[name] = Measurement.of(interval, UNITS[base])
        elif base in DRAWN:
            shown[name] = Measurement.of(mean_interval(each), UNITS[base], 100 if UNITS[base] == "%" else 1)
    if "accuracy" in found:
        told = measured(found, sets.test.targets, sets.target_names)
        shown |= {name: value for name, value in told.items() if wanted(name, metrics)}
    return shown


def whole(found: Wholes) -> dict[str, Measurement]:
    """Return what is of a whole set; of a lower bound ``low`` may be claimed, and ``high`` is the estimate."""
    shown = {}
    for name, each in found.items():
        if isinstance(each, Interval):
            shown[name] = Measurement.of(each, UNITS[name], 100)
            continue
        bits, low, method = round(each.bits, 6), round(each.low_bits, 6), f"{each.method}, one-sided"
        shown[name] = Measurement(mean=bits, low=low, high=bits, n=each.n, unit="bit", level=each.level, method=method)
    return shown
