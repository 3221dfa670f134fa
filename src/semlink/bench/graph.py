# SPDX-License-Identifier: Apache-2.0
"""From a recipe to its cells: what there is to do, in an order in which it can be done."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from semlink import data
from semlink._errors import SemlinkError
from semlink._files import write_text
from semlink.attacks import Inference, Inversion, Threat, attacks
from semlink.bench import attacker, links, measures, record, trainer, zoo
from semlink.bench.code import modules_sha256
from semlink.bench.presets import preset
from semlink.bench.recipes import AttackEntry, BenchRecipe, FigureEntry, LinkEntry
from semlink.bench.steps import STEPS, Spec
from semlink.bench.store import Store, canonical, subject_of

FORMAT = 2


@dataclass(frozen=True)
class Cell:
    """One piece of work.

    Attributes:
        name: its folder in the store.
        step: key of what is done.
        inputs: names of the cells that it builds on, by role.
        link, attack: names in the recipe; ``attack`` is None for a cell of the link itself, ``link`` and ``seed`` are
            None for images that are prepared and for figures.
    """

    name: str
    step: str
    subject: str
    code: str
    spec: Spec
    inputs: dict[str, str]
    link: str | None
    attack: str | None
    seed: int | None

    @property
    def label(self) -> str:
        """What the cell is called on screen."""
        if self.link is None:
            variant = self.spec.get("variant", "default")
            return f"{self.step} {self.spec['name']}" + (f"/{variant}" if variant != "default" else "")
        on = f" {self.attack} on" if self.attack else ""
        return f"{self.step}{on} {self.link}, seed {self.seed}"


@dataclass(frozen=True)
class Graph:
    """A recipe and its cells, each after those it builds on."""

    recipe: BenchRecipe
    cells: list[Cell]

    def save(self, folder: Path) -> None:
        """Write the graph, so that what is missing can be told without the data."""
        held = {"format": FORMAT, "recipe": self.recipe.model_dump(), "recipe_sha256": self.recipe.sha256}
        write_text(folder / "graph.json", json.dumps(held | {"cells": [asdict(cell) for cell in self.cells]}, indent=1))


#: Told of a cell that is not there while others of its subject are, made by other code; returns the name to use.
Settle = Callable[[Cell, list[Path]], str]


def load(folder: Path, recipe: BenchRecipe) -> Graph:
    """Return the graph that was planned last for ``recipe``.

    Raises:
        SemlinkError: there is none, it is damaged, or it is of another recipe.
    """
    path, again = folder / "graph.json", f"run it: semlink bench {recipe.name}"
    if not path.exists():
        raise SemlinkError(f"recipe '{recipe.name}' (variant {recipe.variant}) has not been run here; {again}")
    try:
        found = json.loads(path.read_text())
        version, sha256 = found["format"], found["recipe_sha256"]
        cells = [Cell(**cell) for cell in found["cells"]] if version == FORMAT else []
    except (ValueError, KeyError, TypeError):
        raise SemlinkError(f"{path} is damaged; {again}") from None
    if version != FORMAT:
        raise SemlinkError(f"{path} has format {version}, this Semlink reads format {FORMAT}; {again}")
    if sha256 != recipe.sha256:
        raise SemlinkError(f"recipe '{recipe.name}' has changed since it was run; {again}")
    return Graph(recipe, cells)


def build(recipe: BenchRecipe, store: Store, settle: Settle = lambda cell, others: cell.name) -> Graph:
    """Return the cells of ``recipe``, named after what is in ``store``.

    Raises:
        SemlinkError: a link or an attack cannot be built; images are missing; the recipe of a link from the zoo is
            another.
    """
    builder, made_of = _Builder(store, settle), dict[str, str]()
    for link_name in _in_order(recipe.links):
        entry = recipe.links[link_name]
        for seed in entry.seeds:
            spec, source = _link_spec(entry, seed, link_name)
            images = {"images": builder.prepare(entry.data, entry.variant)}
            if recipe.costs:
                builder.add("cost", spec, images, link_name, None, seed)
                continue
            start = {"start": made_of[entry.start]} if entry.start in made_of else {}
            link = builder.add(source, spec, images | start, link_name, None, seed)
            made_of.setdefault(link_name, link)
            about = {"scheme": entry.scheme, "link": builder.link_of(link)}
            grid: Spec = {"snr_db": recipe.evaluation.snr_db, "seed": recipe.evaluation.seed}
            measure = about | grid | {"draws": recipe.evaluation.draws}
            builder.add("evaluate", measure, images | {"link": link}, link_name, None, seed)
            for attack_name, attack in recipe.attacks.items():
                if attack.queries is None and link_name in (attack.links or recipe.links):
                    builder.attack(recipe, attack_name, link, link)
    trained = [cell for cell in builder.cells if cell.step in ("train", "fetch")]
    for attack_name, attack in recipe.attacks.items():
        for cell in trained if attack.queries is not None else ():
            if cell.link in (attack.links or recipe.links):
                builder.attack(recipe, attack_name, made_of[attack.queries or ""], cell.name)
    for name, figure in recipe.figures.items():
        builder.draw(name, figure, recipe)
    return Graph(recipe, builder.cells)  # link by link: a bench that is stopped has whole results of some


def _in_order(entries: dict[str, LinkEntry]) -> list[str]:
    """Return the links, each after the one that it starts from; the recipe's check has refused circles."""
    done: list[str] = []
    while left := [name for name in entries if name not in done]:
        done += [name for name in left if entries[name].start not in left]
    return done


class _Builder:
    def __init__(self, store: Store, settle: Settle) -> None:
        self.store, self.settle = store, settle
        self.cells: list[Cell] = []
        self.data: dict[tuple[str, str], str] = {}
        self.prepared: dict[tuple[str, str], str] = {}
        self.fitting = set[tuple[str, str]]()  # attacks and links, tried

    def prepare(self, name: str, variant: str) -> str:
        """Return the cell of a set of images, adding it at its first use."""
        if (name, variant) not in self.prepared:
            spec = {"name": name, "variant": variant}
            self.prepared[name, variant] = self.add("prepare", spec, {}, None, None, None)
        return self.prepared[name, variant]

    def read(self, name: str, variant: str, preset_name: str, seed: int) -> str:
        """Return the cell of a reader of a set of images, adding it at its first use."""
        images = {"images": self.prepare(name, variant)}
        channels = data.describe(name).image_shape[0]
        sizes = {"schedule": preset(preset_name).scale(channels).link.describe()}
        spec = {"name": name, "variant": variant, "preset": preset_name, "seed": seed, "sizes": sizes}
        return self.add("read", spec, images, None, None, None)

    def attack(self, recipe: BenchRecipe, name: str, queried: str, victim: str) -> None:
        """Add the cells of an attack that is trained on the link in the cell ``queried`` and judged on ``victim``."""
        entry, cell = recipe.attacks[name], next(cell for cell in self.cells if cell.name == victim)
        link, asked = recipe.links[cell.link or ""], next(cell for cell in self.cells if cell.name == queried)
        images = {"images": self.prepare(link.data, link.variant)}
        spec, seed = _attack_spec(entry, link, cell.seed or 0), cell.seed
        self.refuse(name, entry, link, cell.link or "")
        about = {"scheme": recipe.links[asked.link or ""].scheme, "link": asked.spec}
        made = self.add("attack", about | spec, images | {"link": queried}, asked.link, name, seed)
        about = {"scheme": link.scheme, "link": cell.spec, "metrics": entry.measured(recipe.evaluation.metrics)}
        grid = {"snr_db": recipe.evaluation.snr_db, "seed": recipe.evaluation.seed}
        inputs = images | {"link": victim, "attack": made}
        if entry.read:
            inputs["reader"] = self.read(link.data, link.variant, entry.preset or link.preset, recipe.evaluation.seed)
        judged = about | spec | grid | {"draws": recipe.evaluation.attack_draws}
        self.add("judge", judged, inputs, cell.link, name, seed)

    def refuse(self, name: str, entry: AttackEntry, link: LinkEntry, link_name: str) -> None:
        """Raise SemlinkError for an attack that can make nothing of what its victim sends, before anything runs."""
        kind = attacks[entry.attack]
        if kind.tapped.of_network != bool(measures.users(link)):
            of = "a network of several users" if measures.users(link) else "a link of one user"
            wanted = "'cross-link' is one" if measures.users(link) else "'cross-link' is not"
            raise SemlinkError(f"attacks.{name} on {link_name}: '{entry.attack}' on {of}; {wanted}")
        inverts = issubclass(kind, Inversion)
        plain = not kind.sees and (inverts or issubclass(kind, Inference)) and entry.transmissions == 1
        if plain or (name, link_name) in self.fitting:
            return
        self.fitting.add((name, link_name))
        shown, perceptual = (
            data.describe(link.data),
            "none" if inverts else entry.perceptual,
        )  # whose weights it can wait for
        threat = Threat(link.snr_db, entry.with_secret, transmissions=entry.transmissions)
        plan = attacker.Plan(entry.attack, threat, entry.preset or link.preset, perceptual, 0, "fp32")
        try:
            eve = attacker.build(links.build(_recipe(link, link.seeds[0])), plan, shown)
            if not kind.tapped.of_network:  # of a network it was overheard to build the attack
                eve.tap.intercept(torch.zeros(1, *shown.image_shape), torch.Generator().manual_seed(0))
        except SemlinkError as error:
            raise SemlinkError(f"attacks.{name} on {link_name}: {error}") from None

    def draw(self, name: str, figure: FigureEntry, recipe: BenchRecipe) -> None:
        """Add the cell of a figure; none if nothing is measured that it shows."""
        against = measures.is_metric(figure.over)
        own, wanted = figure.attacks is None and not against, figure.attacks or recipe.attacks
        attacks = [name for name in recipe.attacks if name in wanted]
        shown = [
            cell
            for cell in self.cells
            if cell.link in (figure.links or recipe.links)
            and (
                (cell.step == "evaluate" and (own or against))
                or (cell.step == "judge" and cell.attack in attacks and figure.metric in cell.spec["metrics"])
            )
        ]
        links = dict.fromkeys(cell.link for cell in shown if cell.link)
        spec = {
            "name": name,
            "title": figure.title or recipe.title,
            "metric": figure.metric,
            # a network trains over a range of SNRs, none of which is its own
            "links": [
                [name, None if measures.users(e) else e.snr_db] for name, e in recipe.links.items() if name in links
            ],
            "attacks": attacks,
            "own": own,
            "of": {str(i): [cell.step, cell.link, cell.attack, cell.seed] for i, cell in enumerate(shown)},
        }
        if against:
            spec |= {"over": figure.over, "at_db": figure.at_db}
        elif figure.over != "snr_db":
            entries, over = {link: recipe.links[link] for link in links}, figure.over
            series = {
                name: [measures.series(link, over), measures.option(link, over)] for name, link in entries.items()
            }
            spec |= {"over": over, "at_db": figure.at_db, "series": series}
        if shown:
            self.add("draw", spec, {str(i): cell.name for i, cell in enumerate(shown)}, None, None, None)

    def add(
        self, step: str, spec: Spec, inputs: dict[str, str], link: str | None, attack: str | None, seed: int | None
    ) -> str:
        # images are known by the hash of what they are; that they must be prepared first changes no result
        hashed = {role: name for role, name in inputs.items() if role != "images"}
        subject = subject_of(step, spec, self._data_sha256(step, spec), hashed)
        code = modules_sha256(*STEPS[step].modules(spec))
        name = self.store.name_for(step, subject, code)
        cell = Cell(name, step, subject, code, spec, inputs, link, attack, seed)
        if self.store.state(name) != "done" and (others := self.store.others(step, subject, name)):
            cell = dataclasses.replace(cell, name=self.settle(cell, others))
        if cell not in self.cells:  # an attack that queries one link may be judged on several
            self.cells.append(cell)
        return cell.name

    def link_of(self, name: str) -> Spec:
        """Return the spec of the link in the cell ``name``."""
        return next(cell.spec for cell in self.cells if cell.name == name)

    def _data_sha256(self, step: str, spec: Spec) -> str:
        """Return the hash of the images that a step works on; "" of a figure, which shows what others made of them."""
        if step == "draw":
            return ""
        recipe = spec.get("recipe") or spec.get("link", {}).get("recipe")
        wanted = (recipe["data"], recipe["variant"]) if recipe else (spec["name"], spec["variant"])
        if wanted not in self.data:
            provenance = data.load(*wanted).provenance
            self.data[wanted] = hashlib.sha256(canonical(provenance).encode()).hexdigest()
        return self.data[wanted]


def _recipe(entry: LinkEntry, seed: int) -> record.Recipe:
    return links.make_recipe(
        entry.scheme,
        data=entry.data,
        variant=entry.variant,
        task=entry.task,
        channel=entry.channel,
        snr_db=entry.snr_db,
        channel_uses=entry.channel_uses,
        preset=entry.preset,
        seed=seed,
        **entry.options,  # pyright: ignore[reportArgumentType]
    )


def _link_spec(entry: LinkEntry, seed: int, name: str) -> tuple[Spec, str]:
    recipe = _recipe(entry, seed)
    links.build(recipe)  # what cannot be built is refused before anything runs
    shown = _without_precision(recipe)
    if entry.weights is not None:
        trained, _ = zoo.read(entry.weights)
        held = _without_precision(trained.recipe)
        if differing := [f"{key} {held[key]!r} there, {shown[key]!r} here" for key in held if held[key] != shown[key]]:
            raise SemlinkError(f"links.{name}: {entry.weights} is another link ({', '.join(differing)})")
        held_precision = {"precision": trained.recipe.precision}
        fetched = {"weights": entry.weights, "sha256": trained.weights_sha256, "recipe": held} | held_precision
        return fetched, "fetch"
    size = preset(recipe.preset)
    sizes = {"backbone": asdict(size.scale(data.describe(recipe.data).image_shape[0]).backbone)}
    sizes |= {"schedule": trainer.schedule(recipe).describe(), "images": size.images}
    spec = {"recipe": shown, "precision": entry.precision, "sizes": sizes}
    if entry.start and entry.start.startswith(zoo.PREFIX):
        spec["start"] = {"weights": entry.start, "sha256": links.weights_of(entry.start)}
    return spec, "train"


def _attack_spec(entry: AttackEntry, link: LinkEntry, seed: int) -> Spec:
    name, shown = entry.preset or link.preset, data.describe(link.data)
    threat = Threat(
        link.snr_db if entry.snr_db is None else entry.snr_db,
        entry.with_secret,
        entry.antennas,
        entry.transmissions,
        entry.channel,
        entry.csi,
    )
    plan = attacker.Plan(entry.attack, threat, name, entry.perceptual, seed, "fp32")
    sizes = plan.sizes(shown) | {"schedule": preset(name).scale(shown.image_shape[0]).attack.describe()}
    return {
        "attack": entry.attack,
        "threat": threat.describe(),
        "preset": name,
        "perceptual": entry.perceptual,
        "attack_seed": seed,
        "precision": link.precision,
        "sizes": sizes,
    }


def _without_precision(recipe: record.Recipe) -> dict[str, Any]:
    """A recipe as it is hashed: which precision is fast depends on the machine, and is kept in the record.

    What a link starts from is said beside it, by name: its weights may not be there yet.
    """
    return recipe.model_dump(exclude={"precision", "start"})
