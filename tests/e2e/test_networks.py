# SPDX-License-Identifier: Apache-2.0
"""Networks of several users from the command line: train, resume, evaluate, and what is refused."""

import json
from pathlib import Path

import pytest
from command import Said, semlink

from semlink.schemes.network import NetworkObjective


def train(folder: Path, *more: object, scheme: str = "irsc-csir") -> Said:
    words = ["train", scheme, "--data", "digits", "--preset", "smoke", "--channel-uses", 16, "--precision", "fp32"]
    return semlink(*words, "--device", "cpu", "--out", folder, *more)


def refused(said: Said, *words: str) -> None:
    """Bad input: exit status 2 and one line that says all of ``words``."""
    assert said.status == 2, said
    (line,) = (line for line in said.err.splitlines() if ": epoch " not in line)
    assert line.startswith("error: ")
    assert all(word in line for word in words), line
    assert said.out == ""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    said = train(folder, "--json")
    assert said.status == 0, said.err
    found = json.loads(said.out)
    assert found == json.loads((folder / "record.json").read_text())
    assert "irsc-csir: epoch 2/2" in said.err
    return folder


def test_the_record_of_a_training(run):
    found = json.loads((run / "record.json").read_text())
    recipe = found["recipe"]
    assert (recipe["scheme"], recipe["channel"], recipe["task"]) == ("irsc-csir", "interference", "reconstruct")
    assert (recipe["data"], recipe["channel_uses"], recipe["options"]) == ("digits", 16, {})
    assert found["data"]["users"] == ["digits", "digits"]
    described = found["describes"]
    assert (described["users"], described["antennas"], described["pilot_uses"]) == (2, [2, 2], 4)
    assert described["feedback_reals"] == 0
    assert sum(described["user_weights"]) == pytest.approx(1, abs=2e-6)
    assert found["channel_uses"] == 16
    assert found["parameters"]["total"] == sum(
        2 * (inputs * outputs + outputs)
        for inputs, outputs in [(784, 256), (256, 64), (64 + 32, 256), (256, 256), (256, 784)]
    )
    assert found["schedule"]["epochs"] == len(found["history"]) == 2
    assert all("psnr_db" in row["validation"] for row in found["history"])


def test_evaluate_prints_each_user_and_their_mean(run):
    words = ["evaluate", run, "--snr-db", 0, 15, "--draws", 1, "--device", "cpu"]
    shown = semlink(*words)
    assert shown.status == 0, shown.err
    assert "irsc-csir on the test set of digits" in shown.out
    assert "ssim.1" in shown.out
    again = semlink(*words, "--json")
    assert again.status == 0
    found = json.loads(again.out)
    names = {f"{name}{user}" for name in ("psnr_db", "ssim", "ssim_global") for user in ("", ".1", ".2")}
    assert [set(point) for point in found["points"]] == [{"snr_db", *names}] * 2
    assert [point["snr_db"] for point in found["points"]] == [0, 15]
    held = json.loads((run / "evaluate.json").read_text())
    assert held["points"] == found["points"]
    for point in found["points"]:
        assert point["ssim"]["mean"] == pytest.approx((point["ssim.1"]["mean"] + point["ssim.2"]["mean"]) / 2, abs=1e-5)


def test_a_run_that_was_interrupted_resumes_and_ends_the_same(run, tmp_path, monkeypatch):
    forward, steps = NetworkObjective.forward, 0

    def mortal(self, *arguments):
        nonlocal steps
        steps += 1
        if steps == 7:  # of four an epoch
            raise KeyboardInterrupt
        return forward(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(NetworkObjective, "forward", mortal)
        said = train(tmp_path / "run")
    assert said.status == 130
    assert said.err.splitlines()[-1].startswith("error: interrupted")
    refused(semlink("evaluate", tmp_path / "run"), "is not finished; the command that started it resumes it")
    refused(train(tmp_path / "run", "--options", "users=3"), "holds another run", "users")
    assert train(tmp_path / "run").status == 0
    for name in ("weights.safetensors", "recipe.json"):
        assert (tmp_path / "run" / name).read_bytes() == (run / name).read_bytes()
    one, other = (json.loads((folder / "record.json").read_text()) for folder in (tmp_path / "run", run))
    for found in (one, other):
        del found["timing"]
        for row in found["history"]:
            del row["epoch_seconds"]
    assert one == other


def test_three_users_and_a_precoder(tmp_path):
    said = train(tmp_path / "run", "--options", "users=3", "bank=16", "snr_high_db=5", scheme="semi-conventional")
    assert said.status == 0, said.err
    assert semlink("evaluate", tmp_path / "run", "--snr-db", 0, "--draws", 1, "--device", "cpu").status == 0
    found = json.loads((tmp_path / "run" / "evaluate.json").read_text())
    assert {"ssim", "ssim.1", "ssim.2", "ssim.3"} <= set(found["points"][0])
    assert semlink("report", tmp_path / "run", "--out", tmp_path / "page.html").status == 0


@pytest.mark.parametrize(
    ("scheme", "more", "words"),
    [
        ("csi-free", ["--channel", "awgn"], ["scheme 'csi-free' is of several users, on channel 'interference'"]),
        ("irsc-csir", ["--channel", "overheard"], ["scheme 'irsc-csir' is of several users", "not 'overheard'"]),
        (
            "deepjscc",
            ["--data", "digits+mnist"],
            ["scheme 'deepjscc' is of one user: data 'digits+mnist' is of several"],
        ),
        ("csi-free", ["--data", "digits+cifar10"], ["differ in shape; users must send alike images"]),
        ("csi-free", ["--data", "digits+minst"], ["unknown data set 'minst'; did you mean 'mnist'"]),
        ("csi-free", ["--options", "users=0"], ["users is 0"]),
        ("csi-free", ["--options", "users=two"], ["users is 'two'"]),
        ("csi-free", ["--options", "users=2", "users=3"], ["option 'users' of the scheme is given twice", "users=3"]),
        ("csi-free", ["--options", "fairness=false"], ["fairness is False", "epoch, step, or off"]),
        ("csi-free", ["--options", "cross_gain_db=abc"], ["cross_gain_db is 'abc'", "takes a number"]),
        ("semi-conventional", ["--options", "bank=2.5"], ["bank is 2.5", "takes a whole number"]),
        ("semi-conventional", ["--options", "streams=true"], ["streams is True", "takes a whole number"]),
        ("csi-free", ["--data", "digits+mnist", "--options", "users=1"], ["'digits+mnist' is of 2 users"]),
        ("csi-free", ["--options", "streams=2"], ["unknown option of csi-free 'streams'"]),
        ("semi-conventional", ["--options", "streams=3"], ["streams is 3: from 1 to 2 fit the antennas"]),
        ("dispersion", ["--options", "span=5"], ["span is 5: it must divide the 16 channel uses"]),
        ("irsc-csir", ["--channel-uses", "0"], ["channel_uses is 0"]),
    ],
)
def test_what_makes_no_sense_is_one_line_and_leaves_no_folder(tmp_path, scheme, more, words):
    refused(train(tmp_path / "run", *more, scheme=scheme), *words)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_nothing_was_trained_in_takes_the_corrected_command(tmp_path, monkeypatch):
    monkeypatch.setenv("SEMLINK_DATA", str(tmp_path / "none"))
    refused(train(tmp_path / "run", "--data", "mnist"), "is missing", "semlink data fetch mnist")
    said = train(tmp_path / "run", "--options", "width=4")
    assert said.status == 0, said.err


def test_an_attack_on_a_single_link_is_refused_on_a_network(run):
    said = semlink("attack", run, "--perceptual", "none", "--device", "cpu", "--precision", "fp32")
    refused(said, "this attack is on a link of one user", "'cross-link'")


def test_help_names_the_options_of_a_network():
    said = semlink("train", "dispersion", "--help")
    assert said.status == 0
    assert "  features=0" in said.out
    assert "  span=4" in said.out
