# SPDX-License-Identifier: Apache-2.0
"""Adversaries, one file each, found by key."""

from semlink.attacks.base import Attack, Tap, Threat, attacks
from semlink.attacks.baselines import class_means, mean_image
from semlink.attacks.generative import Generative
from semlink.attacks.inversion import Inversion

keys = attacks.keys

__all__ = ["Attack", "Generative", "Inversion", "Tap", "Threat", "attacks", "class_means", "keys", "mean_image"]
