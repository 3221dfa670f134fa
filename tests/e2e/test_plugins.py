# SPDX-License-Identifier: Apache-2.0
"""Schemes, attacks and channels of one's own: the examples as a user runs them, and plugins that cannot be loaded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "semlink.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)


def recipe(folder: Path, plugins: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(f'title = "t"\nplugins = {plugins}\n[links.a]\nscheme = "my-noise"\n')
    return path


@pytest.mark.parametrize("name", ["my_scheme", "my_attack", "my_channel"])
def test_an_example_is_short(name):
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 60


def test_the_examples_appear_in_every_table(tmp_path):
    text = (EXAMPLES / "my_bench.toml").read_text().replace('preset = "short"', 'preset = "smoke"')
    text = text.replace("snr_db = [4, 12, 20]", "snr_db = [12]\ndraws = 1")
    for path in EXAMPLES.glob("my_*.py"):
        text = text.replace(f'"{path.name}"', json.dumps(str(path)))
    (tmp_path / "bench.toml").write_text(text)
    said = run("bench", tmp_path / "bench.toml", "--store", tmp_path / "store", "--workers", 2, "--device", "cpu")
    assert said.returncode == 0, said.stderr + said.stdout
    record = json.loads((tmp_path / "store" / "benches" / "bench" / "record.json").read_text())
    rows = {(row["link"], row["attack"], row["metric"]) for row in record["rows"]}
    for link in ("deepjscc", "mine"):
        assert (link, None, "accuracy") in rows
        assert {(link, attack, "psnr_db") for attack in ("inversion", "mine")} <= rows
    assert "no cell is missing" in said.stdout
    # the plugins' code is part of what results depend on, also of the links of other schemes on the plugin's channel
    noisy = (EXAMPLES / "my_channel.py").read_text().replace("m: int = 3", "m: int = 2")
    (tmp_path / "my_channel.py").write_text(noisy)
    text = text.replace(json.dumps(str(EXAMPLES / "my_channel.py")), '"my_channel.py"')
    (tmp_path / "bench.toml").write_text(text)
    said = run("bench", tmp_path / "bench.toml", "--store", tmp_path / "store", "--plan", "--device", "cpu")
    assert said.returncode == 0, said.stderr + said.stdout
    assert [line.split()[:3] for line in said.stdout.splitlines() if line.startswith("train")] == [["train", "2", "0"]]


def test_a_plugin_of_the_environment_is_a_scheme_like_any_other(tmp_path):
    said = run("train", "my-noise", "--help", SEMLINK_PLUGINS=str(EXAMPLES / "my_scheme.py"))
    assert said.returncode == 0, said.stderr
    assert "share" in said.stdout
    words = (
        "train",
        "my-noise",
        "--data",
        "digits",
        "--preset",
        "smoke",
        "--options",
        "share=2",
        "--out",
        tmp_path / "r",
    )
    said = run(*words, SEMLINK_PLUGINS=str(EXAMPLES / "my_scheme.py"))
    assert (said.returncode, said.stderr) == (2, "error: share is 2: a number from 0 to 1 is expected\n")
    said = run(*words)
    assert said.returncode == 2
    assert "unknown scheme 'my-noise'" in said.stderr


def test_an_installed_package_brings_its_schemes(tmp_path):
    (tmp_path / "theirs.py").write_text((EXAMPLES / "my_scheme.py").read_text())
    known = tmp_path / "theirs-1.dist-info"
    known.mkdir()
    (known / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    (known / "entry_points.txt").write_text("[semlink.plugins]\ntheirs = theirs\n")
    code = "import semlink; print('my-noise' in semlink.schemes.keys())"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(tmp_path)}
    )
    assert found.stdout == "True\n", found.stderr
    (tmp_path / "theirs.py").write_text("import nothing_like_it")
    said = run("train", "deepjscc", "--help", PYTHONPATH=str(tmp_path))
    assert said.returncode == 2
    assert said.stderr == (
        "error: plugin 'theirs' (theirs) cannot be loaded: No module named 'nothing_like_it'; "
        "mend or uninstall its package\n"
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be loaded: there is no such Python file; mend it, or leave it out"),
        ("x = (", "mine.py cannot be loaded: '(' was never closed"),
        ("1 / 0", "mine.py cannot be loaded: division by zero; mend it, or leave it out"),
        (
            "from semlink import register_scheme\nregister_scheme('deepjscc')(int)",
            "mine.py cannot be loaded: scheme 'deepjscc' is registered already; choose another key",
        ),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_named_with_file_and_line(tmp_path, content, words):
    if content is not None:
        (tmp_path / "mine.py").write_text(content)
    said = run("bench", recipe(tmp_path, '["mine.py"]'), "--store", tmp_path / "store", "--plan")
    assert said.returncode == 2
    assert "Traceback" not in said.stderr
    assert "mine.toml, line 2: plugins: plugin " in said.stderr, said.stderr
    assert words in said.stderr, said.stderr


def test_a_plugin_named_as_a_module_that_is_there(tmp_path):
    (tmp_path / "json.py").write_text("")
    said = run("bench", recipe(tmp_path, '["json.py"]'), "--store", tmp_path / "store", "--plan")
    assert said.returncode == 2
    assert "json.py cannot be loaded: there is a module 'json' already, rename the file" in said.stderr


@pytest.mark.parametrize("plugins", ["3", '"my_scheme.py"', "[3]"])
def test_plugins_are_a_list_of_files(tmp_path, plugins):
    said = run("bench", recipe(tmp_path, plugins), "--store", tmp_path / "store", "--plan")
    assert said.returncode == 2
    assert "mine.toml, line 2: plugins" in said.stderr, said.stderr
