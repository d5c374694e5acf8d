"""The recipes from end to end on tiny data in the layout of the real ones."""

import json
from dataclasses import fields, replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

pytest.importorskip("timm")
pytest.importorskip("torchmetrics")
pytest.importorskip("torchvision")

from experiments.recipes import train
from experiments.recipes.benchmark import find
from experiments.recipes.cli import main
from experiments.recipes.domainnet import subset
from experiments.recipes.evaluate import largest, loss, score
from experiments.recipes.examples import Examples
from experiments.recipes.imagenet import task_classes
from experiments.recipes.methods import METHODS
from experiments.recipes.model import build
from experiments.recipes.paper import RECIPES
from experiments.recipes.pictures import batches
from experiments.recipes.run import Setting, run, summed_up

from ..support import tiny_datasets as tiny
from ..support.tiny_recipes import DATA, prepare, small


def finished(recipe, setting: Setting) -> dict:
    text = StringIO()
    run(recipe, setting, Console(file=text, width=250))
    content = json.loads((setting.out / "metrics.json").read_text())
    assert content["status"] == "finished"
    for result in content["results"].values():
        assert all(title in text.getvalue() for title in result["columns"])
        assert not result["diverged"]
    return content


def numbers(content: dict) -> dict:
    return {name: {k: v for k, v in result.items() if k != "seconds"} for name, result in content["results"].items()}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_from_end_to_end(name, tmp_path):
    recipe = small(name)
    methods = tuple(METHODS) if name in ("domainnet-moco-resnet50", "human-parts") else ("ftp",)
    setting = prepare(recipe, tmp_path, methods=methods)
    content = finished(recipe, setting)
    assert set(content["results"]) == set(methods)
    assert content["environment"]["packages"]["timm"]
    result = content["results"]["ftp"]
    stages = find(setting.root, recipe).stages
    scores = result["scores"] if recipe.tasks > 1 else [result["scores"]]
    for stage, measured in zip(stages, scores, strict=True):
        assert set(measured) == set(stage.tests)
        assert all(0 <= value <= 100 for value in measured.values())
    report = (setting.out / "report.md").read_text()
    assert all(part in report for part in (*result["columns"], recipe.source, *recipe.chosen))


def test_a_network_learns_what_is_there(tmp_path):
    """The colour tells the class, in every style: chance is 33."""
    recipe = small("domainnet-clip-resnet50-adam", epochs=7, batch_size=6, lr=3e-3, plain_lr=3e-3)
    for result in finished(recipe, prepare(recipe, tmp_path, methods=("ftp", "finetune")))["results"].values():
        assert result["losses"][-1] < result["losses"][0] / 2
        assert result["columns"]["ID: real"] == 100
        assert result["columns"]["OOD mean"] > 80


def test_recipes_say_where_their_values_come_from():
    for recipe in RECIPES.values():
        assert set(recipe.chosen) <= {field.name for field in fields(recipe)}
        assert recipe.source
        assert recipe.classes % recipe.tasks == 0
    resnet, ten = RECIPES["domainnet-clip-resnet50"], RECIPES["domainnet-clip-resnet50-10"]
    assert (resnet.lr, resnet.epochs, resnet.batch_size, resnet.weight_decay, resnet.kappa) == (1e-2, 50, 256, 0, 1)
    assert (ten.lr, ten.epochs, ten.share) == (1e-1, 150, 0.1)
    assert RECIPES["domainnet-clip-resnet50-adam"].lr == 1e-4


def test_columns_by_hand(tmp_path):
    pascal = find(DATA["pascal"][0](tmp_path / "p"), small("pascal-context"))
    scores = dict.fromkeys(pascal.stages[0].tests, 50.0) | {"clean": 80.0, "fog 1": 70.0, "fog 5": 20.0}
    assert len(scores) == 21
    columns = summed_up(pascal, [scores])
    assert columns["ID: clean"] == 80
    assert columns["fog"] == pytest.approx((70 + 3 * 50 + 20) / 5)
    assert columns["OOD mean"] == pytest.approx((70 + 18 * 50 + 20) / 20)

    tasks = find(tiny.imagenet_r(tmp_path / "r"), small("imagenet-r-continual"))
    after = [{"task 1": 90.0, "all so far": 90.0}, {"task 1": 60.0, "task 2": 80.0, "all so far": 70.0}]
    assert summed_up(tasks, after) == {
        "all classes, at the end": 70.0,
        "mean after each task": 80.0,
        "forgetting": 30.0,
    }


class Fixed(torch.nn.Module):
    """Gives the logits that were put into it, whatever the pictures are."""

    def __init__(self, *logits: torch.Tensor) -> None:
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(()))
        self.logits = list(logits)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits.pop(0)


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
    assert score(Fixed(*logits), read, some, "mIoU", 3) == pytest.approx(100 * (1 / 4 + 2 / 5) / 2)


def test_a_loss_over_some_classes_leaves_the_others_alone():
    logits = torch.randn(3, 4, requires_grad=True)
    value = loss(logits, torch.tensor([1, 3, 1]), (1, 3))
    value.backward()
    assert torch.equal(logits.grad[:, [0, 2]], torch.zeros(3, 2))
    expected = torch.nn.functional.cross_entropy(logits[:, [1, 3]], torch.tensor([0, 1, 0]))
    assert value.item() == pytest.approx(expected.item())


def test_ten_percent_is_drawn_by_class_and_seed_alone(tmp_path):
    rows = [
        (f"real/{label}/{number}.jpg", label) for label, count in ((0, 40), (1, 25), (2, 3)) for number in range(count)
    ]
    every = Examples(tmp_path, tuple(file for file, _ in rows), tuple(label for _, label in rows))
    drawn = subset(every, 0.1, seed=0)
    assert [drawn.targets.count(label) for label in range(3)] == [4, 2, 1]
    assert set(zip(drawn.files, drawn.targets, strict=True)) < set(rows)
    turned = Examples(tmp_path, every.files[::-1], every.targets[::-1])
    assert set(subset(turned, 0.1, seed=0).files) == set(drawn.files)
    assert set(subset(every, 0.1, seed=1).files) != set(drawn.files)


def test_a_list_of_the_ten_percent_comes_first(tmp_path):
    recipe = small("domainnet-clip-resnet50-10")
    root = tiny.domainnet(tmp_path, train=20)
    assert len(find(root, recipe).stages[0].examples.files) == 6
    (root / "real_train_10_percent_split.txt").write_text("real/class_1/5.jpg 1\n")
    assert find(root, recipe).stages[0].examples.files == ("real/class_1/5.jpg",)


def test_tasks_are_disjoint_and_whole(tmp_path):
    tasks = task_classes(RECIPES["imagenet-r-continual"])
    assert [len(task) for task in tasks] == [20] * 10
    assert sorted(label for task in tasks for label in task) == list(range(200))
    recipe = small("imagenet-r-continual")
    first, second = find(tiny.imagenet_r(tmp_path), recipe).stages
    assert set(first.examples.targets) | set(second.examples.targets) == {0, 1, 2, 3}
    assert not set(first.examples.targets) & set(second.examples.targets)
    assert set(first.examples.targets) == set(first.examples.classes)
    assert second.tests["task 1"].files == first.tests["task 1"].files
    assert (len(first.tests["task 1"].classes), len(second.tests["task 1"].classes)) == (2, 4)
    trained, tested = {*first.examples.files, *second.examples.files}, set(second.tests["all so far"].files)
    assert not trained & tested
    assert len(trained | tested) == 20
    assert len(tested) == 4


def test_classes_of_the_imagenets(tmp_path):
    tests = find(tiny.imagenet(tmp_path), small("imagenet-clip-vit")).stages[0].tests
    assert tests["imagenet-a"].classes == (1, 2)
    assert tests["imagenet-r"].classes == (2, 3)
    assert tests["imagenetv2"].classes is None
    assert tests["imagenetv2"].targets == (0, 1, 2, 3)
    assert set(tests["imagenet-a"].targets) == {1, 2}


@pytest.mark.parametrize(("name", "saves"), [("domainnet-clip-resnet50", 1), ("imagenet-r-continual-kept", 4)])
def test_a_stopped_run_ends_with_the_same_numbers(name, saves, tmp_path, monkeypatch):
    recipe = small(name, epochs=3)
    setting = prepare(recipe, tmp_path, methods=("ftp",))
    whole = finished(recipe, setting)
    weights = torch.load(setting.out / "checkpoint.pt", weights_only=True)["model"]
    done, save = [], train.checkpoint.save

    def stop(file, content) -> None:
        save(file, content)
        done.append(file)
        if len(done) == saves:
            raise KeyboardInterrupt

    stopped = replace(setting, out=tmp_path / "stopped")
    monkeypatch.setattr(train.checkpoint, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, stopped, Console(file=StringIO()))
    again = finished(recipe, stopped)
    assert len(done) == 3 * recipe.tasks  # no epoch was trained twice
    assert numbers(again) == numbers(whole)
    resumed = torch.load(stopped.out / "checkpoint.pt", weights_only=True)["model"]
    assert all(torch.equal(resumed[key], value) for key, value in weights.items())


def test_the_anchor_is_kept_or_moves(tmp_path, monkeypatch):
    """Seen by the optimizers: a moved one starts anew at the weights of the task before."""
    seen = {}
    for name in ("imagenet-r-continual", "imagenet-r-continual-kept"):
        recipe = small(name)
        setting = prepare(recipe, tmp_path, methods=("ftp",), out=tmp_path / name)
        made = []

        def ftp(model, recipe, anchor, made=made):
            made.append(METHODS["ftp"](model, recipe, anchor))
            return made[-1]

        with monkeypatch.context() as patch:
            patch.setattr(train, "METHODS", {"ftp": ftp})
            finished(recipe, setting)
        seen[name] = [
            {n: o.state[p]["anchor"] for n, p in zip(g["param_names"], g["params"], strict=True) if "head" not in n}
            for o in made
            for g in o.param_groups
        ]
        assert not any(name.startswith("head.") for name in made[0].radii())
    moved, kept = seen.values()
    assert all(torch.equal(kept[0][name], value) for name, value in kept[1].items())
    assert not all(torch.equal(moved[0][name], value) for name, value in moved[1].items())


def test_a_linear_probe_leaves_the_backbone_as_it_is(tmp_path):
    recipe = small("domainnet-moco-resnet50")
    setting = prepare(recipe, tmp_path, methods=("linear",))
    before = build(recipe, setting.checkpoint, dense=False).backbone.state_dict()
    finished(recipe, setting)
    after = torch.load(setting.out / "checkpoint.pt", weights_only=True)["model"]
    assert all(torch.equal(after[f"backbone.{name}"], value) for name, value in before.items())


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
    from PIL import Image

    for file, mask in zip(examples.files, examples.targets, strict=True):
        Image.fromarray(picture.numpy()).save(root / file, quality=95)
        tiny.mask(root / mask, (picture[..., 0] > 0).numpy())
    sides = set()
    for seed in range(4):
        for images, masks in batches(examples, recipe, 0, seed):
            assert torch.equal(images[:, 0] > 127, masks == 1)
            sides |= set(masks[:, 0, 0].tolist())
    assert sides == {0, 1}


def test_the_command(tmp_path, monkeypatch):
    recipe = small("domainnet-clip-resnet50")
    setting = prepare(recipe, tmp_path)
    monkeypatch.setitem(RECIPES, recipe.name, recipe)
    monkeypatch.chdir(tmp_path)
    given = [recipe.name, "--root", str(setting.root), "--checkpoint", str(setting.checkpoint), "--workers", "0"]
    text = StringIO()
    console = Console(file=text, width=200)
    assert main([*given, "--method", "ftp", "--epochs", "2", "--device", "cpu"], console) == 0
    folder = tmp_path / "runs" / "recipes" / f"{recipe.name}-ftp-seed0"
    assert {file.name for file in folder.iterdir()} == {"metrics.json", "report.md", "checkpoint.pt"}
    assert len(json.loads((folder / "metrics.json").read_text())["results"]["ftp"]["losses"]) == 2
    assert main([*given, "--method", "ftp", "--device", "cpu"], console) == 2  # another run lies there
    assert main(["--list"], console) == 0
    assert all(name in text.getvalue() for name in RECIPES)
