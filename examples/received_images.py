# SPDX-License-Identifier: Apache-2.0
"""Draw what the receivers of a finished bench make of the first test images: Figure 4 of paper B.

usage: python examples/received_images.py [BENCH] [SNR_DB] [FILE.png]

BENCH is a recipe whose links send images, "paper-b/fig3" if left out; the first seed of each is shown, at 0 dB if not
said otherwise. All links meet the same channels and the same noise. Faces are not drawn: CelebA's terms forbid it.
"""

import sys

import torch

import semlink
from semlink.bench import graph, links, recipes, results
from semlink.bench.figures import style
from semlink.bench.store import Store, default_root
from semlink.training import seeded

COUNT = 6  # images of each user


def main(name: str = "paper-b/fig3", snr_db: str = "0", out: str = "received.png") -> None:
    """Draw one row a link, the images that were sent first."""
    from matplotlib.figure import Figure

    store, recipe = Store(default_root()), recipes.load(name)
    cells = graph.load(results.folder_of(recipe, store), recipe).cells
    rows: dict[str, torch.Tensor] = {}
    for cell in cells:
        trained = cell.step in ("train", "fetch") and store.is_sound(cell.name)
        if not trained or cell.link in rows or recipe.links[cell.link or ""].data == "celeba":
            continue
        link, run = semlink.load(store.folder(cell.name) / "run"), links.read_run(store.folder(cell.name) / "run")
        if link.scheme.design.task.kind != "reconstruct":
            continue
        sent = links.image_sets(run.recipe).test.batch(torch.arange(COUNT))[0]
        rows.setdefault("sent", sent)
        rows[cell.link or ""] = link.deliver(sent, float(snr_db), seeded(0, "received images"))
    if not rows:
        raise semlink.SemlinkError(f"no link of '{name}' that sends images is trained here; run: semlink bench {name}")
    with style():
        figure = Figure(figsize=(9, 0.62 * len(rows) + 0.6), layout="constrained")
        axes = figure.subplots(len(rows), 1)
        for axis, (label, images) in zip(axes, rows.items(), strict=True):
            flat = images.transpose(0, 1).flatten(0, 1) if images.ndim == 5 else images  # a user's images side by side
            axis.imshow(torch.cat(list(flat.clamp(0, 1)), 2).permute(1, 2, 0).squeeze(2), cmap="gray", vmin=0, vmax=1)
            axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
            axis.set(xticks=[], yticks=[])
        figure.suptitle(f"What was sent, and what arrives at {float(snr_db):g} dB", fontsize=11)
        figure.savefig(out, dpi=160, bbox_inches="tight", metadata={"Software": None})
    sys.stdout.write(f"{out}: {len(rows) - 1} links\n")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except semlink.SemlinkError as error:
        sys.exit(f"error: {error}")
