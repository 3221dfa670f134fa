# SPDX-License-Identifier: Apache-2.0
"""The physical layer: power, modulation, channels, and the closed forms they are held to."""

from semlink.phy.analog import to_features, to_symbols
from semlink.phy.channel import AWGN, Channel, Rayleigh, Received, Rician, channels, equalise, noise, zero_force
from semlink.phy.constellation import Constellation, psk, qam
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

__all__ = [
    "AWGN",
    "Channel",
    "Constellation",
    "Rayleigh",
    "Received",
    "Rician",
    "capacity_bits",
    "channels",
    "equalise",
    "mean_power",
    "mutual_information_bits",
    "noise",
    "normalise_power",
    "peak_power",
    "psk",
    "q_function",
    "qam",
    "soft_mutual_information_bits",
    "symbol_error_rate_psk",
    "symbol_error_rate_qam",
    "to_features",
    "to_symbols",
    "transition_matrix",
    "zero_force",
]
