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

from experiments.common import checkpoint
from experiments.recipes import train
from experiments.recipes.paper import RECIPES
from experiments.recipes.study import find, main
from experiments.recipes.train import METHODS

from ..support.tiny_recipes import finished, prepare, run, small


def numbers(content: dict) -> dict:
    return {name: {k: v for k, v in result.items() if k != "seconds"} for name, result in content["results"].items()}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_from_end_to_end(name, tmp_path):
    recipe = small(name)
    every = ("domainnet-moco-resnet50", "human-parts")
    setting = prepare(recipe, tmp_path, methods=tuple(METHODS) if name in every else ("ftp",))
    content = finished(setting)
    assert tuple(content["results"]) == setting.config.methods
    result = content["results"]["ftp"]
    assert set(result["scores"]) == set(find(setting.root, recipe).tests)
    assert all(0 <= score <= 100 for score in result["scores"].values())
    report = (setting.out / "report.md").read_text()
    assert all(part in report for part in (*result["columns"], recipe.source, *recipe.chosen))
    assert set(recipe.chosen) <= {field.name for field in fields(recipe)}


def test_a_network_learns_what_is_there(tmp_path):
    """The colour tells the class, in every style: chance is 33."""
    # so few steps that radii, which start at 1e-8, have to grow faster than in the real recipe
    recipe = small("domainnet-clip-resnet50-adam", epochs=10, batch_size=6, lr=3e-3, plain_lr=3e-3, radius_lr=0.1)
    for result in finished(prepare(recipe, tmp_path, methods=("ftp", "finetune")))["results"].values():
        assert result["losses"][-1] < result["losses"][0] / 2
        assert result["columns"]["ID: real"] == 100
        assert result["columns"]["OOD mean"] > 80


def test_values_of_the_command_line_count_as_chosen():
    recipe = RECIPES["domainnet-clip-resnet50"]
    assert recipe.changed(epochs=50) == recipe
    assert recipe.changed(batch_size=64).chosen == ("radius_lr", "batch_size")


def test_the_epoch_that_is_best_on_validation_pictures_is_tested(tmp_path, monkeypatch):
    """The first of equals; the scores of validation are given, those of the tests are what they are."""
    setting = prepare(small("domainnet-moco-resnet50", epochs=4), tmp_path, methods=("finetune",))
    given, weights, score = iter((10.0, 30.0, 30.0, 20.0)), [], train.score

    def scored(model, read, examples, metric, classes):
        if examples.files == held_out:
            weights.append({name: value.clone() for name, value in model.state_dict().items()})
            return next(given)
        assert all(torch.equal(value, weights[1][name]) for name, value in model.state_dict().items())
        return score(model, read, examples, metric, classes)

    held_out = find(setting.root, setting.recipe).validation.files
    monkeypatch.setattr(train, "score", scored)
    content = finished(setting)
    assert content["results"]["finetune"]["validation"] == [10.0, 30.0, 30.0, 20.0]
    assert content["data"]["pictures"] == {"train": 12, "validation": 3}
    assert "12 pictures to train on, 3 to choose the epoch by" in (setting.out / "report.md").read_text()


def test_a_stopped_run_ends_with_the_same_numbers(tmp_path):
    """One epoch of three steps is kept."""
    whole = prepare(small("domainnet-clip-resnet50", epochs=3), tmp_path, methods=("ftp",))
    expected = finished(whole)

    def interrupt(training: str, step: int) -> None:
        if (training, step) == ("ftp", 5):
            raise KeyboardInterrupt

    stopped = whole._replace(out=tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        run(stopped, on_step=interrupt)
    assert numbers(finished(stopped)) == numbers(expected)
    ends = [checkpoint.load(given.out / "checkpoint.pt")["training"]["model"] for given in (whole, stopped)]
    assert all(torch.equal(ends[0][key], value) for key, value in ends[1].items())


def test_the_learning_rate_by_epoch_and_by_step():
    """As torch's cosine by epoch; as WiSE-FT's warm-up and cosine by step, at values worked out by hand."""
    by_epoch = small("domainnet-moco-resnet50", epochs=4)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
    for epoch in range(4):
        for step in range(3):
            # torch multiplies from epoch to epoch, in float64
            assert by_epoch.factor(3, 3 * epoch + step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        cosine.step()
    by_step = replace(by_epoch, warmup=4)  # 12 steps: 4 up, 8 down
    found = [by_step.factor(3, step) for step in range(12)]
    assert found[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert found[6] == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert found[8] == pytest.approx(0.5)
    assert [replace(by_step, warmup=12).factor(3, step) for step in (11, 12)] == [1.0, 1.0]  # ends with the warm-up


@pytest.mark.parametrize("name", ["imagenet-clip-vit", "domainnet-moco-resnet50"])
def test_warm_up_and_clipping_reach_the_steps(name, tmp_path, monkeypatch):
    """Seen after each step: the learning rate, and the norm of all gradients."""
    recipe = small(name, epochs=2)
    recipe = replace(recipe, warmup=4, clip=1e-3) if recipe.warmup is not None else recipe
    seen = []

    def finetune(model, recipe):
        optimizer = METHODS["finetune"](model, recipe)

        def look(*_) -> None:
            norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
            seen.append((optimizer.param_groups[0]["lr"] / recipe.plain_lr, norm.item()))

        optimizer.register_step_post_hook(look)
        return optimizer

    monkeypatch.setattr(train, "METHODS", {"finetune": finetune})
    finished(prepare(recipe, tmp_path, methods=("finetune",)))
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
    monkeypatch.setattr(train, "loss", lambda logits, targets: 0 * logits.sum() + 2)
    recipe = small("domainnet-moco-resnet50", epochs=2, batch_size=5)  # of 12 pictures
    content = finished(prepare(recipe, tmp_path, methods=("finetune",)))
    assert content["results"]["finetune"]["losses"] == [2.0, 2.0]


def test_the_command_and_changed_data(tmp_path, monkeypatch, capsys):
    recipe = small("domainnet-clip-resnet50")
    setting = prepare(recipe, tmp_path)
    monkeypatch.setitem(RECIPES, recipe.name, recipe)
    monkeypatch.chdir(tmp_path)
    given = [recipe.name, "--root", str(setting.root), "--checkpoint", str(setting.checkpoint), "--workers", "0"]
    given += ["--method", "linear", "--device", "cpu", "--out", "run"]
    console = Console(file=StringIO(), width=200)
    assert main([*given, "--epochs", "2"], console) == 0
    assert {file.name for file in Path("run").iterdir()} == {"metrics.json", "report.md", "checkpoint.pt"}
    metrics = Path("run/metrics.json")
    assert len(json.loads(metrics.read_text())["results"]["linear"]["losses"]) == 2
    assert main(given, console) == 2
    assert "holds another run" in capsys.readouterr().err
    metrics.write_text(metrics.read_text().replace('"finished"', '"running"'))
    file = setting.root / "sketch_test.txt"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    assert main([*given, "--epochs", "2"], console) == 2
    assert "the data changed" in capsys.readouterr().err


GIVEN = ["pascal-context", "--root", ".", "--checkpoint", __file__]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "recipe '': choose from domainnet-clip-resnet50,"),
        (["pascal-context"], "--root is needed"),
        (["pascal-context", "--root", "."], "--checkpoint is needed"),
        (["pascal-context", "--root", ".", "--checkpoint", "w.pt"], "--checkpoint w.pt is not a file"),
        (["pascal-context", "--root", "x", "--checkpoint", __file__], "--root x is not a folder"),
        (GIVEN, "expected below --root"),
        (["imagenet-clip-vit", *GIVEN[1:]], "--head is needed: imagenet-clip-vit"),
        (["imagenet-clip-vit", *GIVEN[1:], "--head", "h.pt"], "--head h.pt is not a file"),
        ([*GIVEN, "--head", __file__], "has a new head"),
        ([*GIVEN, "--epochs", "0"], "--epochs 0: must be"),
        ([*GIVEN, "--seed", "-1"], "--seeds -1: give"),
        ([*GIVEN, "--method", "ftp", "ftp"], "each once"),
        ([*GIVEN, "--workers", "-1"], "--workers -1: must be"),
    ],
)
def test_wrong_options(options, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(options, Console(file=StringIO())) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
