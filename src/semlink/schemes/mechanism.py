# SPDX-License-Identifier: Apache-2.0
"""Privacy mechanisms on real features: clip, add noise, scale by a public constant. What each promises, it says.

    features (B, d) ─> clip to a ball of fixed radius ─> + noise of fixed scale ─> x 1 / sqrt(M + V) ─> features (B, d)

M is the largest mean square that the clip lets through, V the variance of the noise. For every image the mean over the
noise of its mean square is therefore at most 1: it is 1 if the clipped features have mean square M, and V / (M + V) if
they are zero. A single draw varies about that. The constant is public, so it is post-processing and costs no privacy.
Scaling each noisy vector to power 1 would be post-processing too, but the noise would then have no scale that a
receiver could know and no law that an audit could check.

What the promises assume: weights that do not depend on the image (evaluation mode), randomness that nobody can repeat
(a generator that starts from a known seed, as an experiment's does, lets anyone subtract the noise), and real numbers.
Clip and noise are in float64 and only their rounded sum leaves, but a floating-point sum still tells a little more than
a real one (I. Mironov, "On significance of the least significant bits for differential privacy", CCS 2012). They say
nothing of the images that the network was trained on.

Sources: C. Dwork, A. Roth, "The algorithmic foundations of differential privacy", 2014, definition 3.3 and theorem 3.6,
for Laplace noise; B. Balle, Y.-X. Wang, ICML 2018, for Gaussian noise; see semlink.metrics.privacy for the accounting.
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from semlink._errors import SemlinkError, check_name, check_positive, check_probability, check_whole
from semlink.metrics import privacy


@dataclass(frozen=True)
class Mechanism(ABC):
    """Clipping and noise for ``features`` numbers an image.

    Attributes:
        features: d.
        epsilon: the privacy budget, per image unless the subclass says otherwise.
        clip: radius of the ball that features are clipped to.

    Raises:
        SemlinkError: a number is not positive and finite.
    """

    features: int
    epsilon: float
    clip: float

    key: ClassVar[str]
    promise: ClassVar[str]
    law: ClassVar[Literal["laplace", "gaussian"]] = "laplace"
    norm: ClassVar[float] = 2.0  # of the ball: 1, 2 or inf

    def __post_init__(self) -> None:
        check_positive("option epsilon", self.epsilon)
        check_positive("option clip", self.clip)

    @property
    def radius(self) -> float:
        """Radius of the ball, in its norm."""
        return self.clip

    @property
    @abstractmethod
    def noise_scale(self) -> float:
        """b of Laplace noise, the standard deviation of Gaussian noise, in units of the clipped features."""

    @property
    def l2_diameter(self) -> float:
        """Largest Euclidean distance of two clipped vectors."""
        return 2 * self.radius * (math.sqrt(self.features) if self.norm == math.inf else 1)

    @property
    def gain(self) -> float:
        """The public constant ``1 / sqrt(M + V)``."""
        deviation = self.noise_scale * (math.sqrt(2) if self.law == "laplace" else 1)
        return 1 / math.hypot(self.l2_diameter / 2 / math.sqrt(self.features), deviation)

    def clipped(self, features: Tensor) -> Tensor:
        """Return the nearest or the radially nearest point of the ball: ``(B, d) -> (B, d) float64``."""
        features = features.double()
        if self.norm == math.inf:
            return features.clamp(-self.radius, self.radius)
        length = torch.linalg.vector_norm(features, self.norm, dim=1, keepdim=True)
        return features * (self.radius / length.clamp_min(self.radius))

    def released(self, clipped: Tensor, generator: torch.Generator) -> Tensor:
        """Add fresh noise and scale: ``(B, d) float64 -> (B, d) float32``."""
        noise = _DRAW[self.law](clipped.shape, generator).to(clipped.device)
        return (self.gain * (clipped + self.noise_scale * noise)).float()

    @abstractmethod
    def losses(self, transmissions: int, delta: float) -> dict[str, Any]:
        """Return epsilon and delta of one image sent ``transmissions`` times with fresh noise."""

    def guarantee(
        self, transmissions: Sequence[int] = (1, 10, 100), delta: float = 1e-5, classes: int | None = None
    ) -> dict[str, Any]:
        """Return what is promised, in JSON's types, for a record.

        Args:
            transmissions: how often the same image is sent, each time with fresh noise; a row for each.
            delta: at which composed epsilons are stated.
            classes: of a task; adds the ceiling on balanced accuracy where there is a promise.

        Raises:
            SemlinkError: a number of transmissions is below 1, or ``delta`` is not in (0, 1).
        """
        rows = [{"transmissions": check_whole("transmissions", q), **self.losses(q, delta)} for q in transmissions]
        return {
            "mechanism": self.key,
            "promise": self.promise,
            "inputs": "any two images",
            "options": dataclasses.asdict(self),
            "clip_norm": {1.0: "l1", 2.0: "l2", math.inf: "each feature"}[self.norm],
            "clip_radius": self.radius,
            "noise": self.law,
            "noise_scale": self.noise_scale,
            "gain": self.gain,
            "per_image": [row | self._ceiling(row, classes) for row in rows],
        }

    def _ceiling(self, row: dict[str, Any], classes: int | None) -> dict[str, float]:
        if classes is None or row["epsilon"] is None:
            return {}
        statements = [(row["epsilon"], row["delta"]), (row["composed_epsilon"], row["composed_delta"])]
        ceilings = [privacy.accuracy_ceiling(epsilon, classes, delta) for epsilon, delta in statements]
        return {"balanced_accuracy_ceiling": min(ceilings)}


class Vector(Mechanism):
    """epsilon-LDP of the image: clip to the L1 ball of radius C; two images are at most 2C apart; b = 2C / epsilon.

    The alternative, [-B, B] for each feature, has joint sensitivity 2Bd and so the noise of C = Bd; its cube lies
    inside that L1 ball. So the L1 ball takes nothing away, and also lets a code put all its weight on a few features.
    C itself changes nothing but the unit of the features, and with it how many images are clipped at first.
    """

    key = "vector"
    promise = "epsilon-local differential privacy of the whole image"
    norm = 1.0

    @property
    def noise_scale(self) -> float:
        """b = 2C / epsilon."""
        return 2 * self.clip / self.epsilon

    def losses(self, transmissions: int, delta: float) -> dict[str, Any]:
        """Return the sum of the epsilons, and the best composition at ``delta``."""
        return _pure(self.epsilon, transmissions, delta)


class Coordinate(Mechanism):
    """epsilon for each feature, d epsilon for the image: clip each feature to [-B, B]; b = 2B / epsilon."""

    key = "coordinate"
    promise = "epsilon-local differential privacy of each feature alone; all are sent, so the image has d epsilon"
    norm = math.inf

    @property
    def noise_scale(self) -> float:
        """b = 2B / epsilon."""
        return 2 * self.clip / self.epsilon

    def losses(self, transmissions: int, delta: float) -> dict[str, Any]:
        """Return the loss of one feature, then those of the image: one transmission is already d releases."""
        each = {"epsilon_of_one_feature": transmissions * self.epsilon}
        return each | _pure(self.epsilon, transmissions * self.features, delta)


@dataclass(frozen=True)
class LaplaceScale(Mechanism):
    """No guarantee: noise of scale b = nominal_sensitivity / epsilon on features of root mean square ``clip`` at most.

    The only reading under which epsilon = 0.05, 0.1, 0.9 can have the accuracies that Guo et al. print. The clip is
    there for the power alone. It does bound the privacy loss, since two images are at most 2 clip d apart in L1, but
    at 2 clip d / b: hundreds, which protects nothing.
    """

    nominal_sensitivity: float = 0.09

    key = "laplace-scale"
    promise = "none: epsilon sets the scale of the noise and bounds nothing"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("option nominal_sensitivity", self.nominal_sensitivity)

    @property
    def radius(self) -> float:
        """Length of d features of root mean square ``clip``."""
        return self.clip * math.sqrt(self.features)

    @property
    def noise_scale(self) -> float:
        """b = nominal_sensitivity / epsilon."""
        return self.nominal_sensitivity / self.epsilon

    def losses(self, transmissions: int, delta: float) -> dict[str, Any]:
        """Return no epsilon, and what the clip alone bounds the loss at."""
        check_probability("delta", delta)
        bound = 2 * self.clip * self.features / self.noise_scale
        return {"epsilon": None, "delta": None, "loss_bounded_by_the_clip": transmissions * bound}


@dataclass(frozen=True)
class Gaussian(Mechanism):
    """(epsilon, delta)-LDP of the image: clip to the L2 ball of radius C; the least Gaussian noise for 2C."""

    delta: float = 1e-5

    key = "gaussian"
    promise = "(epsilon, delta)-local differential privacy of the whole image"
    law = "gaussian"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_probability("option delta", self.delta)

    @cached_property
    def mu(self) -> float:
        """The mu of Gaussian differential privacy that one transmission has."""
        return privacy.gaussian_mu(self.epsilon, self.delta)

    @property
    def noise_scale(self) -> float:
        """Standard deviation 2C / mu, by the analytic Gaussian mechanism."""
        return 2 * self.clip / self.mu

    def losses(self, transmissions: int, delta: float) -> dict[str, Any]:
        """Return the sums of the epsilons and deltas, and the exact epsilon at ``delta``: q are sqrt(q) mu-GDP."""
        mu = self.mu * math.sqrt(transmissions)
        return {
            "epsilon": transmissions * self.epsilon,
            "delta": min(1.0, transmissions * self.delta),
            "mu": mu,
            "composed_epsilon": privacy.gaussian_epsilon(mu, delta),
            "composed_delta": delta,
        }


MECHANISMS: dict[str, type[Mechanism]] = {kind.key: kind for kind in (Vector, Coordinate, LaplaceScale, Gaussian)}


def make_mechanism(key: str, features: int, epsilon: float, clip: float, **others: float | None) -> Mechanism:
    """Return the mechanism ``key``; ``others`` are options that only some have, None where they are not given.

    Raises:
        SemlinkError: the key is unknown, an option is not one of this mechanism, or a number makes no sense.
    """
    kind = MECHANISMS[check_name("mechanism", str(key), MECHANISMS)]
    given = {name: value for name, value in others.items() if value is not None}
    known = [field.name for field in dataclasses.fields(kind)]
    for name in given:
        if name not in known:
            raise SemlinkError(f"option {name} has no meaning with mechanism '{key}'; leave it out")
    return kind(features, epsilon, clip, **given)


def _pure(epsilon: float, releases: int, delta: float) -> dict[str, Any]:
    return {
        "epsilon": releases * epsilon,
        "delta": 0.0,
        "composed_epsilon": privacy.composed_epsilon(epsilon, releases, delta),
        "composed_delta": delta,
    }


def _laplace(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Draw Laplace noise of scale 1, float64: the difference of two exponentials."""
    # Not Tensor.exponential_, which on Intel processors draws a whole batch from a stream with a 31-bit seed.
    uniform = torch.rand(2, *shape, generator=generator, device=generator.device, dtype=torch.float64)
    one, other = -torch.log1p(-uniform)
    return one - other


def _normal(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float64)


_DRAW = {"laplace": _laplace, "gaussian": _normal}
