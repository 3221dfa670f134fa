# SPDX-License-Identifier: Apache-2.0
"""A bench of what leaks: answers and drawings that are read, other receptions, and an attacker without queries."""

import dataclasses
import json
import math

import pytest
import torch

from semlink import data
from semlink._errors import SemlinkError
from semlink.attacks import Tap, Threat
from semlink.bench import attack, attacker, graph, judge, links, make_recipe, recipes, record, results
from semlink.bench.engines import InProcess
from semlink.bench.runner import run as run_bench
from semlink.bench.store import Store
from semlink.metrics import MI_VARIANTS, psnr_db
from semlink.report.bench import shown

CPU = torch.device("cpu")
RECIPE = """
title = "What leaks"
[defaults]
preset = "smoke"
precision = "fp32"
[links.plain]
scheme = "deepjscc"
[links.shadow]
scheme = "deepjscc"
variant = "shadow"
[attacks.drawing]
links = ["plain"]
read = true
[attacks.answering]
attack = "inference"
links = ["plain"]
[attacks.without-queries]
links = ["plain"]
queries = "shadow"
[evaluation]
snr_db = [12]
draws = 1
metrics = ["accuracy", "balanced_accuracy", "psnr_db", "mi_leakage", "retrieval", "infonce_bits", "label_bits",
           "mi_legacy.brett20-nats", "mi_legacy.skimage-nmi"]
[figures.answers]
metric = "accuracy"
links = ["plain"]
"""


class Silent:
    def begin(self, graph, waiting, slots): ...
    def start(self, cell):
        return lambda moment: None

    def end(self, cell, result, message):
        assert result == "done", (cell.label, message)

    def note(self, text): ...


@pytest.fixture(scope="module")
def leaks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("leaks")
    (folder / "leaks.toml").write_text(RECIPE)
    store = Store(folder / "store")
    cells = graph.build(recipes.load(str(folder / "leaks.toml")), store)
    run_bench(cells, store, InProcess(CPU), Silent())
    return cells, store, results.write(cells, store)[0]


def judged(leaks, attack):
    cells, store, _ = leaks
    cell = next(cell for cell in cells.cells if (cell.step, cell.attack) == ("judge", attack))
    return cell, record.of_step(store.folder(cell.name), "judge")


def test_whoever_draws_and_whoever_answers_is_measured_by_what_suits(leaks):
    _, drawing = judged(leaks, "drawing")
    _, answering = judged(leaks, "answering")
    assert set(drawing.results) == {
        "accuracy", "balanced_accuracy", "psnr_db", "mi_leakage", "retrieval", "infonce_bits", "mi_legacy.brett20-nats",
        "mi_legacy.skimage-nmi",
    }  # fmt: skip
    assert set(answering.results) == {"accuracy", "balanced_accuracy", "label_bits"}
    assert set(drawing.baselines) == {"mean_image", "class_mean", "unrelated_image", "identical_image"}
    assert set(answering.baselines) == {"prior", "delivered_label"}
    assert "accuracy" not in judged(leaks, "without-queries")[1].results  # nobody asked to have it read


def test_the_scale_of_legacy_numbers_stands_beside_them(leaks):
    _, drawing = judged(leaks, "drawing")
    sets = links.image_sets(make_recipe("deepjscc", preset="smoke"))
    images = torch.cat([sets.test.batch(torch.arange(len(sets.test)))[0]])
    for variant in ("brett20-nats", "skimage-nmi"):
        name = f"mi_legacy.{variant}"
        same, other = (drawing.baselines[f"{which}_image"][name].mean for which in ("identical", "unrelated"))
        assert same == pytest.approx(judge.mi_leakage(images, images, variant).double().mean().item(), abs=1e-5)
        assert other == pytest.approx(
            judge.mi_leakage(images, images.roll(1, 0), variant).double().mean().item(), abs=1e-5
        )
        assert same > drawing.results[name].mean > 0
    assert drawing.baselines["identical_image"]["mi_legacy.skimage-nmi"].mean == pytest.approx(2)


def test_bounds_stand_below_their_caps_and_what_nobody_can_exceed(leaks):
    _, drawing = judged(leaks, "drawing")
    _, answering = judged(leaks, "answering")
    [ceiling] = drawing.ceilings_bits
    assert ceiling["snr_db"] == 12
    assert ceiling["least"] == pytest.approx(64 * math.log2(1 + 10**1.2))
    bits = drawing.results["infonce_bits"]
    assert bits.low < bits.mean == bits.high <= math.log2(bits.n) <= ceiling["least"]
    label = answering.results["label_bits"]
    assert label.low < label.mean <= math.log2(10) + 0.01


def test_the_prior_knows_the_commonest_class_of_her_images_alone(leaks):
    _, answering = judged(leaks, "answering")
    sets = links.image_sets(make_recipe("deepjscc", preset="smoke"))
    commonest = torch.bincount(sets.attacker.targets).argmax()
    share = 100 * (sets.test.targets == commonest).double().mean().item()
    assert answering.baselines["prior"]["accuracy"].mean == pytest.approx(share, abs=1e-4)
    assert answering.baselines["prior"]["balanced_accuracy"].mean == pytest.approx(10)


def test_the_floor_of_a_label_is_what_the_link_delivers(leaks):
    cells, store, _ = leaks
    _, answering = judged(leaks, "answering")
    link = next(c for c in cells.cells if (c.step, c.link) == ("evaluate", "plain"))
    own = record.of_step(store.folder(link.name), "evaluate").points[0]["accuracy"]
    floor = answering.baselines["delivered_label"]["accuracy"]
    assert floor.mean >= own.mean - 2 * (own.high - own.low)  # a table can only mend what the receiver confuses


def test_a_shadow_is_trained_on_the_attackers_images_and_judged_on_the_victim(leaks):
    cells, _, _ = leaks
    cell, done = judged(leaks, "without-queries")
    by_name = {each.name: each for each in cells.cells}
    assert by_name[cell.inputs["link"]].link == "plain"
    assert by_name[by_name[cell.inputs["attack"]].inputs["link"]].link == "shadow"
    assert done.data["variant"] == "default"
    own, shadow = data.load("digits"), data.load("digits", "shadow")
    assert torch.equal(shadow.transceiver.images, own.attacker.images)
    assert torch.equal(shadow.validation.images, own.attacker_validation.images)
    assert torch.equal(shadow.test.images, own.test.images)
    assert shadow.provenance["splits"]["transceiver"] == own.provenance["splits"]["attacker"]


def test_tables_and_figure_hold_both_kinds(leaks):
    cells, store, found = leaks
    text = shown(found)
    assert "Accuracy (%), Eve at" in text
    for row in ("plain, answering", "plain, drawing", "prior", "delivered label", "MI as printed elsewhere"):
        assert row in text, row
    assert [path.name for path in results.draw(cells, store, found)] == ["answers.png", "answers.pdf"]
    assert not found.missing


def test_a_second_call_finds_everything_done_and_a_reader_serves_many(leaks, tmp_path):
    cells, store, _ = leaks
    assert sum(cell.step == "read" for cell in cells.cells) == 1
    again = graph.build(cells.recipe, store)
    assert [cell.name for cell in again.cells] == [cell.name for cell in cells.cells]
    assert all(store.state(cell.name) == "done" for cell in again.cells)
    json.dumps([dataclasses.asdict(cell) for cell in again.cells])


def test_hearing_an_image_again_is_as_good_as_more_antennas():
    link = links.build(make_recipe("deepjscc", preset="smoke"))
    images = links.image_sets(make_recipe("deepjscc", preset="smoke")).test.batch(torch.arange(100))[0]
    clean = Tap(link, Threat(200.0)).intercept(images, torch.Generator().manual_seed(0))
    for threat in (Threat(6.0, transmissions=4), Threat(6.0, antennas=4), Threat(6.0, antennas=2, transmissions=2)):
        heard = Tap(link, threat).intercept(images, torch.Generator().manual_seed(1))
        squares = (heard - clean).square()
        expected, error = 10**-0.6 / 4, squares.std() / math.sqrt(squares.numel())
        assert abs(squares.mean() - expected) < 4 * error  # standard errors


def test_noise_of_a_mechanism_is_averaged_over_transmissions():
    link = links.build(make_recipe("deepjscc-dp", preset="smoke", mechanism="laplace-scale", epsilon=0.1))
    images = torch.rand(50, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    spread = []
    for times in (1, 9):
        tap = Tap(link, Threat(200.0, transmissions=times))
        first, second = (tap.intercept(images, torch.Generator().manual_seed(seed)) for seed in (1, 2))
        spread.append(((first - second).square() / 2).flatten())
    ratio = spread[0].mean() / spread[1].mean()
    error = ratio * sum((each.std() / each.mean()).square() / len(each) for each in spread).sqrt()
    assert abs(ratio - 9) < 4 * error  # standard errors


def test_under_fresh_keys_each_transmission_is_read_before_they_are_averaged():
    link = links.build(make_recipe("deepjscc-encryption", preset="smoke"))
    images = torch.rand(20, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    once = Tap(link, Threat(200.0, with_secret=True)).intercept(images, torch.Generator().manual_seed(1))
    often = Tap(link, Threat(200.0, with_secret=True, transmissions=3)).intercept(
        images, torch.Generator().manual_seed(2)
    )
    assert torch.allclose(once, often, atol=1e-5)


def test_her_channel_is_her_own():
    link = links.build(make_recipe("deepjscc", preset="smoke"))
    images = torch.rand(200, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    clean = Tap(link, Threat(200.0)).intercept(images, torch.Generator().manual_seed(1))
    with_csi, without = (
        Tap(link, Threat(200.0, channel="rayleigh", csi=csi)).intercept(images, torch.Generator().manual_seed(1))
        for csi in (True, False)
    )
    assert torch.allclose(with_csi, clean, atol=1e-3)  # without noise, known gains are undone
    gains = torch.view_as_complex(without.unflatten(1, (-1, 2))) / torch.view_as_complex(clean.unflatten(1, (-1, 2)))
    assert torch.allclose(gains, gains[:, :1], atol=1e-2)
    power = gains[:, 0].abs().square()
    assert abs(power.mean() - 1) < 4 * power.std() / math.sqrt(len(power))  # standard errors


def test_without_the_key_what_is_sent_under_fresh_nonces_is_not_averaged():
    images = torch.rand(20, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    link = links.build(make_recipe("deepjscc-encryption", preset="smoke"))
    with pytest.raises(SemlinkError, match="give her 1 transmission, or the key"):
        Tap(link, Threat(12.0, transmissions=2)).intercept(images, torch.Generator().manual_seed(1))
    fixed = links.build(make_recipe("deepjscc-encryption", preset="smoke", fresh=False))
    once, often = (
        Tap(fixed, Threat(200.0, transmissions=times)).intercept(images, torch.Generator().manual_seed(1))
        for times in (1, 2)
    )
    assert torch.allclose(once, often, atol=1e-5)


def test_a_link_of_the_attackers_own_is_no_victim(leaks):
    cells, store, _ = leaks
    shadow = next(c for c in cells.cells if (c.step, c.link) == ("train", "shadow"))
    with pytest.raises(SemlinkError, match="attack a link of another variant"):
        attack(store.folder(shadow.name) / "run", Threat(12.0), CPU, perceptual="none")


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        ('attack = "codebook-inversion"', "attacks.drawing on plain: attack 'codebook-inversion' needs a codebook"),
        ('attack = "search-smooth"\nperceptual = "vgg16"', "attacks.drawing on plain: a search has no perceptual loss"),
    ],
)
def test_attacks_that_the_victim_gives_nothing_to_are_refused_before_anything_runs(attack, said, tmp_path):
    (tmp_path / "bad.toml").write_text(RECIPE.replace("[attacks.drawing]\n", f"[attacks.drawing]\n{attack}\n"))
    with pytest.raises(SemlinkError, match=said):
        graph.build(recipes.load(str(tmp_path / "bad.toml")), Store(tmp_path / "store"))


@pytest.mark.parametrize(
    ("means", "said"),
    [
        ({"transmissions": 0}, "transmissions is 0"),
        ({"channel": "rayleight"}, "did you mean 'rayleigh'"),
        ({"csi": False, "antennas": 2}, "give her 1 antenna and 1 transmission, or csi"),
        ({"csi": False, "transmissions": 3}, "give her 1 antenna and 1 transmission, or csi"),
    ],
)
def test_means_that_make_no_sense_are_refused(means, said):
    with pytest.raises(SemlinkError, match=said):
        Threat(12.0, **means)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ('queries = "plain"', "line 13: attacks.drawing.queries: 'plain' is its own victim"),
        ('queries = "shadows"', "unknown link 'shadows'; did you mean 'shadow'"),
        ("csi = false\nantennas = 2", "line 13: attacks.drawing.csi: several receptions"),
        ('channel = "awgm"', "did you mean 'awgn'"),
        ('queries = "shadow"\nattack = "search-smooth"', "is given the victim's encoder, and needs no model of it"),
        ('attack = "inference"', "attack 'inference' answers, and draws nothing to be read; leave 'read' out"),
        ('attack = "inference"\nperceptual = "vgg16"', "and 1 more"),
    ],
)
def test_entries_that_make_no_sense_are_refused_with_their_line(entry, said, tmp_path):
    text = RECIPE.replace('[attacks.drawing]\nlinks = ["plain"]\n', f'[attacks.drawing]\nlinks = ["plain"]\n{entry}\n')
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(SemlinkError) as refused:
        recipes.load(str(tmp_path / "bad.toml"))
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('variant = "shadow"\n', "", "'shadow' is trained on images that are not the attacker's"),
        ('[attacks.drawing]\nlinks = ["plain"]', "[attacks.drawing]", "'shadow' is the attacker's own link"),
        ('"mi_legacy.brett20-nats"', '"mi_legacy"', r"unknown MI variant \(after 'mi_legacy.'\) ''; known: brett20"),
        ('"mi_legacy.brett20-nats"', '"mi_legacy.brett"', "did you mean 'brett20-nats'"),
        ('"psnr_db"', '"psnr_db.Male"', "'psnr_db' has no parts"),
        ('"label_bits"', '"label_bits.Male"', "images of digits have no attributes; write 'label_bits'"),
    ],
)
def test_what_would_measure_nothing_or_too_much_is_refused(old, new, said, tmp_path):
    (tmp_path / "bad.toml").write_text(RECIPE.replace(old, new, 1))
    with pytest.raises(SemlinkError, match=said):
        recipes.load(str(tmp_path / "bad.toml"))


def test_parts_are_attributes_of_the_images(tmp_path):
    faces = RECIPE.replace('scheme = "deepjscc"\n', 'scheme = "deepjscc"\ndata = "celeba"\n')
    faces = faces.replace('metric = "accuracy"', 'metric = "psnr_db"')
    (tmp_path / "faces.toml").write_text(faces.replace('"label_bits"', '"label_bits.Male"'))
    assert "label_bits.Male" in recipes.load(str(tmp_path / "faces.toml")).evaluation.metrics
    (tmp_path / "bad.toml").write_text(faces.replace('"label_bits"', '"label_bits.Mael"'))
    with pytest.raises(SemlinkError, match="unknown attribute 'Mael'; did you mean 'Male'"):
        recipes.load(str(tmp_path / "bad.toml"))


def test_a_shadow_of_other_symbols_is_refused(tmp_path):
    (tmp_path / "bad.toml").write_text(
        RECIPE.replace('variant = "shadow"\n', 'variant = "shadow"\nchannel_uses = 32\n')
    )
    with pytest.raises(SemlinkError, match="link 'plain' has channel_uses 64, 'shadow' 32"):
        recipes.load(str(tmp_path / "bad.toml"))


def test_a_variant_may_leave_links_out_of_attacks_and_figures_too(tmp_path):
    path = tmp_path / "fewer.toml"
    path.write_text(RECIPE.replace('queries = "shadow"\n', "") + '\n[variants.fewer]\nwithout = ["shadow"]\n')
    assert set(recipes.load(str(path), "fewer").links) == {"plain"}
    assert set(recipes.load(str(path)).links) == {"plain", "shadow"}
    path.write_text(RECIPE + '\n[variants.other]\nwithout = ["plain"]\n')
    other = recipes.load(str(path), "other")
    assert (set(other.links), other.attacks, other.figures) == ({"shadow"}, {}, {})
    path.write_text(RECIPE + '\n[variants.fewer]\nwithout = ["shaddow"]\n')
    with pytest.raises(
        SemlinkError, match=r"variants.fewer.without: unknown link to leave out 'shaddow'; did you mean"
    ):
        recipes.load(str(path))


def test_legacy_variants_are_known_by_name():
    assert {"brett20-nats", "sk256-nats", "matlab256-bits", "skimage-nmi"} <= set(MI_VARIANTS)


class Flat:
    """A reader whose features are the pixels."""

    def answer(self, images):
        return torch.zeros(len(images), 10)

    def features(self, images):
        return images.flatten(1) - 0.5


def test_persons_are_verified_where_they_are_known():
    sets = data.load("digits")
    generator = torch.Generator().manual_seed(0)
    faces, persons = torch.rand(30, 1, 28, 28, generator=generator), torch.arange(30).repeat(4)
    photographs = faces.repeat(4, 1, 1, 1) + 0.1 * torch.rand(120, 1, 28, 28, generator=generator)
    held = data.ImageSet((photographs / 1.1 * 255).to(torch.uint8), persons % 10, persons)
    known = dataclasses.replace(sets, test=held)
    tools = judge._Tools(known, ["verification_auc"], 0, CPU, Flat())  # type: ignore[arg-type]
    seen = tools.of_the_whole(tools.images)["verification_auc"]
    blind = tools.of_the_whole(torch.rand(120, 1, 28, 28, generator=generator))["verification_auc"]
    assert seen.mean > 0.99
    assert blind.low < 0.5 < blind.high
    assert judge.whole({"verification_auc": seen})["verification_auc"].mean > 99
    nobody = dataclasses.replace(sets, test=dataclasses.replace(held, persons=None))
    assert judge._Tools(nobody, ["verification_auc"], 0, CPU, Flat()).of_the_whole(photographs.clamp(0, 1)) == {}  # type: ignore[arg-type]


def tools(metrics, count=200):
    sets = data.load("digits")
    few = dataclasses.replace(sets, test=sets.test.subset(torch.arange(count)))
    return few, judge._Tools(few, metrics, 0, CPU, None)


def test_the_critic_is_tuned_on_one_half_and_the_bound_is_of_the_other():
    _, measuring = tools(["infonce_bits"])
    noise = torch.rand(measuring.images.shape, generator=torch.Generator().manual_seed(0))
    cap = math.log2(100)
    assert measuring.image_bits(measuring.images).bits > cap - 0.1
    first, second = (torch.cat([a[:100], b[100:]]) for a, b in ((measuring.images, noise), (noise, measuring.images)))
    assert measuring.image_bits(first).low_bits < 0.1  # what is drawn well was for tuning alone
    assert 0.1 < measuring.image_bits(second).bits < cap / 2  # of noise it is best to be as blunt as can be
    assert measuring.image_bits(noise).low_bits < 0.1


def test_bits_about_attributes_are_of_each_apart():
    few, _ = tools([])
    targets = torch.stack([few.test.targets % 2, few.test.targets // 5], 1).float()
    told = dataclasses.replace(few, test=data.ImageSet(few.test.images, targets), target_names=("odd", "large"))
    measuring = judge._Tools(told, ["label_bits"], 0, CPU, None)
    found = measuring.label_bits(torch.stack([8 * targets[:, 0] - 4, torch.zeros(len(targets))], 1))
    share = targets[:, 0].mean().item()
    entropy = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
    assert found["label_bits.odd"].bits == pytest.approx(entropy - math.log2(1 + math.exp(-4)), abs=1e-5)
    assert found["label_bits.large"].bits == pytest.approx(0, abs=0.02)
    shown = judge.whole(found)["label_bits.odd"]
    assert shown.low < shown.mean == shown.high


def test_what_is_known_without_listening_is_known_from_her_images(leaks, monkeypatch):
    cells, store, _ = leaks
    _, drawing = judged(leaks, "drawing")
    sets = links.image_sets(make_recipe("deepjscc", preset="smoke"))
    truth = sets.test.batch(torch.arange(len(sets.test)))[0]
    hers = sets.attacker.batch(torch.arange(len(sets.attacker)))[0]
    means = torch.stack([hers[sets.attacker.targets == label].mean(0) for label in range(10)])
    for name, guess in (("mean_image", hers.mean(0).expand_as(truth)), ("class_mean", means[sets.test.targets])):
        assert drawing.baselines[name]["psnr_db"].mean == pytest.approx(psnr_db(guess, truth).mean().item(), abs=1e-3)
    given = []
    monkeypatch.setattr(judge, "delivered_floor", lambda *held: given.extend(held))
    run = next(c for c in cells.cells if (c.step, c.link) == ("train", "plain"))
    judge._delivered(links.load(store.folder(run.name) / "run"), sets, 0, CPU)
    assert (len(given[0]), len(given[2])) == (len(sets.attacker), len(sets.test))
    assert torch.equal(given[1], sets.attacker.targets)


def test_every_transmission_has_a_nonce_and_noise_of_its_own(monkeypatch):
    recipe = make_recipe("deepjscc-encryption", preset="smoke")
    link, seeds = links.build(recipe), []
    few = dataclasses.replace(links.image_sets(recipe), test=links.image_sets(recipe).test.subset(torch.arange(20)))
    plan = attacker.Plan("inversion", Threat(12.0, True, transmissions=3), "smoke", "none", 0, "fp32")
    eve, encode = attacker.build(link, plan, data.describe("digits")).eval(), judge.encode

    def noted(link, test, generator, device):
        seeds.append(generator.initial_seed())
        return encode(link, test, generator, device)

    monkeypatch.setattr(judge, "encode", noted)
    heard = []
    monkeypatch.setattr(type(eve.tap), "hear", lambda *given: heard.append(given[3]) or torch.zeros(20, 128))
    judge.values(link, eve, few, [4.0, 12.0], 1, 0, ["psnr_db"], CPU)
    assert len(seeds) == len(set(seeds)) == 3
    assert heard == [4.0, 12.0]


def test_a_record_and_its_text_hold_what_no_attack_can_exceed(leaks):
    _, _, found = leaks
    ceilings = {(each.attack, each.snr_db): each.bits for each in found.ceilings}
    assert set(ceilings) == {(attack, 12.0) for attack in ("drawing", "answering", "without-queries")}
    least = 64 * math.log2(1 + 10**1.2)
    assert all(bits["least"] == pytest.approx(least, abs=1e-3) for bits in ceilings.values())
    line = "of an image no attack learns more: plain (drawing, answering, without-queries): 260.8 bit at 12 dB"
    assert line in shown(found)
