"""Scenes: masks by alpha, scores by counts, and a tiny run of the study."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex

from experiments.classification.emoji import CLASSES, emoji_pictures
from experiments.common.errors import InputError
from experiments.segmentation.model import Segmenter, mean_iou, overlaps
from experiments.segmentation.scenes import Scenes, compose, cut, paste, photographs
from experiments.segmentation.study import STUDY, Config
from experiments.sensitivity.protocol import Overlaps, counted, cross_fitted, percent
from experiments.sensitivity.study import STUDY as SENSITIVITY
from experiments.sensitivity.summary import Answers, pixels_of, scores_of, written
from tests.experiments.running import ran, refused, results

TINY = ("--limit", "24", "--scenes", "8", "--test-scenes", "4", "--epochs", "1", "--methods", "adamw", "ftp")


@pytest.fixture
def drawings(cache, quiet):
    return emoji_pictures(cache, quiet, alpha=True)


def alpha_of(drawings, style, count, seed, most):
    """That which scenes on black and on white share, and their masks."""
    black, white = (
        compose(drawings, [style], [torch.full((3, 64, 64), shade)], "a", count, 64, seed=seed, most=most)
        for shade in (0.0, 255.0)
    )
    assert torch.equal(black.masks, white.masks)
    return 1 - (white.images.double() - black.images.double()).mean(1) / 255, black.masks


def test_a_mask_is_the_alpha_of_what_lies_on_top(drawings):
    """Of single emoji. Rounded pixels know alpha to within 1 / 255."""
    alpha, mask = alpha_of(drawings, 1, 12, seed=3, most=1)
    clear = (alpha - 0.5).abs() > 2 / 255
    assert torch.equal((mask > 0)[clear], (alpha > 0.5)[clear])
    assert clear.double().mean() > 0.98
    assert [one.unique().numel() for one in mask] == [2] * 12


def test_what_lies_on_top_decides_and_what_is_outside_is_cut():
    drawing = torch.tensor([10.0, 20.0, 30.0, 255.0])[:, None, None].expand(4, 8, 8)
    image, mask = torch.zeros(3, 8, 8), torch.zeros(8, 8, dtype=torch.uint8)
    paste(image, mask, drawing, 1, 4, 0, 0)
    paste(image, mask, drawing + torch.tensor([90.0, 0, 0, 0])[:, None, None], 2, 4, 2, 6)
    paste(image, mask, drawing, 3, 4, -2, -2)
    expected = torch.zeros(8, 8, dtype=torch.uint8)
    expected[:4, :4], expected[2:6, 6:], expected[:2, :2] = 1, 2, 3
    assert torch.equal(mask, expected)
    assert image[0].round().unique().tolist() == [0, 10, 100]
    assert torch.equal(cut(torch.arange(12.0).reshape(1, 2, 6), 1.0, 1.0, 0, 2), torch.tensor([[[4.0, 5], [10, 11]]]))


def test_styles_differ_in_style_alone_and_any_stretch_has_all_classes(drawings):
    new, names = photographs("test"), drawings.domain_names
    styles = (0, names.index("OpenMoji"))
    one, other = (compose(drawings, [style], new, "b", 40, 64, seed=1) for style in styles)
    behind = torch.stack([alpha_of(drawings, style, 40, 1, 4)[0] == 0 for style in styles]).all(0)
    assert behind.any()
    apart = (one.images.int() - other.images.int()).abs().amax(1)
    assert apart[behind].max() <= 1  # an alpha that is rounded to 0 can move a pixel to the next number
    assert not torch.equal(one.masks, other.masks)
    assert one.groups == other.groups
    for first in (0, 20):  # 20 scenes are about 50 emoji, which take turns
        assert {*range(1, 9)} <= {*one.masks[first : first + 20].unique().tolist()}
    fog = one.corrupted("fog", seed=0)
    assert torch.equal(fog.masks, one.masks)
    assert (fog.images != one.images).flatten(1).any(1).all()
    images, masks = one.draw(torch.arange(40), torch.Generator().manual_seed(0))
    flipped = (images != one.images).flatten(1).any(1)
    assert 0 < flipped.sum() < 40
    assert torch.equal(masks[flipped], one.masks.flip(-1)[flipped].long())


def test_counts_give_the_jaccard_index_of_any_scenes():
    drawn = torch.Generator().manual_seed(0)
    images = torch.randint(256, (20, 3, 32, 32), generator=drawn, dtype=torch.uint8)
    masks = torch.randint(7, (20, 32, 32), generator=drawn, dtype=torch.uint8)  # of the last two classes there are none
    model = Segmenter(9, 32).eval()
    for weight in model.decoder[1].parameters():
        torch.nn.init.normal_(weight, generator=drawn)
    counts = overlaps(model, Scenes(images, masks, ()), 9, torch.device("cpu"))
    given = model(images).argmax(1)
    kept = torch.from_numpy(pixels_of(written(counts), 20))
    assert torch.equal(kept, counts)
    for some in (range(20), range(3, 9), [5]):
        metric = MulticlassJaccardIndex(9, average="macro")
        expected = 100 * metric(given[[*some]], masks[[*some]].long())
        assert mean_iou(counts[[*some]]) == pytest.approx(float(expected), rel=1e-5)  # the metric has float32
        test = Overlaps(kept[None, ..., 0].double().numpy(), kept[None, ..., 1].double().numpy(), np.arange(20))
        taken = np.isin(np.arange(20), [*some])[None].astype(float)
        assert percent(*counted(test, taken)).item() == pytest.approx(float(expected), rel=1e-5)


def test_a_cross_fitted_score_sums_overlaps_over_folds():
    """Two settings, two scenes, each a fold, one class. The first setting is better on the second scene (1 of 2 pixels
    for 1 of 4), hence taken on the first, where it has 2 of 4; the second on the first (3 of 4), taken on the second
    with 1 of 4: in all 3 of 8 pixels."""
    shared, union = np.array([[2.0, 1], [3, 1]])[..., None], np.array([[4.0, 2], [4, 4]])[..., None]
    test = Overlaps(shared, union, np.arange(2))
    found = cross_fitted([test], [[test]], np.arange(2), np.ones((1, 2)))
    assert found.chosen[0, :2].tolist() == [0, 1]
    assert found.id.tolist() == [[pytest.approx(100 * 3 / 8)]]


def test_a_tiny_run_stops_goes_on_and_reports(tmp_path, cache):
    whole, out = tmp_path / "whole", tmp_path / "run"
    tiny = ["--anchor", "imagenet", "--lrs", "1e-3", "1e-2", "--seeds", "0", *TINY]
    assert ran(STUDY, *tiny, "--out", str(whole)).status == 0
    assert ran(STUDY, *tiny, "--out", str(out), stop_before="split 0, ftp, lr 0.01").status == 130
    done = ran(STUDY, *tiny, "--out", str(out))
    assert (done.status, done.begun[0]) == (0, "split 0, ftp, lr 0.01")
    assert results(out) == results(whole)
    content = json.loads((out / "metrics.json").read_text())
    assert [*content["data"]["tests"]["0"]] == [
        "Twemoji", "OpenMoji", "Noto outline", "fog", "defocus blur", "gaussian noise", "brightness",
    ]  # fmt: skip
    answers = Answers(content).of("ftp", [(0.1, None)], "0", "fog")
    assert isinstance(answers, Overlaps)
    assert scores_of(content)["ftp"][0.1][0]["id"] > 0
    report = (out / "report.md").read_text()
    assert "Scenes of emoji, from ImageNet's encoder and a new decoder. Trained on Twemoji" in report
    assert "Scores are mIoU in %" in report


def test_a_trained_anchor_and_few_labels(cache, quiet):
    config = Config(limit=24, scenes=80, test_scenes=4, pretrain_scenes=16, labels=0.1, seeds=(0,))
    options = replace(config.options(0, 1e-3), anchor_epochs=1)
    assert options.epochs == 30
    task = config.study().make_task(options, cache, quiet)
    assert {part: len(some.groups) for part, some in task.scenes.items()} == {
        "finetune": 8, "validation": 2, "train": 6, "pretrain": 16,
    }  # fmt: skip
    full = config.study().make_task(replace(options, labels=1.0), cache, quiet)
    assert torch.equal(task.scenes["finetune"].images, full.scenes["finetune"].images[:8])


@pytest.mark.parametrize(
    "wrong",
    [
        ("--methods", "adamw", "sgd"),
        ("--seeds", "1", "1"),
        ("--labels", "0"),
        ("--labels", "0.01"),
        ("--labels", "1.5"),
        ("--lrs", "1e-3"),
    ],
)
def test_wrong_options_are_refused(wrong):
    assert refused(STUDY, *wrong)


def test_errors_name_what_is_allowed(quiet, cache):
    with pytest.raises(InputError, match="--anchor minilm: there are styles, imagenet"):
        replace(Config().options(0, 1e-3), anchor="minilm").check()
    with pytest.raises(InputError, match="any of linear, adamw"):
        Config(methods=("adamw", "sgd")).check()
    with pytest.raises(InputError, match="at least 0.025, where 320 examples are of 8 classes, and at most 1"):
        Config(labels=0.01).check()
    assert refused(SENSITIVITY, "--anchor", "minilm", "--labels", "0.5")
    assert len(CLASSES) == 8
