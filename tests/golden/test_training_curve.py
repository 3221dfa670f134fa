# SPDX-License-Identifier: Apache-2.0
"""A frozen training curve: fp32, embedded digits, preset smoke for ten epochs.

Other processors sum in another order, which training amplifies: from AVX2 to the AVX-512 of AMD losses differ by up to
0.012, accuracies of 250 images by up to 0.08. Losses may differ from the frozen ones by 0.03, which is what the last
epoch brings, accuracies by 0.095, three standard errors of one of a half. Freeze anew, after a change that is meant to
change results: ``python tests/golden/test_training_curve.py``.
"""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

FROZEN = Path(__file__).with_name("deepjscc-digits-smoke.json")


def curve(folder: Path) -> list[dict[str, float]]:
    from semlink.bench import PRESETS, make_recipe, train

    smoke = PRESETS["smoke"]
    longer = dataclasses.replace(smoke.grey, link=dataclasses.replace(smoke.grey.link, epochs=10))
    PRESETS["golden"] = dataclasses.replace(smoke, grey=longer)
    recipe = make_recipe("deepjscc", data="digits", preset="golden", precision="fp32")
    history = train(recipe, folder, torch.device("cpu")).history
    return [{"loss": row["losses"]["loss"], "accuracy": row["validation"]["accuracy"]} for row in history]


def test_the_curve_is_the_frozen_one(tmp_path):
    frozen = json.loads(FROZEN.read_text())
    measured = curve(tmp_path / "run")
    assert len(measured) == len(frozen)
    for now, then in zip(measured, frozen, strict=True):
        assert now["loss"] == pytest.approx(then["loss"], abs=0.03)
        assert now["accuracy"] == pytest.approx(then["accuracy"], abs=0.095)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        FROZEN.write_text(json.dumps(curve(Path(scratch) / "run"), indent=1) + "\n")
