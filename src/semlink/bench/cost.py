# SPDX-License-Identifier: Apache-2.0
"""What a link costs: networks, computation, channel, time. The same call for every scheme."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from semlink import phy
from semlink.nn.adversary import Adversary
from semlink.schemes import Link, Network, Sent

_TIMES = 31


@dataclass(frozen=True)
class Cost:
    """The columns of Guo et al., Table I, and what the channel carries; per image.

    Attributes:
        parameters: of each part and in ``total``; an ``adversary`` that the link was trained against is not in it.
        held: parameters that ``transmitter`` and ``receiver`` each compute with; a codebook is in both.
        multiply_adds: of ``transmitter``, ``receiver`` and an ``adversary``; half of the FLOPs that torch counts.
        channel_uses: complex symbols.
        payload_bits: of a digital payload, None for an analog code.
        mean_power: mean ``|x|^2`` over symbols and images; 1 by convention.
        transmit_seconds: of one image alone, or one group of images of K users: the least of 31.
        receive_seconds: likewise; the channel is in neither.
    """

    parameters: dict[str, int]
    held: dict[str, int]
    multiply_adds: dict[str, int]
    channel_uses: int
    payload_bits: float | None
    mean_power: float
    transmit_seconds: float
    receive_seconds: float


def cost(link: Link, images: Tensor) -> Cost:
    """Return what ``link`` costs, its power and time measured on ``images: (B, C, H, W) float32 in [0, 1]``.

    Example:
        >>> link = semlink.create("deepjscc", data="cifar10")
        >>> semlink.cost(link, torch.rand(100, 3, 32, 32)).channel_uses
        64
    """
    images = images.to(next(link.scheme.parameters()).device)
    generator = torch.Generator().manual_seed(0)
    clocks = _Clock(), _Clock()
    sent = _pass(link, images, generator, *clocks)
    for _ in range(_TIMES):
        _pass(link, images[:1], generator, *clocks)
    transmit, receive = (min(clock.seconds[1:]) for clock in clocks)  # other work only ever adds time
    return Cost(
        parameters=parameters(link),
        held=held(link),
        multiply_adds=multiply_adds(link),
        channel_uses=sent.channel_uses,
        payload_bits=sent.payload_bits,
        mean_power=float(phy.mean_power(sent.symbols.flatten(1)).mean()),
        transmit_seconds=transmit,
        receive_seconds=receive,
    )


def parameters(link: Link) -> dict[str, int]:
    """Return the number of parameters of each part of a link, as :class:`Cost` has them."""
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in link.scheme.named_children()}
    every = sum(p.numel() for p in link.scheme.parameters())
    return counts | {"total": every - sum(p.numel() for part in _adversaries(link) for p in part.parameters())}


def held(link: Link) -> dict[str, int]:
    """Return the number of parameters that transmitting and receiving each compute with."""
    used = _Uses(link.scheme), _Uses(link.scheme)
    with _without_gradient(link.scheme):
        _pass(link, _nothing(link), torch.Generator().manual_seed(0), *used)
    return {end: each.parameters for end, each in zip(("transmitter", "receiver"), used, strict=True)}


def multiply_adds(link: Link) -> dict[str, int]:
    """Return the multiply-adds of transmitting and of receiving one image, or one group of images of K users.

    Those of a drawing by each ``adversary`` of training stand beside. Counted are products of matrices; the design of
    linear transceivers and the solution of equations are not.
    """
    from torch.utils.flop_counter import FlopCounterMode

    transmitting, receiving, drawing = (FlopCounterMode(display=False) for _ in range(3))
    with _without_gradient(link.scheme):
        _pass(link, _nothing(link), torch.Generator().manual_seed(0), transmitting, receiving)
        with drawing:
            for each in _adversaries(link):
                each(torch.zeros(1, each.features, device=each.mean_image.device))
    ends = {"transmitter": transmitting, "receiver": receiving}
    counted = {name: mode.get_total_flops() // 2 for name, mode in ends.items()}
    hers = drawing.get_total_flops() // 2
    return counted | ({"adversary": hers} if hers else {})


def _pass(
    link: Link,
    images: Tensor,
    generator: torch.Generator,
    transmitting: AbstractContextManager[Any],
    receiving: AbstractContextManager[Any],
) -> Sent:
    """Send ``images`` through the link, watched at either end."""
    if isinstance(link, Network):
        state = link.draw(len(images), generator=generator)
        with transmitting:
            sent = link.transmit(images, generator, state)
        received = link.channel(sent.symbols, None, generator, state)
        with receiving:
            link.receive(received, sent.header, state)
        return sent
    with transmitting:
        sent = link.transmit(images, generator)
    received = link.medium(sent.symbols, link.snr_db, generator)
    with receiving:
        link.receive(received, sent.header)
    return sent


def _nothing(link: Link) -> Tensor:
    return torch.zeros(1, *link.scheme.group_shape, device=next(link.scheme.parameters()).device)


def _adversaries(link: Link) -> list[Adversary]:
    return [part for part in link.scheme.modules() if isinstance(part, Adversary)]


class _Clock:
    """Notes how long each time within it took, the work that was given to a GPU included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __enter__(self) -> None:
        self.begun = self._now()

    def __exit__(self, *_: object) -> None:
        self.seconds.append(self._now() - self.begun)

    def _now(self) -> float:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter()


class _Uses(TorchDispatchMode):
    """Notes which parameters of ``module`` are computed with."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.sizes = {p.untyped_storage().data_ptr(): p.numel() for p in module.parameters()}
        self.used = set[int]()

    @property
    def parameters(self) -> int:
        """How many they are."""
        return sum(self.sizes[each] for each in self.used)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for each in tree_leaves((args, kwargs)):
            if isinstance(each, Tensor) and (place := each.untyped_storage().data_ptr()) in self.sizes:
                self.used.add(place)
        return func(*args, **(kwargs or {}))


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
