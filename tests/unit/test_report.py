# SPDX-License-Identifier: Apache-2.0
"""The report against synthetic records: it holds their numbers, needs nothing but itself, and says what they say."""

import base64
import html
import io
import re
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from semlink._errors import SemlinkError
from semlink.bench import record
from semlink.bench.record import EvaluateRecord, JudgeRecord, Measurement, Recipe, TrainRecord
from semlink.report import takeaways, write_page
from semlink.report.figures import strip_uri
from semlink.report.tables import numbers

HASH = "0123456789abcdef" * 4
GRID = (4.0, 8.0, 12.0, 16.0, 20.0)
COMMAND = "semlink quickstart --seed 0"


def measurement(mean, half, unit="dB", n=1000):
    return Measurement(mean=mean, low=mean - half, high=mean + half, n=n, unit=unit, method="student-t over images")


def common(recipe, weights):
    return {
        "code_sha256": HASH,
        "step_sha256": HASH,
        "libraries": {"torch": "2.13.0"},
        "machine": {"device": "cpu", "processor": "Test processor", "threads": 2, "python": "3.11.7"},
        "recipe": recipe,
        "data": {"name": recipe.data, "sha256": "feed" * 16, "splits": {"test": {"n": 1000, "sha256": HASH}}},
        "weights_sha256": weights,
        "timing": {"finished": "2025-01-01T00:00:00+00:00", "training_seconds": 61.5, "seconds": 3.5},
    }


def make_run(folder, scheme="deepjscc", utility=96.0, evaluated=True, weights="beef" * 16, **recipe):
    """Write a trained (and evaluated) run; ``utility`` is the mean at the third SNR of the grid."""
    keyed = scheme == "deepjscc-encryption"
    given = {"scheme": scheme, "data": "digits", "task": "classify", "snr_db": 12.0, "channel_uses": 64}
    given |= {"preset": "cpu", "seed": 0, "precision": "fp32"}
    given["key"] = {"kind": "test", "fingerprint": "c0ffee"} if keyed else None
    recipe = Recipe(**given | recipe)
    trained = TrainRecord(
        **common(recipe, weights),
        started_by_step_sha256=HASH,
        selection="weights of the last epoch",
        schedule={"epochs": 20},
        parameters={"encoder": 1234567, "decoder": 7654, "total": 1242221},
        multiply_adds={"transmitter": 84123456, "receiver": 98765},
        channel_uses=recipe.channel_uses,
        history=[{"epoch": i} for i in range(20)],
    )
    record.write(folder / "record.json", trained)
    if evaluated:
        evaluate(folder, trained, utility)
    return folder


def evaluate(folder, trained, utility):
    metric, unit = ("psnr_db", "dB") if trained.recipe.task == "reconstruct" else ("accuracy", "%")
    points = []
    for i, snr in enumerate(GRID):
        mean = utility + (i - 2) * 1.1 - 0.3 * (i - 2) ** 2
        points.append({"snr_db": snr, metric: measurement(mean, 1.17, unit)})
        points[-1] |= {"ssim": measurement(0.81, 0.013, "1")} if unit == "dB" else {}
    power = {"mean": 1.0000002, "largest_deviation_from_1": 3e-7, "peak": 7.6543}
    measured = EvaluateRecord(
        **common(trained.recipe, trained.weights_sha256), draws=5, noise_seed=3, power=power, points=points
    )
    record.write(folder / "evaluate.json", measured)


def add_attack(folder, psnr, with_key=False, converged=True, lpips=False, pictures=True, side=28, epochs=30):
    trained = record.read(folder / "record.json", TrainRecord)

    def results(psnr_db, leak):
        found = {
            "psnr_db": measurement(psnr_db, 0.21),
            "ssim": measurement(psnr_db / 31, 0.011, "1"),
            "mi_leakage": measurement(leak, 0.0123, "bit"),
        }
        return found | ({"lpips": measurement(9 / psnr_db, 0.017, "1")} if lpips else {})

    attack = JudgeRecord(
        **common(trained.recipe, trained.weights_sha256),
        attack="inversion",
        threat={"snr_db": 12.0, "with_secret": with_key},
        settings={"width": 64, "taps": 2 * lpips, "seed": 0, "schedule": {"batch_size": 128}, "parameters": 345678},
        converged=converged,
        last_fifth_fall=None if epochs < 5 else 0.004 if converged else 0.0437,
        attacker_sha256=HASH,
        draws=5,
        noise_seed=0,
        images={"attacker": 1000, "attacker_validation": 250, "test": 1000},
        points=[{"snr_db": 12.0, **results(psnr, psnr / 40)}],
        baselines={"mean_image": results(11.13, -0.0021), "class_mean": results(13.37, 0.1234)},
        history=[{"epoch": i} for i in range(epochs)],
    )
    name = f"attack-{int(with_key)}{int(1000 * psnr):08d}"
    record.write(folder / f"{name}.json", attack)
    if pictures:
        channels = 1 if side == 28 else 3
        grid = torch.linspace(0, 1, side).expand(10, channels, side, side)
        originals = (grid * torch.arange(1, 11).view(10, 1, 1, 1) * 3).sin().abs().contiguous()
        noise = torch.randn(originals.shape, generator=torch.Generator().manual_seed(0))
        drawn = originals + (20 - psnr) * 0.03 * noise
        save_file({"originals": originals, "drawn": drawn.clamp(0, 1).contiguous()}, folder / f"{name}.safetensors")
    return folder / f"{name}.json"


def main_job(folder, *, encrypted=95.9, without=11.2, with_key=18.4, fixed=18.1, converged=True, side=28, **recipe):
    plain = make_run(folder / "deepjscc", **recipe)
    add_attack(plain, 18.6, side=side)
    fresh = make_run(folder / "deepjscc-encryption", "deepjscc-encryption", encrypted, **recipe)
    add_attack(fresh, without, converged=converged, side=side)
    add_attack(fresh, with_key, with_key=True, side=side)
    constant = make_run(
        folder / "deepjscc-encryption-fixed-nonce", "deepjscc-encryption", encrypted, options={"fresh": False}, **recipe
    )
    add_attack(constant, fixed, side=side)
    return [plain, fresh, constant]


class Reader(HTMLParser):
    """Collects what a browser would fetch, the visible text, and tags left open."""

    def __init__(self, text):
        super().__init__()
        self.fetched, self.open, self.tags, self.words = [], [], [], []
        self.feed(text)
        self.text = re.sub(r"\s+", " ", " ".join(self.words).replace("\u2007", ""))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.fetched += [v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "data", "poster")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)


def page_of(runs, tmp_path):
    out = tmp_path / "out" / "report.html"
    assert write_page(runs, out, COMMAND) == out
    return out.read_text(encoding="utf-8")


def plain_text(page):
    return Reader(page).text.replace("−", "-")


def test_page_needs_nothing_but_itself(tmp_path):
    page = page_of(main_job(tmp_path), tmp_path)
    reader = Reader(page)
    assert not reader.open
    assert reader.fetched
    assert all(v.startswith(("#", "data:image/png;base64,")) for v in reader.fetched)
    assert not {tag for tag, _ in reader.tags} & {"script", "link", "iframe", "object"}
    assert "http" not in page
    assert "@import" not in page
    assert all(inside.startswith("#") for inside in re.findall(r"url\(([^)]*)\)", page))
    assert str(tmp_path) not in page
    assert "/home/" not in page


def test_page_holds_every_number_of_the_records(tmp_path):
    runs = main_job(tmp_path)
    add_attack(runs[0], 17.7, lpips=True)
    text = plain_text(page_of(runs, tmp_path))
    digits, found = {"%": 2, "dB": 2, "bit": 3, "1": 3}, []
    for run in runs:
        for path in run.glob("attack-*.json"):
            attack = record.read(path, JudgeRecord)
            for results in (attack.results, *attack.baselines.values()):
                found += results.values()
            assert f"{attack.settings['parameters']:,}" in text
        for point in record.read(run / "evaluate.json", EvaluateRecord).points:
            found += [value for value in point.values() if isinstance(value, Measurement)]
    assert len(found) > 40
    for m in found:
        mean, low, high = (f"{v:.{digits[m.unit]}f}" for v in (m.mean, m.low, m.high))
        assert f"{mean} [{low}, {high}]" in text
    facts = ["7.6543", "1.0000002", "1,234,567", "84,123,456", "61.5 s", "fp32", "Test processor", "feedfeedfeed"]
    assert not [fact for fact in [*facts, COMMAND] if fact not in text]


def test_columns_stand_in_line(tmp_path):
    run = make_run(tmp_path / "a")
    add_attack(run, 9.5)
    page = page_of([run], tmp_path)
    assert '<span class="pad">\u2007</span><span class="mean">9.50</span>' in page  # beside 11.13 and 13.37
    assert '<span class="mean">−0.002</span>' in page
    assert [cell[1] for cell in numbers([measurement(-0.0001, 0.1, "1"), measurement(-1.0, 0.1, "1")])] == [
        "0.000",
        "−1.000",
    ]


def test_pictures_are_rows_of_originals_and_attacks(tmp_path):
    reader = Reader(page_of(main_job(tmp_path), tmp_path))
    shown = [attrs["alt"] for tag, attrs in reader.tags if tag == "img"]
    names = [
        "deepjscc, no key in use",
        "deepjscc-encryption, Eve without the key",
        "deepjscc-encryption, Eve with the key",
    ]
    names.append("deepjscc-encryption, fixed nonce, Eve without the key")
    assert shown == ["original test images", *(f"what Eve rebuilt: {name}" for name in names)]


def test_strip_shows_the_pixels(tmp_path):
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    image = Image.open(io.BytesIO(base64.b64decode(strip_uri(images).split(",")[1])))
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 4)
    zoom = image.height // 32
    pitch = (image.width - 32 * zoom) // 2
    for i in range(3):
        part = pixels[zoom // 2 :: zoom, i * pitch + zoom // 2 :: zoom][:, :32, :3].permute(2, 0, 1)
        assert torch.equal(part, (255 * images[i]).round().to(torch.uint8))


def test_no_picture_of_celeba(tmp_path):
    run = make_run(tmp_path / "faces", data="celeba", task="attributes", utility=88.0)
    add_attack(run, 15.0, side=64)
    page = page_of([run], tmp_path)
    assert "<img" not in page
    assert "data:image" not in page
    assert "forbid" in page
    assert "15.00 [14.79, 15.21]" in plain_text(page)


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "$\\frac{1}{0}$", "&lt;"]
)
def test_hostile_names_stay_names(tmp_path, name):
    runs = [make_run(tmp_path / "a", name, options={"o": name}), make_run(tmp_path / "b")]
    add_attack(runs[0], 18.0)
    out = tmp_path / "report.html"
    write_page(runs, out, name)
    page = out.read_text(encoding="utf-8")
    reader = Reader(page)
    assert "script" not in {tag for tag, _ in reader.tags}
    assert not any("onerror" in attrs for _, attrs in reader.tags)
    assert reader.text.count(name) >= 4  # a sentence, the legend, tables, the command
    assert f">{html.escape(name, quote=False)}, o " in page[page.index("<svg") : page.index("</svg>")]  # in the legend


def test_missing_parts_are_named_with_their_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "runs" / "my link", evaluated=False)
    text = plain_text(page_of([run], tmp_path))
    assert "semlink evaluate 'runs/my link'" in text
    assert "semlink attack 'runs/my link'" in text
    assert "<svg" not in page_of([run], tmp_path)
    run = make_run(tmp_path / "other")
    add_attack(run, 15.0, pictures=False)
    text = plain_text(page_of([run], tmp_path))
    assert "semlink evaluate" not in text
    assert "pictures are missing" in text


def test_reconstruction_and_mixed_tasks(tmp_path):
    runs = [make_run(tmp_path / "a", utility=30.25, task="reconstruct", data="cifar10"), make_run(tmp_path / "b")]
    add_attack(runs[0], 20.0, side=32)
    page = page_of(runs, tmp_path)
    assert page.count("<svg") == 2
    assert "30.25 [29.08, 31.42]" in plain_text(page)
    assert "rebuilds 1,000 test images at 30.2 dB PSNR" in takeaways(runs[:1])[0]


def test_runs_of_one_scheme_are_told_apart(tmp_path):
    runs = [make_run(tmp_path / f"{seed}", seed=seed) for seed in (0, 1)]
    text = plain_text(page_of(runs, tmp_path))
    assert "deepjscc, seed 0" in text
    assert "deepjscc, seed 1" in text
    assert "one training seed" not in text


def test_guessing_is_named_where_the_classes_are_counted(tmp_path):
    run = make_run(tmp_path / "a", utility=14.0)
    assert "guessing" not in page_of([run], tmp_path).lower()
    trained = record.read(run / "record.json", TrainRecord)
    record.write(run / "record.json", trained.model_copy(update={"data": trained.data | {"classes": 10}}))
    page = page_of([run], tmp_path)
    assert "Guessing among 10 classes would give 10 %" in page
    assert ">guessing</text>" in page  # 10 % is within the axis


def test_same_records_same_page(tmp_path):
    runs = main_job(tmp_path)
    assert page_of(runs, tmp_path) == page_of(runs, tmp_path)


def test_bad_folders(tmp_path):
    with pytest.raises(SemlinkError, match="at least one run folder"):
        takeaways([])
    run = make_run(tmp_path / "a")
    trained = record.read(run / "record.json", TrainRecord)
    evaluate(run, trained.model_copy(update={"weights_sha256": HASH}), 90.0)
    with pytest.raises(SemlinkError, match="other weights"):
        takeaways([run])
    run = make_run(tmp_path / "b")
    path = add_attack(run, 12.0)
    path.with_suffix(".safetensors").write_bytes(b"nonsense")
    with pytest.raises(SemlinkError, match="damaged"):
        write_page([run], tmp_path / "out.html", COMMAND)
    assert not (tmp_path / "out.html").exists()


def three(runs):
    said = takeaways(runs)
    assert len(said) == 3
    for sentence in said:
        assert sentence.endswith(".")
        assert not re.search(r"\.\s", sentence)  # one sentence each
        assert "\n" not in sentence
    return said


def test_sentences_of_the_main_job(tmp_path):
    first, second, third = three(main_job(tmp_path))
    assert not [words for words in ("At 12 dB", "96.0 %", "95.9 %", "no measurable cost") if words not in first]
    assert not [words for words in ("18.6 dB", "11.2 dB", "11.1 dB", "nothing measurable") if words not in second]
    wanted = ("18.4 dB", "7.2 dB more than without it", "18.1 dB", "6.9 dB more than with a fresh nonce")
    assert not [words for words in wanted if words not in third]
    assert third.endswith("rests on the secrecy of the key and on a fresh nonce for every message.")


def test_sentences_follow_the_numbers(tmp_path):
    first, second, third = three(main_job(tmp_path, encrypted=91.0, without=14.0, with_key=14.1, fixed=14.0))
    assert "with encryption 5.0 points less" in first
    assert "gained 2.9 dB over that guess" in second
    assert "nothing" not in second
    assert third.count("not measurably different") == 2
    assert "rests on" not in third


def test_sentences_admit_surprises(tmp_path):
    first, second, _ = three(main_job(tmp_path, encrypted=99.0, without=10.0))
    assert "with encryption 3.0 points more" in first
    assert "she got 1.1 dB less than that guess" in second


def test_attack_that_has_not_converged_is_marked(tmp_path):
    runs = main_job(tmp_path, converged=False)
    _, second, third = three(runs)
    assert "no evidence that the link withstands her" in second
    assert "rests on" not in third
    page = page_of(runs, tmp_path)
    assert page.count("supports no claim that a defence survives<") == 1
    assert "4.4 %" in page
    assert page.count("not converged</span>") == 1
    assert page.count('class="warn"') == 2  # in the grid and in the table
    assert "not converged</span>" not in page_of(main_job(tmp_path / "b"), tmp_path)
    short = make_run(tmp_path / "c")
    add_attack(short, 11.0, converged=False, epochs=2)
    assert "no: too short to tell; draws worse than the mean image; supports no claim" in page_of([short], tmp_path)
    poor = make_run(tmp_path / "d")
    add_attack(poor, 11.0)
    assert "yes; draws worse than the mean image; supports no claim" in page_of([poor], tmp_path)


def test_attack_too_weak_to_judge_by(tmp_path):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", "deepjscc-encryption")]
    for run in runs:
        add_attack(run, 11.1)
    assert "too weak to judge by" in three(runs)[1]


@pytest.mark.parametrize("chosen", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (2, 1, 0)])
def test_sentences_of_any_part_of_the_job(tmp_path, chosen):
    runs = main_job(tmp_path)
    first, second, third = three([runs[i] for i in chosen])
    assert "not been measured" not in first + second
    assert ("None of these links uses a key" in third) == (chosen == (0,))
    page_of([runs[i] for i in chosen], tmp_path)


def test_sentences_of_bare_runs(tmp_path):
    first, second, third = three([make_run(tmp_path / "a", "deepjscc-encryption", evaluated=False)])
    assert "semlink evaluate a" in first
    assert "semlink attack a" in second
    assert "semlink attack a --with-key" in third


def test_links_of_unequal_conditions_are_not_compared(tmp_path):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", "deepjscc-encryption", 50.0, channel_uses=32)]
    assert "with encryption" not in three(runs)[0]
    assert "96.0 %" in three(runs)[0]
