# SPDX-License-Identifier: Apache-2.0
"""Accuracy and balanced accuracy by hand."""

import math

import pytest
import torch

from semlink._errors import SemlinkError
from semlink.metrics import (
    accuracy,
    attribute_balanced_accuracy,
    balanced_accuracy,
    correct,
    correct_attributes,
)


def test_right_wrong_and_nan():
    logits = torch.tensor([[0.1, 2.0], [3.0, 1.0], [math.nan, math.nan], [math.nan, 0.0]])
    assert correct(logits, torch.tensor([1, 1, 0, 0])).tolist() == [1, 0, 0, 0]
    answers = correct_attributes(torch.tensor([[1.0, -1.0, math.nan]]), torch.tensor([[1, 1, 0]]))
    assert answers.tolist() == [[1, 0, 0]]
    assert answers.dtype == torch.float32


def test_balanced_accuracy_is_the_mean_of_class_means_whatever_their_sizes():
    right = torch.tensor([1.0] * 90 + [0.0] * 10)
    labels = torch.tensor([0] * 90 + [1] * 10)  # always answering 0
    assert accuracy(right).mean == pytest.approx(0.9)
    assert balanced_accuracy(right, labels).mean == pytest.approx(0.5)


def test_all_right_is_not_certain():
    ones, labels = torch.ones(3, 100), torch.arange(100) % 2
    z2 = 1.959963985**2
    for interval in (accuracy(ones), balanced_accuracy(ones, labels)):
        assert interval.mean == 1
        assert interval.high == 1
        assert interval.low == pytest.approx(100 / (100 + z2))
    lopsided = balanced_accuracy(ones, torch.tensor([0] * 98 + [1] * 2))
    assert lopsided.low < 0.8  # two images of a class say little, however many the other has


def test_a_class_of_one_image_widens_the_interval_and_ends_stay_in_range():
    right = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0, 1.0])
    interval = balanced_accuracy(right, torch.tensor([0, 0, 0, 0, 0, 1]))
    assert interval.mean == pytest.approx(0.9)
    assert interval.high == 1
    assert 0 <= interval.low < 0.4


def test_an_attribute_that_all_images_share_counts_one_class():
    right = torch.tensor([[1.0], [1.0], [0.0], [1.0]])
    assert attribute_balanced_accuracy(right, torch.ones(4, 1))[0].mean == pytest.approx(0.75)


def test_mistakes_are_named():
    with pytest.raises(SemlinkError, match=r"\(B, classes\) and \(B,\)"):
        correct(torch.ones(3, 2), torch.ones(4))
    with pytest.raises(SemlinkError, match=r"\(B, A\) twice"):
        correct_attributes(torch.ones(3, 2), torch.ones(3, 4))
    with pytest.raises(SemlinkError, match="not percent"):
        accuracy(torch.tensor([91.0, 92.0]))
    with pytest.raises(SemlinkError, match="one label per image"):
        balanced_accuracy(torch.ones(3), torch.ones(4))
    with pytest.raises(SemlinkError, match="answers to 2 attributes"):
        attribute_balanced_accuracy(torch.ones(3, 2), torch.ones(3, 4))
