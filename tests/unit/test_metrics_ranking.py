# SPDX-License-Identifier: Apache-2.0
import math
from statistics import NormalDist

import pytest
import torch

from semlink._errors import SemlinkError
from semlink.metrics import auc, average_precision


def normal_scores(generator, images, positives, shift, draws=1):
    """Scores N(0, 1), moved by ``shift`` where the attribute is: the true AUC is Phi(shift / sqrt(2))."""
    present = torch.arange(images) < positives
    own = torch.randn(images, generator=generator) + shift * present
    return own + 0.5 * torch.randn(draws, images, generator=generator), present


def test_a_constant_score_has_half_an_auc_and_the_share_of_positives_as_precision():
    present = torch.arange(50) < 8
    assert auc(torch.zeros(50), present).mean == 0.5
    assert average_precision(torch.zeros(50), present).mean == pytest.approx(8 / 50)


def test_a_perfect_order_scores_one_and_its_interval_does_not_collapse():
    present = torch.arange(60) < 20
    scores = -torch.arange(60.0)
    found = auc(scores, present)
    assert (found.mean, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(1 - math.log(20) / 20)
    assert average_precision(scores, present).mean == 1.0
    assert auc(-scores, present).mean == 0.0


def test_precision_by_hand():
    # best first: 1 0 1 0, so precision is 1 at the first positive and 2/3 at the second
    found = average_precision(torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([1, 0, 1, 0]))
    assert found.mean == pytest.approx((1 + 2 / 3) / 2)


def test_the_interval_of_an_auc_covers_the_truth_as_often_as_it_says():
    generator, shift, trials = torch.Generator().manual_seed(0), 1.5, 400
    truth = NormalDist().cdf(shift / math.sqrt(2 * (1 + 0.25)))  # each score has its own draw's noise too
    hits = 0
    for _ in range(trials):
        found = auc(*normal_scores(generator, 240, 40, shift))
        hits += found.low <= truth <= found.high
    standard_error = math.sqrt(0.95 * 0.05 / trials)
    assert abs(hits / trials - 0.95) < 3.5 * standard_error


def test_the_interval_of_a_precision_covers_a_long_runs_value():
    generator = torch.Generator().manual_seed(1)
    truth = average_precision(*normal_scores(generator, 200_000, 40_000, 1.0)).mean
    trials, hits = 150, 0
    for _ in range(trials):
        found = average_precision(*normal_scores(generator, 300, 60, 1.0))
        hits += found.low <= truth <= found.high
    # the percentile bootstrap of 300 images covers a little less than it says; 0.90 is what is asked of it here
    assert hits / trials > 0.90 - 3 * math.sqrt(0.9 * 0.1 / trials)


def test_draws_of_an_image_are_averaged_and_do_not_count_as_images():
    generator = torch.Generator().manual_seed(2)
    scores, present = normal_scores(generator, 400, 100, 1.0)
    once, repeated = auc(scores[0], present), auc(scores[0].expand(8, -1), present)
    assert repeated == once
    assert average_precision(scores[0].expand(8, -1), present) == average_precision(scores[0], present)
    assert once.n == 400


def test_the_bootstrap_is_the_same_each_time():
    scores, present = normal_scores(torch.Generator().manual_seed(3), 100, 30, 1.0)
    assert average_precision(scores, present) == average_precision(scores, present)


@pytest.mark.parametrize("measure", [auc, average_precision])
@pytest.mark.parametrize(
    ("scores", "present", "said"),
    [
        (torch.zeros(4), torch.zeros(4), "present in no image, or in all"),
        (torch.zeros(4), torch.ones(4), "present in no image, or in all"),
        (torch.zeros(4), torch.ones(5), r"scores \(4,\) and attribute \(5,\)"),
        (torch.zeros(2, 3, 4), torch.ones(4), "expected"),
        (torch.full((4,), torch.nan), torch.tensor([0, 1, 0, 1]), "a score is NaN"),
    ],
)
def test_what_cannot_be_ranked(measure, scores, present, said):
    with pytest.raises(SemlinkError, match=said):
        measure(scores, present)
