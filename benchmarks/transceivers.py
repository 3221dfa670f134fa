# SPDX-License-Identifier: Apache-2.0
"""How fast is the min-max design, and how good? ``python benchmarks/transceivers.py [--starts]``

Channels a second on one thread, for 2 x 2 antennas and one stream, against the same alternation channel by channel:
MMSE filters in closed form, precoders by Clarabel on matrices that are laid out once. Both start from the strongest
directions; the alternation stops when a round lowers the largest MSE by less than one part in 10^4. Warm-up is the
first call less a later one, that is, what compiling takes; it pays off after the number of channels beside it.
``--starts`` compares one start with nine instead. ``--freeze`` writes the alternation's results to
tests/oracle/transceivers.json.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import clarabel
import numpy as np
import torch
from scipy.sparse import csc_matrix
from torch import Tensor

from semlink.phy import Interference, minimise_max_mse
from semlink.phy.transceivers import strongest_directions

FROZEN = Path(__file__).parents[1] / "tests/oracle/transceivers.json"
CASES = [(users, snr_db) for users in (2, 3, 4) for snr_db in (0.0, 15.0)]
OURS, THEIRS, KEPT = 8192, 128, 256  # channels that are timed, and those whose results are frozen
TIMES = 3  # of which the fastest counts, on either side


class Precoders:
    """The convex half for one channel: precoders of least largest MSE for given filters, by Clarabel.

        min r  subject to  |(G_kj V_j - I [k = j] for all j, sqrt(N0) U_k)| <= r,  |V_k| <= sqrt(Nt)

    Variables are r, then Re and Im of every column of every V_k. Only values change from call to call.

    Args:
        users: K.
        antennas: Nt.
        streams: d.
    """

    def __init__(self, users: int, antennas: int, streams: int = 1) -> None:
        self.users, self.antennas, self.streams = users, antennas, streams
        self.columns = 1 + 2 * users * antennas * streams
        self.error_rows, self.power_rows = 2 + 2 * users * streams**2, 1 + 2 * antennas * streams
        self.A = np.zeros((users * (self.error_rows + self.power_rows), self.columns))
        self.b = np.zeros(len(self.A))
        for k in range(users):
            self.A[k * self.error_rows, 0] = -1
            first = users * self.error_rows + k * self.power_rows
            self.b[first] = antennas**0.5
            size = self.power_rows - 1
            self.A[first + 1 : first + 1 + size, 1 + k * size : 1 + (k + 1) * size] = -np.eye(size)
        self.solver = None

    def __call__(self, H: np.ndarray, U: np.ndarray, n0: float) -> np.ndarray:
        """Return V: (K, Nt, d), from H: (K, K, Nr, Nt) and U: (K, Nr, d)."""
        users, antennas, streams = self.users, self.antennas, self.streams
        for k in range(users):
            row = k * self.error_rows + 1
            G = U[k].conj().T @ H[k]
            blocks = -np.concatenate([np.concatenate([G.real, -G.imag], 2), np.concatenate([G.imag, G.real], 2)], 1)
            for j in range(users):
                for c in range(streams):
                    column = 1 + 2 * antennas * (j * streams + c)
                    self.A[row : row + 2 * streams, column : column + 2 * antennas] = blocks[j]
                    self.b[row + c] = -1.0 if j == k else 0.0
                    row += 2 * streams
            self.b[row] = (n0 * (abs(U[k]) ** 2).sum()) ** 0.5
        if self.solver is None:
            self.rows, self.order = np.nonzero((self.A != 0).T)[::-1]
            starts = np.searchsorted(self.order, np.arange(self.columns + 1))
            pattern = csc_matrix((self.A[self.rows, self.order], self.rows, starts), self.A.shape)
            settings = clarabel.DefaultSettings()
            settings.verbose = settings.presolve_enable = False
            cones = [
                clarabel.SecondOrderConeT(rows) for rows in (self.error_rows, self.power_rows) for _ in range(users)
            ]
            goal = np.eye(1, self.columns)[0]
            empty = csc_matrix((self.columns, self.columns))
            self.solver = clarabel.DefaultSolver(empty, goal, pattern, self.b, cones, settings)
        else:
            self.solver.update(A=self.A[self.rows, self.order], b=self.b)
        x = np.asarray(self.solver.solve().x)[1:].reshape(users, streams, 2, antennas)
        return (x[:, :, 0] + 1j * x[:, :, 1]).swapaxes(1, 2)


def best_filters(H: np.ndarray, V: np.ndarray, n0: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the MMSE filters (K, Nr, d) and their MSEs (K,) of one channel."""
    users, receive, streams = len(V), H.shape[2], V.shape[2]
    arriving = (H @ V[None]).swapaxes(1, 2).reshape(users, receive, users * streams)
    wanted = np.stack([arriving[k, :, k * streams : (k + 1) * streams] for k in range(users)])
    U = np.linalg.solve(arriving @ arriving.conj().swapaxes(1, 2) + n0 * np.eye(receive), wanted)
    return U, streams - (U.conj() * wanted).real.sum((1, 2))


def alternate(solve: Precoders, H: np.ndarray, V: np.ndarray, n0: float, rounds: int = 400) -> tuple[float, int]:
    """Alternate from V on one channel; return the largest MSE and the rounds it took."""
    U, mse = best_filters(H, V, n0)
    before = mse.max()
    for number in range(1, rounds + 1):
        V = solve(H, U, n0)
        U, mse = best_filters(H, V, n0)
        if mse.max() > before * (1 - 1e-4):
            return mse.max(), number
        before = mse.max()
    return before, rounds


def reference(users: int, snr_db: float, count: int, seed: int, times: int = 1) -> tuple[np.ndarray, float]:
    """Return the largest MSE of the alternation on each of the first channels, and channels a second."""
    H = channels(users, count, seed).to(torch.complex128)
    starts = strongest_directions(H, 1).numpy()
    solve, found = Precoders(users, 2), []
    alternate(solve, H[0].numpy(), starts[0], 1.0, 1)  # lays the matrices out

    def run() -> None:
        found[:] = [alternate(solve, *one, 10 ** (-snr_db / 10))[0] for one in zip(H.numpy(), starts, strict=True)]

    seconds = timed(run, times)
    return np.array(found), count / seconds


def channels(users: int, count: int, seed: int) -> Tensor:
    """Draw H, whose first channels are the same for any count."""
    one = Interference(users, 2, 2)
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([one.draw(32, generator) for _ in range((count + 31) // 32)])[:count]


def timed(call: Callable[[], object], times: int = 1) -> float:
    """Return the seconds that a call takes, the least of several times."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def speed() -> None:
    """Print the table of speeds."""
    print("K   SNR  alternation          eager                      compiled")
    print("    dB   a second  max MSE    a second   times  max MSE  a second   times  max MSE  warm-up, from")
    for users, snr_db in CASES:
        theirs, per_second = reference(users, snr_db, THEIRS, 0, TIMES)
        line = f"{users}  {snr_db:4.0f}  {per_second:9.1f}  {theirs.mean():.5f}"
        H = channels(users, OURS, 0)
        eager_rate = 0.0
        for compiled in (False, True):
            design = lambda: minimise_max_mse(H, snr_db, compiled=compiled)  # noqa: B023, E731
            first = timed(design)
            rate = OURS / timed(design, TIMES)
            same = design().mse[:THEIRS].amax(1).mean()
            line += f"  {rate:9.0f}  {rate / per_second:6.0f}  {same:.5f}"
            if compiled and snr_db == CASES[0][1]:  # the next SNR finds it warm
                warm = first - OURS / rate
                line += f"  {warm:5.1f} s, {warm / (1 / eager_rate - 1 / rate):.0f}"
            eager_rate = rate
        print(line, flush=True)


def starts() -> None:
    """Print what eight more starts gain."""
    for users in (2, 3, 4, 5):
        H = channels(users, 1024, 0)
        one, nine = (minimise_max_mse(H, 15.0, starts=count).mse.amax(1) for count in (1, 9))
        share = 1 - nine.mean() / one.mean()
        print(f"K = {users}, 15 dB: one start {one.mean():.5f}, nine {nine.mean():.5f}, {100 * share:.1f} % less")


def freeze() -> None:
    """Write what the alternation reaches."""
    found = {f"{users} {snr_db:g}": reference(users, snr_db, KEPT, 1)[0].round(8).tolist() for users, snr_db in CASES}
    FROZEN.write_text(json.dumps({"seed": 1, "largest_mse": found}) + "\n")


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", action="store_true")
    parser.add_argument("--freeze", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    (starts if asked.starts else freeze if asked.freeze else speed)()


if __name__ == "__main__":
    main()
