# SPDX-License-Identifier: Apache-2.0
"""UIS-ToSC: utility, informativeness and security, weighed against each other in a digital code.

    image ─> Encoder ─> x (n, D/g) ─> nearest codeword, index z (n) ─> M-QAM | M-PSK ─┬─> Bob's channel ─> decision
                                           ▲ codebook e_1 ... e_K                     └─> Eve's channel ─> decision
                                           ▼                                                                   │
    answer <─ Classifier | ImageDecoder <─ e_z^ of Bob's decisions        drawing <─ adversary <─ her indices <─┘

Symbols, channel, decisions, payload and power are those of deepjscc_lbvq.py. In each round the transceiver takes one
step on, and the adversary (nn/adversary.py) k steps on her mean squared error,

    loss = w_U task(answer) + anneal w_I I(z) + VQ - w_S privacy
    VQ   = |sg(x) - e_z|^2 + c |x - sg(e_z)|^2        mean over entries; sg: without gradient

Utility is the task's loss through the real modulation and its index errors. The receiver gets codewords, never x; the
gradient passes from them to x as it is (straight through) and to the codewords themselves, so the codebook is trained
by the task, by VQ and by the two terms that follow.

Informativeness is "the volume of data transmitted" (S. Guo et al., section V), a rate to be kept low, as the divergence
in the authors' code is: I(z) = sum_j H(z_j), the entropy of the index at each of the n positions, in nats. The indices
are a function of the image, so it bounds all that the payload can tell of it. Its value is exact, from the counts of a
batch; its gradient that of the same entropy of softmax(-|x - e_k|^2 / sqrt(d)).

Security is the bounded privacy of the image. The adversary is granted the constellation and the codebook: she gets the
index at each position, one-hot, so codewords that merely move do not mislead her, and her gradient reaches x and the
codebook through the choice (the same softmax) alone.

Source: A. Zhang, Y. Wang, S. Guo, "On the utility-informativeness-security trade-off in discrete task-oriented semantic
communication", IEEE Commun. Lett. 28(6), 2024, for terms, weights, nearest codewords, VQ and 16-QAM. Their public code
never trains the codebook, weighs the rate of features that are not sent, and subtracts an error without bound; here the
first is trained, the second is that of the indices, and the third is bounded. Networks are those of deepjscc.py.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from semlink import phy
from semlink._errors import check_number
from semlink.nn import Phase
from semlink.nn.adversary import Adversary, Game
from semlink.nn.coders import LATENT_SIDE
from semlink.nn.objective import Optimiser
from semlink.nn.quantiser import index_entropy_bits, one_hot, perplexity
from semlink.schemes.base import Carry, Design, schemes
from semlink.schemes.deepjscc_lbvq import DeepJSCCLBVQ


@schemes.register("uis-tosc")
class UISToSC(DeepJSCCLBVQ):
    """Digital DeepJSCC with nearest codewords, a price on its entropy and adversarial training.

    Args:
        design: its ``channel_uses`` are a multiple of 16.
        codewords: K, the size of the codebook and of the constellation. Default 16, as published.
        modulation: qam (as published) or psk.
        dimension: D, real features of a position. Default 64, as DeepJSCC-LBVQ, which keeps the networks near
            deepjscc's size (published: 512).
        decision: hard (as published) or soft.
        assignment: natural (as published) or optimised.
        utility_weight: w_U, weight of the task's loss. Default 1, as published.
        informativeness_weight: w_I, weight of a nat of the payload's entropy. Default 1e-2, as published.
        security_weight: w_S, what full privacy is worth in units of the task's loss. Default 0.5, as published.
        commitment: c, weight of the pull of x towards its codeword. Default 0.25, as published.
        adversary_steps: steps of the adversary for each of the transceiver's. Default 5: as IBAL.
        restarts: how often the adversary starts anew during training, at even distances. Default 3: ours.
        anneal_start: share of training after which informativeness begins to count. Default 0.1: the authors' 20 of
            200 epochs.
        anneal_end: share of training after which it counts in full. Default 0.2: twice that, as VFE's authors.

    Raises:
        SemlinkError: as DeepJSCC-LBVQ, or an option has a value that makes no sense.
    """

    def __init__(
        self,
        design: Design,
        codewords: int = 16,
        modulation: str = "qam",
        dimension: int = 64,
        decision: str = "hard",
        assignment: str = "natural",
        utility_weight: float = 1.0,
        informativeness_weight: float = 1e-2,
        security_weight: float = 0.5,
        commitment: float = 0.25,
        adversary_steps: int = 5,
        restarts: int = 3,
        anneal_start: float = 0.1,
        anneal_end: float = 0.2,
    ) -> None:
        super().__init__(design, codewords, modulation, dimension, decision, assignment, entropy_weight=0.0)
        self.utility_weight = check_number("option utility_weight", utility_weight)
        self.informativeness_weight = check_number("option informativeness_weight", informativeness_weight)
        self.security_weight = check_number("option security_weight", security_weight)
        self.commitment = check_number("option commitment", commitment)
        self.anneal_start = check_number("option anneal_start", anneal_start, 0, 1)
        self.anneal_end = check_number("option anneal_end", anneal_end, self.anneal_start, 1)
        self.adversary = Adversary(
            design.channel_uses * codewords, design.task.image_shape, design.backbone.width, adversary_steps, restarts
        )

    def prepare(self, images: Tensor) -> None:
        """Measure the whitening front end, and the mean image."""
        super().prepare(images)
        self.adversary.measure(images)

    def scores(self, x: Tensor) -> Tensor:
        """Return how near each codeword is: (B, n, d) -> (B, n, K)."""
        return self.codebook.nearness(x)

    def draw(self, scores: Tensor, generator: torch.Generator) -> Tensor:
        """Return the nearest codeword, one-hot (B, n, K), with the gradient of softmax; nothing is random."""
        del generator
        soft = torch.softmax(scores, -1)
        return one_hot(scores) + (soft - soft.detach())  # the bracket is exactly 0

    def overheard(self, weights: Tensor) -> Tensor:
        """Return what the adversary takes of received weights (B, n, K): (B, n K), one 4x4 map for each g and K."""
        return weights.reshape(len(weights), LATENT_SIDE**2, -1).transpose(1, 2).flatten(1)

    def phases(self, optimiser: Optimiser, carry: Carry, label_smoothing: float) -> list[Phase]:
        """Return two phases: the transceiver's with the codebook, and the adversary's several steps."""
        self.modem.batches.zero_()  # as DeepJSCC-LBVQ
        return _Game(self, carry, label_smoothing).phases(self, self.adversary, optimiser)


class _Game(Game):
    """The transceiver's objective: utility, informativeness, security, and the fit of the codebook."""

    def __init__(self, scheme: UISToSC, carry: Carry, label_smoothing: float) -> None:
        super().__init__(scheme.anneal_start, scheme.anneal_end)
        self.scheme = scheme
        self.carry = carry
        self.label_smoothing = label_smoothing

    def hear(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return what the adversary hears of ``images``, (B, n K), in her own phase."""
        symbols = self.scheme.transmit(images, generator).symbols
        return self.scheme.overheard(self.scheme.heard(self.carry(symbols, generator)))

    def forward(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return ``loss``, its parts without their weights, and the ``perplexity`` of the indices."""
        scheme = self.scheme
        x, scores, choice = scheme.choose(images, generator)
        symbols = scheme.modem.modulate(choice.argmax(-1))
        bob = self.carry(symbols, generator)
        eve = self.carry(symbols, generator)  # noise of her own
        output = scheme.answer(self.received(x, bob))
        utility = scheme.design.task.loss(output.float(), images, targets, self.label_smoothing)
        nats = index_entropy_bits(choice, scores) * math.log(2) * scheme.design.channel_uses
        errors = scheme.heard(eve) - choice
        security = scheme.adversary.privacy(scheme.overheard(choice + errors.detach()), images).mean()
        sent = scheme.codebook.lookup(choice.detach())
        quantisation = F.mse_loss(sent, x.detach()) + scheme.commitment * F.mse_loss(x, sent.detach())
        loss = scheme.utility_weight * utility + quantisation - scheme.security_weight * security
        scheme.settle(bob)
        return {
            "loss": loss + self.anneal * scheme.informativeness_weight * nats,
            "utility": utility,
            "informativeness_nats": nats,
            "security": security,
            "quantisation": quantisation,
            "perplexity": perplexity(choice.detach().mean((0, 1))),
        }

    def received(self, x: Tensor, bob: phy.Received) -> Tensor:
        """Return Bob's codewords (B, n, d); their gradient is passed on to x as it is."""
        codewords = self.scheme.codebook.lookup(self.scheme.heard(bob))
        return codewords + (x - x.detach())
