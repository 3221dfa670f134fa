# SPDX-License-Identifier: Apache-2.0
"""Linear transceivers for the interference channel: what every design returns, and what it is judged by.

    s_k --> V_k --> X_k ==> H ==> Y_k --> U_k^H --> estimate of s_k        d streams s_k of unit variance

User k sends ``V_k s_k`` with ``||V_k||_F^2 <= Nt`` and receiver k estimates ``U_k^H Y_k`` (paper B, equation 9). Every
design takes a batch of channels at once and computes in complex128. The designs themselves: minmax.py, alignment.py.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from semlink._errors import SemlinkError, check_whole
from semlink.phy.channel import noise_variance
from semlink.phy.interference import check_gains

MAX_GAIN = 1e30  # of an amplitude: products of a few stay float64


@dataclass(frozen=True)
class Transceivers:
    """Precoders and filters for B channels of K users, d streams each.

    Attributes:
        precoders: V, (B, K, Nt, d) complex128 with ||V_k||_F^2 <= Nt.
        filters: U, (B, K, Nr, d) complex128.
        mse: (B, K) float64, the mean square error of user k's estimate, summed over its streams.
        imbalance: (B,) float64, how far the least MSE of a channel is below its largest, as a share of that.
        gap: (B,) float64, a proof of quality: no precoders have a largest MSE with the last step's filters that is
            lower by more than this share. NaN from designs that prove nothing.
        iterations: (B,) int64, how often filters and precoders were renewed.
        ok: (B,) bool, false where the design did not get where it should; each design says what that means.
    """

    precoders: Tensor
    filters: Tensor
    mse: Tensor
    imbalance: Tensor
    gap: Tensor
    iterations: Tensor
    ok: Tensor


def finish(
    H: Tensor,
    V: Tensor,
    U: Tensor,
    n0: Tensor,
    iterations: Tensor,
    gap: Tensor | None = None,
    ok: Tensor | None = None,
    mse: Tensor | None = None,
) -> Transceivers:
    """Measure V and U, unless that is done, and wrap them up; without ``ok`` it says whether the numbers are finite."""
    mse = mean_square_errors(H, V, U, n0) if mse is None else mse
    largest, least = mse.amax(1), mse.amin(1)
    return Transceivers(
        precoders=V,
        filters=U,
        mse=mse,
        imbalance=(largest - least) / largest,
        gap=torch.full_like(largest, torch.nan) if gap is None else gap,
        iterations=iterations,
        ok=mse.isfinite().all(1) if ok is None else ok & mse.isfinite().all(1),
    )


def prepare(H: Tensor, snr_db: float | Tensor, streams: int) -> tuple[Tensor, Tensor]:
    """Check what a design was given.

    Returns:
        H as complex128, and N0: (B,) float64 on its device.

    Raises:
        SemlinkError: H is not (B, K, K, Nr, Nt) complex and finite, or empty, or holds a gain beyond 1e30; an SNR is
            not finite or there are neither one nor B; or there are more streams than antennas at either end.
    """
    check_gains(H)
    if not len(H):
        raise SemlinkError("H holds no channel: at least one is expected")
    if (largest := float(torch.view_as_real(H.resolve_conj()).abs().amax())) > MAX_GAIN:
        raise SemlinkError(
            f"H holds a gain of {largest:.3g}: at most {MAX_GAIN:g} is expected; scale H, and the SNR with it"
        )
    check_whole("streams", streams)
    receive, transmit = H.shape[3:]
    if streams > min(receive, transmit):
        raise SemlinkError(
            f"streams is {streams}: at most {min(receive, transmit)} fit {transmit} transmit and {receive} receive "
            "antennas"
        )
    noise_variance(snr_db, len(H), H.device)  # says what is wrong with an SNR; float32 would not do below
    level = torch.as_tensor(snr_db, dtype=torch.float64).flatten().to(H.device)
    return H.to(torch.complex128).resolve_conj(), (10 ** (-level / 10)).expand(len(H))


def check_matrices(name: str, matrices: Tensor, shape: tuple[int, int, int, int | None]) -> None:
    """Pass precoders or filters, complex and finite, of ``shape``: (B, K, antennas, d), None for any d.

    Raises:
        SemlinkError: otherwise, naming ``name``.
    """
    found = tuple(matrices.shape)
    if len(found) != 4 or any(w not in (None, s) for w, s in zip(shape, found, strict=True)):
        raise SemlinkError(f"{name} has shape {found}: ({', '.join(str(w or 'd') for w in shape)}) is expected")
    if not matrices.is_complex():
        raise SemlinkError(f"{name} is {matrices.dtype}: complex numbers are expected")
    if not torch.view_as_real(matrices.resolve_conj()).isfinite().all():
        raise SemlinkError(f"{name} holds a number that is not finite: check what computed it")


def own(links: Tensor) -> Tensor:
    """Return the links from each transmitter to its receiver: (B, K, K, m, n) -> (B, K, m, n)."""
    return links.diagonal(dim1=1, dim2=2).movedim(-1, 1)


def strongest_directions(H: Tensor, streams: int) -> Tensor:
    """Return precoders (B, K, Nt, d) at full power on the d strongest right singular vectors of each H_kk."""
    links = own(H)
    gram = links.mH @ links
    if H.shape[-1] == 2 and streams == 1:
        # In closed form, twenty times as fast: (b, top - a) or (top - c, b*) of [[a, b], [b*, c]], whichever is longer.
        (a, b), (_, c) = (row.unbind(-1) for row in gram.unbind(-2))
        a, c = a.real, c.real
        half = (a - c) / 2
        root = (half.square() + b.real.square() + b.imag.square()).sqrt()
        lower = half < 0
        long = torch.complex(half.abs() + root, torch.zeros_like(root))
        vector = torch.stack([torch.where(lower, b, long), torch.where(lower, long, b.conj())], -1)
        length = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
        vector = torch.where(length > 0, vector / length, torch.tensor([1.0, 0], dtype=vector.dtype, device=H.device))
        return vector[..., None] * 2**0.5
    vectors = torch.linalg.eigh(gram)[1]
    return vectors[..., -streams:].flip(-1) * (H.shape[-1] / streams) ** 0.5


def random_directions(H: Tensor, streams: int, generator: torch.Generator) -> Tensor:
    """Return precoders (B, K, Nt, d) drawn uniformly over directions, at full power."""
    shape = (len(H), H.shape[1], H.shape[-1], streams)
    drawn = torch.randn(shape, dtype=torch.complex128, generator=generator, device=generator.device).to(H.device)
    return drawn * (H.shape[-1] ** 0.5 / torch.linalg.matrix_norm(drawn, keepdim=True))


def received_covariance(arriving: Tensor, n0: Tensor) -> Tensor:
    """Return E[Y_k Y_k^H] per channel use, (B, K, Nr, Nr), from ``arriving = H_kj V_j``: (B, K, K, Nr, d)."""
    stacked = arriving.transpose(2, 3).flatten(3)
    eye = torch.eye(stacked.shape[2], dtype=stacked.dtype, device=stacked.device)
    return stacked @ stacked.mH + n0[:, None, None, None] * eye


def mmse_filters(H: Tensor, V: Tensor, n0: Tensor) -> Tensor:
    """Return the filters of least MSE for given precoders, (B, K, Nr, d): ``U_k = E[Y_k Y_k^H]^-1 H_kk V_k``."""
    arriving = H @ V[:, None]
    return torch.linalg.solve(received_covariance(arriving, n0), own(arriving))


def mean_square_errors(H: Tensor, V: Tensor, U: Tensor, n0: Tensor) -> Tensor:
    """Return E||s_k - U_k^H Y_k||^2: (B, K) float64, for any precoders and filters."""
    links = U.mH[:, :, None] @ H @ V[:, None]
    users, streams = V.shape[1], V.shape[3]
    eye = torch.eye(users * streams, dtype=V.dtype, device=V.device)
    wanted = eye.reshape(users, streams, users, streams).transpose(1, 2)
    return _energy(links - wanted).sum(2) + n0[:, None] * _energy(U)


def sum_rate(H: Tensor, V: Tensor, snr_db: float | Tensor) -> Tensor:
    """Return the rate that all users together can reach with Gaussian symbols, (B,) float64 bit per channel use.

    ``sum_k log2 det(I + V_k^H H_kk^H C_k^-1 H_kk V_k)``, C_k the covariance of interference and noise at receiver k,
    which treats interference as noise and needs no more than its best linear filter.

    Args:
        H: (B, K, K, Nr, Nt) complex.
        V: (B, K, Nt, d) complex precoders of unit-variance streams.
        snr_db: one number or one per channel (B,).

    Raises:
        SemlinkError: H, V or an SNR is not as said.
    """
    H, n0 = prepare(H, snr_db, 1)
    check_matrices("V", V, (len(H), H.shape[1], H.shape[4], None))
    arriving = H @ V.to(H.dtype)[:, None]
    wanted, everything = own(arriving), received_covariance(arriving, n0)
    interference = everything - wanted @ wanted.mH
    return (_log2_det(everything) - _log2_det(interference)).sum(1)


def leakage(H: Tensor, V: Tensor, U: Tensor) -> Tensor:
    """Return the interference that reaches each receiver's d chosen dimensions, (B, K) float64.

    ``sum_{j != k} ||Q_k^H H_kj V_j||_F^2 / Nt``, with Q_k an orthonormal basis of the columns of U_k: zero if and only
    if the interference is aligned outside of them, and (K - 1) d on average where nobody minds it.

    Args:
        H: (B, K, K, Nr, Nt) complex.
        V: (B, K, Nt, d) complex precoders.
        U: (B, K, Nr, d) complex filters.

    Raises:
        SemlinkError: H, V or U is not as said, or not finite.
    """
    check_gains(H)
    check_matrices("V", V, (len(H), H.shape[1], H.shape[4], None))
    check_matrices("U", U, (len(H), H.shape[1], H.shape[3], V.shape[3]))
    return reaching(H, V, U)


def reaching(H: Tensor, V: Tensor, U: Tensor) -> Tensor:
    """Return the :func:`leakage` of what was checked before."""
    basis = torch.linalg.qr(U)[0]
    reached = _energy(basis.mH[:, :, None] @ H.to(V.dtype) @ V[:, None]) / V.shape[2]
    return reached.sum(2) - reached.diagonal(dim1=1, dim2=2)


def _energy(matrices: Tensor) -> Tensor:
    return torch.view_as_real(matrices.resolve_conj()).square().sum((-3, -2, -1))


def _log2_det(matrices: Tensor) -> Tensor:
    return torch.linalg.slogdet(matrices)[1] / math.log(2)


def by_quality(H: Tensor, found: Transceivers) -> tuple[Tensor, Tensor, Tensor]:
    """Rotate each user's streams so that their errors are uncorrelated, the best stream first.

    A unitary rotation of a user's streams, the same at both ends, changes neither power nor sum of errors. This one
    diagonalises ``I - U_k^H H_kk V_k``, the error covariance where U are the MMSE filters of V.

    Args:
        H: (B, K, K, Nr, Nt) complex, the channels that ``found`` was designed for.
        found: transceivers whose filters are the MMSE filters of their precoders.

    Returns:
        V: (B, K, Nt, d) and U: (B, K, Nr, d) complex128, and the mean square error of each stream, (B, K, d) float64.
    """
    V, U = found.precoders, found.filters
    error = torch.eye(V.shape[3], dtype=V.dtype, device=V.device) - U.mH @ own(H.to(V.dtype)) @ V
    mse, rotation = torch.linalg.eigh((error + error.mH) / 2)
    return V @ rotation, U @ rotation, mse
