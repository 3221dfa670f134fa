# SPDX-License-Identifier: Apache-2.0
"""How much work a run does: ``smoke`` proves the path, ``short`` compares many links on two cores, ``tune`` does from
weights that are trained already, ``brief`` does so for many seeds, ``cpu`` trains one link well there, ``converged``
trains K users until that helps no more, ``paper`` is the full schedule."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from semlink._errors import check_name
from semlink.nn import Backbone, Optimiser


@dataclass(frozen=True)
class Schedule:
    """One training's length and optimiser.

    Attributes:
        epochs: at most.
        patience: it ends before when validation has not risen for so many epochs; None never does.
    """

    epochs: int
    batch_size: int
    optimiser: Optimiser
    label_smoothing: float = 0.0
    patience: int | None = None

    def describe(self) -> dict[str, Any]:
        """Return what a record and the hash of a cell say of it; what is None is not said."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Scale:
    """Networks and schedules for one kind of image; ``decoder_width`` is the attacker's channels at 4x4."""

    backbone: Backbone
    link: Schedule
    decoder_width: int
    attack: Schedule


@dataclass(frozen=True)
class Preset:
    """Sizes and schedules of a link and of the attack on it.

    Attributes:
        colour, grey: for images of three channels and of one.
        perceptual_taps: VGG16 layers in the attacker's training loss.
        network: schedule of K users together, with the settings of paper B, section IV; only its length differs.
        draws: noise draws per test image.
        images: at most so many images of each split; None takes all.
    """

    colour: Scale
    grey: Scale
    perceptual_taps: int
    network: Schedule
    draws: int
    images: int | None = None

    def scale(self, channels: int) -> Scale:
        """Return what suits images of ``channels`` channels."""
        return self.grey if channels == 1 else self.colour


def _link(epochs: int, batch_size: int, rate: float) -> Schedule:
    """Nesterov momentum on a triangle: what trains small convolutional networks in few epochs."""
    return Schedule(epochs, batch_size, Optimiser("sgd", rate, 5e-4, schedule="triangle"), label_smoothing=0.1)


def _attack(epochs: int, batch_size: int, rate: float = 1e-3) -> Schedule:
    return Schedule(epochs, batch_size, Optimiser("adamw", rate, schedule="cosine", warm_up=0.1))


def _network(epochs: int, patience: int | None = None) -> Schedule:
    return Schedule(epochs, 128, Optimiser("adamw", 1e-3, betas=(0.9, 0.98)), patience=patience)


_COLOUR, _GREY, _TINY = Backbone(256, 640), Backbone(64, 128), Backbone(16, 16)

_CPU = Preset(
    colour=Scale(_COLOUR, _link(30, 256, 0.2), 256, _attack(12, 64)),
    grey=Scale(_GREY, _link(20, 128, 0.1), 64, _attack(30, 64, 3e-3)),
    perceptual_taps=2,
    network=_network(30),
    draws=5,
)

PRESETS = {
    "smoke": Preset(
        colour=Scale(_TINY, _link(2, 64, 0.1), 32, _attack(2, 64)),
        grey=Scale(_TINY, _link(2, 64, 0.1), 32, _attack(2, 64)),
        perceptual_taps=1,
        network=_network(2),
        draws=1,
        images=512,
    ),
    "short": Preset(
        colour=Scale(_COLOUR, _link(6, 256, 0.2), 256, _attack(6, 64)),
        grey=Scale(_GREY, _link(5, 128, 0.1), 64, _attack(10, 64, 3e-3)),
        perceptual_taps=2,
        network=_network(15),
        draws=5,
    ),
    "tune": Preset(  # a quarter of the others' rate, lest what the link starts from be forgotten first
        colour=Scale(_COLOUR, _link(5, 256, 0.05), 256, _attack(6, 64)),
        grey=Scale(_GREY, _link(5, 128, 0.025), 64, _attack(10, 64, 3e-3)),
        perceptual_taps=2,
        network=_network(5),
        draws=5,
    ),
    "brief": Preset(  # of a recipe with so many links and seeds that two cores have two epochs for each
        colour=Scale(_COLOUR, _link(2, 256, 0.05), 256, _attack(2, 64)),
        grey=Scale(_GREY, _link(2, 128, 0.025), 64, _attack(4, 64, 3e-3)),
        perceptual_taps=2,
        network=_network(2),
        draws=5,
    ),
    "cpu": _CPU,
    "converged": replace(_CPU, network=_network(200, patience=10)),
    "paper": Preset(
        colour=Scale(_COLOUR, _link(200, 512, 0.4), 256, _attack(200, 128)),
        grey=Scale(_GREY, _link(200, 512, 0.4), 256, _attack(200, 128)),
        perceptual_taps=5,
        network=_network(200),
        draws=5,
    ),
}


def preset(name: str) -> Preset:
    """Return a preset by name; an unknown name raises SemlinkError."""
    return PRESETS[check_name("preset", name, PRESETS)]
