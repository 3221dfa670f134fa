# SPDX-License-Identifier: Apache-2.0
"""DeepJSCC-LBVQ: learned vector quantisation whose codeword indices are sent as constellation points.

             16 positions of the 4x4 map, g vectors each, mean 0 and variance 1 over images (BatchNorm)
    image ─> Encoder ─> map (D,4,4) ─> x (n, D/g) ─> 2 x.e_k / sqrt(D/g) ─> index z (n) ─> point of M-QAM | M-PSK ─┐
                                            ▲ codebook e_1 ... e_K, one parameter                               channel
                                            ▼                                                                      │
    answer <─ Classifier | ImageDecoder <─ codeword e_z^ (hard) or sum_k P(k | y) e_k (soft) <─ decision <─────────┘

One index is one symbol, so K is the order of the constellation, n = 16 g channel uses carry n log2 K payload bits, and
g = n / 16 vectors share a position (product quantisation, one codebook for all). In training indices are drawn from
softmax(scores) by Gumbel-softmax, straight through; in evaluation the highest score is sent. The errors of the real
modulation, channel and decision enter training as a constant, (onehot(z^) - onehot(z)) without gradient, so the
receiver learns from what it will get, the codebook from the received codewords and from the scores, the encoder from
the scores.

Loss: CE(answer) - lambda H, where H is the mean entropy of softmax(scores) in nats, as published. Subtracted, it
rewards undecided choices: I(X; Z) = H(Z) - H(Z | X) falls as H(Z | X) rises, so a larger lambda sends less about the
image, spreads the images over more codewords, and makes the receiver used to wrong indices (the robust information
bottleneck).

The constellation is scaled under a running distribution of the indices of training images, frozen in evaluation: energy
is 1 on average over images, not image by image.

Which index rides on which point (``assignment``): in natural order index k is point k, and the codebook arranges
itself around the errors it sees; ``optimised`` searches an order in which near codewords are easily confused points,
anew after 64, 128, 256, ... batches, under the transition matrix at the SNR of training. :meth:`DeepJSCCLBVQ.assign`
does it for a trained link. The receiver's ``decision`` is an attribute that can be set at any time without training
anew.

Source: S. Xie et al., "Robust information bottleneck for task-oriented communication with digital modulation", IEEE J.
Sel. Areas Commun. 41(8), 2023 (DT-JSCC), and its public code for constants; S. Guo et al. (see deepjscc.py) for 16-QAM
and K = 16. Networks are those of deepjscc.py; soft decisions and the assignment are ours.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from semlink import phy
from semlink._errors import SemlinkError, check_name, check_number, check_whole
from semlink.nn import Classifier, Encoder, ImageDecoder, Phase
from semlink.nn.coders import LATENT_SIDE
from semlink.nn.index_modem import IndexModem, mean_snr_db
from semlink.nn.objective import Optimiser
from semlink.nn.quantiser import Codebook, entropy_nats, gumbel_one_hot, one_hot, perplexity
from semlink.schemes.base import Carry, Design, Scheme, Sent, schemes

TEMPERATURE = 0.5  # of the Gumbel-softmax; DT-JSCC's public code
_FIRST_ASSIGNMENT = 64  # batches
_SHARPNESS = 2.0  # of the choices: drawn at random, they would teach the receiver nothing in the first epochs


class Chosen(NamedTuple):
    """What the transmitter chose: vectors x (B, n, d), scores (B, n, K), one-hot choice (B, n, K)."""

    x: Tensor
    scores: Tensor
    choice: Tensor


@schemes.register("deepjscc-lbvq")
class DeepJSCCLBVQ(Scheme):
    """Digital DeepJSCC with a learned codebook.

    Args:
        design: its ``channel_uses`` are a multiple of 16.
        codewords: K, the size of the codebook and of the constellation; 16 as Guo et al.
        modulation: qam (Guo et al.) or psk.
        dimension: D, real features of a position; 64 as DT-JSCC's for MNIST (512 for CIFAR-10 there), which keeps the
            networks within 10 % of deepjscc's.
        decision: hard (as published) or soft.
        assignment: natural (as published) or optimised.
        entropy_weight: lambda, 1e-3 as published.

    Raises:
        SemlinkError: the channel uses do not fill a 4x4 map, the constellation does not exist, or an option is wrong.
    """

    def __init__(
        self,
        design: Design,
        codewords: int = 16,
        modulation: str = "qam",
        dimension: int = 64,
        decision: str = "hard",
        assignment: str = "natural",
        entropy_weight: float = 1e-3,
    ) -> None:
        super().__init__(design)
        task, positions = design.task, LATENT_SIDE**2
        groups, rest = divmod(design.channel_uses, positions)
        if rest or groups < 1:
            raise SemlinkError(
                f"{design.channel_uses} channel uses: each of the {positions} positions of a 4x4 map sends one index "
                f"or more, an index a symbol, so use a multiple of {positions}"
            )
        check_whole("option dimension", dimension)
        if dimension % groups:
            raise SemlinkError(
                f"option dimension is {dimension}: {groups} vectors share it at {design.channel_uses} channel uses, "
                f"so use a multiple of {groups}"
            )
        check_name("assignment", assignment, ("natural", "optimised"))
        self.assignment, self.decision = assignment, decision
        self.entropy_weight = check_number("option entropy_weight", entropy_weight)
        self.encoder = Encoder(task.image_shape, dimension, design.backbone, bias=False)
        # Scores of mean 0 whatever the encoder does: without it a codeword that falls behind is never chosen again.
        self.level = nn.BatchNorm2d(dimension, momentum=0.4, affine=False)
        self.modem = IndexModem(_constellation(codewords, modulation))
        self.codebook = Codebook(codewords, dimension // groups)
        if task.kind == "reconstruct":
            self.decoder = ImageDecoder(dimension * positions, task.image_shape, design.backbone.width)
        else:
            self.decoder = Classifier(dimension, task.outputs, design.backbone)

    @property
    def decision(self) -> str:
        """How the receiver decides: hard or soft; may be set on a trained link."""
        return self._decision

    @decision.setter
    def decision(self, value: str) -> None:
        self._decision = check_name("decision", value, ("hard", "soft"))

    @property
    def payload_bits(self) -> float:
        """Bits per image."""
        return self.design.channel_uses * (self.modem.constellation.order.bit_length() - 1.0)

    def prepare(self, images: Tensor) -> None:
        """Measure the whitening front end."""
        self.encoder.whitening.measure(images)

    def choose(self, images: Tensor, generator: torch.Generator) -> Chosen:
        """Encode ``images: (B, C, H, W)`` and choose a codeword for every vector; in training, count the choices."""
        latent = self.level(self.encoder(images).float())
        x = latent.flatten(2).transpose(1, 2).reshape(len(images), self.design.channel_uses, -1)
        scores = self.scores(x)
        if not self.training:
            return Chosen(x, scores, one_hot(scores))
        self.modem.count(scores.argmax(-1))  # what evaluation will send, not the draw
        return Chosen(x, scores, self.draw(scores, generator))

    def scores(self, x: Tensor) -> Tensor:
        """Return what codewords are chosen by: (B, n, d) -> (B, n, K)."""
        return _SHARPNESS * self.codebook.similarities(x)

    def draw(self, scores: Tensor, generator: torch.Generator) -> Tensor:
        """Return the choice in training, one-hot (B, n, K)."""
        return gumbel_one_hot(scores, TEMPERATURE, generator)

    def heard(self, received: phy.Received) -> Tensor:
        """Return the receiver's weights of the codewords, (B, n, K)."""
        return self.modem.decide(received, self.decision == "soft")

    def answer(self, codewords: Tensor) -> Tensor:
        """Return the receiver's output for codewords (B, n, d)."""
        latent = codewords.reshape(len(codewords), LATENT_SIDE**2, -1).transpose(1, 2)
        if isinstance(self.decoder, Classifier):
            return self.decoder(latent.unflatten(2, (LATENT_SIDE, LATENT_SIDE)))
        return self.decoder(latent.flatten(1))

    def transmit(self, images: Tensor, generator: torch.Generator) -> Sent:
        """Encode, choose, modulate; ``generator`` draws the indices in training, nothing in evaluation."""
        indices = self.choose(images, generator).choice.argmax(-1)
        return Sent(self.modem.modulate(indices), payload_bits=self.payload_bits)

    def receive(self, received: phy.Received, header: Tensor | None = None) -> Tensor:
        """Decide, look up, answer."""
        del header
        return self.answer(self.codebook.lookup(self.heard(received)))

    def assign(self, assignment: str, snr_db: float) -> None:
        """Put the indices on points in ``natural`` order, or ``optimised`` for the codebook as it is at ``snr_db``.

        A trained link may be given another assignment: both ends follow, and the constellation is scaled anew.
        """
        if check_name("assignment", assignment, ("natural", "optimised")) == "natural":
            self.modem.point.copy_(torch.arange(len(self.modem.point)))
        else:
            self.modem.assign(self.codebook.distances(), snr_db)

    def codebook_usage(self) -> dict[str, float]:
        """Return how the codebook is used by training images.

        ``perplexity`` (K if evenly, 1 if collapsed), ``entropy_bits`` of an index, and ``used``, the codewords chosen
        at least a tenth as often as if all were alike.
        """
        usage = self.modem.usage
        return {
            "used": int((usage >= 0.1 / len(usage)).sum()),
            "perplexity": float(perplexity(usage)),
            "entropy_bits": float(entropy_nats(usage)) / math.log(2),
        }

    def describe(self) -> dict[str, Any]:
        """Return the codebook's use, and which index rides on which point, for the record."""
        return {"codebook": self.codebook_usage(), "points": self.modem.point.tolist()}

    def phases(self, optimiser: Optimiser, carry: Carry, label_smoothing: float) -> list[Phase]:
        """Return the one phase: transceiver and codebook together."""
        self.modem.batches.zero_()  # of this training; weights that a link is started from may bring another's
        return [Phase("transceiver", RobustBottleneck(self, carry, label_smoothing), optimiser)]

    def settle(self, received: phy.Received) -> None:
        """Search the assignment if it is optimised and due."""
        batches = int(self.modem.batches)
        if self.assignment == "optimised" and batches >= _FIRST_ASSIGNMENT and batches & (batches - 1) == 0:
            self.assign("optimised", mean_snr_db(received))


class RobustBottleneck(nn.Module):
    """The link on its task, minus the entropy of the choices."""

    def __init__(self, scheme: DeepJSCCLBVQ, carry: Carry, label_smoothing: float) -> None:
        super().__init__()
        self.scheme = scheme
        self.carry = carry
        self.label_smoothing = label_smoothing

    def forward(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return ``loss``, its parts ``task`` and ``entropy_nats``, and the ``perplexity`` of the indices."""
        scheme = self.scheme
        _, scores, choice = scheme.choose(images, generator)
        received = self.carry(scheme.modem.modulate(choice.argmax(-1)), generator)
        weights = choice + (scheme.heard(received) - choice).detach()
        output = scheme.answer(scheme.codebook.lookup(weights))
        task = scheme.design.task.loss(output.float(), images, targets, self.label_smoothing)
        entropy = entropy_nats(torch.softmax(scores, -1)).mean()
        scheme.settle(received)
        used = perplexity(choice.detach().mean((0, 1)))
        return {
            "loss": task - scheme.entropy_weight * entropy,
            "task": task,
            "entropy_nats": entropy,
            "perplexity": used,
        }


def _constellation(codewords: int, modulation: str) -> phy.Constellation:
    check_whole("option codewords", codewords)
    make = {"psk": phy.psk, "qam": phy.qam}[check_name("modulation", modulation, ("psk", "qam"))]
    try:
        return make(codewords)
    except SemlinkError as error:
        raise SemlinkError(f"option codewords is {codewords}: {error}") from None
