# SPDX-License-Identifier: Apache-2.0
"""A frozen training curve: fp32, embedded digits, preset smoke for ten epochs.

Losses may differ from the frozen ones by 0.01, accuracies by 0.03 (of 250 images): other processors sum in another
order, which training amplifies. It runs with AVX2 alone, in a process of its own, since AVX-512 would take it as far as
half as much noise again in the channel. Freeze anew, after a change that is meant to change results:
``python tests/golden/test_training_curve.py``.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

FROZEN = Path(__file__).with_name("deepjscc-digits-smoke.json")
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}  # read once, when torch first computes


def curve() -> list[dict[str, float]]:
    """Train, and return the loss and the accuracy of each epoch."""
    from semlink.bench import PRESETS, make_recipe, train

    smoke = PRESETS["smoke"]
    longer = dataclasses.replace(smoke.grey, link=dataclasses.replace(smoke.grey.link, epochs=10))
    PRESETS["golden"] = dataclasses.replace(smoke, grey=longer)
    recipe = make_recipe("deepjscc", data="digits", preset="golden", precision="fp32")
    with tempfile.TemporaryDirectory() as folder:
        history = train(recipe, Path(folder) / "run", torch.device("cpu")).history
    return [{"loss": row["losses"]["loss"], "accuracy": row["validation"]["accuracy"]} for row in history]


def measured() -> list[dict[str, float]]:
    """Return the curve of a process with AVX2 alone."""
    command = [sys.executable, __file__, "--curve"]
    said = subprocess.run(command, check=True, capture_output=True, encoding="utf-8", env=os.environ | AVX2)
    return json.loads(said.stdout)


def test_the_curve_is_the_frozen_one():
    frozen, found = json.loads(FROZEN.read_text()), measured()
    assert len(found) == len(frozen)
    for now, then in zip(found, frozen, strict=True):
        assert now["loss"] == pytest.approx(then["loss"], abs=0.01)
        assert now["accuracy"] == pytest.approx(then["accuracy"], abs=0.03)


if __name__ == "__main__":
    if "--curve" in sys.argv:
        print(json.dumps(curve()))
    else:
        FROZEN.write_text(json.dumps(measured(), indent=1) + "\n")
