"""A state machine that does to an optimizer, in any order, what scripts do to one, and compares with the reference.

Here: copies and mistakes. ``machine_training`` has the other rules, ``machine_books`` what holds after each.
"""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from ..support.compare import kept, same
from .machine_plan import GRADIENTS, SHAPES, counted, of_a_module
from .machine_training import Training


class Machine(Training):
    """All rules."""

    # -- copies -----------------------------------------------------------------------------------------------------

    @counted(how=GRADIENTS, afresh=st.booleans())
    def save_and_load(self, how: dict[str, Any], afresh: bool) -> None:
        """Through a file, into a new optimizer or this one; then a step, which one that was not reloaded makes too."""
        file = io.BytesIO()
        torch.save(self.opt.state_dict(), file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        straight, unloaded = copy.deepcopy((self.params, self.opt))
        if afresh and self._can_be_built_anew():
            self.opt = self._subject()
            self.ran = self.opt.execution
            if self.schedules:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)
                    scheduler = self._schedule(self.opt)
                self.opt.load_state_dict(saved)
                scheduler.load_state_dict(self.schedules[0].state_dict())
                self.schedules[0] = scheduler
            else:
                self.opt.load_state_dict(saved)
        else:
            self.opt.load_state_dict(saved)
        self.only_what_may_change_has_changed()
        grads = self.gradients(how)
        again = kept(grads)  # torch's foreach SGD writes into gradients under nesterov
        self.advance(grads)
        for i, g in again.items():
            straight[i].grad_dtype, straight[i].grad = g.dtype, g
        unloaded.step()
        for i in self._inside():
            assert same(straight[i].detach(), self.books[i][0]), f"weights of {self.names[i]} after loading"
            assert self._same_state(unloaded.state.get(straight[i], {}), self.books[i][1]), f"state of {self.names[i]}"

    def _can_be_built_anew(self) -> bool:
        """Without anchors in the file they have to be given again, by name."""
        if self.plan["save_anchor"] or self.given is not None:
            return True
        if not self.plan["named"]:
            return False
        self.known = {}
        for i, p in enumerate(self.params):
            begun = self.layers[i].anchor if i in self.layers else None
            self.known[self.names[i]] = kept(p) if begun is None else begun
        self.given = of_a_module(self.known)
        return True

    @counted(through_a_file=st.booleans())
    def copy_everything(self, through_a_file: bool) -> None:
        """The model and its optimizer, pickled or copied together; a scheduler is made anew, with its old state."""
        if through_a_file:
            file = io.BytesIO()
            torch.save((self.params, self.opt), file)
            file.seek(0)
            self.params, self.opt = torch.load(file, weights_only=False)
        else:
            self.params, self.opt = copy.deepcopy((self.params, self.opt))
        if self.schedules:
            options = [kept({k: v for k, v in g.items() if k != "params"}) for g in self.opt.param_groups]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                scheduler = self._schedule(self.opt)
            scheduler.load_state_dict(self.schedules[0].state_dict())
            self.schedules[0] = scheduler
            for group, old in zip(self.opt.param_groups, options, strict=True):
                group.update(old)

    # -- what changes nothing -----------------------------------------------------------------------------------------

    @counted()
    def look(self) -> None:
        self.opt.radii()
        self.opt.state_dict()
        repr(self.opt)
        self.opt.zero_grad(set_to_none=False)

    @counted(
        what=st.sampled_from(["kappa", "constrained", "twice", "integers", "name"]), i=st.integers(0, len(SHAPES) - 1)
    )
    def add_a_wrong_group(self, what: str, i: int) -> None:
        new = torch.nn.Parameter(torch.ones(2))
        pair: Any = ("another", new) if self.plan["named"] else new
        old = self._inside()[i % len(self._inside())]
        wrong: dict[str, dict[str, Any]] = {
            "kappa": {"params": [pair], "kappa": 2.0, "constrained": False},
            "constrained": {"params": [pair], "constrained": "no"},
            "twice": {"params": self._of([old])},
            "integers": {"params": [("ints", torch.ones(2).int()) if self.plan["named"] else torch.ones(2).int()]},
            "name": {"params": [(f"module.{self.names[old]}", new)]},
        }
        if what == "name" and not self.plan["named"]:
            return
        with pytest.raises((ValueError, TypeError)):
            self.opt.add_param_group(wrong[what])

    @counted(
        what=st.sampled_from(
            ["a key", "a shape", "kappa", "norm", "constrained", "a group", "order", "no state", "anchor"]
        )
    )
    def load_a_damaged_file(self, what: str) -> None:
        saved = copy.deepcopy(self.opt.state_dict())
        group = saved["param_groups"][0]
        held = next((s for s in saved["state"].values() if "radius" in s), None)
        if what in ("a key", "a shape", "no state", "anchor") and held is None:
            return
        if what == "a key":
            del held["radius_exp_avg"]
        elif what == "a shape":
            held["deviation"] = torch.zeros(7, 7)
        elif what == "no state":
            for key in ("deviation", "row_norm", "radius_step"):
                del held[key]
        elif what == "anchor":
            if "anchor" in held and self.given is not None and held["anchor"].numel():
                held["anchor"][(-1,) * held["anchor"].ndim] += 1.0
            elif "anchor_fingerprint" in held and "anchor" not in held:
                held["anchor_fingerprint"] += 1
            else:
                return
        elif what == "kappa":
            group["kappa"] = 2.0
        elif what == "norm":
            group["norm"] = "l1"
        elif what == "constrained":
            group["constrained"] = ["no"] * len(group["params"])
        elif what == "a group":
            saved["param_groups"].append({**group, "params": [99]})
        elif self.plan["named"]:
            group["param_names"] = group["param_names"][::-1]
        else:
            group["params"] = [*group["params"], 99]
        with pytest.raises((ValueError, TypeError)):
            self.opt.load_state_dict(saved)

    @counted(how=GRADIENTS, what=st.sampled_from(["sparse", "closure"]), last=st.booleans())
    def step_wrongly(self, how: dict[str, Any], what: str, last: bool) -> None:
        grads = self.gradients(how, "plain")

        def fails() -> None:
            raise ArithmeticError

        if what == "closure":
            self._offer(grads)
            with pytest.raises(ArithmeticError):
                self.opt.step(fails)
        elif grads:
            i = list(grads)[-last]
            self._offer(grads)
            self.params[i].grad = grads[i].contiguous().to_sparse()
            with pytest.raises(RuntimeError, match="must be dense"):
                self.opt.step()
        self.opt.zero_grad()
