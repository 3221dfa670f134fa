# SPDX-License-Identifier: Apache-2.0
"""Recovering the key of shuffled features without training: from known plaintexts, or from ciphertexts alone.

    features z (d) ─> permutation ─> [signs] ─> + noise ─> y (d)          y[j] = signs[j] z[permutation[j]] + noise

    known plaintext     pairs (z, y) ─────> distances (d, d) ─────────────────────────> Hungarian matching ─> key
    ciphertext only     many z, other y ─┬> marginals ────────────────> first matching ─┐
                                         └> covariances, rows sorted ───────┘           │
                                            covariances, columns in the order found <───┴─> next matching ─> ... ─> key

One key serves for all messages here; against a fresh one for each there is nothing to recover, and invariant.py. The
encoder is public, so both attackers know the features of images of their own.

Known plaintext. May see: what is heard of messages, and which images they were. May not see: the key, any weight of the
receiver. The Gaussian likelihood of a key falls with the squared distance between y and the z that it moves, a sum over
positions; so the assignment of least cost, which the Hungarian method finds, is the most likely key, exactly.

Ciphertext only. May see: what is heard of messages, and the variance of her noise. May not see: which images they were;
hers are others of the same population. No likelihood is at hand, so moments are matched. First, the marginal of each
position heard with those of each plain one plus noise (squared Wasserstein distance), and its covariances with all
others, sorted, for no order is known yet. Then covariances in the order found so far, again and again until the order
stands; a few positions that are right put the others right. Each part is in units of its sampling variance. Where
marginals are alike by design they tell nothing: that is tested on the attacker's own features, and told; covariances
alone then do, but need more messages, with flips above all, whose absolute values are matched first.

Sources: H. W. Kuhn, "The Hungarian method for the assignment problem", Naval Res. Logist. Quart. 2, 1955. Sorted rows
as signatures after J. Ding, Z. Ma, Y. Wu, J. Xu, "Efficient random graph matching via degree profiles", Probab. Theory
Relat. Fields 179, 2021. The moments chosen, their weights and the synchronisation of signs are ours.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from semlink._errors import SemlinkError, check_number, check_whole
from semlink.metrics.statistics import Interval, mean_interval

_NOISE_POINTS = 8  # equally likely values that stand for the noise of a position
_ROUNDS = 50  # most matchings of covariances; three or four are usual
_TINY = 1e-30  # variance of a position that never changes


@dataclass(frozen=True)
class FoundKey:
    """A key as an attacker believes it to be, on the CPU.

    Attributes:
        permutation: (..., d) int64; position j of what is heard carries feature ``permutation[j]``.
        signs: (..., d) float32 of 1 and -1, by which position j was multiplied; None where no flips were looked for.
            Ciphertexts of features whose marginals are symmetric leave one sign open that all have in common.
        misfit: (...) what the key leaves unexplained. Of known pairs, the mean squared difference of a feature, which
            is about the variance of its noise if the key is right. Of ciphertexts, the squared difference of moments
            over its sampling variance, about 1 then; far from it the key is wrong, near it not always right.
        marginals_differ: whether the features' marginals were of any use; None where none were asked.
    """

    permutation: Tensor
    signs: Tensor | None
    misfit: Tensor
    marginals_differ: bool | None = None

    def undo(self, heard: Tensor) -> Tensor:
        """Return ``heard: (..., N, d)`` in the order, and with the signs, of the features."""
        if self.signs is not None:
            heard = heard * self.signs[..., None, :].to(heard)
        order = self.permutation[..., None, :].to(heard.device)
        return torch.zeros_like(heard).scatter(-1, order.expand_as(heard), heard)


def known_plaintext(plain: Tensor, heard: Tensor, sign_flips: bool = False) -> FoundKey:
    """Return the most likely key of M known pairs, equally noisy.

    Args:
        plain: (..., M, d) features of known images; leading dimensions are keys.
        heard: (..., M, d) what was heard of the same images.
        sign_flips: signs may have been flipped, too.

    Raises:
        SemlinkError: there is no pair, the shapes differ, or a value is not finite.
    """
    if plain.shape != heard.shape:
        raise SemlinkError(
            f"plain features of shape {tuple(plain.shape)} and heard ones of {tuple(heard.shape)} are no pairs: give "
            "both as (pairs, d), of the same images in the same order"
        )
    z, y = _sample("plain", plain), _sample("heard", heard)
    inner = y.mT @ z
    sign = _sign(inner) if sign_flips else torch.ones_like(inner)
    cost = y.square().sum(-2)[..., :, None] + z.square().sum(-2)[..., None, :] - 2 * sign * inner
    order = _assign(cost)
    misfit = _at(cost, order).mean(-1).clamp_min(0) / z.shape[-2]
    return FoundKey(order, _at(sign, order).float() if sign_flips else None, misfit)


def ciphertext_only(
    plain: Tensor, heard: Tensor, noise_variance: float, sign_flips: bool = False, covariances: bool = True
) -> FoundKey:
    """Return the key under which marginals and covariances agree best, as far as iterated matching finds it.

    Args:
        plain: (M, d) features of the attacker's own images, M >= 4.
        heard: (N, d) what was heard of other images of their population, N >= 2.
        noise_variance: of each heard feature: N0 if features have unit mean square, N0 / 2 if one half.
        sign_flips: signs may have been flipped, too.
        covariances: false matches marginals alone, which is the first step.

    Raises:
        SemlinkError: too few messages, the numbers of features differ, or a value is not finite.
    """
    check_number("noise_variance", noise_variance)
    x, y = _sample("plain", plain, least=4), _sample("heard", heard, least=2)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise SemlinkError(
            f"plain features of shape {tuple(plain.shape)} and heard ones of {tuple(heard.shape)}: (M, d) and (N, d) "
            "of the same d are expected"
        )
    differ, unit = _marginals_differ(x), 1 / len(x) + 1 / len(y)
    marginal, upright = _marginal_cost(x, y, noise_variance, sign_flips)
    if covariances:
        # Variances are left out: noise is in them, and the marginals know them.
        wanted, seen = (each.T.cov().reshape(marginal.shape).fill_diagonal_(0) for each in (x, y))
        unsigned = (wanted.abs(), seen.abs()) if sign_flips else (wanted, seen)
        order = _refined(*unsigned, y.var(0).clamp_min(_TINY), marginal * differ, unit)
        moved, signs = wanted[order][:, order], torch.ones_like(seen[0])
        if sign_flips:
            signs = _synchronised(seen * moved, _at(upright, order))
        first, second = y.var(0), x.var(0)[order]
        sampling = first[:, None] * first / len(y) + second[:, None] * second / len(x)
        misfit = ((seen - moved * signs[:, None] * signs).square() / (sampling + _TINY)).mean()
    else:
        order = _assign(marginal)
        signs, misfit = _sign(_at(upright, order)), _at(marginal, order).mean()
    return FoundKey(order, signs.float() if sign_flips else None, misfit, differ)


def recovery_curve(
    features: Tensor,
    noise_variance: float,
    pairs: Sequence[int],
    *,
    generator: torch.Generator,
    keys: int = 100,
    sign_flips: bool = False,
) -> list[Interval]:
    """Return the fraction of positions recovered from each number of known pairs: the mean over keys, with intervals.

    Every key is drawn anew and has images and noise of its own; more pairs are the fewer ones and others.

    Args:
        features: (N, d) of the population's images.
        noise_variance: of each heard feature, as for :func:`ciphertext_only`.
        pairs: numbers of pairs, each from 1 to N.
        generator: draws keys, images and noise.
        keys: how many, at least 2.
        sign_flips: keys flip signs; a position counts only with its right sign.
    """
    population = _sample("features", features)
    if population.ndim != 2:
        raise SemlinkError(f"features of shape {tuple(features.shape)}: (N, d), of one population, is expected")
    count, d = population.shape
    check_number("noise_variance", noise_variance)
    check_whole("keys", keys, least=2)
    for number in pairs:
        if check_whole("pairs", number) > count:
            raise SemlinkError(f"pairs holds {number}: there are {count} images; give features of more")
    device = generator.device
    chosen = torch.rand(keys, count, generator=generator, device=device).argsort(1)[:, : max(pairs, default=0)].cpu()
    truth = torch.rand(keys, d, generator=generator, device=device).argsort(1).cpu()
    flips = 1 - 2 * torch.randint(2, (keys, d), generator=generator, device=device).cpu() if sign_flips else None
    noise = torch.randn(*chosen.shape, d, generator=generator, device=device).cpu()
    plain = population[chosen]
    heard = plain.gather(2, truth[:, None].expand_as(plain)) * (1 if flips is None else flips[:, None])
    heard = heard + noise_variance**0.5 * noise
    found = [known_plaintext(plain[:, :m], heard[:, :m], sign_flips) for m in pairs]
    intervals = [mean_interval(fraction_correct(each, truth, flips)) for each in found]
    return [dataclasses.replace(each, method="student-t over keys") for each in intervals]


def fraction_correct(found: FoundKey, truth: Tensor, signs: Tensor | None = None) -> Tensor:
    """Return the share of positions (...) that ``found`` has right, with their signs if true ``signs`` are given.

    Args:
        found: what an attack returned.
        truth: (..., d) or (d,) int64, the true permutation, in the same sense as ``found.permutation``.
        signs: the true signs, (..., d) or (d,).

    Raises:
        SemlinkError: one of them is no permutation of the same d, or ``found`` has no signs to compare.
    """
    d, truth = found.permutation.shape[-1], truth.cpu()
    for name, order in (("found.permutation", found.permutation), ("truth", truth)):
        whole = order.dtype == torch.int64 and order.shape[-1:] == (d,)
        if not whole or not bool((order.sort(-1).values == torch.arange(d)).all()):
            raise SemlinkError(f"{name} is no permutation: int64 positions 0 to {d - 1}, each once, are expected")
    right = found.permutation == truth
    if signs is not None:
        if found.signs is None or signs.shape[-1] != d:
            raise SemlinkError(f"found holds no signs to compare, or signs are not {d}: attack with sign_flips=True")
        right = right & (found.signs == signs.cpu())
    return right.double().mean(-1)


def _refined(wanted: Tensor, seen: Tensor, variance: Tensor, marginal: Tensor, unit: float) -> Tensor:
    """Return the order (d,) in which ``wanted`` is nearest to ``seen``, both (d, d) covariances, and the marginals.

    ``variance`` (d,) is that of what is heard; times ``unit`` it scales the error of sampling.
    """
    profile = torch.cdist(seen.sort(1).values, wanted.sort(1).values).square() / (variance.mean() * unit)
    order = _assign(marginal + profile / variance[:, None])
    root = variance.rsqrt()
    for _ in range(_ROUNDS):
        ordered, inverse = wanted[:, order], order.argsort()
        cost = torch.cdist(seen * root, ordered * root).square()
        # If j were i, two covariances would have no partner: that of i with what j is now, and that of j with the
        # position which is i now. Left in, they would favour whatever is believed already.
        own = (ordered.T * root[:, None]).square()
        others = (seen[:, inverse] * root[inverse]).square()
        last, order = order, _assign(marginal + (cost - own - others) / (variance[:, None] * unit))
        if torch.equal(last, order):
            break
    return order


def _synchronised(agreement: Tensor, upright: Tensor) -> Tensor:
    """Return the signs (d,) that make ``signs[j] signs[k] agreement[j, k]`` large, all j and k, j not k.

    In the right order, agreement is a squared covariance times both flips; without them its first eigenvector has one
    sign throughout. Which of the two, the marginals say: ``upright`` (d,) is how much a flip would cost each.
    """
    signs = _sign(torch.linalg.eigh(agreement).eigenvectors[:, -1])
    return signs if (signs * upright).sum() >= 0 else -signs


def _marginal_cost(x: Tensor, y: Tensor, noise_variance: float, sign_flips: bool) -> tuple[Tensor, Tensor]:
    """Return the cost (d, d) of taking position j heard for plain position i, and how much a flip would add to it."""
    from scipy.special import ndtri

    shift = torch.from_numpy(ndtri((torch.arange(_NOISE_POINTS).double().numpy() + 0.5) / _NOISE_POINTS))
    shift = shift * (noise_variance / shift.square().mean()).sqrt()
    noisy = (x[:, None] + shift[:, None]).flatten(0, 1)
    unit = y.var(0).clamp_min(_TINY)[:, None] * (1 / len(x) + 1 / len(y))
    cost = _wasserstein(noisy, y) / unit
    if not sign_flips:
        return cost, torch.ones_like(cost)
    mirrored = _wasserstein(-noisy, y) / unit
    return torch.minimum(cost, mirrored), mirrored - cost


def _wasserstein(x: Tensor, y: Tensor) -> Tensor:
    """Return the squared 2-Wasserstein distances between marginals: ``x (M, d), y (N, d) -> (d, d)``, y down."""
    levels = (torch.arange(len(y)).double() + 0.5) / len(y)
    quantiles, heard = x.sort(0).values[(levels * len(x)).long()], y.sort(0).values
    inner = heard.T @ quantiles
    return (heard.square().sum(0)[:, None] + quantiles.square().sum(0) - 2 * inner).clamp_min(0) / len(y)


def _marginals_differ(x: Tensor) -> bool:
    """Return whether marginals of different positions are further apart than twice those of one in two samples."""
    between = _wasserstein(x[::2], x[1::2])
    own = between.trace()
    return bool(between.sum() - own > 2 * own * (len(between) - 1))


def _assign(cost: Tensor) -> Tensor:
    """Return for each row its column in the assignment of least cost: ``(..., d, d) -> (..., d) int64``."""
    from scipy.optimize import linear_sum_assignment

    solved = [torch.from_numpy(linear_sum_assignment(each.numpy())[1]) for each in cost.reshape(-1, *cost.shape[-2:])]
    return torch.stack(solved).reshape(cost.shape[:-1])


def _sign(values: Tensor) -> Tensor:
    """Return -1 where a value is negative, else 1, never 0."""
    return torch.where(values < 0, -1.0, 1.0).to(values)


def _at(table: Tensor, order: Tensor) -> Tensor:
    """Return ``table[..., j, order[..., j]]``."""
    return table.gather(-1, order[..., None])[..., 0]


def _sample(name: str, values: Tensor, least: int = 1) -> Tensor:
    """Return (..., messages, d) as float64 on the CPU, where the matching runs."""
    if values.ndim < 2 or values.is_complex() or values.shape[-2] < least or not values.numel():
        raise SemlinkError(
            f"{name} is {values.dtype} of shape {tuple(values.shape)}: real features (messages, d), of at least "
            f"{least} messages, are expected"
        )
    if not bool(values.isfinite().all()):
        raise SemlinkError(f"{name} holds values that are not finite: leave those messages out")
    return values.detach().double().cpu()
