# SPDX-License-Identifier: Apache-2.0
"""A bench on the terminal and in figures: columns line up, and all that a reader must know is said."""

import itertools
import json
import math
import re

import pytest
from matplotlib.figure import Figure

from semlink.bench import results, schema
from semlink.bench.compare import compare
from semlink.bench.record import Measurement
from semlink.bench.results import BASELINES, BenchRecord, Difference, Row
from semlink.report import bench as report
from semlink.report import figures
from semlink.report.figures import Curve, curves_file
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
    assert re.search(r"^keyed, with-key  .*  2 seeds, not converged$", text, re.MULTILINE)
    assert re.search(r"^mean image  .*  512 images$", text, re.MULTILINE)
    assert re.search(r"^  keyed, inversion  .*  2 seeds, paired$", text, re.MULTILINE)
    assert text.count("minus plain, inversion:\n") == 2
    assert "an attack that is not converged supports no claim" in text
    converged = altered(small, lambda c: [r.update(converged=True) for r in c["rows"] if r["converged"] is False])
    assert "not converged" not in report.shown(converged)


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
    assert re.search(r"^keyed, inversion  .*  512 images \(seed 0 of 2\), not converged$", text, re.MULTILINE)
    assert re.search(r"^  keyed, inversion  .*  512 images, paired$", text, re.MULTILINE)
    assert "differences over seeds" in text
    assert "differences over images" in text
    assert "missing: 2 of 20 cells" in text
    assert "  judge inversion on keyed: begun, seed 1" in text
    assert "  judge with-key on keyed: failed (no space left), seed 1" in text
    assert "no cell is missing" in report.shown(small.record)


def test_nothing_found_is_said_in_few_lines(small, tmp_path):
    empty = results.gather(small.graph, type(small.store)(tmp_path / "store"))
    text = report.shown(empty)
    assert "nothing made yet" in text
    assert "missing: 20 of 20 cells" in text
    assert "  train plain: not begun, seeds 0, 1" in text
    assert text.count("\n") < 16
    assert report.draw(empty, tmp_path) == []


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
    assert "1 cells were made by other code, proven by a trial" in text
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


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn, as matplotlib's objects."""
    found, savefig = [], Figure.savefig

    def save(self, *words, **names):
        found.append(self)
        savefig(self, *words, **names)

    monkeypatch.setattr(Figure, "savefig", save)
    return found


def test_figures_are_files_and_the_same_each_time(small, tmp_path):
    paths = report.draw(small.record, tmp_path / "a")
    stems = ["accuracy", "what-Eve-learns", "plain"]
    assert [path.name for path in paths] == [f"{stem}.{suffix}" for stem in stems for suffix in ("png", "pdf")]
    again = report.draw(small.record, tmp_path / "b")
    for first, second in zip(paths, again, strict=True):
        head = first.read_bytes()[:8]
        assert head == b"\x89PNG\r\n\x1a\n" if first.suffix == ".png" else head.startswith(b"%PDF-")
        assert first.read_bytes() == second.read_bytes()
        assert first.stat().st_size > 5000
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(path.name for path in paths)


def test_figures_show_the_rows_of_the_record(small, tmp_path, drawn):
    report.draw(small.record, tmp_path)
    accuracy, learns, plain = drawn[::2]  # each is drawn as PNG and as PDF
    assert [text.get_text() for text in accuracy.legends[0].texts] == ["plain", "keyed"]
    assert [text.get_text() for text in learns.legends[0].texts] == [
        "plain, inversion (not converged)",
        "keyed, inversion (not converged)",  # and not with-key
    ]
    assert [text.get_text() for text in plain.legends[0].texts] == ["plain, inversion (not converged)"]
    labels = [(each.axes[0].get_xlabel(), each.axes[0].get_ylabel()) for each in (accuracy, learns)]
    assert labels == [("SNR Es/N0 of Bob (dB)", "Accuracy (%)"), ("SNR Es/N0 of Eve (dB)", "MI leakage (bit)")]
    assert [each.get_suptitle() for each in (accuracy, learns)] == ["Does a key keep Eve out?", "What Eve learns"]
    assert accuracy.axes[0].get_title() == "95 % intervals: student-t over seeds (n = 2)"
    shown = {(row.name, row.metric, row.snr_db): row.shown for row in small.record.rows}
    container = learns.axes[0].containers[1]
    line, _, (bars,) = container.lines
    for y, segment, snr in zip(line.get_ydata(), bars.get_segments(), (12.0, 4.0), strict=True):
        found = shown["keyed, inversion", "mi_leakage", snr]
        assert (y, segment[0, 1], segment[1, 1]) == pytest.approx((found.mean, found.low, found.high))
    names = {text.get_text(): text.get_position()[1] for text in learns.axes[0].texts}
    for name in ("mean image", "class mean"):
        level = shown[f"keyed, {name.replace(' ', '_')}", "mi_leakage", None].mean
        assert names[name] == pytest.approx(level, abs=0.02)
        lines = [line.get_ydata() for line in learns.axes[0].lines if len(line.get_ydata()) == 2]
        assert any(list(each) == [level, level] for each in lines)
    assert "mean image" not in {text.get_text() for text in accuracy.axes[0].texts}


def test_a_figure_without_numbers_is_left_out(small, tmp_path):
    bare = altered(small, lambda c: c.update(rows=[each for each in c["rows"] if each["metric"] != "mi_leakage"]))
    assert [path.stem for path in report.draw(bare, tmp_path)] == ["accuracy"] * 2 + ["plain"] * 2


def test_names_of_levels_and_looks_of_lines_stay_apart(tmp_path, drawn):
    points = {4.0: measurement(1.0, 0.1), 12.0: measurement(2.0, 0.1)}
    curves = [Curve(f"link {i}", points, float(i % 3)) for i in range(14)]
    levels = {"third": 1.02, "first": 1.0, "second": 1.01}
    words = {"title": "$1 a_b$", "note": "note", "xlabel": "x", "ylabel": "y"}
    curves_file(tmp_path / "a.png", curves, levels=levels, **words)
    axes = drawn[0].axes[0]
    drawn[0].draw_without_rendering()  # in its own size again, not the file's
    named = {text.get_text(): text for text in axes.texts}
    places = [named[name].get_window_extent() for name in ("first", "second", "third")]
    assert all(low.y1 <= high.y0 + 1 for low, high in itertools.pairwise(places))
    assert "trained at 0, 1, 2 dB" in named
    looks = [
        (line.get_color(), line.get_marker(), str(line._dash_pattern))
        for line in (container.lines[0] for container in axes.containers)
    ]
    assert len(set(looks)) == 14


# Schemas


def test_a_schema_names_every_field_of_a_record(small, tmp_path):
    schema.write(tmp_path)
    files = {
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


def test_numbers_on_the_axis_that_would_overlap_are_left_out():
    assert figures._ticks([4, 8, 12, 12.5, 16, 20]) == [4, 8, 12, 16, 20]
    assert figures._ticks([12.0]) == [12.0]
    assert len(figures._ticks(list(range(100)))) <= 14
