"""Which pictures a recipe trains and tests on, how they are cut, mirrored and put into batches, and what is refused."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("timm")
pytest.importorskip("torchmetrics")
pytest.importorskip("torchvision")

from experiments.common.errors import InputError
from experiments.recipes.examples import Examples
from experiments.recipes.pictures import batches
from experiments.recipes.study import find

from ..support import tiny_datasets as tiny
from ..support.tiny_recipes import DATA, small

DOMAINNET, IMAGENET, PASCAL = "domainnet-clip-resnet50", "imagenet-clip-vit", "pascal-context"
TRAIN, VALIDATION = "real_train_100_percent_split.txt", "real_val_100_percent_split.txt"
PASCAL_MASK = "semseg/pascal-context/a.png"


def test_every_share_of_domainnet_has_its_lists(tmp_path):
    """And pictures that are held out to choose the epoch by."""
    root = tiny.domainnet(tmp_path, classes=1, train=6)
    percents = (10, 100)
    for number, percent in enumerate(percents):
        (root / f"real_train_{percent}_percent_split.txt").write_text(f"real/class_0/{number}.jpg 0\n")
        (root / f"real_val_{percent}_percent_split.txt").write_text("real/class_0/50.jpg 0\n")
    for number, percent in enumerate(percents):
        found = find(root, small("domainnet-clip-resnet50", percent=percent))
        assert found.train.files == (f"real/class_0/{number}.jpg",)
        assert found.validation.files == ("real/class_0/50.jpg",)


def test_the_list_of_all_of_domainnet_has_two_names(tmp_path):
    """The one that the authors' loader asks for comes first; no other share has a second name."""
    recipe = small("domainnet-clip-resnet50")
    root = tiny.domainnet(tmp_path)
    for part in ("train", "val"):
        (root / f"real_{part}_100_percent_split.txt").rename(root / f"real_{part}_split.txt")
    found = find(root, recipe)
    assert (len(found.train.files), len(found.validation.files)) == (12, 3)
    (root / "real_train_100_percent_split.txt").write_text("real/class_1/3.jpg 1\n")
    with pytest.raises(InputError, match="has the class 'class_0' .* which real_train_100_percent_split.txt lacks"):
        find(root, recipe)
    (root / "real_train_10_percent_split.txt").unlink()
    with pytest.raises(InputError, match="no file .*real_train_10_percent_split.txt"):
        find(root, small("domainnet-clip-resnet50-10"))


def test_classes_of_the_imagenets(tmp_path):
    tests = find(tiny.imagenet(tmp_path), small("imagenet-clip-vit")).tests
    assert tests["imagenet-a"].classes == (1, 2)
    assert tests["imagenet-r"].classes == (2, 3)
    assert tests["imagenetv2"].classes is None
    assert tests["imagenetv2"].targets == (0, 1, 2, 3)
    assert set(tests["imagenet-a"].targets) == {1, 2}


def test_how_a_test_picture_is_cut(tmp_path):
    """Black, but for a white stripe at the right, which is cut off; the interpolation is the recipe's."""
    picture = torch.zeros(40, 80, 3, dtype=torch.uint8)
    picture[:, 70:] = 200
    Image.fromarray(picture.numpy()).save(tmp_path / "a.png")
    some = Examples(tmp_path, ("a.png",), (0,))
    cut = small("domainnet-clip-resnet50")
    (image, _), *_ = batches(some, cut, 0)
    assert image.shape == (1, 3, 32, 32)
    assert image.max() == 0
    tiny.picture(tmp_path / "a.png", 0)  # noise, as a crop of black is black either way
    for seed in (None, 1):
        first, second = (
            next(batches(some, replace(cut, interpolation=way), 0, seed))[0] for way in ("bilinear", "bicubic")
        )
        assert not torch.equal(first, second)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_processes_change_no_picture(tmp_path):
    recipe = small("domainnet-clip-resnet50")
    examples = find(tiny.domainnet(tmp_path), recipe).train
    alone, shared, other = (list(batches(examples, recipe, *how)) for how in ((0, 5), (2, 5), (0, 6)))
    assert all(torch.equal(a, b) and torch.equal(x, y) for (a, x), (b, y) in zip(alone, shared, strict=True))
    assert not torch.equal(alone[0][0], other[0][0])


def test_picture_and_mask_flip_together(tmp_path):
    recipe = small("pascal-context")
    root = DATA["pascal"][0](tmp_path)
    examples = find(root, recipe).train
    picture = torch.zeros(40, 40, 3, dtype=torch.uint8)
    picture[:, 20:] = 255
    for file, mask in zip(examples.files, examples.targets, strict=True):
        Image.fromarray(picture.numpy()).save(root / file, quality=95)
        tiny.mask(root / mask, (picture[..., 0] > 0).numpy())
    sides = set()
    for seed in range(4):
        for images, masks in batches(examples, recipe, 0, seed):
            assert torch.equal(images[:, 0] > 127, masks == 1)
            sides |= set(masks[:, 0, 0].tolist())
    assert sides == {0, 1}


@pytest.mark.parametrize(
    ("recipe", "target", "values", "said"),
    [
        (PASCAL, PASCAL_MASK, np.full((40, 40), 3), "has the class 3; allowed are 0 ... 2 and 255"),
        (PASCAL, PASCAL_MASK, np.zeros((40, 40, 3)), "has the mode RGB"),
        (PASCAL, PASCAL_MASK, np.zeros((40, 39)), r"has \(40, 40\) pixels and its mask .* \(39, 40\)"),
    ],
)
def test_wrong_targets(recipe, target, values, said, tmp_path):
    recipe = small(recipe)
    examples = find(DATA[recipe.data][0](tmp_path), recipe).train
    tiny.mask(tmp_path / target, values)
    with pytest.raises(InputError, match=said):
        list(batches(examples, recipe, 0))


def append(file: str, line: str):
    return lambda root: (root / file).write_text((root / file).read_text() + line + "\n")


def link_out(root: Path, place: str) -> None:
    """A link to a picture that exists, but not below the root."""
    tiny.picture(root.parent / "secret" / "0.jpg", 0)
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    os.symlink(root.parent / "secret", root / place)


def zebra(root: Path) -> None:
    tiny.picture(root / "sketch/zebra/0.jpg", 0)
    append("sketch_test.txt", "sketch/zebra/0.jpg 2")(root)


def link_in_list(root: Path) -> None:
    link_out(root, "real/away")
    append(TRAIN, "real/away/0.jpg 0")(root)


@pytest.mark.parametrize(
    ("name", "spoil", "said"),
    [
        (DOMAINNET, lambda r: (r / "painting_test.txt").unlink(), r"no file .*painting_test.txt\n.*"),
        (DOMAINNET, append(TRAIN, "real/class_0/0.jpg x"), "line 13: .* is not a picture"),
        (DOMAINNET, append(TRAIN, "real/class_0/0.jpg 3"), "class 3, but there are 3"),
        (DOMAINNET, append(TRAIN, "real/class_0/9.jpg 0"), "line 13: there is no picture"),
        (DOMAINNET, append(TRAIN, "../a/b.jpg 0"), r"'\.\./a/b.jpg' must lie below --root"),
        (DOMAINNET, append(TRAIN, "/etc/b.jpg 0"), "'/etc/b.jpg' must lie below --root"),
        (DOMAINNET, append(TRAIN, "real/class_0/0.jpg 1"), "'class_0' is 1 .* and 0 elsewhere"),
        (DOMAINNET, zebra, "has the class 'zebra' .* which real_train_100_percent_split.txt lacks"),
        (DOMAINNET, link_in_list, "leads to .*secret"),
        (DOMAINNET, append(VALIDATION, "real/class_0/0.jpg 0"), "0.jpg is both in real_train"),
        (IMAGENET, lambda r: (r / "imagenet-a").rename(r / "A"), "no folder .*imagenet-a\n.*"),
        (IMAGENET, lambda r: (r / "train/n2").mkdir(), "train/n2 holds no picture"),
        (IMAGENET, lambda r: tiny.by_class(r / "train", ["n2"], 1), "has 5 class folders, not 4"),
        (IMAGENET, lambda r: tiny.by_class(r / "imagenetv2", ["4"], 1), "imagenetv2/4 is none of the classes"),
        (IMAGENET, lambda r: link_out(r, "val/n9"), "leads to .*secret"),
        (PASCAL, lambda r: (r / PASCAL_MASK).unlink(), "lists 'a', but there is no file .*a.png"),
        (PASCAL, append("ImageSets/Context/train.txt", "../a"), "must be a name without folders"),
        (PASCAL, lambda r: (r / "ImageSets/Context/train.txt").write_text("\n"), "lists no picture"),
    ],
)
def test_wrong_data(name, spoil, said, tmp_path):
    recipe = small(name)
    root = tmp_path / "data"
    DATA[recipe.data][0](root)
    find(root, recipe)
    spoil(root)
    with pytest.raises(InputError, match=said) as caught:
        find(root, recipe)
    assert "secret" in str(caught.value) or "─ " in str(caught.value)  # the layout


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_wrong_pictures(tmp_path):
    """Also in another process, whose errors are as short."""
    recipe = small(DOMAINNET)
    examples = find(tiny.domainnet(tmp_path / "data"), recipe).train
    file = tmp_path / "data" / examples.files[0]
    file.write_bytes(b"GIF89a of a kind")
    for workers in (0, 1):
        with pytest.raises(InputError, match="^cannot read .*0.jpg") as caught:
            list(batches(examples, recipe, workers))
        assert "\n" not in str(caught.value)
    file.unlink()
    file.symlink_to(Path(__file__))  # made after the lists were checked
    with pytest.raises(InputError, match="leads to .*test_recipes_data"):
        list(batches(examples, recipe, 0))
