"""The recipes from end to end on tiny data in the layout of the real ones."""

import json
import math
import random
from dataclasses import fields, replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

pytest.importorskip("timm")
pytest.importorskip("torchmetrics")
pytest.importorskip("torchvision")

import timm

from experiments.common.errors import InputError
from experiments.recipes import train
from experiments.recipes.benchmark import find
from experiments.recipes.cli import main
from experiments.recipes.evaluate import largest, loss, score
from experiments.recipes.examples import Examples
from experiments.recipes.imagenet_r import task_classes
from experiments.recipes.methods import METHODS
from experiments.recipes.model import Network, build
from experiments.recipes.paper import RECIPES
from experiments.recipes.pictures import batches, steps_of
from experiments.recipes.published import PUBLISHED, table
from experiments.recipes.recipe import PERCENTS
from experiments.recipes.run import Setting, run, summed_up
from experiments.recipes.schedule import factor

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
    # so few steps that radii, which start at 1e-8, have to grow faster than in the real recipe
    recipe = small("domainnet-clip-resnet50-adam", epochs=10, batch_size=6, lr=3e-3, plain_lr=3e-3, radius_lr=0.1)
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
    assert (ten.lr, ten.epochs, ten.percent) == (1e-1, 150, 10)
    assert RECIPES["domainnet-clip-resnet50-adam"].lr == 1e-4
    assert resnet.projection == 1024  # attnpool.c_proj of CLIP's RN50
    assert (resnet.warmup, resnet.clip, resnet.interpolation, resnet.resize) == (None, None, "bilinear", 256)
    imagenet, tasks = RECIPES["imagenet-clip-vit"], RECIPES["imagenet-r-continual"]
    assert (imagenet.plain_lr, imagenet.plain_weight_decay, imagenet.epochs, imagenet.batch_size) == (
        3e-5,
        0.1,
        10,
        512,
    )
    assert (imagenet.warmup, imagenet.clip, imagenet.zero_shot, imagenet.projection) == (500, 1.0, True, 512)
    assert (imagenet.mean, imagenet.std) == (timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD)
    assert (imagenet.interpolation, imagenet.resize) == ("bicubic", 256)
    assert "weight_decay" in imagenet.chosen  # in nothing that was read
    assert (tasks.mean, tasks.std, tasks.resize, tasks.drop_last) == ((0.0,) * 3, (1.0,) * 3, None, True)


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


def test_values_of_the_command_line_count_as_chosen():
    recipe = RECIPES["domainnet-clip-resnet50"]
    assert recipe.changed(percent=100, epochs=50) == recipe
    assert recipe.changed(batch_size=64).chosen == ("radius_lr", "batch_size")
    five = recipe.changed(percent=5)
    assert (five.percent, five.epochs) == (5, 50)
    assert five.chosen == ("radius_lr", "percent", "lr", "plain_lr", "epochs")


def test_the_epoch_that_is_best_on_validation_pictures_is_tested(tmp_path, monkeypatch):
    """The first of equals; the scores of validation are given, those of the tests are what they are."""
    recipe = small("domainnet-moco-resnet50", epochs=4)
    setting = prepare(recipe, tmp_path, methods=("finetune",))
    given, weights, score = iter((10.0, 30.0, 30.0, 20.0)), [], train.score

    def scored(model, read, examples, metric, classes):
        if examples.files == held_out:
            weights.append({name: value.clone() for name, value in model.state_dict().items()})
            return next(given)
        assert all(torch.equal(value, weights[1][name]) for name, value in model.state_dict().items())
        return score(model, read, examples, metric, classes)

    held_out = find(setting.root, recipe).stages[0].validation.files
    monkeypatch.setattr(train, "score", scored)
    content = finished(recipe, setting)
    assert content["results"]["finetune"]["validation"] == [10.0, 30.0, 30.0, 20.0]
    assert content["pictures"] == {"train": 12, "validation": 3}
    assert "12 pictures to train on, 3 to choose the epoch by" in (setting.out / "report.md").read_text()


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


@pytest.mark.parametrize(("name", "saves"), [("domainnet-clip-resnet50", 1), ("imagenet-r-continual-kept", 4)])
def test_a_stopped_run_ends_with_the_same_numbers(name, saves, tmp_path, monkeypatch):
    recipe = small(name, epochs=3)
    setting = prepare(recipe, tmp_path, methods=("ftp",))
    whole = finished(recipe, setting)
    saved = torch.load(setting.out / "checkpoint.pt", weights_only=True)
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
    resumed = torch.load(stopped.out / "checkpoint.pt", weights_only=True)
    assert all(torch.equal(resumed["model"][key], value) for key, value in saved["model"].items())
    assert (saved["best"] is None) == (recipe.data != "domainnet")
    assert (resumed["best"] is None) == (saved["best"] is None)
    assert all(torch.equal(resumed["best"][key], value) for key, value in (saved["best"] or {}).items())


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


def test_clip_resnet50_keeps_its_projection(tmp_path):
    """The real network, from OpenAI's names: c_proj is loaded and constrained, and the head on its features is free."""
    recipe = replace(RECIPES["domainnet-clip-resnet50"], classes=3)
    torch.manual_seed(0)
    own = timm.create_model(recipe.model, num_classes=1024).state_dict()
    clip = {f"visual.{openai_name(name)}": value for name, value in own.items()}
    assert clip["visual.attnpool.c_proj.weight"].shape == (1024, 2048)
    torch.save(clip, tmp_path / "clip.pt")
    model = build(recipe, tmp_path / "clip.pt", dense=False)
    loaded = model.backbone.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in loaded.items())
    assert model.head.weight.shape == (3, 1024)
    assert model(torch.zeros(2, 3, 224, 224, dtype=torch.uint8)).shape == (2, 3)
    held = anchored(METHODS["ftp"](model, recipe, None))
    assert {"backbone.head.proj.weight", "backbone.head.proj.bias", "backbone.head.q.weight"} < held
    assert held == {name for name, _ in model.named_parameters()} - {"head.weight", "head.bias"}


def openai_name(name: str) -> str:
    """Of a weight of CLIP's RN50, from timm's."""
    kinds = {"conv1_1x1": "1", "conv2_kxk": "2", "conv3_1x1": "3"}
    for old, new in (("q.", "q_proj."), ("k.", "k_proj."), ("v.", "v_proj."), ("proj.", "c_proj.")):
        if name.startswith(f"head.{old}"):
            return f"attnpool.{new}{name.removeprefix(f'head.{old}')}"
    match name.split("."):
        case ["head", "pos_embed"]:
            return "attnpool.positional_embedding"
        case ["stem", conv, kind, rest]:
            return f"{kind}{conv[-1]}.{rest}"
        case ["stages", stage, block, "shortcut", "conv", kind, rest]:
            return f"layer{int(stage) + 1}.{block}.downsample.{0 if kind == 'conv' else 1}.{rest}"
        case ["stages", stage, block, conv, kind, rest]:
            return f"layer{int(stage) + 1}.{block}.{kind}{kinds[conv]}.{rest}"
    raise AssertionError(name)


def anchored(optimizer) -> set[str]:
    """Names of what is constrained, seen after a step."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return set(optimizer.radii())


def test_a_zero_shot_head_is_where_training_starts_and_is_constrained(tmp_path):
    recipe = small("imagenet-clip-vit")
    setting = prepare(recipe, tmp_path)
    given = torch.load(setting.head, weights_only=True)
    model = build(recipe, setting.checkpoint, dense=False, head=setting.head)
    assert torch.equal(model.head.weight, given)
    assert model.head.bias is None
    assert model.backbone.head.bias is None
    pictures = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    features = model.eval().backbone((pictures.float() / 255 - model.mean) / model.std)
    expected = features / features.norm(dim=-1, keepdim=True) @ given.T
    assert torch.allclose(model(pictures), expected, atol=1e-5)  # 5 products of about 1 in float32
    assert anchored(METHODS["ftp"](model, recipe, None)) == {name for name, _ in model.named_parameters()}
    other = torch.nn.Linear(tiny.FEATURES, recipe.classes)
    torch.save(other.state_dict(), tmp_path / "other.pt")
    again = build(recipe, setting.checkpoint, dense=False, head=tmp_path / "other.pt")
    assert torch.equal(again.head.weight, other.weight)


def test_the_learning_rate_by_epoch_and_by_step():
    """As torch's cosine by epoch; as WiSE-FT's warm-up and cosine by step, at values worked out by hand."""
    by_epoch = small("domainnet-moco-resnet50", epochs=4)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
    for epoch in range(4):
        for step in range(3):
            # torch multiplies from epoch to epoch, in float64
            assert factor(by_epoch, 3, 3 * epoch + step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        cosine.step()
    by_step = replace(by_epoch, warmup=4)  # 12 steps: 4 up, 8 down
    found = [factor(by_step, 3, step) for step in range(12)]
    assert found[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert found[6] == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert found[8] == pytest.approx(0.5)
    assert found[10] == pytest.approx((1 - math.sqrt(0.5)) / 2)
    assert [factor(replace(by_step, warmup=12), 3, step) for step in (11, 12)] == [1.0, 1.0]  # ends with the warm-up
    assert factor(replace(by_step, warmup=500), 3, 11) == 12 / 500


@pytest.mark.parametrize("name", ["imagenet-clip-vit", "domainnet-moco-resnet50"])
def test_warm_up_and_clipping_reach_the_steps(name, tmp_path, monkeypatch):
    """Seen by the optimizer: the learning rate and the norm of all gradients at each step."""
    recipe = small(name, epochs=2)
    recipe = replace(recipe, warmup=4, clip=1e-3) if recipe.warmup is not None else recipe
    setting = prepare(recipe, tmp_path, methods=("finetune",))
    seen = []

    def finetune(model, recipe, anchor):
        optimizer = METHODS["finetune"](model, recipe, anchor)

        def look(*_) -> None:
            norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
            seen.append((optimizer.param_groups[0]["lr"] / recipe.plain_lr, norm.item()))

        optimizer.register_step_pre_hook(look)
        return optimizer

    monkeypatch.setattr(train, "METHODS", {"finetune": finetune})
    finished(recipe, setting)
    rates, norms = zip(*seen, strict=True)
    assert len(rates) == 6  # two epochs of 12 pictures in batches of 4
    if recipe.clip is None:
        assert rates == pytest.approx([1, 1, 1, 0.5, 0.5, 0.5])
        assert min(norms) > 1e-3
    else:
        assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 0.5])
        # torch divides by the norm plus 1e-6, which is small where the norm was at least 0.01; float32 sums do the rest
        assert norms == pytest.approx([1e-3] * 6, rel=2e-4)


def test_the_last_batch_is_dropped_where_the_recipe_says_so(tmp_path):
    recipe = small("imagenet-r-continual", batch_size=3)
    stage = find(tiny.imagenet_r(tmp_path), recipe).stages[0]
    assert len(stage.examples.files) == 8
    for some, sizes in ((recipe, [3, 3]), (replace(recipe, drop_last=False), [3, 3, 2])):
        assert [len(images) for images, _ in batches(stage.examples, some, 0, seed=1)] == sizes
        assert steps_of(stage.examples, some) == len(sizes)
    assert [len(images) for images, _ in batches(stage.examples, recipe, 0)] == [3, 3, 2]  # all are tested


def test_the_loss_of_an_epoch_is_the_mean_over_what_was_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "loss", lambda logits, targets, classes: 0 * logits.sum() + 2)
    for batch_size in (3, 4):  # of 8 pictures, with and without some that are dropped
        recipe = small("imagenet-r-continual", batch_size=batch_size)
        content = finished(recipe, prepare(recipe, tmp_path / str(batch_size), methods=("finetune",)))
        assert content["results"]["finetune"]["losses"] == [2.0, 2.0]


def test_the_seed_of_a_run_orders_the_classes(tmp_path):
    recipe = small("imagenet-r-continual")
    root = tiny.imagenet_r(tmp_path / "of its own")
    seed = next(seed for seed in range(1, 9) if task_classes(recipe, seed) != task_classes(recipe, 0))
    content = finished(recipe, prepare(recipe, tmp_path, methods=("linear",), seed=seed))
    assert content["data"]["fingerprint"] == find(root, recipe, seed).fingerprint()
    assert content["data"]["fingerprint"] != find(root, recipe).fingerprint()


def test_how_a_test_picture_is_cut(tmp_path):
    """Black, but for a white stripe at the right: a cut loses it, squeezing keeps it, and bicubic overshoots."""
    from PIL import Image

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


def test_pictures_without_normalisation():
    recipe = small("imagenet-r-continual")
    assert recipe.mean == RECIPES[recipe.name].mean
    network = Network(torch.nn.Flatten(), replace(recipe, projection=12), dense=False)
    pictures = torch.randint(256, (2, 3, 2, 2), dtype=torch.uint8)
    assert torch.equal(network(pictures), network.head(pictures.flatten(1) / 255))


def test_published_rows_stand_beside_one_s_own(tmp_path):
    """In the README, in the report of that recipe, and nowhere that other pictures were trained on."""
    readme = (Path(train.__file__).parent / "README.md").read_text()
    for name, published in PUBLISHED.items():
        for row in table(published)[1]:
            assert f"| `{name}` | {' | '.join(row)} |" in readme
    for percent, there in ((100, True), (10, False)):
        recipe = small("domainnet-moco-resnet50", percent=percent)
        setting = prepare(recipe, tmp_path / str(percent), methods=("linear",))
        finished(recipe, setting)
        assert ("81.30" in (setting.out / "report.md").read_text()) == there
    for published in PUBLISHED.values():
        for method, values in published.rows.items():
            if published.columns[-1] == "OOD mean":  # rounded to two places, and so was what it is the mean of
                assert values[-1] == pytest.approx(sum(values[1:-1]) / 4, abs=0.0101), method


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
