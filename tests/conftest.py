# SPDX-License-Identifier: Apache-2.0
"""Skips, visibly, the tests that need published data which is not there; undoes what training sets for its process."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _denormals() -> Iterator[None]:
    """Training flushes denormals for the whole process, which property tests of other rooms refuse to run under."""
    yield
    torch.set_flush_denormal(False)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Honour ``@pytest.mark.real_data("cifar10", ...)``: the sets named must be complete in SEMLINK_DATA."""
    for mark in item.iter_markers("real_data"):
        if not os.environ.get("SEMLINK_DATA"):
            pytest.skip("SEMLINK_DATA is not set")
        from semlink.data import status

        complete = {found.name for found in status() if found.state == "complete"}
        if lacking := sorted(set(mark.args) - complete):
            pytest.skip(f"SEMLINK_DATA lacks {', '.join(lacking)}")


@pytest.fixture
def pictured(tmp_path) -> Callable[[Path, str, tuple[int, ...]], Path]:
    """Puts a landed bench into a store whose cells hold noise in place of pictures, and returns the bench's folder."""
    from safetensors.torch import save_file

    from semlink.bench.store import Store

    def put(landed: Path, step: str, shape: tuple[int, ...]) -> Path:
        store = Store(tmp_path / "store")
        folder = shutil.copytree(landed, store.bench("landed"))
        noise = torch.Generator().manual_seed(0)
        sent, ranked = (torch.rand(n, *shape, generator=noise) for n in (10, 3))
        for cell in json.loads((folder / "record.json").read_text())["cells"]:
            if cell["step"] == step and cell["attack"] != "inference":
                held = {"originals": sent, "ranked": torch.arange(3), "ranked_originals": ranked}
                held |= {"drawn": torch.rand(sent.shape, generator=noise)}
                held |= {"ranked_drawn": torch.rand(ranked.shape, generator=noise)}
                store.folder(cell["name"]).mkdir(parents=True)
                save_file(held, store.folder(cell["name"]) / f"{step}.safetensors")
        return folder

    return put
