# SPDX-License-Identifier: Apache-2.0
"""Which schemes tests go over: what holds of a single link does not of a network of several users, and vice versa."""

from semlink.schemes import NetworkScheme, schemes

EVERY = [key for key in schemes.keys() if not key.startswith("test-")]  # noqa: SIM118
NETWORKS = [key for key in EVERY if issubclass(schemes[key], NetworkScheme)]
SINGLE_USER = [key for key in EVERY if key not in NETWORKS]
