# SPDX-License-Identifier: Apache-2.0
"""Schemes, attacks and channels of others, which are found wherever names are looked up.

An installed package names modules in the entry points ``semlink.plugins``; files of one's own are named in a recipe
(``plugins = ["my_scheme.py"]``) or in SEMLINK_PLUGINS, separated as in PATH, which the processes of a bench inherit.
Loading a plugin is importing it: it registers what it has.
"""

import importlib.util
import os
import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from semlink._errors import SemlinkError

VARIABLE = "SEMLINK_PLUGINS"
GROUP = "semlink.plugins"
_loaded: set[str] = set()


def load() -> None:
    """Load all plugins that are not loaded yet.

    Raises:
        SemlinkError: one cannot be imported; the message says which, and why.
    """
    for point in _points():
        _once(f"plugin '{point.name}' ({point.value})", point.value, point.load, "mend or uninstall its package")
    for path in _files():
        _once(f"plugin {path}", path, lambda path=path: _import(Path(path)), "mend it, or leave it out")


def add(path: Path) -> None:
    """Load the plugin in a file, in this process and in all that it starts.

    Raises:
        SemlinkError: as :func:`load`.
    """
    held = _files()
    if str(path) not in held:
        os.environ[VARIABLE] = os.pathsep.join([*held, str(path)])
    try:
        load()
    except SemlinkError:
        os.environ[VARIABLE] = os.pathsep.join(held)
        raise


@cache  # reading them takes milliseconds, and names are looked up often
def _points() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))


def _files() -> list[str]:
    return [path for path in os.environ.get(VARIABLE, "").split(os.pathsep) if path]


def _once(what: str, key: str, action: Callable[[], object], remedy: str) -> None:
    if key in _loaded:
        return
    _loaded.add(key)  # before, for a plugin may look up what there is
    try:
        action()
    except Exception as error:
        _loaded.discard(key)
        said = " ".join(f"{error}".split()) or type(error).__name__
        raise SemlinkError(f"{what} cannot be loaded: {said}; {remedy}") from None


def _import(path: Path) -> None:
    if path.suffix != ".py" or not path.is_file():
        raise SemlinkError("there is no such Python file")
    name, file = path.stem, str(path.resolve())
    if (there := sys.modules.get(name)) is not None:
        if getattr(there, "__file__", None) == file:
            return
        raise SemlinkError(f"there is a module '{name}' already, rename the file")
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
