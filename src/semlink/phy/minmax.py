# SPDX-License-Identifier: Apache-2.0
"""Transceivers that minimise the largest MSE of K users: the design of paper B's Semi-Conventional baseline.

    min over V, U  of  max_k E||s_k - U_k^H Y_k||^2    subject to  ||V_k||_F^2 <= Nt

Paper B takes it from its reference [15] (A. Dong et al., IEEE Trans. Veh. Technol. 65(8), 2016). Filters follow in
closed form from precoders; precoders for given filters are a convex problem with quadratic constraints. Plain
alternation of both falls monotonically, but at high SNR needs hundreds of rounds. Here each round renews the filters,
carries them on in the direction in which they moved, and takes a single Newton step of a primal-dual interior point
method towards the precoders. The barrier starts high and falls by a fixed factor a round: precoders that are kept away
from their constraints move further, and end in better local optima, than ones that are solved for exactly. The last
rounds hold the filters, so that the precoders converge to their optimum and the duality gap proves it.

The arithmetic is real and the batch is the last axis, which suits both vector units and ``torch.compile``: a complex
matrix that multiplies from the left is [[Re, -Im], [Im, Re]], one that is multiplied is [Re; Im].
"""

import warnings
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from semlink._errors import SemlinkError, check_whole
from semlink.phy.transceivers import (
    Transceivers,
    finish,
    mmse_filters,
    prepare,
    random_directions,
    strongest_directions,
)

BARRIER = (0.3, 1e-3)  # of the first and the last round, as a share of the largest MSE
SETTLING = (1e-5,) * 4  # barriers of the rounds that hold the filters
RESETTLING = (1e-6,) * 30  # of the rounds that find precoders from nothing
ROUNDS, GROWTH = 12, 0.48  # at 0 dB, and the power of 1 / N0 that they grow by
LOUDER = 0.02  # of the room that power leaves is taken in a round
MOMENTUM = 0.9  # how far filters are carried on; above 1 oscillates
GAP = 1e-3  # a larger duality gap is not called a solution
SHARE = 0.3  # of the state's own barrier: the least that a round aims at
CACHE = 2**16  # numbers of H that a core's cache holds beside what is computed from them


class _State(NamedTuple):
    """A point strictly inside all constraints, and the multipliers it has so far.

    Attributes:
        V: (2 Nt, d, K, B) precoders.
        U: (2 Nr, d, K, B) the filters of the last round.
        prices: (K, B) multipliers of ``mse_k <= bound``, which sum to 1 over users.
        power_prices: (K, B) multipliers of ``||V_k||^2 <= Nt``.
        bound: (B,) above all MSEs.
    """

    V: Tensor
    U: Tensor
    prices: Tensor
    power_prices: Tensor
    bound: Tensor


_Round = Callable[[Tensor, Tensor, _State, Tensor, Tensor, Tensor], tuple[_State, Tensor, Tensor]]


def minimise_max_mse(
    H: Tensor,
    snr_db: float | Tensor,
    streams: int = 1,
    starts: int = 1,
    iterations: int | None = None,
    compiled: bool = False,
    generator: torch.Generator | None = None,
) -> Transceivers:
    """Design precoders and filters of least largest MSE, for a batch of channels on H's device.

    The problem is not convex: a better local optimum may exist, and more starts find it more often. The MSEs of all
    users end equal unless one is worse off than all others whatever these do.

    Args:
        H: (B, K, K, Nr, Nt) complex.
        snr_db: one number, or one per channel (B,).
        streams: d. With as many streams as antennas and few users one stream is better switched off, and slowly is.
        starts: initial precoders to try: the strongest directions of each user's own link, then random ones.
        iterations: rounds from each start; if not given 12 / N0^0.48, at least 12 and at most 500, by the highest SNR
            of the batch: 12 at 0 dB, 63 at 15 dB, which end within 0.5 and 1.4 % of what 200 do.
        compiled: run the rounds through ``torch.compile``: 10 s or more for the first call at given numbers of users,
            antennas and streams (eight at most in a process, others run as without), then about three times as fast.
        generator: draws the random starts; one of seed 0 if not given.

    Returns:
        ``gap`` is that of the precoders for the last filters; ``ok`` where it is at most 1e-3.

    Raises:
        SemlinkError: H, an SNR or a number is not as said, or there are more streams than antennas.
    """
    H, n0 = prepare(H, snr_db, streams)
    check_whole("starts", starts)
    rounds = _rounds(n0) if iterations is None else check_whole("iterations", iterations, 2)
    generator = generator or torch.Generator().manual_seed(0)
    V, gap = torch.empty(0), torch.empty(0)
    least = torch.full((len(H),), torch.inf, dtype=torch.float64, device=H.device)
    for start in range(starts):
        # random ones are the same for every channel: a design must not depend on what stands beside it in a batch
        drawn = random_directions(H[:1], streams, generator).expand(len(H), -1, -1, -1) if start else None
        first = strongest_directions(H, streams) if drawn is None else drawn
        found, worst, proof = _in_chunks(H, first, n0, rounds, compiled)
        if not start:
            V, least, gap = found, worst, proof
        better = worst < least
        V = torch.where(better[:, None, None, None], found, V)
        least, gap = torch.where(better, worst, least), torch.where(better, proof, gap)
    used = torch.full((len(H),), rounds * starts, device=H.device)
    return finish(H, V, mmse_filters(H, V, n0), n0, used, gap, gap <= GAP)


def optimal_precoders(H: Tensor, U: Tensor, snr_db: float | Tensor) -> tuple[Tensor, Tensor]:
    """Solve the convex half: precoders of least largest MSE for given filters.

    Args:
        H: (B, K, K, Nr, Nt) complex.
        U: (B, K, Nr, d) complex filters.
        snr_db: one number, or one per channel (B,).

    Returns:
        V: (B, K, Nt, d) complex128, and the duality gap (B,) as a share of the largest MSE.

    Raises:
        SemlinkError: H, U or an SNR is not as said.
    """
    if U.ndim != 4 or U.shape[:3] != H.shape[:2] + H.shape[3:4]:
        raise SemlinkError(f"U has shape {tuple(U.shape)}: {(*H.shape[:2], H.shape[3], 'd')} is expected, as H is")
    H, n0 = prepare(H, snr_db, U.shape[3])
    real, filters = _left(H), _right(U.to(H.dtype))
    silence = torch.zeros(2 * H.shape[4], *filters.shape[1:], dtype=filters.dtype, device=H.device)
    state, gap, _ = _settle(real, n0, _start(silence, filters), RESETTLING, _round)
    return _complex(state.V), gap


def _rounds(n0: Tensor) -> int:
    """Return how many rounds do for all: at high SNR filters have further to go."""
    return min(max(round(ROUNDS * float(n0.min()) ** -GROWTH), 12), 500)


def _in_chunks(H: Tensor, V: Tensor, n0: Tensor, rounds: int, compiled: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Improve V from where it is: precoders, their largest MSE with the last filters, and their gap with those.

    Chunks keep a core's arithmetic in its cache, and give ``torch.compile`` one shape whatever the batch.
    """
    chunk, advance = len(H), _compiled() if compiled else _round
    if H.device.type == "cpu":
        # Without torch.compile, a call costs more than memory does, up to some two times the size.
        chunk = min(chunk, max(CACHE // (4 * H[0].numel()), 64) * (1 if compiled else 2))
    parts = []
    for low in range(0, len(H), chunk):
        inside = torch.arange(low, low + chunk, device=H.device) % len(H)  # the last is filled up with channels done
        found = _descend(_left(H[inside]), _right(V[inside]), n0[inside], rounds, advance)
        parts.append([part[: len(H) - low] for part in found])
    found, worst, gap = (torch.cat(part) for part in zip(*parts, strict=True))
    usable = worst.isfinite()
    return torch.where(usable[:, None, None, None], found, V), worst, torch.where(usable, gap, torch.inf)


def _descend(H: Tensor, V: Tensor, n0: Tensor, rounds: int, advance: _Round) -> tuple[Tensor, Tensor, Tensor]:
    """Run all rounds on one chunk, as :func:`_in_chunks`."""
    # Half the power is well inside the constraint. The first round makes its own filters.
    state, (first, last) = (
        _start(V / 2**0.5, torch.zeros(len(H), *V.shape[1:], dtype=V.dtype, device=V.device)),
        BARRIER,
    )
    for number in range(rounds):
        barrier = first * (last / first) ** (number / (rounds - 1))
        state = advance(H, n0, state, *_scalars(barrier, MOMENTUM if number else 0, 0))[0]
    state = advance(H, n0, state, *_scalars(last, 0, 0))[0]
    state, gap, worst = _settle(H, n0, state, SETTLING, advance)
    late = (~(gap <= GAP)).nonzero().flatten()
    if len(late):
        anew = _start(torch.zeros_like(state.V[..., late]), state.U[..., late])
        anew, gap[late], worst[late] = _settle(H[..., late], n0[late], anew, RESETTLING, _round)
        state.V[..., late] = anew.V
    return _complex(state.V), worst, gap


def _settle(
    H: Tensor, n0: Tensor, state: _State, barriers: tuple[float, ...], advance: _Round
) -> tuple[_State, Tensor, Tensor]:
    """Let the precoders converge while the filters stay; also return their duality gap and largest MSE."""
    for barrier in barriers:
        state = advance(H, n0, state, *_scalars(barrier, 0, 1))[0]
    return state, *advance(H, n0, state, *_scalars(barriers[-1], 0, 1))[1:]


def _start(V: Tensor, U: Tensor) -> _State:
    """Return a state from precoders of less than full power; a round puts the bound above all MSEs."""
    even = torch.full(V.shape[2:], 1 / V.shape[2], dtype=V.dtype, device=V.device)
    return _State(V, U, even, 0.1 * torch.ones_like(even), torch.zeros_like(even[0]))


def _round(
    H: Tensor, n0: Tensor, state: _State, barrier: Tensor, momentum: Tensor, hold: Tensor
) -> tuple[_State, Tensor, Tensor]:
    """Renew the filters unless ``hold`` is 1, and take a Newton step towards the precoders.

    With A_j = sum_k p_k G_kj^H G_kj + q_j I, G_kj = U_k^H H_kj, the Lagrangian of prices p and power prices q is, apart
    from constants, sum_j tr V_j^H A_j V_j - 2 p_j Re tr G_jj V_j. Newton's equations for p s = barrier, q w = barrier
    (s and w the slack of the constraints) and a stationary V reduce to K equations for the prices.

    Args:
        H: (2 Nr, 2 Nt, K, K, B), the last axes receiver, transmitter, channel.
        n0: (B,) noise variances.
        state: where to start.
        barrier: as a share of the bound, a scalar.
        momentum: how far to carry the filters on, a scalar.
        hold: 1 keeps the filters, 0 renews them.

    Returns:
        The next state; the duality gap of the given precoders with the filters used, and their largest MSE, (B,).
    """
    V, U, p, q, bound = state
    size, streams, users, batch = V.shape
    own = torch.eye(users, dtype=V.dtype, device=V.device)[..., None]
    # Louder by the same factor is better for all, and what filters and precoders would agree on most slowly.
    room = (size // 2 / _inner(V, V).clamp_min(1e-300) - 1).amin(0)
    V = V * (1 + (1 - hold) * LOUDER * room).sqrt()
    best = _best_filters(H, V, n0)
    renewed = best + hold * (U - best)
    filters = renewed + momentum * (renewed - U)
    G = _effective(H, filters)
    missed, mse = _errors(G, V, filters, n0)
    highest = mse.amax(0)
    bound = torch.where(bound > highest, bound, 1.01 * highest)  # new, or overtaken by what momentum did to an MSE
    power = _inner(V, V)
    s, w = bound - mse, size // 2 - power

    # Halves of the gradients: of every MSE, of the power, and of the Lagrangian; (2 Nt, d, K + 2, transmitter, B).
    slopes = _times(_adjoint(G), missed)
    residual = (slopes * p[:, None]).sum(2) + q * V
    slopes = torch.cat([slopes, V[:, :, None], residual[:, :, None]], 2)
    A = _embed(_times(_adjoint(G) * p[:, None], G[:, : size // 2]).sum(2)) + q * _eye(size, V, 2)
    moves = _solve(A, slopes.flatten(1, 2)).unflatten(1, (streams, users + 2))
    products = (slopes[:, :, :, None] * moves[:, :, None]).sum((0, 1))
    # The least Lagrangian, and with it the dual's value, is below that of V by the residual's product with its move.
    dual = (p * mse - q * w).sum(0) - products[users + 1, users + 1].sum(0)
    gap = 1 - dual / highest
    products = 2 * products[: users + 1]

    distance = ((p * s).sum(0) + (q * w).sum(0)) / (2 * users)  # the state's own barrier
    target = torch.maximum(barrier * bound, SHARE * distance)
    crossed, diagonal = products[:users, users], products[users, users] + w / q
    wish = target / p - s - products[:users, users + 1].sum(1)
    power_wish = target / q - w - products[users, users + 1]
    system = products[:users, :users].sum(2) - (crossed[:, None] * crossed / diagonal).sum(2) + s / p * own
    free, priced = _solve(
        system, torch.stack([wish - (crossed * (power_wish / diagonal)).sum(1), torch.ones_like(p)], 1)
    ).unbind(1)
    rise = (free.sum(0) + p.sum(0) - 1) / priced.sum(0)  # of the bound, such that prices go on to sum to 1
    dp = free - rise * priced
    dq = (power_wish - (crossed * dp[:, None]).sum(0)) / diagonal
    weights = torch.cat([dp[:, None].expand(users, users, batch), dq[None], torch.ones_like(dq)[None]])
    dV = -(moves * weights).sum(2)

    # The largest step that stays inside, from its inverse: slack c becomes c - a x - a^2 y along the step a.
    bent = _times(G, dV[:, :, None])
    shrinking = torch.cat(
        [
            _inverse_step(
                s, 2 * (slopes[:, :, :users] * dV[:, :, None]).sum((0, 1)).sum(1) - rise, _inner(bent, bent).sum(1)
            ),
            _inverse_step(w, 2 * _inner(V, dV), _inner(dV, dV)),
            -dp / p,
            -dq / q,
        ]
    )
    a = 0.95 / shrinking.amax(0).clamp_min(0.95)
    return _State(V + a * dV, renewed, p + a * dp, q + a * dq, bound + a * rise), gap, highest


@cache
def _compiled() -> _Round:
    """Return the round through torch.compile, or the plain one from when that turns out not to work here."""
    fast, broken = torch.compile(_round, dynamic=False), []

    def advance(
        H: Tensor, n0: Tensor, state: _State, barrier: Tensor, momentum: Tensor, hold: Tensor
    ) -> tuple[_State, Tensor, Tensor]:
        if not broken:
            try:
                return fast(H, n0, state, barrier, momentum, hold)
            except Exception as error:  # whatever a compiler raises; what is wrong with the inputs, _round raises again
                broken.append(error)
                reason = str(error).strip().splitlines()[0]
                warnings.warn(f"torch.compile does not work here, so this runs without: {reason}", stacklevel=5)
        return _round(H, n0, state, barrier, momentum, hold)

    return advance


def _best_filters(H: Tensor, V: Tensor, n0: Tensor) -> Tensor:
    """Return the MMSE filters (2 Nr, d, K, B)."""
    arriving = _times(H, V[:, :, None])
    embedded = _embed(arriving)
    half = _times(embedded, _adjoint(embedded)[:, : len(H) // 2]).sum(3)
    return _solve(_embed(half) + n0 * _eye(len(H), V, 2), _diagonal(arriving))


def _effective(H: Tensor, U: Tensor) -> Tensor:
    """Return G_kj = U_k^H H_kj: (2 d, 2 Nt, K, K, B)."""
    real, minus_imaginary = (_times(_adjoint(U)[:, :, :, None], H)).chunk(2, 1)
    return torch.cat([torch.cat([real, minus_imaginary], 1), torch.cat([-minus_imaginary, real], 1)])


def _errors(G: Tensor, V: Tensor, U: Tensor, n0: Tensor) -> tuple[Tensor, Tensor]:
    """Return what each stream misses of where it should be, (2 d, d, K, K, B), and the MSEs (K, B)."""
    users, streams = V.shape[2], V.shape[1]
    own = torch.eye(users, dtype=V.dtype, device=V.device)[..., None]
    missed = _times(G, V[:, :, None]) - _eye(2 * streams, V, 3)[:, :streams] * own
    return missed, _inner(missed, missed).sum(1) + n0 * _inner(U, U)


def _inverse_step(slack: Tensor, slope: Tensor, bend: Tensor) -> Tensor:
    """Return 1 / a for the a > 0 at which ``slack - a slope - a^2 bend`` reaches 0; ``slack > 0``, ``bend >= 0``."""
    return (slope + (slope.square() + 4 * bend * slack).sqrt()) / (2 * slack)


def _solve(A: Tensor, right: Tensor) -> Tensor:
    """Return ``A^-1 right`` for symmetric positive A: (n, n, ...), by Gauss-Jordan steps, which need no pivots."""
    both, eye = torch.cat([A, right], 1), _eye(len(A), A, A.ndim - 2)
    for i in range(len(A)):
        column, rest = both[:, 0], both[:, 1:]  # the column becomes one of the identity, and is not needed any more
        both = rest - (column - eye[:, i])[:, None] * (rest[i] / column[i])
    return both


def _times(left: Tensor, right: Tensor) -> Tensor:
    return (left[:, :, None] * right[None]).sum(1)


def _adjoint(left: Tensor) -> Tensor:
    return left.transpose(0, 1)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((0, 1))


def _diagonal(links: Tensor) -> Tensor:
    users = torch.arange(links.shape[2], device=links.device)
    return links[:, :, users, users]


def _eye(n: int, like: Tensor, batch_axes: int) -> Tensor:
    return torch.eye(n, dtype=like.dtype, device=like.device).reshape(n, n, *[1] * batch_axes)


def _embed(right: Tensor) -> Tensor:
    """Return [[Re, -Im], [Im, Re]] from [Re; Im]."""
    real, imaginary = right.chunk(2)
    return torch.cat([right, torch.cat([-imaginary, real])], 1)


def _right(matrices: Tensor) -> Tensor:
    """Return [Re; Im] with the batch last: (B, ..., m, n) complex -> (2 m, n, ..., B)."""
    both = torch.cat([matrices.real, matrices.imag], -2)
    return both.movedim(0, -1).movedim((-3, -2), (0, 1)).contiguous()


def _left(matrices: Tensor) -> Tensor:
    """Return [[Re, -Im], [Im, Re]] with the batch last: (B, ..., m, n) complex -> (2 m, 2 n, ..., B)."""
    return _embed(_right(matrices)).contiguous()


def _complex(right: Tensor) -> Tensor:
    """Undo :func:`_right` for (2 m, n, K, B): -> (B, K, m, n) complex."""
    return torch.complex(*right.chunk(2)).permute(3, 2, 0, 1).contiguous()


def _scalars(*values: float) -> list[Tensor]:
    """Return them as tensors, since torch.compile would compile anew for every number."""
    return [torch.tensor(value, dtype=torch.float64) for value in values]
