"""The recipes on tiny data in the layout of the real ones: from end to end, data, networks, and what is refused."""

import math
import os
from dataclasses import fields, replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

pytest.importorskip("timm")
pytest.importorskip("torchvision")

import timm

from experiments.common import checkpoint
from experiments.common.errors import InputError
from experiments.recipes import train
from experiments.recipes.examples import Examples
from experiments.recipes.model import Network, build
from experiments.recipes.paper import RECIPES
from experiments.recipes.pictures import batches
from experiments.recipes.study import DATA, main
from experiments.recipes.train import METHODS

from ..support import tiny_datasets as tiny
from ..support import tiny_recipes
from ..support.tiny_recipes import finished, prepare, run, small

MOCO, IMAGENET, DOMAINNET = "domainnet-moco-resnet50", "imagenet-clip-vit", "domainnet-clip-resnet50"
TRAIN, VALIDATION = "real_train_100_percent_split.txt", "real_val_100_percent_split.txt"


def find(root: Path, recipe):
    return DATA[recipe.data](root, recipe)


def save(content, file: Path) -> Path:
    torch.save(content, file)
    return file


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_from_end_to_end(name, tmp_path):
    recipe = small(name)
    setting = prepare(recipe, tmp_path, methods=tuple(METHODS) if name == MOCO else ("ftp",))
    content = finished(setting)
    assert tuple(content["results"]) == setting.config.methods
    result = content["results"]["ftp"]
    assert set(result["scores"]) == set(find(tmp_path / "data", recipe).tests)
    assert all(0 <= score <= 100 for score in result["scores"].values())
    report = (setting.out / "report.md").read_text()
    assert all(part in report for part in (*result["columns"], recipe.source, *recipe.chosen))
    assert set(recipe.chosen) <= {field.name for field in fields(recipe)}


def test_the_epoch_that_is_best_on_validation_pictures_is_tested(tmp_path, monkeypatch):
    """The first of equals; the scores of validation are given, those of the tests are what they are."""
    setting = prepare(small(MOCO, epochs=4), tmp_path, methods=("finetune",))
    given, weights, score = iter((10.0, 30.0, 30.0, 20.0)), [], train.score

    def scored(model, examples, recipe, workers):
        if examples.files == held_out:
            weights.append({name: value.clone() for name, value in model.state_dict().items()})
            return next(given)
        assert all(torch.equal(value, weights[1][name]) for name, value in model.state_dict().items())
        return score(model, examples, recipe, workers)

    held_out = find(tmp_path / "data", setting.recipe).validation.files
    monkeypatch.setattr(train, "score", scored)
    content = finished(setting)
    assert content["results"]["finetune"]["validation"] == [10.0, 30.0, 30.0, 20.0]
    assert content["data"]["pictures"] == {"train": 12, "validation": 3}


def test_a_stopped_run_ends_with_the_same_numbers(tmp_path):
    """One epoch of three steps is kept."""
    whole = prepare(small(DOMAINNET, epochs=3), tmp_path, methods=("ftp",))
    expected = finished(whole)["results"]["ftp"]

    def interrupt(training: str, step: int) -> None:
        if (training, step) == ("ftp", 5):
            raise KeyboardInterrupt

    stopped = whole._replace(out=tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        run(stopped, on_step=interrupt)
    assert finished(stopped)["results"]["ftp"] | {"seconds": 0} == expected | {"seconds": 0}
    ends = [checkpoint.load(given.out / "checkpoint.pt")["training"]["model"] for given in (whole, stopped)]
    assert all(torch.equal(ends[0][key], value) for key, value in ends[1].items())


def test_the_learning_rate_by_epoch_and_by_step():
    """As torch's cosine by epoch; as WiSE-FT's warm-up and cosine by step, at values worked out by hand."""
    by_epoch = small(MOCO, epochs=4)
    assert [by_epoch.factor(3, step) for step in (0, 2, 3, 6)] == pytest.approx([1, 1, (1 + 0.5**0.5) / 2, 0.5])
    by_step = replace(by_epoch, warmup=4)  # 12 steps: 4 up, 8 down
    found = [by_step.factor(3, step) for step in range(12)]
    assert found[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert (found[6], found[8]) == (pytest.approx((1 + math.sqrt(0.5)) / 2), pytest.approx(0.5))
    assert [replace(by_step, warmup=12).factor(3, step) for step in (11, 12)] == [1.0, 1.0]  # ends with the warm-up


@pytest.mark.parametrize("name", [IMAGENET, MOCO])
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


def test_classes_of_the_imagenets(tmp_path):
    tests = find(tiny.imagenet(tmp_path), small(IMAGENET)).tests
    assert (tests["imagenet-a"].classes, tests["imagenet-r"].classes) == ((1, 2), (2, 3))
    assert tests["imagenetv2"].classes is None
    assert tests["imagenetv2"].targets == (0, 1, 2, 3)
    assert set(tests["imagenet-a"].targets) == {1, 2}


def test_how_a_test_picture_is_cut(tmp_path):
    """Black, but for a white stripe at the right, which is cut off; the interpolation is the recipe's."""
    picture = torch.zeros(40, 80, 3, dtype=torch.uint8)
    picture[:, 70:] = 200
    Image.fromarray(picture.numpy()).save(tmp_path / "a.png")
    some, cut = Examples(tmp_path, ("a.png",), (0,)), small(DOMAINNET)
    (image, _), *_ = batches(some, cut, 0)
    assert image.shape == (1, 3, 32, 32)
    assert image.max() == 0
    tiny.picture(tmp_path / "a.png", 0)  # noise, as a crop of black is black either way
    for seed in (None, 1):
        ways = [next(batches(some, replace(cut, interpolation=way), 0, seed))[0] for way in ("bilinear", "bicubic")]
        assert not torch.equal(*ways)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_processes_change_no_picture_and_say_what_is_wrong_with_one(tmp_path):
    recipe = small(DOMAINNET)
    examples = find(tiny.domainnet(tmp_path), recipe).train
    alone, shared, other = (list(batches(examples, recipe, *how)) for how in ((0, 5), (2, 5), (0, 6)))
    assert all(torch.equal(a, b) and torch.equal(x, y) for (a, x), (b, y) in zip(alone, shared, strict=True))
    assert not torch.equal(alone[0][0], other[0][0])
    file = tmp_path / examples.files[0]
    file.write_bytes(b"GIF89a of a kind")
    for workers in (0, 1):
        with pytest.raises(InputError, match="^cannot read .*0.jpg") as caught:
            list(batches(examples, recipe, workers))
        assert "\n" not in str(caught.value)
    file.unlink()
    file.symlink_to(Path(__file__))  # made after the lists were checked
    with pytest.raises(InputError, match="leads to .*test_recipes"):
        list(batches(examples, recipe, 0))


def test_accuracy_among_some_classes_by_hand(monkeypatch):
    logits = torch.tensor([[9.0, 1, 2, 0], [0, 5, 1, 9], [0, 1, 2, 3]])
    monkeypatch.setattr(train, "batches", lambda *_: [(torch.zeros(3), torch.tensor([2, 2, 2]))])
    model = Network(torch.nn.Flatten(), small(DOMAINNET, projection=12))
    model.forward = lambda images: logits
    for classes, expected in (((1, 2), 200 / 3), (None, 0)):
        some = Examples(Path(), ("a", "b", "c"), (2, 2, 2), classes)
        assert train.score(model, some, small(DOMAINNET, classes=4), 0) == pytest.approx(expected)


def append(file: str, line: str):
    return lambda root: (root / file).write_text((root / file).read_text() + line + "\n")


def link_out(root: Path, place: str) -> None:
    """A link to a picture that exists, but not below the root."""
    tiny.picture(root.parent / "secret" / "0.jpg", 0)
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
        (DOMAINNET, lambda r: (r / "painting_test.txt").unlink(), "no file .*painting_test.txt; the layout"),
        (DOMAINNET, append(TRAIN, "real/class_0/0.jpg x"), "line 13: .* is not a picture and its class, from 0 to 2"),
        (DOMAINNET, append(TRAIN, "real/class_0/0.jpg 3"), "line 13: .* is not a picture and its class, from 0 to 2"),
        (DOMAINNET, append(TRAIN, "real/class_0/9.jpg 0"), "line 13: there is no picture"),
        (DOMAINNET, append(TRAIN, "../a/b.jpg 0"), "outside of --root"),
        (DOMAINNET, append(TRAIN, "/etc/b.jpg 0"), "outside of --root"),
        (DOMAINNET, append(TRAIN, "real/class_0/0.jpg 1"), "'class_0' is 1 .* and 0 elsewhere"),
        (DOMAINNET, zebra, "the class 'zebra' is tested, but real_train_100_percent_split.txt lacks it"),
        (DOMAINNET, link_in_list, "leads to .*secret"),
        (DOMAINNET, append(VALIDATION, "real/class_0/0.jpg 0"), "0.jpg is both in real_train"),
        (IMAGENET, lambda r: (r / "imagenet-a").rename(r / "A"), "no folder .*imagenet-a"),
        (IMAGENET, lambda r: (r / "train/n2").mkdir(), "train/n2 holds no picture"),
        (IMAGENET, lambda r: tiny.by_class(r / "train", ["n2"], 1), "has 5 class folders, not 4"),
        (IMAGENET, lambda r: tiny.by_class(r / "imagenetv2", ["4"], 1), "imagenetv2/4 is none of the classes"),
        (IMAGENET, lambda r: link_out(r, "val/n9"), "leads to .*secret"),
    ],
)
def test_wrong_data(name, spoil, said, tmp_path):
    recipe, root = small(name), tmp_path / "data"
    tiny_recipes.DATA[recipe.data][0](root)
    find(root, recipe)
    spoil(root)
    with pytest.raises(InputError, match=said):
        find(root, recipe)


def test_a_zero_shot_head_is_where_training_starts_and_is_constrained(tmp_path):
    recipe = small(IMAGENET)
    setting = prepare(recipe, tmp_path)
    file = Path(setting.config.head)
    given = torch.load(file, weights_only=True)
    model = build(recipe, setting.checkpoint, file)
    assert torch.equal(model.head.weight, given)
    assert model.head.bias is None
    assert model.backbone.head.bias is None
    pictures = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    features = model.eval().backbone((pictures.float() / 255 - model.mean) / model.std)
    expected = features / features.norm(dim=-1, keepdim=True) @ given.T
    assert torch.allclose(model(pictures), expected, atol=1e-5)  # 5 products of about 1 in float32
    optimizer = METHODS["ftp"](model, recipe)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert set(optimizer.radii()) == {name for name, _ in model.named_parameters()}
    for content in (torch.ones(32, 4), {"bias": torch.ones(4)}):
        with pytest.raises(InputError, match="is no classifier of 4 rows and 32 columns"):
            build(recipe, setting.checkpoint, save(content, tmp_path / "wrong.pt"))


def test_a_linear_probe_leaves_the_backbone_as_it_is(tmp_path):
    recipe = small(MOCO)
    setting = prepare(recipe, tmp_path, methods=("linear",))
    before = build(recipe, setting.checkpoint).backbone.state_dict()
    finished(setting)
    after = torch.load(setting.out / "checkpoint.pt", weights_only=True)["training"]["model"]
    assert all(torch.equal(after[f"backbone.{name}"], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda own: {k: v for k, v in own.items() if k != "conv1.0.weight"}, "does not fit .*conv1.0.weight"),
        (lambda own: {**own, "layer9.a": torch.ones(1)}, "does not fit .*layer9.a"),
        (lambda own: {**own, "conv1.0.weight": torch.ones(1)}, "does not fit .*conv1.0.weight"),
        (lambda own: [1, 2], "cannot be read .* a file of tensors"),
        (lambda own: torch.nn.Linear(2, 2), "cannot be read .* a file of tensors"),
    ],
)
def test_wrong_weights(content, said, tmp_path):
    own = timm.create_model("test_resnet", num_classes=5).state_dict()
    with pytest.raises(InputError, match=f"(?s){said}"):
        build(small(MOCO), save(content(own), tmp_path / "w.pt"))


def test_weights_under_other_names(tmp_path):
    """MoCoV3's file, and safetensors."""
    from safetensors.torch import save_file

    own = timm.create_model("test_resnet", num_classes=5).state_dict()
    moco = {f"module.{net}_encoder.{k}": v for k, v in own.items() for net in ("base", "momentum")}
    moco = {k: v if "base" in k else torch.zeros_like(v) for k, v in moco.items()}
    save_file(own, tmp_path / "w.safetensors")
    for file in (save({"state_dict": moco, "epoch": 1}, tmp_path / "m.tar"), tmp_path / "w.safetensors"):
        loaded = build(small(MOCO), file).backbone.state_dict()
        assert all(torch.equal(value, own[name]) for name, value in loaded.items())


GIVEN = [DOMAINNET, "--root", ".", "--checkpoint", __file__]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "recipe '': choose from domainnet-clip-resnet50,"),
        ([DOMAINNET], "--root None is not a folder"),
        ([DOMAINNET, "--root", "."], "--checkpoint None is not a file"),
        ([DOMAINNET, "--root", ".", "--checkpoint", "w.pt"], "--checkpoint w.pt is not a file"),
        (GIVEN, "there is no file real_train_100_percent_split.txt"),
        ([IMAGENET, *GIVEN[1:]], "imagenet-clip-vit: --head is needed"),
        ([IMAGENET, *GIVEN[1:], "--head", "h.pt"], "--head h.pt is not a file"),
        ([*GIVEN, "--head", __file__], "--head is not for it"),
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
