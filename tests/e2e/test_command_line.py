# SPDX-License-Identifier: Apache-2.0
"""The command line as a user types it: help, JSON, and every kind of bad input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

VERBS = ["quickstart", "train", "evaluate", "attack", "audit", "report", "data"]


def semlink(*words: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "semlink.cli", *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
        timeout=300,
    )


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    done = semlink("train", "deepjscc", "--preset", "smoke", "--precision", "fp32", "--out", str(folder))
    assert done.returncode == 0, done.stderr
    return folder


def test_help_lists_every_verb():
    shown = semlink("--help")
    assert shown.returncode == 0
    assert all(f"  {verb} " in shown.stdout for verb in VERBS)
    assert semlink("--version").stdout.startswith("semlink 0.")


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_shows_an_example(verb):
    shown = semlink(verb, "--help")
    assert shown.returncode == 0
    assert f"example: semlink {verb}" in shown.stdout
    assert "--json" in shown.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "unknown verb 'trian'; did you mean 'train'"),
        (["train"], "needs SCHEME"),
        (["train", "deepjsc"], "unknown scheme 'deepjsc'; did you mean 'deepjscc'"),
        (["train", "deepjscc", "--data", "cifar"], "unknown data set 'cifar'; did you mean 'cifar10'"),
        (["train", "deepjscc", "--variant", "half"], "unknown variant of digits 'half'"),
        (["train", "deepjscc", "--task", "classfy"], "unknown task 'classfy'; did you mean 'classify'"),
        (["train", "deepjscc", "--task", "attributes"], "use 'classify' or 'reconstruct'"),
        (["train", "deepjscc", "--data", "celeba", "--task", "attributes:Moustache"], "did you mean 'Mustache'"),
        (["train", "deepjscc-lbvq", "--options", "codewords=12"], "codewords is 12: square QAM"),
        (["train", "deepjscc-lbvq", "--channel-uses", "24"], "so use a multiple of 16"),
        (["train", "deepjscc-dp", "--options", "epsilon=-1"], "option epsilon is -1: a finite number above 0"),
        (["train", "deepjscc-dp", "--options", "clip=0"], "option clip is 0: a finite number above 0"),
        (["train", "deepjscc", "--channel", "awg"], "unknown channel 'awg'; did you mean 'awgn'"),
        (["train", "deepjscc", "--preset", "gpu"], "unknown preset 'gpu'"),
        (["train", "deepjscc", "--snr-db", "abc"], "--snr-db is 'abc': a number is expected"),
        (["train", "deepjscc", "--snr-db", "nan"], "--snr-db is 'nan': a finite number is expected"),
        (["train", "deepjscc", "--snr-db"], "option --snr-db needs a value"),
        (["train", "deepjscc", "--snrdb", "3"], "unknown option of 'semlink train' '--snrdb'; did you mean '--snr-db'"),
        (["train", "deepjscc", "--seed", "1.5"], "--seed is '1.5': a whole number is expected"),
        (["train", "deepjscc", "--seed", "-1"], "seed is -1"),
        (["train", "deepjscc", "--channel-uses", "63"], "use a multiple of 8"),
        (["train", "deepjscc", "--device", "tpu"], "unknown device 'tpu'"),
        (["train", "deepjscc", "--precision", "fp8"], "unknown precision 'fp8'"),
        (["train", "deepjscc", "--devices", "0"], "--devices is 0"),
        (["train", "deepjscc", "--options", "fresh=false"], "unknown option of deepjscc 'fresh'"),
        (["train", "deepjscc", "--options", "fresh"], "NAME=VALUE is expected"),
        (["train", "deepjscc", "digits"], "unexpected argument 'digits'"),
        (["train", "deepjscc-encryption", "--key-file", "nowhere.key"], "key file nowhere.key cannot be read"),
        (["evaluate", "nowhere"], "run folder nowhere does not exist"),
        (["evaluate", "."], "is not a run folder"),
        (["attack", "nowhere"], "run folder nowhere does not exist"),
        (["report", "nowhere"], "nowhere"),
        (["quickstart", "--perceptual", "vgg"], "did you mean 'vgg16'"),
        (["data", "lst"], "did you mean 'list'"),
        (["data", "fetch"], "needs a name"),
        (["data", "fetch", "imagenet"], "unknown data set 'imagenet'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(words, said, tmp_path):
    shown = semlink(*words, cwd=tmp_path)
    assert shown.returncode == 2, shown.stderr
    assert shown.stderr.startswith("error: ")
    assert shown.stderr.count("\n") == 1, shown.stderr
    assert said in shown.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "bad input left something behind"


def test_bad_input_to_a_finished_run(run_folder):
    for words, said in [
        (["evaluate", str(run_folder), "--draws", "0"], "draws is 0"),
        (["evaluate", str(run_folder), "--snr-db", "inf"], "finite number"),
        (["attack", str(run_folder), "--attack", "inversoin"], "did you mean 'inversion'"),
        (["attack", str(run_folder), "--with-key", "--perceptual", "none"], "has no key"),
    ]:
        shown = semlink(*words)
        assert shown.returncode == 2, (words, shown.stderr)
        assert shown.stderr.count("\n") == 1, shown.stderr
        assert said in shown.stderr


def test_missing_perceptual_weights_are_explained(run_folder, tmp_path):
    shown = semlink("attack", str(run_folder), SEMLINK_DATA=str(tmp_path))
    assert shown.returncode == 2
    assert "none" in shown.stderr
    assert shown.stderr.count("\n") == 1


def test_train_evaluate_attack_report_and_their_json(run_folder, tmp_path):
    out = tmp_path / "evaluate.json"
    shown = semlink("evaluate", str(run_folder), "--snr-db", "4", "12", "--draws", "2", "--json", "--out", str(out))
    assert shown.returncode == 0, shown.stderr
    record = json.loads(shown.stdout)
    assert [point["snr_db"] for point in record["points"]] == [4.0, 12.0]
    assert record == json.loads(out.read_text())
    assert record["points"][0]["accuracy"]["n"] == 512
    words = ["attack", str(run_folder), "--perceptual", "none", "--precision", "fp32", "--json"]
    shown = semlink(*words)
    assert shown.returncode == 0, shown.stderr
    record = json.loads(shown.stdout)
    assert record["converged"] is False
    assert set(record["baselines"]) == {"mean_image", "class_mean"}
    assert json.loads(semlink(*words).stdout) == record, "a finished attack was run again"
    page = tmp_path / "page.html"
    assert semlink("report", str(run_folder), "--out", str(page)).returncode == 0
    assert "deepjscc" in page.read_text()


def test_train_prints_json_and_resumes_into_the_same_record(run_folder):
    words = ["train", "deepjscc", "--preset", "smoke", "--precision", "fp32", "--out", str(run_folder), "--json"]
    shown = semlink(*words)
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout) == json.loads((run_folder / "record.json").read_text())


def test_quickstart_runs_twice_and_the_second_time_is_done_already(tmp_path):
    words = ["quickstart", "--preset", "smoke", "--precision", "fp32", "--out", str(tmp_path / "q"), "--json"]
    first = semlink(*words)
    assert first.returncode == 0, first.stderr
    shown = json.loads(first.stdout)
    assert len(shown["takeaways"]) == 3
    page = Path(shown["report"]).read_text()
    assert "<svg" in page or "data:image/png" in page
    records = sorted((tmp_path / "q").rglob("*.json"))
    stamps = [path.stat().st_mtime_ns for path in records]
    assert len([path for path in records if path.name.startswith("attack-")]) == 4
    assert semlink(*words).stdout == first.stdout
    assert [path.stat().st_mtime_ns for path in records] == stamps


def test_data_list_and_check():
    rows = json.loads(semlink("data", "list", "--json").stdout)
    assert {row["name"] for row in rows} >= {"digits", "mnist", "fashion-mnist", "cifar10", "celeba"}
    shown = semlink("data", "check", "digits")
    assert shown.returncode == 0, shown.stderr
    assert "ok" in shown.stdout


def test_fetching_celeba_prints_its_terms_and_downloads_nothing(tmp_path):
    shown = semlink("data", "fetch", "celeba", SEMLINK_DATA=str(tmp_path))
    assert shown.returncode == 2
    assert "non-commercial" in shown.stdout + shown.stderr
    assert "img_align_celeba" in shown.stdout + shown.stderr
