# SPDX-License-Identifier: Apache-2.0
"""Interference alignment and other alternating designs: least leakage, largest SINR, least sum of MSEs, zero forcing.

The alternations use reciprocity: the filters of the forward network are the precoders of the reversed one, in which
receivers transmit and H_kj becomes H_kj^H. All compute in complex128 on H's device, a batch of channels at once; each
channel stops by itself, so what is found for it does not depend on the others.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from semlink._errors import SemlinkError, check_whole
from semlink.phy.transceivers import (
    Transceivers,
    check_matrices,
    finish,
    mmse_filters,
    own,
    prepare,
    reaching,
    received_covariance,
    strongest_directions,
)

BISECTIONS = 60  # halvings: the power is met to the last digits of float64
ALIGNED = 1e-9  # leakage that counts as none


def alignment_feasible(users: int, transmit_antennas: int, receive_antennas: int, streams: int) -> bool:
    """Return whether d streams per user can be free of interference on generic channels.

    The streams must fit the antennas, ``d <= min(Nt, Nr)``; any two users by themselves must be feasible,
    ``2 d <= max(Nt, Nr)``; and the system must be proper, ``Nt + Nr >= d (K + 1)`` (C. M. Yetis et al., IEEE Trans.
    Signal Process. 58(9), 2010). These are necessary; for one stream per user and for Nt = Nr they also suffice.

    Raises:
        SemlinkError: a number is not a whole number of at least 1.
    """
    return _obstacle(users, transmit_antennas, receive_antennas, streams) is None


def minimise_leakage(H: Tensor, snr_db: float | Tensor, streams: int = 1, iterations: int = 5000) -> Transceivers:
    """Align interference: minimise what leaks into each receiver's d dimensions (K. Gomadam, V. R. Cadambe and
    S. A. Jafar, IEEE Trans. Inf. Theory 57(6), 2011, Algorithm 1).

    Filters span the d directions in which least interference arrives and combine those by MMSE; the precoders and the
    directions ignore the noise and the strength of a user's own link.

    Args:
        H: (B, K, K, Nr, Nt) complex.
        snr_db: one number, or one per channel (B,).
        streams: d.
        iterations: at most.

    Returns:
        ``ok`` where every receiver's :func:`~semlink.phy.leakage` is at most 1e-9.

    Raises:
        SemlinkError: H, an SNR or a number is not as said, or alignment is not feasible (:func:`alignment_feasible`).
    """
    H, n0 = prepare(H, snr_db, streams)
    check_whole("iterations", iterations)
    obstacle = _obstacle(H.shape[1], H.shape[4], H.shape[3], streams)
    if obstacle:
        raise SemlinkError(
            f"no precoders free {H.shape[1]} users' {streams} streams of interference: {obstacle}; ask for fewer "
            "streams, or for a design that trades interference for noise, such as max-sinr"
        )

    def renew(H: Tensor, V: Tensor, n0: Tensor) -> tuple[Tensor, Tensor]:
        backward = _quietest(H, V)
        V = _quietest(_reversed(H), backward) * (H.shape[4] / streams) ** 0.5
        return V, reaching(H, V, _quietest(H, V)).amax(1) <= ALIGNED

    V, used, _ = _alternate(H, strongest_directions(H, streams), n0, renew, iterations)
    basis = _quietest(H, V)
    aligned = reaching(H, V, basis).amax(1) <= ALIGNED
    return finish(H, V, basis @ mmse_filters(basis.mH[:, :, None] @ H, V, n0), n0, used, ok=aligned)


def maximise_sinr(H: Tensor, snr_db: float | Tensor, streams: int = 1, iterations: int = 500) -> Transceivers:
    """Let every stream maximise its own SINR in turn (Gomadam, Cadambe and Jafar 2011, Algorithm 2).

    All streams have the same power, in the reversed network as well. Not proven to converge.

    Args:
        H: (B, K, K, Nr, Nt) complex.
        snr_db: one number, or one per channel (B,).
        streams: d.
        iterations: at most; a channel stops when no precoder moves by more than 1e-4 of its length.

    Returns:
        Filters are the MMSE ones, which have the largest SINR; ``ok`` where the channel stopped by itself.

    Raises:
        SemlinkError: H, an SNR or a number is not as said, or there are more streams than antennas.
    """
    H, n0 = prepare(H, snr_db, streams)
    check_whole("iterations", iterations)

    def equal(directions: Tensor, antennas: int) -> Tensor:
        lengths = torch.linalg.vector_norm(directions, dim=2, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        return directions * ((antennas / streams) ** 0.5 / lengths)

    def renew(H: Tensor, V: Tensor, n0: Tensor) -> tuple[Tensor, Tensor]:
        # The SINR of a stream does not change with the scale of its filter, and R^-1 h is along (R - h h^H)^-1 h.
        backward = equal(mmse_filters(H, V, n0), H.shape[4])
        renewed = equal(mmse_filters(_reversed(H), backward, n0), H.shape[4])
        alike = (renewed.conj() * V).sum(2).abs() * (streams / H.shape[4])
        return renewed, alike.amin((1, 2)) > 1 - 1e-8

    V, used, done = _alternate(H, strongest_directions(H, streams), n0, renew, iterations)
    return finish(H, V, mmse_filters(H, V, n0), n0, used, ok=done)


def minimise_sum_mse(
    H: Tensor, snr_db: float | Tensor, streams: int = 1, iterations: int = 1000, start: Tensor | None = None
) -> Transceivers:
    """Minimise the sum of all users' MSEs by alternating MMSE filters and precoders; it falls monotonically.

    For given filters the precoders are ``V_j = (sum_k G_kj^H G_kj + mu_j I)^-1 G_jj^H``, ``G_kj = U_k^H H_kj``, with
    mu_j by bisection on the power constraint.

    Args:
        H: (B, K, K, Nr, Nt) complex.
        snr_db: one number, or one per channel (B,).
        streams: d.
        iterations: at most; a channel stops when its sum falls by less than one part in 10^6.
        start: precoders to improve, (B, K, Nt, d) complex; None: the strongest directions of each user's own link.

    Returns:
        ``ok`` where the channel stopped by itself.

    Raises:
        SemlinkError: H, an SNR, a number or ``start`` is not as said, or there are more streams than antennas.
    """
    H, n0 = prepare(H, snr_db, streams)
    check_whole("iterations", iterations)
    if start is not None:
        check_matrices("start", start, (len(H), H.shape[1], H.shape[4], streams))

    def renew(H: Tensor, V: Tensor, n0: Tensor) -> tuple[Tensor, Tensor]:
        U = mmse_filters(H, V, n0)
        before = _least_errors(H, V, U)
        G = _reversed(U.mH[:, :, None] @ H)  # G_kj^H by [j, k]
        stacked = G.transpose(2, 3).flatten(3)
        V = _within_power(stacked @ stacked.mH, own(G), H.shape[4])
        return V, before - _least_errors(H, V, mmse_filters(H, V, n0)) <= 1e-6 * before

    begun = strongest_directions(H, streams) if start is None else start.to(H.dtype)
    V, used, done = _alternate(H, begun, n0, renew, iterations)
    return finish(H, V, mmse_filters(H, V, n0), n0, used, ok=done)


def zero_force_interference(H: Tensor, snr_db: float | Tensor, streams: int = 1) -> Transceivers:
    """Remove all interference at the receivers alone: each transmits on its own link's strongest directions.

    The filters are d rows of the pseudoinverse of all that arrives, so that an estimate is the symbol and noise, which
    a weak link amplifies without limit.

    Args:
        H: (B, K, K, Nr, Nt) complex.
        snr_db: one number, or one per channel (B,).
        streams: d.

    Raises:
        SemlinkError: H, an SNR or a number is not as said, or the receivers have fewer than K d antennas.
    """
    H, n0 = prepare(H, snr_db, streams)
    users, receive = H.shape[2:4]
    if receive < users * streams:
        raise SemlinkError(
            f"zero forcing needs a receive antenna for every stream that arrives, Nr >= K d: {receive} is below "
            f"{users} x {streams}; add antennas, or let transmitters align interference with min-leakage"
        )
    V = strongest_directions(H, streams)
    arriving = (H @ V[:, None]).transpose(2, 3).flatten(3)
    rows = torch.linalg.pinv(arriving).unflatten(2, (users, streams))
    return finish(H, V, own(rows).mH, n0, torch.ones(len(H), dtype=torch.int64, device=H.device))


def _obstacle(users: int, transmit: int, receive: int, streams: int) -> str | None:
    """Return the condition of feasible alignment that does not hold, if any."""
    names = {"users": users, "transmit_antennas": transmit, "receive_antennas": receive, "streams": streams}
    for name, value in names.items():
        check_whole(name, value)
    if streams > min(transmit, receive):
        return f"d <= min(Nt, Nr) does not hold, {streams} > {min(transmit, receive)}"
    if users > 1 and 2 * streams > max(transmit, receive):
        return f"2 d <= max(Nt, Nr) does not hold, {2 * streams} > {max(transmit, receive)}"
    if users > 1 and transmit + receive < streams * (users + 1):
        return f"Nt + Nr >= d (K + 1) does not hold, {transmit + receive} < {streams * (users + 1)}"
    return None


def _alternate(
    H: Tensor,
    V: Tensor,
    n0: Tensor,
    renew: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    iterations: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Renew precoders until ``renew`` says of a channel that it is done; only the others go on.

    Returns:
        V: (B, K, Nt, d), how often it was renewed (B,), and where it was done in time (B,).
    """
    V, used = V.clone(), torch.zeros(len(H), dtype=torch.int64, device=H.device)
    active = torch.arange(len(H), device=H.device)
    for _ in range(iterations):
        V[active], stop = renew(H[active], V[active], n0[active])
        used[active] += 1
        active = active[~stop]
        if not len(active):
            break
    done = torch.ones(len(H), dtype=torch.bool, device=H.device)
    done[active] = False
    return V, used, done


def _reversed(links: Tensor) -> Tensor:
    """Return the network in which receivers transmit: (B, K, K, m, n) -> (B, K, K, n, m)."""
    return links.transpose(1, 2).mH


def _quietest(H: Tensor, V: Tensor) -> Tensor:
    """Return orthonormal directions (B, K, Nr, d) in which receivers hear least from other users' precoders."""
    arriving = H @ V[:, None]
    wanted = own(arriving)
    silence = torch.zeros(len(H), dtype=torch.float64, device=H.device)
    interference = received_covariance(arriving, silence) - wanted @ wanted.mH
    return torch.linalg.eigh(interference)[1][..., : V.shape[3]]


def _least_errors(H: Tensor, V: Tensor, U: Tensor) -> Tensor:
    """Return the sum of all users' MSEs with their MMSE filters U, (B,)."""
    gain = (U.conj() * (own(H) @ V)).real.sum((1, 2, 3))
    return V.shape[1] * V.shape[3] - gain


def _within_power(A: Tensor, right: Tensor, power: float) -> Tensor:
    """Return ``(A + mu I)^-1 right`` with the least mu >= 0 for which its squared norm is at most ``power``.

    Args:
        A: (B, K, n, n) Hermitian, not negative.
        right: (B, K, n, d) in the range of A.
        power: a bound on the squared norm.
    """
    values, vectors = torch.linalg.eigh(A)
    values = values.clamp_min(0)[..., None]
    rotated = vectors.mH @ right
    energy = torch.view_as_real(rotated).square().sum(-1)
    high = (energy.sum((2, 3), keepdim=True) / power).sqrt()  # A only helps
    low = torch.zeros_like(high)
    floor = 1e-15 * values.amax(2, keepdim=True) + torch.finfo(torch.float64).tiny
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        above = (energy / (values + middle).clamp_min(floor) ** 2).sum((2, 3), keepdim=True) > power
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return vectors @ (rotated / (values + high).clamp_min(floor))
