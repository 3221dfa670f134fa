# SPDX-License-Identifier: Apache-2.0
"""The page of speeds is that of the records that lie in results/speed."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "speed.md"


@pytest.mark.skipif(not PAGE.exists(), reason="an installed package has no docs")
def test_the_page_in_docs_is_that_of_the_landed_records():
    spec = importlib.util.spec_from_file_location("speed_page", ROOT / "benchmarks" / "page.py")
    assert spec is not None
    assert spec.loader is not None
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    assert PAGE.read_text(encoding="utf-8") == page.markdown()
