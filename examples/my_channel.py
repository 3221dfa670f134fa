# SPDX-License-Identifier: Apache-2.0
"""A channel of your own in one file: Nakagami fading, milder than Rayleigh's for m above 1.

    semlink bench examples/my_bench.toml                                        # a recipe that names this file
    SEMLINK_PLUGINS=examples/my_channel.py semlink train deepjscc --channel my-nakagami

Only the gains are drawn here; noise, CSI at the receiver and per-image SNRs come with the base class.
"""

import torch
from torch import Tensor

from semlink.phy import Channel, channels


@channels.register("my-nakagami")
class MyNakagami(Channel):
    """Gains of unit mean power whose squares are Gamma(m) distributed, one for an image, phases uniform.

    M. Nakagami, "The m-distribution: a general formula of intensity distribution of rapid fading", 1960.

    Args:
        m: shape; 1 is Rayleigh, infinity is no fading.
    """

    key = "my-nakagami"

    def __init__(self, m: int = 3) -> None:
        self.m = m

    def gains(self, batch: int, uses: int, n0: Tensor, generator: torch.Generator) -> Tensor:
        """Draw gains: (batch, 1) complex64."""
        uniform = torch.rand(batch, self.m + 1, generator=generator, device=generator.device)
        power = -(1 - uniform[:, 1:]).log().mean(1, keepdim=True)  # a mean of m exponentials is Gamma(m) / m
        return torch.polar(power.sqrt(), 2 * torch.pi * uniform[:, :1]).to(n0.device)
