# SPDX-License-Identifier: Apache-2.0
"""Is the attacker to blame when an inversion fails? ``python benchmarks/attacker_strength.py FOLDER``

The inversion attack of preset ``cpu``, unchanged, is put on a code that hardly compresses: every pixel of a CIFAR-10
image turns the phase of a symbol of its own, exp(j (2 x - 1)), and the eavesdropper hears it without noise (200 dB). An
attacker that draws these images at 30 dB PSNR or more is able to draw; what it then cannot draw from another link's
symbols is not in them, or not within reach of its training.
"""

import dataclasses
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import semlink
from semlink import phy
from semlink.attacks import Threat
from semlink.bench import PRESETS, attack, make_recipe, record, train
from semlink.report import text
from semlink.schemes import Design, Scheme, Sent
from semlink.training import ScreenProgress, resolve_precision

CPU, BLOCK = torch.device("cpu"), 8


@semlink.register_scheme("phase-per-pixel")
class PhasePerPixel(Scheme):
    """One symbol of unit energy for each pixel and colour, in 8x8 blocks; the receiver learns one gain."""

    def __init__(self, design: Design) -> None:
        super().__init__(design)
        self.gain = nn.Parameter(torch.tensor(0.5))

    def transmit(self, images: Tensor, generator: torch.Generator) -> Sent:
        """Turn phases by up to one radian."""
        phase = 2 * F.pixel_unshuffle(images, BLOCK).flatten(1) - 1
        # All cosines stand before all sines, so that the 4x4 map of the features has the blocks' order.
        return Sent(phy.to_symbols(2**0.5 * torch.cat([phase.cos(), phase.sin()], 1)))

    def receive(self, received: phy.Received, header: Tensor | None = None) -> Tensor:
        """Read the sines back."""
        sines = phy.to_features(phy.equalise(received)).chunk(2, 1)[1]
        image = (self.gain * sines + 0.5).unflatten(1, (-1, 4, 4))
        return F.pixel_shuffle(image, BLOCK)


def main(folder: Path) -> int:
    """Attack the code and print the verdict."""
    cpu = PRESETS["cpu"]
    once = dataclasses.replace(cpu.colour, link=dataclasses.replace(cpu.colour.link, epochs=1))
    PRESETS["cpu"] = dataclasses.replace(cpu, colour=once)  # one gain needs no thirty epochs; the attack is as it is
    recipe = make_recipe(
        "phase-per-pixel", data="cifar10", task="reconstruct", snr_db=200, channel_uses=3072, precision="fp32"
    )
    train(recipe, folder, CPU)
    with ScreenProgress("inversion") as watch:
        path = attack(folder, Threat(200.0), CPU, precision=resolve_precision(CPU), watch=watch)
    found = record.read(path, record.JudgeRecord)
    print(text.attacked(found, path))
    return 0 if found.results["psnr_db"].low > 30 else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
