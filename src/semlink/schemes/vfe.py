# SPDX-License-Identifier: Apache-2.0
"""VFE: variational feature encoding, an information bottleneck on the features as they are sent.

    image ─> Encoder ─> u (d) ─> W ─> BatchNorm ─> z = tanh(s * .), 0 where s <= threshold ─> 2 reals a symbol ─> power
                                                                                                                    │
    answer <─ Classifier | ImageDecoder <─ unmix, refine <─ dimensions that are sent <─ equaliser <─ y <─ channel <─ x

u has unit mean square, the d rows of W unit length, what they give mean 0 and variance 1 over images (BatchNorm), and s
is a learned scale for each dimension: it alone says how large a dimension is sent. Sent are the features f = z
(``power="peak"``) or z at unit mean energy per image (``power="average"``); what arrives is y = f + sigma n on each
real dimension. The paper's equations (9) and (14), as its code computes them:

    loss = CE(answer, target) + anneal * beta * E[ 0.1 / sigma * sum_i KL( N(f_i, sigma^2) || 1 / |y_i| ) ]

The divergence is that of nn/variational.py, a function of the SNR of each dimension f_i^2 / sigma^2 alone; over fading,
sigma is the noise after the channel's gain is divided out. Dimensions that do not earn their rate fall to 0 and are
pruned. Other tasks have their own loss in the place of the cross-entropy CE. ``anneal`` is 0 until ``anneal_start``,
then rises linearly to 1 at ``anneal_end``.

Two conventions of power and SNR.
    average: this laboratory's. E|x|^2 = 1 per channel use, image by image, whatever is pruned: the active dimensions
        share the energy of the whole block, so schemes are compared at equal energy. ``snr_db`` is Es/N0.
    peak: the authors'. |z_i| <= 1 and nothing is normalised; x = (z_1 + j z_2) / sqrt(2), so the largest energy that a
        symbol can have is 1, and ``snr_db`` of the channel is their peak SNR, -20 log10 sigma. A symbol's mean energy
        m is below 1; the true average SNR is peak SNR + 10 log10 m, and :meth:`VFE.usage` measures it.
A link of the average convention has peak SNR = snr_db + :func:`peak_to_average_db` (its symbols).

Active dimensions ride two by two on the first ceil(active / 2) channel uses. The rest of the block is silent: it costs
no energy, and another user may have it. ``channel_uses`` counts the whole block, ``usage`` what is sent.

Source: J. Shao, Y. Mao, J. Zhang, "Learning task-oriented communication for edge inference: an information bottleneck
approach", IEEE J. Sel. Areas Commun. 40(1), 2022, arXiv:2102.04170. Encoder and answering network are DeepJSCC's, so
that both schemes have the same capacity; W, s and the receiver's first layers add 2 % to it at 64 channel uses.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from semlink import phy
from semlink._errors import check_name, check_number
from semlink.nn import Phase
from semlink.nn.objective import Annealed, Optimiser, Telling
from semlink.nn.variational import FixedScale, Inlet, MonotoneScale, UnitRows, log_uniform_kl, noise_level
from semlink.schemes.base import Carry, Design, Sent, schemes
from semlink.schemes.deepjscc import DeepJSCC


@dataclass(frozen=True)
class Usage:
    """What a batch took of the channel.

    Attributes:
        active_dimensions: real dimensions that are not silent, mean over images.
        channel_uses: symbols that are not silent, mean over images.
        average_snr_db: true Es/N0 over the block, from the measured power.
        active_snr_db: the same over the symbols that are not silent.
        peak_snr_db: peak square of a real dimension over the noise variance of one; the peak allowed where the
            convention sets one, else the largest that was sent.
    """

    active_dimensions: float
    channel_uses: float
    average_snr_db: float
    active_snr_db: float
    peak_snr_db: float


@schemes.register("vfe")
class VFE(DeepJSCC):
    """DeepJSCC with a variational bottleneck: d = 2 * channel_uses dimensions at most, fewer after pruning.

    Evaluation differs from training by BatchNorm's statistics alone; pruning works in both.

    Args:
        design: dimensions of the link.
        power: ``average``, unit mean energy per symbol, or ``peak``, the authors' convention (see above). Default:
            this laboratory's convention.
        beta: weight of the rate, in units of the task's loss per nat at sigma = 0.1. Default 9e-3: the authors' README
            for CIFAR-10 (6e-3 for MNIST). 0 leaves the rate out.
        anneal_start: share of training after which the rate begins to count. Default 1/16: the authors' 20 of 320
            epochs.
        anneal_end: share of training after which it counts in full. Default 1/8: the authors' 40 of 320 epochs.
        threshold: scale at or below which a dimension is pruned (the largest never is). Default 0.01: the authors'
            code.

    Raises:
        SemlinkError: as DeepJSCC, or an option has a value that makes no sense.
    """

    scale_kind: ClassVar[type[FixedScale] | type[MonotoneScale]] = FixedScale

    def __init__(
        self,
        design: Design,
        power: str = "average",
        beta: float = 9e-3,
        anneal_start: float = 1 / 16,
        anneal_end: float = 1 / 8,
        threshold: float = 0.01,
    ) -> None:
        super().__init__(design)
        self.power = check_name("power convention", power, ("average", "peak"))
        self.beta = check_number("option beta", beta)
        self.threshold = check_number("option threshold", threshold, 0, 1)
        self.anneal_start = check_number("option anneal_start", anneal_start, 0, 1)
        self.anneal_end = check_number("option anneal_end", anneal_end, self.anneal_start, 1)
        features = 2 * design.channel_uses
        self.mix = UnitRows(features)
        # Without it the encoder lowers the rate by shrinking what W sees, and no scale ever reaches the threshold.
        self.level = nn.BatchNorm1d(features, momentum=0.4, affine=False)
        self.scale = self.scale_kind(features)
        self.inlet = Inlet(self.mix, adaptive=self.scale_kind is MonotoneScale)

    def active(self, scales: Tensor) -> Tensor:
        """Return which dimensions are sent at ``scales: (B, d)``: (B, d) bool, at least one in each row."""
        return (scales > self.threshold) | (scales == scales.amax(1, keepdim=True))

    def active_dimensions(self, snr_db: float | None = None) -> int:
        """Return how many real dimensions are sent; at ``snr_db``, where a scheme adapts to it."""
        del snr_db
        return int(self.active(self.scale(None)).sum())

    def describe(self) -> dict[str, Any]:
        """Return how many dimensions are sent, for the record."""
        return {"active_dimensions": self.active_dimensions()}

    def usage(self, sent: Sent, snr_db: float) -> Usage:
        """Return what ``sent`` takes of a channel of noise variance ``10^(-snr_db / 10)``."""
        rails = torch.view_as_real(sent.symbols).double()
        dimensions, uses = (rails != 0).flatten(1).sum(1), (rails != 0).any(-1).sum(1)
        energy = rails.square().sum((1, 2))
        peak = 0.0 if self.power == "peak" else _db(2 * rails.square().amax())
        return Usage(
            active_dimensions=float(dimensions.double().mean()),
            channel_uses=float(uses.double().mean()),
            average_snr_db=snr_db + _db(energy.mean() / rails.shape[1]),
            active_snr_db=snr_db + _db((energy / uses).mean()),
            peak_snr_db=snr_db + peak,
        )

    def transmit(self, images: Tensor, generator: torch.Generator) -> Sent:
        """Encode; nothing here is random."""
        del generator
        return Sent(self.modulated(images, self.scale(None)))

    def receive(self, received: phy.Received, header: Tensor | None = None) -> Tensor:
        """Take the dimensions that are sent, and answer."""
        del header
        return self.answered(received, self.scale(None))

    def modulated(self, images: Tensor, scales: Tensor) -> Tensor:
        """Return the symbols (B, n) of ``images`` at ``scales: (B, d)`` or (1, d)."""
        features = self.features(images)
        with torch.autocast(features.device.type, enabled=False):  # what goes on the air is not rounded to bfloat16
            active = self.active(scales)
            z = (scales * self.level(self.mix(features))).tanh() * active
            symbols = phy.to_symbols(z.gather(1, _order(active).expand_as(z)))
        return phy.normalise_power(symbols) if self.power == "average" else symbols

    def answered(self, received: phy.Received, scales: Tensor) -> Tensor:
        """Return the receiver's output where the transmitter used ``scales: (B, d)`` or (1, d)."""
        heard = self.observe(received, None, with_secret=False)
        active = self.active(scales)
        features = torch.zeros_like(heard).scatter(1, _order(active).expand_as(heard), heard) * active
        return self.answer(self.inlet(features, noise_level(received)))

    def rate(self, sent: Sent, received: phy.Received) -> Tensor:
        """Return the rate of each image over the noise that ``received`` names: (B,) in nats."""
        # As features, unit mean square each, the noise of a real dimension has the variance of a symbol's.
        features = phy.to_features(sent.symbols).unflatten(1, (-1, 2))
        return log_uniform_kl(features.square() / phy.zero_force(received).noise_variance[..., None]).sum((1, 2))

    def send(self, images: Tensor, carry: Carry, generator: torch.Generator) -> tuple[Sent, phy.Received]:
        """Send a training batch; a scheme for a range of SNRs draws them here."""
        sent = self.transmit(images, generator)
        return sent, carry(sent.symbols, generator)

    def phases(self, optimiser: Optimiser, carry: Carry, label_smoothing: float) -> list[Phase]:
        """Return one phase: the task through the channel, and the rate."""
        objective = RateObjective(self, carry, label_smoothing)
        return [Phase("transceiver", objective, Telling.of(optimiser, objective.at))]


class RateObjective(Annealed):
    """The task's loss and the weighted rate; ``rate_nats`` is shown without its weights."""

    def __init__(self, scheme: VFE, carry: Carry, label_smoothing: float) -> None:
        super().__init__(scheme.anneal_start, scheme.anneal_end)
        self.scheme = scheme
        self.carry = carry
        self.label_smoothing = label_smoothing

    def forward(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the losses of one batch."""
        scheme = self.scheme
        sent, received = scheme.send(images, self.carry, generator)
        output = scheme.receive(received, sent.header)
        task = scheme.design.task.loss(output.float(), images, targets, self.label_smoothing)
        rate = scheme.rate(sent, received)
        weighted = (rate * 0.1 / received.noise_variance.squeeze(1).sqrt()).mean()
        return {
            "loss": task + self.anneal * scheme.beta * weighted,
            "task": task,
            "rate_nats": rate.mean(),
            "active_dimensions": (torch.view_as_real(sent.symbols) != 0).sum((1, 2)).float().mean(),
        }


def peak_to_average_db(symbols: Tensor) -> float:
    """Return by how many dB the peak SNR of ``symbols: (B, n)`` exceeds their average SNR.

    The peak is the largest square of a real dimension, the average the mean over all real dimensions of the batch.
    """
    squares = torch.view_as_real(symbols).double().square()
    return _db(squares.amax() / squares.mean())


def _order(active: Tensor) -> Tensor:
    """Return the order in which dimensions are sent: active ones first, otherwise as they are; (B, d) int64."""
    return (~active).to(torch.int8).argsort(dim=1, stable=True)


def _db(ratio: Tensor) -> float:
    return 10 * math.log10(float(ratio.detach()))
