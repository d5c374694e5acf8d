"""Clipping by norm, by value, by layer and adaptively."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import hyperopt_ftp as hft
from hyperopt_ftp import tree

from ..support.problems import largest_difference, start
from ..support.updates import CLOSE, F64, gradients, run


def seen_by_the_base(wrap: Callable[[hft.Optimizer], hft.Optimizer], grads: Any, params: Any) -> Any:
    """The gradient that a base gets."""
    return tree.map_tree(torch.sub, params, run(wrap(hft.sgd(lr=1.0)), [grads], params)[0])


def torch_clips(clip: Callable[[Any], Any], grads: dict[str, Tensor]) -> dict[str, Tensor]:
    ps = {name: torch.nn.Parameter(torch.zeros_like(g)) for name, g in grads.items()}
    for name, p in ps.items():
        p.grad = grads[name].clone()
    clip(list(ps.values()))
    return {name: p.grad for name, p in ps.items()}


def one_by_one(ps: list[Any]) -> None:
    for p in ps:
        torch.nn.utils.clip_grad_norm_([p], 0.8)


CLIPS = {
    "value": (lambda opt: hft.clipped_by_value(opt, 0.5), lambda ps: torch.nn.utils.clip_grad_value_(ps, 0.5)),
    "norm": (lambda opt: hft.clipped(opt, 2.5), lambda ps: torch.nn.utils.clip_grad_norm_(ps, 2.5)),
    "layers": (lambda opt: hft.clipped_per_layer(opt, 0.8), one_by_one),
}


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
@pytest.mark.parametrize(("clip", "torchs"), CLIPS.values(), ids=CLIPS)
def test_clipping_equals_torchs(clip: Any, torchs: Any, scale: float):
    params, grads = start(), {name: scale * g for name, g in gradients(1)[0].items()}
    assert largest_difference(seen_by_the_base(clip, grads, params), torch_clips(torchs, grads)) <= CLOSE


def agc(w: Tensor, g: Tensor, ratio: float) -> Tensor:
    """Adaptive clipping, unit by unit (arXiv 2102.06171, equation 3)."""
    units = [(w, g)] if w.ndim < 2 else list(zip(w, g, strict=True))
    new = []
    for unit, slope in units:
        most = ratio * max(unit.norm().item(), 1e-3)
        norm = slope.norm().item()
        new.append(slope * (most / max(norm, 1e-6)) if norm > most else slope)
    return new[0] if w.ndim < 2 else torch.stack(new)


@pytest.mark.parametrize("ratio", [0.0, 1e-2, 0.7, 10.0])
def test_adaptive_clipping_is_that_of_the_paper(ratio: float):
    g = torch.Generator().manual_seed(0)
    shapes = {"number": (), "vector": (5,), "matrix": (4, 3), "kernel": (4, 3, 2, 2)}
    params = {name: torch.randn(shape, generator=g, dtype=F64) for name, shape in shapes.items()}
    params["matrix"] = params["matrix"] * torch.tensor([[0.0], [1e-4], [1.0], [9.0]])  # below the least norm, and above
    grads = gradients(1, params)[0]
    grads["kernel"] = grads["kernel"] * torch.tensor([0.0, 1e-9, 1.0, 9.0]).view(4, 1, 1, 1)
    got = seen_by_the_base(lambda opt: hft.clipped_adaptively(opt, ratio), grads, params)
    for name, w in params.items():
        torch.testing.assert_close(got[name], agc(w, grads[name], ratio), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("clip", [hft.clipped, hft.clipped_per_layer, hft.clipped_adaptively])
def test_layers_on_two_devices_are_clipped(clip):
    with FakeTensorMode():
        params = {"a": torch.ones(3), "b": torch.ones(2, device="cuda")}
        opt = clip(hft.sgd(lr=1.0), 0.5)
        moved, _ = opt.update(params, opt.init(params), params)
    assert [x.device.type for x in moved.values()] == ["cpu", "cuda"]


@pytest.mark.parametrize("clip", [hft.clipped, hft.clipped_per_layer, hft.clipped_by_value, hft.clipped_adaptively])
def test_a_gradient_of_zeros_or_none(clip: Any):
    params = {"a": torch.ones(2, 2, dtype=F64), "b": torch.ones(2, dtype=F64), "none": torch.ones(0, 3, dtype=F64)}
    grads = {"a": torch.zeros(2, 2, dtype=F64), "b": None, "none": torch.ones(0, 3, dtype=F64)}
    opt = clip(hft.sgd(lr=1.0), 0.5)
    assert torch.equal(run(opt, [grads], params)[0]["b"], params["b"])

    def value(h: Any) -> Tensor:
        return opt.update(grads, opt.init(params), params, h)[0]["a"].sum()

    assert all(x.isfinite() for x in tree.leaves(torch.func.grad(value)(opt.hparams)))
