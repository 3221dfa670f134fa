# SPDX-License-Identifier: Apache-2.0
"""A place to make files in, one process at a time, that never shows half-made ones."""

import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from semlink._errors import SemlinkError
from semlink._files import exclusive


@contextmanager
def workshop(folder: Path) -> Iterator[Path]:
    """Yield an empty scratch folder inside ``folder``, alone; wait while another process has it.

    Finished files are to be moved from it to ``folder``, a rename within one file system. Whatever else is in it is
    removed at the end, or, if this process is killed, when the next one comes in.

    Raises:
        SemlinkError: ``folder`` cannot be written.
    """
    scratch = folder / ".semlink"
    try:
        with ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(exclusive(scratch))
                    break
                except SemlinkError:
                    time.sleep(0.2)
            _clear(scratch)
            try:
                yield scratch
            finally:
                _clear(scratch)
    except OSError as error:
        raise SemlinkError(
            f"cannot write in {folder} ({error.strerror or type(error).__name__}); make it writable and free some space"
        ) from None


def _clear(scratch: Path) -> None:
    for leftover in scratch.iterdir():
        if leftover.is_dir():
            shutil.rmtree(leftover)
        elif leftover.name != "lock":  # a lock file removed while others wait for it would let two of them in
            leftover.unlink()
