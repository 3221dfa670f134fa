# SPDX-License-Identifier: Apache-2.0
"""What a scheme can be told: the options of its constructor, as its docstring explains them and its types say."""

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from semlink._errors import SemlinkError, check_name
from semlink.schemes.base import Scheme, schemes

#: What an option may be, by the name of its type: the Python types that do, and how an error calls them.
_KINDS = {
    "bool": (bool, "true or false"),
    "int": (int, "a whole number"),
    "float": (int | float, "a number"),
    "str": (str, "a name"),
}


@dataclass(frozen=True)
class Option:
    """An option: its name, the value if it is left out, and what it means, with the source of that value."""

    name: str
    default: bool | int | float | str | None
    meaning: str


def options(kind: type[Scheme]) -> list[Option]:
    """Return the options of a scheme, those that it passes on to its base class too; none of another it wraps."""
    found: dict[str, Option] = {}
    for each in _taken(kind):
        default = None if each.default is each.empty else each.default
        found.setdefault(each.name, Option(each.name, default, _meaning(kind, each.name)))
    return list(found.values())


def check_options(scheme: str, given: Mapping[str, object]) -> None:
    """Pass options that the scheme ``scheme`` takes.

    Raises:
        SemlinkError: as :func:`check_option`.
    """
    for name, value in given.items():
        check_option(scheme, name, value)


def check_option(scheme: str, name: str, value: object) -> None:
    """Pass an option of the scheme ``scheme`` whose value is of the type that the constructor says.

    A whole number does for a number, a flag for neither. What a constructor says nothing of, and a type beyond flags,
    numbers and names, is left for it to check.

    Raises:
        SemlinkError: there is no such option, or it takes another type; the message says which.
    """
    kind = schemes[scheme]
    taken = list(_taken(kind))
    if not takes_any(kind):
        check_name(f"option of {scheme}", name, [each.name for each in taken])
    # Types are compared as text, which they are already where a module postpones its annotations.
    said = next((inspect.formatannotation(each.annotation).strip("'") for each in taken if each.name == name), "")
    names = [each for each in re.split(r"\s*\|\s*", said) if each != "None"]
    if not names or not _KINDS.keys() >= set(names):
        return
    flag = isinstance(value, bool)  # which Python counts among whole numbers
    if not any(isinstance(value, _KINDS[each][0]) and flag == (each == "bool") for each in names):
        expected, meaning = " or ".join(_KINDS[each][1] for each in names), _meaning(kind, name).rstrip(".")
        explained = f" ({meaning})" if meaning else ""
        raise SemlinkError(f"{name} is {value!r}: scheme '{scheme}' takes {expected} there{explained}")


def takes_any(kind: type[Scheme]) -> bool:
    """Return whether a scheme passes options that it does not know on to another."""
    return not _chain(kind)[1]


def _taken(kind: type[Scheme]) -> Iterator[inspect.Parameter]:
    """Yield the parameters of a scheme's constructor beside its design, then those of the bases it passes ``**`` on to.

    What a base class must be given is given by the scheme, and is no option.
    """
    own, *bases = _chain(kind)[0]
    yield from own
    yield from (each for parameters in bases for each in parameters if each.default is not each.empty)


def _chain(kind: type[Scheme]) -> tuple[list[list[inspect.Parameter]], bool]:
    """Return the parameters beside the design of each constructor that takes part, and whether that is all of them.

    It is not where the last one passes ``**`` on to something else than a base class with parameters of its own.
    """
    found: list[list[inspect.Parameter]] = []
    for base in kind.__mro__:
        if "__init__" not in base.__dict__ or not issubclass(base, Scheme):
            continue
        _, _, *taken = inspect.signature(base.__init__).parameters.values()
        if found and not taken:
            return found, False
        named = [each for each in taken if each.kind is not each.VAR_KEYWORD]
        found.append(named)
        if len(named) == len(taken):
            return found, True
    return found, False


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
