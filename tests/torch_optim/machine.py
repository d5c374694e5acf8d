"""A state machine that does to an optimizer, in any order, what scripts do to one. What holds: ``machine_model``.

What is refused, and then changes nothing: ``test_bad_input_table``.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import precondition

from ..support.compare import kept
from ..support.contract import through_a_file
from .machine_model import BF16, EXECUTIONS, F32, F64, GRADIENTS, SHAPES, Layer, Model, Side, counted

PLACES = st.integers(0, len(SHAPES) - 1)


class Machine(Model):
    """All rules."""

    # -- what both sides do -------------------------------------------------------------------------------------------

    @counted(how=GRADIENTS, often=st.integers(1, 4))
    def step(self, how: dict[str, Any], often: int) -> None:
        for k in range(often):
            self.advance(self.gradients(how | {"seed": how["seed"] + k}))

    @counted()
    def step_without_gradients(self) -> None:
        self.advance({})

    @counted(how=GRADIENTS)
    def step_along_zeros(self, how: dict[str, Any]) -> None:
        self.advance({i: torch.zeros_like(g) for i, g in self.gradients(how).items()})

    @precondition(lambda self: len(self.groups) < 5)
    @counted(whole=st.booleans(), radius_lr=st.sampled_from([None, 0.1]), lr=st.sampled_from([0.05, 0.01]))
    def add_a_group(self, whole: bool, radius_lr: float | None, lr: float) -> None:
        i = len(self.inside())
        if i == len(SHAPES):
            return
        options = self.flags() | {"lr": lr} | ({} if radius_lr is None else {"radius_lr": radius_lr})
        options |= {} if whole else {"constrained": False}
        unknown = self._constrained(i, whole) and self.known is not None and self.names[i] not in self.known
        for side in (self.subject, self.twin):
            group = {"params": self.named(side.params, [i])} | options
            if unknown:
                with pytest.raises(ValueError, match="anchor has no entry"):
                    side.opt.add_param_group(group)
                continue
            side.opt.add_param_group(group)
            side.scheduler = None  # torch's count the groups when they are made
        if not unknown:
            self.groups.append(([i], whole))
            self.layers[i] = Layer(self._constrained(i, whole), self.twin.params[i].dtype == F64)

    @counted(
        group=st.integers(0, 4),
        option=st.sampled_from(
            [("lr", 0.02), ("lr", 0.0), ("weight_decay", 0.3), ("kappa", 0.7), ("radius_lr", 0.02), ("radius_lr", 0.0),
             ("gradient", "exact"), ("gradient", "paper"), ("momentum", 0.6)]
        ),
    )  # fmt: skip
    def change_an_option(self, group: int, option: tuple[str, Any]) -> None:
        name, value = option
        for side in (self.subject, self.twin):
            found = side.opt.param_groups[group % len(self.groups)]
            if name in found and (name != "momentum" or found[name]):  # a buffer that is late is torch's own affair
                found[name] = value
            elif name == "momentum" and "betas" in found:
                found["betas"] = (value, 0.95)

    @counted(execution=EXECUTIONS)
    def switch_the_execution(self, execution: str) -> None:
        self.execution = execution
        for side in (self.subject, self.twin):
            for group in side.opt.param_groups:
                group.update(self.flags())
            if execution == "fused_cpu":
                self._lay_out(side, lambda p: p if p.ndim != 2 else p.contiguous())

    @counted(kind=st.sampled_from(["LambdaLR", "OneCycleLR"]))
    def schedule(self, kind: str) -> None:
        """A scheduler is made once; then it makes steps."""
        for side in (self.subject, self.twin):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # before the first step of an optimizer
                if side.scheduler:
                    side.scheduler.step()
                else:
                    self.kind = kind
                    side.scheduler = self._schedule(side.opt)

    def _schedule(self, opt: torch.optim.Optimizer) -> Any:
        if self.kind == "LambdaLR":
            return torch.optim.lr_scheduler.LambdaLR(opt, lambda t: 1 / (1 + t))
        cycles = "sgd" not in self.plan["kind"] or self.plan["momentum"][0] > 0
        return torch.optim.lr_scheduler.OneCycleLR(opt, 0.1, total_steps=1000, cycle_momentum=cycles)

    @counted(i=PLACES, frozen=st.booleans())
    def freeze(self, i: int, frozen: bool) -> None:
        for side in (self.subject, self.twin):
            side.params[i].requires_grad_(not frozen)

    @counted(i=PLACES, way=st.sampled_from(["copy_", "data", "to the anchor", "load"]), seed=st.integers(0, 99))
    def change_weights_from_outside(self, i: int, way: str, seed: int) -> None:
        torch.manual_seed(seed)
        p, layer = self.twin.params[i], self.layers.get(i)
        new = (p.detach().double() + 0.1 * torch.randn(p.shape, dtype=F64)).to(p.dtype)
        if way == "to the anchor" and layer is not None and layer.anchor is not None:
            new = layer.anchor.to(p.dtype)
        for side in (self.subject, self.twin):
            p = side.params[i]
            if way == "data":
                p.data = torch.empty_like(p.data).copy_(new)
            elif way == "load":
                torch.nn.ParameterList([p]).load_state_dict({"0": new})
            else:
                p.data.copy_(new)

    @counted(last=st.booleans())
    def change_the_memory_format(self, last: bool) -> None:
        def laid(p: torch.Tensor) -> torch.Tensor:
            if p.ndim == 4:
                return p.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
            turned = last and p.ndim == 2 and self.execution != "fused_cpu"  # which refuses rows in pieces
            return p.t().contiguous().t() if turned else p.contiguous()

        for side in (self.subject, self.twin):
            self._lay_out(side, laid)

    def _lay_out(self, side: Side, laid: Callable[[torch.Tensor], torch.Tensor]) -> None:
        for p in side.params:
            p.data = laid(p.data)

    @precondition(lambda self: self.native and not self.plan["lean"])
    @counted(dtype=st.sampled_from([F64, F32, BF16]), which=st.sets(PLACES))
    def change_the_dtype(self, dtype: torch.dtype, which: set[int]) -> None:
        """Of some parameters, or of the whole model. A given base fits its state to no other dtype."""
        for i in which or range(len(SHAPES)):
            for side in (self.subject, self.twin):
                side.params[i].data = side.params[i].data.to(dtype)
            if i in self.layers:
                self.layers[i].exact = False

    # -- what the subject does in another way than its twin -----------------------------------------------------------

    @counted(how=GRADIENTS)
    def step_with_a_closure(self, how: dict[str, Any]) -> None:
        grads = self.gradients(how)

        def closure() -> float:
            assert torch.is_grad_enabled()
            self.offer(self.subject, grads)
            return 7.0

        def step() -> None:
            self.offer(self.subject, {})
            assert self.subject.opt.step(closure) == 7.0

        self.advance(grads, step)

    @counted(how=GRADIENTS, overflows=st.booleans(), scale=st.sampled_from([2.0**10, 2.0**-3]))
    def step_with_a_scaler(self, how: dict[str, Any], overflows: bool, scale: float) -> None:
        """Powers of two scale without rounding. Unscaling in place needs memory of its own, in the weights' dtype."""
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        grads = self.gradients(how, "plain")

        def scaled() -> None:
            scaler.scale(torch.zeros(()))
            scaler.step(self.subject.opt)
            scaler.update()

        which = next((g for g in grads.values() if g.numel()), None)
        if grads and not overflows:
            self.advance(grads, scaled, scale)
        elif which is not None:
            which[(-1,) * which.ndim] = float("inf")
            self.offer(self.subject, grads)
            scaled()
            self.subject.opt.zero_grad()

    @counted(afresh=st.booleans())
    def save_and_load(self, afresh: bool) -> None:
        """Through a file, into a new optimizer or this one."""
        side = self.subject
        saved = through_a_file(side.opt.state_dict())
        if afresh and (self.plan["save_anchor"] or self.given is not None):  # else nobody knows the anchor
            side.opt = self.made(side.params)
            self._schedule_anew(lambda: side.opt.load_state_dict(saved))
        else:
            side.opt.load_state_dict(saved)

    def _schedule_anew(self, then: Callable[[], Any]) -> None:
        """The subject's scheduler is made for its new optimizer, and has its old state after ``then``."""
        old = self.subject.scheduler
        if old:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                self.subject.scheduler = self._schedule(self.subject.opt)
        then()
        if old:
            self.subject.scheduler.load_state_dict(old.state_dict())

    @counted(way=st.sampled_from(["deepcopy", "pickle"]))
    def copy_everything(self, way: str) -> None:
        side, pair = self.subject, (self.subject.params, self.subject.opt)
        side.params, side.opt = copy.deepcopy(pair) if way == "deepcopy" else pickle.loads(pickle.dumps(pair))
        options = [kept({k: v for k, v in group.items() if k != "params"}) for group in side.opt.param_groups]
        self._schedule_anew(lambda: None)
        for group, old in zip(side.opt.param_groups, options, strict=True):
            group.update(old)

    # -- what changes nothing -----------------------------------------------------------------------------------------

    @counted()
    def look(self) -> None:
        opt = self.subject.opt
        opt.radii(), opt.state_dict(), repr(opt), opt.zero_grad(set_to_none=False)
