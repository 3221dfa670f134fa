# SPDX-License-Identifier: Apache-2.0
"""``semlink audit`` as a reviewer types it: what leaks is found, what does not is not, and a limit fails a build."""

import dataclasses
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from semlink import cli
from semlink.bench import presets
from semlink.bench.audit_record import AuditRecord

EXAMPLE = Path(__file__).parents[2] / "examples" / "audit_my_encoder.py"
ENCODERS = """
import torch
from torch import nn

class Sends(nn.Module):
    def __init__(self, code):
        super().__init__()
        self.code = code

    def forward(self, images):
        return self.code(images)

def image(): return Sends(lambda x: x.flatten(1) - 0.5)
def nothing(): return Sends(lambda x: torch.ones(len(x), 16))
def noise(): return Sends(lambda x: torch.complex(torch.randn(len(x), 16), torch.randn(len(x), 16)))
def harsh(): return Sends(lambda x: x.flatten(1) / x.std())
"""
COMMON = ("--preset", "smoke", "--precision", "fp32", "--minutes", "20", "--attacks", "inversion", "inference")


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("audit")
    (folder / "ours.py").write_text(ENCODERS)
    return folder


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Make the smallest preset's attacks long enough to find what an open encoder sends, on few images."""
    smoke, patch = presets.PRESETS["smoke"], pytest.MonkeyPatch()
    optimiser = dataclasses.replace(smoke.grey.attack.optimiser, learning_rate=3e-3)
    attack = dataclasses.replace(smoke.grey.attack, epochs=5, batch_size=8, optimiser=optimiser)
    grey = dataclasses.replace(smoke.grey, attack=attack)
    patch.setitem(presets.PRESETS, "smoke", dataclasses.replace(smoke, grey=grey, images=500))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)
    patch.undo()


def semlink(*words: str) -> int:
    return cli.main(["audit", *words])


def audited(here: Path, name: str, *more: str) -> tuple[AuditRecord, str]:
    out = here / name
    assert semlink(f"{here}/ours.py:{name}", *COMMON, "--out", str(out), *more) == 0
    return AuditRecord.model_validate_json((out / "audit.json").read_text()), (out / "audit.html").read_text()


@pytest.fixture(scope="module")
def leaking(here) -> tuple[AuditRecord, str]:
    return audited(here, "image")


def test_an_encoder_that_hides_nothing_is_found_to(leaking):
    done, _ = leaking
    judged = {each.metric: each for each in done.verdicts}
    assert all(each.leaks for each in done.verdicts)
    assert judged["psnr_db"].value.low > judged["psnr_db"].baseline.high + 2
    assert judged["retrieval"].value.low > 60  # of 500 images, where guessing finds 0.2 %
    assert judged["accuracy"].value.low > 70
    assert judged["infonce_bits"].value.low > 6
    assert judged["psnr_db"].threat["snr_db"] == 20  # the worst is where she hears best
    assert {each.snr_db for each in done.tried} == {4, 12, 20}


def test_an_encoder_that_says_nothing_is_found_to(here):
    done, page = audited(here, "nothing")
    assert {each.metric for each in done.verdicts} >= {"psnr_db", "retrieval", "accuracy", "infonce_bits", "label_bits"}
    assert not any(each.leaks for each in done.verdicts)
    judged = {each.metric: each for each in done.verdicts}
    assert judged["psnr_db"].value.mean < judged["psnr_db"].baseline.mean + 0.1
    assert judged["retrieval"].value.low < 0.2
    assert "draw the image" in page.split("No attack could ")[1].split(" better than by guessing")[0]


def test_nothing_is_heard_in_noise_that_the_encoder_draws(here):
    done, _ = audited(here, "noise", "--attacks", "inference")
    assert done.link["random"]
    assert not any(each.leaks for each in done.verdicts)
    assert "The transmitter draws noise." in " ".join(done.threat_model)


def test_the_worst_comes_first_on_the_page_and_in_the_record(leaking):
    done, page = leaking
    order = [(not each.leaks, -each.share) for each in done.verdicts]
    assert order == sorted(order)
    table = page[page.index("The verdict, worst first") :].split("</table>")[0]
    from semlink.report.audit_text import meaning

    assert re.findall(r'<th scope="row">([^<]+)<', table) == [meaning(each.metric).does for each in done.verdicts]
    assert page.index("The verdict") < page.index("What she drew") < page.index("What was not tested")


def test_the_images_shown_are_chosen_by_rank_alone(leaking, here):
    from safetensors.torch import load_file

    done, page = leaking
    assert [each.rank for each in done.shown] == [1, 2, 3, 250, 251, 252, 498, 499, 500]
    assert done.shown_of is not None
    best = done.tried[done.shown_of]
    assert best.results["psnr_db"].mean == max(
        each.results["psnr_db"].mean for each in done.tried if "psnr_db" in each.results
    )
    (work,) = (here / "image" / "work").iterdir()
    (folder,) = (
        f
        for f in work.iterdir()
        if (f / "tried.json").exists() and best.values_sha256 in (f / "tried.json").read_text()
    )
    ranked = load_file(folder / "values.safetensors")["psnr_db"].argsort(descending=True)
    assert [each.index for each in done.shown] == [int(ranked[each.rank - 1]) for each in done.shown]
    assert page.count("data:image/png;base64,") == 6
    assert "Ranks 498, 499, 500 of 500" in page


def test_the_page_needs_nothing_but_itself_and_says_what_was_not_tested(leaking):
    done, page = leaking
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert all(each.what in page for each in done.untested if "'" not in each.what)
    assert {"generative", "search-smooth"} <= {each.what for each in done.untested}
    assert "8 dB better than Bob" in page
    assert done.victim_sha256[:12] in page


def test_a_limit_fails_a_build(leaking, here, capsys):
    words = (f"{here}/ours.py:image", *COMMON, "--out", str(here / "image"), "--fail-above")
    begun = time.perf_counter()
    assert semlink(*words, "psnr_db=90", "retrieval=100") == 0
    assert time.perf_counter() - begun < 20  # what was done is not done again
    capsys.readouterr()
    assert semlink(*words, "psnr_db=13", "retrieval=100", "ssim=0.1") == 1
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if line.startswith("error: ")] == said[-2:]
    assert re.fullmatch(
        r"error: psnr_db is [\d.]+ \[[\d.]+, [\d.]+\] dB by inversion at 20 dB, above the limit of 13", said[-2]
    )
    assert "ssim is" in said[-1]
    assert semlink(*words, "psnr=13") == 2
    assert "did you mean 'psnr_db'" in capsys.readouterr().err


def test_json_is_the_record_and_nothing_else(leaking, here, capsys):
    assert semlink(f"{here}/ours.py:image", *COMMON, "--out", str(here / "image"), "--json") == 0
    printed = capsys.readouterr().out
    assert json.loads(printed) == json.loads((here / "image" / "audit.json").read_text())


def test_a_killed_audit_goes_on_where_it_was(here, tmp_path):
    command = [sys.executable, "-m", "semlink.cli", "audit", f"{here}/ours.py:nothing", "--preset", "smoke"]
    command += ["--precision", "fp32", "--attacks", "inference", "--minutes", "20", "--out"]
    first = subprocess.Popen([*command, str(tmp_path / "a")], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not (done := list(tmp_path.glob("a/work/*/inference-*/tried.json"))):
        assert first.poll() is None
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not (tmp_path / "a" / "audit.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in done}
    for name in ("a", "b"):
        subprocess.run([*command, str(tmp_path / name)], check=True, capture_output=True, timeout=600)
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    one, other = (json.loads((tmp_path / name / "audit.json").read_text()) for name in ("a", "b"))
    for record in (one, other):
        for each in record["tried"]:
            del each["training_seconds"], each["measuring_seconds"]
        for name in ("seconds", "finished", "command"):
            del record[name]
    assert one == other


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "there is no run folder 'nowhere'"),
        ([f"{EXAMPLE}:encode"], "did you mean 'encoder'"),
        ([f"{EXAMPLE}:encoder", "--data", "digit"], "unknown data set 'digit'; did you mean 'digits'"),
        ([f"{EXAMPLE}:encoder", "--channel", "raleigh"], "did you mean 'rayleigh'"),
        ([f"{EXAMPLE}:encoder", "--attacks", "inverson"], "did you mean 'inversion'"),
        ([f"{EXAMPLE}:encoder", "--minutes", "0"], "minutes is 0.0: a finite number above 0"),
        ([f"{EXAMPLE}:encoder", "--minutes", "0.001"], "fits into 0.001 minutes; raise --minutes"),
        (["HERE/ours.py:harsh"], "another code of an image when other images are beside it"),
        ([], "'semlink audit' needs TARGET"),
    ],
)
def test_mistakes_are_answered_in_a_line(here, tmp_path, capsys, words, said):
    words = [word.replace("HERE", str(here)) for word in words]
    assert semlink(*words, "--preset", "smoke", "--out", str(tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert said in error.splitlines()[-1]
    assert "Traceback" not in error
    assert not (tmp_path / "out" / "audit.html").exists()


def test_a_run_brings_its_data_and_the_key_stays_out_of_the_verdict(tmp_path, capsys):
    run = str(tmp_path / "run")
    words = ["train", "deepjscc-encryption", "--preset", "smoke", "--precision", "fp32", "--channel", "rayleigh"]
    assert cli.main([*words, "--out", run]) == 0
    assert semlink(run, "--snr-db", "3", "--out", str(tmp_path / "a")) == 2
    assert "--snr-db is for an encoder of your own" in capsys.readouterr().err
    more = ("--precision", "fp32", "--attacks", "inference", "--out", str(tmp_path / "a"))
    assert semlink(run, *more) == 0
    done = AuditRecord.model_validate_json((tmp_path / "a" / "audit.json").read_text())
    assert (done.link["scheme"], done.link["channel"], done.link["secret"]) == (
        "deepjscc-encryption",
        "rayleigh",
        "key",
    )
    assert [each.reference for each in done.tried] == [False, False, False, True]
    assert all(each.threat["with_secret"] is False for each in done.verdicts)
    assert "excluded by the threat model" in (tmp_path / "a" / "audit.html").read_text()
    assert done.shown == []  # nothing was drawn


def test_no_face_is_shown(here, leaking, tmp_path):
    from semlink.bench import audit, target, trying

    found = target.resolve(f"{here}/ours.py:image", preset="smoke")
    setting = trying.Setting(found, torch.device("cpu"), 0, "fp32", tmp_path, lambda title: None)
    faces = dataclasses.replace(found, sets=dataclasses.replace(found.sets, name="celeba"))
    outcome = trying.Outcome(None, leaking[0].tried[0], {"psnr_db": torch.rand(500)}, tmp_path)
    assert audit._shown(dataclasses.replace(setting, target=faces), outcome) == []
    assert not list(tmp_path.iterdir())


def test_the_example_is_ten_lines_that_can_be_audited():
    from semlink.bench.target import resolve

    assert resolve(f"{EXAMPLE}:encoder", preset="smoke").link.scheme.design.channel_uses == 16
    body = EXAMPLE.read_text().split("def encoder")[1].splitlines()
    assert len(body) <= 11
