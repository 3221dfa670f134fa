# SPDX-License-Identifier: Apache-2.0
"""Semlink: a laboratory for semantic links.

Train a link, put it on a channel, let an eavesdropper attack it, and say in numbers what got through to whom.

Example:
    >>> import semlink, torch
    >>> link = semlink.create("deepjscc", data="cifar10", channel="awgn", snr_db=12)
    >>> images = torch.rand(4, 3, 32, 32)
    >>> sent = link.transmit(images)
    >>> received = link.channel(sent.symbols, snr_db=12.0, generator=torch.Generator().manual_seed(1))
    >>> link.receive(received, sent.header).shape
    torch.Size([4, 10])

Everything not exported here is private. The names below are imported when they are first used, so importing the
package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from semlink._errors import SemlinkError
from semlink._version import VERSION as __version__

if TYPE_CHECKING:
    from semlink import attacks, schemes
    from semlink.bench.cost import cost
    from semlink.bench.links import create, load
    from semlink.phy import channels
    from semlink.schemes import Key, Link

_HOMES = {
    "Key": "semlink.schemes",
    "Link": "semlink.schemes",
    "channels": "semlink.phy",
    "cost": "semlink.bench.cost",
    "create": "semlink.bench.links",
    "load": "semlink.bench.links",
}

__all__ = [
    "Key",
    "Link",
    "SemlinkError",
    "__version__",
    "attacks",
    "channels",
    "cost",
    "create",
    "load",
    "register_scheme",
    "schemes",
]


def register_scheme(key: str) -> Any:
    """Return a class decorator that files a :class:`semlink.schemes.Scheme` under ``key``.

    From then on every recipe, attack, metric and figure takes ``key``. A key taken raises SemlinkError.
    """
    from semlink.schemes import schemes

    return schemes.register(key)


def __getattr__(name: str) -> Any:
    if name in ("attacks", "schemes"):  # rooms whose keys() are public; their registries are found by key everywhere
        return import_module(f"semlink.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'semlink' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
