"""Clipping by norm, by value, by layer and adaptively."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.testing import strategies

from ..support.problems import largest_difference
from ..support.updates import CLOSE, F64, run


def seen_by_the_base(wrap: Callable[[hft.Optimizer], hft.Optimizer], grads: Any, params: Any) -> Any:
    """The gradient that a base gets."""
    return tree.map_tree(torch.sub, params, run(wrap(hft.sgd(lr=1.0)), [grads], params)[0])


def torch_clips(clip: Callable[[Any], Any], grads: dict[str, Tensor]) -> dict[str, Tensor]:
    ps = {name: torch.nn.Parameter(torch.zeros_like(g)) for name, g in grads.items()}
    for name, p in ps.items():
        p.grad = grads[name].clone()
    clip(list(ps.values()))
    return {name: p.grad for name, p in ps.items()}


def one_by_one(ps: list[Any], bound: float) -> None:
    for p in ps:
        torch.nn.utils.clip_grad_norm_([p], bound)


CLIPS: dict[Any, Any] = {
    hft.clipped_by_value: torch.nn.utils.clip_grad_value_,
    hft.clipped: torch.nn.utils.clip_grad_norm_,
    hft.clipped_per_layer: one_by_one,
}
shapes = st.lists(strategies.shapes(), min_size=1, max_size=4)
bounds, seeds, scales = strategies.between(0.05, 3.0), st.integers(0, 999), st.sampled_from([0.0, 0.1, 1.0, 30.0])


def normal(sizes: list[tuple[int, ...]], seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {str(i): scale * torch.randn(size, generator=g, dtype=F64) for i, size in enumerate(sizes)}


def norm(x: Any) -> float:
    return sum(leaf.square().sum() for leaf in tree.leaves(x)).sqrt().item()


@settings(max_examples=50)
@given(clip=st.sampled_from([*CLIPS]), sizes=shapes, seed=seeds, scale=scales, bound=bounds)
def test_clipping_equals_torchs(clip: Any, sizes: Any, seed: int, scale: float, bound: float):
    params, grads = normal(sizes, seed + 1), normal(sizes, seed, scale)
    want = torch_clips(lambda ps: CLIPS[clip](ps, bound), grads)
    # What a base gets is read off params of order 1 from which up to 100 was taken: 2^-53 * 128 is 1.5e-14.
    assert largest_difference(seen_by_the_base(lambda opt: clip(opt, bound), grads, params), want) <= CLOSE


@given(sizes=shapes, seed=seeds, scale=scales, bound=bounds)
def test_a_norm_is_at_most_its_bound_and_a_smaller_one_stays(sizes: Any, seed: int, scale: float, bound: float):
    grads, still = normal(sizes, seed, scale), normal(sizes, seed, 0.0)
    got = tree.map_tree(torch.neg, seen_by_the_base(lambda opt: hft.clipped(opt, bound), grads, still))
    assert norm(got) <= bound * (1 + CLOSE)
    if norm(grads) <= bound - 1e-6:  # added to a norm, as torch does
        assert largest_difference(tree.map_tree(torch.neg, got), grads) == 0


@given(sizes=shapes, seed=seeds, factor=strategies.between(1.0, 50.0), bound=bounds)
def test_above_its_bound_a_gradient_counts_by_its_direction(sizes: Any, seed: int, factor: float, bound: float):
    grads, still = normal(sizes, seed), normal(sizes, seed, 0.0)
    if (size := norm(grads)) > bound:
        more = tree.map_tree(lambda g: factor * g, grads)
        a, b = (seen_by_the_base(lambda opt: hft.clipped(opt, bound), g, still) for g in (grads, more))
        # bound / (size + 1e-6): a fraction of 1e-6 / size less where the norm is size.
        assert largest_difference(a, b) <= bound * 1e-6 / size + CLOSE


@given(
    clip=st.sampled_from([hft.clipped, hft.clipped_per_layer, hft.clipped_by_value]),
    sizes=shapes, seed=seeds, scale=scales, two=st.tuples(bounds, bounds),
)  # fmt: skip
def test_of_two_bounds_the_smaller_counts(clip: Any, sizes: Any, seed: int, scale: float, two: tuple[float, float]):
    grads, still = normal(sizes, seed, scale), normal(sizes, seed, 0.0)
    twice = seen_by_the_base(lambda opt: clip(clip(opt, two[0]), two[1]), grads, still)
    # A gradient just clipped is multiplied once more by m / (m + 1e-6), where m is above its norm by 1e-6.
    assert largest_difference(twice, seen_by_the_base(lambda opt: clip(opt, min(two)), grads, still)) <= 1e-6 + CLOSE


def agc(w: Tensor, g: Tensor, ratio: float) -> Tensor:
    """Adaptive clipping, unit by unit (arXiv 2102.06171, equation 3)."""
    units = [(w, g)] if w.ndim < 2 else list(zip(w, g, strict=True))
    new = []
    for unit, slope in units:
        most = ratio * max(unit.norm().item(), 1e-3)
        norm = slope.norm().item()
        new.append(slope * (most / max(norm, 1e-6)) if norm > most else slope)
    return new[0] if w.ndim < 2 else torch.stack(new) if new else g


@settings(max_examples=40)
@given(
    sizes=shapes, seed=seeds, ratio=st.sampled_from([0.0, 1e-2, 0.7, 10.0]), scale=scales,
    of_weights=st.sampled_from([0.0, 1e-4, 1.0, 9.0]),
)  # fmt: skip
def test_adaptive_clipping_is_that_of_the_paper(sizes: Any, seed: int, ratio: float, scale: float, of_weights: float):
    """Weights below the least norm, and above."""
    params, grads = normal(sizes, seed + 1, of_weights), normal(sizes, seed, scale)
    got = seen_by_the_base(lambda opt: hft.clipped_adaptively(opt, ratio), grads, params)
    want = {name: agc(w, grads[name], ratio) for name, w in params.items()}
    assert largest_difference(got, want) <= CLOSE  # as above


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
