"""Rules of the state machine: steps, groups, options, schedules, and what happens to the parameters."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import precondition
from torch import Tensor

from ..support.compare import kept
from .machine_books import Books
from .machine_plan import BF16, EXECUTIONS, F32, F64, GRADIENTS, OPTIONS, SHAPES, counted
from .machine_reference import BALL


class Training(Books):
    """What a training script does between two checkpoints."""

    # -- steps ------------------------------------------------------------------------------------------------------

    @counted(how=GRADIENTS, often=st.integers(1, 4))
    def step(self, how: dict[str, Any], often: int) -> None:
        for k in range(often):
            self.advance(self.gradients(how | {"seed": how["seed"] + k}))

    @counted(how=GRADIENTS)
    def step_with_a_closure(self, how: dict[str, Any]) -> None:
        grads = self.gradients(how)

        def closure() -> float:
            assert torch.is_grad_enabled()
            self._offer(grads)
            return 7.0

        def step() -> None:
            self._offer({})
            assert self.opt.step(closure) == 7.0

        self.advance(grads, step)

    @counted()
    def step_without_gradients(self) -> None:
        self.advance({})

    @counted(how=GRADIENTS)
    def step_along_zeros(self, how: dict[str, Any]) -> None:
        self.advance({i: torch.zeros_like(g) for i, g in self.gradients(how).items()})

    @counted(how=GRADIENTS, overflows=st.booleans(), scale=st.sampled_from([2.0**10, 2.0**-3]))
    def step_with_a_scaler(self, how: dict[str, Any], overflows: bool, scale: float) -> None:
        """Powers of two scale without rounding. Unscaling in place needs memory of its own, in the weights' dtype."""
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        grads = self.gradients(how, "plain")
        if not grads:
            return

        def scaled() -> None:
            scaler.scale(torch.zeros(()))
            scaler.step(self.opt)
            scaler.update()

        if not overflows:
            self.advance(grads, scaled, scale)
            return
        which = next((g for g in grads.values() if g.numel()), None)
        if which is not None:
            which[(-1,) * which.ndim] = float("inf")
            self._offer(grads)
            scaled()
            self.opt.zero_grad()

    # -- groups, options and schedules --------------------------------------------------------------------------------

    @precondition(lambda self: len(self.groups) < 5)
    @counted(whole=st.booleans(), radius_lr=st.sampled_from([None, 0.1]), lr=st.sampled_from([None, 0.01]))
    def add_a_group(self, whole: bool, radius_lr: float | None, lr: float | None) -> None:
        i = len(self._inside())
        if i == len(SHAPES):
            return
        if self.plan["tensor_lr"] and lr is None:
            lr = self.plan["lr"]  # the tensor that is the default has been written to by schedulers
        base = self._flags() | ({} if lr is None else {"lr": lr})
        group = {"params": self._of([i])} | base | ({} if radius_lr is None else {"radius_lr": radius_lr})
        if not whole:
            group["constrained"] = False
        if self._constrained(i, whole) and self.names[i] not in (self.known or self.names):
            with pytest.raises(ValueError, match="anchor has no entry"):
                self.opt.add_param_group(group)
            return
        self.opt.add_param_group(group)
        self.plain.add_param_group({"params": [self.twins[i]]} | base)
        own = {name: self.plan[name] for name in (*OPTIONS, "lean")}
        self.own.append(own | ({} if radius_lr is None else {"radius_lr": radius_lr}))
        self.groups.append(([i], whole))
        self._enter([i], whole)
        self.schedules = []  # torch's count the groups when they are made

    @counted(
        group=st.integers(0, 4),
        option=st.sampled_from(
            [("lr", 0.02), ("lr", 0.0), ("weight_decay", 0.3), ("kappa", 0.7), ("radius_lr", 0.02), ("radius_lr", 0.0),
             ("gradient", "exact"), ("gradient", "paper"), ("momentum", 0.6), ("momentum", 0.0)]
        ),
    )  # fmt: skip
    def change_an_option(self, group: int, option: tuple[str, Any]) -> None:
        k, (name, value) = group % len(self.groups), option
        if name == "momentum" and "betas" in self.plain.defaults:
            name, value = "betas", (value, 0.95)
        if name == "momentum" and not self._momentum_may_change():
            return
        mine = self.own[k] if name in OPTIONS else self.plain.param_groups[k]
        self.opt.param_groups[k][name] = mine[name] = value

    def _momentum_may_change(self) -> bool:
        """torch's bases make no buffer later, and nesterov needs one."""
        return self.native and not ("sgd" in self.plan["kind"] and self.plan["momentum"][2])

    @counted(execution=EXECUTIONS)
    def switch_the_execution(self, execution: str) -> None:
        self.execution = execution
        for group in (*self.opt.param_groups, *self.plain.param_groups):
            group.update(self._flags())
        if execution == "fused_cpu":
            self._lay_out(lambda p: p if p.ndim != 2 else p.contiguous())

    @counted(kind=st.sampled_from(["LambdaLR", "OneCycleLR"]))
    def schedule(self, kind: str) -> None:
        """A scheduler is made once; then it makes steps."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # before the first step of an optimizer
            if self.schedules:
                for scheduler in self.schedules:
                    scheduler.step()
            else:
                self.kind = kind
                self.schedules = [self._schedule(opt) for opt in (self.opt, self.plain)]

    def _schedule(self, opt: torch.optim.Optimizer) -> Any:
        if self.kind == "LambdaLR":
            return torch.optim.lr_scheduler.LambdaLR(opt, lambda t: 1 / (1 + t))
        cycles = self._momentum_may_change()
        return torch.optim.lr_scheduler.OneCycleLR(opt, 0.1, total_steps=1000, cycle_momentum=cycles)

    # -- the parameters ---------------------------------------------------------------------------------------------

    @counted(i=st.integers(0, len(SHAPES) - 1), frozen=st.booleans())
    def freeze(self, i: int, frozen: bool) -> None:
        self.params[i].requires_grad_(not frozen)

    @counted(
        i=st.integers(0, len(SHAPES) - 1),
        how=st.sampled_from(["copy_", "data", "in place", "to the anchor", "load"]),
        seed=st.integers(0, 99),
    )
    def change_weights_from_outside(self, i: int, how: str, seed: int) -> None:
        torch.manual_seed(seed)
        p = self.params[i]
        layer = self.layers.get(i)
        new = (p.detach().double() + 0.1 * torch.randn(p.shape, dtype=F64)).to(p.dtype)
        if how == "to the anchor" and layer is not None and layer.anchor is not None:
            new = layer.anchor.to(p.dtype)
        if how == "data":
            p.data = torch.empty_like(p.data).copy_(new)
        elif how == "in place":
            p.data.mul_(0.9)
        elif how == "load":
            torch.nn.ParameterList([p]).load_state_dict({"0": new})
        else:
            p.data.copy_(new)
        self.books[i] = kept(p), self.books[i][1]

    @counted(last=st.booleans())
    def change_the_memory_format(self, last: bool) -> None:
        form = torch.channels_last if last else torch.contiguous_format

        def laid(p: Tensor) -> Tensor:
            if p.ndim == 4:
                return p.contiguous(memory_format=form)
            turned = last and p.ndim == 2 and self.execution != "fused_cpu"  # which refuses rows in pieces
            return p.t().contiguous().t() if turned else p.contiguous()

        self._lay_out(laid)

    def _lay_out(self, laid: Callable[[Tensor], Tensor]) -> None:
        for i, p in enumerate(self.params):
            p.data = laid(p.data)
            self.books[i] = kept(p), self.books[i][1]

    @precondition(lambda self: not self.plan["lean"])
    @counted(dtype=st.sampled_from([F64, F32, BF16]), which=st.sets(st.integers(0, len(SHAPES) - 1)))
    def change_the_dtype(self, dtype: torch.dtype, which: set[int]) -> None:
        """Of some parameters, or of the whole model. The base of a wrapper gets its state in the new dtype by hand."""
        for i in which or range(len(SHAPES)):
            p = self.params[i]
            p.data = p.data.to(dtype)
            if not self.native and i in self.layers:
                for state in (self.opt.state, self.plain.state):
                    self._cast(state.get(p if state is self.opt.state else self.twins[i], {}), dtype)
            self.books[i] = kept(p), kept(dict(self.opt.state.get(p, {}))) if not self.native else self.books[i][1]

    def _cast(self, state: dict[str, Any], dtype: torch.dtype) -> None:
        for name, value in state.items():
            if isinstance(value, Tensor) and name not in (*BALL, "radius_step", "anchor", "step"):
                state[name] = value.to(dtype)
