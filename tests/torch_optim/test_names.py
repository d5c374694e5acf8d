from __future__ import annotations

import copy

import pytest
import torch

import hyperopt_ftp as hft


@pytest.mark.parametrize(
    ("prefix", "bare"),
    [
        ("", ""),
        ("module.", ""),
        ("_orig_mod.", ""),
        ("module._orig_mod.blocks.0._checkpoint_wrapped_module.", "blocks.0."),
        ("_fsdp_wrapped_module.a._fsdp_wrapped_module.", "a."),
        ("encoder.module.", "encoder.module."),
    ],
)
@pytest.mark.parametrize("whole", [False, True])
def test_patterns_and_anchors_see_through_wrappers(prefix, bare, whole):
    body, head = (torch.nn.Parameter(torch.zeros(1, 2)) for _ in range(2))
    named = [(f"{prefix}body.weight", body), (f"{prefix}head.weight", head)]
    anchor = {f"{bare}body.weight": torch.ones(1, 2)}
    opt = hft.FTPSGD(named, lr=0.1, exclude=f"{prefix if whole else bare}head.*", anchor=anchor)
    for p in (body, head):
        p.grad = torch.zeros_like(p)
    opt.step()
    assert list(opt.radii()) == [f"{prefix}body.weight"]
    assert torch.equal(opt.state[body]["anchor"], torch.ones(1, 2))


def test_a_layer_that_is_called_as_a_wrapper_keeps_its_name():
    for name, other in (("encoder.module.weight", "encoder.weight"), ("module", "")):
        with pytest.raises(ValueError, match="anchor has no entry for"):
            hft.FTPSGD([(name, torch.nn.Parameter(torch.zeros(2)))], anchor={other: torch.zeros(2)})


@pytest.mark.parametrize("what", [lambda head: [head.weight], lambda head: head], ids=["tensors", "module"])
def test_tensors_and_modules_can_be_excluded_without_names(what):
    a, head = torch.nn.Parameter(torch.zeros(1, 2)), torch.nn.Linear(2, 1, bias=False)
    opt = hft.FTPAdamW([a, head.weight], exclude=what(head))
    for p in (a, head.weight):
        p.grad = torch.ones_like(p)
    opt.step()
    assert list(opt.radii()) == [0]


def bert() -> torch.nn.Module:
    """Named as in transformers, with a buffer."""
    model, model.bert = (torch.nn.Module() for _ in range(2))
    model.bert.embeddings = torch.nn.Embedding(5, 3)
    model.bert.register_buffer("position_ids", torch.arange(4))
    model.bert.encoder = torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(2)))
    model.classifier = torch.nn.Linear(3, 2)
    return model


def advice(build, **names) -> dict[str, torch.Tensor]:
    """What the text of an error says to write as an anchor, evaluated."""
    with pytest.raises(ValueError, match="; write anchor=") as caught:
        build()
    return eval(str(caught.value).partition("write anchor=")[2], names)


def test_a_backbones_weights_get_the_prefix_that_the_error_says():
    model = bert()
    params = dict(model.named_parameters())
    for weights in (model.bert.state_dict(), dict(model.bert.named_parameters())):
        anchor = advice(lambda w=weights: hft.FTPSGD(params.items(), anchor=w), state_dict=weights)
        assert anchor.keys() >= {name for name in params if name.startswith("bert.")}
        with pytest.raises(ValueError, match=r"no entry for 2 of 7 parameters: .* or exclude=\['classifier\.\*'\]$"):
            hft.FTPSGD(params.items(), anchor=anchor)
        hft.FTPSGD(params.items(), anchor=anchor, exclude=["classifier.*"])


def test_a_file_without_the_prefix(tmp_path):
    files = pytest.importorskip("safetensors.torch")
    model, path = bert(), str(tmp_path / "bert.safetensors")
    files.save_file(model.bert.state_dict(), path)
    params = dict(model.named_parameters())
    anchor = advice(lambda: hft.FTPSGD(params.items(), anchor=path), safetensors=__import__("safetensors"))
    hft.FTPSGD(params.items(), anchor=anchor, exclude="classifier.*")


@pytest.mark.parametrize(
    ("title", "make"), [("FTPAdamW", hft.FTPAdamW), ("SPD", lambda p, **own: hft.SPD(torch.optim.Adam(p), **own))]
)
def test_an_exclude_that_leaves_nothing_is_said_where_the_class_is_called(title, make):
    with pytest.warns(UserWarning, match=f"leaves {title} no parameter of 7 to hold, until") as caught:
        make(bert().named_parameters(), exclude=["bert.*", "classifier.*"])
    assert [w.filename for w in caught] == [__file__]
    assert make(bert().named_parameters(), exclude=None).param_groups[0]["constrained"] == [True] * 7


def test_groups_that_say_so_themselves_are_no_surprise():
    """The head alone at first; the rest is to be held when it comes."""
    model = bert()
    head = {"params": list(model.classifier.named_parameters()), "constrained": False}
    opt = hft.FTPSGD([head])
    opt.add_param_group({"params": [(f"bert.{n}", p) for n, p in model.bert.named_parameters()]})
    assert [group["constrained"][0] for group in opt.param_groups] == [False, True]


def test_tied_weights_are_one_parameter():
    model = torch.nn.ModuleDict({"table": torch.nn.Embedding(6, 4), "head": torch.nn.Linear(4, 6, bias=False)})
    model["head"].weight = model["table"].weight
    anchor = copy.deepcopy(model.state_dict())
    assert len(anchor) == 2
    opt = hft.FTPSGD(model.named_parameters(), lr=0.1, anchor=anchor)
    with pytest.warns(UserWarning, match="no parameter of 1 to hold"):
        free = hft.FTPSGD(model.named_parameters(), lr=0.1, exclude=model["head"])
    model["table"].weight.sum().backward()
    opt.step()
    free.step()
    assert list(opt.radii()) == ["table.weight"]
    assert free.radii() == {}
