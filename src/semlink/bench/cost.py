# SPDX-License-Identifier: Apache-2.0
"""What a link costs: networks, computation, channel, time. The same call for every scheme."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from semlink import phy
from semlink.nn.adversary import Adversary
from semlink.schemes import Link, Network, Sent


@dataclass(frozen=True)
class Cost:
    """The columns of Guo et al., Table I, and what the channel carries; per image.

    Attributes:
        parameters: of each part and in ``total``; an ``adversary`` that the link was trained against is not in it.
        multiply_adds: of ``transmitter`` and ``receiver``; half of the FLOPs that torch counts.
        channel_uses: complex symbols.
        payload_bits: of a digital payload, None for an analog code.
        mean_power: mean ``|x|^2`` over symbols and images; 1 by convention.
        test_seconds: to transmit and receive one image alone, channel included: the median of seven.
    """

    parameters: dict[str, int]
    multiply_adds: dict[str, int]
    channel_uses: int
    payload_bits: float | None
    mean_power: float
    test_seconds: float


def cost(link: Link, images: Tensor) -> Cost:
    """Return what ``link`` costs, its power and time measured on ``images: (B, C, H, W) float32 in [0, 1]``.

    Example:
        >>> link = semlink.create("deepjscc", data="cifar10")
        >>> semlink.cost(link, torch.rand(100, 3, 32, 32)).channel_uses
        64
    """
    generator = torch.Generator().manual_seed(0)
    images = images.to(next(link.scheme.parameters()).device)
    sent, seconds = _sent(link, images, generator), []
    for _ in range(7):
        begun = time.perf_counter()
        link.deliver(images[:1], link.snr_db, generator).cpu()
        seconds.append(time.perf_counter() - begun)
    return Cost(
        parameters=parameters(link),
        multiply_adds=multiply_adds(link),
        channel_uses=sent.channel_uses,
        payload_bits=sent.payload_bits,
        mean_power=float(phy.mean_power(sent.symbols.flatten(1)).mean()),
        test_seconds=statistics.median(seconds),
    )


def parameters(link: Link) -> dict[str, int]:
    """Return the number of parameters of each part of a link, as :class:`Cost` has them."""
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in link.scheme.named_children()}
    every = sum(p.numel() for p in link.scheme.parameters())
    hers = [part for part in link.scheme.modules() if isinstance(part, Adversary)]
    return counts | {"total": every - sum(p.numel() for part in hers for p in part.parameters())}


def multiply_adds(link: Link) -> dict[str, int]:
    """Return the multiply-adds of transmitting and of receiving one image, or one group of images of K users.

    Counted are products of matrices; the design of linear transceivers and the solution of equations are not.
    """
    from torch.utils.flop_counter import FlopCounterMode

    scheme, generator = link.scheme, torch.Generator().manual_seed(0)
    device = next(scheme.parameters()).device
    images = torch.zeros(1, *scheme.group_shape, device=device)
    with _without_gradient(scheme):
        if isinstance(link, Network):
            state = link.draw(1, generator=generator)
            with FlopCounterMode(display=False) as transmitting:
                sent = link.transmit(images, generator, state)
            received = link.channel(sent.symbols, None, generator, state)
            with FlopCounterMode(display=False) as receiving:
                link.receive(received, sent.header, state)
        else:
            with FlopCounterMode(display=False) as transmitting:
                sent = scheme.transmit(images, generator)
            received = link.medium(sent.symbols, link.snr_db, generator)
            with FlopCounterMode(display=False) as receiving:
                scheme.receive(received, sent.header)
    return {"transmitter": transmitting.get_total_flops() // 2, "receiver": receiving.get_total_flops() // 2}


def _sent(link: Link, images: Tensor, generator: torch.Generator) -> Sent:
    if isinstance(link, Network):
        return link.transmit(images, generator, link.draw(len(images), generator=generator))
    return link.transmit(images, generator)


@contextmanager
def _without_gradient(module: nn.Module) -> Iterator[None]:
    """Let no parameter ask for a gradient: the counter of FLOPs refuses views of those that do, even under no_grad."""
    wanting = [p for p in module.parameters() if p.requires_grad]
    for parameter in wanting:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanting:
            parameter.requires_grad_(True)
