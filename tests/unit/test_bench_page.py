# SPDX-License-Identifier: Apache-2.0
"""The page of a bench: every number of its record, in three forms, with the paper's claims beside them."""

import csv
import html
import io
import json
import re
import shutil
from pathlib import Path

import pytest

from semlink._errors import SemlinkError
from semlink.bench import record
from semlink.bench.results import BenchRecord
from semlink.report import bench_page
from semlink.report.bench import tables

FIG3 = Path(__file__).parents[2] / "results" / "paper-b" / "fig3"


@pytest.fixture(scope="module")
def found() -> BenchRecord:
    return record.read(FIG3 / "record.json", BenchRecord)


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    files = bench_page.write(FIG3, tmp_path_factory.mktemp("page") / "fig3.html")
    assert [path.suffix for path in files] == [".html", ".csv", ".tex"]
    return files[0].read_text()


def test_the_page_needs_nothing_but_itself(page):
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "http" not in re.sub(r"data:image/png;base64,[^\"]*", "", page)
    assert page.count("<img src=") == len(list(FIG3.glob("*.png")))


def test_the_figures_of_the_recipe_come_first(page):
    shown = re.findall(r'alt="(.*?); the numbers', page)
    assert shown == ["User 1, MNIST", "User 2, Fashion-MNIST", "Both users", "received-0-dB"]


def test_every_number_is_on_the_page(found, page):
    text = html.unescape(re.sub(r"<[^>]+>", " ", page))
    for table in tables(found):
        for row in table[1:]:
            for cell in row[1:]:
                mean, *interval = cell.replace("*", "").split("[")
                assert mean.strip() in text
                assert not interval or f"[{', '.join(interval[0].replace(',', ' ').split())}" in text


def test_the_csv_has_every_number_of_the_record(found):
    lines = list(csv.DictReader(io.StringIO(bench_page.as_csv(found))))
    assert len(lines) == len(found.rows)
    for line, row in zip(lines, found.rows, strict=True):
        assert (line["link"], line["metric"], float(line["snr_db"])) == (row.link, row.metric, row.snr_db)
        assert [float(line[key]) for key in ("mean", "low", "high")] == [row.shown.mean, row.shown.low, row.shown.high]
        assert (line["attack"], line["seeds"]) == ("", "0 1 2")


def test_latex_by_hand():
    table = [
        ["Accuracy (%), Bob at", "4 dB", "any SNR", "n"],
        ["a_b", "91.30 [90.87, 91.72]", "missing", "3 seeds"],
        ["minus a_b:", "", "", ""],
        ["  c", "-3.41 [-4.55, -2.26] *", " 0.50 [ 0.40,  0.60]", "3 seeds, paired"],
    ]
    assert bench_page.as_latex(table).splitlines() == [
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"Accuracy (\%), Bob at & 4 dB & any SNR \\",
        r"\midrule",
        r"a\_b & $91.30 \pm 0.42$ & missing \\",
        r"minus a\_b: &  &  \\",
        r"c & $-3.41 \pm 1.15^{*}$ & $0.50 \pm 0.10$ \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_claims_that_rest_on_this_bench_stand_on_its_page(page):
    assert "IRSC with CSI at the receiver beats CSI-free for both users." in page
    assert "falls as users are added" not in page  # of another bench
    assert "comparisons bear it out" in page


def test_how_to_make_it_again(page, found):
    assert "<pre>semlink bench paper-b/fig3</pre>" in page
    assert found.recipe_sha256 in page


def test_names_are_escaped(tmp_path):
    held = json.loads((FIG3 / "record.json").read_text())
    held["title"] = "<script>alert(1)</script>"
    (tmp_path / "record.json").write_text(json.dumps(held))
    page, *_ = bench_page.write(tmp_path, tmp_path / "page.html")
    assert "<script>" not in page.read_text()


def test_what_is_missing_is_said(tmp_path):
    held = json.loads((FIG3 / "record.json").read_text())
    held["cells"][0]["state"] = "new"
    (tmp_path / "record.json").write_text(json.dumps(held))
    page, *_ = bench_page.write(tmp_path, tmp_path / "page.html")
    assert f"1 of {len(held['cells'])} cells are missing" in page.read_text()


def test_a_bench_without_numbers(tmp_path):
    held = json.loads((FIG3 / "record.json").read_text()) | {"rows": []}
    (tmp_path / "record.json").write_text(json.dumps(held))
    with pytest.raises(SemlinkError, match="has no numbers yet; run 'semlink bench paper-b/fig3' first"):
        bench_page.write(tmp_path, tmp_path / "page.html")
    shutil.rmtree(tmp_path)
    with pytest.raises(SemlinkError):
        bench_page.write(tmp_path, tmp_path / "page.html")
