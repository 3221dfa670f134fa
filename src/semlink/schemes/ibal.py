# SPDX-License-Identifier: Apache-2.0
"""IBAL: an information bottleneck on what is sent, and an adversary who must not draw the image from it.

    image ─> Encoder ─> unit mean energy per image ─> f (2n reals) ─> x ─┬─> Bob's channel ─> y ─> answer
                                                                         └─> Eve's channel ─> adversary ─> drawing

In each round the transceiver takes one step on

    loss = E[ task(answer) ] + anneal beta E[ 0.1 / sigma KL( p(y | image) || q(y) ) ] - E[ w(sigma) privacy ]

and the adversary k steps on her mean squared error (nn/adversary.py: the bound of ``privacy``, her restarts, what she
is not). With p(y | image) = N(f, sigma^2), the channel included, and q(y) = N(m, v + sigma^2), a Gaussian signal over
the same channel, the divergence over the 2n real dimensions is

    KL = 1/2 sum_i [ ((f_i - m_i)^2 + sigma^2) / (v_i + sigma^2) - 1 + ln(1 + v_i / sigma^2) ]    nats

Its mean bounds I(image; y) from above for any m and v, and most tightly where they are mean and variance of f over
images, which is what they are: running moments of training images, frozen in evaluation. There it is what parallel
Gaussian channels carry at SNRs v_i / sigma^2. (A fixed q would do nothing here: with unit energy per image, KL from
N(0, 1 + sigma^2) is one constant.) The energy being fixed, information falls where energy goes into what all images
share, m, or into few dimensions. Over fading the noise in KL is that after the gain is divided out. The factor
0.1 / sigma is that of VFE (vfe.py), so beta has the same unit there and here.

sigma is that of the channel in training. ``adaptive`` (the paper's case of a varying channel) draws an SNR for every
image, for Bob and Eve alike, uniform in dB, and lets the weight of privacy follow it:

    w(sigma) = lambda ln(1 + 1 / sigma^2) / ln(1 + 1 / sigma_0^2)

that is, in proportion to what the channel could carry to Eve: lambda at the SNR that the link is designed for, more
where she hears better, less where the noise protects already and the task needs all there is.

Sources: Y. Wang, S. Guo, Y. Deng, H. Zhang, Y. Fang, "Privacy-preserving task-oriented semantic communications against
model inversion attacks", IEEE Trans. Wireless Commun. 23(8), 2024, arXiv:2312.03252, for the three terms, a divergence
that includes the channel, alternating steps, and a weight of privacy that depends on the noise. There is no public code
of it; the form of q and of w is ours. Encoder and answering network are DeepJSCC's, so that capacities are equal.
"""

import math

import torch
from torch import Tensor, nn

from semlink import phy
from semlink._errors import check_flag, check_number
from semlink.nn import Phase
from semlink.nn.adversary import Adversary, Game
from semlink.nn.objective import Optimiser
from semlink.phy.channel import MAX_DB, noise_variance
from semlink.schemes.base import Carry, Design, Sent, schemes
from semlink.schemes.deepjscc import DeepJSCC
from semlink.schemes.vl_vfe import carried_at

_MEMORY = 0.9  # of the running moments: the last ten batches or so, so that they follow the encoder


@schemes.register("ibal")
class IBAL(DeepJSCC):
    """DeepJSCC with a variational bottleneck and adversarial training.

    Args:
        design: dimensions of the link.
        beta: weight of the rate, in units of the task's loss per nat at sigma = 0.1. Default 1e-2: the public code of
            UIS-ToSC, of the same group. 0 leaves the rate out.
        privacy_weight: lambda, what full privacy is worth in units of the task's loss. Default 1, of the order of the
            task's loss: ours, for published weights are of an unbounded error. 0 leaves the adversary no influence.
        adaptive: train over a range of SNRs, with a weight of privacy that follows the noise (see above). Default
            false: one SNR, that of the channel.
        adversary_steps: steps of the adversary for each of the transceiver's. Default 5: what defences of this kind
            take in the public code of GLASS.
        restarts: how often the adversary starts anew during training, at even distances. Default 3: ours.
        snr_low_db: least SNR of training if ``adaptive``. Default 4: the grid of Guo et al.
        snr_high_db: greatest SNR of training if ``adaptive``. Default 20: the same grid.
        anneal_start: share of training after which the rate begins to count. Default 1/16: as VFE's authors.
        anneal_end: share of training after which it counts in full. Default 1/8: as VFE's authors.

    Raises:
        SemlinkError: as DeepJSCC, or an option has a value that makes no sense.
    """

    def __init__(
        self,
        design: Design,
        beta: float = 1e-2,
        privacy_weight: float = 1.0,
        adaptive: bool = False,
        adversary_steps: int = 5,
        restarts: int = 3,
        snr_low_db: float = 4.0,
        snr_high_db: float = 20.0,
        anneal_start: float = 1 / 16,
        anneal_end: float = 1 / 8,
    ) -> None:
        super().__init__(design)
        self.adaptive = check_flag("option adaptive", adaptive)
        self.beta = check_number("option beta", beta)
        self.privacy_weight = check_number("option privacy_weight", privacy_weight)
        self.anneal_start = check_number("option anneal_start", anneal_start, 0, 1)
        self.anneal_end = check_number("option anneal_end", anneal_end, self.anneal_start, 1)
        self.snr_low_db = check_number("option snr_low_db", snr_low_db, -MAX_DB, MAX_DB)
        self.snr_high_db = check_number("option snr_high_db", snr_high_db, self.snr_low_db, MAX_DB)
        features = 2 * design.channel_uses
        self.prior = GaussianPrior(features)
        self.adversary = Adversary(features, design.task.image_shape, design.backbone.width, adversary_steps, restarts)

    def prepare(self, images: Tensor) -> None:
        """Measure the whitening front end, and the mean image."""
        super().prepare(images)
        self.adversary.measure(images)

    def rate(self, sent: Sent, received: phy.Received) -> Tensor:
        """Return the rate of each image over the noise that ``received`` names: (B,) in nats."""
        # As features, unit mean square each, the noise of a real dimension has the variance of a symbol's.
        noise = phy.zero_force(received).noise_variance.expand(sent.symbols.shape)
        return self.prior.divergence(phy.to_features(sent.symbols), noise.repeat_interleave(2, 1))

    def weight(self, n0: Tensor, design_n0: float) -> Tensor:
        """Return the weight of privacy, (B,), at noise variances ``n0: (B, 1)``, on a link made for ``design_n0``."""
        if not self.adaptive:
            return torch.full_like(n0[:, 0], self.privacy_weight)
        return self.privacy_weight * n0[:, 0].reciprocal().log1p() / math.log1p(1 / design_n0)

    def phases(self, optimiser: Optimiser, carry: Carry, label_smoothing: float) -> list[Phase]:
        """Return two phases: the transceiver's, and the adversary's several steps."""
        return _Game(self, carry, label_smoothing).phases(self, self.adversary, optimiser)


class GaussianPrior(nn.Module):
    """q(y): a Gaussian signal N(centre, spread), independent in each of d dimensions, over the channel at hand.

    Attributes:
        centre, spread: (d,) float32, mean and variance; 0 and 1 until :meth:`follow` is called.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(features))
        self.register_buffer("spread", torch.ones(features))

    @torch.no_grad()
    def follow(self, features: Tensor) -> None:
        """Let the moments of a training batch (B, d) enter the running ones."""
        self.centre.lerp_(features.mean(0), 1 - _MEMORY)
        self.spread.lerp_((features - self.centre).square().mean(0), 1 - _MEMORY)

    def divergence(self, features: Tensor, noise_variance: Tensor) -> Tensor:
        """Return ``KL( N(features, noise_variance) || q )``, (B,) in nats, for two tensors (B, d)."""
        total = self.spread + noise_variance
        excess = ((features - self.centre).square() - self.spread) / total
        return 0.5 * (excess + (self.spread / noise_variance).log1p()).sum(1)


class _Game(Game):
    """The transceiver's objective: task, rate, and what the adversary cannot draw."""

    def __init__(self, scheme: IBAL, carry: Carry, label_smoothing: float) -> None:
        super().__init__(scheme.anneal_start, scheme.anneal_end)
        self.scheme = scheme
        self.carry = carry
        self.label_smoothing = label_smoothing
        silence = torch.zeros(1, 1, dtype=torch.complex64)
        self.design_variance = float(carry(silence, torch.Generator()).noise_variance)

    def draw_noise(self, batch: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """Return the complex noise variance of each image of a training batch, (B, 1)."""
        scheme = self.scheme
        if not scheme.adaptive:
            return torch.full((batch, 1), self.design_variance, device=device)
        share = torch.rand(batch, generator=generator, device=generator.device)
        return noise_variance(scheme.snr_low_db + (scheme.snr_high_db - scheme.snr_low_db) * share, batch, device)

    def carried(self, symbols: Tensor, n0: Tensor, generator: torch.Generator) -> phy.Received:
        """Carry ``symbols: (B, n)`` at complex noise variances ``n0: (B, 1)``."""
        if not self.scheme.adaptive:
            return self.carry(symbols, generator)
        design = torch.tensor(self.design_variance, device=n0.device)
        return carried_at(self.carry, symbols, n0.sqrt(), design.sqrt(), generator)

    def hear(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return what the adversary hears of ``images``, (B, 2n), in her own phase."""
        n0 = self.draw_noise(len(images), generator, images.device)
        symbols = self.scheme.transmit(images, generator).symbols
        return self.scheme.observe(self.carried(symbols, n0, generator), None, with_secret=False)

    def forward(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return ``loss`` and, without their weights, its parts ``task``, ``rate_nats`` and ``privacy``."""
        scheme = self.scheme
        n0 = self.draw_noise(len(images), generator, images.device)
        sent = scheme.transmit(images, generator)
        bob = self.carried(sent.symbols, n0, generator)
        eve = self.carried(sent.symbols, n0, generator)  # noise of her own
        task = scheme.design.task.loss(scheme.receive(bob).float(), images, targets, self.label_smoothing)
        scheme.prior.follow(phy.to_features(sent.symbols))
        rate = scheme.rate(sent, bob)
        weighted = (rate * 0.1 / n0[:, 0].sqrt()).mean()
        privacy = scheme.adversary.privacy(scheme.observe(eve, None, with_secret=False), images)
        gained = (scheme.weight(n0, self.design_variance) * privacy).mean()
        return {
            "loss": task + self.anneal * scheme.beta * weighted - gained,
            "task": task,
            "rate_nats": rate.mean(),
            "privacy": privacy.mean(),
        }
