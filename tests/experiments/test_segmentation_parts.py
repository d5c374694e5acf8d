"""The pieces of segmentation: alpha of the emoji, scenes, backgrounds, the network, the metric, the task."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange, repeat

from experiments.classification.data import limit_items, split
from experiments.classification.task import with_validation
from experiments.common.efficientnet import lite0, scaled
from experiments.common.task import summed_up
from experiments.segmentation import scenes as composing
from experiments.segmentation.backgrounds import backgrounds
from experiments.segmentation.model import Segmenter, mean_iou
from experiments.segmentation.scenes import scenes
from experiments.segmentation.study import STUDY
from experiments.segmentation.task import Config, SegmentationTask

from .running import ran

CPU = torch.device("cpu")
COUNTS = {"pretrain": 6, "finetune": 5, "train": 5, "validation": 3}
SIZES = Config(size=32, scenes=5, test_scenes=4, validation_scenes=3, pretrain_scenes=6)


@pytest.fixture(scope="module")
def parts(emoji):
    return with_validation(split(limit_items(emoji, 96, 0), 0), holds_out=True, seed=0)


@pytest.fixture(scope="module")
def drawn(parts):
    """Scenes of the test emoji, in three styles."""
    return scenes(parts["test"], backgrounds("test", 128), size=64, seed=0)


def test_a_scene_depends_on_the_seed_and_its_number_alone(drawn):
    images, masks = drawn.draw(torch.arange(6))
    assert (images.dtype, images.shape) == (torch.uint8, (6, 3, 64, 64))
    assert (masks.dtype, masks.shape) == (torch.int64, (6, 64, 64))
    state = torch.get_rng_state()
    for i in range(6):
        image, mask = drawn.draw(torch.tensor([i]))
        assert torch.equal(image[0], images[i])
        assert torch.equal(mask[0], masks[i])
    assert torch.equal(torch.get_rng_state(), state)
    others, other_masks = replace(drawn, seed=1).draw(torch.arange(6))
    for one, other in combinations([*images, *others], 2):
        assert not torch.equal(one, other)
    assert not torch.equal(masks, other_masks)
    assert replace(drawn, seed=-1).draw(torch.arange(2))[0].shape == (2, 3, 64, 64)


def on(drawn, value):
    """The same scenes on a background of one grey."""
    return replace(drawn, backgrounds=torch.full_like(drawn.backgrounds, value))


def test_the_mask_of_one_emoji_is_its_alpha(drawn, monkeypatch):
    monkeypatch.setattr(composing, "MOST", 1)
    monkeypatch.setattr(composing, "_NUMBERS", len(composing._OF_SCENE) + len(composing._OF_OBJECT))
    grey = drawn.drawings.clone()
    grey[:, :, :3] = 255 - grey[:, :, 3:]  # black, times alpha, on white
    alone = replace(drawn, drawings=grey)
    numbers = torch.arange(60)
    (black, masks), (white, _) = on(alone, 0).draw(numbers), on(alone, 255).draw(numbers)
    assert (black == 0).all()
    through = white[:, 0].int()
    assert (through < 255).any(dim=(1, 2)).all()
    assert torch.equal((masks > 0)[through != 128], through[through != 128] < 128)
    assert [len(mask.unique()) for mask in masks] == [2] * 60


def test_the_object_on_top_gives_the_class(drawn):
    """Every class has one colour, so that the picture tells what is on top."""
    colours = repeat(10 * (drawn.labels + 1), "item -> style item 4 h w", style=3, h=64, w=64).to(torch.uint8)
    colours[:, :, 3] = 255
    images, masks = on(replace(drawn, drawings=colours), 0).draw(torch.arange(60))
    floats = rearrange(masks.float(), "n h w -> n 1 h w")
    inside = F.max_pool2d(floats, 3, 1, 1) == -F.max_pool2d(-floats, 3, 1, 1)  # away from every edge
    assert inside.float().mean() > 0.7
    expected = repeat(10 * masks, "n h w -> n rgb h w", rgb=3).to(torch.uint8)
    inside = inside.expand_as(images)
    # between two objects of one class there is an edge as well
    assert (images[inside] == expected[inside]).float().mean() > 0.995


@pytest.fixture
def segmenter():
    return Segmenter(9, 64)


def test_a_new_decoder_knows_nothing_and_every_weight_learns(segmenter):
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    logits = segmenter(images)
    assert torch.equal(logits, torch.zeros(2, 9, 64, 64))
    torch.nn.init.normal_(segmenter.decoder.classifier.weight)
    weights = dict(segmenter.named_parameters())
    logits = torch.func.functional_call(segmenter, weights, (images,))
    F.cross_entropy(logits, torch.randint(9, (2, 64, 64))).backward()
    assert [name for name, weight in weights.items() if weight.grad is None or not weight.grad.any()] == []


def test_the_encoder_gives_the_features_of_the_whole_network(segmenter):
    whole = lite0(64, 0.0).eval()
    inputs = scaled(torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8))
    with torch.no_grad():
        levels = segmenter.eval().features(inputs)
        assert [tuple(level.shape[1:]) for level in levels] == [(24, 16, 16), (40, 8, 8), (112, 4, 4), (320, 2, 2)]
        last = whole._swish(whole._bn1(whole._conv_head(levels[-1])))
        torch.testing.assert_close(last, whole.extract_features(inputs))


class Reads(torch.nn.Module):
    """Predicts the class that the first channel holds."""

    def forward(self, images):
        return rearrange(F.one_hot(images[:, 0].long(), 4), "n h w c -> n c h w").float()


@pytest.mark.parametrize(
    ("predicted", "truth", "expected"),
    [
        ([[0, 2], [1, 1]], [[0, 0], [1, 1]], 100 * (1 / 2 + 1 + 0) / 3),  # 2 is predicted in vain
        ([[0, 0], [0, 0]], [[0, 0], [1, 3]], 100 * (1 / 2 + 0 + 0) / 3),  # 1 and 3 are missed
    ],
)
def test_mean_iou_by_hand(predicted, truth, expected):
    images = repeat(torch.tensor(predicted, dtype=torch.uint8), "h w -> 1 rgb h w", rgb=3)
    assert mean_iou(Reads(), images, torch.tensor([truth]), classes=4, device=CPU) == pytest.approx(expected)


@pytest.fixture(scope="module")
def task(parts):
    return SegmentationTask(parts, SIZES)


def test_no_emoji_is_in_scenes_of_two_parts(parts, task):
    assert set(task.scenes) == {"pretrain", "finetune", "train", "validation", "test"}
    drawings = {
        part: {drawing.numpy().tobytes() for style in some.drawings for drawing in style}
        for part, some in task.scenes.items()
    }
    apart = [*combinations(("pretrain", "finetune", "test"), 2), ("train", "validation")]
    for one, other in apart:
        assert not drawings[one] & drawings[other]
        assert not set(parts[one].groups) & set(parts[other].groups)
    assert drawings["train"] | drawings["validation"] == drawings["finetune"]
    assert len({some.seed for some in task.scenes.values()}) == 5
    assert {part: len(some.drawings) for part, some in task.scenes.items()} == {
        "pretrain": 3, "finetune": 1, "train": 1, "validation": 1, "test": 3
    }  # fmt: skip
    known = task.scenes["pretrain"].backgrounds
    assert all(torch.equal(task.scenes[part].backgrounds, known) for part in ("finetune", "train", "validation"))
    assert not torch.equal(task.scenes["test"].backgrounds[0], known[0])


def test_training_scenes_are_fresh_and_repeatable(task):
    assert {part: some.count for part, some in task.parts.items()} == COUNTS
    generator = torch.Generator().manual_seed(3)
    chosen = torch.tensor([4, 2])
    images, masks = task.parts["finetune"].draw(chosen, generator)
    again, _ = task.parts["finetune"].draw(chosen, generator)
    assert not torch.equal(images, again)
    repeated = task.parts["finetune"].draw(chosen, torch.Generator().manual_seed(3))
    assert torch.equal(repeated[0], images)
    assert torch.equal(repeated[1], masks)


def test_every_column_has_its_scores(task):
    model = task.new_model()
    scores = task.test(model)
    assert len(scores) == 23
    assert {name for names in task.columns.values() for name in names} == set(scores)
    assert summed_up(task.columns, dict.fromkeys(scores, 50.0)) == dict.fromkeys(task.columns, 50.0)
    assert list(task.columns) == [
        "id", "OpenMoji", "Noto outline", "ood", "fog", "defocus blur", "gaussian noise", "brightness", "corrupted"
    ]  # fmt: skip
    assert len(task.columns["corrupted"]) == 20
    outputs, targets = torch.zeros(2, 9, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long)
    assert task.loss(outputs, targets) == pytest.approx(np.log(9))
    assert task.share_right(outputs, targets) == 1
    background = (task._tests["Twemoji"][1] == 0).float().mean()  # a new model says 0 everywhere
    classes = len(task._tests["Twemoji"][1].unique())
    assert scores["Twemoji"] == pytest.approx(100 * float(background) / classes)
    assert 0 < task.validate(model) < 100


def test_mean_iou_counts_the_pixels_of_all_pictures_together():
    images = torch.zeros(2, 3, 1, 4, dtype=torch.uint8)
    images[1, :, :, :2] = 1
    masks = torch.tensor([[[0, 0, 0, 1]], [[1, 1, 1, 1]]])
    model = Reads().train()
    for batch_size in (1, 2):  # IoU of class 0 is 3/6, of class 1 2/5
        score = mean_iou(model, images, masks, classes=4, device=CPU, batch_size=batch_size)
        assert score == pytest.approx(45)
    assert model.training


def test_a_run_of_few_scenes(cache):
    tiny = ("--limit", "48", "--size", "32", "--scenes", "8", "--pretrain-scenes", "8", "--test-scenes", "4")
    tiny += ("--batch-size", "4", "--epochs", "1", "--anchor-epochs", "1", "--seeds", "0", "--method", "ftp")
    assert ran(STUDY, *tiny, "--out", "runs/scenes").status == 0
    report = Path("runs/scenes/report.md").read_text()
    assert "| method | ID: Twemoji | OpenMoji | Noto outline | other styles |" in report
    assert "![Test scenes in every style" in report
    assert Path("runs/scenes/pictures.png").exists()
