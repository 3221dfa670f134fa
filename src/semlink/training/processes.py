# SPDX-License-Identifier: Apache-2.0
"""How the processes of one training part: together when it is done, at once when one of them fails."""

import gc
import subprocess
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import distributed

from semlink._errors import SemlinkError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PATIENCE_SECONDS = 10.0  # for the last words of the processes that this one started


@contextmanager
def together(fabric: "Fabric") -> Iterator[None]:
    """Do a block in every process of ``fabric``; each leaves their group at its end, after an error too.

    A process that fails waits for no other: its leaving ends what the others wait for.

    Raises:
        SemlinkError: another process failed, or cannot be reached; one that can says itself why.
    """
    if fabric.world_size == 1:
        yield
        return
    started = _unwatched(fabric)
    try:
        yield
        fabric.barrier()
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # they hold networks, and these the group
        _leave()
        _dismiss(started)
        if isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            raise SemlinkError(
                "another process of this training failed or was lost; mend what it reported, "
                "and the same command goes on from the last epoch"
            ) from error
        raise
    _leave()


def _leave() -> None:
    """Leave the group, which ends the threads that serve it: what is left of them when Python ends aborts the process.

    Nothing may hold the group longer. A network that does waits, when it is freed, for these threads with the
    interpreter locked, and they may wait for the interpreter.
    """
    gc.collect()
    distributed.destroy_process_group()


def _unwatched(fabric: "Fabric") -> list[subprocess.Popen[bytes]]:
    """Return the processes that this one started, which Fabric watches no more.

    When one of them failed it would kill this one in the middle of a word; that they are lost is noticed anyway.
    """
    watched = getattr(fabric.strategy.launcher, "procs", [])
    started = watched.copy()
    watched.clear()
    return started


def _dismiss(started: list[subprocess.Popen[bytes]]) -> None:
    """See to it that no process that this one started outlives it."""
    for process in started:
        try:
            process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
