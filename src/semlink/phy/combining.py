# SPDX-License-Identifier: Apache-2.0
"""Several receptions of the same block as one: maximum ratio combining."""

from collections.abc import Sequence

import torch
from torch import Tensor

from semlink._errors import SemlinkError
from semlink.phy.channel import Received


def combine(receptions: Sequence[Received]) -> Received:
    """Return the sufficient statistic of receptions with independent noise: ``y_i = h_i x + n_i``, i = 1 ... L.

    ``z = sum_i conj(h_i) y_i / g`` with ``g = (sum_i |h_i|^2)^(1/2)`` is ``g x + n`` with noise of one reception's
    variance; without fading that is their mean, with noise of an L-th of it: 10 log10 L dB more. No receiver can do
    better with all of them (D. Brennan, "Linear diversity combining techniques", Proc. IRE 47, 1959).

    Args:
        receptions: at least one, of the same block and with the same noise variance.

    Raises:
        SemlinkError: there is none, or shapes or noise variances differ.
    """
    if not receptions:
        raise SemlinkError("there is no reception to combine: at least one is needed")
    first = receptions[0]
    if len(receptions) == 1:
        return first
    for each in receptions:
        same = each.symbols.shape == first.symbols.shape
        if not same or not torch.equal(each.noise_variance, first.noise_variance):
            raise SemlinkError("receptions to combine must be of one block and equally noisy; weigh them by hand else")
    if all(each.csi is None for each in receptions):
        mean = torch.stack([each.symbols for each in receptions]).mean(0)
        return Received(mean, None, first.noise_variance / len(receptions))
    gains = [torch.ones_like(each.symbols[:, :1]) if each.csi is None else each.csi for each in receptions]
    norm = torch.stack([h.abs().square() for h in gains]).sum(0).sqrt()
    matched: Tensor = torch.stack([h.conj() * each.symbols for h, each in zip(gains, receptions, strict=True)]).sum(0)
    return Received(matched / norm, norm.to(first.symbols.dtype), first.noise_variance)
