"""The networks of the recipes: what is loaded, what is new, what is constrained and what stays as it is."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("timm")
pytest.importorskip("torchmetrics")
pytest.importorskip("torchvision")

import timm

from experiments.recipes.methods import METHODS
from experiments.recipes.model import Network, build
from experiments.recipes.paper import RECIPES

from ..support import tiny_datasets as tiny
from ..support.tiny_recipes import finished, prepare, small


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


def test_a_linear_probe_leaves_the_backbone_as_it_is(tmp_path):
    recipe = small("domainnet-moco-resnet50")
    setting = prepare(recipe, tmp_path, methods=("linear",))
    before = build(recipe, setting.checkpoint, dense=False).backbone.state_dict()
    finished(recipe, setting)
    after = torch.load(setting.out / "checkpoint.pt", weights_only=True)["model"]
    assert all(torch.equal(after[f"backbone.{name}"], value) for name, value in before.items())


def test_pictures_without_normalisation():
    recipe = small("imagenet-r-continual")
    assert recipe.mean == RECIPES[recipe.name].mean
    network = Network(torch.nn.Flatten(), replace(recipe, projection=12), dense=False)
    pictures = torch.randint(256, (2, 3, 2, 2), dtype=torch.uint8)
    assert torch.equal(network(pictures), network.head(pictures.flatten(1) / 255))
