# SPDX-License-Identifier: Apache-2.0
"""What a data set looks like, known without reading it: enough to build an untrained link."""

from dataclasses import dataclass
from typing import Literal

from semlink._errors import SemlinkError, check_name
from semlink.data.sources import NAMES


@dataclass(frozen=True)
class Description:
    """Shape (C, H, W) of the images, kind and number of the targets, and the names of attributes in their order."""

    image_shape: tuple[int, int, int]
    kind: Literal["classes", "attributes"]
    targets: int
    attributes: tuple[str, ...] = ()


# fmt: off
_FACES = (  # the header of list_attr_celeba.txt
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips", "Big_Nose",
    "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses",
    "Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache",
    "Narrow_Eyes", "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks",
    "Sideburns", "Smiling", "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick",
    "Wearing_Necklace", "Wearing_Necktie", "Young",
)
# fmt: on
_GREY = Description((1, 28, 28), "classes", 10)
_KNOWN = {
    "digits": _GREY,
    "mnist": _GREY,
    "fashion-mnist": _GREY,
    "cifar10": Description((3, 32, 32), "classes", 10),
    "celeba": Description((3, 64, 64), "attributes", 40, _FACES),
}


def members(name: str, users: int | None = None) -> list[str]:
    """Return the data set of each user in turn: ``mnist+fashion-mnist`` are two.

    Raises:
        SemlinkError: one is unknown, or there are more of them than ``users``, where that is given.
    """
    of = [check_name("data set", each, NAMES) for each in name.split("+")]
    if users is not None and users < len(of):
        raise SemlinkError(
            f"'{name}' is of {len(of)} users, and there are {users}; name as many sets as users, or fewer"
        )
    return of


def describe(name: str) -> Description:
    """Return the description of a data set, or of several, joined by "+", whose images are alike.

    Raises:
        SemlinkError: a name is unknown, or images or targets of the sets differ in shape.
    """
    first, *others = members(name)
    for other in others:
        if _KNOWN[other] != _KNOWN[first]:
            raise SemlinkError(
                f"images or targets of {other} and {first} differ in shape; users must send alike images"
            )
    return _KNOWN[first]
