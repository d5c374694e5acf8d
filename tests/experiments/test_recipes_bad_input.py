"""What the recipes refuse: the message names the first thing found wrong and shows the expected layout."""

import os
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

pytest.importorskip("timm")
pytest.importorskip("torchmetrics")
pytest.importorskip("torchvision")

import timm

from experiments.common import pictures
from experiments.common.errors import InputError
from experiments.recipes.benchmark import find
from experiments.recipes.cli import main
from experiments.recipes.model import build
from experiments.recipes.pictures import batches
from experiments.recipes.run import run

from ..support import tiny_datasets as tiny
from ..support.tiny_recipes import DATA, prepare, small

DOMAINNET, IMAGENET, PASCAL = "domainnet-clip-resnet50", "imagenet-clip-vit", "pascal-context"
TASKS, WNID, TRAIN = "imagenet-r-continual", tiny.WNIDS[0], "real_train_100_percent_split.txt"
PASCAL_MASK = "semseg/pascal-context/a.png"


def append(file: str, line: str):
    return lambda root: (root / file).write_text((root / file).read_text() + line + "\n")


def swap(file: str, old: str, new: str):
    return lambda root: (root / file).write_text((root / file).read_text().replace(old, new, 1))


def lists_without_a_class(root: Path, part: str) -> None:
    file = root / f"imagenet-r_{part}.yaml"
    lines = [line for line in file.read_text().splitlines() if WNID not in line and line != "- 3"]
    file.write_text("\n".join(lines) + "\n")


def move_out(root: Path, place: str) -> None:
    """A folder that is a link to where it was moved, which is not below the root."""
    (root / place).rename(root.parent / "secret")
    os.symlink(root.parent / "secret", root / place)


def link_out(root: Path, place: str) -> None:
    """A link to a picture that exists, but not below the root."""
    tiny.picture(root.parent / "secret" / "0.jpg", 0)
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    os.symlink(root.parent / "secret", root / place)


@pytest.mark.parametrize(
    ("name", "spoil", "said"),
    [
        (DOMAINNET, lambda r: (r / "painting_test.txt").unlink(), r"no file .*painting_test.txt\n.*"),
        (DOMAINNET, append(TRAIN, "real/class_0/0.jpg"), "line 13: .* is not a picture and"),
        (DOMAINNET, append(TRAIN, "real/class_0/0.jpg x"), "line 13: .* is not a picture"),
        (DOMAINNET, append(TRAIN, "real/class_0/0.jpg 3"), "class 3, but there are 3"),
        (DOMAINNET, append(TRAIN, "real/class_0/9.jpg 0"), "line 13: there is no picture"),
        (DOMAINNET, append(TRAIN, "../a/b.jpg 0"), r"'\.\./a/b.jpg' must lie below --root"),
        (DOMAINNET, append(TRAIN, "/etc/b.jpg 0"), "'/etc/b.jpg' must lie below --root"),
        (
            DOMAINNET,
            append(TRAIN, "real/class_0/0.jpg 1"),
            "'class_0' is 1 .* and 0 elsewhere",
        ),
        (
            DOMAINNET,
            lambda r: (tiny.picture(r / "sketch/zebra/0.jpg", 0), append("sketch_test.txt", "sketch/zebra/0.jpg 2")(r)),
            "has the class 'zebra' .* which real_train_100_percent_split.txt lacks",
        ),
        (
            DOMAINNET,
            lambda r: (link_out(r, "real/away"), append(TRAIN, "real/away/0.jpg 0")(r)),
            "leads to .*secret",
        ),
        (IMAGENET, lambda r: (r / "imagenet-a").rename(r / "A"), "no folder .*imagenet-a\n.*"),
        (IMAGENET, lambda r: (r / "train/n2").mkdir(), "train/n2 holds no picture"),
        (IMAGENET, lambda r: tiny.by_class(r / "train", ["n2"], 1), "has 5 class folders, not 4"),
        (
            IMAGENET,
            lambda r: tiny.by_class(r / "imagenetv2", ["4"], 1),
            "imagenetv2/4 is none of the classes",
        ),
        (
            IMAGENET,
            lambda r: tiny.by_class(r / "imagenet-r", ["n9"], 1),
            "imagenet-r/n9 is none of the classes",
        ),
        (IMAGENET, lambda r: link_out(r, "val/n9"), "leads to .*secret"),
        (DOMAINNET, lambda r: (r / TRAIN).unlink(), r"no file .*real_train_100_percent_split.txt\n.*\n.*GT-RIPL/FTP"),
        (DOMAINNET, lambda r: (r / "real_val_100_percent_split.txt").unlink(), "no file .*real_val_100_percent"),
        (DOMAINNET, append("real_val_100_percent_split.txt", "real/class_0/0.jpg 0"), "0.jpg is both in real_train"),
        (TASKS, lambda r: (r / "imagenet-r_test.yaml").unlink(), r"no file .*imagenet-r_test.yaml\n.*\n.*CODA-Prompt"),
        (TASKS, lambda r: (r / "imagenet-r").rename(r / "R"), "no folder .*imagenet-r"),
        (TASKS, append("imagenet-r_test.yaml", "- 1"), "has 4 pictures and 5 classes"),
        (TASKS, append("imagenet-r_test.yaml", "more: 1"), "line 11: 'more: 1' is neither"),
        (TASKS, swap("imagenet-r_test.yaml", "- 3", "- 4"), "the class '4' is none of 0 ... 3"),
        (TASKS, swap("imagenet-r_test.yaml", "- 3", "- x"), "the class 'x' is none of 0 ... 3"),
        (TASKS, swap("imagenet-r_test.yaml", "- 3", "- 2"), "two numbers in the lists, or a number two folders"),
        (TASKS, swap("imagenet-r_test.yaml", f"{WNID}/4", f"{WNID}/9"), "there is no picture .*9.JPEG"),
        (TASKS, swap("imagenet-r_test.yaml", f"{WNID}/4", f"{WNID}/0"), "0.JPEG is listed 2 times"),
        (TASKS, swap("imagenet-r_test.yaml", f"{WNID}/4", "../4"), "does not end in a class folder"),
        (TASKS, swap("imagenet-r_test.yaml", f"data/imagenet-r/test/{WNID}/4", "4"), "does not end in a class folder"),
        (TASKS, lambda r: lists_without_a_class(r, "test"), "imagenet-r_test.yaml has pictures of 3 classes, not 4"),
        (TASKS, lambda r: lists_without_a_class(r, "train"), "imagenet-r_train.yaml has pictures of 3 classes"),
        (TASKS, lambda r: move_out(r, f"imagenet-r/{WNID}"), "leads to .*secret"),
        (
            PASCAL,
            lambda r: (r / "ImageSets/Context/val.txt").unlink(),
            "no file .*val.txt",
        ),
        (PASCAL, lambda r: (r / PASCAL_MASK).unlink(), "lists 'a', but there is no file .*a.png"),
        (PASCAL, append("ImageSets/Context/train.txt", "../a"), "must be a name without folders"),
        (
            "surface-normals",
            lambda r: (r / "normals_masked/b.png").unlink(),
            "lists 'b', but there is no file .*b.png",
        ),
        (
            "surface-normals",
            lambda r: (r / "normals_masked").rename(r / "normals_distill"),
            r"no file .*normals_masked.a.png\n.*\n.*\n.*\n.* black is no normal. Made of normals_distill/",
        ),
        ("human-parts", lambda r: (r / "ImageSets/Parts/train.txt").write_text("\n"), "lists no picture"),
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


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.full((40, 40), 3), "has the class 3; allowed are 0 ... 2 and 255"),
        (np.zeros((40, 40, 3)), "has the mode RGB"),
        (np.zeros((40, 39)), r"has \(40, 40\) pixels and its mask .* \(39, 40\)"),
    ],
)
def test_wrong_masks(values, said, tmp_path):
    recipe = small(PASCAL)
    examples = find(DATA["pascal"][0](tmp_path), recipe).stages[0].examples
    tiny.mask(tmp_path / PASCAL_MASK, values)
    with pytest.raises(InputError, match=said):
        list(batches(examples, recipe, 0))


def test_wrong_pictures(tmp_path, monkeypatch):
    recipe = small(DOMAINNET)
    examples = find(tiny.domainnet(tmp_path / "data"), recipe).stages[0].examples
    file = tmp_path / "data" / examples.files[0]
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "PIXELS", 40 * 40 - 1)
        with pytest.raises(InputError, match="0.jpg is too large"):
            list(batches(examples, recipe, 0))
    file.write_bytes(b"GIF89a of a kind")
    with pytest.raises(InputError, match="cannot read .*0.jpg"):
        list(batches(examples, recipe, 0))
    file.unlink()
    file.symlink_to(Path(__file__))  # made after the lists were checked
    with pytest.raises(InputError, match="leads to .*test_recipes_bad_input"):
        list(batches(examples, recipe, 0))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_an_error_in_another_process_is_as_short(tmp_path):
    recipe = small(DOMAINNET)
    examples = find(tiny.domainnet(tmp_path), recipe).stages[0].examples
    (tmp_path / examples.files[0]).write_bytes(b"nothing")
    with pytest.raises(InputError, match="^cannot read ") as caught:
        list(batches(examples, recipe, 1))
    assert "\n" not in str(caught.value)


def save(content, file: Path) -> Path:
    torch.save(content, file)
    return file


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda own: {k: v for k, v in own.items() if k != "conv1.0.weight"}, r"1 missing \(conv1.0.weight\)"),
        (lambda own: {**own, "layer9.a": torch.ones(1)}, r"1 unexpected \(layer9.a\)"),
        (lambda own: {**own, "conv1.0.weight": torch.ones(1)}, r"1 of another shape \(conv1.0.weight \[1\], not \["),
        (
            lambda own: {f"x.{k}": v for k, v in own.items()},
            r"\d\d missing \(\S+, \S+, \S+, ...\); \d+ unexpected \(x.",
        ),
        (lambda own: [1, 2], "holds no state_dict"),
        (lambda own: torch.nn.Linear(2, 2), "cannot be read .* a file of tensors"),
    ],
)
def test_wrong_weights(content, said, tmp_path):
    recipe = small("domainnet-moco-resnet50")
    own = timm.create_model("test_resnet", num_classes=5).state_dict()
    with pytest.raises(InputError, match=said):
        build(recipe, save(content(own), tmp_path / "w.pt"), dense=False)


def test_weights_under_other_names(tmp_path):
    """MoCoV3's file, safetensors, and OpenAI's names of CLIP."""
    from safetensors.torch import save_file

    recipe = small("domainnet-moco-resnet50")
    own = timm.create_model("test_resnet", num_classes=5).state_dict()
    moco = {f"module.{net}_encoder.{k}": v for k, v in own.items() for net in ("base", "momentum")}
    moco = {k: v if "base" in k else torch.zeros_like(v) for k, v in moco.items()}
    save_file(own, tmp_path / "w.safetensors")
    for file in (save({"state_dict": moco, "epoch": 1}, tmp_path / "m.tar"), tmp_path / "w.safetensors"):
        loaded = build(recipe, file, dense=False).backbone.state_dict()
        assert all(torch.equal(value, own[name]) for name, value in loaded.items())

    recipe = small("domainnet-clip-vit", model="vit_xsmall_patch16_clip_224")
    own = timm.create_model(recipe.model, img_size=32, num_classes=recipe.projection).state_dict()
    del own["head.bias"]  # timm's, zero
    names = [("patch_embed.proj", "conv1"), ("blocks.", "transformer.resblocks."), ("norm_pre", "ln_pre")]
    names += [("attn.qkv.", "attn.in_proj_"), ("attn.proj", "attn.out_proj"), ("mlp.fc1", "mlp.c_fc")]
    names += [("mlp.fc2", "mlp.c_proj"), ("norm1", "ln_1"), ("norm2", "ln_2")]
    clip = {"visual.proj": own.pop("head.weight").T, "logit_scale": torch.ones(())}
    for name, value in own.items():
        for ours, theirs in names:
            name = name.replace(ours, theirs)
        name = f"ln_post.{name[5:]}" if name.startswith("norm.") else name
        named = {"cls_token": ("class_embedding", value.reshape(-1)), "pos_embed": ("positional_embedding", value[0])}
        name, value = named.get(name, (name, value))
        clip[f"visual.{name}"] = value
    loaded = build(recipe, save(clip, tmp_path / "c.pt"), dense=False).backbone.state_dict()
    assert torch.equal(
        loaded.pop("head.weight").T, clip["visual.proj"]
    )  # the projection to CLIP's texts, without a bias
    assert all(torch.equal(value, own[name]) for name, value in loaded.items())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (torch.ones(32, 4), r"has the shape \[32, 4\]; give a classifier of 4 rows and 32 columns"),
        ({"bias": torch.ones(4)}, "has no tensor, or none called 'weight'"),
        ([1], "has no tensor"),
        (torch.nn.Linear(5, 4), "--head .* cannot be read"),
    ],
)
def test_a_wrong_zero_shot_head(content, said, tmp_path):
    recipe = small(IMAGENET)
    setting = prepare(recipe, tmp_path)
    with pytest.raises(InputError, match=said):
        build(recipe, setting.checkpoint, dense=False, head=save(content, tmp_path / "h.pt"))


def test_batches_larger_than_a_task_are_refused_where_the_last_is_dropped(tmp_path):
    recipe = small(TASKS, batch_size=9)
    setting = prepare(recipe, tmp_path)
    with pytest.raises(InputError, match="--batch-size 9: task 1 has 8 pictures, .* give at most 8"):
        run(recipe, setting, Console(file=StringIO()))
    assert not setting.out.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "recipe None: choose from domainnet-clip-resnet50,"),
        (["no-such"], "recipe no-such: choose from"),
        (["pascal-context"], "--root is needed"),
        (["pascal-context", "--root", "."], "--checkpoint is needed"),
        (["pascal-context", "--root", ".", "--checkpoint", "w.pt"], "--checkpoint w.pt is not a file"),
        (["pascal-context", "--root", "x", "--checkpoint", __file__], "--root x is not a folder"),
        (["pascal-context", "--root", ".", "--checkpoint", __file__], "expected below --root"),
        (["imagenet-clip-vit", "--root", ".", "--checkpoint", __file__], "--head is needed: imagenet-clip-vit"),
        (["imagenet-clip-vit", "--root", ".", "--checkpoint", __file__, "--head", "h.pt"], "--head h.pt is not a file"),
        (["pascal-context", "--root", ".", "--checkpoint", __file__, "--head", __file__], "has a new head"),
        (["pascal-context", "--root", ".", "--checkpoint", __file__, "--percent", "5"], "--percent is for the recipes"),
        (["pascal-context", "--root", ".", "--checkpoint", __file__, "--epochs", "0"], "--epochs 0: must be"),
        (["pascal-context", "--root", ".", "--checkpoint", __file__, "--seed", "-1"], "--seed -1: must be"),
        (["pascal-context", "--root", ".", "--checkpoint", __file__, "--method", "ftp", "ftp"], "each once"),
        (["pascal-context", "--root", ".", "--checkpoint", __file__, "--workers", "-1"], "--workers -1: must be"),
    ],
)
def test_wrong_options(options, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(options, Console(file=StringIO())) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["sketch_test.txt", "real_val_100_percent_split.txt"])
def test_changed_data_are_noticed(name, tmp_path):
    recipe = small(DOMAINNET, epochs=1)
    setting = prepare(recipe, tmp_path, methods=("linear",))
    run(recipe, setting, Console(file=StringIO()))
    metrics = setting.out / "metrics.json"
    metrics.write_text(metrics.read_text().replace('"finished"', '"running"'))
    (setting.root / name).write_text("".join((setting.root / name).read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match="the pictures changed"):
        run(recipe, setting, Console(file=StringIO()))
