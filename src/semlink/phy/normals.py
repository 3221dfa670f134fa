# SPDX-License-Identifier: Apache-2.0
"""Normal numbers in float32: torch's own, bit for bit, four times as fast once a process has drawn many.

A channel spends most of its time on its noise, and torch draws one word of its generator after the other, where
``normals.cpp`` draws many side by side. The program is used on the CPU, where there is a compiler and where it has
given torch's numbers and left its generator in torch's state: a seed means the same noise with it and without.
"""

import ctypes
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from semlink.phy import native

MANY = 2**25  # numbers of a process before it compiles: torch draws these in about the time that compiling takes
FEW = 1024  # numbers of one draw, up to which torch is as fast
STATE_BYTES = 5016  # of a generator's state, as far as the program knows it
_lock = native.Lock()


class _Tally:
    drawn = 0  # numbers of this process


def normals(shape: tuple[int, ...], scale: float, generator: torch.Generator) -> Tensor:
    """Draw N(0, scale^2): float32 of ``shape`` on the generator's device, equal to those of ``Tensor.normal_``.

    Threads may share a generator for what this draws, but not while one of them draws from it by torch.
    """
    numbers = torch.empty(shape, dtype=torch.float32, device=generator.device)
    _Tally.drawn += numbers.numel()
    able = numbers.device.type == "cpu" and numbers.numel() > FEW and scale >= 0 and _address(numbers) != 0
    program = _program() if able and _Tally.drawn > MANY else None
    with _lock:  # no other draw between a state's reading and its writing
        if program is None:
            return numbers.normal_(0, scale, generator=generator)
        program(numbers, scale, generator)
        return numbers


def _address(numbers: Tensor) -> int:
    """Return where ``numbers`` lie; 0 where they do not: in torch.func, in a mode of fake tensors."""
    try:
        return numbers.data_ptr()
    except RuntimeError:
        return 0


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
    for count, scale in ((2**20, 1.0), (1031, 0.3), (16, 2.0)):  # the latter from amid a state, with and without a rest
        numbers = torch.empty(count, dtype=torch.float32, device="cpu")
        program(numbers, scale, ours)
        wanted = torch.empty_like(numbers).normal_(0, scale, generator=theirs)
        if not torch.equal(numbers, wanted) or not torch.equal(ours.get_state(), theirs.get_state()):
            return False
    return True
