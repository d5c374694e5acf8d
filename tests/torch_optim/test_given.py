"""Bases that do more than torch's: own checkpoints, an optimizer inside, ways of their own to step."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

import pytest
import torch

import hyperopt_ftp as hft

from ..support.given_bases import GRADIENT, Replacing, Slow, every_wrapper, run, weights


@every_wrapper
def test_a_base_that_saves_in_its_own_form_goes_on_bit_for_bit(wrap):
    def fresh() -> tuple[torch.nn.Parameter, Any]:
        p = weights()
        return p, wrap(Slow(torch.optim.Adam([p], lr=0.05)))

    p, opt = fresh()
    run(p, opt, range(4))
    saved = copy.deepcopy((p, opt.state_dict()))
    there = run(p, opt, range(4, 8))

    q, again = fresh()
    run(q, again, range(2))  # what is loaded replaces what is there
    q.data.copy_(saved[0].data)
    again.load_state_dict(saved[1])
    assert again.param_groups is again.base.param_groups is again.base.inside.param_groups
    assert again.state is again.base.state
    assert torch.equal(run(q, again, range(4, 8)), there)
    assert again.base.count == 8


def test_what_is_ours_does_not_enter_the_bases_checkpoint():
    p = weights()
    opt = hft.FTP(Slow(torch.optim.Adam([p], lr=0.05)))
    run(p, opt, range(2))
    before = dict(opt.state[p])
    saved = opt.state_dict()
    assert set(saved["base"]["slow"][0]) == {"slow"}
    assert set(saved["state"][0]) == {
        "deviation", "row_norm", "radius", "radius_exp_avg", "radius_exp_avg_sq", "radius_step", "anchor"
    }  # fmt: skip
    assert opt.state[p].keys() == before.keys()
    assert all(opt.state[p][key] is value for key, value in before.items())


def test_a_checkpoint_without_what_the_base_wrote_is_refused():
    p = weights()
    opt = hft.FTP(Slow(torch.optim.Adam([p], lr=0.05)))
    run(p, opt, range(2))
    saved, alone = copy.deepcopy(opt.state_dict()), copy.deepcopy(opt.base.state_dict())
    run(p, opt, range(2, 4))
    before = str(opt.state_dict())
    for wrong, text in (
        ({key: saved[key] for key in ("state", "param_groups")}, "has no entry 'base'"),
        (saved | {"base": {**alone, "slow": []}}, "does not suit Slow, which cannot load it"),
        (saved | {"base": {key: alone[key] for key in ("slow", "inside")}}, "does not suit Slow.*count"),
    ):
        with pytest.raises(ValueError, match=text):
            opt.load_state_dict(wrong)
        assert str(opt.state_dict()) == before
        assert opt.state is opt.base.state


def test_a_base_may_keep_other_things_in_its_state():
    class Counting(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            self.state["calls"] = self.state.get("calls", 0) + 1
            return super().step(closure)

    p = weights()
    opt = hft.FTP(Counting([p], lr=0.1))
    run(p, opt, range(3))
    saved = copy.deepcopy(opt.state_dict())
    assert saved["state"]["calls"] == 3
    again = hft.FTP(Counting([q := weights()], lr=0.1))
    again.load_state_dict(saved)
    run(q, again, range(1))
    assert again.state["calls"] == 4


@pytest.mark.parametrize("damage", ["an entry is missing", "an entry is no dict"])
def test_a_load_that_the_base_refuses_in_the_middle_changes_nothing(damage):
    class Careless(Slow):
        """Changes its state in place, and looks at nothing."""

        def load_state_dict(self, state_dict: Any) -> None:
            for (p, state), saved in zip(list(self.state.items()), state_dict["slow"], strict=True):
                state.clear()
                if isinstance(saved, dict):
                    state["slow"] = saved["slow"]
                else:
                    self.state[p] = saved

    p, q = weights(), weights()
    opt = hft.FTP(Careless(torch.optim.Adam([p, q], lr=0.05)))
    p.grad = q.grad = GRADIENT
    opt.step()
    saved = copy.deepcopy(opt.state_dict())
    wrong = copy.deepcopy(saved)
    wrong["base"]["slow"][1] = {} if damage == "an entry is missing" else 3
    with pytest.raises(ValueError, match="does not suit Careless, which cannot load it"):
        opt.load_state_dict(wrong)
    assert str(opt.state_dict()) == str(saved)
    assert opt.state is opt.base.state


def test_hooks_of_the_base_write_and_read_its_part_of_a_checkpoint():
    class Hooked(torch.optim.SGD):
        """Counts its steps outside its state, and saves the count by hooks."""

        def __init__(self, params: Any) -> None:
            super().__init__(params, lr=0.1)
            self.calls = 0
            self.register_state_dict_post_hook(lambda base, saved: {**saved, "calls": base.calls})
            self.register_load_state_dict_pre_hook(lambda base, saved: setattr(base, "calls", saved["calls"]))

        def step(self, closure: Any = None) -> Any:
            self.calls += 1
            return super().step(closure)

    p = weights()
    opt = hft.FTP(Hooked([p]))
    run(p, opt, range(3))
    again = hft.FTP(Hooked([weights()]))
    again.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert again.base.calls == 3


def test_groups_that_come_later_have_the_defaults_of_a_base_around_another():
    """Which hands a group on to the one inside, that knows nothing of them."""

    class Outer(Slow):
        def __init__(self, inside: torch.optim.Optimizer) -> None:
            super().__init__(inside)
            self.defaults = {**inside.defaults, "every": 3}

        def add_param_group(self, param_group: Any) -> None:
            self.inside.add_param_group(param_group)
            for p in self.param_groups[-1]["params"]:
                self.state[p]["slow"] = p.detach().clone()

    def fresh() -> Any:
        opt = hft.FTP(Outer(torch.optim.SGD([weights()], lr=0.1)))
        opt.add_param_group({"params": [weights()]})
        return opt

    opt = fresh()
    assert opt.defaults is opt.base.defaults
    assert opt.param_groups[1].keys() == opt.param_groups[0].keys()
    fresh().load_state_dict(copy.deepcopy(opt.state_dict()))
    opt.state = defaultdict(dict, opt.state)  # put in, and not stepped yet
    opt.add_param_group({"params": [weights()]})
    before = str(opt.state_dict())
    with pytest.raises(TypeError, match="constrained must be True or False"):
        opt.add_param_group({"params": [weights()], "constrained": "no"})
    assert len(opt.state) == 3  # the base has made nothing for it
    assert str(opt.state_dict()) == before


# -- ways to step -----------------------------------------------------------------------------------------------------


class Counted(torch.optim.Optimizer):
    """Fills its state when it is built, and counts it at the first step, as timm's Adahessian."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["calls"] = 0

    def step(self, closure: Any = None) -> None:
        for p, state in self.state.items():
            if len(state) == 1:
                state["first"] = torch.zeros_like(p)
            state["calls"] += 1
            p.data.sub_(p.grad - state["first"], alpha=0.1)


class Twice(torch.optim.SGD):
    """Two steps are one displacement."""

    def step(self, closure: Any = None) -> Any:
        super().step()
        return super().step()


@pytest.mark.parametrize(
    ("base", "lr", "rtol"),
    [(Counted, 0.1, 1e-14), (Replacing, 0.1, 1e-14), (lambda params: Twice(params, lr=0.1), 0.2, 1e-12)],
    ids=["counted", "replacing", "twice"],
)
def test_a_base_with_odd_ways_is_held_as_gradient_descent(base, lr, rtol):
    p, q = weights(), weights()
    opt, same = hft.FTP(base([p]), radius_lr=0.05), hft.FTP(torch.optim.SGD([q], lr=lr), radius_lr=0.05)
    torch.testing.assert_close(run(p, opt, range(5)), run(q, same, range(5)), rtol=rtol, atol=rtol)
    assert opt.radii() == pytest.approx(same.radii(), rel=10 * rtol)
    assert opt.state[p].get("calls", 5) == 5


def test_flags_of_a_base_that_is_not_torchs_choose_no_backend():
    """They are its own, often defaults that nobody wrote; those of torch's are a wish."""
    group = {"params": [weights()], "foreach": True}
    own = Replacing([group])
    assert hft.FTP(own).execution == "fused_cpu"
    assert own.param_groups[0]["foreach"] is True
    assert hft.FTP(torch.optim.SGD([weights()], lr=0.1, foreach=True)).execution == "foreach"


def test_a_base_that_needs_a_closure_is_refused():
    class Searching(torch.optim.SGD):
        def step(self, closure: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            return closure()

    with pytest.raises(TypeError, match="Searching evaluates the loss at several points in one step"):
        hft.FTP(Searching([weights()], lr=0.1))


@every_wrapper
@pytest.mark.filterwarnings("ignore:after step 1 the radius of 0 is nan")
def test_a_base_may_leave_a_parameter_out_at_first(wrap):
    """As where a scaled gradient has overflowed: ours is not to look like its own state of an earlier step."""

    class Skipping(torch.optim.Optimizer):
        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            for p in self.param_groups[0]["params"]:
                if p.grad is not None and p.grad.isfinite().all():
                    state = self.state[p]
                    if not state:
                        state["sum"] = torch.zeros_like(p)
                    p.sub_(state["sum"].add_(p.grad), alpha=0.1)

    p = weights()
    opt = wrap(Skipping([p], {"lr": 0.1}))
    for scale in (float("inf"), 1.0, 1.0):
        p.grad = torch.full_like(p, scale)
        opt.step()
    assert "sum" in opt.state[p]
    assert len(opt.state[p]) > 1


class Plain(torch.optim.Optimizer):
    """Gradient descent with options of its own."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, {"lr": 0.1, **options})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            p.sub_(p.grad, alpha=0.1)


@every_wrapper
def test_options_of_a_base_are_its_own(wrap):
    """What is called like ours is not read as ours; what has a place of ours in the group is refused."""
    p = torch.nn.Parameter(torch.ones(2, 3, dtype=torch.bfloat16))
    run_with = wrap(Plain([p], lean=True))
    run_with.grad_scale, run_with.found_inf = torch.tensor(4.0), torch.ones(())  # of a scaler that never asked
    p.grad = torch.ones_like(p)
    before = p.detach().clone()
    run_with.step()
    run_with.step()
    assert not torch.equal(p, before)
    with pytest.raises(ValueError, match=r"keeps \['made_by'\] in the groups"):
        wrap(Plain([weights()], made_by="somebody"))


@every_wrapper
def test_a_base_that_replaces_its_state_and_fails_is_heard(wrap):
    class Failing(Plain):
        def step(self, closure: Any = None) -> None:
            self.state = defaultdict(dict)
            raise ArithmeticError("boom")

    p = weights()
    opt = wrap(Failing([p]))
    p.grad = torch.ones_like(p)
    with pytest.raises(ArithmeticError, match="boom"):
        opt.step()
    assert not opt.state
