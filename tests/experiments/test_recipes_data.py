"""Which pictures a recipe trains and tests on, and how they are cut, mirrored and put into batches."""

import random
from dataclasses import replace

import pytest
import torch
from PIL import Image

pytest.importorskip("timm")
pytest.importorskip("torchmetrics")
pytest.importorskip("torchvision")

from experiments.common.errors import InputError
from experiments.recipes.benchmark import find
from experiments.recipes.examples import Examples
from experiments.recipes.imagenet_r import task_classes
from experiments.recipes.paper import RECIPES
from experiments.recipes.pictures import batches, steps_of
from experiments.recipes.recipe import PERCENTS

from ..support import tiny_datasets as tiny
from ..support.tiny_recipes import DATA, finished, prepare, small


def test_every_share_of_domainnet_has_its_lists(tmp_path):
    """And pictures that are held out to choose the epoch by."""
    root = tiny.domainnet(tmp_path, classes=1, train=6)
    for number, percent in enumerate(PERCENTS):
        (root / f"real_train_{percent}_percent_split.txt").write_text(f"real/class_0/{number}.jpg 0\n")
        (root / f"real_val_{percent}_percent_split.txt").write_text("real/class_0/50.jpg 0\n")
    for number, percent in enumerate(PERCENTS):
        stage = find(root, small("domainnet-clip-resnet50", percent=percent)).stages[0]
        assert stage.examples.files == (f"real/class_0/{number}.jpg",)
        assert stage.validation.files == ("real/class_0/50.jpg",)
    with pytest.raises(InputError, match="--percent 30: there are lists for 1, 5, 10, 20, 50, 100"):
        small("domainnet-clip-resnet50", percent=30).check()


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


def test_the_seed_of_a_run_orders_the_classes(tmp_path):
    recipe = small("imagenet-r-continual")
    root = tiny.imagenet_r(tmp_path / "of its own")
    seed = next(seed for seed in range(1, 9) if task_classes(recipe, seed) != task_classes(recipe, 0))
    content = finished(recipe, prepare(recipe, tmp_path, methods=("linear",), seed=seed))
    assert content["data"]["fingerprint"] == find(root, recipe, seed).fingerprint()
    assert content["data"]["fingerprint"] != find(root, recipe).fingerprint()


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
