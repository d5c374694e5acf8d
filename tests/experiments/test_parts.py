"""The pieces of the main job: the emoji, the split, recipes, augmentation, the network, atomic files."""

import os
import platform
import subprocess
import sys
from collections import Counter
from dataclasses import fields, replace

import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet

from experiments.classification.data import PARTS, SHARES, Pictures, flip_and_shift, hold_out, limit_items, split
from experiments.classification.emoji import CLASSES, STYLES, group_name
from experiments.classification.model import Classifier
from experiments.classification.task import ClassificationTask, Config, with_validation
from experiments.common import checkpoint
from experiments.common.anchor import anchor_file, recipe
from experiments.common.errors import InputError
from experiments.common.options import digest


def test_the_three_styles_are_aligned(emoji):
    count = len(emoji.items) // 3
    assert count > 1500
    assert emoji.domain_names == STYLES
    assert emoji.classes == CLASSES
    first = emoji.of_domain(0)
    assert len(set(first.items)) == count
    for number in (1, 2):
        other = emoji.of_domain(number)
        assert other.items == first.items
        assert other.groups == first.groups
        assert torch.equal(other.labels, first.labels)
    grinning, person, clock = (first.items.index(code) for code in ("1F600", "1F469", "1F552"))
    assert [CLASSES[int(first.labels[i])] for i in (grinning, person, clock)] == [
        "Smileys & Emotion",
        "People & Body",
        "Travel & Places",
    ]
    # a yellow face in colour, black strokes on white in the outline font
    red, _, blue = emoji.of_domain(0).images[grinning].float().mean(dim=(1, 2))
    assert red > blue + 50
    outline = emoji.of_domain(2).images
    assert torch.equal(outline[:, 0], outline[:, 2])
    assert emoji.images.flatten(1).min(dim=1).values.max() < 255  # no picture is empty
    assert (emoji.images[:, :, 0, 0] == 255).float().mean() > 0.9  # on white


def test_no_emoji_and_no_copy_of_a_picture_is_in_two_parts(emoji):
    parts = split(emoji, seed=0)
    seen: dict[bytes, str] = {}
    for part, pictures in parts.items():
        for image in pictures.images:
            assert seen.setdefault(image.numpy().tobytes(), part) == part
    for one, other in (("pretrain", "finetune"), ("pretrain", "test"), ("finetune", "test")):
        assert not set(parts[one].items) & set(parts[other].items)
        assert not set(parts[one].groups) & set(parts[other].groups)
    assert sum(len(part.items) for part in parts.values()) == len(emoji.items)
    for part, expected in zip(PARTS, SHARES, strict=True):
        for label in range(len(CLASSES)):
            share = (parts[part].labels == label).sum() / (emoji.labels == label).sum()
            assert share == pytest.approx(expected, abs=0.02)


def test_variants_share_a_group_and_different_emoji_do_not():
    for one, other in (
        ("1F937-200D-2642", "1F937"),  # man shrugging
        ("1F468-200D-1F680", "1F469-200D-1F680"),  # astronauts
        ("1F468-200D-1F469-200D-1F466", "1F46A"),  # families
        ("1F9D1-200D-1F91D-200D-1F9D1", "1F46B"),  # holding hands
        ("1F468-200D-2764-200D-1F468", "1F491"),  # couples
        ("1F550", "1F567"),  # clocks
        ("1F9D1-200D-1F384", "1F385"),  # Santa
        ("1F6B6-200D-27A1", "1F6B6"),  # walking, facing right
    ):
        assert group_name(one) == group_name(other)
    codes = ["1F600", "1F469-200D-1F680", "1F469-200D-1F692", "1F469", "1F43B", "1F43B-200D-2744", "2764", "1F491"]
    assert len(set(map(group_name, codes))) == len(codes)


def test_limit_is_even_over_the_classes(emoji):
    few = limit_items(emoji, 24, seed=0)
    assert Counter(few.labels.tolist()) == dict.fromkeys(range(8), 9)  # three emoji in three styles
    parts = split(few, seed=0)
    assert all(len(set(part.items)) == 8 for part in parts.values())
    with pytest.raises(InputError, match="at least 24 items"):
        limit_items(emoji, 23, seed=0)


CHANGES = {"anchor_epochs": 3, "anchor_lr": 1e-3, "device": "cuda"}


def task_of(parts: dict[str, Pictures], config: Config) -> ClassificationTask:
    return ClassificationTask(parts, device=torch.device(config.device))


@pytest.mark.parametrize("name", [field.name for field in fields(Config)])
def test_the_digest_changes_with_the_recipe_alone(emoji, name, tmp_path):
    parts = split(limit_items(emoji, 24, seed=0), seed=0)
    base = Config()
    others = {"methods": ("ftp",), "seeds": (7,), "anchor": "imagenet"}
    value = CHANGES.get(name, others.get(name, 5))
    one, other = (
        anchor_file(config, task_of(parts, config), tmp_path) for config in (base, replace(base, **{name: value}))
    )
    assert (one != other) == (name in CHANGES)


def test_the_digest_changes_with_the_pictures(emoji):
    parts = split(limit_items(emoji, 24, seed=0), seed=0)
    config = Config()

    def digests(part: str) -> set[str]:
        found = {digest(recipe(config, task_of(parts, config)))}
        for name in ("images", "labels", "domains"):
            changed = getattr(parts[part], name).clone()
            changed.view(-1)[0] += 1
            others = parts | {part: replace(parts[part], **{name: changed})}
            found.add(digest(recipe(config, task_of(others, config))))
        return found

    assert len(digests("pretrain")) == 4
    assert len(digests("finetune")) == len(digests("test")) == 1


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5, 0.9])
def test_what_is_held_out_shares_no_group_with_what_stays(emoji, share):
    pictures = split(emoji, seed=0)["finetune"].of_domain(0)
    stays, out = hold_out(pictures, share, seed=3)
    assert not set(stays.groups) & set(out.groups)
    assert sorted(stays.items + out.items) == sorted(pictures.items)
    assert len(out.items) == pytest.approx(share * len(pictures.items), abs=12)  # half the largest group, a clock's
    assert set(stays.labels.tolist()) == set(range(8))
    again = hold_out(pictures, share, seed=3)
    assert [part.items for part in again] == [stays.items, out.items]
    assert hold_out(pictures, share, seed=4)[1].items != out.items


def test_train_and_validation_are_two_parts_of_finetune(emoji):
    parts = with_validation(split(emoji, seed=0), holds_out=True, seed=0)
    train, validation, finetune = (parts[part] for part in ("train", "validation", "finetune"))
    assert sorted(train.items + validation.items) == sorted(finetune.items)
    for other in ("train", "pretrain", "test"):
        assert not set(validation.groups) & set(parts[other].groups)
    assert len(validation.items) == pytest.approx(0.2 * len(finetune.items), abs=12)
    assert set(train.labels.tolist()) == set(range(8))


def test_augmentation_moves_and_mirrors_whole_pictures():
    image = torch.full((3, 9, 9), 255, dtype=torch.uint8)
    image[:, 4, 2] = torch.tensor([1, 2, 3], dtype=torch.uint8)
    out = flip_and_shift(image.expand(500, -1, -1, -1), torch.Generator().manual_seed(0), shift=2)
    assert out.shape == (500, 3, 9, 9)
    assert out.dtype == torch.uint8
    assert ((out != 255).any(dim=1).sum(dim=(1, 2)) == 1).all()
    places = Counter(map(tuple, (out[:, 0] == 1).nonzero()[:, 1:].tolist()))
    assert set(places) == {(4 + y, x + dx) for y in range(-2, 3) for x in (2, 6) for dx in range(-2, 3)}
    assert torch.equal(flip_and_shift(image[None], torch.Generator().manual_seed(1), 0).sum(), image.sum())


def test_a_new_head_knows_nothing_and_the_padding_fits_the_size():
    model = Classifier(8, 64, dropout=0.2).eval()
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    assert torch.equal(model(images), torch.zeros(2, 8))
    dynamic = EfficientNet.from_name("efficientnet-lite0", image_size=None).eval()
    dynamic._fc = model.network._fc
    dynamic.load_state_dict(model.network.state_dict())
    inputs = (images.double() - 127) / 128
    with torch.no_grad():
        static = model.double().network.extract_features(inputs)
        torch.testing.assert_close(static, dynamic.double().extract_features(inputs))


def test_a_file_is_whole_or_absent(tmp_path):
    file = tmp_path / "folder" / "file.pt"
    checkpoint.save(file, {"a": torch.ones(2)})

    def fail(opened):
        opened.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(file, fail)
    assert torch.equal(checkpoint.load(file)["a"], torch.ones(2))
    assert list(file.parent.iterdir()) == [file]
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match="is damaged"):
        checkpoint.load(file)


def test_a_write_removes_what_killed_writers_of_the_same_file_left(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    node, name = platform.node(), "file.pt"
    left = tmp_path / f"{name}.{node}.{gone.pid}.tmp"
    # of a process that runs, of another machine, of other files, and no temporary file at all
    others = [f"{name}.{node}.{os.getppid()}.tmp", f"{name}.elsewhere{node}.{gone.pid}.tmp"]
    others += [f"other.{left.name}", f"{name}.{node}.x.tmp", f"{name}.{gone.pid}"]
    for file in (left, *(tmp_path / other for other in others)):
        file.write_text("half")
    checkpoint.write_text(tmp_path / name, "whole")
    assert {file.name for file in tmp_path.iterdir()} == {name, *others}


def test_an_interrupt_in_the_middle_of_a_checkpoint_is_an_interrupt(tmp_path, monkeypatch):
    """torch's writer, when it is left, complains of a half file in place of the interrupt that it was left by."""
    file = tmp_path / "checkpoint.pt"
    checkpoint.save(file, {"step": 1})

    def interrupted(content, opened):
        opened.write(b"half")
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("unexpected pos")

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(file, {"step": 2})
    assert checkpoint.load(file) == {"step": 1}
    assert [found.name for found in tmp_path.iterdir()] == ["checkpoint.pt"]
