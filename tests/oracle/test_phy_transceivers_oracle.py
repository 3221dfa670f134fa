# SPDX-License-Identifier: Apache-2.0
"""Clarabel, a conic solver, as an independent opinion on the min-max design.

Its side of the comparison is the one that benchmarks/transceivers.py times, which also wrote transceivers.json: the
largest MSEs that plain alternation with Clarabel reaches from the same starts.
"""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from semlink.phy import Interference, minimise_max_mse, minmax
from semlink.phy.transceivers import mean_square_errors, mmse_filters, random_directions, strongest_directions

pytest.importorskip("clarabel")
HERE = Path(__file__).parent
FROZEN = json.loads((HERE / "transceivers.json").read_text())
theirs = runpy.run_path(str(HERE.parents[1] / "benchmarks/transceivers.py"))


def draw(users: int, count: int, transmit: int, receive: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(users)
    return Interference(users, transmit, receive).draw(count, generator).to(torch.complex128)


@pytest.mark.parametrize(
    ("users", "transmit", "receive", "streams", "snr_db", "count"),
    [
        (2, 2, 2, 1, 0.0, 1000),
        (2, 2, 2, 1, 15.0, 1000),
        (3, 2, 2, 1, 15.0, 1000),
        (4, 2, 2, 1, 10.0, 1000),
        (2, 2, 2, 2, 5.0, 300),
        (3, 4, 3, 2, 15.0, 300),
        (2, 2, 2, 1, 30.0, 300),
    ],
)
@pytest.mark.parametrize("start", ["own", "random"])
def test_precoders_for_given_filters(users, transmit, receive, streams, snr_db, count, start):
    H = draw(users, count, transmit, receive)
    n0 = torch.full((count,), 10 ** (-snr_db / 10), dtype=torch.float64)
    first = strongest_directions(H, streams)
    U = mmse_filters(H, first if start == "own" else random_directions(H, streams, torch.Generator()), n0)
    V, gap = minmax.optimal_precoders(H, U, snr_db)
    solve = theirs["Precoders"](users, transmit, streams)
    expected = torch.from_numpy(
        np.stack([solve(gains, filters, float(n0[0])) for gains, filters in zip(H.numpy(), U.numpy(), strict=True)])
    )
    assert (expected.abs().square().sum((2, 3)) <= transmit * (1 + 1e-6)).all()
    ours, best = (mean_square_errors(H, precoders, U, n0).amax(1) for precoders in (V, expected))
    assert ((ours - best).abs() / best).quantile(0.99) < 1e-4
    assert (ours / best - 1 < 1e-3).all()
    assert gap.quantile(0.99) < 1e-3
    assert (V.abs().square().sum((2, 3)) <= transmit + 1e-9).all()
    assert (gap >= ours / best - 1 - 1e-6).all()  # the gap is a bound on what is left to gain


@pytest.mark.parametrize("case", FROZEN["largest_mse"])
def test_alternation_from_the_same_start(case):
    users, snr_db = case.split()
    expected = torch.tensor(FROZEN["largest_mse"][case])
    H = theirs["channels"](int(users), len(expected), FROZEN["seed"])
    found = minimise_max_mse(H, float(snr_db))
    assert len(expected) >= 256
    assert found.mse.amax(1).mean() < 1.01 * expected.mean()
    assert found.gap.quantile(0.99) < 1e-3
    # More rounds are no worse than more of theirs would be: the two end in different optima at times, not on average.
    longer = minimise_max_mse(H, float(snr_db), iterations=200)
    assert longer.mse.amax(1).mean() < 1.001 * expected.mean()


def test_what_was_frozen_is_what_the_benchmark_computes():
    for case, expected in FROZEN["largest_mse"].items():
        users, snr_db = case.split()
        found, _ = theirs["reference"](int(users), float(snr_db), 3, FROZEN["seed"])
        np.testing.assert_allclose(found, expected[:3], rtol=1e-3)
