# SPDX-License-Identifier: Apache-2.0
"""What the verbs share: common options, and how they print and deliver."""

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

GRID_DB = [4.0, 8.0, 12.0, 16.0, 20.0]


def argument(**keywords: Any) -> Any:
    """Return a dataclass field that is given by position."""
    return field(metadata={"positional": True}, **keywords)


@dataclass(kw_only=True)
class Common:
    """What every working verb takes."""

    seed: int = 0
    """Seed of everything random."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    out: Path | None = None
    """Where to write; the default is named in the output."""
    json: bool = False
    """Print the record as JSON on standard output, and nothing else there."""


def device_for(text: str) -> "torch.device":
    """Return the device that ``text`` names, as :func:`semlink.training.resolve_device` does.

    From now on the processor takes numbers too small for full precision as zero. Threads inherit this when they start,
    so the loop, which asks for it too, would be too late for those of torch: half of the optimiser's states, decayed to
    such numbers, made every step of two threads up to twice as long. It also keeps the memory of large tensors.
    """
    import torch

    from semlink.training import keep_memory, resolve_device

    keep_memory()
    torch.set_flush_denormal(True)
    return resolve_device(text)


def say(*lines: str) -> None:
    """Print lines on standard output."""
    sys.stdout.write("\n".join(lines) + "\n")


def command() -> str:
    """Return the command line that runs, as a user would type it."""
    return shlex.join(["semlink", *sys.argv[1:]])


def deliver(record: Path, out: Path | None) -> None:
    """Copy a record to where the user wants it as well."""
    from semlink._files import write_text

    if out is not None:
        write_text(out, record.read_text(encoding="utf-8"))
