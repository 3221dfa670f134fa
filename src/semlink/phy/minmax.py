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

The batch is the last axis, which suits vector units. minmax.cpp has the same rounds for processors; only rounding
differs.
"""

import ctypes
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from semlink._errors import check_whole
from semlink.phy import native
from semlink.phy.transceivers import (
    Transceivers,
    check_matrices,
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
STEP_DB = 2.5  # channels of an SNR between two multiples of it take the rounds of the higher one, together
LOUDER = 0.02  # of the room that power leaves is taken in a round
MOMENTUM = 0.9  # how far filters are carried on; above 1 oscillates
GAP = 1e-3  # a larger duality gap is not called a solution
SHARE = 0.3  # of the state's own barrier: the least that a round aims at
CHUNK = 2**16  # gains of the channels that go together: what comes of them fits a cache, and is worth the calls
MANY = 200_000  # rounds, of one channel each, that take about as long as compiling: a program is compiled unasked


class _State(NamedTuple):
    """A point strictly inside all constraints, and the multipliers it has so far.

    Attributes:
        V: (Nt, d, K, B) complex precoders.
        U: (Nr, d, K, B) complex, the filters of the last round.
        prices: (K, B) multipliers of ``mse_k <= bound``, which sum to 1 over users.
        power_prices: (K, B) multipliers of ``||V_k||^2 <= Nt``.
        bound: (B,) above all MSEs.
    """

    V: Tensor
    U: Tensor
    prices: Tensor
    power_prices: Tensor
    bound: Tensor


_Step = tuple[float, float, bool]  # a round's barrier, its momentum, and whether it holds the filters


def minimise_max_mse(
    H: Tensor,
    snr_db: float | Tensor,
    streams: int = 1,
    starts: int = 1,
    iterations: int | None = None,
    compiled: bool | None = None,
    generator: torch.Generator | None = None,
) -> Transceivers:
    """Design precoders and filters of least largest MSE, for a batch of channels on H's device.

    The problem is not convex: a better local optimum may exist, and more starts find it more often. The MSEs of all
    users end equal unless one is worse off than all others whatever these do. No gradient flows through a design.

    Args:
        H: (B, K, K, Nr, Nt) complex.
        snr_db: one number, or one per channel (B,).
        streams: d. With as many streams as antennas and few users one stream is better switched off, and slowly is.
        starts: initial precoders to try: the strongest directions of each user's own link, then random ones.
        iterations: rounds from each start; if not given 12 / N0^0.48, at least 12 and at most 500, of the next multiple
            of 2.5 dB for each channel: 12 at 0 dB, 63 at 15 dB, which end within 0.5 and 1.4 % of what 200 do.
        compiled: on a processor, run the rounds as a program that a C++ compiler makes of minmax.cpp: about a second
            for the first call at given numbers of users, antennas and streams, then some ten times as fast. None:
            where there is a compiler and at least 200,000 rounds to run, channels times ``iterations`` times
            ``starts``; True: a warning says where there is none.
        generator: draws the random starts; one of seed 0 if not given.

    Returns:
        ``gap`` is that of the precoders for the last filters; ``ok`` where it is at most 1e-3.

    Raises:
        SemlinkError: H, an SNR or a number is not as said, or there are more streams than antennas.
    """
    H, n0 = prepare(H.detach(), snr_db, streams)
    check_whole("starts", starts)
    rounds = _rounds(n0) if iterations is None else torch.full_like(n0, check_whole("iterations", iterations, 2))
    generator = generator or torch.Generator().manual_seed(0)
    program = _program(H, streams, int(rounds.sum()) * starts >= MANY if compiled is None else compiled, compiled)
    # A design must not depend on what stands beside it in a batch: channels go on together only for as many rounds as
    # each of them would alone, and random starts are the same for all.
    drawn = [random_directions(H[:1], streams, generator) for _ in range(starts - 1)]
    V, gap = strongest_directions(H, streams).contiguous(), torch.empty_like(n0)
    for count in rounds.unique().tolist():
        these = (rounds == count).nonzero().flatten()
        firsts = [V[these], *(each.expand(len(these), -1, -1, -1) for each in drawn)]
        V[these], gap[these] = _search(H[these], n0[these], firsts, _schedule(int(count)), program)
    if program is None:
        U, mse = mmse_filters(H, V, n0), None
    else:
        U, mse = torch.empty(*H.shape[:2], H.shape[3], streams, dtype=V.dtype), H.new_empty(H.shape[:2], dtype=n0.dtype)
        native.call_in_parts(program.filter, [H.contiguous(), n0.contiguous(), V, U, mse])
    return finish(H, V, U, n0, rounds.long() * starts, gap, gap.abs() <= GAP, mse)


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
    H, n0 = prepare(H.detach(), snr_db, U.shape[-1])
    check_matrices("U", U, (len(H), H.shape[1], H.shape[3], None))
    filters = _last(U.detach().to(H.dtype))
    silence = torch.zeros(H.shape[4], *filters.shape[1:], dtype=filters.dtype, device=H.device)
    V, _, gap, _ = _run(_last(H), n0, silence, filters, _held(RESETTLING))
    return _first(V), gap


def _rounds(n0: Tensor) -> Tensor:
    """Return how many rounds do for each channel, (B,) float64: at high SNR filters have further to go."""
    steps = (-10 / STEP_DB * n0.log10() - 1e-9).ceil()  # a level that is a multiple stays one in spite of rounding
    return (ROUNDS * 10 ** (GROWTH * STEP_DB / 10 * steps)).round().clamp(12, 500)


def _search(
    H: Tensor, n0: Tensor, firsts: list[Tensor], steps: list[_Step], program: ctypes.CDLL | None
) -> tuple[Tensor, Tensor]:
    """Return the best of what becomes of ``firsts``, precoders to begin with, for each channel: V and its gap."""
    V, least, gap = _improve(H, firsts[0], n0, steps, program)
    for first in firsts[1:]:
        found, worst, proof = _improve(H, first, n0, steps, program)
        better = worst < least
        V = torch.where(better[:, None, None, None], found, V)
        least, gap = torch.where(better, worst, least), torch.where(better, proof, gap)
    return V, gap


def _program(H: Tensor, streams: int, wanted: bool, asked: bool | None) -> ctypes.CDLL | None:
    """Return minmax.cpp compiled for such channels where that is wanted and works; one that was asked for is missed."""
    if H.device.type != "cpu" or not wanted:
        return None
    sizes = {"users": H.shape[1], "receive": H.shape[3], "transmit": H.shape[4], "streams": streams}
    program = native.build("minmax.cpp", **sizes)
    if isinstance(program, ctypes.CDLL):
        return program
    if asked:
        warnings.warn(f"this runs without a compiled program: {program}", stacklevel=3)
    return None


def _improve(
    H: Tensor, V: Tensor, n0: Tensor, steps: list[_Step], program: ctypes.CDLL | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Improve V from where it is: precoders, their largest MSE with the last filters, and their gap with those."""
    if program is None:
        found, worst, gap = _descend(H, V, n0, steps)
    else:
        found = V.clone(memory_format=torch.contiguous_format)
        batch = [H.contiguous(), n0.contiguous(), found, torch.empty_like(n0), torch.empty_like(n0)]
        numbers = steps, _held(RESETTLING), [(LOUDER, SHARE, GAP)]
        tables = [torch.tensor(each, dtype=n0.dtype, device=H.device) for each in numbers]
        native.call_in_parts(program.descend, batch, *tables)
        worst, gap = batch[3:]
    usable = worst.isfinite()
    return torch.where(usable[:, None, None, None], found, V), worst, torch.where(usable, gap, torch.inf)


def _descend(H: Tensor, V: Tensor, n0: Tensor, steps: list[_Step]) -> tuple[Tensor, Tensor, Tensor]:
    """Run all rounds, as :func:`_improve`."""
    H, V, chunk = _last(H), _last(V), len(H)
    if H.device.type == "cpu":
        chunk = min(chunk, max(CHUNK // H[..., 0].numel(), 128))
    # Half the power is well inside the constraint. The first round makes its own filters.
    silence = torch.zeros(len(H), *V.shape[1:], dtype=V.dtype, device=V.device)
    parts = zip(*(each.split(chunk, -1) for each in (H, n0, V / 2**0.5, silence)), strict=True)
    found = [_run(gains, level, quiet, none, steps) for gains, level, quiet, none in parts]
    V, U, gap, worst = (torch.cat(parts, -1) for parts in zip(*found, strict=True))
    late = (~(gap.abs() <= GAP)).nonzero().flatten()
    if len(late):
        anew = _run(H[..., late], n0[late], torch.zeros_like(V[..., late]), U[..., late], _held(RESETTLING))
        V[..., late], _, gap[late], worst[late] = anew
    return _first(V), worst, gap


def _run(H: Tensor, n0: Tensor, V: Tensor, U: Tensor, steps: list[_Step]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Take all rounds but the last, which only says what they came to: V, U, their gap and their largest MSE."""
    even = torch.full(V.shape[2:], 1 / V.shape[2], dtype=torch.float64, device=V.device)
    state = _State(V, U, even, 0.1 * torch.ones_like(even), torch.zeros_like(even[0]))
    for step in steps[:-1]:
        state = _round(H, n0, state, *step)[0]
    return state.V, state.U, *_round(H, n0, state, *steps[-1])[1:]


def _schedule(rounds: int) -> list[_Step]:
    """Return barrier, momentum and hold of every round of :func:`_round`."""
    first, last = BARRIER
    falling = [first * (last / first) ** (number / (rounds - 1)) for number in range(rounds)]
    moving = [(barrier, MOMENTUM if number else 0.0, False) for number, barrier in enumerate(falling)]
    return [*moving, (last, 0.0, False), *_held(SETTLING)]


def _held(barriers: tuple[float, ...]) -> list[_Step]:
    """Return rounds in which precoders converge while filters stay, the last to see how far they got."""
    return [(barrier, 0.0, True) for barrier in (*barriers, barriers[-1])]


def _round(
    H: Tensor, n0: Tensor, state: _State, barrier: float, momentum: float, hold: bool
) -> tuple[_State, Tensor, Tensor]:
    """Renew the filters unless they are held, and take a Newton step towards the precoders.

    With A_j = sum_k p_k G_kj^H G_kj + q_j I, G_kj = U_k^H H_kj, the Lagrangian of prices p and power prices q is, apart
    from constants, sum_j tr V_j^H A_j V_j - 2 p_j Re tr G_jj V_j. Newton's equations for p s = barrier, q w = barrier
    (s and w the slack of the constraints) and a stationary V reduce to K equations for the prices.

    Args:
        H: (Nr, Nt, K, K, B), the last axes receiver, transmitter, channel.
        n0: (B,) noise variances.
        state: where to start.
        barrier: as a share of the bound.
        momentum: how far to carry the filters on.
        hold: whether to keep the filters.

    Returns:
        The next state; the duality gap of the given precoders with the filters used, and their largest MSE, (B,).
    """
    V, U, p, q, bound = state
    size, streams, users, _ = V.shape
    filters = renewed = U
    if not hold:
        # Louder by the same factor is better for all, and what filters and precoders would agree on most slowly.
        room = size / _energy(V, (0, 1)).amax(0).clamp_min(1e-300) - 1
        V = V * (1 + LOUDER * room).sqrt()
        renewed = _best_filters(H, V, n0)
        filters = renewed + momentum * (renewed - U)
    G = _times(_adjoint(filters)[:, :, :, None], H)
    missed = _times(G, V[:, :, None])
    missed.diagonal(dim1=0, dim2=1).diagonal(dim1=0, dim2=1).sub_(1)  # where each stream of a user should arrive as 1
    mse = _energy(missed, (0, 1, 3)) + n0 * _energy(filters, (0, 1))
    highest = mse.amax(0)
    bound = torch.where(bound > highest, bound, 1.01 * highest)  # new, or overtaken by what momentum did to an MSE
    s, w = bound - mse, size - _energy(V, (0, 1))

    # Halves of the gradients of every MSE and of the power: (Nt, d, K + 1, transmitter, B).
    towards = _adjoint(G)
    slopes = torch.cat([_times(towards, missed), V[:, :, None]], 2)
    A = _times(towards * p[:, None], G).sum(2)
    A.diagonal(dim1=0, dim2=1).add_(q[..., None])
    moves = _solve(A, slopes.flatten(1, 2)).unflatten(1, (streams, users + 1))
    products = 2 * _crossed(slopes, moves)  # (K + 1, K + 1, transmitter, B)
    prices = torch.cat([p[:, None].expand(-1, users, -1), q[None]])  # which make the Lagrangian's gradient of them
    residual = (products * prices).sum(1)
    # The least Lagrangian, and with it the dual's value, is below that of V by the gradient's product with its move.
    gap = 1 - ((p * mse - q * w).sum(0) - (residual * prices).sum((0, 1)) / 2) / highest

    distance = ((p * s).sum(0) + (q * w).sum(0)) / (2 * users)  # the state's own barrier
    target = torch.maximum(barrier * bound, SHARE * distance)
    crossed, diagonal = products[:users, users], products[users, users] + w / q
    wish = target / p - s - residual[:users].sum(1)
    power_wish = target / q - w - residual[users]
    system = products[:users, :users].sum(2) - (crossed[:, None] * crossed / diagonal).sum(2)
    system.diagonal().add_((s / p).T)
    free, priced = _solve(
        system, torch.stack([wish - (crossed * (power_wish / diagonal)).sum(1), torch.ones_like(p)], 1)
    ).unbind(1)
    rise = (free.sum(0) + p.sum(0) - 1) / priced.sum(0)  # of the bound, such that prices go on to sum to 1
    dp = free - rise * priced
    dq = (power_wish - (crossed * dp[:, None]).sum(0)) / diagonal
    weights = prices + torch.cat([dp[:, None].expand(-1, users, -1), dq[None]])
    dV = -(moves * weights).sum(2)

    # The largest step that stays inside, from its inverse: slack c becomes c - a x - a^2 y along the step a.
    slope = -(products * weights).sum(1)
    bent = _energy(_times(G, dV[:, :, None]), (0, 1, 3))
    shrinking = torch.cat(
        [
            _inverse_step(s, slope[:users].sum(1) - rise, bent),
            _inverse_step(w, slope[users], _energy(dV, (0, 1))),
            -dp / p,
            -dq / q,
        ]
    )
    a = 0.95 / shrinking.amax(0).clamp_min(0.95)
    return _State(V + a * dV, renewed, p + a * dp, q + a * dq, bound + a * rise), gap, highest


def _best_filters(H: Tensor, V: Tensor, n0: Tensor) -> Tensor:
    """Return the MMSE filters (Nr, d, K, B)."""
    arriving = _times(H, V[:, :, None])
    covariance = _times(arriving, _adjoint(arriving)).sum(3)
    covariance.diagonal(dim1=0, dim2=1).add_(n0[:, None])
    return _solve(covariance, arriving.diagonal(dim1=2, dim2=3).movedim(-1, 2))


def _inverse_step(slack: Tensor, slope: Tensor, bend: Tensor) -> Tensor:
    """Return 1 / a for the a > 0 at which ``slack - a slope - a^2 bend`` reaches 0; ``slack > 0``, ``bend >= 0``."""
    return (slope + (slope.square() + 4 * bend * slack).sqrt()) / (2 * slack)


def _solve(A: Tensor, right: Tensor) -> Tensor:
    """Return ``A^-1 right`` for Hermitian positive A: (n, n, ...), by Gauss-Jordan steps, which need no pivots."""
    both = torch.cat([A, right], 1)
    for i in range(len(A)):
        column, rest = both[:, 0].clone(), both[:, 1:]
        row = rest[i] / column[i].real
        column[i] -= 1  # the column becomes one of the identity, and is not needed any more
        both = torch.addcmul(rest, column[:, None], row, value=-1)
    return both


def _crossed(a: Tensor, b: Tensor) -> Tensor:
    """Return Re tr a_i^H b_j from (m, n, i, ...) and (m, n, j, ...): (i, j, ...)."""
    left, right = (torch.cat([each.real, each.imag]).flatten(0, 1) for each in (a, b))
    return _times(left.transpose(0, 1), right)


def _times(left: Tensor, right: Tensor) -> Tensor:
    """Return the matrix product of the first two axes, one product for all that follow."""
    total = left[:, 0, None] * right[None, 0]
    for i in range(1, len(right)):
        total.addcmul_(left[:, i, None], right[None, i])
    return total


def _adjoint(left: Tensor) -> Tensor:
    return left.transpose(0, 1).conj_physical()


def _energy(matrices: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return the sum of ``|.|^2`` along ``axes``, of which the last is none."""
    pairs = torch.view_as_real(matrices).flatten(-2).square().sum(axes)
    return pairs.unflatten(-1, (-1, 2)).sum(-1)


def _last(matrices: Tensor) -> Tensor:
    """Return (B, ..., m, n) with the batch last: (m, n, ..., B)."""
    return matrices.movedim(0, -1).movedim((-3, -2), (0, 1)).contiguous().resolve_conj()


def _first(matrices: Tensor) -> Tensor:
    """Undo :func:`_last` for (m, n, K, B): -> (B, K, m, n)."""
    return matrices.permute(3, 2, 0, 1).contiguous()
