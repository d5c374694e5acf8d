"""What a recipe measures, by hand: columns, accuracy and mIoU."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("timm")
pytest.importorskip("torchmetrics")
pytest.importorskip("torchvision")

from experiments.common.task import summed_up
from experiments.recipes.examples import Examples
from experiments.recipes.scores import largest, score
from experiments.recipes.study import find

from ..support.tiny_recipes import DATA, Fixed, small


def test_columns_by_hand(tmp_path):
    pascal = find(DATA["pascal"][0](tmp_path / "p"), small("pascal-context"))
    scores = dict.fromkeys(pascal.tests, 50.0) | {"clean": 80.0, "fog 1": 70.0, "fog 5": 20.0}
    assert len(scores) == 21
    columns = summed_up(pascal.columns, scores)
    assert columns["ID: clean"] == 80
    assert columns["fog"] == pytest.approx((70 + 3 * 50 + 20) / 5)
    assert columns["OOD mean"] == pytest.approx((70 + 18 * 50 + 20) / 20)


def test_accuracy_among_some_classes_by_hand():
    logits = torch.tensor([[9.0, 1, 2, 0], [0, 5, 1, 9], [0, 1, 2, 3]])
    assert largest(logits, None).tolist() == [0, 3, 3]
    assert largest(logits, (1, 2)).tolist() == [2, 1, 2]
    some = Examples(Path(), ("a", "b", "c"), (2, 2, 2), classes=(1, 2))
    batch = [(torch.zeros(3, 3, 2, 2, dtype=torch.uint8), torch.tensor([2, 2, 2]))]
    assert score(Fixed(logits), batch, some, "accuracy", 4) == pytest.approx(200 / 3)
    assert score(Fixed(logits), batch, replace(some, classes=None), "accuracy", 4) == 0


def test_miou_by_hand_over_two_batches():
    """Class 0: 1 of 3 pixels; class 1: 2 of 4; class 2 nowhere, so not counted; 255 never."""
    predicted = [torch.tensor([[[0, 1, 1, 2]]]), torch.tensor([[[0, 1, 1, 1]]])]
    truth = [torch.tensor([[[0, 0, 1, 255]]]), torch.tensor([[[1, 1, 255, 0]]])]
    logits = [torch.nn.functional.one_hot(p, 3).movedim(-1, 1).float() for p in predicted]
    read = [(torch.zeros(1, 3, 1, 4, dtype=torch.uint8), t) for t in truth]
    some = Examples(Path(), ("a", "b"), ("a", "b"))
    # pixels that count: (0,0) (1,0) (1,1) | (0,1) (1,1) (1,0): class 0 meets 1 of 4, class 1 meets 2 of 5
    expected = 100 * (1 / 4 + 2 / 5) / 2
    assert score(Fixed(*logits), read, some, "mIoU", 3) == pytest.approx(expected)
