# SPDX-License-Identifier: Apache-2.0
"""The parts of an audit: what is found by name, which attacks are chosen, what is concluded, what fails a build."""

import contextlib
import dataclasses
import math
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from semlink import SemlinkError
from semlink._errors import TrainingDiverged
from semlink.attacks import Threat
from semlink.bench import audit, battery, gate, pacing, target, trying, verdicts
from semlink.bench.audit_record import Tried
from semlink.bench.battery import Case, Nature
from semlink.bench.record import Measurement
from semlink.bench.trying import Outcome
from semlink.bench.verdicts import Known
from semlink.report import audit_text

MODULE = """
import torch
from torch import nn
size = 3
def encoder(): return nn.Sequential(nn.Flatten(), nn.Linear(784, 8))
def wide(width, depth=2): return nn.Flatten()
def number(): return 3
def broken(): raise OSError("no weights here")
class Flat(nn.Flatten): ...
ready = nn.Flatten()
"""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    (tmp_path / "ourmodels.py").write_text(MODULE)
    (tmp_path / "ill.py").write_text("1 / 0")
    (tmp_path / "lacking.py").write_text("import no_such_library")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.delitem(sys.modules, "ourmodels", raising=False)
    return tmp_path


@pytest.mark.parametrize("name", ["ourmodels:encoder", "ourmodels.py:encoder", "./ourmodels.py:encoder"])
def test_an_encoder_is_found_in_the_current_folder_and_made_alike_each_time(here, name):
    first, second, other = (target.find_encoder(name, seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first[1].weight, second[1].weight)
    assert not torch.equal(first[1].weight, other[1].weight)


def test_a_class_and_a_module_that_is_ready_will_do(here):
    assert isinstance(target.find_encoder("ourmodels:Flat")[0], nn.Flatten)
    assert isinstance(target.find_encoder("ourmodels:ready")[0], nn.Flatten)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("runs/none", "there is no run folder 'runs/none'; a run folder, zoo:NAME, module:callable"),
        ("ourmodel:encoder", "there is no module 'ourmodel'; modules here: ill, lacking, ourmodels"),
        ("none.py:encoder", "there is no file none.py; Python files there: ill.py, lacking.py, ourmodels.py"),
        ("ourmodels:encode", "did you mean 'encoder'"),
        ("ourmodels.py", "write ourmodels.py:NAME with one of: Flat, broken, encoder, number, wide"),
        ("ourmodels:", "names no callable"),
        ("ourmodels:size", "is a int: a callable"),
        ("ourmodels:wide", r"needs arguments \(width\)"),
        ("ourmodels:number", "returns int: a torch.nn.Module"),
        ("ourmodels:broken", "fails: OSError: no weights here"),
        ("ill:encoder", "ill cannot be imported: ZeroDivisionError: division by zero"),
        ("lacking:encoder", "lacking cannot be imported: No module named 'no_such_library'"),
    ],
)
def test_what_cannot_be_found_is_said_in_a_line(here, name, said):
    with pytest.raises(SemlinkError, match=said) as caught:
        target.find_encoder(name)
    assert "\n" not in str(caught.value)


def test_another_encoder_has_another_identity(here):
    first, again, other = (target.resolve("ourmodels:encoder", preset="smoke", seed=seed) for seed in (0, 0, 1))
    assert first.identity == again.identity != other.identity
    (here / "ourmodels.py").write_text(MODULE.replace("nn.Linear(784, 8))", "nn.Linear(784, 8), nn.Tanh())"))
    sys.modules.pop("ourmodels")
    assert target.resolve("ourmodels:encoder", preset="smoke").identity != first.identity  # the same weights
    names = (
        audit._identity(first, 0, "fp32", torch.device("cpu")),
        audit._identity(other, 0, "fp32", torch.device("cpu")),
    )
    assert names[0] != names[1]


@pytest.fixture
def smoke(here) -> target.Target:
    return target.resolve("ourmodels:encoder", preset="smoke", snr_db=10.0)


def test_the_battery_begins_with_what_matters_most(smoke):
    plain = battery.battery(smoke, Nature(False, False, False), [])
    assert plain[:4] == [
        Case("inversion", Threat(10.0)),
        Case("inference", Threat(10.0)),
        Case("inversion", Threat(18.0)),
        Case("inference", Threat(18.0)),
    ]
    assert {case.threat.snr_db for case in plain} == {2.0, 10.0, 18.0}
    assert Case("inversion", Threat(10.0, antennas=4)) in plain
    assert not any(case.reference or case.threat.with_secret for case in plain)
    assert {"search-smooth", "search-learned"} <= {case.attack for case in plain}


def test_the_battery_suits_the_link(smoke):
    keyed, digital, random = (battery.battery(smoke, Nature(*(k == i for i in range(3))), []) for k in range(3))
    assert {"sorted-inversion", "set-inversion"} <= {case.attack for case in keyed}
    assert {case.attack for case in keyed if case.reference} == {"inversion", "inference"}
    assert all(case.threat.with_secret == case.reference for case in keyed)
    assert "codebook-inversion" in {case.attack for case in digital}
    assert any(case.threat.transmissions == 10 for case in random)


def test_chosen_attacks_are_made_at_every_snr_and_with_the_key_for_reference(smoke):
    cases = battery.battery(smoke, Nature(True, False, False), ["inference"])
    assert [(case.threat.snr_db, case.reference) for case in cases] == [
        (10, False),
        (18, False),
        (2, False),
        (10, True),
    ]
    with pytest.raises(SemlinkError, match="unknown attack 'inverson'; did you mean 'inversion'"):
        battery.battery(smoke, Nature(False, False, False), ["inverson"])


def test_what_an_attack_refuses_is_given_as_the_reason(smoke):
    setting = trying.Setting(smoke, torch.device("cpu"), 0, "fp32", Path(), lambda title: None)
    why = battery.unsuited(smoke, setting.plan(Case("codebook-inversion", Threat(10.0))))
    assert why is not None
    assert "needs a codebook" in why
    assert battery.unsuited(smoke, setting.plan(Case("search-smooth", Threat(10.0)))) is None


def test_every_attack_is_made_or_accounted_for(smoke):
    kind = Nature(False, False, False)
    cases = battery.battery(smoke, kind, [])
    left = {what for what, _ in battery.left_out(kind, cases, [])}
    assert {case.attack for case in cases}.isdisjoint(left)
    assert {case.attack for case in cases} | left >= set(battery.keys())


@pytest.mark.parametrize(("e", "choices"), [(0.05, 10), (0.3, 10), (0.6, 500)])
def test_fano_is_met_with_equality_by_the_symmetric_channel(e, choices):
    bits = math.log2(choices) + (1 - e) * math.log2(1 - e) + e * math.log2(e / (choices - 1))
    assert verdicts.fano(bits, choices) == pytest.approx(1 - e, abs=1e-9)
    assert verdicts.fano(0, choices) == pytest.approx(1 / choices, abs=1e-6)
    assert verdicts.fano(math.log2(choices), choices) == 1


def tried(case: Case, results: dict[str, Measurement], images: int = 400, **more) -> Tried:
    filled = {
        "attack": case.attack,
        "threat": case.threat.describe(),
        "reference": case.reference,
        "sees": [],
        "epochs": 5,
        "full_epochs": 5,
        "parameters": 1,
        "converged": True,
        "last_fifth_fall": 0.0,
        "attacker_sha256": "",
        "values_sha256": "",
        "images": images,
        "draws": 1,
        "training_seconds": 1.0,
        "measuring_seconds": 1.0,
        "results": results,
        "ceilings_bits": {"channel_bits": 2.0, "least": 2.0, "hard_capacity_bits": 0.1},
    }
    return Tried(**filled | more)


def over(values: torch.Tensor, unit: str, scale: float = 1.0) -> Measurement:
    from semlink.metrics import mean_interval

    return Measurement.of(mean_interval(values), unit, scale)


def outcome(attack: str, snr_db: float, values: dict[str, torch.Tensor], reference: bool = False) -> Outcome:
    case = Case(attack, Threat(snr_db), reference)
    units = {"psnr_db": ("dB", 1), "ssim": ("1", 1), "accuracy": ("%", 100), "retrieval": ("%", 100)}
    return Outcome(case, tried(case, {k: over(v, *units[k]) for k, v in values.items()}), values, Path())


def known(psnr: torch.Tensor, right: torch.Tensor) -> dict[int, dict[str, Known]]:
    structure, found = torch.full((400,), 0.1), torch.full((400,), 0.002)
    image = {"psnr_db": psnr, "ssim": structure, "retrieval": found}
    drawn = {"psnr_db": over(psnr, "dB"), "ssim": over(structure, "1"), "retrieval": over(found, "%", 100)}
    return {
        400: {
            "mean_image": Known(drawn, image),
            "prior": Known({"accuracy": over(right, "%", 100)}, {"accuracy": right}),
        }
    }


def test_the_verdict_is_of_the_strongest_attack_and_the_worst_comes_first():
    g = torch.Generator().manual_seed(0)
    psnr, right = 12 + torch.randn(400, generator=g), (torch.rand(400, generator=g) < 0.1).float()
    found = [
        outcome("inversion", 12, {"psnr_db": psnr + 1, "ssim": torch.full((400,), 0.2) + 0.01 * psnr}),
        outcome("inversion", 20, {"psnr_db": psnr + 3, "ssim": torch.full((400,), 0.1) + 0.01 * psnr}),
        outcome("inference", 12, {"accuracy": (torch.rand(400, generator=g) < 0.9).float()}),
        outcome("with-key", 12, {"psnr_db": psnr + 20}, reference=True),
    ]
    judged = verdicts.verdicts(found, known(psnr, right), 10, {})
    assert [each.metric for each in judged] == ["accuracy", "psnr_db", "ssim"]
    assert all(each.leaks for each in judged)
    accuracy, drawn, structure = judged
    assert (drawn.attack, drawn.threat["snr_db"]) == ("inversion", 20)  # and not the one with the key
    assert drawn.share == pytest.approx(1 - 10**-0.3, abs=1e-3)
    assert structure.threat["snr_db"] == 12
    assert accuracy.share == pytest.approx(
        (accuracy.value.mean - accuracy.baseline.mean) / (100 - accuracy.baseline.mean), abs=1e-4
    )
    assert accuracy.ceiling == pytest.approx(100 * verdicts.fano(2.0, 10), abs=1e-3)
    assert accuracy.ceiling_by == "channel_bits"


def test_many_attacks_that_find_nothing_find_nothing():
    """Of 200 comparisons with a guess about ten are significant at 5 %; after correction none should be."""
    g = torch.Generator().manual_seed(1)
    psnr, right = 12 + torch.randn(400, generator=g), (torch.rand(400, generator=g) < 0.1).float()
    found = [
        outcome(
            f"attack-{i}",
            12,
            {"psnr_db": psnr + 0.5 * torch.randn(400, generator=g), "ssim": 0.1 + 0.01 * torch.randn(400, generator=g)},
        )
        for i in range(100)
    ]
    base = known(psnr, right)
    assert any(
        verdicts._compared(each, "psnr_db", each.tried.results["psnr_db"], base[400]).p_value < 0.05 for each in found
    )
    assert not any(each.leaks for each in verdicts.verdicts(found, base, 10, {}))


def test_bits_are_compared_with_none():
    bound = Measurement(
        mean=0.5, low=0.4, high=0.5, n=400, unit="bit", method="infonce, jackknife over samples, one-sided"
    )
    nothing = bound.model_copy(update={"mean": 0.01, "low": -0.05, "high": 0.01})
    case = Case("inversion", Threat(12.0))
    for value, leaks in ((bound, True), (nothing, False)):
        made = Outcome(case, tried(case, {"infonce_bits": value}), {}, Path())
        (verdict,) = verdicts.verdicts([made], {400: {}}, 10, {})
        assert verdict.leaks is leaks
        assert verdict.ceiling == 2.0
        assert verdict.share == pytest.approx(value.mean / math.log2(400), abs=1e-4)


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (["psnr=18"], "unknown metric of --fail-above 'psnr'; did you mean 'psnr_db'"),
        (["psnr_db"], "--fail-above psnr_db: METRIC=VALUE is expected"),
        (["psnr_db=much"], "'much' is no finite number"),
        (["psnr_db=nan"], "'nan' is no finite number"),
        (["psnr_db=1", "psnr_db=2"], "gives psnr_db two limits"),
        (["balanced_accuracy.Mal=60"], "unknown part of balanced_accuracy 'Mal'; did you mean 'Male'"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(pairs, said):
    with pytest.raises(SemlinkError, match=said):
        gate.limits(pairs, ["Male"])


class Done:
    """As much of a record as the gate looks at."""

    def __init__(self, *attempts: Tried) -> None:
        self.tried = attempts


def test_the_upper_end_of_the_strongest_attack_is_held_to_the_limit():
    value = Measurement(mean=18.0, low=17.5, high=18.5, n=400, unit="dB", method="student-t")
    more = value.model_copy(update={"mean": 30.0, "high": 31.0})
    plain, key = Case("inversion", Threat(12.0)), Case("inversion", Threat(12.0), True)
    done = Done(tried(plain, {"psnr_db": value}, converged=False), tried(key, {"psnr_db": more}))
    assert gate.exceeded(done, {"psnr_db": 18.5}) == []  # the one with the key is no part of it
    (said,) = gate.exceeded(done, {"psnr_db": 18.4})
    assert said == "psnr_db is 18 [17.5, 18.5] dB by inversion at 12 dB, above the limit of 18.4"
    (said,) = gate.exceeded(done, {"retrieval": 100})
    assert "retrieval was not measured" in said


def test_an_attack_that_does_not_fit_the_time_is_shortened_or_left(smoke, tmp_path, monkeypatch):
    setting = trying.Setting(smoke, torch.device("cpu"), 0, "fp32", tmp_path, lambda title: None)
    monkeypatch.setattr(type(setting), "schedule", dataclasses.replace(setting.schedule, epochs=20))
    case = Case("inversion", Threat(10.0))
    setting.paces["inversion"] = 1.0, 2.0  # seconds an epoch, and to measure

    def epochs(left: float) -> int:
        return trying._affordable(setting, case, pacing.Clock(left, time.perf_counter()))

    assert epochs(100) == 20
    assert epochs(30) == 12  # half of the time that is left, less what measuring takes
    assert epochs(13) == 0  # four epochs tell nothing
    assert epochs(-1) == 0


def test_an_attack_that_was_begun_is_kept(smoke, tmp_path, monkeypatch):
    setting = trying.Setting(smoke, torch.device("cpu"), 0, "fp32", tmp_path, lambda title: None)
    monkeypatch.setattr(type(setting), "schedule", dataclasses.replace(setting.schedule, epochs=20))
    case, made = Case("inversion", Threat(10.0)), list[int]()

    def make(setting, case, folder, epochs, clock):
        folder.mkdir(exist_ok=True)
        made.append(epochs)
        raise KeyboardInterrupt

    monkeypatch.setattr(trying, "_make", make)
    for affordable in (8, 3, 15, 17, 20):
        monkeypatch.setattr(trying, "_affordable", lambda *_, epochs=affordable: epochs)
        with pytest.raises(KeyboardInterrupt):
            trying.attempt(setting, case, pacing.Clock(10, 0))
    assert made == [8, 8, 8, 17, 17]


def test_words_tell_how_well_eve_hears():
    assert audit_text.hearing(Threat(20.0).describe(), 12.0) == "20 dB, 8 dB better than Bob"
    assert audit_text.hearing(Threat(-4.0).describe(), 4.0) == "−4 dB, 8 dB worse than Bob"
    assert audit_text.hearing(Threat(12.0, True, 4).describe(), 12.0) == "12 dB, as Bob, 4 antennas, with the key"


def test_an_attack_that_diverges_sinks_no_other(smoke, tmp_path, monkeypatch):
    real = audit.attempt

    def attempt(setting, case, clock):
        if case.threat.snr_db == 10:
            raise TrainingDiverged("the loss is not finite")
        return real(setting, case, clock)

    monkeypatch.setattr(audit, "attempt", attempt)
    silent = contextlib.nullcontext(lambda moment: None)
    done, _ = audit.audit(smoke, tmp_path, torch.device("cpu"), lambda title: silent, attacks=["inference"])
    assert [each.snr_db for each in done.tried] == [18, 2]
    assert done.untested[0].why == "its training diverged: the loss is not finite"
