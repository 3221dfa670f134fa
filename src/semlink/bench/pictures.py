# SPDX-License-Identifier: Apache-2.0
"""Test images of a bench, and what became of them: read from the cells in the store, and drawn as a figure.

evaluate, judge ──> examples ──> pictures ─┬─> test_images.png, of data sets that may be shown to everybody
                                           └─> the page of a bench, which is the user's own
"""

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from semlink._errors import SemlinkError
from semlink._files import atomic_path
from semlink.bench.examples import RANKED
from semlink.bench.figures import style
from semlink.bench.results import BenchRecord
from semlink.bench.rows import Row
from semlink.bench.store import Store
from semlink.metrics import psnr_db

#: Data sets whose images may be published; the terms of CelebA forbid it, and of a set that is new nothing is known.
SHAREABLE = frozenset({"digits", "mnist", "fashion-mnist", "cifar10"})
FILE = "test_images.png"  # no figure of a recipe is called so, for their names have no underscore
COUNT = 8  # images side by side
_NOTE = (
    "The first test images, by the first training; below PSNR in dB, at the left means over all images and trainings"
)
_MEANS = {"psnr_db": "PSNR {:.1f} dB", "ssim": "SSIM {:z.2f}", "mi_leakage": "MI {:z.2f} bit"}


class Pictures(NamedTuple):
    """What a receiver, or an attack on its link, made of test images, by the first seed that is there.

    Attributes:
        name: the link, and the attack.
        doubts: what speaks against taking the attack for the best there is.
        data: the data set.
        said: who heard at which SNR, and means over all test images there, in words.
        users: K of a network, or 1.
        originals: (n, C, H, W); of a network the images of each group in turn.
        made: the same.
        ranked: the best, the median and the worst, as pairs of (K, C, H, W); empty if they were not kept.
    """

    name: str
    doubts: list[str]
    data: str
    said: list[str]
    users: int
    originals: Tensor
    made: Tensor
    ranked: list[tuple[Tensor, Tensor]]

    @property
    def scores(self) -> list[float]:
        """PSNR in dB of each that was made."""
        return psnr_db(self.made, self.originals).tolist()

    @property
    def is_shareable(self) -> bool:
        """Whether its images may be published."""
        return set(self.data.split("+")) <= SHAREABLE


def gather(found: BenchRecord, store: Store) -> list[Pictures]:
    """Return what the store has of a bench, in the order of its rows.

    Raises:
        SemlinkError: a file is damaged.
    """
    cells, held = dict[tuple[str | None, str | None], Path](), list[Pictures]()
    for cell in found.cells:
        if cell.step in ("evaluate", "judge") and cell.state == "done":
            path = store.folder(cell.name) / f"{cell.step}.safetensors"
            cells.setdefault((cell.link, cell.attack), path)
    rows: dict[tuple[str, str | None], list[Row]] = {}
    for row in found.rows:
        rows.setdefault((row.link, row.attack), []).append(row)
    for about, mine in rows.items():
        if about in cells and (tensors := _read(cells[about])):
            try:
                held.append(_pictures(found, mine, tensors))
            except (SemlinkError, KeyError, ValueError, IndexError, RuntimeError):
                raise SemlinkError(_damaged(cells[about], "its images do not fit together")) from None
    return held


def store_of(folder: Path) -> Store | None:
    """Return the store that the folder of a bench lies in; None of a folder elsewhere, as one of landed results."""
    root = folder.resolve().parent.parent
    return Store(root) if (root / "store.json").is_file() else None


def grouped(every: Iterable[Pictures]) -> list[list[Pictures]]:
    """Return those together that are of the same images."""
    groups: list[list[Pictures]] = []
    for each in every:
        same = (of for of in groups if of[0].data == each.data and torch.equal(of[0].originals, each.originals))
        if (group := next(same, None)) is None:
            groups.append(group := [])
        group.append(each)
    return groups


def draw(folder: Path, found: BenchRecord, store: Store) -> list[Path]:
    """Draw the first test images and what became of them into ``folder``; nothing that may not be shared.

    Returns:
        The file, or none if there is nothing to draw.

    Raises:
        SemlinkError: a file of the store is damaged.
    """
    groups = grouped(each for each in gather(found, store) if each.is_shareable)
    if not groups:
        (folder / FILE).unlink(missing_ok=True)  # of an earlier recipe of this name
        return []
    lines: list[tuple[str, Tensor, Sequence[float]]] = []
    for group in groups:
        lines.append((f"{group[0].data}, as sent", group[0].originals, []))
        for each in group:
            lines.append(("\n".join([each.name, *each.doubts, ", ".join(each.said)]), each.made, each.scores))
    _figure(folder / FILE, found.title, lines)
    return [folder / FILE]


def _pictures(found: BenchRecord, rows: list[Row], tensors: dict[str, Tensor]) -> Pictures:
    first = rows[0]
    link, attack = found.recipe["links"][first.link], found.recipe["attacks"].get(first.attack, {})
    own = link["snr_db"] if attack.get("snr_db") is None else attack["snr_db"]
    measured = {row.metric: row.shown.mean for row in rows if row.snr_db == own}
    means = [words.format(measured[name]) for name, words in _MEANS.items() if name in measured]
    held = {name: each.clamp(0, 1) if each.is_floating_point() else each for name, each in tensors.items()}
    if held["originals"].ndim == 4:  # of one user
        held |= {name: each[:, None] for name, each in held.items() if each.ndim == 4}
    users = held["originals"].shape[1]
    groups, ranked = max(1, COUNT // users), range(len(RANKED) if "ranked" in held else 0)
    return Pictures(
        first.name,
        ["not converged"] * (first.converged is False)
        + ["worse than the mean image"] * ((first.link, first.attack) in found.poor()),
        link["data"],
        [f"{'Eve' if first.attacked else 'Bob'} at {own:g} dB", *means],
        users,
        held["originals"][:groups].flatten(0, 1),
        held["drawn"][:groups].flatten(0, 1),
        [(held["ranked_originals"][i], held["ranked_drawn"][i]) for i in ranked],
    )


def _read(path: Path) -> dict[str, Tensor]:
    """Return the examples in a file; nothing if it has none, or is not there."""
    names = ("originals", "drawn", "ranked", "ranked_originals", "ranked_drawn")
    try:
        with safe_open(path, "pt") as file:
            held = set(file.keys())
            return {name: file.get_tensor(name) for name in names if name in held}
    except FileNotFoundError:
        return {}
    except SafetensorError as error:
        raise SemlinkError(_damaged(path, str(error))) from None


def _damaged(path: Path, why: str) -> str:
    return f"{path} is damaged ({why}); run the bench again, which makes it anew"


def _figure(path: Path, title: str, lines: Sequence[tuple[str, Tensor, Sequence[float]]]) -> None:
    """Draw rows of a label, images (n, C, H, W) and numbers below them to ``path``."""
    from matplotlib.figure import Figure

    with style(), atomic_path(path) as part:
        most = max(len(images) for _, images, _ in lines)
        figure = Figure(figsize=(0.8 * most, 0.9 * len(lines)))  # inches, of images alone
        figure.subplots_adjust(0, 0, 1, 1, hspace=0)
        for axes, (label, images, numbers) in zip(figure.subplots(len(lines), squeeze=False)[:, 0], lines, strict=True):
            for i, image in enumerate(images):
                place = (1.1 * i, 1.1 * i + 1, 0, 1)
                pixels = image.expand(3, -1, -1).permute(1, 2, 0).numpy()
                axes.imshow(pixels, extent=place, interpolation="nearest")
            for i, number in enumerate(numbers):
                axes.text(1.1 * i + 0.5, -0.05, f"{number:.1f}", ha="center", va="top", fontsize=8)
            axes.set(xlim=(0, 1.1 * most), ylim=(-0.22, 1), xticks=[], yticks=[], aspect="equal")
            axes.spines[:].set_visible(False)
            axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
        figure.suptitle(
            textwrap.fill(title, 90) + "\n" + _NOTE, y=1 + 0.15 / figure.get_figheight(), va="bottom", fontsize=9
        )
        figure.savefig(part, format="png", dpi=132, bbox_inches="tight", metadata={"Software": None})
