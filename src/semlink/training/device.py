# SPDX-License-Identifier: Apache-2.0
"""Which device and which arithmetic a run uses, decided once and written down."""

import contextlib
import ctypes
import platform
import re
from pathlib import Path
from typing import Literal

import torch

from semlink._errors import SemlinkError, check_name

Precision = Literal["bf16", "fp32"]


def resolve_device(text: str) -> torch.device:
    """Return the device ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` names.

    Raises:
        SemlinkError: the name is none of these, or the machine has no such device.
    """
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    named = re.fullmatch(r"cpu|cuda(?::([0-9]+))?", text)
    if named is None:
        raise SemlinkError(f"unknown device '{text}'; use auto, cpu, cuda or cuda:N")
    if text != "cpu" and (not torch.cuda.is_available() or int(named[1] or 0) >= torch.cuda.device_count()):
        raise SemlinkError(
            f"device '{text}' is not there: this machine has {torch.cuda.device_count()} CUDA devices; use cpu"
        )
    return torch.device(text)


def cpu_has_bf16() -> bool:
    """Say whether this processor multiplies bfloat16 in hardware (AMX or AVX512-BF16).

    Without it bfloat16 is emulated and a training step was 13 times slower than in float32 (AVX2 alone).
    """
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


def resolve_precision(device: torch.device, requested: str = "auto") -> Precision:
    """Return the precision of a run: ``requested``, or what the device does fast.

    Raises:
        SemlinkError: ``requested`` is not ``auto``, ``bf16`` or ``fp32``.
    """
    if requested == "bf16" or requested == "fp32":
        return requested
    check_name("precision", requested, ("auto", "bf16", "fp32"))
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if cpu_has_bf16() else "fp32"


def keep_memory() -> None:
    """Have this process keep what large tensors leave, up to 256 MB of it, for those that follow.

    glibc's default gives the memory of each back to the system, which clears it page by page for the next: a tenth of
    the time of an evaluation. Other libraries are left as they are.
    """
    map_from, give_back_from = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(map_from, 2**30)
        library.mallopt(give_back_from, 2**28)


def describe_machine(device: torch.device) -> dict[str, str | int]:
    """Return what a record says of the machine: device, processor, threads, and nothing that names it."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processor": name,
        "bf16_in_hardware": int(cpu_has_bf16()),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
