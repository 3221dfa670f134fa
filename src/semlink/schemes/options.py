# SPDX-License-Identifier: Apache-2.0
"""What a scheme can be told: the options of its constructor, as its docstring explains them."""

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from semlink.schemes.base import Scheme


@dataclass(frozen=True)
class Option:
    """An option: its name, the value if it is left out, and what it means, with the source of that value."""

    name: str
    default: bool | int | float | str | None
    meaning: str


def options(kind: type[Scheme]) -> list[Option]:
    """Return the options of a scheme; those that it passes on to another by ``**`` are not among them."""
    _, *taken = inspect.signature(kind).parameters.values()
    return [
        Option(each.name, None if each.default is each.empty else each.default, _meaning(kind, each.name))
        for each in taken
        if each.kind is not each.VAR_KEYWORD
    ]


def takes_any(kind: type[Scheme]) -> bool:
    """Return whether a scheme passes options that it does not know on to another."""
    return any(each.kind is each.VAR_KEYWORD for each in inspect.signature(kind).parameters.values())


def _meaning(kind: type[Any], name: str) -> str:
    """Return what the docstring says of ``name``; where that is "as X", what the docstring of a base class says."""
    found = [text for base in kind.__mro__ for names, text in _explained(base) if name in names]
    own = [text for text in found if not re.match(r"as [A-Z]\w+\.?$", text)]
    return next(iter(own or found), "")


def _explained(kind: type[Any]) -> Iterator[tuple[list[str], str]]:
    """Yield the entries under "Args:" of a class's docstring: the names, and the text in one line."""
    doc = inspect.cleandoc(kind.__dict__.get("__doc__") or "")
    section = re.search(r"^Args:\n((?:[ ]+.*\n|\n)*)", doc + "\n", re.MULTILINE)
    entries = r"^    (\w[^:\n]*): ((?:.*\n)(?:      +.*\n)*)"
    for names, text in re.findall(entries, section[1] if section else "", re.MULTILINE):
        yield re.split(r",\s*", names), " ".join(text.split())
