"""Different rules for different parts: each part is what its optimizer makes of it alone, whatever goes around."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.hparams import DOMAINS, domain_at
from hyperopt_ftp.testing import same, strategies

from ..support.cases import ANCHOR
from ..support.problems import start

F64 = torch.float64


def nested() -> dict[str, Any]:
    g = torch.Generator().manual_seed(0)
    body = {"0": {"weight": (3, 4), "bias": (3,)}, "1": {"weight": (2, 3), "bias": (2,)}}
    shapes = {"body": body, "head": {"weight": (2, 2), "bias": (2,)}}
    return {k: _randn(v, g) for k, v in shapes.items()}


def _randn(shapes: Any, g: torch.Generator) -> Any:
    if isinstance(shapes, tuple):
        return torch.randn(shapes, generator=g, dtype=F64)
    return {k: _randn(v, g) for k, v in shapes.items()}


def gradients(params: Any, steps: int = 3) -> list[Any]:
    g = torch.Generator().manual_seed(1)
    return [tree.map_tree(lambda p: torch.randn(p.shape, generator=g, dtype=F64), params) for _ in range(steps)]


def run(opt: hft.Optimizer, params: Any, grads: list[Any], hparams: Any = None) -> tuple[Any, Any]:
    state = opt.init(params, hparams)
    for g in grads:
        params, state = opt.update(g, state, params, hparams)
    return params, state


def part_of(params: Any, paths: list[str]) -> dict[str, Any]:
    return {path: x for path, x in tree.named(params) if path in paths}


def two() -> dict[str, hft.Optimizer]:
    return {"fast": hft.adam(lr=0.1), "slow": hft.sgd(lr=0.01, momentum=0.9)}


FAST = ["body.0.bias", "body.1.bias", "head.weight", "head.bias"]
LABELS = {
    "patterns": {"head.*": "fast", "*.bias": "fast", "*": "slow"},
    "parents": {"head": "fast", "*.bias": "fast", "body": "slow"},
    "a nested dict": {"head": {"*": "fast"}, "body": {"*": {"bias": "fast", "weight": "slow"}}},
    "a tree like the upper levels": {
        "head": "fast", "body": {i: {"bias": "fast", "weight": "slow"} for i in "01"}
    },
    "a tree like the parameters": tree.map_tree(lambda p: "fast" if p.ndim == 1 else "slow", nested())
    | {"head": {"weight": "fast", "bias": "fast"}},
    "a function": lambda path: "fast" if path.startswith("head.") or path.endswith(".bias") else "slow",
}  # fmt: skip


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_every_form_of_labels(labels: Any):
    params = nested()
    got, _ = run(hft.partition({"fast": hft.sgd(lr=0.1), "slow": hft.frozen()}, labels), params, [params])
    moved = [path for path, w in tree.named(got) if not torch.equal(w, tree.by_path(params)[path])]
    assert moved == [path for path, _ in tree.named(params) if path in FAST]


@st.composite
def parts(draw: Any) -> tuple[strategies.Run, dict[str, hft.Optimizer], dict[str, str]]:
    """Params and gradients, an optimizer for each label, and the labels of all paths, each of which has some."""
    run = draw(strategies.runs())
    labels = {path: draw(st.sampled_from("abc")) for path in tree.by_path(run.params)}
    return run, {label: draw(strategies.rules()) for label in sorted(set(labels.values()))}, labels


@settings(max_examples=40)
@given(case=parts())
def test_each_part_is_what_its_optimizer_makes_of_it_alone(case: Any):
    drawn, optimizers, labels = case
    got, state = drawn.by(hft.partition(optimizers, labels.__getitem__))
    assert tree.structure(got) == tree.structure(drawn.params)
    for label, opt in optimizers.items():
        own = [path for path in labels if labels[path] == label]
        grads = [part_of(g, own) for g in drawn.grads]
        assert same((part_of(got, own), state.parts[label]), run(opt, part_of(drawn.params, own), grads))


@given(case=parts())
def test_the_order_of_parts_is_nothing_to_them(case: Any):
    drawn, optimizers, labels = case
    turned = dict(reversed(optimizers.items()))
    ways = [drawn.by(hft.partition(x, labels.__getitem__)) for x in (optimizers, turned)]
    assert same(ways[0][0], ways[1][0])
    assert all(same(ways[0][1].parts[label], ways[1][1].parts[label]) for label in optimizers)


@given(case=parts())
def test_a_part_may_be_a_partition(case: Any):
    drawn, optimizers, labels = case
    inner = hft.partition({x: opt for x, opt in optimizers.items() if x != "a"} or optimizers, labels.__getitem__)
    outer = {"a": optimizers.get("a", hft.frozen()), "rest": inner}
    both = {path: "a" if label == "a" else "rest" for path, label in labels.items()}
    used = {label: opt for label, opt in outer.items() if label in both.values()}
    flat = hft.partition(optimizers, labels.__getitem__)
    assert same(drawn.by(hft.partition(used, both.__getitem__))[0], drawn.by(flat)[0])


class Two(NamedTuple):
    weight: Tensor
    rest: list[Tensor]


def test_any_tree_of_parameters():
    params = Two(torch.ones(2), [torch.ones(1), torch.ones(3)])
    ones = {"a": hft.sgd(lr=1.0), "b": hft.frozen()}
    for labels in ({"weight": "a", "rest.0": "b", "rest.1": "a"}, Two("a", ["b", "a"])):
        new, _ = run(hft.partition(ones, labels), params, [params])
        assert type(new) is Two
        assert [x.unique().item() for x in tree.leaves(new)] == [0, 1, 0]
    w = torch.ones(2)
    assert torch.equal(run(hft.partition({"a": hft.sgd(lr=1.0)}, "a"), w, [w])[0], 0 * w)
    beside = {"head": {"w": w}, "header": w}  # no parent of it
    new, _ = run(hft.partition(ones, {"head": "a", "*": "b"}), beside, [beside])
    assert [x.sum().item() for x in tree.leaves(new)] == [0, 2]
    nothing = {"w": torch.ones(2)}
    assert run(hft.partition({"a": hft.sgd()}, {"w": "a"}), nothing, [{"w": None}])[0] == nothing


def test_hparams_domains_and_what_is_tuned_are_by_label():
    opt = hft.partition(
        {"w": hft.hyper(hft.sgd(lr=0.1), by=hft.sgd(), over="lr"), "b": hft.adam(lr=0.2)}, lambda path: path
    )
    assert opt.hparams["b"]["lr"] == 0.2
    assert opt.tunes == ("w.base.lr",)
    assert domain_at(opt.domains, "b.betas") is DOMAINS["betas"]
    assert domain_at(opt.domains, "w.base.lr") is DOMAINS["lr"]


def test_first_values_and_settling_go_to_the_part():
    """A tuned radius of a projection in a part: as if the part were all there is."""
    params, grads = start(), gradients(start(), 4)
    inside = hft.partition(
        {"w": hft.projected(hft.sgd(lr=0.3), {"w": ANCHOR["w"]}), "b": hft.sgd(lr=0.1)}, lambda path: path
    )
    whole, state = run(hft.hyper(inside, by=hft.sgd(lr=0.2), over="w.radius"), params, grads)
    alone = hft.hyper(hft.projected(hft.sgd(lr=0.3), {"w": ANCHOR["w"]}), by=hft.sgd(lr=0.2), over="radius")
    part, its_state = run(alone, {"w": params["w"]}, [{"w": g["w"]} for g in grads])
    assert torch.equal(whole["w"], part["w"])
    assert torch.equal(state.tuned["w.radius"]["w"], its_state.tuned["radius"]["w"])
    first = inside.start(params, inside.hparams)
    assert first["w"]["radius"]["w"] == (params["w"] - ANCHOR["w"]).abs().sum(1).max() + 1e-8
    assert hft.partition({"w": hft.sgd(), "b": hft.adam()}, lambda path: path).start is None


def test_a_tree_of_hparams_is_by_path():
    params = nested()
    rates = {path: torch.tensor(0.1 * (i + 1), dtype=F64) for i, path in enumerate(FAST)}
    opt = hft.partition({"fast": hft.sgd(lr=rates), "slow": hft.frozen()}, LABELS["patterns"])
    new, _ = run(opt, params, [params])
    for path, w in tree.named(new):
        old = tree.by_path(params)[path]
        torch.testing.assert_close(w, old - rates[path] * old if path in rates else old, rtol=1e-15, atol=1e-15)


AROUND = {
    "projected": lambda base, anchor: hft.projected(base, anchor, radius=0.2),
    "ftp": hft.ftp,
    "spd": hft.spd,
    "cautious_decay": hft.cautious_decay,
}


@given(case=parts(), kind=st.sampled_from([*AROUND]), inside=st.booleans())
def test_a_rule_around_a_partition_is_the_rule_around_each_part(case: Any, kind: str, inside: bool):
    """FTP's radii are by layer, so parts with different bases are held as each would be alone."""
    drawn, optimizers, labels = case
    around = AROUND[kind]
    assume(not any(opt.weights_in_state for opt in optimizers.values()))
    anchor = tree.map_tree(lambda p: p + 0.1, drawn.params)
    owns = {label: [path for path in labels if labels[path] == label] for label in optimizers}
    held = {label: around(opt, part_of(anchor, owns[label])) for label, opt in optimizers.items()}
    base = hft.partition(optimizers, labels.__getitem__)
    if inside:
        opt = hft.partition(held, labels.__getitem__)
    elif kind == "cautious_decay":
        with pytest.raises(ValueError, match="to be held has no lr, .*; put the rule around the optimizer that has it"):
            around(base, anchor)
        return
    else:
        opt = around(base, anchor)
    got, _ = drawn.by(opt)
    for label, own in owns.items():
        alone, _ = run(held[label], part_of(drawn.params, own), [part_of(g, own) for g in drawn.grads])
        assert same(part_of(got, own), alone)


def test_partitions_nest_and_names_do_not_shadow():
    params = nested()
    inner = hft.partition({"bias": hft.sgd(lr=0.1), "rest": hft.sgd(lr=0.2)}, {"*.bias": "bias", "*": "rest"})
    opt = hft.partition({"max_norm": hft.frozen(), "body": inner}, {"head": "max_norm", "*": "body"})
    clipped = hft.clipped(opt, 1e9)
    assert sorted(clipped.hparams) == ["body", "max_norm", "max_norm_2"]
    new, _ = run(clipped, params, [tree.map_tree(torch.ones_like, params)])
    moved = {path: (tree.by_path(params)[path] - w).mean().item() for path, w in tree.named(new)}
    want = {path: 0 if path.startswith("head") else 0.1 if path.endswith("bias") else 0.2 for path in moved}
    assert moved == pytest.approx(want)
