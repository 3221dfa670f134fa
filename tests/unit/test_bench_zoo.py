# SPDX-License-Identifier: Apache-2.0
"""The zoo: what goes in comes out rounded and nothing else, and what is not as published is refused."""

import hashlib
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import semlink
from semlink._errors import SemlinkError
from semlink.attacks import Threat
from semlink.bench import attack, attacker, code, evaluate, links, make_recipe, record, train, zoo
from semlink.schemes import Key
from semlink.training import Fit, checkpoint

CPU, NAME = torch.device("cpu"), "deepjscc-digits"
REPOSITORY = Path(__file__).resolve().parents[2]


def settle(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Let ``folder`` be the source checkout that the package runs from."""
    patch.setattr(zoo, "CHECKOUT", folder)
    patch.setattr(zoo, "INDEX", folder / "zoo.json")
    patch.delenv("SEMLINK_ZOO", raising=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("zoo") / "run"
    train(make_recipe("deepjscc", preset="smoke"), folder, CPU)
    return folder


@pytest.fixture(scope="module")
def published(run, tmp_path_factory) -> Path:
    """A checkout whose zoo holds ``run``."""
    folder = tmp_path_factory.mktemp("published")
    (folder / "zoo").mkdir()
    (folder / "pyproject.toml").touch()
    (folder / "zoo.json").write_text('{"format": 1, "links": {}}')
    with pytest.MonkeyPatch.context() as patch:
        settle(folder, patch)
        assert zoo.names() == []
        zoo.put(run, NAME, CPU)
    return folder


@pytest.fixture
def checkout(published, tmp_path, monkeypatch) -> Path:
    """A copy of ``published`` to work in."""
    folder = tmp_path / "checkout"
    shutil.copytree(published, folder)
    settle(folder, monkeypatch)
    return folder


@pytest.fixture
def installed(checkout, tmp_path, monkeypatch) -> Path:
    """The cache of a package that runs from no checkout, but knows the index of ``checkout``."""
    monkeypatch.setattr(zoo, "CHECKOUT", tmp_path / "nowhere")
    monkeypatch.setattr(zoo, "cache_root", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "zoo"


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def edited(run: Path, folder: Path, **recipe) -> Path:
    """A copy of ``run`` whose record says another recipe."""
    shutil.copytree(run, folder)
    raw = json.loads((run / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(raw | {"recipe": raw["recipe"] | recipe}))
    return folder


def failure(function, *arguments) -> str:
    with pytest.raises(SemlinkError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What goes in


def test_a_link_comes_back_with_its_weights_rounded_and_its_counts_kept(run, checkout):
    trained, stored = load_file(run / "weights.safetensors"), load_file(checkout / "zoo" / f"{NAME}.safetensors")
    found = semlink.load(f"zoo:{NAME}").scheme.state_dict()
    assert trained.keys() == stored.keys() == found.keys()
    kinds = {value.dtype for value in trained.values()}
    assert kinds == {torch.float32, torch.int64}
    changed = 0
    for name, value in trained.items():
        expected = value.to(torch.float16) if value.dtype == torch.float32 else value
        assert stored[name].dtype == expected.dtype
        assert torch.equal(stored[name], expected)
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], expected.to(value.dtype))
        changed += int((found[name] != value).sum())
    assert changed > 0


def test_the_record_and_the_index_say_what_is_stored(run, checkout):
    said = record.read(checkout / "zoo" / f"{NAME}.json", zoo.ZooRecord)
    trained = record.read(run / "record.json", record.TrainRecord)
    weights, described = ((checkout / "zoo" / f"{NAME}{end}").read_bytes() for end in (".safetensors", ".json"))
    sha256 = hashlib.sha256(weights).hexdigest()
    assert (said.kind, said.name) == ("zoo", NAME)
    assert said.train.selection == "weights of the last epoch, rounded to float16"
    assert said.train.weights_sha256 == said.evaluate.weights_sha256 == sha256 != trained.weights_sha256
    changed = {"selection", "weights_sha256"}
    assert said.train.model_dump(exclude=changed) == trained.model_dump(exclude=changed)
    held = {"sha256": sha256, "record_sha256": hashlib.sha256(described).hexdigest(), "bytes": len(weights)}
    assert json.loads((checkout / "zoo.json").read_text()) == {"format": 1, "links": {NAME: held}}
    assert zoo.size(NAME) == zoo.size(f"zoo:{NAME}") == len(weights)
    assert zoo.read(f"zoo:{NAME}") == (said.train, checkout / "zoo" / f"{NAME}.safetensors")


def test_the_numbers_are_those_of_the_stored_weights(checkout, tmp_path):
    zoo.unpack(NAME, tmp_path / "run")
    measured = evaluate(tmp_path / "run", [4, 8, 12, 16, 20], 5, 0, CPU)
    said = record.read(checkout / "zoo" / f"{NAME}.json", zoo.ZooRecord).evaluate
    assert said.model_dump(exclude={"timing"}) == measured.model_dump(exclude={"timing"})


@pytest.mark.parametrize(
    ("name", "right"),
    [(NAME, True), (f"{NAME}-2", True), (f"{NAME}-low-snr", True)]
    + [(f"{NAME}{end}", False) for end in ("-", "2", "-Two", "-a/b", "-a.b", "\n")]
    + [(name, False) for name in ("deepjscc", "deepjscc-mnist", "digits-deepjscc", "deepjscc-encryption-digits", "")],
)
def test_a_name_says_what_the_link_is(run, checkout, name, right):
    if right:
        assert zoo.put(run, name, CPU) == checkout / "zoo" / f"{name}.json"
        assert zoo.names() == sorted({NAME, name})
    else:
        before = content(checkout)
        assert re.search(f"no name for {re.escape(str(run))}; use {NAME}, or ", failure(zoo.put, run, name, CPU))
        assert content(checkout) == before


def test_a_link_is_replaced(checkout, tmp_path):
    train(make_recipe("deepjscc", preset="smoke", seed=1), tmp_path / "other", CPU)
    zoo.put(tmp_path / "other", NAME, CPU)
    assert zoo.names() == [NAME]
    assert zoo.read(NAME)[0].recipe.seed == 1


def test_what_may_not_be_published_is_refused(run, checkout, tmp_path):
    before = content(checkout)
    celeba = edited(run, tmp_path / "celeba", data="celeba")
    said = failure(zoo.put, celeba, "deepjscc-celeba", CPU)
    assert f"{celeba} was trained on celeba, whose terms" in said
    assert "forbid distributing" in said
    fashion = edited(run, tmp_path / "fashion", data="fashion-mnist")
    assert "takes links of cifar10, digits, mnist" in failure(zoo.put, fashion, "deepjscc-fashion-mnist", CPU)
    kept = edited(run, tmp_path / "kept", scheme="deepjscc-encryption", key=Key(bytes(range(32))).describe())
    assert "your key, without which nobody can receive" in failure(zoo.put, kept, "deepjscc-encryption-digits", CPU)
    assert content(checkout) == before


def test_users_who_send_together_are_a_link_too(checkout, tmp_path):
    train(make_recipe("csi-free", preset="smoke", channel_uses=16, users=2, width=32), tmp_path / "pair", CPU)
    path = zoo.put(tmp_path / "pair", "csi-free-digits", CPU)
    measured = record.read(path, zoo.ZooRecord).evaluate
    assert [point["snr_db"] for point in measured.points] == [-5, 0, 5, 10, 15, 20]
    assert {"ssim", "ssim.1", "ssim.2", "ssim_global"} <= measured.points[0].keys()
    held, taken = links.load(tmp_path / "pair"), semlink.load("zoo:csi-free-digits")
    images = torch.rand(4, 2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    answers = []
    for link in (held, taken):
        generator = torch.Generator().manual_seed(1)
        answers.append(link.deliver(images, 10.0, generator))
    assert 0 < (answers[0] - answers[1]).abs().max() < 0.02  # rounding


def test_a_link_with_a_test_key_is_received(checkout, tmp_path):
    train(make_recipe("deepjscc-encryption", preset="smoke"), tmp_path / "keyed", CPU)
    path = zoo.put(tmp_path / "keyed", "deepjscc-encryption-digits", CPU)
    images = links.image_sets(make_recipe("deepjscc", preset="smoke")).test.batch(torch.arange(200))[0]
    answers = []
    for link in (links.load(tmp_path / "keyed"), semlink.load("zoo:deepjscc-encryption-digits")):
        generator = torch.Generator().manual_seed(0)
        sent = link.transmit(images, generator)
        answers.append(link.receive(link.channel(sent.symbols, 12.0, generator), sent.header).softmax(1))
    assert (answers[0] - answers[1]).abs().max() < 0.05  # rounding; with another key the rows have nothing in common
    assert record.read(path, zoo.ZooRecord).train.recipe.key == Key.for_test(0).describe()
    assert "holds a link without a key" in failure(semlink.load, f"zoo:{NAME}", Key(bytes(32)))


def test_weights_that_float16_cannot_hold_are_refused(run, checkout, tmp_path):
    before, wide = content(checkout), tmp_path / "wide"
    shutil.copytree(run, wide)
    tensors = load_file(run / "weights.safetensors")
    name = next(name for name, value in tensors.items() if value.is_floating_point())
    tensors[name].view(-1)[0] = 70_000.0
    checkpoint.save_tensors(wide / "weights.safetensors", tensors)
    sha256 = hashlib.sha256((wide / "weights.safetensors").read_bytes()).hexdigest()
    raw = json.loads((run / "record.json").read_text())
    (wide / "record.json").write_text(json.dumps(raw | {"weights_sha256": sha256}))
    assert f"{wide}: {name} holds a value that float16 cannot" in failure(zoo.put, wide, NAME, CPU)
    assert content(checkout) == before


def test_weights_that_are_too_large_are_refused(run, checkout, monkeypatch):
    assert (zoo.LARGEST, zoo.LARGEST_ZOO) == (8_000_000, 75_000_000)
    size, before = zoo.size(NAME), content(checkout)
    monkeypatch.setattr(zoo, "LARGEST", size - 1)
    assert f"are {size:,} bytes; the zoo takes {size - 1:,}" in failure(zoo.put, run, NAME, CPU)
    monkeypatch.setattr(zoo, "LARGEST", size)
    monkeypatch.setattr(zoo, "LARGEST_ZOO", 2 * size - 1)
    assert f"would have {2 * size:,} bytes" in failure(zoo.put, run, f"{NAME}-2", CPU)
    assert content(checkout) == before
    zoo.put(run, NAME, CPU)  # a link does not count twice when it is replaced
    monkeypatch.setattr(zoo, "LARGEST_ZOO", 2 * size)
    zoo.put(run, f"{NAME}-2", CPU)


def test_a_failure_leaves_the_zoo_as_it_was(run, checkout, tmp_path, monkeypatch):
    before = content(checkout)

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(zoo, "evaluate", fail)
        with pytest.raises(KeyboardInterrupt):
            zoo.put(run, f"{NAME}-2", CPU)
    assert content(checkout) == before
    assert "does not exist" in failure(zoo.put, tmp_path / "none", NAME, CPU)
    shutil.rmtree(checkout / "zoo")
    assert "run this from one" in failure(zoo.put, run, NAME, CPU)


def test_the_command_line_prints_the_evaluation(run, checkout, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["zoo", str(run), f"{NAME}-again"])
    assert zoo.main() == 0
    said = record.read(checkout / "zoo" / f"{NAME}-again.json", zoo.ZooRecord).evaluate
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == str(checkout / "zoo" / f"{NAME}-again.json")
    shown = [line.split()[:4] for line in lines]
    names = ("accuracy", "balanced_accuracy")
    assert shown == [
        [f"{point['snr_db']:g}", "dB", name, f"{point[name].mean:.3f}"] for point in said.points for name in names
    ]
    monkeypatch.setattr(sys, "argv", ["zoo", str(run), "other"])
    assert zoo.main() == 2
    assert capsys.readouterr().err.startswith("error: 'other' is no name for ")


# What comes out


def test_unpacked_it_is_the_run_folder_that_training_leaves(run, checkout, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    zoo.unpack(f"zoo:{NAME}", folder)
    assert set(content(folder)) == {"lock", "recipe.json", "weights.safetensors", "record.json"}
    assert (folder / "recipe.json").read_bytes() == (run / "recipe.json").read_bytes()
    stored = checkout / "zoo" / f"{NAME}.safetensors"
    assert (folder / "weights.safetensors").read_bytes() == stored.read_bytes()
    one, two = links.load(folder).scheme.state_dict(), semlink.load(f"zoo:{NAME}").scheme.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in two)
    judged = record.read(attack(folder, Threat(12.0), CPU, perceptual="none"), record.JudgeRecord)
    assert judged.weights_sha256 == zoo.entry(NAME).sha256

    def begun(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(Fit, "run", begun)
    assert train(make_recipe("deepjscc", preset="smoke"), folder, CPU) == zoo.read(NAME)[0]
    before = content(folder)
    zoo.unpack(NAME, folder)  # with an attack beside it
    assert content(folder) == before


def test_unpacking_that_was_cut_short_is_no_run_and_is_completed(checkout, tmp_path, monkeypatch):
    folder = tmp_path / "run"

    def killed(*_):
        raise KeyboardInterrupt

    for culprit in ("_copy", "record.write"):
        with monkeypatch.context() as patch:
            patch.setattr(f"semlink.bench.zoo.{culprit}", killed)
            with pytest.raises(KeyboardInterrupt):
                zoo.unpack(NAME, folder)
        assert "is not finished" in failure(links.load, folder)
    for name in ("recipe.json", "weights.safetensors", "record.json"):
        (folder / f".{name}.x.part").touch()  # as a killed process leaves it
    zoo.unpack(NAME, folder)
    assert links.read_run(folder) == zoo.read(NAME)[0]
    assert not list(folder.glob(".*"))


def test_other_things_are_never_overwritten(run, checkout, tmp_path):
    own, photos, file = tmp_path / "own", tmp_path / "photos", tmp_path / "file"
    shutil.copytree(run, own)
    photos.mkdir()
    (photos / "me.jpg").touch()
    file.touch()
    begun = tmp_path / "begun"
    shutil.copytree(run, begun)
    (begun / "record.json").unlink()
    (begun / "checkpoint.json").touch()
    for folder, said in (
        (own, "holds another run"),
        (photos, r"holds other things \(me.jpg\)"),
        (begun, r"holds other things \(checkpoint.json\)"),
        (file, "is a file"),
    ):
        before = content(folder)
        assert re.search(f"{folder} {said}", failure(zoo.unpack, NAME, folder))
        assert content(folder) | {"lock": b""} == before | {"lock": b""}


@pytest.mark.parametrize("given", ["deepjsc-digits", "zoo:deepjsc-digits"])
def test_an_unknown_name(checkout, tmp_path, given):
    asking = [(zoo.entry, ()), (zoo.size, ()), (zoo.read, ()), (zoo.unpack, (tmp_path / "run",))]
    asking += [(semlink.load, ())] if given.startswith("zoo:") else []
    for function, rest in asking:
        said = failure(function, given, *rest)
        assert said == f"unknown link of the zoo 'deepjsc-digits'; did you mean '{NAME}'? known: {NAME}"
    assert not (tmp_path / "run").exists()


def test_a_folder_whose_name_begins_like_the_zoo_is_found_by_its_path(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, f"zoo:{NAME}")
    unrounded, found = (attacker.fingerprint(links.load(place).scheme) for place in (run, Path(f"zoo:{NAME}")))
    assert found == unrounded


@pytest.mark.parametrize("ending", [".safetensors", ".json"])
@pytest.mark.parametrize("where", ["checkout", "SEMLINK_ZOO"])
def test_a_damaged_or_missing_file_is_named(checkout, tmp_path, monkeypatch, ending, where):
    folder, remedy = checkout / "zoo", f"restore it with 'git -C {checkout} checkout zoo/{NAME}{ending}'"
    if where == "SEMLINK_ZOO":
        folder, remedy = tmp_path / "own", f"get it from {zoo.ADDRESS}{NAME}{ending}, or unset SEMLINK_ZOO"
        (checkout / "zoo").rename(folder)
        monkeypatch.setenv("SEMLINK_ZOO", str(folder))
    semlink.load(f"zoo:{NAME}")
    path = folder / f"{NAME}{ending}"
    whole = path.read_bytes()
    path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    was, now = (hashlib.sha256(each).hexdigest()[:12] for each in (whole, path.read_bytes()))
    said = failure(semlink.load, f"zoo:{NAME}")
    assert said == f"{path} is not the file of the zoo: its SHA-256 is {now}…, expected {was}…; {remedy}"
    path.unlink()
    assert failure(semlink.load, f"zoo:{NAME}") == f"{path} is missing; {remedy}"


# Downloads


class Handler(SimpleHTTPRequestHandler):
    asked: list[str]

    def do_GET(self):
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, format, *args):
        pass


@pytest.fixture
def asked(checkout, installed, monkeypatch) -> Iterator[list[str]]:
    """What a server that offers the zoo was asked for."""
    Handler.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(checkout / "zoo"))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        monkeypatch.setattr(zoo, "ADDRESS", f"http://127.0.0.1:{server.server_address[1]}/")
        yield Handler.asked
        server.shutdown()
        thread.join()


def test_an_installed_package_downloads_a_link_once(run, checkout, installed, asked):
    link = semlink.load(f"zoo:{NAME}")
    assert sorted(asked) == [f"/{NAME}.json", f"/{NAME}.safetensors"]
    stored = load_file(checkout / "zoo" / f"{NAME}.safetensors")
    assert all(torch.equal(value, stored[name].to(value.dtype)) for name, value in link.scheme.state_dict().items())
    asked.clear()
    semlink.load(f"zoo:{NAME}")
    assert asked == []
    weights = installed / f"{NAME}.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    semlink.load(f"zoo:{NAME}")
    assert asked == [f"/{NAME}.safetensors"]


def test_a_server_that_offers_something_else(checkout, installed, asked):
    (checkout / "zoo" / f"{NAME}.safetensors").write_bytes(b"something else")
    said = failure(semlink.load, f"zoo:{NAME}")
    assert "the bytes received have not the published SHA-256" in said
    assert not (installed / f"{NAME}.safetensors").exists()
    (checkout / "zoo" / f"{NAME}.safetensors").unlink()
    assert "the server answers 404" in failure(semlink.load, f"zoo:{NAME}")


def test_without_a_network_the_error_says_what_to_do(checkout, installed, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}/"
    monkeypatch.setattr(zoo, "ADDRESS", closed)
    said = failure(semlink.load, f"zoo:{NAME}")
    assert f"cannot download {closed}{NAME}.safetensors: no connection" in said
    assert said.endswith(f"put {NAME}.safetensors into a folder of yours and name that folder in SEMLINK_ZOO")
    monkeypatch.setenv("SEMLINK_ZOO", str(checkout / "zoo"))
    semlink.load(f"zoo:{NAME}")


# The package and the repository


def test_the_zoo_of_this_repository_agrees_with_its_index():
    assert Path(semlink.__file__).parent / "zoo.json" == zoo.INDEX
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "zoo.json" in declared["semlink"]
    index = zoo.Index.model_validate_json(zoo.INDEX.read_bytes())
    listed = {f"{name}{end}" for name in index.links for end in (".json", ".safetensors")}
    assert {path.name for path in (REPOSITORY / "zoo").iterdir()} == listed | {"README.md"}
    sizes = []
    for name, entry in index.links.items():
        weights, described = ((REPOSITORY / "zoo" / f"{name}{end}").read_bytes() for end in (".safetensors", ".json"))
        assert entry.sha256 == hashlib.sha256(weights).hexdigest()
        assert entry.record_sha256 == hashlib.sha256(described).hexdigest()
        assert entry.bytes == len(weights)
        sizes.append(len(weights))
        said = record.read(REPOSITORY / "zoo" / f"{name}.json", zoo.ZooRecord)
        assert said.name == name
        assert said.train.weights_sha256 == said.evaluate.weights_sha256 == entry.sha256
        assert said.train.recipe == said.evaluate.recipe
        assert said.train.recipe.data in ("cifar10", "digits", "mnist")
        assert name.startswith(f"{said.train.recipe.scheme}-{said.train.recipe.data}")
        stored, scheme = load_file(REPOSITORY / "zoo" / f"{name}.safetensors"), links.build(said.train.recipe).scheme
        assert {key: value.shape for key, value in links.weights_in(scheme).items()} == {
            key: value.shape for key, value in stored.items()
        }
    assert max(sizes, default=0) <= 8_000_000
    assert sum(sizes) <= zoo.LARGEST_ZOO


def test_a_change_of_the_zoo_leaves_trained_links_as_they_are():
    for step in (train, evaluate, attack):
        assert "semlink.bench.zoo" not in code.imported(step.__module__)


def test_the_zoo_imports_no_downloader():
    said = "import sys, semlink.bench.zoo; print({'pooch', 'requests', 'platformdirs'} & set(sys.modules) or 'none')"
    shown = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "none"
