# SPDX-License-Identifier: Apache-2.0
"""Links that are for attributes: some of them or all, and what is measured of each."""

import pytest
import torch

from semlink import data
from semlink._errors import SemlinkError
from semlink.bench import evaluate, load, make_recipe, record, train
from semlink.data import DataSet, ImageSet, describe
from semlink.schemes import Task

CPU = torch.device("cpu")
NAMES = describe("celeba").attributes
SIZES = {"transceiver": 96, "validation": 32, "attacker": 32, "attacker_validation": 32, "test": 80}


def faces() -> DataSet:
    """Random images with random attributes, Bald in none and Young in all of the test images."""
    generator = torch.Generator().manual_seed(0)

    def some(count: int) -> ImageSet:
        images = torch.randint(0, 256, (count, 3, 64, 64), generator=generator, dtype=torch.uint8)
        targets = (torch.rand(count, 40, generator=generator) < 0.3).float()
        targets[:, NAMES.index("Bald")] = 0
        targets[:, NAMES.index("Young")] = 1
        return ImageSet(images, targets)

    splits = {role: some(count) for role, count in SIZES.items()}
    return DataSet(
        name="celeba",
        variant="default",
        kind="attributes",
        target_names=NAMES,
        **splits,
        augmentation=None,
        provenance={"name": "celeba", "variant": "default", "source": "random", "sha256": "0"},
    )


@pytest.fixture(autouse=True)
def random_faces(monkeypatch):
    held = faces()
    monkeypatch.setattr(data, "load", lambda name, variant="default", users=None: held)
    return held


def test_a_task_takes_the_columns_of_its_attributes_in_the_order_asked():
    task = Task.create("attributes:Smiling,Mustache", (3, 64, 64), "attributes", 40, NAMES)
    assert (task.kind, task.outputs, task.attributes) == ("attributes", 2, ("Smiling", "Mustache"))
    targets = torch.arange(80.0).reshape(2, 40)
    columns = [NAMES.index("Smiling"), NAMES.index("Mustache")]
    assert torch.equal(task.targets(targets), targets[:, columns])
    assert Task.create(task.name, (3, 64, 64), "attributes", 40, NAMES) == task
    whole = Task.create(None, (3, 64, 64), "attributes", 40, NAMES)
    assert torch.equal(whole.targets(targets), targets)
    logits = torch.randn(2, 2, generator=torch.Generator().manual_seed(0))
    binary = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    every = torch.zeros(2, 40)
    every[:, columns] = binary
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, binary)
    assert torch.equal(task.loss(logits, torch.zeros(2, 3, 64, 64), every, 0.0), expected)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("attributes:Smilling", "unknown attribute 'Smilling'; did you mean 'Smiling'"),
        ("attributes:Smiling,Smiling", "each name once"),
        ("reconstruct:Smiling", "attributes:NAME,NAME is expected"),
        ("atributes:Smiling", "unknown task 'atributes'; did you mean 'attributes'"),
    ],
)
def test_an_attribute_that_does_not_exist(task, said):
    with pytest.raises(SemlinkError, match=said) as caught:
        make_recipe("deepjscc", data="celeba", task=task)
    assert "\n" not in str(caught.value)
    with pytest.raises(SemlinkError, match="needs other targets"):
        make_recipe("deepjscc", data="cifar10", task="attributes:Smiling")


@pytest.mark.real_data("celeba")
def test_the_names_are_those_of_the_published_file():
    held = data.data_root() / "celeba" / "list_attr_celeba.txt"
    assert tuple(held.read_text().splitlines()[1].split()) == NAMES


def test_one_attribute_is_trained_and_measured_alone(tmp_path, random_faces):
    recipe = make_recipe("deepjscc", data="celeba", task="attributes:Smiling", preset="smoke")
    train(recipe, tmp_path / "run", CPU)
    assert load(tmp_path / "run").scheme.design.task.outputs == 1
    found = evaluate(tmp_path / "run", [12.0], 2, 0, CPU)
    measured = {f"{metric}.Smiling" for metric in ("accuracy", "balanced_accuracy", "auc", "average_precision")}
    assert set(found.points[0]) == {"snr_db", "accuracy", *measured}
    count = int(random_faces.test.targets[:, NAMES.index("Smiling")].sum())
    assert found.positives == {"Smiling": count}
    share = 100 * count / SIZES["test"]
    assert found.constant["accuracy.Smiling"].mean == pytest.approx(100 - share)
    assert found.constant["balanced_accuracy.Smiling"].mean == pytest.approx(50)
    assert found.constant["auc.Smiling"].mean == pytest.approx(50)
    assert found.constant["average_precision.Smiling"].mean == pytest.approx(share)
    assert found == record.read(tmp_path / "run" / "evaluate.json", record.EvaluateRecord)


def test_all_attributes_are_measured_those_without_both_answers_not_ranked(tmp_path):
    train(make_recipe("deepjscc", data="celeba", preset="smoke"), tmp_path / "run", CPU)
    found = evaluate(tmp_path / "run", [12.0], 1, 0, CPU)
    point = found.points[0]
    assert {name for name in NAMES if f"accuracy.{name}" in point} == set(NAMES)
    assert {name for name in NAMES if f"auc.{name}" not in point} == {"Bald", "Young"}
    assert (found.positives["Bald"], found.positives["Young"]) == (0, SIZES["test"])
    assert found.constant["accuracy.Bald"].mean == found.constant["accuracy.Young"].mean == 100
    mean = sum(point[f"accuracy.{name}"].mean for name in NAMES) / 40
    assert point["accuracy"].mean == pytest.approx(mean, abs=1e-4)
