"""Save and go on, bit for bit: at any step, in every execution, with the anchor in the checkpoint or not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import hyperopt_ftp as hft

from ..support.compare import same
from ..support.contract import through_a_file
from ..support.draws import dtypes
from ..support.executions import FLAGS

SHAPES = {"0.weight": (5, 3), "0.bias": (5,), "1.scale": (), "2.kernel": (4, 2, 3, 3)}
STEPS = 6


def adamw(params: Any, **options: Any) -> Any:
    return hft.FTPAdamW(params, lr=0.05, weight_decay=0.1, amsgrad=True, radius_lr=0.05, exclude="0.bias", **options)


def sgd(params: Any, **options: Any) -> Any:
    return hft.FTPSGD(params, lr=0.1, momentum=0.9, radius_lr=0.05, exclude="0.bias", **options)


def wrapped(params: Any, eps: float = 1e-8, **options: Any) -> Any:
    flags = {name: options.pop(name) for name in ("foreach", "fused") if name in options}
    base = torch.optim.NAdam if "fused" in flags else torch.optim.AdamW
    flags = {} if "fused" in flags else flags
    return hft.FTP(base(params, lr=0.05, eps=eps, **flags), radius_lr=0.05, exclude="0.bias", **options)


MAKES = pytest.mark.parametrize("make", [adamw, sgd, wrapped])


def weights(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(5)
    return {name: torch.randn(shape, generator=g).to(dtype) for name, shape in SHAPES.items()}


def parameters(values: dict[str, Tensor]) -> dict[str, torch.nn.Parameter]:
    return {name: torch.nn.Parameter(value.clone()) for name, value in values.items()}


def train(params: dict[str, torch.nn.Parameter], opt: Any, steps: range) -> None:
    """Gradients of each step by its number; the kernel has none in some steps."""
    for t in steps:
        g = torch.Generator().manual_seed(t)
        for name, p in params.items():
            grad = (torch.randn(p.shape, generator=g) + 0.4).to(p.dtype)
            p.grad = None if name == "2.kernel" and t in (0, 3) else grad
        opt.step()


SOURCES: dict[str, Callable[[torch.dtype, Path], dict[str, Any]]] = {
    "start": lambda dtype, folder: {},
    "given": lambda dtype, folder: {"anchor": weights(dtype)},
    "left out": lambda dtype, folder: {"anchor": weights(dtype), "save_anchor": False},
    "narrow": lambda dtype, folder: {"anchor": weights(torch.bfloat16), "anchor_dtype": torch.bfloat16},
    "narrow, left out": lambda dtype, folder: SOURCES["narrow"](dtype, folder) | {"save_anchor": False},
    "zero": lambda dtype, folder: {"anchor": "zero"},
    "file": lambda dtype, folder: {"anchor": in_a_file(dtype, folder)},
}


def in_a_file(dtype: torch.dtype, folder: Path) -> Path:
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file(weights(dtype), folder / "anchor.safetensors")
    return folder / "anchor.safetensors"


@given(
    make=st.sampled_from([adamw, sgd, wrapped]), execution=st.sampled_from(sorted(FLAGS)), dtype=dtypes,
    source=st.sampled_from(sorted(SOURCES)), at=st.integers(0, STEPS),
)  # fmt: skip
def test_a_run_goes_on_bit_for_bit_at_any_step(make, execution, dtype, source, at, tmp_path_factory):
    options = SOURCES[source](dtype, tmp_path_factory.mktemp("anchor")) | FLAGS[execution]
    if make is wrapped and dtype == torch.float16:  # in which torch's AdamW counts, and 1e-8 is 0
        options["eps"] = 1e-4
    straight = parameters(weights(dtype))
    opt = make(straight.items(), **options)
    train(straight, opt, range(at))
    saved = through_a_file({"model": {n: p.data for n, p in straight.items()}, "opt": opt.state_dict()})
    train(straight, opt, range(at, STEPS))
    assert all(p.isfinite().all() for p in straight.values())  # runs of NaN would be equal
    params = parameters(saved["model"])
    again = make(params.items(), **options)
    again.load_state_dict(saved["opt"])
    train(params, again, range(at, STEPS))
    assert same({n: p.data for n, p in params.items()}, {n: p.data for n, p in straight.items()})
    assert same(again.state_dict(), opt.state_dict())
    assert opt.execution == execution
    held = [state for state in opt.state_dict()["state"].values() if "radius" in state]
    assert all(("anchor" in state) == (source in ("start", "given", "narrow")) for state in held)


@MAKES
def test_back_to_an_own_checkpoint_without_the_anchor(make):
    """With the anchor taken at the start, the optimizer that took it still knows it; a new one does not."""
    params = parameters(weights())
    opt = make(params.items(), save_anchor=False)
    train(params, opt, range(3))
    saved = through_a_file({"model": {n: p.data for n, p in params.items()}, "opt": opt.state_dict()})
    train(params, opt, range(3, STEPS))
    expected = {n: p.data.clone() for n, p in params.items()}
    for name, p in params.items():
        p.data.copy_(saved["model"][name])
    opt.load_state_dict(saved["opt"])
    train(params, opt, range(3, STEPS))
    assert same({n: p.data for n, p in params.items()}, expected)
    make(parameters(saved["model"]).items(), anchor=weights()).load_state_dict(saved["opt"])


@MAKES
@pytest.mark.parametrize("given", [{}, {"anchor": weights()}], ids=["start", "given"])
def test_a_checkpoint_with_anchors_loads_where_they_are_left_out_and_back(make, given):
    """Without an anchor of its own, the optimizer takes those of the checkpoint and knows them from then on."""
    params = parameters(weights())
    whole, lean = make(params.items()), make(params.items(), save_anchor=False, **given)
    train(params, whole, range(3))
    lean.load_state_dict(through_a_file(whole.state_dict()))
    saved = through_a_file(lean.state_dict())
    assert all("anchor" not in state for state in saved["state"].values())
    lean.load_state_dict(saved)
    assert same(lean.state_dict(), saved)
    back = make(params.items(), anchor=weights())
    back.load_state_dict(saved)
    assert same(back.state_dict()["state"], whole.state_dict()["state"])


@MAKES
def test_zeros_by_name_go_on_with_the_anchor_zero(make):
    params = parameters(weights())
    saved, others = (
        through_a_file(train(params, opt, range(3)) or opt.state_dict())
        for opt in (make(params.items(), anchor=x) for x in (hft.tree.map_tree(torch.zeros_like, weights()), weights()))
    )
    opt = make(params.items(), anchor="zero")
    opt.load_state_dict(saved)
    with pytest.raises(ValueError, match="anchor of '0.weight' is not the one"):
        opt.load_state_dict(others)


@pytest.mark.parametrize("make", [hft.FTPAdamW, lambda groups: hft.FTP(torch.optim.AdamW(groups))])
@pytest.mark.parametrize(
    ("saved", "loaded", "first"),
    [
        (["a", "b"], ["b", "a"], "number 0 is 'a' there and 'b' here"),
        (["ab"], ["bc"], "number 0 is 'a' there and 'b' here"),
        (["a", "bc"], ["a", "db"], "number 2 is 'c' there and 'b' here"),
        (["a", "bc"], ["a", "bd"], None),
        (["ab"], ["cd"], None),
    ],
)
def test_a_name_in_another_place_is_refused_over_all_groups(make, saved, loaded, first):
    """Each weight would go on with the state and the anchor of another."""
    (params, theirs), (_, opt) = (
        (params, make([{"params": [(name, params[name]) for name in group]} for group in groups]))
        for groups in (saved, loaded)
        for params in [parameters({name: torch.ones(2, 2) for name in "".join(groups)})]
    )
    train(params, theirs, range(2))
    checkpoint = through_a_file(theirs.state_dict())
    if first is not None:
        with pytest.raises(ValueError, match=f"in another order: {first}.*, or delete param_names from its groups if"):
            opt.load_state_dict(checkpoint)
        assert not opt.state_dict()["state"]
        for group in checkpoint["param_groups"]:
            del group["param_names"]
    opt.load_state_dict(checkpoint)
    assert same(opt.state_dict()["state"], checkpoint["state"])


def test_a_checkpoint_that_is_written_into_the_state_is_compared_with_the_given_anchor():
    """As torch.distributed.checkpoint reads it: in place, before it is loaded."""
    params = parameters(weights())
    opt = adamw(params.items(), anchor=weights())
    train(params, opt, range(3))
    saved = opt.state_dict()
    saved["state"][0]["anchor"].add_(1)
    with pytest.raises(ValueError, match="anchor of '0.weight' is not the one"):
        opt.load_state_dict(saved)


def fingerprint(x: Tensor) -> int:
    """Of an anchor that a checkpoint leaves out."""
    w = torch.nn.Parameter(torch.zeros_like(x))
    opt = hft.FTPSGD([("w", w)], lr=0.1, anchor={"w": x}, save_anchor=False, foreach=False)
    w.grad = torch.zeros_like(x)
    opt.step()
    return opt.state_dict()["state"][0]["anchor_fingerprint"]


def test_fingerprints_see_every_bit_and_place():
    x = torch.randn(40, 30)
    assert fingerprint(x) == fingerprint(x.t().contiguous().t()) == fingerprint(x.double())
    assert fingerprint(torch.zeros(3)) == fingerprint(torch.tensor([-0.0, 0.0, 0.0])) == 0
    changed = {fingerprint(x)}
    for i in range(0, 1200, 17):
        y = x.clone()
        y.view(-1)[i] = torch.nextafter(y.view(-1)[i], torch.tensor(9.0))
        changed |= {fingerprint(y), fingerprint(x.flatten().roll(i + 1).view(40, 30))}
    assert len(changed) == 2 * len(range(0, 1200, 17)) + 1
