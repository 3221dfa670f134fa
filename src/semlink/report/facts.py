# SPDX-License-Identifier: Apache-2.0
"""How the numbers came about: settings, sizes, costs and hashes, as rows of text."""

from collections.abc import Sequence

from semlink.report.gather import Attacked, Run
from semlink.report.text import reception

Facts = dict[str, list[str]]  # what -> one text for each link or attack


def link_facts(runs: Sequence[Run]) -> Facts:
    """Return the facts of links; lists are as long as ``runs``."""
    return _by_name([_of_link(run) for run in runs])


def attack_facts(attacks: Sequence[Attacked]) -> Facts:
    """Return the facts of attacks; lists are as long as ``attacks``."""
    return _by_name([_of_attack(attack) for attack in attacks])


def _of_link(run: Run) -> dict[str, str]:
    made, recipe, measured = run.train, run.recipe, run.evaluation
    power = measured.power if measured else {}
    splits = made.data.get("splits", {})
    machine = {name: made.machine.get(name, "?") for name in ("device", "processor", "threads", "python", "torch")}
    return {
        "Data": f"{recipe.data}, variant {recipe.variant}",
        "Images by role": ", ".join(f"{role.replace('_', ' ')} {_whole(s['n'])}" for role, s in splits.items()),
        "Task": recipe.task,
        "Channel": f"{recipe.channel}, trained at {recipe.snr_db:g} dB Es/N0",
        "Channel uses per image": _whole(made.channel_uses),
        "Transmit power": f"mean {power['mean']:.8g}, peak {power['peak']:.8g}" if power else "not measured yet",
        "Largest deviation from power 1": f"{power['largest_deviation_from_1']:.3g}" if power else "",
        "Key": _key(recipe.key),
        "Parameters": _parts(made.parameters),
        "Multiply-adds per image": _parts(made.multiply_adds),
        "Schedule": f"preset {recipe.preset}, {_whole(len(made.history))} epochs, {made.selection}",
        "Training time": f"{made.timing.get('training_seconds', '?')} s",
        "Finished": str(made.timing.get("finished", "")),
        "Precision": recipe.precision,
        "Machine": f"{machine['device']}; {machine['processor']}, {machine['threads']} threads",
        "Training seed": str(recipe.seed),
        "Evaluation": f"{measured.draws} noise draws an image, noise seed {measured.noise_seed}" if measured else "",
        "Versions": f"semlink {made.semlink}, python {machine['python']}, torch {machine['torch']}",
        "Code": made.code_sha256[:12],
        "Data hash": str(made.data.get("sha256", ""))[:12],
        "Weights hash": made.weights_sha256[:12],
    }


def _of_attack(attack: Attacked) -> dict[str, str]:
    said, settings = attack.record, attack.record.settings
    schedule = settings.get("schedule", {})
    perceptual = f"MSE and {settings['taps']} layers of VGG16" if settings.get("taps") else "MSE"
    return {
        "Attack": f"{said.attack}, seed {settings.get('seed', '?')}, {settings.get('precision', '?')}",
        "Eve's channel": f"{said.threat['snr_db']:g} dB Es/N0, noise of her own{reception(said)}",
        "She may": "have images of her own sent, listen" + (", use the key" if attack.with_secret else ""),
        "Images by role": ", ".join(f"{role.replace('_', ' ')} {_whole(n)}" for role, n in said.images.items()),
        "Decoder parameters": _whole(settings["parameters"]) if "parameters" in settings else "",
        "Training loss": perceptual,
        "Schedule": f"{_whole(len(said.history))} epochs of batches of {schedule.get('batch_size', '?')}",
        "Fall in the last fifth": "too few epochs to tell"
        if said.last_fifth_fall is None
        else f"{100 * said.last_fifth_fall:.2f} % (1 % or less counts as converged)",
        "Training time": f"{said.timing.get('training_seconds', '?')} s",
        "Noise draws": str(said.draws),
    }


def _by_name(columns: list[dict[str, str]]) -> Facts:
    """Turn one mapping a column into one row a name; rows without any text are dropped."""
    names = dict.fromkeys(name for column in columns for name in column)
    rows = {name: [column.get(name, "") for column in columns] for name in names}
    return {name: texts for name, texts in rows.items() if any(texts)}


def _key(key: dict[str, str] | None) -> str:
    if key is None:
        return "none"
    kind = "test key, derived from the seed: protects nothing" if key.get("kind") == "test" else "the user's own"
    return f"{kind} (fingerprint {key.get('fingerprint', '?')})"


def _parts(counts: dict[str, int]) -> str:
    """Write ``{"a": 1, "b": 2}`` as "3 (a 1, b 2)"; a "total" that is there is taken at its word."""
    parts = {name: n for name, n in counts.items() if name != "total"}
    listed = ", ".join(f"{name} {_whole(n)}" for name, n in parts.items())
    return f"{_whole(counts.get('total', sum(parts.values())))}" + (f" ({listed})" if listed else "")


def _whole(n: int) -> str:
    return f"{n:,}"
