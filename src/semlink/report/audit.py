# SPDX-License-Identifier: Apache-2.0
"""The page of an audit, for a security reviewer: the worst first, nothing hand-picked, what was not tested."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from semlink._errors import SemlinkError
from semlink._files import write_text
from semlink.bench.audit_record import AuditRecord, Tried
from semlink.bench.figures import Curve
from semlink.bench.measures import TITLES
from semlink.report.audit_text import amount, bound, granted, hearing, meaning, takeaways
from semlink.report.figures import curves_svg, strip_uri
from semlink.report.tables import Row, numbers, table
from semlink.report.template import render

_CHARTS = {"psnr_db": ("mean_image", "mean image"), "accuracy": ("prior", "guessing")}
_HEADS = {  # tables of attacks are wide
    TITLES["accuracy"]: "Right (%)",
    TITLES["mi_leakage"]: "MI (bit)",
    TITLES["retrieval"]: "Found (%)",
    TITLES["infonce_bits"]: "Of the image (bit)",
    TITLES["label_bits"]: "Of the label (bit)",
}
_BASELINES = {
    "mean_image": "mean image, without listening",
    "class_mean": "mean of its class, knowing only the label",
    "prior": "commonest answer, without listening",
    "delivered_label": "from what Bob is told, and no more",
}
_GROUPS = ("Drawn best", "In the middle", "Drawn worst")


def write_audit_page(done: AuditRecord, pictures: Path, out: Path) -> Path:
    """Write the page of an audit to ``out``, a file that loads nothing from anywhere.

    Args:
        done: the record.
        pictures: ``shown.safetensors`` of the audit's work folder; not read if the record shows none.
        out: the HTML file.

    Returns:
        ``out``.

    Raises:
        SemlinkError: the pictures are missing or damaged.
    """
    from markupsafe import Markup

    best = None if done.shown_of is None else done.tried[done.shown_of]
    page = render(
        "audit.html.j2",
        name=done.target["name"],
        lead=_lead(done),
        takeaways=takeaways(done),
        verdicts=[_verdict(done, i) for i in range(len(done.verdicts))],
        groups=_groups(done, pictures),
        unseen=_unseen(done),
        drawn_by="" if best is None else f"{best.attack} at {hearing(best.threat, done.link['snr_db'])}",
        shown_of=f"{best.images:,}" if best else "",
        draws=("one noise draw" if best.draws == 1 else f"the mean of {best.draws} noise draws") if best else "",
        threat_model=done.threat_model,
        charts=[(title, Markup(svg)) for title, svg in _charts(done)],  # names in an SVG are escaped
        attacks=list(_attacks(done)),
        reads=None if done.reader is None else amount(done.reader["accuracy"], "%"),
        bounds=[_bound(done, i) for i in range(len(done.bounds))],
        infonce_images=max((m.n for each in done.tried if (m := each.results.get("infonce_bits"))), default=0),
        untested=done.untested,
        facts={what: [text] for what, text in _facts(done).items() if text},
        command=done.command,
    )
    write_text(out, page)
    return out


def _lead(done: AuditRecord) -> str:
    link, sent = done.link, f"{done.link['channel_uses']:,} symbols an image"
    if link["payload_bits"] is not None:
        sent += f" that carry {link['payload_bits']:g} bits"
    return (
        f"A Semlink audit of {done.target['kind']}: images of {done.data['name']}, {sent}, over {link['channel']} at "
        f"{link['snr_db']:g} dB. Attacks were trained on what an eavesdropper hears, and judged on test images."
    ).replace("-", "−" if link["snr_db"] < 0 else "-")


def _verdict(done: AuditRecord, index: int) -> dict[str, Any]:
    verdict = done.verdicts[index]
    words, unit = meaning(verdict.metric), verdict.value.unit
    return {
        "what": words.does,
        "unit": words.unit,
        "value": numbers([verdict.value])[0],
        "baseline": amount(verdict.baseline, unit),
        "baseline_by": verdict.baseline_by,
        "ceiling": None if verdict.ceiling is None else amount(verdict.ceiling, unit),
        "ceiling_by": bound(verdict.ceiling_by),
        "share": f"{100 * verdict.share:.0f} %",
        "leaks": verdict.leaks,
        "how": f"{verdict.attack}{granted(verdict)} at {hearing(verdict.threat, done.link['snr_db'])}",
        "converged": verdict.converged,
    }


def _groups(done: AuditRecord, pictures: Path) -> list[dict[str, str]]:
    if not done.shown:
        return []
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(pictures)
        originals, drawn = tensors["originals"], tensors["drawn"]
    except (SafetensorError, KeyError, OSError):
        raise SemlinkError(f"{pictures} is missing or damaged; remove its folder and audit again") from None
    few = len(done.shown) // len(_GROUPS)
    groups = []
    for i, title in enumerate(_GROUPS):
        part = slice(i * few, (i + 1) * few)
        ranks = ", ".join(f"{each.rank:,}" for each in done.shown[part])
        scores = ", ".join(f"{each.psnr_db:.1f}" for each in done.shown[part])
        caption = f"Ranks {ranks} of {done.shown[0].of:,}: {scores} dB"
        strips = {"originals": strip_uri(originals[part]), "drawn": strip_uri(drawn[part])}
        groups.append({"title": title, "caption": caption, **strips})
    return groups


def _unseen(done: AuditRecord) -> str:
    if "celeba" in done.data["name"]:
        return f"The terms of {done.data['name']} forbid showing images; there are numbers only."
    return "" if done.shown else "No attack that draws was made."


def _charts(done: AuditRecord) -> Iterator[tuple[str, str]]:
    """Yield title and SVG: of each metric the attacks that were trained at several SNRs, and the others as points."""
    for metric, (baseline, called) in _CHARTS.items():
        lines: dict[str, dict[float, Any]] = {}
        for each in done.tried:
            alone = (each.threat.get("antennas") or 1) == (each.threat.get("transmissions") or 1) == 1
            if metric in each.results and alone and not each.reference:
                lines.setdefault(each.attack, {})[each.snr_db] = each.results[metric]
        curves = [
            Curve(attack, dict(sorted(points.items())), done.link["snr_db"])
            for attack, points in lines.items()
            if len(points) > 1
        ]
        if curves:
            guess = done.baselines.get(baseline, {}).get(metric)
            words = meaning(metric)
            yield (
                words.does,
                curves_svg(
                    curves,
                    f"{words.does}: {words.unit}",
                    None if guess is None else guess.mean,
                    called=called,
                    always=True,
                    xlabel="Eve's SNR Es/N0 (dB)",
                    mark="Bob hears at",
                ),
            )


def _attacks(done: AuditRecord) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a title and a table of the attacks that draw, and of those that answer."""
    of_classes = "classes" in done.data
    for title, draws in (("Drawing the image", True), ("Naming what it shows", False)):
        rows = [_row(done, each, of_classes) for each in done.tried if ("psnr_db" in each.results) == draws]
        guesses = [
            Row(_BASELINES.get(name, name), _kept(values, of_classes), verdict="baseline")
            for name, values in done.baselines.items()
            if ("psnr_db" in values) == draws
        ]
        if rows:
            shown = table([*rows, *guesses])
            yield title, shown | {"columns": [_HEADS.get(name, name) for name in shown["columns"]]}


def _row(done: AuditRecord, tried: Tried, of_classes: bool) -> Row:
    label = f"{tried.attack}{granted(tried)}, {hearing(tried.threat, done.link['snr_db'])}"
    fell = tried.last_fifth_fall
    fall = "too short to tell" if fell is None else f"loss still fell {100 * fell:.1f} % at the end"
    verdict = "yes" if tried.converged else f"no: {fall}"
    if tried.epochs < tried.full_epochs:
        verdict += f"; {tried.epochs} of {tried.full_epochs} epochs for want of time"
    if tried.reference:
        verdict += "; excluded by the threat model, for comparison"
    return Row(label, _kept(tried.results, of_classes), verdict=verdict, marked=not tried.converged)


def _kept(values: dict[str, Any], of_classes: bool) -> dict[str, Any]:
    """Return what is tabled: of attributes, of which there are many, their mean only."""
    return {
        name: value for name, value in values.items() if "." not in name and name != "balanced_accuracy" * of_classes
    }


def _bound(done: AuditRecord, index: int) -> dict[str, Any]:
    row = done.bounds[index]
    name = min((n for n in row.bits if n not in ("least", "hard_capacity_bits")), key=row.bits.__getitem__)
    heard = [each.results for each in done.tried if each.threat == row.threat]
    found = [results["infonce_bits"].low for results in heard if "infonce_bits" in results]
    unbiased = None if row.dfil is None or row.dfil.mean <= 0 else 10 * math.log10(row.dfil.mean)
    return {
        "threat": hearing(row.threat, done.link["snr_db"]),
        "least": amount(max(found), "bit") if found and max(found) > 0 else None,
        "most": amount(row.bits["least"], "bit"),
        "why": bound(name),
        "unbiased": None if unbiased is None else amount(unbiased, "dB"),
    }


def _facts(done: AuditRecord) -> dict[str, str]:
    target, link, machine = done.target, done.link, done.machine
    splits = done.data.get("splits", {})
    facts = {"Target": f"{target['name']}, {target['kind']}"}
    if "scale" in target:
        facts |= {
            "Encoder": f"{target['parameters']:,} parameters; returns {target['returns']}"
            + ("; draws noise" if target["random"] else ""),
            "Power": f"mean energy of a symbol {target['energy']:.6g} on the transceiver's images, brought to 1 by the "
            f"public constant {target['scale']:.6g}; single images take {target['least']:.3g} to {target['most']:.3g}",
        }
    return facts | {
        "Scheme": link["scheme"] or "",
        "Secret": link["secret"] or "",
        "Channel": f"{link['channel']}, Bob at {link['snr_db']:g} dB Es/N0",
        "Channel uses per image": f"{link['channel_uses']:,}",
        "Data": f"{done.data['name']}, variant {done.data['variant']}",
        "Images by role": ", ".join(f"{role.replace('_', ' ')} {held['n']:,}" for role, held in splits.items()),
        "Attacks": f"preset {done.preset}, seed {done.seed}, {done.precision}; victim's weights unchanged by them",
        "Time": f"{done.minutes:g} minutes given, {done.seconds / 60:.1f} minutes taken by attacks",
        "Finished": done.finished,
        "Machine": f"{machine['device']}; {machine['processor']}, {machine['threads']} threads",
        "Versions": f"semlink {done.semlink}, python {machine['python']}, torch {machine['torch']}",
        "Code": done.code_sha256[:12],
        "Data hash": str(done.data.get("sha256", ""))[:12],
        "Victim's hash": done.victim_sha256[:12],
    }
