"""The networks of the recipes: what is loaded, refused, new, constrained, and what stays as it is."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("timm")
pytest.importorskip("torchmetrics")
pytest.importorskip("torchvision")

import timm

from experiments.common.errors import InputError
from experiments.recipes.model import Network, build
from experiments.recipes.paper import RECIPES
from experiments.recipes.train import METHODS

from ..support import tiny_datasets as tiny
from ..support.tiny_recipes import finished, prepare, small


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
    file = Path(setting.config.head)
    given = torch.load(file, weights_only=True)
    model = build(recipe, setting.checkpoint, dense=False, head=file)
    assert torch.equal(model.head.weight, given)
    assert model.head.bias is None
    assert model.backbone.head.bias is None
    pictures = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    features = model.eval().backbone((pictures.float() / 255 - model.mean) / model.std)
    expected = features / features.norm(dim=-1, keepdim=True) @ given.T
    assert torch.allclose(model(pictures), expected, atol=1e-5)  # 5 products of about 1 in float32
    assert anchored(METHODS["ftp"](model, recipe)) == {name for name, _ in model.named_parameters()}
    other = torch.nn.Linear(tiny.FEATURES, recipe.classes)
    torch.save(other.state_dict(), tmp_path / "other.pt")
    again = build(recipe, setting.checkpoint, dense=False, head=tmp_path / "other.pt")
    assert torch.equal(again.head.weight, other.weight)
    for content, said in (
        (torch.ones(32, 4), r"has the shape \[32, 4\]; give a classifier of 4 rows"),
        ([1], "no tensor"),
    ):
        with pytest.raises(InputError, match=said):
            build(recipe, setting.checkpoint, dense=False, head=save(content, tmp_path / "wrong.pt"))


def test_a_linear_probe_leaves_the_backbone_as_it_is(tmp_path):
    recipe = small("domainnet-moco-resnet50")
    setting = prepare(recipe, tmp_path, methods=("linear",))
    before = build(recipe, setting.checkpoint, dense=False).backbone.state_dict()
    finished(setting)
    after = torch.load(setting.out / "checkpoint.pt", weights_only=True)["training"]["model"]
    assert all(torch.equal(after[f"backbone.{name}"], value) for name, value in before.items())


def test_pictures_are_scaled_as_the_recipe_says():
    recipe = small("domainnet-moco-resnet50")
    network = Network(torch.nn.Flatten(), replace(recipe, projection=12), dense=False)
    pictures = torch.randint(256, (2, 3, 2, 2), dtype=torch.uint8)
    mean, std = (torch.tensor(given).view(3, 1, 1) for given in (RECIPES[recipe.name].mean, recipe.std))
    assert torch.equal(network(pictures), network.head(((pictures / 255 - mean) / std).flatten(1)))


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
