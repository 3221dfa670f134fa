# SPDX-License-Identifier: Apache-2.0
"""What a data set looks like, known without reading it: enough to build an untrained link."""

from dataclasses import dataclass
from typing import Literal

from semlink._errors import check_name
from semlink.data.sources import NAMES


@dataclass(frozen=True)
class Description:
    """Shape (C, H, W) of the images, and kind and number of the targets."""

    image_shape: tuple[int, int, int]
    kind: Literal["classes", "attributes"]
    targets: int


_GREY = Description((1, 28, 28), "classes", 10)
_KNOWN = {
    "digits": _GREY,
    "mnist": _GREY,
    "fashion-mnist": _GREY,
    "cifar10": Description((3, 32, 32), "classes", 10),
    "celeba": Description((3, 64, 64), "attributes", 40),
}


def describe(name: str) -> Description:
    """Return the description of a data set; an unknown name raises SemlinkError."""
    return _KNOWN[check_name("data set", name, NAMES)]
