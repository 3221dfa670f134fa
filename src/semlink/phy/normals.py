# SPDX-License-Identifier: Apache-2.0
"""Normal numbers in float32: torch's own, bit for bit, four times as fast once a process has drawn many.

A channel spends most of its time on its noise, and torch draws one word of its generator after the other, where
``normals.cpp`` draws many side by side. The program is used on the CPU, where there is a compiler and where it has
given torch's numbers and left its generator in torch's state: a seed means the same noise with it and without.
"""

import ctypes
import threading
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from semlink.phy import native

MANY = 2**26  # numbers of a process before it compiles: torch draws these in about the time that compiling takes
FEW = 1024  # numbers of one draw, up to which torch is as fast
STATE_BYTES = 5016  # of a generator's state, as far as the program knows it


class _Tally:
    """What this process has drawn; the lock holds a generator between its state's reading and writing."""

    drawn = 0
    lock = threading.Lock()


def normals(shape: tuple[int, ...], scale: float, generator: torch.Generator) -> Tensor:
    """Draw N(0, scale^2): float32 of ``shape`` on the generator's device, equal to those of ``Tensor.normal_``."""
    numbers = torch.empty(shape, dtype=torch.float32, device=generator.device)
    count = numbers.numel()
    _Tally.drawn += count
    many = count > FEW and _Tally.drawn > MANY and numbers.device.type == "cpu"
    program = _program() if many else None
    if program is None:
        return numbers.normal_(0, scale, generator=generator)
    with _Tally.lock:
        program(numbers, scale, generator)
    return numbers


@cache
def _program() -> Callable[[Tensor, float, torch.Generator], None] | None:
    """Return what fills a tensor as ``normal_`` does; None where there is none that does exactly that."""
    library = native.build("normals.cpp")
    if isinstance(library, str):
        return None
    fill = library.fill
    fill.argtypes, fill.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_float), None

    def program(numbers: Tensor, scale: float, generator: torch.Generator) -> None:
        state = generator.get_state()
        fill(state.data_ptr(), numbers.data_ptr(), numbers.numel(), scale)
        generator.set_state(state)

    return program if _agrees(program) else None


def _agrees(program: Callable[[Tensor, float, torch.Generator], None]) -> bool:
    ours, theirs = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    if ours.get_state().numel() < STATE_BYTES:
        return False
    for count, scale in ((2**16, 1.0), (1031, 0.3), (16, 2.0)):  # the latter from amid a state, with and without a rest
        numbers = torch.empty(count)
        program(numbers, scale, ours)
        wanted = torch.empty(count).normal_(0, scale, generator=theirs)
        if not torch.equal(numbers, wanted) or not torch.equal(ours.get_state(), theirs.get_state()):
            return False
    return True
