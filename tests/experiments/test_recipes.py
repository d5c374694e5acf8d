"""The recipes from end to end on tiny data in the layout of the real ones."""

import json
import math
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

from experiments.recipes import train
from experiments.recipes.benchmark import find
from experiments.recipes.cli import main
from experiments.recipes.examples import named
from experiments.recipes.methods import METHODS
from experiments.recipes.paper import RECIPES
from experiments.recipes.published import PUBLISHED, table
from experiments.recipes.run import run
from experiments.recipes.schedule import factor

from ..support.tiny_recipes import finished, prepare, small


def numbers(content: dict) -> dict:
    return {name: {k: v for k, v in result.items() if k != "seconds"} for name, result in content["results"].items()}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_from_end_to_end(name, tmp_path):
    recipe = small(name)
    every = ("domainnet-moco-resnet50", "human-parts", "surface-normals")
    methods = tuple(METHODS) if name in every else ("ftp",)
    setting = prepare(recipe, tmp_path, methods=methods)
    content = finished(recipe, setting)
    assert set(content["results"]) == set(methods)
    assert content["environment"]["packages"]["timm"]
    result = content["results"]["ftp"]
    benchmark = find(setting.root, recipe)
    scores = result["scores"] if recipe.tasks > 1 else [result["scores"]]
    for stage, measured in zip(benchmark.stages, scores, strict=True):
        besides = {named(test, error) for test in stage.tests for error in benchmark.errors}
        assert set(measured) == {*stage.tests, *besides}
        assert all(0 <= measured[test] <= 100 for test in stage.tests)
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
            return {metric: next(given)}
        assert all(torch.equal(value, weights[1][name]) for name, value in model.state_dict().items())
        return score(model, read, examples, metric, classes)

    held_out = find(setting.root, recipe).stages[0].validation.files
    monkeypatch.setattr(train, "score", scored)
    content = finished(recipe, setting)
    assert content["results"]["finetune"]["validation"] == [10.0, 30.0, 30.0, 20.0]
    assert content["pictures"] == {"train": 12, "validation": 3}
    assert "12 pictures to train on, 3 to choose the epoch by" in (setting.out / "report.md").read_text()


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


def test_the_loss_of_an_epoch_is_the_mean_over_what_was_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "loss", lambda logits, targets, classes: 0 * logits.sum() + 2)
    for batch_size in (3, 4):  # of 8 pictures, with and without some that are dropped
        recipe = small("imagenet-r-continual", batch_size=batch_size)
        content = finished(recipe, prepare(recipe, tmp_path / str(batch_size), methods=("finetune",)))
        assert content["results"]["finetune"]["losses"] == [2.0, 2.0]


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
