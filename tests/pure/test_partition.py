"""Different rules for different parts: each part is what its optimizer makes of it alone, whatever goes around."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.hparams import DOMAINS, domain_at
from hyperopt_ftp.optimizers.by_rule import by_rule

from ..support.cases import ANCHOR
from ..support.problems import batches, central_differences, largest_difference, loss, start, train

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
def test_each_part_is_what_its_optimizer_makes_of_it_alone(labels: Any):
    params = nested()
    grads = gradients(params)
    grads[1]["head"]["bias"] = grads[2]["body"]["0"]["weight"] = None
    got, state = run(hft.partition(two(), labels), params, grads)
    assert tree.structure(got) == tree.structure(params)
    slow = [path for path, _ in tree.named(params) if path not in FAST]
    for label, own in {"fast": FAST, "slow": slow}.items():
        alone, its_state = run(two()[label], part_of(params, own), [part_of(g, own) for g in grads])
        assert largest_difference(part_of(got, own), alone) == 0
        assert largest_difference(state.parts[label], its_state) == 0


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


WRONG = {
    "no label": ({"head": "fast", "body.0": "slow"}, ValueError, "no entry of labels fits 'body.1.weight', they are"),
    "unknown": ({"*": "fats"}, ValueError, r"'\*' is 'fats', but the optimizers are \['fast', 'slow'\]; .* 'fast'\?"),
    "unknown, of a function": (lambda path: "slwo", ValueError, r"of 'body.0.weight' is 'slwo', but .*'slow'\?"),
    "none, of a function": (lambda path: None, ValueError, "the label of 'body.0.weight' is None, but the optimizers"),
    "no match": ({"haed.*": "fast", "*": "slow"}, ValueError, r"entry 'haed.\*' matches no parameter; .* 'head'\?"),
    "hidden": ({"*": "slow", "head": "fast"}, ValueError, "'head' gives no parameter its label.*; put it before"),
    "unused": ({"*": "slow"}, ValueError, r"no parameter has the label 'fast'; the parameters are \['body.0.weight'"),
    "unused, by a function": (lambda path: "fast", ValueError, "no parameter has the label 'slow'"),
    "number": ({"head": 1, "*": "slow"}, TypeError, "labels must be a function.*, but the entry 'head' is 1"),
}


@pytest.mark.parametrize(("labels", "error", "text"), WRONG.values(), ids=WRONG)
def test_labels_that_do_not_fit(labels: Any, error: type[Exception], text: str):
    with pytest.raises(error, match=text):
        hft.partition(two(), labels).init(nested())


def test_optimizers_that_do_not_fit():
    for wrong in ("a.b", "", 1, "loss", "params", "batches"):
        with pytest.raises(ValueError, match=r"a label must be a string without a dot.*; got "):
            hft.partition({wrong: hft.sgd()}, {"*": wrong})
    for wrong in ({}, hft.sgd(), [hft.sgd()]):
        with pytest.raises(ValueError, match="optimizers must be a dict of at least one optimizer by label"):
            hft.partition(wrong, {"*": "a"})
    with pytest.raises(TypeError, match="the optimizer of 'a' must be a pure optimizer.*got sgd itself: call it"):
        hft.partition({"a": hft.sgd}, {"*": "a"})
    with pytest.raises(TypeError, match=r"missing a required argument: 'labels'; partition\(\{"):
        hft.partition({"a": hft.sgd()})
    opt = hft.partition({"a": hft.sgd()}, "a")
    with pytest.raises(ValueError, match=r"hparams must be a dict with names among \['a'\], got \['lr'\]"):
        opt.init(torch.ones(2), {"lr": 0.1})
    with pytest.raises(TypeError, match="state must be the PartitionState that init or update returned, got dict"):
        opt.update(torch.ones(2), {}, torch.ones(2))
    with pytest.raises(ValueError, match=r"gradient of '' has the shape \(3,\), its parameter \(2,\)"):
        opt.update(torch.ones(3), opt.init(torch.ones(2)), torch.ones(2))


def test_hparams_domains_and_what_is_tuned_are_by_label():
    opt = hft.partition(
        {"w": hft.hyper(hft.sgd(lr=0.1), by=hft.sgd(), over="lr"), "b": hft.adam(lr=0.2)}, lambda path: path
    )
    assert opt.hparams["b"]["lr"] == 0.2
    assert opt.tunes == ("w.base.lr",)
    assert domain_at(opt.domains, "b.betas") is DOMAINS["betas"]
    assert domain_at(opt.domains, "w.base.lr") is DOMAINS["lr"]
    with pytest.raises(ValueError, match=r"over names \['w.base.lr'\], which base already tunes"):
        hft.hyper(opt, by=hft.sgd(), over="w.base.lr")
    with pytest.raises(ValueError, match="over names 'b.lrr', but 'b' has .*; did you mean 'b.lr'"):
        hft.hyper(opt, by=hft.sgd(), over="b.lrr")


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


# -- around and inside ------------------------------------------------------------------------------------------------

ALL = {"all": hft.adam(lr=0.1, eps=1e-2)}


def outer(params: Any) -> Tensor:
    return loss(params, batches(1)[0] + 0.3)


def test_a_partition_of_one_part_is_its_optimizer():
    """In training, hypergradients, tuned and in a bilevel loop."""
    opt, one, params, data = ALL["all"], hft.partition(ALL, "all"), start(), batches(4)
    assert largest_difference(hft.train(one, loss, params, data).params, hft.train(opt, loss, params, data).params) == 0
    for strategy in (hft.Unroll(), hft.Forward()):
        _, got, _ = hft.hypergradient(one, loss, outer, params, data, "all.lr", strategy=strategy)
        _, want, _ = hft.hypergradient(opt, loss, outer, params, data, "lr", strategy=strategy)
        assert got["all.lr"] == want["lr"] != 0
    tuned = [train(hft.hyper(x, by=hft.sgd(lr=0.01), over=name), None, params, data)
             for x, name in ((one, "all.lr"), (opt, "lr"))]  # fmt: skip
    assert largest_difference(tuned[0][0], tuned[1][0]) == 0
    assert tuned[0][1].tuned["all.lr"] == tuned[1][1].tuned["lr"] != 0.1
    found = [
        list(hft.bilevel(x, hft.sgd(lr=0.05), name, loss, loss, params, data, data, inner_steps=2, outer_steps=3))
        for x, name in ((one, "all.lr"), (opt, "lr"))
    ]
    for a, b in zip(*found, strict=True):
        assert a.value == b.value
        assert a.tuned["all.lr"] == b.tuned["lr"] != 0.1


def test_hypergradients_of_a_part_beside_a_frozen_one():
    opt = hft.partition({"w": hft.sgd(lr=0.1, momentum=0.5), "b": hft.frozen()}, lambda path: path)
    params, data = start(), batches(4)
    _, got, (end, _) = hft.hypergradient(opt, loss, outer, params, data, over=("w.lr", "w.momentum", "params"))
    assert torch.equal(end["b"], params["b"])
    want = central_differences(lambda h: outer(train(opt, h, params, data)[0]), opt.hparams)
    names = [path for path, _ in tree.named(opt.hparams)]
    for name in ("w.lr", "w.momentum"):
        assert got[name].item() == pytest.approx(want[names.index(name)].item(), rel=1e-6)
    there = central_differences(lambda b: outer(train(opt, None, {**params, "b": b}, data)[0]), params["b"])
    torch.testing.assert_close(got["params"]["b"], torch.stack(there), rtol=1e-6, atol=1e-9)
    alone = hft.hyper(hft.sgd(lr=0.1), by=hft.sgd(lr=0.01), over="lr")
    beside = hft.hyper(hft.partition({"w": hft.sgd(lr=0.1), "b": hft.frozen()}, lambda path: path),
                       by=hft.sgd(lr=0.01), over="w.lr")  # fmt: skip
    grads = gradients(params, 4)
    whole, state = run(beside, params, grads)
    part, its_state = run(alone, {"w": params["w"]}, [{"w": g["w"]} for g in grads])
    assert torch.equal(whole["w"], part["w"])
    assert state.tuned["w.lr"] == its_state.tuned["lr"] != 0.1


def test_frozen_alone():
    opt, params = hft.frozen(), start()
    assert run(opt, params, gradients(params)) == (params, ())
    assert opt.hparams == {}
    with pytest.raises(ValueError, match=r"over must name at least one|over names 'lr', but"):
        hft.hyper(opt, by=hft.sgd(), over="lr")


AROUND = {
    "projected": lambda base, anchor: hft.projected(base, anchor, radius=0.2),
    "ftp": hft.ftp,
    "spd": hft.spd,
    "cautious_decay": hft.cautious_decay,
}


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
@pytest.mark.parametrize("inside", [False, True], ids=["around", "inside"])
def test_a_rule_around_a_partition_is_the_rule_around_each_part(around: Any, inside: bool):
    """FTP's radii are by layer, so parts with different bases are held as each would be alone."""
    params = nested()
    grads, slow = gradients(params, 4), [path for path, _ in tree.named(params) if path not in FAST]
    anchor = tree.map_tree(lambda p: p + 0.1, params)
    anchors = {"fast": part_of(anchor, FAST), "slow": part_of(anchor, slow)}
    if inside:
        held = {label: around(opt, anchors[label]) for label, opt in two().items()}
        got, _ = run(hft.partition(held, LABELS["patterns"]), params, grads)
    elif around is hft.cautious_decay:
        with pytest.raises(ValueError, match="to be held has no lr, .*; put the rule around the optimizer that has it"):
            around(hft.partition(two(), LABELS["patterns"]), anchor)
        return
    else:
        got, _ = run(around(hft.partition(two(), LABELS["patterns"]), anchor), params, grads)
    for label, own in {"fast": FAST, "slow": slow}.items():
        alone, _ = run(around(two()[label], anchors[label]), part_of(params, own), [part_of(g, own) for g in grads])
        assert largest_difference(part_of(got, own), alone) == 0


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


def test_an_optimizer_for_matrices_alone():
    """As Muon: it takes each tensor as a whole, and no vectors."""

    class State(NamedTuple):
        step: Any

    def rule(w: Tensor, g: Tensor, s: Any, h: Any, t: Any) -> Any:
        assert w.ndim == 2
        u, _, v = torch.linalg.svd(g, full_matrices=False)
        return w - h["lr"] * u @ v, s

    matrices = by_rule(rule, State, {"lr": torch.tensor(0.1, dtype=F64)}, whole=True)
    params = nested()
    labels = {path: "matrix" if w.ndim == 2 else "rest" for path, w in tree.named(params)}
    opt = hft.partition({"matrix": matrices, "rest": hft.sgd(lr=0.1)}, labels.__getitem__)
    new, _ = run(opt, params, [params])
    for path, w in tree.named(new):
        if labels[path] == "matrix":
            torch.testing.assert_close(torch.linalg.matrix_norm(tree.by_path(params)[path] - w, 2).item(), 0.1)


def test_in_a_compiled_step():
    params, opt = nested(), hft.partition(two(), LABELS["patterns"])
    grads = gradients(params)
    state = opt.init(params)
    torch._dynamo.reset()
    compiled = torch.compile(opt.update, fullgraph=True, backend="eager")
    assert largest_difference(compiled(grads[0], state, params), opt.update(grads[0], state, params)) <= 1e-15
