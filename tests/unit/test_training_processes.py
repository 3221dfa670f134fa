# SPDX-License-Identifier: Apache-2.0
"""Several processes train as one does, and part well.

``python tests/unit/test_training_processes.py FOLDER DEVICES`` trains the network of the tests.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from semlink.data import Augmentation, ImageSet
from semlink.nn import Optimiser, Phase
from semlink.training import Batches, Fit, checkpoint, make_fabric, seeded, together

SEED, SHIFTED = 3, Augmentation(1, flip=True)
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def numbered(n: int) -> ImageSet:
    images = torch.randint(0, 256, (n, 1, 8, 8), generator=torch.Generator().manual_seed(n))
    return ImageSet(images.to(torch.uint8), torch.arange(n))


class Network(nn.Module):
    """Knows nothing of its batch (no batch norm); its noise is that of the seed, the step and the sample."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 16))
        self.decoder = nn.Linear(16, 5)
        self.step = 0

    def forward(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        del generator  # each process has its own
        noise = [torch.randn(16, generator=seeded(SEED, "noise", self.step, int(sample))) for sample in targets]
        self.step += 1
        answer = self.decoder(self.encoder(images) + torch.stack(noise))
        return {"loss": nn.functional.cross_entropy(answer, targets % 5), "norm": answer.detach().square().mean()}


def train(folder: Path, devices: int) -> None:
    """Take 36 steps, a row of three each."""
    fabric = make_fabric(torch.device("cpu"), "fp32", devices)
    with together(fabric):
        torch.manual_seed(SEED)
        network, optimiser = Network(), Optimiser("sgd", 0.1, 5e-4, schedule="triangle")
        batches = Batches([numbered(48)], 16, SHIFTED, SEED, fabric.global_rank, fabric.world_size)
        Fit(network, [Phase("only", network, optimiser)], batches, dict, 12, SEED, folder).run(fabric)


def run(*words: object) -> subprocess.CompletedProcess[str]:
    """Run this file; it comes back when every process has ended, for all of them hold its standard error."""
    command, alone = [sys.executable, *map(str, words)], {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=os.environ | alone)


def losses(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line)["losses"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    train(folder, 1)
    return folder


@pytest.mark.parametrize("launcher", [[], TORCHRUN], ids=["fabric", "torchrun"])
def test_two_processes_have_the_losses_of_one(alone, tmp_path, launcher):
    """To 1e-5: they sum in another order, which 36 steps carry on."""
    said = run(*launcher, __file__, tmp_path, 2)
    assert said.returncode == 0, said.stderr
    assert "terminate called" not in said.stderr
    shared, single = losses(tmp_path), losses(alone)
    assert len(shared) == len(single) == 12
    for of_two, of_one in zip(shared, single, strict=True):
        assert of_two == {name: pytest.approx(value, rel=1e-5) for name, value in of_one.items()}
    assert single[-1]["loss"] < 0.9 * single[0]["loss"]  # it learns, so an error would grow
    found, wanted = checkpoint.load(tmp_path), checkpoint.load(alone)
    assert found is not None
    assert wanted is not None
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-5, atol=1e-6)  # weights and momentum


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]))
