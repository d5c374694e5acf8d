"""Which pictures a recipe trains and tests on, how they are cut, mirrored and put into batches, and what is refused."""

import math
import os
import random
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
from experiments.recipes.imagenet_r import task_classes
from experiments.recipes.normals import directions, mirrored, read_normals
from experiments.recipes.paper import RECIPES
from experiments.recipes.pictures import batches, steps_of
from experiments.recipes.study import find

from ..support import tiny_datasets as tiny
from ..support.tiny_recipes import DATA, small

DOMAINNET, IMAGENET, PASCAL = "domainnet-clip-resnet50", "imagenet-clip-vit", "pascal-context"
TASKS, SURFACES, WNID = "imagenet-r-continual", "surface-normals", tiny.WNIDS[0]
TRAIN, VALIDATION, R = "real_train_100_percent_split.txt", "real_val_100_percent_split.txt", "imagenet-r_test.yaml"
PASCAL_MASK = "semseg/pascal-context/a.png"
HALF = math.sqrt(0.5)
# In 8 bits the components of a unit vector are wrong by half a level: 1 / 255.
ROUNDING = 1 / 255


def test_every_share_of_domainnet_has_its_lists(tmp_path):
    """And pictures that are held out to choose the epoch by."""
    root = tiny.domainnet(tmp_path, classes=1, train=6)
    percents = (1, 5, 10, 20, 50, 100)
    for number, percent in enumerate(percents):
        (root / f"real_train_{percent}_percent_split.txt").write_text(f"real/class_0/{number}.jpg 0\n")
        (root / f"real_val_{percent}_percent_split.txt").write_text("real/class_0/50.jpg 0\n")
    for number, percent in enumerate(percents):
        stage = find(root, small("domainnet-clip-resnet50", percent=percent)).stages[0]
        assert stage.examples.files == (f"real/class_0/{number}.jpg",)
        assert stage.validation.files == ("real/class_0/50.jpg",)


def test_the_list_of_all_of_domainnet_has_two_names(tmp_path):
    """The one that the authors' loader asks for comes first; no other share has a second name."""
    recipe = small("domainnet-clip-resnet50")
    root = tiny.domainnet(tmp_path)
    for part in ("train", "val"):
        (root / f"real_{part}_100_percent_split.txt").rename(root / f"real_{part}_split.txt")
    stage = find(root, recipe).stages[0]
    assert (len(stage.examples.files), len(stage.validation.files)) == (12, 3)
    (root / "real_train_100_percent_split.txt").write_text("real/class_1/3.jpg 1\n")
    with pytest.raises(InputError, match="has the class 'class_0' .* which real_train_100_percent_split.txt lacks"):
        find(root, recipe)
    (root / "real_train_10_percent_split.txt").unlink()
    with pytest.raises(InputError, match="no file .*real_train_10_percent_split.txt"):
        find(root, small("domainnet-clip-resnet50-10"))


def test_tasks_are_disjoint_and_whole(tmp_path):
    recipe = RECIPES["imagenet-r-continual"]
    tasks = task_classes(recipe, seed=0)
    assert tasks == [tuple(range(start, start + 20)) for start in range(0, 200, 20)]  # not shuffled
    for seed in (1, 2):
        shuffled = task_classes(recipe, seed)
        assert [len(task) for task in shuffled] == [20] * 10
        assert sorted(label for task in shuffled for label in task) == list(range(200))
        assert shuffled not in (tasks, task_classes(recipe, seed + 1))
        assert shuffled == task_classes(recipe, seed)
    order = list(range(200))
    random.seed(3)
    random.shuffle(order)  # as CODA-Prompt's trainer does
    assert task_classes(recipe, 3) == [tuple(sorted(order[start : start + 20])) for start in range(0, 200, 20)]

    recipe = small("imagenet-r-continual")
    first, second = find(tiny.imagenet_r(tmp_path), recipe).stages
    assert set(first.examples.targets) == set(first.examples.classes) == {0, 1}
    assert set(second.examples.targets) == {2, 3}
    assert second.tests["task 1"].files == first.tests["task 1"].files
    assert (len(first.tests["task 1"].classes), len(second.tests["task 1"].classes)) == (2, 4)
    trained, tested = {*first.examples.files, *second.examples.files}, set(second.tests["all so far"].files)
    assert not trained & tested
    assert (len(trained), len(tested)) == (16, 4)
    assert first.examples.files[0] == f"imagenet-r/{tiny.WNIDS[2]}/0.JPEG"  # the lists number classes, not the folders
    orders = {find(tmp_path, recipe, seed).stages[0].examples.classes for seed in range(9)}
    assert len(orders) > 1


def test_classes_of_the_imagenets(tmp_path):
    tests = find(tiny.imagenet(tmp_path), small("imagenet-clip-vit")).stages[0].tests
    assert tests["imagenet-a"].classes == (1, 2)
    assert tests["imagenet-r"].classes == (2, 3)
    assert tests["imagenetv2"].classes is None
    assert tests["imagenetv2"].targets == (0, 1, 2, 3)
    assert set(tests["imagenet-a"].targets) == {1, 2}


def test_the_last_batch_is_dropped_where_the_recipe_says_so(tmp_path):
    recipe = small("imagenet-r-continual", batch_size=3)
    stage = find(tiny.imagenet_r(tmp_path), recipe).stages[0]
    assert len(stage.examples.files) == 8
    for some, sizes in ((recipe, [3, 3]), (replace(recipe, drop_last=False), [3, 3, 2])):
        assert [len(images) for images, _ in batches(stage.examples, some, 0, seed=1)] == sizes
        assert steps_of(stage.examples, some) == len(sizes)
    assert [len(images) for images, _ in batches(stage.examples, recipe, 0)] == [3, 3, 2]  # all are tested


def test_how_a_test_picture_is_cut(tmp_path):
    """Black, but for a white stripe at the right: a cut loses it, squeezing keeps it, and bicubic overshoots."""
    picture = torch.zeros(40, 80, 3, dtype=torch.uint8)
    picture[:, 70:] = 200
    Image.fromarray(picture.numpy()).save(tmp_path / "a.png")
    some = Examples(tmp_path, ("a.png",), (0,))
    cut, squeezed = small("domainnet-clip-resnet50"), small("imagenet-r-continual")
    (image, _), *_ = batches(some, cut, 0)
    assert image.shape == (1, 3, 32, 32)
    assert image.max() == 0
    (image, _), *_ = batches(some, squeezed, 0)
    assert image.shape == (1, 3, 32, 32)
    assert image[..., -1].min() == 200
    (image, _), *_ = batches(some, replace(squeezed, interpolation="bicubic"), 0)
    assert image.max() > 200
    tiny.picture(tmp_path / "a.png", 0)  # noise, as a crop of black is black either way
    for seed in (None, 1):
        first, second = (
            next(batches(some, replace(cut, interpolation=way), 0, seed))[0] for way in ("bilinear", "bicubic")
        )
        assert not torch.equal(first, second)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_processes_change_no_picture(tmp_path):
    recipe = small("domainnet-clip-resnet50")
    examples = find(tiny.domainnet(tmp_path), recipe).stages[0].examples
    alone, shared, other = (list(batches(examples, recipe, *how)) for how in ((0, 5), (2, 5), (0, 6)))
    assert all(torch.equal(a, b) and torch.equal(x, y) for (a, x), (b, y) in zip(alone, shared, strict=True))
    assert not torch.equal(alone[0][0], other[0][0])


def test_picture_and_mask_flip_together(tmp_path):
    recipe = small("pascal-context")
    root = DATA["pascal"][0](tmp_path)
    examples = find(root, recipe).stages[0].examples
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


def test_what_a_pixel_of_a_file_means(tmp_path):
    """The components in the order of the channels; black and both middle greys are none."""
    meant = {
        (255, 128, 128): (1, 0, 0), (0, 127, 127): (-1, 0, 0), (128, 255, 127): (0, 1, 0), (127, 127, 255): (0, 0, 1),
        (218, 128, 218): (HALF, 0, HALF), (192, 128, 128): (1, 0, 0),  # half as long: the direction counts
        (0, 0, 0): (0, 0, 0), (127, 127, 127): (0, 0, 0), (128, 128, 128): (0, 0, 0), (128, 127, 128): (0, 0, 0),
    }  # fmt: skip
    tiny.mask(tmp_path / "a.png", np.array([list(meant)]))
    found = directions(read_normals(tmp_path / "a.png"))
    assert found.shape == (3, 1, len(meant))
    expected = torch.tensor(list(meant.values()), dtype=torch.float32).T[:, None]
    # the shorter vector's components are twice as wrong, once normalised
    torch.testing.assert_close(found, expected, atol=2 * ROUNDING, rtol=0)
    torch.testing.assert_close(found.norm(dim=0)[:, :6], torch.ones(1, 6))
    assert torch.equal(found[..., 6:], torch.zeros(3, 1, 4))


def test_a_mirror_image_turns_the_x_axis():
    normals = torch.tensor([[[0.6, 0.0]], [[0.0, 0.8]], [[0.8, -0.6]]])
    assert torch.equal(mirrored(normals), torch.tensor([[[0.0, -0.6]], [[0.8, 0.0]], [[-0.6, 0.8]]]))


def test_picture_and_normals_flip_together(tmp_path):
    """The left half is black and looks to the left, the right one is white and up; a mirrored left looks right."""
    recipe = small("surface-normals")
    examples = find(tiny.surface_normals(tmp_path), recipe).stages[0].examples
    picture = np.zeros((40, 40, 3), dtype=np.uint8)
    picture[:, 20:] = 255
    normals = np.full((40, 40, 3), (0, 128, 128), dtype=np.uint8)
    normals[:, 20:] = (128, 255, 128)
    normals[:10] = 0
    for file, target in zip(examples.files, examples.targets, strict=True):
        Image.fromarray(picture).save(tmp_path / file, quality=95)
        tiny.mask(tmp_path / target, normals)
    seen = set()
    for seed in range(4):
        for images, targets in batches(examples, recipe, 0, seed):
            assert targets.shape == (4, 3, 32, 32)
            assert torch.equal(targets[:, :, :8], torch.zeros(4, 3, 8, 32))  # a quarter of the rows
            for image, target in zip(images, targets[:, :, 8:].round(), strict=True):
                black = image[0, 8:] < 128
                dark, bright = (target[:, where].unique(dim=1).T.tolist() for where in (black, ~black))
                assert bright == [[0, 1, 0]]
                seen.add((bool(black[0, 0]), *(tuple(one) for one in dark)))
    assert seen == {(True, (-1, 0, 0)), (False, (1, 0, 0))}


def test_normals_are_not_mixed_where_a_picture_shrinks(tmp_path):
    recipe = small("surface-normals")
    examples = find(tiny.surface_normals(tmp_path), recipe).stages[0].examples
    stripes = np.zeros((40, 40, 3), dtype=np.uint8)
    stripes[:, ::3], stripes[:, 1::3] = (255, 128, 128), (128, 128, 255)
    tiny.mask(tmp_path / examples.targets[0], stripes)
    _, targets = next(iter(batches(examples, recipe, 0)))
    assert len(targets[0].flatten(1).unique(dim=1).T) == 3  # two directions and none


@pytest.mark.parametrize(
    ("recipe", "target", "values", "said"),
    [
        (PASCAL, PASCAL_MASK, np.full((40, 40), 3), "has the class 3; allowed are 0 ... 2 and 255"),
        (PASCAL, PASCAL_MASK, np.zeros((40, 40, 3)), "has the mode RGB"),
        (PASCAL, PASCAL_MASK, np.zeros((40, 39)), r"has \(40, 40\) pixels and its mask .* \(39, 40\)"),
        (SURFACES, "normals_masked/a.png", np.full((40, 40), 128), "have the mode L; save them as 8-bit RGB"),
        (SURFACES, "normals_masked/a.png", np.full((40, 40, 3), 255), r"a pixel \(255, 255, 255\), which is no unit"),
        (SURFACES, "normals_masked/a.png", np.full((40, 40, 3), (0, 0, 3)), "which is no unit vector"),  # a class
    ],
)
def test_wrong_targets(recipe, target, values, said, tmp_path):
    recipe = small(recipe)
    examples = find(DATA[recipe.data][0](tmp_path), recipe).stages[0].examples
    tiny.mask(tmp_path / target, values)
    with pytest.raises(InputError, match=said):
        list(batches(examples, recipe, 0))


@pytest.mark.parametrize(("part", "names"), [("train", "abc"), ("val", "ef")])
def test_lists_without_any_normal_are_refused(part, names, tmp_path):
    """A picture without any is not: there are such, d among them."""
    recipe = small(SURFACES)
    tiny.surface_normals(tmp_path)
    for name in names:
        find(tmp_path, recipe)
        tiny.mask(tmp_path / "normals_masked" / f"{name}.png", np.full((40, 40, 3), 127))
    with pytest.raises(InputError, match=f"no picture of {part}.txt has a pixel with a normal .*\n.*\n.*ImageSets"):
        find(tmp_path, recipe)


def append(file: str, line: str):
    return lambda root: (root / file).write_text((root / file).read_text() + line + "\n")


def swap(file: str, old: str, new: str):
    return lambda root: (root / file).write_text((root / file).read_text().replace(old, new, 1))


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


def move_out(root: Path) -> None:
    """A folder that is a link to where it was moved, which is not below the root."""
    (root / f"imagenet-r/{WNID}").rename(root.parent / "secret")
    os.symlink(root.parent / "secret", root / f"imagenet-r/{WNID}")


def without_a_class(root: Path) -> None:
    lines = [line for line in (root / R).read_text().splitlines() if WNID not in line and line != "- 3"]
    (root / R).write_text("\n".join(lines) + "\n")


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
        (TASKS, lambda r: (r / R).unlink(), r"no file .*imagenet-r_test.yaml\n.*\n.*CODA-Prompt"),
        (TASKS, append(R, "- 1"), "has 4 pictures and 5 classes"),
        (TASKS, append(R, "more: 1"), "line 11: 'more: 1' is neither"),
        (TASKS, swap(R, "- 3", "- 4"), "the class '4' is none of 0 ... 3"),
        (TASKS, swap(R, "- 3", "- 2"), "two numbers in the lists, or a number two folders"),
        (TASKS, swap(R, f"{WNID}/4", f"{WNID}/9"), "there is no picture .*9.JPEG"),
        (TASKS, swap(R, f"{WNID}/4", f"{WNID}/0"), "0.JPEG is listed 2 times"),
        (TASKS, swap(R, f"{WNID}/4", "../4"), "does not end in a class folder"),
        (TASKS, without_a_class, "imagenet-r_test.yaml has pictures of 3 classes, not 4"),
        (TASKS, move_out, "leads to .*secret"),
        (PASCAL, lambda r: (r / PASCAL_MASK).unlink(), "lists 'a', but there is no file .*a.png"),
        (PASCAL, append("ImageSets/Context/train.txt", "../a"), "must be a name without folders"),
        (PASCAL, lambda r: (r / "ImageSets/Context/train.txt").write_text("\n"), "lists no picture"),
        (SURFACES, lambda r: (r / "normals_masked").rename(r / "n"), r"normals_masked.a.png\n.*\n.*\n.*\n.* Made of"),
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
    examples = find(tiny.domainnet(tmp_path / "data"), recipe).stages[0].examples
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
