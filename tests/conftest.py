# SPDX-License-Identifier: Apache-2.0
"""Skips, visibly, the tests that need published data which is not there; undoes what training sets for its process."""

import os
from collections.abc import Iterator

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
