# SPDX-License-Identifier: Apache-2.0
"""The first and the last step of a bench: images are described before anything is made of them, figures are cells."""

import dataclasses
import hashlib
import itertools
import json

import pytest
import torch
from matplotlib.figure import Figure

from semlink import data
from semlink._errors import SemlinkError
from semlink.bench import drawing, estimate, figures, preparer, recipes, record, results, runner
from semlink.bench.engines import InProcess
from semlink.bench.figures import Curve, curves_file
from semlink.bench.graph import Cell, Graph, build
from semlink.bench.record import Measurement, PrepareRecord
from semlink.bench.rows import Measured, Row, rows
from semlink.data import ImageSet

CPU = torch.device("cpu")


class Board:
    """Keeps the remarks."""

    def __init__(self):
        self.notes = []

    def begin(self, graph, waiting, slots): ...

    def start(self, cell):
        return lambda moment: None

    def end(self, cell, result, message): ...

    def note(self, text):
        self.notes.append(text)


def measurement(mean, half):
    return Measurement(mean=mean, low=mean - half, high=mean + half, n=3, unit="%", method="student-t over seeds")


def figures_of(graph: Graph) -> list[Cell]:
    return [cell for cell in graph.cells if cell.step == "draw"]


def changed(small, **update) -> recipes.BenchRecipe:
    return small.graph.recipe.model_copy(update=update)


# Images


def test_the_images_of_every_role_are_described_by_their_content(small):
    (cell,) = (each for each in small.graph.cells if each.step == "prepare")
    said = record.read(small.store.folder(cell.name) / "prepare.json", PrepareRecord)
    sets = data.load("digits")
    assert (said.data, said.image_shape) == (json.loads(json.dumps(sets.provenance)), (1, 28, 28))
    assert list(said.splits) == ["transceiver", "validation", "attacker", "attacker_validation", "test"]
    for role, found in said.splits.items():
        images = getattr(sets, role)
        raw = images.images.numpy().tobytes() + images.targets.numpy().tobytes()
        assert (found.images, found.sha256) == (len(images), hashlib.sha256(raw).hexdigest())
        assert found.targets == {str(digit): (images.targets == digit).sum().item() for digit in range(10)}
    assert len({found.sha256 for found in said.splits.values()}) == 5


def test_one_changed_pixel_or_label_shows():
    sets = data.load("digits")
    images, targets = sets.test.images.clone(), sets.test.targets.clone()
    own = preparer.content_sha256(sets.test)
    images[7, 0, 14, 14] ^= 1
    assert preparer.content_sha256(ImageSet(images, targets)) != own
    targets[7] = (targets[7] + 1) % 10
    assert preparer.content_sha256(ImageSet(sets.test.images, targets)) != own
    order = torch.arange(len(sets.test)).flip(0)
    assert preparer.content_sha256(sets.test.subset(order)) != own
    assert preparer.content_sha256(sets.test.subset(order).subset(order)) == own


def test_attributes_are_counted_where_an_image_has_several():
    targets = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    assert preparer._counts(ImageSet(torch.zeros(3, 1, 2, 2), targets), ("Smiling", "Hat")) == {"Smiling": 2, "Hat": 1}
    classes = ImageSet(torch.zeros(3, 1, 2, 2), torch.tensor([2, 0, 2]))
    assert preparer._counts(classes, ("a", "b", "c", "d")) == {"a": 1, "b": 0, "c": 2, "d": 0}


def test_images_are_prepared_once_and_all_that_uses_them_waits(small):
    (prepared,) = (cell for cell in small.graph.cells if cell.step == "prepare")
    assert small.graph.cells[0] is prepared
    for cell in small.graph.cells[1:]:
        assert (cell.inputs.get("images") == prepared.name) == (cell.step != "draw")


def test_images_that_cannot_be_prepared_stop_what_needs_them(small, tmp_path, monkeypatch):
    store = type(small.store)(tmp_path / "s")
    graph = build(small.graph.recipe, store)

    def damaged(*words):
        raise SemlinkError("the file is damaged")

    monkeypatch.setattr(preparer, "prepare", damaged)
    outcome = runner.run(graph, store, InProcess(CPU), Board())
    assert outcome.failed == {graph.cells[0].name: "the file is damaged"}
    assert (outcome.made, set(outcome.blocked)) == ([], {cell.name for cell in graph.cells[1:]})


def test_that_images_are_prepared_changes_no_result(small, monkeypatch):
    """Cells are known by the images' own hash, so another way to prepare the same ones retrains nothing."""
    found = build(small.graph.recipe, small.store)
    monkeypatch.setattr("semlink.bench.steps.Prepare.modules", lambda self, spec: ("semlink.bench.steps",))
    other = build(small.graph.recipe, small.store)
    assert found.cells == small.graph.cells
    assert [a.step for a, b in zip(found.cells, other.cells, strict=True) if a.name != b.name] == ["prepare"]


# Figures as cells


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn, as matplotlib's objects."""
    found, savefig = [], Figure.savefig

    def save(self, *words, **names):
        found.append(self)
        savefig(self, *words, **names)

    monkeypatch.setattr(Figure, "savefig", save)
    return found


def test_a_figure_is_drawn_of_the_cells_that_it_shows(small):
    accuracy, learns, plain = figures_of(small.graph)
    by_name = {cell.name: cell for cell in small.graph.cells}
    shown = [
        {(by_name[name].step, by_name[name].link, by_name[name].attack) for name in cell.inputs.values()}
        for cell in (accuracy, learns, plain)
    ]
    assert shown == [
        {("evaluate", "plain", None), ("evaluate", "keyed", None)},
        {("judge", "plain", "inversion"), ("judge", "keyed", "inversion")},
        {("evaluate", "plain", None), ("judge", "plain", "inversion")},
    ]
    assert all(sorted({by_name[name].seed for name in cell.inputs.values()}) == [0, 1] for cell in (accuracy, learns))
    assert [cell.label for cell in (accuracy, learns, plain)] == [
        "draw accuracy",
        "draw what Eve learns",
        "draw plain",
    ]


def test_figures_are_files_and_the_same_each_time(small, tmp_path):
    other = small.copy(tmp_path / "store")
    paths = results.draw(other.graph, other.store, small.record)
    stems = ["accuracy", "what-Eve-learns", "plain"]
    assert [path.name for path in paths] == [f"{stem}.{suffix}" for stem in stems for suffix in ("png", "pdf")]
    for path, (cell, name) in zip(paths, itertools.product(figures_of(small.graph), drawing.FILES), strict=True):
        content, again = path.read_bytes(), tmp_path / name
        assert content[:8] == b"\x89PNG\r\n\x1a\n" if path.suffix == ".png" else content.startswith(b"%PDF-")
        assert len(content) > 5000
        drawing.draw(again, cell.spec, small.record.rows)  # what was drawn of cells is what the record says
        assert content == (other.store.folder(cell.name) / name).read_bytes() == again.read_bytes()


def test_figures_show_the_rows_of_the_record(small, tmp_path, drawn):
    for cell in figures_of(small.graph):
        drawing.draw(tmp_path / "a.png", cell.spec, small.record.rows)
    accuracy, learns, plain = drawn
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


def test_beside_a_figure_of_ssim_stands_that_of_equation_8_where_it_was_measured(small, tmp_path, drawn):
    def named(metric):
        held = [row for row in small.record.rows if row.metric == "accuracy"]
        return [row.model_copy(update={"metric": metric}) for row in held]

    other = small.copy(tmp_path / "store")
    accuracy = figures_of(small.graph)[0]
    cell = dataclasses.replace(accuracy, spec=accuracy.spec | {"metric": "ssim"})
    graph = Graph(small.graph.recipe, [cell])
    alone = results.draw(graph, other.store, small.record.model_copy(update={"rows": named("ssim")}))
    assert [path.name for path in alone] == ["accuracy.png", "accuracy.pdf"]
    rows = [*named("ssim"), *named("ssim_global")]
    paths = results.draw(graph, other.store, small.record.model_copy(update={"rows": rows}))
    assert [path.stem for path in paths] == ["accuracy"] * 2 + ["accuracy-by-equation-8"] * 2
    assert drawn[0].axes[0].get_ylabel() == "SSIM over the whole image"
    assert "unfinished" not in drawn[0].axes[0].get_title()


def test_a_title_that_changes_draws_one_figure_anew_and_does_nothing_else(small, tmp_path):
    other = small.copy(tmp_path / "store")
    held = small.graph.recipe.figures
    titled = held | {"plain": held["plain"].model_copy(update={"title": "Without a key"})}
    graph = build(changed(small, figures=titled), other.store)
    outcome = runner.run(graph, other.store, InProcess(CPU), Board())
    assert outcome.made == [figures_of(graph)[2].name]
    assert len(outcome.found) == len(graph.cells) - 1
    assert runner.run(graph, other.store, InProcess(CPU), Board()).made == []


def test_a_link_that_is_measured_anew_is_drawn_anew(small):
    evaluation = small.graph.recipe.evaluation.model_copy(update={"draws": 3})
    graph = build(changed(small, evaluation=evaluation), small.store)
    states = [(cell.step, cell.spec.get("name"), small.store.state(cell.name)) for cell in graph.cells]
    assert [each[:2] for each in states if each[2] == "new"] == [
        *[("evaluate", None)] * 4,
        ("draw", "accuracy"),
        ("draw", "plain"),
    ]


def test_a_figure_whose_cells_are_missing_says_so(small, tmp_path, drawn):
    other = small.copy(tmp_path / "store")
    accuracy, learns, _ = figures_of(other.graph)
    for cell in (accuracy, learns):
        (other.store.folder(cell.name) / "done.json").unlink()
    (other.folder("evaluate", "keyed", 1) / "done.json").unlink()
    for seed, link in itertools.product((0, 1), ("plain", "keyed")):
        (other.folder("judge", link, seed, "inversion") / "done.json").unlink()
    paths = results.draw(other.graph, other.store, results.gather(other.graph, other.store))
    assert [path.stem for path in paths] == ["accuracy"] * 2 + ["plain"] * 2  # of the other there is nothing yet
    first, *rest = drawn[0].axes[0].get_title().split("\n")
    assert first == "unfinished: 3 of 4 measurements are there"
    assert rest[0].startswith("95 % intervals: ")
    assert len(drawn) == 2  # the third is copied


def test_a_figure_of_nothing_fails_alone_and_says_what_there_is(small, tmp_path):
    other = small.copy(tmp_path / "store")
    held = small.graph.recipe
    figure = held.figures["accuracy"].model_copy(update={"metric": "accuracy.3"})
    evaluation = held.evaluation.model_copy(update={"metrics": [*held.evaluation.metrics, "accuracy.3"]})
    graph = build(changed(small, figures={"three": figure}, evaluation=evaluation), other.store)
    outcome = runner.run(graph, other.store, InProcess(CPU), Board())
    (message,) = outcome.failed.values()
    assert "figure 'three' wants 'accuracy.3', which nothing in it has" in message
    assert outcome.made == outcome.blocked == []
    assert results.draw(graph, other.store, results.gather(graph, other.store)) == []
    assert estimate.costs(graph, other.store, CPU)[figures_of(graph)[0].name].seconds > 0  # a plan can still be made


def test_a_figure_that_cannot_be_drawn_though_all_is_there_is_not_called_unfinished(small, tmp_path, monkeypatch):
    other = small.copy(tmp_path / "store")
    cell = figures_of(other.graph)[0]
    (other.store.folder(cell.name) / "figure.pdf").write_bytes(b"damaged")

    def broken(*words, **names):
        raise ValueError("no such backend")

    with monkeypatch.context() as patch:
        patch.setattr(drawing, "curves_file", broken)
        outcome = runner.run(other.graph, other.store, InProcess(CPU), Board())
        paths = results.draw(other.graph, other.store, results.gather(other.graph, other.store))
    assert outcome.failed == {cell.name: "no such backend"}
    assert [path.stem for path in paths] == ["what-Eve-learns"] * 2 + ["plain"] * 2
    assert runner.run(other.graph, other.store, InProcess(CPU), Board()).made == [cell.name]


def test_names_with_spaces_do_not_make_two_measurements_one(small, tmp_path):
    held = small.graph.recipe
    plain, attack = held.links["plain"], held.attacks["inversion"]
    other = plain.model_copy(update={"snr_db": 3.0})
    recipe = changed(
        small,
        links={"plain": plain, "x plain": other},
        attacks={"a": attack, "a x": attack, "b": attack},
        figures={"f": held.figures["plain"].model_copy(update={"links": None})},
    )
    graph = build(recipe, type(small.store)(tmp_path / "s"))
    (cell,) = figures_of(graph)
    shown = [
        (each.step, each.link, each.attack, each.seed) for each in graph.cells if each.link and each.step != "train"
    ]
    assert sorted(map(str, cell.spec["of"].values())) == sorted(
        str(list(each)) for each in shown if each[0] in ("evaluate", "judge")
    )
    assert len(cell.inputs) == 2 * 2 * (1 + 3)


def test_curves_stand_in_the_recipes_order_whoever_is_attacked_first(small):
    held = small.graph.recipe
    attack = held.attacks["inversion"]
    figure = held.figures["plain"].model_copy(update={"links": None})
    ordered = {"late": attack.model_copy(update={"links": ["keyed"]}), "inversion": attack}
    specs = [
        figures_of(build(changed(small, attacks=dict(items), figures={"f": figure}), small.store))[0]
        for items in (ordered.items(), reversed(ordered.items()))
    ]
    assert specs[0].spec["attacks"] == ["late", "inversion"]
    assert specs[0].name != specs[1].name


def test_a_figure_that_no_attack_belongs_to_is_no_cell(small):
    figure = small.graph.recipe.figures["plain"].model_copy(update={"attacks": ["with-key"]})  # which plain has not
    assert figures_of(build(changed(small, figures={"plain": figure}), small.store)) == []


def test_changed_code_of_drawing_is_proven_by_the_same_picture(small, tmp_path, monkeypatch):
    other, notes = small.copy(tmp_path / "store"), []
    monkeypatch.setattr("semlink.bench.steps.Draw.modules", lambda self, spec: ("semlink.bench.steps",))
    graph = build(small.graph.recipe, other.store, runner.prover(other.store, CPU, "moved", notes.append))
    assert [cell.name for cell in graph.cells] == [cell.name for cell in small.graph.cells]
    assert len(notes) == 3
    fresh = small.copy(tmp_path / "fresh")
    monkeypatch.setattr(figures, "COLOURS", figures.COLOURS[::-1])
    graph = build(small.graph.recipe, fresh.store, runner.prover(fresh.store, CPU, "moved", notes.append))
    assert not {cell.name for cell in figures_of(graph)} & {cell.name for cell in figures_of(small.graph)}
    assert sum("gives other results" in note for note in notes) == 3


def test_what_a_figure_costs_is_guessed_before_there_is_anything_to_draw(small, tmp_path):
    store = type(small.store)(tmp_path / "s")
    cell = figures_of(build(small.graph.recipe, store))[0]
    trial = runner.STEPS["draw"].trial(cell.spec, {role: store.folder(name) for role, name in cell.inputs.items()}, CPU)
    assert (trial.sha256, trial.seconds > 0, trial.disk_bytes > 0) == ("", True, True)


# Lines, names, numbers


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
    for two in ((0, 1), (0, 2), (1, 2)):  # colour and marker, colour and dash, marker and dash
        assert len({tuple(look[i] for i in two) for look in looks}) == 14


def test_a_point_stands_where_it_was_measured():
    points = {snr: measurement(snr / 10, 0.1) for snr in (-5.0, 0.0, 20.0)}
    _, axes = figures.draw_curves([Curve(f"link {i}", points, None) for i in range(8)], "y")
    assert len(axes.containers) == 8
    for line, _, (bars,) in (container.lines for container in axes.containers):
        assert list(line.get_xdata()) == [segment[0, 0] for segment in bars.get_segments()] == list(points)


def test_a_scheme_of_several_users_looks_the_same_in_every_figure():
    def looks(*labels):
        _, axes = figures.draw_curves([Curve(label, {0.0: measurement(1.0, 0.1)}, None) for label in labels], "y")
        lines = [container.lines[0] for container in axes.containers]
        return [(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines]

    first = looks("interference-free", "semi-conventional", "semi-conventional-2", "dispersion", "adaptive-precoding")
    second = looks("dispersion-3, overheard", "other", "adaptive-precoding-3, overheard", "semi-conventional 0.1")
    assert [second[0], second[2], second[3]] == [first[3], first[4], first[1]]
    assert len({*first}) == 5
    assert second[1] not in (second[0], *second[2:])


def row_of(attack, n=3, trained=None, grid=(4.0, 8.0)):
    found = measurement(12.0, 0.5).model_copy(update={"n": n})
    about = {"link": "plain", "attack": attack, "metric": "psnr_db", "trained_snr_db": trained}
    return [Row(**about, snr_db=snr, seeds={0: found}, over_seeds=None, converged=True) for snr in grid]


def spec_of(*attacks, own=False):
    return {"name": "f", "title": "F", "metric": "psnr_db", "links": [("plain", 12.0)], "attacks": attacks, "own": own}


@pytest.mark.parametrize(
    ("own", "trained", "said"),
    [
        (False, {"a": 4.0}, [4.0]),
        (False, {"a": 4.0, "b": 6.0}, [4.0, 6.0]),
        (True, {"a": 4.0}, [4.0, 12.0]),
        (True, {}, [12.0]),
        (False, {"a": None}, []),  # a record of an earlier version does not say
    ],
)
def test_a_figure_marks_the_snr_that_what_it_shows_was_trained_at(tmp_path, drawn, own, trained, said):
    every = [*row_of(None), *(row for attack, snr in trained.items() for row in row_of(attack, trained=snr))]
    drawing.draw(tmp_path / "a.png", spec_of(*trained, own=own), every)
    axes = drawn[0].axes[0]
    marks = [line.get_xdata()[0] for line in axes.lines if list(line.get_ydata()) == [0, 1]]
    assert marks == said
    texts = [text.get_text() for text in axes.texts]
    assert texts == ([f"trained at {', '.join(f'{snr:g}' for snr in said)} dB"] if said else [])
    shown = [4.0, 8.0, *said]
    margin = 0.1 * (max(shown) - min(shown))
    assert min(shown) - margin < axes.get_xlim()[0] < min(shown)
    assert max(shown) < axes.get_xlim()[1] < max(shown) + margin  # and no further, for nothing is there


def test_the_snr_of_an_attack_is_that_of_its_judgement(small):
    done = record.of_step(small.folder("judge", "plain", 0, "inversion"), "judge")
    other = done.model_copy(update={"threat": done.threat | {"snr_db": 4.0}})
    own = record.of_step(small.folder("evaluate", "plain"), "evaluate")
    measured = [Measured("plain", None, 0, own), Measured("plain", "a", 0, done), Measured("plain", "b", 0, other)]
    found = list(rows(measured, ["plain"], ["a", "b"], ["psnr_db", "accuracy"]))
    curves = drawing.curves(spec_of("a", "b"), found)
    assert {curve.label.split(" ")[1]: curve.design_snr_db for curve in curves} == {"a": 12.0, "b": 4.0}
    (curve,) = drawing.curves(spec_of(own=True) | {"metric": "accuracy", "links": [("plain", 11.0)]}, found)
    assert curve.design_snr_db == 11.0


def test_a_number_of_images_stays_in_one_line(tmp_path, drawn):
    for n in range(20):
        attacks = {"a": 10**5, "b": 10 ** (n // 4), "c": 10 ** (n % 4)}
        found = [row for attack, count in attacks.items() for row in row_of(attack, count, trained=4.0)]
        method = {"method": "m" * n}
        long = [row.model_copy(update={"seeds": {0: row.shown.model_copy(update=method)}}) for row in found]
        drawing.draw(tmp_path / "a.png", spec_of(*attacks), found + long)
    for each in drawn:
        lines = each.axes[0].get_title().split("\n")
        assert all(line.count("(n = ") == line.count("(") == line.count(")") for line in lines)
    assert max(each.axes[0].get_title().count("\n") for each in drawn) > 0


def test_numbers_on_the_axis_that_would_overlap_are_left_out():
    assert figures._ticks([4, 8, 12, 12.5, 16, 20]) == [4, 8, 12, 16, 20]
    assert figures._ticks([12.0]) == [12.0]
    assert len(figures._ticks(list(range(100)))) <= 14


# One metric over another


def pareto(small, **update):
    figure = {"metric": "psnr_db", "over": "accuracy", "at_db": 12.0} | update
    content = small.graph.recipe.model_dump() | {"figures": {"pareto": figure}}
    return recipes.BenchRecipe.model_validate(content)


def test_a_metric_over_another_has_a_point_for_each_link(small, drawn):
    graph = build(pareto(small), small.store)
    (cell,) = figures_of(graph)
    assert {step for step, *_ in cell.spec["of"].values()} == {"evaluate", "judge"}
    inputs = {role: small.store.folder(name) for role, name in cell.inputs.items()}
    found = drawing.read_rows(cell.spec, inputs)
    curves = drawing.curves(cell.spec, found)
    assert [curve.label.split(":")[0] for curve in curves] == list(small.graph.recipe.links)
    at = {(row.link, row.attack, row.metric): row.shown for row in small.record.rows if row.snr_db == 12}
    for curve, link in zip(curves, small.graph.recipe.links, strict=True):
        own = at[link, None, "accuracy"]
        held = [at[link, attack, "psnr_db"] for attack in small.graph.recipe.attacks if (link, attack, "psnr_db") in at]
        strongest = max(held, key=lambda each: each.mean)
        assert curve.points == {own.mean: strongest}
        assert curve.across == {own.mean: own}
    drawing.draw(small.store.root / "pareto.png", cell.spec, found)
    axes = drawn[-1].axes[0]
    assert axes.get_xlabel() == "Accuracy (%) of the link, at 12 dB"
    assert axes.get_ylabel() == "PSNR (dB), strongest attack"


@pytest.mark.parametrize(
    ("update", "said"),
    [
        ({"at_db": 13.0}, "a figure over 'accuracy' is drawn at_db one SNR of the grid"),
        ({"over": "ssim"}, "over is 'ssim', which link '"),
        ({"over": "lpips"}, "'lpips' is not measured; add it to evaluation.metrics"),
    ],
)
def test_a_metric_that_is_not_there_is_no_axis(tmp_path, update, said):
    figure = {"metric": "psnr_db", "over": "accuracy", "at_db": 12.0} | update
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in figure.items())
    text = 'title = "t"\n[links.a]\nscheme = "deepjscc"\n[attacks.x]\n[evaluation]\n'
    text += 'metrics = ["accuracy", "psnr_db", "ssim"]\n'
    (tmp_path / "b.toml").write_text(text + "[figures.f]\n" + lines)
    with pytest.raises(SemlinkError, match=said):
        recipes.load(str(tmp_path / "b.toml"))
