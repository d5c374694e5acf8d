"""What a recipe measures, by hand: columns, accuracy, mIoU, angles of normals, and the losses."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("timm")
pytest.importorskip("torchmetrics")
pytest.importorskip("torchvision")

from experiments.recipes.examples import Examples
from experiments.recipes.scores import MEAN_ERROR, NORMALS, angles, largest, loss, score
from experiments.recipes.study import errors_of, find, summed_up

from ..support import tiny_datasets as tiny
from ..support.tiny_recipes import DATA, Fixed, small


def test_columns_by_hand(tmp_path):
    pascal = find(DATA["pascal"][0](tmp_path / "p"), small("pascal-context"))
    scores = dict.fromkeys(pascal.stages[0].tests, 50.0) | {"clean": 80.0, "fog 1": 70.0, "fog 5": 20.0}
    assert len(scores) == 21
    columns = summed_up(pascal, [scores])
    assert columns["ID: clean"] == 80
    assert columns["fog"] == pytest.approx((70 + 3 * 50 + 20) / 5)
    assert columns["OOD mean"] == pytest.approx((70 + 18 * 50 + 20) / 20)

    tasks = find(tiny.imagenet_r(tmp_path / "r"), small("imagenet-r-continual"))
    after = [{"task 1": 90.0, "all so far": 90.0}, {"task 1": 60.0, "task 2": 90.0, "all so far": 70.0}]
    assert summed_up(tasks, after) == {
        "all classes, at the end": 70.0,
        "mean of the tasks, at the end": 75.0,
        "mean after each task": 80.0,
        "forgetting": 30.0,
    }


def test_accuracy_among_some_classes_by_hand():
    logits = torch.tensor([[9.0, 1, 2, 0], [0, 5, 1, 9], [0, 1, 2, 3]])
    assert largest(logits, None).tolist() == [0, 3, 3]
    assert largest(logits, (1, 2)).tolist() == [2, 1, 2]
    some = Examples(Path(), ("a", "b", "c"), (2, 2, 2), classes=(1, 2))
    batch = [(torch.zeros(3, 3, 2, 2, dtype=torch.uint8), torch.tensor([2, 2, 2]))]
    assert score(Fixed(logits), batch, some, "accuracy", 4)["accuracy"] == pytest.approx(200 / 3)
    assert score(Fixed(logits), batch, replace(some, classes=None), "accuracy", 4)["accuracy"] == 0


def test_miou_by_hand_over_two_batches():
    """Class 0: 1 of 3 pixels; class 1: 2 of 4; class 2 nowhere, so not counted; 255 never."""
    predicted = [torch.tensor([[[0, 1, 1, 2]]]), torch.tensor([[[0, 1, 1, 1]]])]
    truth = [torch.tensor([[[0, 0, 1, 255]]]), torch.tensor([[[1, 1, 255, 0]]])]
    logits = [torch.nn.functional.one_hot(p, 3).movedim(-1, 1).float() for p in predicted]
    read = [(torch.zeros(1, 3, 1, 4, dtype=torch.uint8), t) for t in truth]
    some = Examples(Path(), ("a", "b"), ("a", "b"))
    # pixels that count: (0,0) (1,0) (1,1) | (0,1) (1,1) (1,0): class 0 meets 1 of 4, class 1 meets 2 of 5
    expected = 100 * (1 / 4 + 2 / 5) / 2
    assert score(Fixed(*logits), read, some, "mIoU", 3) == {"mIoU": pytest.approx(expected)}


def test_a_loss_over_some_classes_leaves_the_others_alone():
    logits = torch.randn(3, 4, requires_grad=True)
    value = loss(logits, torch.tensor([1, 3, 1]), (1, 3))
    value.backward()
    assert torch.equal(logits.grad[:, [0, 2]], torch.zeros(3, 2))
    expected = torch.nn.functional.cross_entropy(logits[:, [1, 3]], torch.tensor([0, 1, 0]))
    assert value.item() == pytest.approx(expected.item())


def turned(*degrees: float) -> torch.Tensor:
    """Outputs [1, 3, 1, w] that are 3 long, each so many degrees from the z axis."""
    angles = torch.tensor(degrees).deg2rad()
    return 3 * torch.stack([angles.sin(), torch.zeros_like(angles), angles.cos()])[None, :, None]


def towards_us(*there: bool) -> torch.Tensor:
    """Normals [1, 3, 1, w] along z; False: none."""
    return torch.tensor([[0.0, 0, there_is] for there_is in there]).T[None, :, None]


def test_angles_by_hand():
    up = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1)
    for degrees in (0.0, 1e-4, 11.0, 90.0, 180.0):
        x, z = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
        tilted = 7 * torch.tensor([x, 0.0, z], dtype=torch.float64).view(1, 3, 1, 1)
        assert angles(tilted, up).item() == pytest.approx(degrees, rel=1e-9, abs=1e-9)
    for none in (0.0, math.nan, math.inf):
        assert angles(torch.tensor([0.0, 0.0, none]).view(1, 3, 1, 1), up).item() == 180


def test_the_loss_of_normals_by_hand():
    """Cosines 1, 1/2 and -1; the pixel without a normal counts nothing and learns nothing."""
    outputs = turned(0, 60, 180, 90).requires_grad_()
    value = loss(outputs, towards_us(True, True, True, False), None)
    assert value.item() == pytest.approx(1 - (1 + 0.5 - 1) / 3)
    value.backward()
    assert torch.equal(outputs.grad[..., 3], torch.zeros(1, 3, 1))
    # d(1 - cos)/d(angle) = sin(60 degrees), for an output of length 3, in a mean of three
    assert outputs.grad[..., 1].norm().item() == pytest.approx(math.sin(math.pi / 3) / 3 / 3, rel=1e-5)

    outputs = turned(10, 20).requires_grad_()
    nothing = loss(outputs, towards_us(False, False), None)
    nothing.backward()
    assert nothing.item() == 0
    assert torch.equal(outputs.grad, torch.zeros_like(outputs))


def test_the_scores_of_normals_by_hand_over_two_batches():
    """Two of four pixels within 11.25 degrees; the mean is over pixels, not over batches."""
    outputs = turned(0, 10, 40, 5), turned(90, 2, 3, 4)
    truth = towards_us(True, True, True, False), towards_us(True, False, False, False)
    read = [(torch.zeros(1, 3, 1, 4, dtype=torch.uint8), normals) for normals in truth]
    some = Examples(Path(), ("a", "b"), ("a", "b"), normals=True)
    assert score(Fixed(*outputs), read, some, NORMALS, 3) == {
        NORMALS: pytest.approx(50),
        MEAN_ERROR: pytest.approx((0 + 10 + 40 + 90) / 4, abs=1e-4),  # float32 outputs, in degrees
    }


def test_the_tables_of_normals_by_hand(tmp_path):
    benchmark = find(tiny.surface_normals(tmp_path), small("surface-normals"))
    tests = list(benchmark.stages[0].tests)
    assert len(tests) == 21
    scores = dict.fromkeys(tests, 50.0) | {f"{test}, {MEAN_ERROR}": 20.0 for test in tests}
    scores |= {"fog 1": 70.0, f"fog 1, {MEAN_ERROR}": 10.0, f"clean, {MEAN_ERROR}": 5.0}
    assert summed_up(benchmark, [scores])["fog"] == 54
    (title, errors), *others = errors_of(benchmark, scores).items()
    assert (title, others) == (MEAN_ERROR, [])
    assert errors == {
        "ID: clean": 5, "fog": 18, "defocus blur": 20, "gaussian noise": 20, "brightness": 20, "OOD mean": 19.5,
    }  # fmt: skip
