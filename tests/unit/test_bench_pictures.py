# SPDX-License-Identifier: Apache-2.0
"""The test images that are shown of a bench: which they are, what is kept of them, and where they may go."""

import pytest
import torch
from boards import Quiet
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file

from conftest import Small
from semlink import data
from semlink._errors import SemlinkError
from semlink.bench import links, pictures, recipes, results, runner
from semlink.bench.engines import InProcess
from semlink.bench.examples import examples
from semlink.bench.graph import build
from semlink.bench.store import Store
from semlink.cli import main
from semlink.data import ImageSet
from semlink.training import seeded

CPU = torch.device("cpu")
RECIPE = """
title = "What arrives"
[defaults]
preset = "smoke"
precision = "fp32"
channel_uses = 8
[links.three]
scheme = "csi-free"
channel = "interference"
options = { users = 3 }
[links.alone]
scheme = "deepjscc"
task = "reconstruct"
snr_db = 7
[attacks.overheard]
attack = "cross-link"
links = ["three"]
[evaluation]
snr_db = [0, 12]
draws = 2
metrics = ["psnr_db", "ssim"]
"""


@pytest.fixture(scope="module")
def arrived(tmp_path_factory) -> Small:
    """A network, an attack on it, and a link of one user, all of which send images."""
    folder = tmp_path_factory.mktemp("arrived")
    (folder / "arrived.toml").write_text(RECIPE)
    store = Store(folder / "store")
    graph = build(recipes.load(str(folder / "arrived.toml")), store)
    assert not runner.run(graph, store, InProcess(CPU), Quiet()).failed
    return Small(graph, store, results.gather(graph, store))


def kept(of: Small, step: str, link: str, attack: str | None = None) -> dict[str, torch.Tensor]:
    return load_file(of.folder(step, link, 0, attack) / f"{step}.safetensors")


# Which they are


def images(count: int) -> ImageSet:
    levels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(count, 1, 2, 2).contiguous()
    return ImageSet(levels, torch.zeros(count, dtype=torch.int64), torch.arange(count))


def test_the_first_and_those_of_three_ranks_by_hand():
    draws = torch.tensor([[5.0, 1, 9, 4, 8], [5.0, 7, 3, 4, 8]])  # means 5, 4, 6, 4, 8
    found = {0.0: {"psnr_db": draws.flip(1)}, 12.0: {"psnr_db": draws}}
    shown = examples(images(5), found, 7.0, lambda each: 1 - each)
    assert shown["ranked"].tolist() == [4, 0, 3]  # 12 dB is nearest; of equal ones the first ranks first
    assert (255 * shown["ranked_originals"][:, 0, 0, 0]).round().tolist() == [4, 0, 3]
    assert (255 * shown["originals"][:, 0, 0, 0]).round().tolist() == [0, 1, 2, 3, 4]
    for name in ("", "ranked_"):
        assert torch.equal(shown[f"{name}drawn"], 1 - shown[f"{name}originals"])


def test_without_psnr_nothing_is_ranked():
    shown = examples(images(12), {12.0: {"ssim": torch.rand(1, 12)}}, 12.0, lambda each: each)
    assert shown.keys() == {"originals", "drawn"}
    assert len(shown["originals"]) == 10


# What is kept


def test_an_attack_keeps_what_it_drew_of_them(small):
    for link, attack in (("plain", "inversion"), ("keyed", "inversion"), ("keyed", "with-key")):
        held = kept(small, "judge", link, attack)
        test = data.load("digits").test.images[: len(held["psnr_db@12"])].float() / 255
        assert torch.equal(held["originals"], test[:10])
        assert torch.equal(held["ranked_originals"], test[held["ranked"]])
        values, (best, middle, worst) = held["psnr_db@12"], held["ranked"].tolist()
        assert (values[best], values[worst]) == (values.max(), values.min())
        assert (values > values[middle]).sum() <= len(values) // 2 <= (values >= values[middle]).sum()
        assert held["ranked_drawn"].shape == held["ranked_originals"].shape
        scores = pictures.psnr_db(held["ranked_drawn"], held["ranked_originals"])
        assert scores[0] > scores[1] > scores[2]  # draws differ by noise alone, ranks by much more


def test_a_link_that_sends_images_keeps_what_arrived_of_them(arrived):
    for link, users in (("three", 3), ("alone", 0)):
        held = kept(arrived, "evaluate", link)
        trained = links.load(arrived.folder("train", link) / "run")
        noise = seeded(arrived.graph.recipe.evaluation.seed, "shown")
        own = arrived.graph.recipe.links[link].snr_db
        for name in ("", "ranked_"):
            delivered = trained.deliver(held[f"{name}originals"], own, noise)
            assert torch.allclose(held[f"{name}drawn"], delivered, atol=1e-5)
        assert held["originals"].shape == (10, *[users] * (users > 0), 1, 28, 28)
        best, _, worst = held["ranked"].tolist()
        values = held["psnr_db@12"]  # of a network the mean over its users
        assert (values[best], values[worst]) == (values.max(), values.min())


def test_a_link_that_answers_keeps_none(small):
    assert not kept(small, "evaluate", "plain").keys() & {"originals", "drawn", "ranked"}


# What is shown


def test_pictures_come_in_the_order_of_the_rows_with_what_they_are_worth(small):
    found = pictures.gather(small.record, small.store)
    assert [each.name for each in found] == ["plain, inversion", "keyed, inversion", "keyed, with-key"]
    for each, (link, attack) in zip(found, [each.name.split(", ") for each in found], strict=True):
        held = kept(small, "judge", link, attack)
        shown = {r.metric: r.shown.mean for r in small.record.rows if r.name == each.name and r.snr_db == 12}
        assert each.said == ["Eve at 12 dB", f"PSNR {shown['psnr_db']:.1f} dB", f"MI {shown['mi_leakage']:z.2f} bit"]
        assert "not converged" in each.doubts
        assert ("worse than the mean image" in each.doubts) == ((link, attack) in small.record.poor())
        assert torch.equal(each.made, held["drawn"][:8])
        error = (held["drawn"] - held["originals"]).square().mean((1, 2, 3))
        assert each.scores == pytest.approx((-10 * error.log10()).tolist()[:8])
        assert [len(pair) for pair in each.ranked] == [2, 2, 2]
    assert [len(group) for group in pictures.grouped(found)] == [3]


def test_users_of_a_network_stand_side_by_side(arrived):
    network, overheard, alone = pictures.gather(arrived.record, arrived.store)
    assert [each.name for each in (network, overheard, alone)] == ["three", "three, overheard", "alone"]
    held = kept(arrived, "judge", "three", "overheard")
    assert torch.equal(overheard.made[4], held["drawn"][1, 1])
    assert (len(overheard.made), overheard.users, alone.users) == (6, 3, 1)  # whole groups
    assert overheard.ranked[0][0].shape == (3, 1, 28, 28)
    assert [[each.name for each in group] for group in pictures.grouped([network, overheard, alone])] == [
        ["three", "three, overheard"],
        ["alone"],
    ]
    assert alone.said == ["Bob at 7 dB"]  # which is not on the grid


def test_what_is_not_there_is_not_shown_and_what_is_damaged_is_said(small, tmp_path):
    other = small.copy(tmp_path / "store")
    path = other.folder("judge", "plain", 0, "inversion") / "judge.safetensors"
    path.unlink()
    assert [each.name for each in pictures.gather(small.record, other.store)] == ["keyed, inversion", "keyed, with-key"]
    path.write_bytes(b"damaged")
    with pytest.raises(SemlinkError, match=r"judge.safetensors is damaged .* run the bench again"):
        pictures.gather(small.record, other.store)


# Where they may go


def test_the_figure_is_a_file_and_the_same_each_time(small, arrived, tmp_path):
    for each in (small, arrived):
        (path,) = pictures.draw(tmp_path / "a", each.record, each.store)
        (again,) = pictures.draw(tmp_path / "b", each.record, each.store)
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert path.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("shareable", [True, False])
def test_what_is_copied_for_all_to_see_has_no_image_that_may_not_be_shared(small, tmp_path, monkeypatch, shareable):
    if not shareable:
        monkeypatch.setattr(pictures, "SHAREABLE", pictures.SHAREABLE - {"digits"})
    other, recipe = small.copy(tmp_path / "store"), small.store.root.parent / "small.toml"
    out = tmp_path / "out"
    words = ["bench", recipe, "--store", other.store.root, "--out", out, "--engine", "in-process"]
    assert main([str(word) for word in words]) == 0
    folder = results.folder_of(small.graph.recipe, other.store)
    for each in (out, folder):
        assert (each / "record.json").exists()
        assert (each / pictures.FILE).exists() == shareable


@pytest.mark.parametrize(
    ("name", "may"), [("cifar10", True), ("mnist+fashion-mnist", True), ("celeba", False), ("mnist+celeba", False)]
)
def test_which_data_sets_may_be_shown(small, name, may):
    shown = pictures.gather(small.record, small.store)[0]
    assert shown._replace(data=name).is_shareable == may


def test_no_figure_of_a_recipe_takes_its_name():
    names = TypeAdapter(recipes.Name)
    assert names.validate_python("test images") == "test images"  # which is drawn to test-images.png
    with pytest.raises(ValidationError):
        names.validate_python(pictures.FILE.removesuffix(".png"))
