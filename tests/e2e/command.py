# SPDX-License-Identifier: Apache-2.0
"""A command line and what it said."""

import contextlib
import io
from typing import NamedTuple

from semlink import cli


class Said(NamedTuple):
    status: int
    out: str
    err: str


def semlink(*words: object) -> Said:
    """Run one command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main([str(word) for word in words])
    return Said(status, out.getvalue(), err.getvalue())
