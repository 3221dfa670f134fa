# SPDX-License-Identifier: Apache-2.0
"""A bench on the terminal and in figures: columns line up, and all that a reader must know is said."""

import json
import math
import re
from pathlib import Path

import pytest

from semlink.bench import record, results, schema
from semlink.bench.compare import compare
from semlink.bench.record import Measurement
from semlink.bench.results import BenchRecord, Difference
from semlink.bench.rows import BASELINES, Row
from semlink.report import bench as report
from semlink.report.text import columns, decimals, intervals

NUMBER = r"-?\d+\.?\d*"
CELL = re.compile(rf"({NUMBER}) \[ *({NUMBER}), *({NUMBER})\]")


def measurement(mean, half, n=3, unit="%", method="student-t over seeds"):
    return Measurement(mean=mean, low=mean - half, high=mean + half, n=n, unit=unit, method=method)


def blocks(text):
    """The tables of a text, as lists of lines: a first line whose cells begin the columns, and the rest."""
    parts = [part.split("\n") for part in text.split("\n\n")]
    return [part for part in parts if re.search(r"  (\d+ dB|SNR)  ", part[0])]


def starts(line):
    return [match.start() for match in re.finditer(r"\S+(?: \S+)*", line)]


def altered(small, change):
    content = json.loads(small.record.model_dump_json())
    change(content)
    return BenchRecord.model_validate(content)


# Numbers


@pytest.mark.parametrize(
    ("halves", "places"),
    [
        ([62.0], 0),
        ([6.2], 1),
        ([0.62], 2),
        ([0.062, 0.1], 3),
        ([0.1], 2),
        ([99.0, 0.5, 0.0007], 2),  # the median's
        ([0.0, 0.05], 3),  # no width tells nothing
        ([0.0], 2),
        ([math.inf], 2),
        ([1e-9], 6),
    ],
)
def test_as_many_decimals_as_the_interval_is_worth(halves, places):
    assert decimals([measurement(1.0, half) for half in halves]) == places


def test_numbers_of_a_table_are_as_wide_as_one_another():
    found = intervals([measurement(9.5, 0.5), measurement(-100.0, 0.31), measurement(-0.0001, 0.2)])
    assert found == [
        "   9.50 [   9.00,  10.00]",
        "-100.00 [-100.31, -99.69]",
        "   0.00 [  -0.20,   0.20]",  # no minus before a zero
    ]


def test_columns_line_up():
    assert columns([["a", "b"], ["long", ""], ["x", "y"]]) == ["a     b", "long", "x     y"]


# Tables


def test_every_column_begins_where_its_head_does(small):
    for table in blocks(report.shown(small.record)):
        offsets = starts(table[0])
        assert len(offsets) == 4  # the name, two SNRs, n
        for line in table[1:]:
            assert all(line[offset - 2 : offset].strip() == "" for offset in offsets[1:])
            assert line.endswith(":") or line[offsets[3]].isdigit()  # what the interval counts
        for kind in (False, True):  # numbers, then differences
            lines = [line for line in table if line.startswith("  ") == kind and CELL.search(line)]
            for offset in offsets[1:3]:
                dots = {line.find(".", offset) for line in lines if line[offset : offset + 12].strip()}
                assert len(dots) <= 1


def test_links_come_before_attacks_and_metrics_as_in_the_recipe(small):
    heads = [table[0].split("  ")[0] for table in blocks(report.shown(small.record))]
    assert heads == [
        "Accuracy (%), Bob at",
        "Balanced accuracy (%), Bob at",
        "PSNR (dB), Eve at",
        "MI leakage (bit), Eve at",
    ]


def test_every_number_is_shown(small):
    text = report.shown(small.record)
    shown = [tuple(map(float, match.groups())) for match in CELL.finditer(text)]
    rows = [row for row in small.record.rows if row.link == "plain" or row.attack not in BASELINES]  # baselines once
    seeds = [each for each in small.record.differences if each.over == "seeds"]
    assert len(shown) == len(rows) + len(seeds)
    for found in [*(row.shown for row in rows), *(each.difference for each in seeds)]:
        assert any(
            all(abs(a - b) <= 0.5 for a, b in zip(each, (found.mean, found.low, found.high), strict=True))
            for each in shown
        )


def test_a_line_says_what_it_counts_and_whether_the_attack_is_too_weak(small):
    text = report.shown(small.record)
    assert re.search(r"^keyed  .*  2 seeds$", text, re.MULTILINE)
    assert re.search(r"^keyed, with-key  .*  2 seeds, not converged, worse than the mean image$", text, re.MULTILINE)
    assert re.search(r"^mean image  .*  512 images$", text, re.MULTILINE)
    assert re.search(r"^  keyed, inversion  .*  2 seeds, paired$", text, re.MULTILINE)
    assert text.count("minus plain, inversion:\n") == 2
    assert "an attack that is not converged, or draws worse than the mean image, supports no claim" in text
    converged = altered(small, lambda c: [r.update(converged=True) for r in c["rows"] if r["converged"] is False])
    assert not re.search(r"seeds, not converged", report.shown(converged))


def test_who_draws_worse_than_the_mean_image_at_her_own_snr_is_marked(small):
    own = {("plain", "inversion"), ("keyed", "inversion"), ("keyed", "with-key")}
    assert small.record.poor() == own  # two epochs teach her nothing

    def better(content):
        for row in content["rows"]:
            if (row["link"], row["attack"], row["metric"], row["snr_db"]) == ("plain", "inversion", "psnr_db", 12.0):
                for seed in row["seeds"].values():
                    seed["mean"] = 99.0

    assert altered(small, better).poor() == own - {("plain", "inversion")}


def test_what_the_mean_image_scores_on_fewer_images_stands_beside_them(small):
    assert "where the mean image scores" not in report.shown(small.record)  # all are of the same images

    def dearer(content):
        for row in content["rows"]:
            if (row["link"], row["attack"], row["metric"]) == ("keyed", "with-key", "psnr_db"):
                for found in (*row["seeds"].values(), *row["mean_image"].values()):
                    found["n"] = 100
                row["mean_image"]["0"]["mean"] = 12.345

    (line,) = [line for line in report.shown(altered(small, dearer)).split("\n") if "scores" in line]
    assert re.match(r"keyed, with-key  .*  2 seeds, where the mean image scores 12\.3[45], not .*, worse than", line)


def test_only_what_is_significant_after_correction_is_starred(small):
    def significant(content):
        for each in content["differences"]:
            hit = (each["metric"], each["snr_db"], each["over"]) == ("accuracy", 4.0, "seeds")
            each["p_holm"] = 0.049 if hit else 0.05

    text = report.shown(altered(small, significant))
    (line,) = [line for line in text.split("\n") if "] *" in line]
    assert re.match(r"  keyed  +\S.*\] \*  .*\]  +2 seeds, paired", line)  # 4 dB stands first
    assert "* p < 0.05 after Holm's correction for 12 differences over seeds" in text
    assert "differences over images" not in text  # none of those is shown


def test_seeds_that_are_missing_are_told_with_each_row(small, tmp_path):
    other = small.copy(tmp_path / "store")
    for attack in ("inversion", "with-key"):
        (other.folder("judge", "keyed", 1, attack) / "done.json").unlink()
    failed = other.folder("judge", "keyed", 1, "with-key")
    (failed / "failed.json").write_text(json.dumps({"error": "no space left"}))
    text = report.shown(results.gather(other.graph, other.store))
    assert re.search(r"^keyed, inversion  .*  512 images \(seed 0 of 2\), not conv.*worse than .*$", text, re.MULTILINE)
    assert re.search(r"^  keyed, inversion  .*  512 images, paired$", text, re.MULTILINE)
    assert "differences over seeds" in text
    assert "differences over images" in text
    assert "missing: 2 of 24 cells" in text
    assert "  judge inversion on keyed: begun, seed 1" in text
    assert "  judge with-key on keyed: failed (no space left), seed 1" in text
    assert "no cell is missing" in report.shown(small.record)


def test_nothing_found_is_said_in_few_lines(small, tmp_path):
    empty = results.gather(small.graph, type(small.store)(tmp_path / "store"))
    text = report.shown(empty)
    assert "nothing made yet" in text
    assert "missing: 24 of 24 cells" in text
    assert "  train plain: not begun, seeds 0, 1" in text
    assert "  prepare digits: not begun\n" in text
    assert "  draw what Eve learns: not begun\n" in text
    assert text.count("\n") < 20


def test_an_snr_that_is_missing_is_a_gap_in_line(small):
    gone = altered(small, lambda c: c["rows"].pop(0))
    table = blocks(report.shown(gone))[0]
    assert table[1].split()[:1] == ["plain"]
    assert table[1].split()[-3] == "missing"


def test_mixed_and_adopted_cells_are_remarked(small):
    def change(content):
        content["made"].append(content["made"][0] | {"precision": "bf16"})
        content["cells"][0]["declared"] = [{"code": "c0de", "reason": "words", "when": "now"}]

    text = report.shown(altered(small, change))
    assert "mixed: precision is fp32 or bf16 in cells of 'train'" in text
    assert "1 cell was made by other code, proven by a trial" in text
    assert text.split("\n")[1].endswith(", fp32; " + text.split("\n")[1].split("; ")[1].split(", ")[0] + ", bf16")


def test_a_gpu_is_named_in_place_of_its_processor(small):
    gpu = altered(small, lambda c: [made["machine"].update(device="NVIDIA H100") for made in c["made"]])
    assert report.shown(gpu).split("\n")[1].endswith("; NVIDIA H100, fp32")


def test_attributes_share_a_table():
    rows = [
        Row(
            link=link,
            attack=None,
            metric=f"balanced_accuracy.{part}",
            snr_db=12.0,
            seeds={0: measurement(80.0 + i, 1.0, 512)},
            over_seeds=None,
            converged=None,
        )
        for i, (link, part) in enumerate([(a, b) for a in ("x", "y") for b in ("Smiling", "Bald")])
    ]
    difference = Difference(
        metric="balanced_accuracy.Bald",
        snr_db=12.0,
        first="x",
        second="y",
        over="images",
        seeds=[0],
        difference=measurement(2.0, 0.5, 512, method="paired student-t over images"),
        p_value=0.001,
        p_holm=0.001,
    )
    found = BenchRecord(
        name="faces",
        title="Faces",
        variant="default",
        code_sha256="0",
        recipe={
            "links": {"x": {"seeds": [0]}, "y": {"seeds": [0]}},
            "evaluation": {"metrics": ["balanced_accuracy"]},
        },
        recipe_sha256="0",
        data={},
        made=[],
        cells=[],
        rows=rows,
        differences=[difference],
        written="now",
    )
    (table,) = blocks(report.shown(found))
    assert [line[:12].rstrip() for line in table] == [
        "Balanced acc",
        "x: Smiling",
        "x: Bald",
        "y: Smiling",
        "y: Bald",
        "minus x:",
        "  y: Bald",
    ]


# Comparisons


def of_users(small, *means):
    """A record of a link whose users score so, by training seed."""
    about = {"link": "plain", "attack": None, "snr_db": 12.0, "converged": None}
    by_user = zip(*means, strict=True)
    rows = [
        Row(
            **about,
            metric=f"accuracy.{user}",
            seeds={i: measurement(each, 0.5) for i, each in enumerate(of)},
            over_seeds=None,
        )
        for user, of in enumerate(by_user, 1)
    ]
    return small.record.model_copy(update={"rows": rows, "differences": []})


def test_how_far_the_best_served_user_is_ahead_is_told_within_each_training(small):
    ((_, table),) = report.numbers_of(of_users(small, (60.0, 50.0, 55.0), (48.0, 54.0, 50.0)))
    name, cell, count = table[-1]
    assert (name, count) == ("plain, best less worst user", "2 seeds")
    low, mean, high = 8 - 12.706 * 2, 8, 8 + 12.706 * 2  # of 10 and 6: t of one degree of freedom, deviation / sqrt(2)
    (shown,) = CELL.findall(cell)
    assert [float(each) for each in shown] == pytest.approx([mean, low, high], abs=0.5)
    ((_, table),) = report.numbers_of(of_users(small, (60.0, 50.0)))
    assert table[-1] == ["plain, best less worst user", "10.00", "one training"]
    ((_, table),) = report.numbers_of(of_users(small, (60.0,)))
    assert len(table) == 2


@pytest.mark.parametrize(("name", "one", "ranging"), [("paper-b/cross-link-two", 0, 1), ("paper-a/attacks", 1, 0)])
def test_an_attack_on_users_who_share_a_channel_is_not_said_to_be_trained_at_one_snr(name, one, ranging):
    lines = "\n".join(report.remarks(landed(name)))
    assert lines.count("an attack is trained at one SNR") == one
    assert lines.count("trained over all SNRs") == ranging


def landed(name):
    path = Path(__file__).parents[2] / "results" / name / "record.json"
    if not path.exists():
        pytest.skip("an installed package has no results")
    return record.read(path, BenchRecord)


def test_pilots_and_feedback_are_those_of_the_scheme():
    head, *rows = report.costs_of(landed("paper-b/costs"))
    columns = [head.index(name) for name in ("pilot uses", "reals fed back", "bits fed back")]
    said = {row[0]: [row[i] for i in columns] for row in rows}
    for scheme in ("csi-free", "interference-free"):
        assert said[f"{scheme}-5"] == ["0", "0", "0"]
    for scheme in ("irsc-csir", "dispersion"):
        assert said[f"{scheme}-2"] == ["4", "0", "0"]
    for scheme in ("irsc-csitr", "semi-conventional", "adaptive-precoding"):
        assert said[f"{scheme}-2"] == ["4", "32", "1,024"]  # H is 2 x 2 matrices of 2 x 2, complex
        assert said[f"{scheme}-5"] == ["10", "200", "6,400"]
    assert "pilot uses" not in report.costs_of(landed("paper-a/table-1"))[0]


def test_a_comparison_says_what_changed_and_what_differs(small):
    def change(content):
        content["recipe"]["links"]["keyed"]["snr_db"] = 3.0
        content["recipe"]["links"]["third"] = {"scheme": "deepjscc"}
        for made in content["made"]:
            made["libraries"]["torch"] = "1.0"
            made["step_sha256"] = "c0de" if made["step"] == "judge" else made["step_sha256"]
        content["rows"] = [each for each in content["rows"] if each["snr_db"] != 4.0]
        for each in content["rows"]:
            if each["attack"] is None and each["metric"] == "accuracy":
                for i, found in enumerate([*each["seeds"].values(), each["over_seeds"]]):
                    shift = (50.0, 50.00001, 50.000005)[i] * (each["link"] == "plain")
                    found |= {key: found[key] + shift for key in ("mean", "low", "high")}

    text = report.compared(compare(small.record, altered(small, change)), "before.json", "start")
    torch = small.record.made[0].libraries["torch"]
    for line in (
        "first:  before.json",
        "second: start",
        "  recipe.links.snr_db: 12.0 -> 3.0 in keyed",
        "  recipe.links.third: only in the second",
        f"  libraries.torch: {torch} -> 1.0",  # of all steps: said once, and no step is named
        "  code in judge inversion deepjscc, judge inversion deepjscc-encryption",
        "of 18 numbers of both 17 are equal, 1 differ significantly",
        "only in the first: Accuracy (%) at 4 dB of plain; keyed",
    ):
        assert line in text.split("\n")
    (table,) = blocks(text)
    assert table[1] == "Accuracy (%)"
    assert re.match(r"  plain +12 dB  \S+  +\S+  +50\.\d+ \[.*\] \*  < 0\.001 +2 seeds, paired", table[2])
    assert all(table[2][offset - 2 : offset].strip() == "" for offset in starts(table[0]))


def test_a_comparison_of_equals_is_short(small):
    text = report.compared(compare(small.record, small.record), "a", "b")
    count = len(small.record.rows)
    assert text.split("\n")[3:] == [
        "nothing changed: the same recipe, data, code, libraries and machine",
        "",
        f"of {count} numbers of both {count} are equal, 0 differ significantly",
    ]
    code = altered(small, lambda c: [made.update(step_sha256="c0de") for made in c["made"]])
    assert "  code in every step" in report.compared(compare(small.record, code), "a", "b").split("\n")


# Figures


# Schemas


def test_a_schema_names_every_field_of_a_record(small, tmp_path):
    schema.write(tmp_path)
    files = {
        "prepare": small.store.folder(small.graph.cells[0].name) / "prepare.json",
        "train": small.folder("train", "plain") / "run" / "record.json",
        "evaluate": small.folder("evaluate", "plain") / "evaluate.json",
        "attack": small.folder("attack", "plain", 0, "inversion") / "attack" / "record.json",
        "judge": small.folder("judge", "plain", 0, "inversion") / "judge.json",
    }
    contents = {kind: json.loads(path.read_text()) for kind, path in files.items()}
    contents["bench"] = json.loads(small.record.model_dump_json())
    for kind, content in contents.items():
        found = json.loads((tmp_path / f"{kind}.json").read_text())
        assert found["properties"].keys() == content.keys()
        assert found["properties"]["kind"]["const"] == kind == content["kind"]
        assert found["properties"]["format"]["const"] == content["format"]
        assert set(found["required"]) <= content.keys()
