# SPDX-License-Identifier: Apache-2.0
"""A learned codebook, the choice of a codeword, and what the indices that are sent tell.

x (B, n, d) ─> scores (B, n, K) ─> one-hot choice (B, n, K) ─> index
received one-hot, or posterior (B, n, K) ─> lookup ─> codewords (B, n, d)
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Codebook(nn.Module):
    """K codewords of d entries, one parameter that transmitter and receiver share.

    They start normal, as large as the features of unit variance that they are compared with. (Uniform in ±1/K, as in
    van den Oord et al., "Neural discrete representation learning", 2017, and in the public code of DT-JSCC and
    UIS-ToSC, choices would be a coin's at first and the loss would stay on its plateau for epochs.)

    Attributes:
        vectors: (K, d) float32.
    """

    def __init__(self, codewords: int, dimension: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.empty(codewords, dimension).normal_())

    def similarities(self, x: Tensor) -> Tensor:
        """Return scaled dot products ``x . e_k / sqrt(d)``: (B, n, d) -> (B, n, K) float32."""
        with torch.autocast(x.device.type, enabled=False):  # rounded to bfloat16, near codewords would tie
            return x.float() @ self.vectors.T / math.sqrt(x.shape[-1])

    def nearness(self, x: Tensor) -> Tensor:
        """Return scaled negative squared distances ``-|x - e_k|^2 / sqrt(d)``: (B, n, d) -> (B, n, K) float32."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            squares = x.square().sum(-1, keepdim=True) - 2 * x @ self.vectors.T + self.vectors.square().sum(-1)
            return -squares / math.sqrt(x.shape[-1])

    def lookup(self, weights: Tensor) -> Tensor:
        """Return ``sum_k w_k e_k``, a codeword where ``weights: (B, n, K)`` is one-hot: (B, n, d) float32."""
        with torch.autocast(weights.device.type, enabled=False):
            return weights.float() @ self.vectors

    def distances(self) -> Tensor:
        """Return the squared distance of every pair of codewords, (K, K) float64 without gradient."""
        vectors = self.vectors.detach().double()
        return (vectors[:, None] - vectors[None]).square().sum(-1)


def one_hot(scores: Tensor) -> Tensor:
    """Return 1 at the highest of ``scores: (..., K)`` and 0 elsewhere, without gradient."""
    return F.one_hot(scores.argmax(-1), scores.shape[-1]).to(scores.dtype)


def gumbel_one_hot(scores: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """Draw index k with probability ``softmax(scores)_k``: one-hot (..., K) with the gradient of the relaxed draw.

    The Gumbel-max draw in the value, ``softmax((scores + gumbel) / temperature)`` in the gradient (straight through).
    Source: E. Jang, S. Gu, B. Poole, "Categorical reparameterization with Gumbel-softmax", ICLR 2017.
    """
    waits = torch.empty(scores.shape, device=generator.device).exponential_(generator=generator)
    noisy = scores - waits.clamp_min(1e-30).log().to(scores.device)  # -log of an exponential is a Gumbel variable
    soft = torch.softmax(noisy / temperature, dim=-1)
    return one_hot(noisy) + (soft - soft.detach())  # the bracket is exactly 0


def entropy_nats(probabilities: Tensor) -> Tensor:
    """Return ``-sum_k p_k ln p_k`` over the last axis; 0 ln 0 is 0, with a finite gradient."""
    return -(probabilities * probabilities.clamp_min(1e-30).log()).sum(-1)


def index_entropy_bits(chosen: Tensor, scores: Tensor) -> Tensor:
    """Return the entropy of the index that a position sends, averaged over positions, in bits: a scalar.

    Its value is exact for the batch: ``H(Z_j)`` of the empirical distribution of the K indices at each position j. The
    transmitter being a function of the image, ``H(Z_j) = I(X; Z_j)``, and n times the mean bounds all that n symbols
    can tell of an image, over any channel. Counts have no gradient: it is that of the same entropy of
    ``softmax(scores)``.

    Args:
        chosen: (B, n, K) one-hot.
        scores: (B, n, K) what the choice was made by.
    """
    exact = entropy_nats(chosen.detach().mean(0)).mean()
    relaxed = entropy_nats(torch.softmax(scores, -1).mean(0)).mean()
    return (exact + (relaxed - relaxed.detach())) / math.log(2)


def perplexity(usage: Tensor) -> Tensor:
    """Return ``exp`` of the entropy of ``usage: (K,)``: K if all codewords are used alike, 1 if only one is."""
    return entropy_nats(usage).exp()
