# SPDX-License-Identifier: Apache-2.0
"""Two records side by side: every change has a name, and differences are those of scipy's tests."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.torch import load_file
from scipy import stats

from semlink._errors import SemlinkError
from semlink.bench import record, results, rows
from semlink.bench.compare import compare
from semlink.bench.graph import Graph
from semlink.bench.record import Measurement
from semlink.bench.results import BenchRecord
from semlink.bench.rows import Row
from semlink.cli import main


def row(link, means, metric="accuracy", snr_db=12.0, attack=None):
    """A row of numbers by seed, each of 1,000 images with a half-width of 1.96."""
    seeds = {
        seed: Measurement(mean=m, low=m - 1.96, high=m + 1.96, n=1000, unit="%", method="student-t over images")
        for seed, m in means.items()
    }
    return Row(
        link=link,
        attack=attack,
        metric=metric,
        snr_db=snr_db,
        seeds=seeds,
        over_seeds=rows._over(seeds),
        converged=None,
    )


def bench(*rows):
    """A record of nothing but rows."""
    links = {each.link: {"data": "digits", "variant": "default", "snr_db": 12.0} for each in rows}
    return BenchRecord(
        name="made",
        title="Made by hand",
        variant="default",
        code_sha256="0",
        recipe={"links": links, "attacks": {}, "evaluation": {"snr_db": [12.0]}},
        recipe_sha256="0",
        data={"digits": {"sha256": "feed"}},
        made=[],
        cells=[],
        rows=list(rows),
        differences=[],
        written="now",
    )


# What changed


def test_a_record_is_the_same_as_itself(small):
    for store in (None, small.store):
        found = compare(small.record, small.record, store)
        assert (found.changed, found.only_first, found.only_second) == ([], [], [])
        assert [each.key for each in found.numbers] == [each.key for each in small.record.rows]
        assert {each.difference.mean for each in found.numbers} == {0}
        assert {(each.p_value, each.p_holm) for each in found.numbers} == {(1.0, 1.0)}


def change_link(name, **values):
    def change(content):
        content["recipe"]["links"][name] |= values

    return change


def change_made(what, value, *steps):
    def change(content):
        for made in content["made"]:
            if not steps or made["step"] in steps:
                outer, _, inner = what.partition(".")
                made[outer] = made[outer] | {inner: value} if inner else value

    return change


def change_data(content):
    content["data"]["digits"]["splits"]["test"]["sha256"] = "beef"


def rename(content):
    content["name"] = content["recipe"]["name"] = "other"
    content["written"] = "later"


def altered(record, change):
    content = json.loads(record.model_dump_json())
    change(content)
    return BenchRecord.model_validate(content)


TRAINED = ["train deepjscc", "train deepjscc-encryption"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (rename, []),
        (change_link("keyed", snr_db=3.0), [("recipe.links.snr_db", ["keyed"], 12.0, 3.0)]),
        (change_link("keyed", options={"fresh": True}), [("recipe.links.options.fresh", ["keyed"], None, True)]),
        (
            lambda c: [change_link(name, snr_db=3.0)(c) for name in ("plain", "keyed")],
            [("recipe.links.snr_db", [], 12.0, 3.0)],
        ),
        (
            lambda c: c["recipe"]["attacks"]["with-key"].update(snr_db=3.0),
            [("recipe.attacks.snr_db", ["with-key"], None, 3.0)],
        ),
        (lambda c: c["recipe"]["evaluation"].update(draws=9), [("recipe.evaluation.draws", [], 2, 9)]),
        (lambda c: c["recipe"].update(variant="half"), [("recipe.variant", [], "default", "half")]),
        (change_data, [("data.digits.splits.test.sha256", [], ..., "beef")]),
        (change_made("libraries.torch", "1.0"), [("libraries.torch", [], ..., "1.0")]),
        (change_made("libraries.torch", "1.0", "train"), [("libraries.torch", TRAINED, ..., "1.0")]),
        (change_made("machine.threads", 64, "train"), [("machine.threads", TRAINED, "1", "64")]),
        (change_made("precision", "bf16"), [("precision", [], "fp32", "bf16")]),
        (change_made("semlink", "9.9"), [("semlink", [], ..., "9.9")]),
        (change_made("step_sha256", "c0de"), [("code", [], ..., ...)]),
        (change_made("step_sha256", "c0de", "train"), [("code", TRAINED, ..., dict.fromkeys(TRAINED, "c0de"))]),
    ],
)
def test_what_changed_is_named_once(small, change, said):
    other = altered(small.record, change)
    for first, second, backwards in ((small.record, other, False), (other, small.record, True)):
        found = [(each.what, each.of, each.first, each.second) for each in compare(first, second).changed]
        assert len(found) == len(said)
        for (what, of, *values), wanted in zip(found, said, strict=True):
            assert (what, of) == wanted[:2]
            before, after = reversed(values) if backwards else values
            assert wanted[2] in (..., before)
            assert wanted[3] in (..., after)
            assert before != after


def test_several_versions_in_one_record_are_all_named(small):
    content = json.loads(small.record.model_dump_json())
    content["made"].append(content["made"][0] | {"semlink": "9.9"})
    (found,) = compare(small.record, BenchRecord.model_validate(content)).changed
    assert (found.what, found.of, found.second) == ("semlink", ["train deepjscc"], f"{found.first} or 9.9")


def test_what_only_one_has_is_listed_and_no_change_of_the_rest():
    first = bench(row("a", {0: 1.0}), row("a", {0: 1.0}, snr_db=4.0), row("b", {0: 1.0}))
    second = bench(row("a", {0: 1.0}), row("c", {0: 1.0}))
    found = compare(first, second)
    assert [each.key for each in found.only_first] == [("a", None, "accuracy", 4.0), ("b", None, "accuracy", 12.0)]
    assert [each.key for each in found.only_second] == [("c", None, "accuracy", 12.0)]
    assert [each.key for each in found.numbers] == [("a", None, "accuracy", 12.0)]
    assert [(each.what, each.first is None) for each in found.changed] == [
        ("recipe.links.b", False),
        ("recipe.links.c", True),
    ]


def test_records_that_have_nothing_in_common_do_not_fit_together():
    with pytest.raises(SemlinkError, match=r"\(variant .*\) and .* have no number in common"):
        compare(bench(row("a", {0: 1.0})), bench(row("b", {0: 1.0}), row("c", {0: 1.0})))


# Which numbers differ


def test_seeds_that_differ_strongly_are_significant_after_correction():
    strong, weak, none = {0: 80.0, 1: 80.2, 2: 79.9}, {0: 70.0, 1: 71.0, 2: 69.0}, {0: 60.0, 1: 61.0, 2: 62.0}
    first = bench(row("strong", strong), row("weak", weak), row("none", none))
    after = [{0: 85.0, 1: 85.3, 2: 84.8}, {0: 71.0, 1: 71.5, 2: 71.0}, {0: 61.0, 1: 60.0, 2: 62.5}]
    second = bench(*(row(each.link, means) for each, means in zip(first.rows, after, strict=True)))
    found = compare(first, second)
    tests = [
        stats.ttest_rel(list(b.values()), list(a.values())) for a, b in zip((strong, weak, none), after, strict=True)
    ]
    for each, test in zip(found.numbers, tests, strict=True):
        assert each.over == "seeds"
        assert each.p_value == pytest.approx(test.pvalue)
        low, high = test.confidence_interval()
        assert (each.difference.low, each.difference.high) == (
            pytest.approx(low, abs=1e-6),
            pytest.approx(high, abs=1e-6),
        )
        assert each.difference.mean == pytest.approx(each.second.mean - each.first.mean, abs=2e-6)
    p = [test.pvalue for test in tests]
    assert p[0] < p[1] < p[2]
    assert [each.p_holm for each in found.numbers] == pytest.approx([3 * p[0], max(3 * p[0], 2 * p[1]), p[2]])
    assert [each.p_holm < 0.05 for each in found.numbers] == [True, False, False]


def test_other_seeds_are_not_paired():
    a, b = {0: 80.0, 1: 81.0, 2: 82.0}, {3: 84.0, 4: 85.5, 5: 85.0, 6: 88.0}
    (found,) = compare(bench(row("x", a)), bench(row("x", b))).numbers
    test = stats.ttest_ind(list(b.values()), list(a.values()), equal_var=False)
    assert (found.over, found.difference.n) == ("seeds", 7)
    assert found.p_value == pytest.approx(test.pvalue)
    assert found.difference.low == pytest.approx(test.confidence_interval().low, abs=1e-6)


def test_one_seed_against_several_is_compared_with_its_like():
    first, second = bench(row("x", {1: 80.0})), bench(row("x", {0: 90.0, 1: 81.0, 2: 90.0}))
    (found,) = compare(first, second).numbers
    assert (found.first.mean, found.second.mean, found.difference.mean) == (80.0, 81.0, 1.0)
    assert found.over == "intervals"
    (found,) = compare(bench(row("x", {5: 80.0})), second).numbers  # no seed in common
    assert (found.first.mean, found.second.mean) == (80.0, 87.0)


def one_seed(small, seed):
    """The record of the cells of one seed, called seed 0."""
    cells = [dataclasses.replace(cell, seed=0) for cell in small.graph.cells if cell.seed == seed]
    return results.gather(Graph(small.graph.recipe, cells), small.store)


def images(small, each, seed):
    step = "judge" if each.attack else "evaluate"
    found = load_file(small.folder(step, each.link, seed, each.attack) / f"{step}.safetensors")
    return found[f"{each.metric}@{each.snr_db:g}"].double().numpy() * (100 if each.metric == "accuracy" else 1)


def test_one_seed_is_paired_by_images_if_the_store_has_them(small):
    first, second = one_seed(small, 0), one_seed(small, 1)
    found = [each for each in compare(first, second, small.store).numbers if each.over == "images"]
    assert {(each.name, each.metric) for each in found} == {
        *((link, "accuracy") for link in ("plain", "keyed")),
        *((f"{name}, inversion", m) for name in ("plain", "keyed") for m in ("psnr_db", "mi_leakage")),
        *(("keyed, with-key", m) for m in ("psnr_db", "mi_leakage")),
    }
    for each in found:
        sample = [images(small, each, seed) for seed in (1, 0)]
        test = stats.ttest_rel(*sample)
        assert each.p_value == pytest.approx(test.pvalue, rel=1e-3, abs=1e-12)
        assert each.difference.low == pytest.approx(test.confidence_interval().low, abs=1e-4)
        assert each.difference.mean == pytest.approx(each.second.mean - each.first.mean, abs=1e-4)


def test_without_the_store_the_intervals_must_do(small):
    first, second = one_seed(small, 0), one_seed(small, 1)
    found = compare(first, second).numbers
    assert {each.over for each in found} == {"intervals"}
    for each in found:
        if each.metric == "psnr_db" and each.snr_db is not None:
            sides = [images(small, each, seed) for seed in (1, 0)]
            test = stats.ttest_ind(*sides, equal_var=False)
            assert each.p_value == pytest.approx(test.pvalue, rel=1e-2, abs=1e-12)
            assert each.difference.high == pytest.approx(test.confidence_interval().high, abs=1e-4)


def test_images_are_not_paired_across_data_or_with_another_machines_values(small):
    first, second = one_seed(small, 0), one_seed(small, 1)
    other = second.model_copy(update={"data": {"digits": second.data["digits"] | {"sha256": "beef"}}})
    assert {each.over for each in compare(first, other, small.store).numbers} == {"intervals"}

    def shift(content):
        for each in content["rows"]:
            each["seeds"]["0"]["mean"] += 0.01

    elsewhere = altered(second, shift)
    found = compare(first, elsewhere, small.store).numbers
    assert {each.over for each in found} == {"intervals"}
    assert all(each.difference.mean == pytest.approx(each.second.mean - each.first.mean, abs=1e-5) for each in found)


def test_a_baseline_is_compared_over_images_however_many_seeds(small):
    def worse(content):
        for each in content["rows"]:
            if each["attack"] == "mean_image" and each["metric"] == "psnr_db":
                for found in each["seeds"].values():
                    found |= {key: found[key] - 0.5 for key in ("mean", "low", "high")}

    found = compare(small.record, altered(small.record, worse), small.store).numbers
    differing = [each for each in found if each.p_value < 1]
    assert {(each.name, each.over) for each in differing} == {
        ("plain, mean_image", "intervals"),
        ("keyed, mean_image", "intervals"),
    }
    before = differing[0].first
    error = (before.high - before.low) / 2 / stats.t.ppf(0.975, before.n - 1)
    t = 0.5 / np.hypot(error, error)
    assert differing[0].p_value == pytest.approx(2 * stats.t.sf(t, 2 * (before.n - 1)), rel=1e-3)


# Files


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train.json", "bench.json"], "train.json is damaged: field"),
        (["bench.json", "newer.json"], "newer.json has format 99, made by a newer Semlink"),
        (["bench.json", "nonsense.json"], "nonsense.json is not a Semlink record, or is damaged"),
        (["bench.json", "nowhere.json"], "record nowhere.json cannot be read: No such file"),
        (["bench.json", "."], ". is a folder; give a .toml file"),
        (["bench.json", "strat"], "unknown bench 'strat'; did you mean 'start'? known: "),
        (["bench.json", "start"], "recipe 'start' (variant default) has not been run here"),
        (["bench.json", "start@uses"], "unknown variant of start 'uses'; did you mean 'uses-128'?"),
        (["small.toml@none", "bench.json"], "unknown variant of small.toml 'none'; known: default"),
        (["bench.json", "bench.json", "--store", "nowhere"], "there is no store at nowhere; 'semlink bench' makes one"),
        (["bench.json"], "'semlink bench compare' needs SECOND"),
    ],
)
def test_what_cannot_be_compared_is_told_in_one_line(small, tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    record.write(tmp_path / "bench.json", small.record)
    (tmp_path / "small.toml").write_text((small.store.root.parent / "small.toml").read_text())
    trained = (small.folder("train", "plain") / "run" / "record.json").read_text()
    (tmp_path / "train.json").write_text(trained)
    (tmp_path / "newer.json").write_text(json.dumps(json.loads(small.record.model_dump_json()) | {"format": 99}))
    (tmp_path / "nonsense.json").write_text("nonsense")
    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.setenv("SEMLINK_STORE", str(small.store.root))
    assert main(["bench", "compare", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_records_need_no_store_and_recipes_do(small, tmp_path, monkeypatch, capsys):
    path = tmp_path / "bench.json"
    record.write(path, small.record)
    monkeypatch.setenv("SEMLINK_STORE", str(tmp_path / "none"))
    assert main(["bench", "compare", str(path), str(path)]) == 0
    assert "nothing changed" in capsys.readouterr().out
    assert main(["bench", "compare", str(path), "start"]) == 2
    assert "there is no store at" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_recipe_file_stands_for_what_was_found_here(small, tmp_path, monkeypatch, capsys):
    path = tmp_path / "here@home.json"  # a file may have an @ in its name, and a folder too
    record.write(path, small.record)
    file = tmp_path / "me@work" / "small.toml"
    file.parent.mkdir()
    file.write_text((small.store.root.parent / "small.toml").read_text())
    monkeypatch.setenv("SEMLINK_STORE", str(small.store.root))
    for name in (str(file), f"{file}@default"):
        assert main(["bench", "compare", str(path), name, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["changed"] == []
        assert {each["p_holm"] for each in found["numbers"]} == {1.0}
