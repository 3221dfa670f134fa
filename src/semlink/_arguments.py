# SPDX-License-Identifier: Apache-2.0
"""The one function that checks what was typed, before tyro turns it into a dataclass.

tyro prints its errors in boxes of many lines; here each is one line that names the offender and the nearest right name.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from semlink._errors import SemlinkError, check_name

_CALLED = {float: "a number", int: "a whole number"}


def check_arguments(verb: str, kind: type, argv: Sequence[str]) -> None:
    """Raise SemlinkError unless ``argv`` fits the options and arguments of ``kind``, the dataclass of ``verb``."""
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    positional = [name for name, field in fields.items() if field.metadata.get("positional")]
    options = {"--" + name.replace("_", "-"): name for name in fields if name not in positional}
    known = {**options, **{"--no" + option[1:]: name for option, name in options.items() if hints[name] is bool}}
    left, tokens = list(positional), list(argv)
    while tokens:
        token = tokens.pop(0)
        if token.startswith("--"):
            name, equals, value = token.partition("=")
            hint = hints[known[check_name(f"option of 'semlink {verb}'", name, known)]]
            if hint is bool:
                continue
            values = [value] if equals else []
            while not equals and tokens and not _is_option(tokens[0]) and (_many(hint) or not values):
                values.append(tokens.pop(0))
            if not values:
                raise SemlinkError(f"option {name} needs a value")
            for value in values:
                _check_value(name, value, hint)
        elif left:
            many = _many(hints[left[0]])
            _check_value(f"argument {left[0].upper()}", token, hints[left[0]])
            if not many:
                left.pop(0)
        else:
            raise SemlinkError(f"unexpected argument '{token}'; see 'semlink {verb} --help'")
    for name in left:
        required = fields[name].default is dataclasses.MISSING and fields[name].default_factory is dataclasses.MISSING
        if required and not (_many(hints[name]) and any(not t.startswith("--") for t in argv)):
            raise SemlinkError(f"'semlink {verb}' needs {name.upper()}; see 'semlink {verb} --help'")


def _is_option(token: str) -> bool:
    return token.startswith("--")


def _many(hint: Any) -> bool:
    return typing.get_origin(hint) in (list, tuple)


def _check_value(name: str, value: str, hint: Any) -> None:
    if _many(hint):
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    if typing.get_origin(hint) is typing.Literal:
        check_name(f"value of {name}", value, typing.get_args(hint))
    elif hint in _CALLED:
        try:
            number = hint(value)
        except ValueError:
            raise SemlinkError(f"{name} is '{value}': {_CALLED[hint]} is expected") from None
        if not math.isfinite(number):
            raise SemlinkError(f"{name} is '{value}': a finite number is expected")
    elif hint is Path and not value:
        raise SemlinkError(f"{name} is empty: a path is expected")
