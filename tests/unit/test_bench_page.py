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
from safetensors.torch import load_file, save_file

from semlink._errors import SemlinkError
from semlink.bench import pictures, record
from semlink.bench.results import BenchRecord
from semlink.report import bench_page
from semlink.report.bench import tables

RESULTS = Path(__file__).parents[2] / "results"
FIG3, FACES = RESULTS / "paper-b" / "fig3", RESULTS / "paper-a" / "leakage-faces"


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
    own = ["User 1, MNIST", "User 2, Fashion-MNIST", "Both users"]
    assert shown == [*own, *(f"{title}: SSIM by equation 8 of paper B" for title in own), "received 0 dB"]


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


# Pictures


def rows_of(page: str) -> list[list[str]]:
    """Return the alternative texts of the pictures, row by row."""
    return [re.findall(r'alt="(.*?)"', row) for row in re.findall("<tr><th.*?</tr>", page, re.DOTALL) if "<img" in row]


def test_test_images_of_the_store_are_on_the_page(tmp_path, pictured, found):
    folder = pictured(FIG3, "evaluate", (2, 1, 28, 28))
    shutil.copyfile(folder / "mnist.png", folder / pictures.FILE)  # the same pictures as a figure
    file, *_ = bench_page.write(folder, tmp_path / "page.html")
    page = file.read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    sent, *links = rows_of(page)
    assert sent == [f"test image {i}, as sent" for i in range(1, 9)]
    assert len(links) == len(found.recipe["links"])
    for name, said in zip(found.recipe["links"], links, strict=True):
        assert [each.split(":")[0] for each in said[:8]] == [f"test image {i}" for i in range(1, 9)]
        assert [each.split(", PSNR")[0] for each in said[8:]] == [
            f"{of}{rank} {word} {name}"
            for rank in ("best", "median", "worst")
            for of, word in (("sent: ", "for"), ("", "of"))
        ]
    assert page.count("<img src=") == len(list(FIG3.glob("*.png"))) + 8 + len(links) * (8 + 6)
    assert "Users of a network send at once" in page
    cell = next(cell for cell in found.cells if (cell.step, cell.link, cell.seed) == ("evaluate", "csi-free", 0))
    held = load_file(folder.parents[1] / "cells" / cell.name / "evaluate.safetensors")
    error = (held["originals"][1, 0] - held["drawn"][1, 0]).square().mean()  # image 3: the first of the second group
    assert f"test image 3: csi-free, PSNR {-10 * error.log10():.1f} dB" in page


def test_what_was_not_kept_is_said_and_what_is_not_there_is_not(tmp_path, pictured, found):
    folder = pictured(FIG3, "evaluate", (2, 1, 28, 28))
    first, second = (
        folder.parents[1] / "cells" / cell.name / "evaluate.safetensors"
        for link in ("csi-free", "irsc-csir")
        for cell in found.cells
        if (cell.step, cell.link, cell.seed) == ("evaluate", link, 0)
    )
    save_file({name: each for name, each in load_file(first).items() if "ranked" not in name}, first)
    second.unlink()
    page, *_ = bench_page.write(folder, tmp_path / "page.html")
    _, *links = rows_of(page.read_text())
    assert sorted(map(len, links)) == [8, *[14] * (len(found.recipe["links"]) - 2)]
    assert page.read_text().count("not kept") == 1


def test_faces_are_on_a_page_of_ones_own_and_on_none_in_a_repository(tmp_path, pictured):
    folder = pictured(FACES, "judge", (3, 64, 64))
    figures = len(list(FACES.glob("*.png")))
    own, *_ = bench_page.write(folder, tmp_path / "mine" / "page.html")
    assert "The terms of celeba forbid publishing images: keep this page to yourself." in own.read_text()
    assert own.read_text().count("<img src=") > figures
    (tmp_path / "clone" / ".git").mkdir(parents=True)
    public, *_ = bench_page.write(folder, tmp_path / "clone" / "docs" / "page.html")
    assert "Images of celeba are left out" in public.read_text()
    assert public.read_text().count("<img src=") == figures
    link = tmp_path / "clone" / "linked.html"  # which the page replaces
    link.symlink_to(tmp_path / "outside.html")
    linked, *_ = bench_page.write(folder, link)
    assert linked.read_text().count("<img src=") == figures
    store = pictures.store_of(folder)
    assert store is not None
    assert pictures.draw(folder, record.read(folder / "record.json", BenchRecord), store) == []
    assert not (folder / pictures.FILE).exists()


def test_landed_test_images_are_a_figure_of_the_page(tmp_path):
    shutil.copytree(FIG3, tmp_path / "fig3")
    shutil.copyfile(FIG3 / "mnist.png", tmp_path / "fig3" / pictures.FILE)
    page, *_ = bench_page.write(tmp_path / "fig3", tmp_path / "page.html")
    shown = re.findall(r'alt="(.*?); the numbers', page.read_text())
    assert shown[6] == "The first test images and what became of them"
    assert rows_of(page.read_text()) == []


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
