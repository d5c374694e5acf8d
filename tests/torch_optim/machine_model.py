"""What the state machine drives: an optimizer, a twin to which nothing odd happens, and the pure rule beside them."""

from __future__ import annotations

import functools
import os
import tempfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from safetensors.torch import save_file
from torch import Tensor

import hyperopt_ftp as hft

from ..support.compare import kept, same
from ..support.executions import FLAGS

F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16
SHAPES = [(3, 4), (5,), (4, 3, 2, 2), (), (0, 3), (1, 6), (3, 0), (6, 1)]
FREE = (1, 4)  # places of the parameters that may be excluded
OPTIONS = ("radius_lr", "kappa", "norm", "gradient")
NAMED = ("dict", "state_dict", "file")  # anchors by name
EXECUTIONS = st.sampled_from(list(FLAGS))

PLANS = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["adamw", "sgd", "around adamw", "around sgd"]),
        "execution": EXECUTIONS,
        "dtype": st.sampled_from([F64, F64, F32, BF16]),
        "seed": st.integers(0, 99),
        "shapes": st.permutations(SHAPES),
        "anchor": st.sampled_from(["start", "zero", *NAMED]),
        "save_anchor": st.booleans(),
        "exclude": st.sampled_from(["nothing", "pattern", "tensors"]),
        "named": st.booleans(),
        "groups": st.integers(1, 2),
        "lr": st.sampled_from([0.05, 0.001]),
        "tensor_lr": st.booleans(),
        "weight_decay": st.sampled_from([0.0, 0.1]),
        "maximize": st.booleans(),
        "amsgrad": st.booleans(),
        "momentum": st.sampled_from([(0.0, 0.0, False), (0.9, 0.0, False), (0.9, 0.0, True), (0.5, 0.3, False)]),
        "norm": st.sampled_from(["mars", "l2"]),
        "gradient": st.sampled_from(["paper", "exact"]),
        "kappa": st.sampled_from([1.0, 0.4, 0.0]),
        "radius_lr": st.sampled_from([0.05, 0.01]),
        "capturable": st.booleans(),
        "lean": st.booleans(),
    }
)
GRADIENTS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**16),
        "scale": st.sampled_from([1.0, 1e-3, 30.0]),
        "drift": st.sampled_from([0.5, 0.0]),  # with a trend radii grow
        "absent": st.sets(st.integers(0, len(SHAPES) - 1), max_size=3),
        "form": st.sampled_from(["plain", "expanded", "turned", "other dtype"]),
    }
)


def counted(**strategies: Any) -> Callable:
    """A rule that the machine's tally counts. Where it is no step itself, one may follow."""
    if "how" not in strategies:
        strategies["then"] = st.none() | GRADIENTS

    def decorate(function: Callable) -> Callable:
        @rule(**strategies)
        @functools.wraps(function)
        def run(self: Any, then: Any = None, **values: Any) -> None:
            self.tally[function.__name__] += 1
            function(self, **values)
            if then is not None:
                self.both_are_the_same()
                self.advance(self.gradients(then))

        return run

    return decorate


def of_a_module(known: dict[str, Tensor]) -> Any:
    """As a module's state_dict, which may also hold what is no parameter of the optimizer."""
    found: Any = OrderedDict(known)
    found._metadata = {}
    return found


def row_sums(x: Tensor, norm: str) -> Tensor:
    if norm == "l2":
        return x.square().sum().sqrt().reshape(1)
    return x.abs().flatten(1).sum(1) if x.ndim >= 2 else x.abs().sum().reshape(1)


@dataclass
class Side:
    """A model and its optimizer."""

    params: list[torch.nn.Parameter]
    opt: Any = None
    scheduler: Any = None


@dataclass
class Layer:
    """What the pure rule knows of a parameter."""

    constrained: bool
    exact: bool  # float64 from the beginning: its steps are compared with the rule
    anchor: Any = None  # none before the first step
    state: Any = None


class Model(RuleBasedStateMachine):
    """Subject and twin make the same steps, in the same groups. The subject alone has what must change nothing.

    After each rule weights, state and groups of both are equal, bit for bit. A step of float64 weights is also
    compared with the pure rule, and rows of all weights stay in their ball.
    """

    def __init__(self, tally: Counter[str]) -> None:
        super().__init__()
        self.tally = tally

    @initialize(plan=PLANS)
    def build(self, plan: dict[str, Any]) -> None:
        self.plan, self.execution = plan, plan["execution"]
        self.native = not plan["kind"].startswith("around")
        plan["lean"] &= plan["dtype"] == F32 and self.native
        plan["named"] |= plan["anchor"] in NAMED or plan["exclude"] == "pattern"
        torch.manual_seed(plan["seed"])
        first = [torch.randn(shape, dtype=F64).to(plan["dtype"]) for shape in plan["shapes"]]
        self.names = [
            f"{'free' if i in FREE and plan['exclude'] == 'pattern' else 'layer'}.{i}" for i in range(len(first))
        ]
        self.groups = [([0, 1, 2], True)] if plan["groups"] == 1 else [([0, 1], True), ([2], True)]
        self.given, self.known = self._anchors(first)
        self.layers = {i: Layer(self._constrained(i, True), plan["dtype"] == F64) for i in range(3)}
        self.subject, self.twin = (Side([torch.nn.Parameter(w.clone()) for w in first]) for _ in range(2))
        for side in (self.subject, self.twin):
            side.opt = self.made(side.params)

    def _anchors(self, first: list[Tensor]) -> tuple[Any, dict[str, Tensor] | None]:
        """What the optimizers are given, and the values by name: near the first weights, or these themselves."""
        kind = self.plan["anchor"]
        if kind not in NAMED:
            return None if kind == "start" else kind, None
        near = [w.clone() if i % 2 else w + 0.05 * torch.randn(w.shape).to(w.dtype) for i, w in enumerate(first)]
        known = dict(zip(self.names, near[:3] if kind == "dict" else near, strict=False))
        if kind == "file":
            self.folder = tempfile.TemporaryDirectory()
            path = os.path.join(self.folder.name, "anchors.safetensors")
            save_file(known, path)
            return path, known
        return known if kind == "dict" else of_a_module(known), known

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()

    def _constrained(self, i: int, whole: bool) -> bool:
        out = self.plan["exclude"]
        return whole and not (i in FREE and (out == "pattern" or (out == "tensors" and i < 3)))

    def named(self, params: list[Any], where: list[int]) -> list[Any]:
        return [(self.names[i], params[i]) if self.plan["named"] else params[i] for i in where]

    def inside(self) -> list[int]:
        """Places of the parameters in the optimizers, in their order."""
        return [i for where, _ in self.groups for i in where]

    def flags(self) -> dict[str, Any]:
        """Of the execution, so that they overrule others. torch's fused SGD has no momentum for late parameters."""
        flags = {"foreach": None, "fused": None, **FLAGS[self.execution]}
        return {"foreach": flags["foreach"]} if self.plan["kind"] == "around sgd" else flags

    def made(self, params: list[Any]) -> Any:
        """An optimizer as the plan says, over the groups that there are."""
        plan = self.plan
        names = ("lr", "weight_decay", "maximize", *(["amsgrad"] if "adamw" in plan["kind"] else []))
        base = {name: plan[name] for name in names} | self.flags()
        if "sgd" in plan["kind"]:
            base |= dict(zip(("momentum", "dampening", "nesterov"), plan["momentum"], strict=True))
            if self.native:
                del base["dampening"]
        exclude = {"nothing": (), "pattern": "free.*", "tensors": [params[i] for i in FREE if i < 3]}[plan["exclude"]]
        own = {name: plan[name] for name in (*OPTIONS, "save_anchor")} | {"anchor": self.given, "exclude": exclude}
        groups = [
            {"params": self.named(params, where)} | ({} if held else {"constrained": False})
            for where, held in self.groups
        ]
        if not self.native:
            return hft.FTP((torch.optim.SGD if "sgd" in plan["kind"] else torch.optim.AdamW)(groups, **base), **own)
        base |= {"lr": torch.tensor(plan["lr"], dtype=F64)} if plan["tensor_lr"] else {}
        make = hft.FTPAdamW if plan["kind"] == "adamw" else hft.FTPSGD
        return make(groups, **base, **own, lean=plan["lean"], capturable=plan["capturable"])

    # -- what is always true ----------------------------------------------------------------------------------------

    @invariant()
    def both_are_the_same(self) -> None:
        a, b = self.subject, self.twin
        for i, (p, q) in enumerate(zip(a.params, b.params, strict=True)):
            assert same(p.detach(), q.detach()), f"weights of {self.names[i]}"
            assert p.stride() == q.stride(), f"layout of {self.names[i]}"
            assert same(*(self._state(side, i) for side in (a, b))), f"state of {self.names[i]}"
        for side in (a, b):
            assert sum(map(bool, side.opt.state.values())) == sum(bool(self._state(side, i)) for i in self.inside())
        assert a.opt.radii() == b.opt.radii()
        for group, other, (where, whole) in zip(a.opt.param_groups, b.opt.param_groups, self.groups, strict=True):
            assert all(p is a.params[i] for p, i in zip(group["params"], where, strict=True))
            assert group["constrained"] == [self._constrained(i, whole) for i in where]
            assert same(*({k: v for k, v in g.items() if k != "params"} for g in (group, other)))
        if not self.native:
            assert a.opt.base.state is a.opt.state
            assert a.opt.base.param_groups is a.opt.param_groups

    def _state(self, side: Side, i: int) -> dict[str, Any]:
        """An anchor may be kept in any dtype that changes no value; one of a file may come with a checkpoint."""
        left_out = ("anchor", "anchor_fingerprint") if self.plan["anchor"] == "file" else ()
        found = side.opt.state.get(side.params[i], {}).items()
        return {k: v.double() if k == "anchor" else v for k, v in found if k not in left_out}

    # -- steps ------------------------------------------------------------------------------------------------------

    def gradients(self, how: dict[str, Any], form: str | None = None) -> dict[int, Tensor]:
        torch.manual_seed(how["seed"])
        found, form = {}, form or how["form"]
        if not self.native:  # torch's fused optimizers take the weights' layout for granted, others write to gradients
            form = "plain" if self.execution == "fused_cpu" or form == "expanded" else form
        for i in self.inside():
            p = self.subject.params[i]
            g = how["scale"] * (torch.randn(p.shape, dtype=F64) + how["drift"])
            g = g.to({BF16: F32, F32: F64}.get(p.dtype, F64) if form == "other dtype" and self.native else p.dtype)
            if i in how["absent"] or not p.requires_grad:
                continue
            if form == "expanded" and p.numel():
                g = g.flatten()[0].expand(p.shape)
            if form == "turned" and p.ndim >= 2:
                g = g.transpose(0, -1).contiguous().transpose(0, -1)
            found[i] = torch.empty_like(p, dtype=g.dtype, requires_grad=False).copy_(g) if form == "plain" else g
        return found

    def offer(self, side: Side, grads: dict[int, Tensor], scale: float = 1.0) -> None:
        for i in self.inside():
            p = side.params[i]
            p.grad = None
            if i in grads:
                p.grad_dtype = grads[i].dtype  # pyright: ignore[reportAttributeAccessIssue]
                p.grad = kept(grads[i]) if scale == 1.0 else grads[i] * scale

    def advance(self, grads: dict[int, Tensor], step: Callable[[], Any] | None = None, scale: float = 1.0) -> None:
        """The twin steps plainly, the subject by ``step``; then they are compared with the rule."""
        expected = {i: self._by_the_rule(i, g) for i, g in grads.items()}
        self.offer(self.subject, grads, scale)
        self.offer(self.twin, grads)
        (step or self.subject.opt.step)()
        self.twin.opt.step()
        assert not grads or self.subject.opt.execution == self.execution
        for i, (weight, radius) in expected.items():
            self._compare(i, weight, radius)
        for side in (self.subject, self.twin):
            side.opt.zero_grad()

    def options_of(self, i: int) -> dict[str, Any]:
        groups = zip(self.twin.opt.param_groups, self.groups, strict=True)
        return next(group for group, (where, _) in groups if i in where)

    def _by_the_rule(self, i: int, g: Tensor) -> tuple[Any, Any]:
        """Weights and radius after a step, of float64 weights."""
        o, layer, w = self.options_of(i), self.layers[i], kept(self.twin.params[i])
        if layer.constrained and layer.anchor is None:
            zeros_or_start = torch.zeros_like(w) if self.given == "zero" else w
            layer.anchor = zeros_or_start if self.known is None else kept(self.known[self.names[i]])
            if self.known is not None and self.plan["anchor"] != "file" and w.dtype != F64:
                layer.anchor = layer.anchor.float()  # kept in the working precision of the first step
        if not layer.exact:
            return None, None
        lr = float(o["lr"])
        if "betas" in o:
            pure = hft.adamw(lr, o["betas"], o["eps"], o["weight_decay"], o["amsgrad"])
        else:
            pure = hft.sgd(lr, o["momentum"], o.get("dampening", 0.0), o["weight_decay"], nesterov=o["nesterov"])
        if layer.constrained:
            pure = hft.ftp(pure, layer.anchor, o["norm"], o["kappa"], o["radius_lr"], o["gradient"])
        layer.state = pure.init(w) if layer.state is None else layer.state
        new, layer.state = pure.update(-g if o["maximize"] else g, layer.state, w)
        return new, layer.state.radius[""] if layer.constrained else None

    def _compare(self, i: int, weight: Any, radius: Any) -> None:
        """Up to rounding: of values of order ``size``, in a direction of the radius that may be ill-conditioned."""
        layer, p = self.layers[i], self.twin.params[i].detach()
        state = self.twin.opt.state.get(self.twin.params[i], {})
        if weight is not None:
            size = max(1.0, *(x.abs().max().item() for x in (p, weight) if x.numel()), 1.0)
            torch.testing.assert_close(p, weight, rtol=0, atol=1e-9 * size, msg=lambda m: f"{self.names[i]}: {m}")
        if radius is not None:
            assert abs(state["radius"] - radius) <= 1e-9 * max(1.0, radius.item())
        if layer.constrained:  # but for the rounding of the stored W and of s c
            w0, norm = layer.anchor.double(), self.options_of(i)["norm"]
            rounded = torch.finfo(p.dtype).eps * row_sums(p.double().abs() + 2 * w0.abs(), norm)
            slack = p.numel() * torch.finfo(state["radius"].dtype).eps
            assert (row_sums(p.double() - w0, norm) <= state["radius"].double() * (1 + slack) + rounded).all()
