# SPDX-License-Identifier: Apache-2.0
"""The page of all landed records: it is that of the records that lie there, and every figure it links to exists."""

import re
import shutil
from pathlib import Path

import pytest

from semlink._errors import SemlinkError
from semlink.bench import record
from semlink.bench.results import BenchRecord
from semlink.report import overview

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "results.md"


@pytest.mark.skipif(not PAGE.exists(), reason="an installed package has no docs")
def test_the_page_in_docs_is_that_of_the_landed_records():
    assert PAGE.read_text(encoding="utf-8") == overview.markdown(ROOT / "results", PAGE)


@pytest.mark.skipif(not PAGE.exists(), reason="an installed package has no docs")
def test_what_the_page_links_to_is_there():
    text = PAGE.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (PAGE.parent / target).exists(), target
    anchors = set(re.findall(r'<a id="([^"]+)">', text))
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) == anchors
    assert len(anchors) == len(list((ROOT / "results").rglob("record.json")))


def test_a_number_of_a_record_stands_on_the_page_and_what_is_missing_is_said(small, tmp_path):
    found = small.record.model_copy(
        update={
            "cells": [
                each.model_copy(update={"state": "new"}) if i == 3 else each
                for i, each in enumerate(small.record.cells)
            ]
        }
    )
    record.write(tmp_path / "results" / "small" / "record.json", found)
    shutil.copyfile(ROOT / "tests" / "conftest.py", tmp_path / "results" / "small" / "accuracy.png")
    text = overview.markdown(tmp_path / "results", tmp_path / "docs" / "page.md")
    assert "## Does a key keep Eve out?" in text
    assert "](../results/small/accuracy.png)" in text
    row = next(row for row in found.rows if row.metric == "accuracy" and row.attack is None)
    table = text[re.search(r"\| accuracy[^|]*, Bob at", text, re.IGNORECASE).start() :]
    said = re.search(rf"^\| {row.name} \| ([\d.]+) \[", table, re.MULTILINE)
    lowest = min((r for r in found.rows if r.key[:3] == row.key[:3]), key=lambda r: r.snr_db)
    assert float(said[1]) == pytest.approx(lowest.shown.mean, abs=0.5)
    assert f"missing: 1 of {len(found.cells)} cells" in text


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(SemlinkError, match=r"holds no record\.json"):
        overview.markdown(tmp_path, tmp_path / "page.md")
    with pytest.raises(SemlinkError, match="there is no folder"):
        overview.markdown(tmp_path / "none", tmp_path / "page.md")
    (tmp_path / "record.json").write_text("{}")
    with pytest.raises(SemlinkError, match="is not a Semlink record"):
        overview.markdown(tmp_path, tmp_path / "page.md")


def test_a_bench_of_costs_shows_its_table():
    held = ROOT / "results" / "paper-a" / "table-1" / "record.json"
    if not held.exists():
        pytest.skip("an installed package has no results")
    found = record.read(held, BenchRecord)
    text = overview.markdown(held.parent, held.parent / "page.md")
    assert f"| deepjscc | {found.costs[0].parameters['total']:,} |" in text


def test_sections_of_one_title_are_told_apart(small):
    def users(variant, *counts):
        links = {str(i): {"options": {} if n is None else {"users": n}} for i, n in enumerate(counts)}
        return small.record.model_copy(update={"variant": variant, "title": "t", "recipe": {"links": links}})

    assert overview._titles([users("a", 2, 2), users("b", 3), users("c", 2, 3), users("d", None)]) == [
        "t, 2 users",
        "t, 3 users",
        "t, variant c",
        "t, variant d",
    ]
    assert overview._titles([users("a", 2)]) == ["t"]
