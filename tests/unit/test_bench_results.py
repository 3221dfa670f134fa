# SPDX-License-Identifier: Apache-2.0
"""What a bench found: its numbers against scipy on the values of each image, what is missing, mixed or damaged."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import stats

from semlink import data
from semlink._errors import SemlinkError
from semlink.attacks import Inversion
from semlink.bench import graph as graphs
from semlink.bench import judge, recipes, record, results, steps
from semlink.bench.graph import Graph
from semlink.bench.record import Measurement
from semlink.bench.results import BenchRecord
from semlink.bench.rows import BASELINES, Measured, rows
from semlink.metrics import Interval
from semlink.report.bench import tables

GRID = (12.0, 4.0)
SCALE = {"accuracy": 100}


def values(small, metric, snr_db, link, seed, attack=None):
    """The stored value of each test image, as the unit of the record."""
    step = "judge" if attack else "evaluate"
    found = load_file(small.folder(step, link, seed, attack) / f"{step}.safetensors")
    return found[f"{metric}@{snr_db:g}"].double().numpy() * SCALE.get(metric, 1)


def ends(sample):
    return stats.t.interval(0.95, len(sample) - 1, np.mean(sample), stats.sem(sample))


def measured(row):
    return row.attack not in BASELINES and row.metric != "balanced_accuracy"


def edit(path, change):
    """Rewrite a JSON file after ``change`` has been made to it in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# Numbers


def test_every_number_of_a_seed_is_that_of_its_images(small):
    rows = [row for row in small.record.rows if measured(row)]
    assert len(rows) == 2 * (2 + 2 * 3)  # SNRs; links, and two metrics of three attacks
    for row in rows:
        assert sorted(row.seeds) == [0, 1]
        for seed, found in row.seeds.items():
            images = values(small, row.metric, row.snr_db, row.link, seed, row.attack)
            assert found.n == len(images) == 512
            assert found.mean == pytest.approx(images.mean(), abs=2e-5)
            low, high = ends(images)
            if row.metric == "mi_leakage":  # resampled: its ends are about where the normal ones are
                width = high - low
                assert (found.low, found.high) == (
                    pytest.approx(low, abs=width / 8),
                    pytest.approx(high, abs=width / 8),
                )
                assert found.method == "percentile bootstrap over images"
            else:
                assert (found.low, found.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_balanced_accuracy_is_the_mean_over_classes(small):
    for row in small.record.rows:
        if row.metric == "balanced_accuracy":
            for seed, found in row.seeds.items():
                correct = values(small, "accuracy", row.snr_db, row.link, seed)
                folder = small.folder("evaluate", row.link, seed)
                targets = load_file(folder / "evaluate.safetensors")["targets"].numpy()
                by_class = [correct[targets == label].mean() for label in range(10)]
                assert found.mean == pytest.approx(np.mean(by_class), abs=2e-5)


def test_intervals_over_seeds_are_students(small):
    for row in small.record.rows:
        if row.attack in BASELINES:
            continue
        means = [found.mean for found in row.seeds.values()]
        low, high = ends(means)
        assert row.shown is row.over_seeds
        assert row.over_seeds.mean == pytest.approx(np.mean(means), abs=1e-6)
        assert (row.over_seeds.low, row.over_seeds.high) == (
            pytest.approx(low, abs=2e-6),
            pytest.approx(high, abs=2e-6),
        )
        assert (row.over_seeds.n, row.over_seeds.method) == (2, "student-t over seeds")


def sides(small, difference, over):
    """Both sides of a difference, a number for each seed or image."""
    found = []
    for name in (difference.second, difference.first):
        link, _, attack = name.partition(", ")
        each = [values(small, difference.metric, difference.snr_db, link, s, attack or None) for s in (0, 1)]
        found.append(np.mean(each, axis=1 if over == "seeds" else 0))
    return found


@pytest.mark.parametrize("over", ["seeds", "images"])
def test_differences_are_paired_t_tests_against_the_first_row(small, over):
    found = [each for each in small.record.differences if each.over == over]
    testable = [each for each in found if each.metric != "balanced_accuracy"]
    assert {(each.metric, each.first, each.second) for each in testable} == {
        ("accuracy", "plain", "keyed"),
        *((m, "plain, inversion", f"keyed, {a}") for m in ("psnr_db", "mi_leakage") for a in ("inversion", "with-key")),
    }
    assert len(testable) == 10  # at two SNRs
    for each in testable:
        test = stats.ttest_rel(*sides(small, each, over))
        low, high = test.confidence_interval()
        close = {"rel": 2e-3, "abs": 5e-4}  # means were rounded, and float32
        assert each.seeds == [0, 1]
        assert each.difference.mean == pytest.approx(np.subtract(*sides(small, each, over)).mean(), abs=1e-5)
        assert (each.difference.low, each.difference.high) == (
            pytest.approx(low, **close),
            pytest.approx(high, **close),
        )
        assert each.p_value == pytest.approx(test.pvalue, **close)
        assert each.difference.n == (2 if over == "seeds" else 512)
    assert [each.metric for each in found if each not in testable] == ["balanced_accuracy"] * (
        2 if over == "seeds" else 0
    )


def test_p_values_are_corrected_for_all_differences_over_the_same(small):
    for over in ("seeds", "images"):
        found = sorted((d for d in small.record.differences if d.over == over), key=lambda each: each.p_value)
        raw = np.array([each.p_value for each in found])
        wanted = np.minimum(1, np.maximum.accumulate(raw * np.arange(len(raw), 0, -1)))
        assert [each.p_holm for each in found] == pytest.approx(list(wanted))
    assert any(each.p_holm < 0.05 for each in small.record.differences)  # over 512 images something shows


def test_an_untested_difference_has_no_p_value():
    with pytest.raises(ValueError, match="was not tested"):
        results.p_value(Interval(0.0, -1.0, 1.0, 5, "student-t over images"))


# Rows


def test_rows_follow_the_recipe(small):
    said = [(row.name, row.metric, row.snr_db) for row in small.record.rows]

    def series(name, *metrics, grid=GRID):
        return [(name, metric, snr) for metric in metrics for snr in grid]

    baselines = ("psnr_db", "mi_leakage")
    wanted = []
    for link, attacks in {"plain": ("inversion",), "keyed": ("inversion", "with-key")}.items():
        wanted += series(link, "accuracy", "balanced_accuracy")
        for name in ("mean_image", "class_mean"):
            wanted += series(f"{link}, {name}", *baselines, grid=(None,))
        for attack in attacks:
            wanted += series(f"{link}, {attack}", *baselines)
    assert said == wanted
    assert len({row.key for row in small.record.rows}) == len(said)


def test_a_baseline_is_known_without_listening_or_training(small):
    judged = record.read(small.folder("judge", "plain", 0, "inversion") / "judge.json", record.JudgeRecord)
    rows = [row for row in small.record.rows if row.attack in BASELINES]
    assert len(rows) == 2 * 2 * 2
    for row in rows:
        assert (row.snr_db, row.over_seeds, row.converged) == (None, None, None)
        assert row.seeds[0] == row.seeds[1] == row.shown == judged.baselines[row.attack][row.metric]
        assert row.shown.n == 512


def test_an_attack_is_converged_if_it_is_with_every_seed(small, tmp_path):
    def flags(of):
        found = results.gather(of.graph, of.store)
        return {row.converged for row in found.rows if row.name == "keyed, with-key"}

    assert {row.converged for row in small.record.rows if row.attack is None} == {None}
    assert flags(small) == {False}
    other = small.copy(tmp_path / "store")
    for seed, wanted in ((1, {False}), (0, {True})):
        edit(other.folder("judge", "keyed", seed, "with-key") / "judge.json", lambda said: said.update(converged=True))
        assert flags(other) == wanted


def test_links_on_other_images_are_not_compared(small):
    entry = small.graph.recipe.links["keyed"]
    for change in ({"data": "mnist"}, {"variant": "other"}):
        links = small.graph.recipe.links | {"keyed": entry.model_copy(update=change)}
        recipe = small.graph.recipe.model_copy(update={"links": links})
        found = results.gather(Graph(recipe, small.graph.cells), small.store)
        compared = {(each.first, each.second) for each in found.differences}
        assert compared == {("keyed, inversion", "keyed, with-key")}  # both on the link's own


def test_two_variants_of_a_data_set_are_both_in_the_record(small, tmp_path):
    other = small.copy(tmp_path / "store")
    for cell in other.graph.cells:
        if cell.link == "keyed":
            folder = other.store.folder(cell.name)
            path = next(folder / name for name, _ in record._OF_STEP.values() if (folder / name).exists())
            edit(path, lambda said: said["data"].update(variant="half"))
    found = results.gather(other.graph, other.store)
    assert {key: each["variant"] for key, each in found.data.items()} == {"digits": "default", "digits/half": "half"}


# Attacks that are judged on few images


def test_a_dear_attack_is_judged_on_the_first_images_and_baselines_are_of_the_most(small, tmp_path, monkeypatch):
    run, made = small.folder("train", "plain") / "run", small.folder("attack", "plain", 0, "inversion")
    arguments = ([12.0], 2, 0, ["psnr_db"], torch.device("cpu"))
    whole = judge.judge(run, steps.read_plan(made), made / "attack", *arguments, tmp_path / "whole.json")
    monkeypatch.setattr(Inversion, "most_images", 100)
    few = judge.judge(run, steps.read_plan(made), made / "attack", *arguments, tmp_path / "few.json")
    assert (whole.images["test"], few.images["test"]) == (512, 100)
    first, second = (load_file(tmp_path / f"{name}.safetensors")["psnr_db@12"] for name in ("whole", "few"))
    assert (len(first), len(second)) == (512, 100)
    # what is drawn of an image depends on the noise of its batch alone; means are of the images that were judged
    assert few.points[0]["psnr_db"].n == few.baselines["mean_image"]["psnr_db"].n == 100
    assert few.points[0]["psnr_db"].mean == pytest.approx(second.double().mean().item(), abs=1e-4)
    measured = [Measured("plain", "inversion", 0, whole), Measured("plain", "dear", 0, few)]
    for order in (measured, measured[::-1]):
        found = list(rows(order, ["plain"], ["inversion", "dear"], ["psnr_db"]))
        assert {row.attack: row.shown.n for row in found} == {
            "mean_image": 512,
            "class_mean": 512,
            "inversion": 512,
            "dear": 100,
        }


def test_seeds_of_which_one_has_less_stand_side_by_side(small):
    done = record.of_step(small.folder("judge", "plain", 0, "inversion"), "judge")
    bare = {name: {k: v for k, v in found.items() if k != "mi_leakage"} for name, found in done.baselines.items()}
    less = done.model_copy(update={"baselines": bare})
    for first, second in ((done, less), (less, done)):
        measured = [Measured("plain", "inversion", 0, first), Measured("plain", "inversion", 1, second)]
        found = {row.metric: row for row in rows(measured, ["plain"], ["other"], ["psnr_db", "mi_leakage"])}
        assert (len(found["psnr_db"].seeds), len(found["mi_leakage"].seeds)) == (2, 1)


def db(mean, n, half=0.2):
    return Measurement(mean=mean, low=mean - half, high=mean + half, n=n, unit="dB", level=0.95, method="by hand")


def judged(small, drawn, guess, images, attack="inversion", seed=0):
    """A judgement of an attack, by hand."""
    done = record.of_step(small.folder("judge", "plain", seed, "inversion"), "judge")
    points = [{"snr_db": 4.0, "psnr_db": db(0.0, images)}, {"snr_db": 12.0, "psnr_db": db(drawn, images)}]
    baselines = {"mean_image": {"psnr_db": db(guess, images)}}
    update = {"points": points, "baselines": baselines, "images": done.images | {"test": images}}
    return Measured("plain", attack, seed, done.model_copy(update=update))


def with_rows(small, *measured):
    recipe = small.record.recipe
    attacks = {each.attack: recipe["attacks"]["inversion"] for each in measured}
    found = list(rows(measured, ["plain"], attacks, ["psnr_db"]))
    return small.record.model_copy(update={"rows": found, "recipe": recipe | {"attacks": attacks}})


@pytest.mark.parametrize(
    ("drawn", "guess", "images"),
    [
        (12.5, 12.6, 100),  # the intervals overlap, and still she could have shown the mean image
        (12.5, 12.4, 100),  # not of these images, though the mean image scores 12.9 on those of the other attack
        (13.0, 13.1, 100),  # of these images, though she beats what the mean image scores on the others
        (12.8, 12.9, 512),
        (13.0, 12.9, 512),
    ],
)
def test_an_attack_is_held_to_the_mean_image_of_its_own_images(small, drawn, guess, images):
    other, one = judged(small, 13.5, 12.9, 512, "other"), judged(small, drawn, guess, images)
    found = with_rows(small, other, one)
    assert one.record.poor == (drawn < guess)
    assert found.poor() == ({("plain", "inversion")} if one.record.poor else set())
    (level,) = (row for row in found.rows if row.attack == "mean_image")
    assert level.shown == db(12.9, 512)  # on the page it stands once
    assert {row.attack: row.mean_image for row in found.rows if row.snr_db == 12.0} == {
        "other": {0: db(12.9, 512)},
        "inversion": {0: db(guess, images)},
    }


def test_one_judgement_below_the_mean_image_marks_the_attack(small):
    seeds = [judged(small, drawn, 12.0, 512, seed=seed) for seed, drawn in enumerate((11.9, 14.0))]
    assert [each.record.poor for each in seeds] == [True, False]
    assert with_rows(small, *seeds).poor() == with_rows(small, *seeds[::-1]).poor() == {("plain", "inversion")}
    assert with_rows(small, seeds[1]).poor() == set()


def test_the_record_says_of_every_attack_what_its_judgements_say(small):
    judgements = [each for each in small.graph.cells if each.step == "judge"]
    said = {(c.link, c.attack, c.seed): record.of_step(small.store.folder(c.name), "judge") for c in judgements}
    assert small.record.poor() == {(link, attack) for (link, attack, _), each in said.items() if each.poor}
    for row in small.record.rows:
        attacked = row.attack is not None and row.attack not in BASELINES
        assert row.trained_snr_db == (12.0 if attacked else None)
        if attacked and row.metric == "psnr_db":
            mine = {s: each for (link, attack, s), each in said.items() if (link, attack) == (row.link, row.attack)}
            assert row.mean_image == {s: each.baselines["mean_image"]["psnr_db"] for s, each in mine.items()}
        else:
            assert row.mean_image is None


def test_a_record_of_an_earlier_version_holds_all_to_its_one_mean_image(small, tmp_path):
    def strip(content):
        for row in content["rows"]:
            del row["mean_image"], row["trained_snr_db"]

    for drawn, guess in ((12.5, 12.4), (13.0, 13.1)):
        found = with_rows(small, judged(small, 13.5, 12.9, 512, "other"), judged(small, drawn, guess, 100))
        path = tmp_path / "record.json"
        record.write(path, found)
        edit(path, strip)
        assert record.read(path, BenchRecord).poor() == ({("plain", "inversion")} if drawn < 12.9 else set())


# Missing


def test_what_is_missing_is_named(small, tmp_path):
    other = small.copy(tmp_path / "store")
    failed, begun = other.folder("judge", "keyed", 1, "inversion"), other.folder("evaluate", "plain", 1)
    new = other.folder("judge", "keyed", 1, "with-key")
    for folder in (failed, begun):
        (folder / "done.json").unlink()
    (failed / "failed.json").write_text(json.dumps({"error": "no space left", "when": "now"}))
    shutil.rmtree(new)
    found = results.gather(other.graph, other.store)
    assert {(cell.name, cell.state, cell.error) for cell in found.missing} == {
        (failed.name, "failed", "no space left"),
        (begun.name, "begun", None),
        (new.name, "new", None),
    }
    assert len(found.cells) == 24
    alone = {row.name for row in found.rows if row.over_seeds is None and row.attack not in BASELINES}
    assert alone == {"plain", "keyed, inversion", "keyed, with-key"}
    for row in found.rows:
        if row.name in alone:
            assert list(row.seeds) == [0]
            assert row.shown is row.seeds[0]
    over = {(each.second, each.over, *each.seeds) for each in found.differences if each.metric != "balanced_accuracy"}
    assert over == {(name, "images", 0) for name in ("keyed", "keyed, inversion", "keyed, with-key")}


def test_nothing_done_is_an_empty_record(small, tmp_path):
    found = results.gather(small.graph, type(small.store)(tmp_path / "store"))
    assert (found.rows, found.differences, found.made, found.data) == ([], [], [], {})
    assert {cell.state for cell in found.missing} == {"new"}
    assert len(found.missing) == 24


def test_values_that_are_not_those_of_the_record_are_not_paired(small, tmp_path):
    other = small.copy(tmp_path / "store")
    path = other.folder("evaluate", "keyed", 0) / "evaluate.safetensors"
    save_file({name: value * 0.5 for name, value in load_file(path).items()}, path)
    row = next(row for row in small.record.rows if row.name == "keyed")
    assert sorted(results.per_image(small.record.cells, small.store, row)) == [0, 1]
    assert sorted(results.per_image(small.record.cells, other.store, row)) == [1]


# Mixed


def test_cells_made_alike_are_not_called_mixed(small):
    assert small.record.mixed() == []
    assert len({made.step_sha256 for made in small.record.made if made.step == "train"}) == 2  # each scheme has its own


@pytest.mark.parametrize(
    ("cell", "path", "change", "said"),
    [
        (
            ("evaluate", "plain", 1),
            "evaluate.json",
            {"machine": {"threads": 64}},
            "machine.threads is 1 or 64 in cells of 'evaluate'",
        ),
        (
            ("evaluate", "keyed", 0),  # the other scheme's cells were made as before
            "evaluate.json",
            {"machine": {"processor": "Abacus"}},
            "machine.processor is {processor} or Abacus in cells of 'evaluate'",
        ),
        (
            ("train", "keyed", 1),
            "run/record.json",
            {"libraries": {"torch": "2.6.0"}},
            "libraries.torch is {torch} or 2.6.0 in cells of 'train'",
        ),
        (
            ("judge", "keyed", 1, "with-key"),
            "judge.json",
            {"settings": {"precision": "bf16"}},
            "precision is fp32 or bf16 in cells of 'judge'",
        ),
        (
            ("attack", "plain", 1, "inversion"),
            "attack/record.json",
            {"step_sha256": "0" * 64},
            "step_sha256 is {step} or 000000000000 in cells of 'attack inversion deepjscc'",
        ),
    ],
)
def test_what_was_made_otherwise_is_told(small, tmp_path, cell, path, change, said):
    other = small.copy(tmp_path / "store")
    first = next(made for made in small.record.made if made.of == "attack inversion deepjscc")
    known = {"processor": first.machine["processor"], "torch": first.libraries["torch"], "step": first.step_sha256[:12]}

    def alter(content):
        for key, value in change.items():
            content[key] = content[key] | value if isinstance(value, dict) else value

    edit(other.folder(*cell) / path, alter)
    assert results.gather(other.graph, other.store).mixed() == [said.format(**known)]


# Files


@pytest.mark.parametrize(
    ("cell", "path", "content", "said"),
    [
        (("judge", "keyed", 0, "inversion"), "judge.json", "{", "is not a Semlink record, or is damaged"),
        (("evaluate", "plain"), "evaluate.json", '{"format": 2}', "is damaged: field"),
        (("train", "plain"), "run/record.json", '{"format": 99}', "has format 99, made by a newer Semlink"),
        (("attack", "plain", 0, "inversion"), "attack/record.json", None, "cannot be read: No such file"),
        (("evaluate", "plain"), "evaluate.safetensors", "no tensors", "is damaged ("),
        (("train", "keyed"), "done.json", "{}", "is damaged; remove"),
        (("train", "keyed"), "done.json", '{"seconds": "long", "declared": []}', "is damaged; remove"),
        (("train", "keyed"), "done.json", "[", "is damaged: a JSON object is expected"),
    ],
)
def test_what_is_damaged_is_named_in_one_line(small, tmp_path, cell, path, content, said):
    other = small.copy(tmp_path / "store")
    broken = other.folder(*cell) / path
    broken.unlink() if content is None else broken.write_text(content)
    with pytest.raises(SemlinkError) as caught:
        results.gather(other.graph, other.store)
    assert said in str(caught.value)
    assert str(broken) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_record_survives_json(small, tmp_path):
    record.write(tmp_path / "record.json", small.record)
    assert record.read(tmp_path / "record.json", BenchRecord) == small.record
    assert BenchRecord.model_validate_json(small.record.model_dump_json()) == small.record


def test_the_record_is_written_when_it_changed_and_only_then(small, tmp_path, monkeypatch):
    other = small.copy(tmp_path / "store")
    monkeypatch.setattr(results, "now", lambda: "first")
    first, path = results.write(other.graph, other.store)
    assert path == tmp_path / "store" / "benches" / "small" / "record.json"
    inode = path.stat().st_ino
    monkeypatch.setattr(results, "now", lambda: "second")
    assert results.write(other.graph, other.store) == (first, path)
    assert (path.stat().st_ino, first.written) == (inode, "first")
    (other.folder("judge", "keyed", 1, "with-key") / "done.json").unlink()
    second, _ = results.write(other.graph, other.store)
    assert second.written == record.read(path, BenchRecord).written == "second"
    assert len(second.missing) == 1
    for damage in ("{", '{"format": 1}', '{"format": 2, "kind": "bench"}'):
        path.write_text(damage)
        assert results.write(other.graph, other.store)[0] == record.read(path, BenchRecord) == second


def test_a_bench_is_shown_without_its_data(small, tmp_path, monkeypatch):
    def absent(*names):
        raise AssertionError("images were asked for")

    monkeypatch.setattr(data, "load", absent)
    file = small.store.root.parent / "small.toml"
    folder = results.folder_of(small.graph.recipe, small.store)
    again = graphs.load(folder, recipes.load(str(file)))
    assert [(cell.name, cell.label) for cell in again.cells] == [(cell.name, cell.label) for cell in small.graph.cells]
    assert results.gather(again, small.store).rows == small.record.rows
    (tmp_path / "small.toml").write_text(file.read_text().replace("draws = 2", "draws = 3", 1))
    with pytest.raises(SemlinkError, match="recipe 'small' has changed since it was run"):
        graphs.load(folder, recipes.load(str(tmp_path / "small.toml")))
    (tmp_path / "small.toml").write_text(file.read_text().replace("Does a key", "Would a key"))
    assert graphs.load(folder, recipes.load(str(tmp_path / "small.toml"))).cells == again.cells


def test_a_variant_has_a_folder_of_its_own(small):
    recipe = small.graph.recipe
    names = [recipe, recipe.model_copy(update={"variant": "uses-128"}), recipe.model_copy(update={"name": "a/fig3"})]
    folders = [results.folder_of(each, small.store).relative_to(small.store.root).as_posix() for each in names]
    assert folders == ["benches/small", "benches/small@uses-128", "benches/a-fig3"]


def test_what_links_cost_stands_in_the_record_and_in_its_tables(small):
    assert [each.link for each in small.record.costs] == list(small.record.recipe["links"])
    for each in small.record.costs:
        trained = [
            record.read(small.folder("train", each.link, seed) / "run" / "record.json", record.TrainRecord)
            for seed in (0, 1)
        ]
        assert (each.parameters, each.multiply_adds) == (trained[0].parameters, trained[0].multiply_adds)
        seconds = [row["epoch_seconds"] for one in trained for row in one.history]
        assert each.epoch_seconds == pytest.approx(np.median(seconds), abs=1e-3)
        assert each.epochs == len(trained[0].history)
    head, *lines = tables(small.record)[-1]
    assert head[:3] == ["Cost", "parameters", "multiply-adds, transmitter"]
    assert "ms to transmit" not in head  # a busy machine tells no time
    assert [line[0] for line in lines] == [each.link for each in small.record.costs]
    assert lines[0][1] == f"{small.record.costs[0].parameters['total']:,}"
    assert {len(line) for line in lines} == {len(head)}
