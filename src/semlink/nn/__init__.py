# SPDX-License-Identifier: Apache-2.0
"""Network blocks shared by schemes and attacks."""

from semlink.nn.coders import Backbone, Classifier, Encoder, ImageDecoder
from semlink.nn.objective import Optimiser, Phase
from semlink.nn.perceptual import Perceptual

__all__ = ["Backbone", "Classifier", "Encoder", "ImageDecoder", "Optimiser", "Perceptual", "Phase"]
