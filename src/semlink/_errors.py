# SPDX-License-Identifier: Apache-2.0
"""The errors a user can cause, and the one function that checks names."""

import difflib
from collections.abc import Iterable


class SemlinkError(Exception):
    """Bad input or a state only the user can mend.

    The message is one line: it names the offender, says what was expected and how to put it right.
    The command line prints it after ``error:`` and exits with status 2.
    """


class TrainingDiverged(RuntimeError):
    """A loss became infinite or not a number."""


def check_name(kind: str, given: str, known: Iterable[str]) -> str:
    """Return ``given`` if it is one of ``known``.

    Raises:
        SemlinkError: otherwise, naming the nearest known name and then all of them.
    """
    names = sorted(known)
    if given in names:
        return given
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise SemlinkError(f"unknown {kind} '{given}'; {hint}known: {', '.join(names) or 'none'}")
