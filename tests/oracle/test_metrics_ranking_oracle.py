# SPDX-License-Identifier: Apache-2.0
"""AUC and average precision against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from semlink.metrics import auc, average_precision


def sample(seed, images=300, draws=3, rate=0.1, decimals=1):
    """Scores with many ties, of images of which few have the attribute."""
    rng = np.random.default_rng(seed)
    present = rng.random(images) < rate
    scores = np.round(rng.normal(size=(draws, images)) + 1.2 * present, decimals)
    return torch.from_numpy(scores), torch.from_numpy(present.astype(np.float32))


@pytest.mark.parametrize("seed", range(4))
def test_estimates_agree_with_scikit_learn_ties_included(seed):
    scores, present = sample(seed)
    areas = [roc_auc_score(present, row) for row in scores]
    precisions = [average_precision_score(present, row) for row in scores]
    assert auc(scores, present).mean == pytest.approx(np.mean(areas), abs=1e-12)
    assert average_precision(scores, present).mean == pytest.approx(np.mean(precisions), abs=1e-12)
    assert auc(scores[0], present).mean == pytest.approx(areas[0], abs=1e-12)
