"""The subject of the state machine, its reference, and the books that say what may have changed."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant
from safetensors.torch import save_file
from torch import Tensor

import hyperopt_ftp as hft

from ..support.compare import kept, same
from .machine_plan import (
    BASES,
    BF16,
    F32,
    F64,
    FLAGS,
    FREE,
    OPTIONS,
    PLANS,
    SHAPES,
    UNSHARED,
    as_laid,
    of_a_module,
)
from .machine_reference import Layer, working


class Books(RuleBasedStateMachine):
    """Subject: ``opt`` over ``params``. Reference: ``layers``. ``plain``: torch's own base with the same groups.

    ``books`` has copies of all weights and state. A step is compared with the reference and then taken over; whatever
    else has happened, after each rule everything has to be as the books say, bit for bit.

    ``plain`` is driven by the same schedules and changes: it knows the hyperparameters that the reference uses, and for
    a wrapper it makes the base's steps.
    """

    def __init__(self, tally: Counter[str]) -> None:
        super().__init__()
        self.tally = tally

    # -- construction -----------------------------------------------------------------------------------------------

    @initialize(plan=PLANS)
    def build(self, plan: dict[str, Any]) -> None:
        self.plan, self.execution = plan, plan["execution"]
        self.native = not plan["kind"].startswith("around")
        plan["lean"] &= plan["dtype"] == F32 and self.native
        plan["named"] |= plan["anchor"] in ("dict", "state_dict", "file") or plan["exclude"] == "pattern"
        torch.manual_seed(plan["seed"])
        self.params = [torch.nn.Parameter(torch.randn(shape, dtype=F64).to(plan["dtype"])) for shape in plan["shapes"]]
        self.names: list[Any] = [
            f"{'free' if i in FREE and plan['exclude'] == 'pattern' else 'layer'}.{i}" for i in range(len(SHAPES))
        ]
        split = [[0, 1, 2]] if plan["groups"] == 1 else [[0, 1], [2]]
        self.groups = [(where, True) for where in split]
        self.given, self.known = self._anchors()
        self.books: dict[int, tuple[Tensor, dict]] = {i: (kept(p), {}) for i, p in enumerate(self.params)}
        self.layers: dict[int, Layer] = {}
        for where, _ in self.groups:
            self._enter(where, True)
        self.opt = self._subject()
        self.plain = self._plain()
        self.own = [{name: plan[name] for name in (*OPTIONS, "lean")} for _ in self.groups]
        self.schedules: list[Any] = []
        self.ran = self.execution

    def _anchors(self) -> tuple[Any, dict[str, Tensor] | None]:
        """What the subject is given, and the values by name: near the first weights, or these themselves."""
        kind = self.plan["anchor"]
        if kind in ("start", "zero"):
            return None if kind == "start" else kind, None
        known = {}
        for i in range(3) if kind == "dict" else range(len(SHAPES)):
            w = self.params[i].detach().clone()
            known[self.names[i]] = w if i % 2 else w + 0.05 * torch.randn(w.shape).to(w.dtype)
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

    def _enter(self, where: list[int], whole: bool) -> None:
        self.layers |= {i: Layer(self._constrained(i, whole)) for i in where}

    def _of(self, where: list[int]) -> list[Any]:
        return [(self.names[i], self.params[i]) if self.plan["named"] else self.params[i] for i in where]

    def _base_options(self) -> dict[str, Any]:
        plan = self.plan
        options = {name: plan[name] for name in ("lr", "weight_decay", "maximize")}
        if "adamw" in plan["kind"]:
            options["amsgrad"] = plan["amsgrad"]
        if "sgd" in plan["kind"]:
            options |= dict(zip(("momentum", "dampening", "nesterov"), plan["momentum"], strict=True))
        return options | self._flags()

    def _flags(self) -> dict[str, Any]:
        """Of the execution. torch's RMSprop has no fused form, and its fused SGD no momentum for late parameters."""
        flags = FLAGS[self.execution]
        if self.plan["kind"] in ("around rmsprop", "around sgd"):
            return {"foreach": flags["foreach"]}
        return flags

    def _subject(self) -> Any:
        """An optimizer as the plan says, over the groups that there are."""
        plan = self.plan
        exclude: Any = {"nothing": (), "pattern": "free.*", "tensors": [self.params[i] for i in FREE if i < 3]}
        own = {name: plan[name] for name in (*OPTIONS, "anchor_dtype", "save_anchor")}
        own |= {"anchor": self.given, "exclude": exclude[plan["exclude"]]}
        whole = [{"params": self._of(where)} | ({} if held else {"constrained": False}) for where, held in self.groups]
        if self.native:
            make = hft.FTPAdamW if plan["kind"] == "adamw" else hft.FTPSGD
            own |= {"lean": plan["lean"], "capturable": plan["capturable"]}
            rate = {"lr": torch.tensor(plan["lr"], dtype=F64)} if plan["tensor_lr"] else {}
            return make(whole, **self._base_options() | own | rate)
        return hft.FTP(BASES[plan["kind"]](whole, **self._base_options()), **own)

    def _plain(self) -> torch.optim.Optimizer:
        self.twins = [torch.nn.Parameter(kept(p)) for p in self.params]
        groups = [{"params": [self.twins[i] for i in where]} for where, _ in self.groups]
        return BASES[self.plan["kind"]](groups, **self._base_options())

    # -- what is always true ----------------------------------------------------------------------------------------

    @invariant()
    def only_what_may_change_has_changed(self) -> None:
        for i, p in enumerate(self.params):
            weight, state = self.books[i]
            assert same(p.detach(), weight), f"weights of {self.names[i]}"
            assert p.stride() == weight.stride(), f"layout of {self.names[i]}"
            now = self.opt.state.get(p, {}) if i in self.layers else {}
            assert self._same_state(now, state), f"state of {self.names[i]}: {now} was {state}"
        assert sum(map(bool, self.opt.state.values())) == sum(bool(state) for _, state in self.books.values())
        held = {i: layer for i, layer in self.layers.items() if layer.constrained and layer.steps}
        names = {i: self.names[i] if self.plan["named"] else place for place, i in enumerate(self._inside())}
        assert self.opt.radii() == {names[i]: self.books[i][1]["radius"].item() for i in self._inside() if i in held}
        for group, plain, own, (where, whole) in zip(
            self.opt.param_groups, self.plain.param_groups, self.own, self.groups, strict=True
        ):
            assert all(p is self.params[i] for p, i in zip(group["params"], where, strict=True))
            assert group["constrained"] == [self._constrained(i, whole) for i in where]
            expected = own | {k: v for k, v in plain.items() if k not in UNSHARED}
            expected = expected if self.native else {k: v for k, v in expected.items() if k != "lean"}
            assert {k: group.get(k) for k in expected} == expected
        assert self.opt.execution == self.ran
        if not self.native:
            assert self.opt.base.state is self.opt.state
            assert self.opt.base.param_groups is self.opt.param_groups

    def _same_state(self, a: dict[str, Any], b: dict[str, Any]) -> bool:
        """An anchor may be kept in any dtype that changes no value; one of a file may come with a checkpoint."""
        left_out = ("anchor", "anchor_fingerprint") if self.plan["anchor"] == "file" else ()
        a, b = ({k: v.double() if k == "anchor" else v for k, v in x.items() if k not in left_out} for x in (a, b))
        return same(a, b)

    def _inside(self) -> list[int]:
        """Places of the parameters in the optimizer, in its order."""
        return [i for where, _ in self.groups for i in where]

    def _note(self, *which: int) -> None:
        """Take over what is there now."""
        for i in which:
            self.books[i] = kept(self.params[i]), kept(dict(self.opt.state.get(self.params[i], {})))

    # -- steps ------------------------------------------------------------------------------------------------------

    def gradients(self, how: dict[str, Any], form: str | None = None) -> dict[int, Tensor]:
        torch.manual_seed(how["seed"])
        found, form = {}, form or how["form"]
        if not self.native:  # torch's fused optimizers take the weights' layout for granted, others write to gradients
            form = "plain" if self.execution == "fused_cpu" or form == "expanded" else form
        for i in self._inside():
            p = self.params[i]
            g = how["scale"] * (torch.randn(p.shape, dtype=F64) + how["drift"])
            g = g.to({BF16: F32, F32: F64}.get(p.dtype, F64) if form == "other dtype" and self.native else p.dtype)
            if i in how["absent"] or not p.requires_grad:
                continue
            if form == "expanded" and p.numel():
                g = g.flatten()[0].expand(p.shape)
            if form == "turned" and p.ndim >= 2:
                g = g.transpose(0, -1).contiguous().transpose(0, -1)
            found[i] = as_laid(g, p) if form == "plain" else g
        return found

    def _offer(self, grads: dict[int, Tensor], scale: float = 1.0) -> None:
        for i in self._inside():
            p, p.grad = self.params[i], None
            if i in grads:
                p.grad_dtype = grads[i].dtype
                p.grad = grads[i] if scale == 1.0 else grads[i] * scale

    def advance(self, grads: dict[int, Tensor], step: Callable[[], Any] | None = None, scale: float = 1.0) -> None:
        """A step of the subject and one of the reference; then they are compared."""
        moved = self._move_plain(grads)
        groups = zip(self.plain.param_groups, self.own, self.groups, strict=True)
        options = {i: plain | own for plain, own, (where, _) in groups for i in where}
        for i, g in grads.items():
            layer, stored = self.layers[i], self.books[i][0]
            if layer.constrained and layer.anchor is None:
                layer.anchor = self._anchor_of(i, stored)
            layer.step(stored, g, options[i], moved.get(i))
        self._offer(grads, scale)
        (step or self.opt.step)()
        self.ran = self.execution if grads else self.ran
        for i in grads:
            state = self.opt.state[self.params[i]]
            self.layers[i].compare(self.params[i].detach(), state, options[i])
            self._check_anchor(i, state)
            if not self.native:
                theirs = self.plain.state[self.twins[i]]
                assert same({k: v for k, v in state.items() if k in theirs}, dict(theirs)), f"base of {self.names[i]}"
            self._note(i)
            self.layers[i].follow(state)
        self.opt.zero_grad()

    def _move_plain(self, grads: dict[int, Tensor]) -> dict[int, Tensor]:
        """Where torch's own optimizer moves the weights of the wrapper's base."""
        if self.native:
            return {}
        for i, twin in enumerate(self.twins):
            twin.grad = None
            twin.data = kept(self.books[i][0])
            state = self.plain.state.get(twin, {})
            state |= {k: as_laid(v, twin) for k, v in state.items() if isinstance(v, Tensor) and v.shape == twin.shape}
            twin.grad = grads[i].clone(memory_format=torch.preserve_format) if i in grads else None
        self.plain.step()
        return {i: kept(self.twins[i]) for i in grads}

    def _anchor_of(self, i: int, stored: Tensor) -> Tensor:
        if self.known is not None:
            given = kept(self.known[self.names[i]])
            kept_in_state = self.plan["anchor"] != "file"
            return given.to(working(stored.dtype)) if given.dtype == F64 and kept_in_state else given
        return kept(stored) if self.given is None else torch.zeros_like(stored)

    def _check_anchor(self, i: int, state: dict[str, Any]) -> None:
        """A file's serves as it lies, unless a checkpoint held one."""
        layer = self.layers[i]
        held, there = layer.constrained and self.given != "zero", "anchor" in state
        assert held or not there
        if there or self.plan["anchor"] != "file":
            assert there == held
            assert ("anchor_fingerprint" in state) == (layer.constrained and not (there and self.plan["save_anchor"]))
        if there:
            assert layer.anchor is not None
            if self.plan["anchor"] == "file" and layer.anchor.dtype == F64:
                layer.anchor = layer.anchor.to(working(state["anchor"].dtype))
            assert same(state["anchor"].double(), layer.anchor.double())
            if layer.steps == 1 and state["anchor"].dtype != layer.anchor.dtype:
                assert state["anchor"].dtype == self.plan["anchor_dtype"]
