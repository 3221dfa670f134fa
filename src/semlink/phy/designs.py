# SPDX-License-Identifier: Apache-2.0
"""The transceiver designs by name; all are called as ``design(H, snr_db, streams)``."""

from collections.abc import Callable

from semlink.phy.alignment import maximise_sinr, minimise_leakage, minimise_sum_mse, zero_force_interference
from semlink.phy.minmax import minimise_max_mse
from semlink.phy.transceivers import Transceivers

designs: dict[str, Callable[..., Transceivers]] = {
    "max-sinr": maximise_sinr,
    "min-leakage": minimise_leakage,
    "min-max-mse": minimise_max_mse,
    "sum-mse": minimise_sum_mse,
    "zero-forcing": zero_force_interference,
}
