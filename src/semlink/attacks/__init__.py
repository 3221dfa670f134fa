# SPDX-License-Identifier: Apache-2.0
"""Adversaries, one file each; those that train a decoder are found by key."""

from semlink.attacks.base import Attack, Drawing, Grant, Inference, Tap, Threat, attacks, medium_of
from semlink.attacks.baselines import class_means, mean_image
from semlink.attacks.codebook import CodebookInversion
from semlink.attacks.cross_link import CrossLink, Neighbour
from semlink.attacks.ensemble import EnsembleInversion
from semlink.attacks.generative import Generative
from semlink.attacks.inference import SymbolInference, delivered_floor
from semlink.attacks.invariant import SetInversion, SortedInversion
from semlink.attacks.inversion import Inversion, PlainInversion, UNetInversion
from semlink.attacks.optimisation import Explained, Learned, Smooth, encoder_of, explain
from semlink.attacks.search import LearnedSearch, SmoothSearch
from semlink.attacks.shuffling import FoundKey, ciphertext_only, fraction_correct, known_plaintext, recovery_curve

keys = attacks.keys

__all__ = [
    "Attack",
    "CodebookInversion",
    "CrossLink",
    "Drawing",
    "EnsembleInversion",
    "Explained",
    "FoundKey",
    "Generative",
    "Grant",
    "Inference",
    "Inversion",
    "Learned",
    "LearnedSearch",
    "Neighbour",
    "PlainInversion",
    "SetInversion",
    "Smooth",
    "SmoothSearch",
    "SortedInversion",
    "SymbolInference",
    "Tap",
    "Threat",
    "UNetInversion",
    "attacks",
    "ciphertext_only",
    "class_means",
    "delivered_floor",
    "encoder_of",
    "explain",
    "fraction_correct",
    "keys",
    "known_plaintext",
    "mean_image",
    "medium_of",
    "recovery_curve",
]
