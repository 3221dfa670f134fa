# SPDX-License-Identifier: Apache-2.0
"""Where in a TOML file a mistake stands: lines of keys, and the error that names file, line and field."""

import json
import re
import tomllib
from collections.abc import Iterator
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, NoReturn

from semlink._errors import SemlinkError

Keys = tuple[str, ...]


def refuse(file: Path | Traversable, text: str, mistakes: list[tuple[Keys, Keys, str]]) -> NoReturn:
    """Raise the first of the mistakes: (variant's keys, keys, message)."""
    lines = _lines(text)
    told = {(*_locate(lines, root, keys), message): None for root, keys, message in mistakes}  # defaults' only once
    line, field, message = min(told, key=lambda each: each[0])
    more = f" (and {len(told) - 1} more error{'s' * (len(told) > 2)})" if len(told) > 1 else ""
    raise SemlinkError(f"{file}, line {line}: {field}: {message}{more}")


def _locate(lines: dict[Keys, int], root: Keys, keys: Keys) -> tuple[int, str]:
    """Return the line and the name of a field: as it stands under ``root``, else in the defaults there.

    A field that is in neither has the line of the nearest table that would hold it.
    """
    own = known = (*root, *keys)
    default = (*root, "defaults", *keys[2:])
    if own not in lines and keys[0] == "links" and len(keys) > 2 and default in lines:
        own = known = default
    while known not in lines:
        known = known[:-1]
    return lines[known], ".".join(key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else shown(key) for key in own)


def _lines(text: str) -> dict[Keys, int]:
    """Return the line of every key of a valid TOML text, by the keys that lead to it.

    tomllib tells no lines, so the text is cut into statements, each as many lines as tomllib needs to read it.
    """
    lines: dict[Keys, int] = {(): 1}
    table: Keys = ()
    first, statement = 1, ""
    for number, line in enumerate(text.split("\n"), 1):
        statement += line + "\n"
        try:
            paths = list(_paths(tomllib.loads(statement)))
        except ValueError:
            continue  # a list or a string that goes on
        if statement.lstrip().startswith("["):
            table = paths[-1]
            lines[table] = first  # though a table below it may have stood above
            paths = [table[:depth] for depth in range(len(table))]
        else:
            paths = [table + path for path in paths]
        for path in paths:
            lines.setdefault(path, first)
        first, statement = number + 1, ""
    return lines


def _paths(value: Any) -> Iterator[Keys]:
    """Yield the keys that lead to each value of nested tables, a table's own before those in it."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield (key,)
        yield from ((key, *path) for path in _paths(inner))


def shown(value: Any) -> str:
    """Return a value as TOML writes it; a table or list by its kind."""
    if isinstance(value, dict | list):
        return ("a " if value else "an empty ") + ("table" if isinstance(value, dict) else "list")
    return json.dumps(value, ensure_ascii=False) if isinstance(value, bool | str) else str(value)
