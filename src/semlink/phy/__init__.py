# SPDX-License-Identifier: Apache-2.0
"""The physical layer: power, modulation, channels, and the closed forms they are held to."""

from semlink.phy.alignment import (
    alignment_feasible,
    maximise_sinr,
    minimise_leakage,
    minimise_sum_mse,
    zero_force_interference,
)
from semlink.phy.analog import to_features, to_symbols
from semlink.phy.channel import (
    AWGN,
    MAX_DB,
    Channel,
    Rayleigh,
    Received,
    Rician,
    channels,
    equalise,
    noise,
    noise_variance,
    zero_force,
)
from semlink.phy.constellation import Constellation, psk, qam
from semlink.phy.designs import designs
from semlink.phy.interfered import Interfered, Overheard
from semlink.phy.interference import Interference, local_csi, normalise_block, pilot_error
from semlink.phy.minmax import minimise_max_mse
from semlink.phy.power import mean_power, normalise_power, peak_power
from semlink.phy.theory import (
    capacity_bits,
    mutual_information_bits,
    q_function,
    soft_mutual_information_bits,
    symbol_error_rate_psk,
    symbol_error_rate_qam,
    transition_matrix,
)
from semlink.phy.transceivers import Transceivers, by_quality, leakage, sum_rate

__all__ = [
    "AWGN",
    "MAX_DB",
    "Channel",
    "Constellation",
    "Interfered",
    "Interference",
    "Overheard",
    "Rayleigh",
    "Received",
    "Rician",
    "Transceivers",
    "alignment_feasible",
    "by_quality",
    "capacity_bits",
    "channels",
    "designs",
    "equalise",
    "leakage",
    "local_csi",
    "maximise_sinr",
    "mean_power",
    "minimise_leakage",
    "minimise_max_mse",
    "minimise_sum_mse",
    "mutual_information_bits",
    "noise",
    "noise_variance",
    "normalise_block",
    "normalise_power",
    "peak_power",
    "pilot_error",
    "psk",
    "q_function",
    "qam",
    "soft_mutual_information_bits",
    "sum_rate",
    "symbol_error_rate_psk",
    "symbol_error_rate_qam",
    "to_features",
    "to_symbols",
    "transition_matrix",
    "zero_force",
    "zero_force_interference",
]
