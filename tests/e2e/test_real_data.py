# SPDX-License-Identifier: Apache-2.0
"""The main job's parts on the published image sets, preset smoke."""

import json

import pytest
import torch

from semlink.attacks import Threat
from semlink.bench import attack, evaluate, make_recipe, train

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("data", "task", "perceptual"),
    [
        pytest.param("mnist", "classify", "none", marks=pytest.mark.real_data("mnist")),
        pytest.param("fashion-mnist", "reconstruct", "none", marks=pytest.mark.real_data("fashion-mnist")),
        pytest.param("cifar10", "classify", "vgg16", marks=pytest.mark.real_data("cifar10", "weights")),
        pytest.param("cifar10", "reconstruct", "none", marks=pytest.mark.real_data("cifar10")),
        pytest.param("celeba", "attributes", "none", marks=pytest.mark.real_data("celeba")),
        pytest.param("celeba", "reconstruct", "none", marks=pytest.mark.real_data("celeba")),
    ],
)
def test_a_link_is_trained_evaluated_and_attacked(data, task, perceptual, tmp_path):
    recipe = make_recipe("deepjscc", data=data, task=task, preset="smoke", precision="fp32")
    trained = train(recipe, tmp_path / "run", CPU)
    assert trained.recipe.task == task
    first, last = (row["losses"]["loss"] for row in (trained.history[0], trained.history[-1]))
    assert last < first
    measured = evaluate(tmp_path / "run", [12.0], 2, 0, CPU)
    utility = measured.points[0]["psnr_db" if task == "reconstruct" else "accuracy"]
    assert utility.low < utility.mean < utility.high
    assert measured.power["largest_deviation_from_1"] < 1e-6
    if task == "attributes":
        names = [name for name in measured.points[0] if name.startswith("balanced_accuracy.")]
        assert len(names) == 40
        assert "balanced_accuracy.Male" in names
    path = attack(tmp_path / "run", Threat(12.0), CPU, perceptual=perceptual)
    record = json.loads(path.read_text())
    assert set(record["points"][0]) - {"snr_db"} == {"psnr_db", "ssim", "mi_leakage"} | (
        {"lpips"} if perceptual == "vgg16" else set()
    )
    floors = {"mean_image", "class_mean"} if task == "classify" else {"mean_image"}
    assert set(record["baselines"]) == floors
