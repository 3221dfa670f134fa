# SPDX-License-Identifier: Apache-2.0
"""One generic registry: schemes, attacks, channels and data sets are all found by key."""

from collections.abc import Callable
from typing import Generic, TypeVar, cast

from semlink import _plugins
from semlink._errors import SemlinkError, check_name

T = TypeVar("T")
E = TypeVar("E")


class Registry(Generic[T]):
    """A mapping from key to entry, plugins' too, that refuses duplicates and explains unknown keys."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, key: str) -> Callable[[E], E]:
        """Return a decorator that files its argument under ``key``; a key taken raises SemlinkError."""

        def add(entry: E) -> E:
            if key in self._entries:
                raise SemlinkError(f"{self.kind} '{key}' is registered already; choose another key")
            self._entries[key] = cast(T, entry)  # returned as it came, so a decorated class keeps its own type
            return entry

        return add

    def __getitem__(self, key: str) -> T:
        known = self.keys()
        return self._entries[check_name(self.kind, key, known)]

    def keys(self) -> list[str]:
        """All keys, sorted."""
        _plugins.load()
        return sorted(self._entries)
