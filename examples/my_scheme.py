# SPDX-License-Identifier: Apache-2.0
"""A scheme of your own in one file: part of the power of each symbol is noise, which nobody can take out again.

    semlink bench examples/my_bench.toml                                        # a recipe that names this file
    SEMLINK_PLUGINS=examples/my_scheme.py semlink train my-noise --options share=0.2

From then on "my-noise" is a scheme like any other: it trains, is attacked, has its cost counted, and is in every table.
"""

import torch
from torch import Tensor

from semlink import phy, register_scheme
from semlink._errors import check_number
from semlink.schemes import DeepJSCC, Design, Sent


@register_scheme("my-noise")
class MyNoise(DeepJSCC):
    """DeepJSCC whose transmitter adds noise of its own, within the same power.

    Args:
        design: what the link's builder chose: task, channel uses, sizes of networks.
        share: of the power that is noise, from 0 to 1. Every argument is an option of recipes and the command line.
    """

    def __init__(self, design: Design, share: float = 0.1) -> None:
        super().__init__(design)
        self.share = check_number("share", share, 0, 1)

    def transmit(self, images: Tensor, generator: torch.Generator) -> Sent:
        """Encode, add noise, and scale to unit mean energy per image."""
        code = phy.to_symbols(self.features(images))
        noise = phy.noise(tuple(code.shape), 1.0, generator, code.device)
        mixed = (1 - self.share) ** 0.5 * code + self.share**0.5 * noise
        return Sent(phy.normalise_power(mixed))
