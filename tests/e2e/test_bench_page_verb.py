# SPDX-License-Identifier: Apache-2.0
"""``semlink report`` of a bench, by the folder of its record and by its name."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from command import semlink

FIG3 = Path(__file__).parents[2] / "results" / "paper-b" / "fig3"


def test_by_folder(tmp_path):
    said = semlink("report", FIG3, "--out", tmp_path / "page.html", "--json")
    assert said.status == 0, said.err
    found = json.loads(said.out)
    assert found == {
        "report": str(tmp_path / "page.html"),
        "tables": [str(tmp_path / "page.csv"), str(tmp_path / "page.tex")],
    }
    assert all(Path(path).stat().st_size > 1000 for path in [found["report"], *found["tables"]])


def test_by_name_from_the_store(tmp_path):
    missing = semlink("report", "paper-b/fig3", "--store", tmp_path / "store", "--out", tmp_path / "page.html")
    assert missing.status == 2
    assert "bench paper-b/fig3 has no record in" in missing.err
    assert "'semlink bench paper-b/fig3' makes one" in missing.err
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("words", [["paper-b/fig33"], ["nowhere"], ["paper-b/fig3", "paper-b/fig5"]])
def test_what_is_neither_a_run_nor_a_bench(tmp_path, words):
    said = semlink("report", *words, "--out", tmp_path / "page.html")
    assert said.status == 2
    assert said.err.startswith("error: ")
    assert not (tmp_path / "page.html").exists()


def test_a_variant_is_of_a_recipe_and_not_of_a_folder(tmp_path):
    said = semlink("report", FIG3, "--variant", "paper", "--out", tmp_path / "page.html")
    assert said.status == 2
    assert said.err == f"error: {FIG3} is a folder; --variant is of a bench that is named by its recipe\n"


BROWSER = shutil.which("chromium")


@pytest.mark.skipif(BROWSER is None, reason="no chromium to look at the page with")
@pytest.mark.parametrize("width", [400, 1200])
@pytest.mark.parametrize("landed", [True, False])
def test_in_a_browser_the_page_fits_its_window(tmp_path, pictured, landed, width):
    semlink("report", FIG3 if landed else pictured(FIG3, "evaluate", (2, 1, 28, 28)), "--out", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    # the page says itself how wide it is: nothing of it may be wider than the window
    asks = "<script>document.title = [document.documentElement.scrollWidth, innerWidth].join(' ')</script></body>"
    (tmp_path / "page.html").write_text(page.replace("</body>", asks))
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"]
    found = subprocess.run(
        [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", *quiet, "--dump-dom",
         f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", (tmp_path / "page.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True, env=os.environ | {"HOME": str(tmp_path)},
    )  # fmt: skip
    wide, window = map(int, found.stdout.split("<title>")[1].split("</title>")[0].split())
    assert wide <= window
