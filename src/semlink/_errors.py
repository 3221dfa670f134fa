# SPDX-License-Identifier: Apache-2.0
"""The errors a user can cause, and the functions that check names and numbers."""

import difflib
import math
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
    near = difflib.get_close_matches(str(given), names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise SemlinkError(f"unknown {kind} '{given}'; {hint}known: {', '.join(names) or 'none'}")


def check_flag(name: str, value: bool) -> bool:
    """Return ``value``; SemlinkError unless it is true or false: "no" would count as true."""
    if not isinstance(value, bool):
        raise SemlinkError(f"{name} is {value!r}: true or false is expected")
    return value


def check_whole(name: str, value: int, least: int = 1) -> int:
    """Return ``value``; SemlinkError unless it is a whole number of ``least`` or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SemlinkError(f"{name} is {value!r}: a whole number of at least {least} is expected")
    return value


def check_number(name: str, value: float, low: float = 0.0, high: float = math.inf) -> float:
    """Return ``value``; SemlinkError unless it is a finite number from ``low`` to ``high``."""
    if not _is_finite(value) or not low <= value <= high:
        expected = (
            f"a number from {low:g} to {high:g}" if math.isfinite(high) else f"a finite number of at least {low:g}"
        )
        raise SemlinkError(f"{name} is {value!r}: {expected} is expected")
    return float(value)


def check_positive(name: str, value: float) -> float:
    """Return ``value``; SemlinkError unless it is a finite number above 0."""
    if not _is_finite(value) or value <= 0:
        raise SemlinkError(f"{name} is {value!r}: a finite number above 0 is expected")
    return value


def check_probability(name: str, value: float) -> float:
    """Return ``value``; SemlinkError unless it lies strictly between 0 and 1."""
    if not _is_finite(value) or not 0 < value < 1:
        raise SemlinkError(f"{name} is {value!r}: a number between 0 and 1 is expected")
    return value


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
