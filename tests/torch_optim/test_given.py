"""Bases that do more than torch's: own checkpoints, an optimizer inside, two modes, weights that are replaced."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from typing import Any

import pytest
import torch

import hyperopt_ftp as hft

GRADIENT = torch.tensor([[1.0, -1.0, 0.5], [0.1, 0.2, -0.3]], dtype=torch.float64)


class Slow(torch.optim.Optimizer):
    """Lookahead (arXiv 1907.08610): an optimizer inside, whose groups it shows, and slow weights of its own.

    As several packages write it: without the constructor of torch, with a state_dict of another form.
    """

    def __init__(self, inside: torch.optim.Optimizer, every: int = 3) -> None:
        self._optimizer_step_pre_hooks: Any = OrderedDict()
        self._optimizer_step_post_hooks: Any = OrderedDict()
        self.inside, self.every, self.count = inside, every, 0
        self.defaults = inside.defaults
        self.state: Any = defaultdict(dict)
        for group in inside.param_groups:
            for p in group["params"]:
                self.state[p]["slow"] = p.detach().clone()

    @property
    def param_groups(self) -> Any:
        return self.inside.param_groups

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.inside.step()
        self.count += 1
        if self.count % self.every == 0:
            for p, state in self.state.items():
                state["slow"].lerp_(p, 0.5)
                p.copy_(state["slow"])

    def state_dict(self) -> Any:
        slow = [dict(state) for state in self.state.values()]
        return {"slow": slow, "inside": self.inside.state_dict(), "count": self.count}

    def load_state_dict(self, state_dict: Any) -> None:
        if len(state_dict["slow"]) != len(self.state):
            raise ValueError("other parameters")
        self.inside.load_state_dict(state_dict["inside"])
        for state, saved in zip(self.state.values(), state_dict["slow"], strict=True):
            state.clear()
            state.update({key: value.clone() for key, value in saved.items()})
        self.count = state_dict["count"]


class Averaged(torch.optim.Optimizer):
    """Schedule-free gradient descent (arXiv 2405.15682): trains y, deploys the average x."""

    def __init__(self, params: Any, lr: float = 0.1, beta: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "beta": beta, "train_mode": False, "k": 0})

    def _to(self, training: bool) -> None:
        for group in self.param_groups:
            if group["train_mode"] is not training:
                for p in group["params"]:
                    if "z" in self.state[p]:
                        weight = 1 - group["beta"] if training else 1 - 1 / group["beta"]
                        p.data.lerp_(self.state[p]["z"], weight)
                group["train_mode"] = training

    def train(self) -> None:
        self._to(True)

    def eval(self) -> None:
        self._to(False)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            if not group["train_mode"]:
                raise RuntimeError("not in train mode")
            group["k"] += 1
            for p in group["params"]:
                if p.grad is not None:
                    z = self.state[p].setdefault("z", p.clone())
                    x = p.lerp(z, 1 - 1 / group["beta"])
                    z.sub_(p.grad, alpha=group["lr"])
                    x.lerp_(z, 1 / group["k"])
                    p.copy_(x.lerp(z, 1 - group["beta"]))


class Kept(Averaged):
    """Deploys a copy, and trains on as if it were not there: no projection of what is deployed can hold it."""

    def _to(self, training: bool) -> None:
        for group in self.param_groups:
            if group["train_mode"] is not training:
                for p in group["params"]:
                    state = self.state[p]
                    if training and "y" in state:
                        p.data.copy_(state.pop("y"))
                    elif not training and "z" in state:
                        state["y"] = p.detach().clone()
                group["train_mode"] = training


class Replacing(torch.optim.Optimizer):
    """Gradient descent that gives each parameter new memory at each step."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.data = p.data - group["lr"] * p.grad


def weights() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.ones(2, 3, dtype=torch.float64))


def run(p: torch.nn.Parameter, opt: Any, steps: range) -> torch.Tensor:
    for t in steps:
        p.grad = GRADIENT * (1 + 0.3 * t)
        opt.step()
    return p.detach().clone()


WRAPPERS = {
    "FTP": lambda base: hft.FTP(base, radius_lr=0.05),
    "MARSSP": lambda base: hft.MARSSP(base, radius=0.05),
    "L2SP": lambda base: hft.L2SP(base, strength=0.1),
    "HypergradientDescent": lambda base: hft.HypergradientDescent(base, lr_lr=0.001),
}
every_wrapper = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


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
    saved = copy.deepcopy(opt.state_dict())
    alone = copy.deepcopy(opt.base.state_dict())
    run(p, opt, range(2, 4))
    for wrong, text in (
        ({key: saved[key] for key in ("state", "param_groups")}, "has no entry 'base'"),
        (saved | {"base": {**alone, "slow": []}}, "does not suit Slow, which cannot load it"),
        (saved | {"base": {key: alone[key] for key in ("slow", "inside")}}, "does not suit Slow.*count"),
    ):
        before = copy.deepcopy(opt.state_dict())
        with pytest.raises(ValueError, match=text):
            opt.load_state_dict(wrong)
        assert str(opt.state_dict()) == str(before)
        assert opt.state is opt.base.state


def test_an_optimizer_inside_the_base_sees_the_learning_rates_of_the_wrapper():
    p, q = weights(), weights()
    opt, alone = hft.MARSSP(Slow(torch.optim.SGD([p], lr=0.1)), radius=1e9), Slow(torch.optim.SGD([q], lr=0.1))
    for t in range(4):
        for optimizer in (opt, alone):
            optimizer.param_groups[0]["lr"] = 0.1 / (t + 1)
        torch.testing.assert_close(run(p, opt, range(t, t + 1)), run(q, alone, range(t, t + 1)), rtol=1e-15, atol=1e-15)


def test_groups_that_a_base_does_not_let_go_of_cannot_be_put_in():
    p = weights()
    opt = hft.FTP(Slow(torch.optim.SGD([p], lr=0.1)))
    opt.param_groups = [dict(opt.param_groups[0])]
    p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match="state was loaded without its wrapper"):
        opt.step()


def test_defaults_are_the_bases():
    base = torch.optim.SGD([weights()], lr=0.1)
    opt = hft.FTP(base)
    assert opt.defaults is base.defaults
    opt.defaults["lr"] = 0.5
    opt.add_param_group({"params": [weights()]})
    assert opt.param_groups[1]["lr"] == 0.5


def test_after_an_error_the_base_is_as_it_was():
    base = torch.optim.SGD([("w", weights())], lr=0.1)
    groups, defaults = [dict(group) for group in base.param_groups], dict(base.defaults)
    with pytest.raises(ValueError, match="match no parameter"):
        hft.FTP(base, exclude="nothing")
    assert base.param_groups == groups
    assert base.defaults == defaults


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
    assert opt.param_groups[1].keys() == opt.param_groups[0].keys()
    fresh().load_state_dict(copy.deepcopy(opt.state_dict()))
    opt.state = defaultdict(dict, opt.state)  # put in, and not stepped yet
    opt.add_param_group({"params": [weights()]})
    assert len(opt.state) == 3
    before = str(opt.state_dict())
    with pytest.raises(TypeError, match="constrained must be True or False"):
        opt.add_param_group({"params": [weights()], "constrained": "no"})
    assert len(opt.state) == 3  # the base has made nothing for it
    assert str(opt.state_dict()) == before


def test_a_base_with_its_own_checkpoint_writes_the_state_that_was_put_in():
    class Own(torch.optim.SGD):
        def state_dict(self) -> Any:
            return super().state_dict()

    p = weights()
    opt = hft.FTP(Own([p], lr=0.1, momentum=0.9))
    run(p, opt, range(2))
    state: Any = defaultdict(dict)
    state[p] = {**opt.state[p], "momentum_buffer": torch.zeros_like(p)}
    opt.state = state
    assert not opt.state_dict()["base"]["state"][0]["momentum_buffer"].any()


def test_a_base_that_fills_its_state_when_it_is_built_and_counts_it_at_the_first_step():
    class Counted(torch.optim.Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {"lr": 0.1})
            for group in self.param_groups:
                for p in group["params"]:
                    self.state[p]["calls"] = 0

        def step(self, closure: Any = None) -> None:
            for p, state in self.state.items():
                if len(state) == 1:  # as timm's Adahessian
                    state["first"] = torch.zeros_like(p)
                state["calls"] += 1
                p.data.sub_(p.grad - state["first"], alpha=0.1)

    p, q = weights(), weights()
    opt, same = hft.FTP(Counted([p]), radius_lr=0.05), hft.FTP(torch.optim.SGD([q], lr=0.1), radius_lr=0.05)
    torch.testing.assert_close(run(p, opt, range(4)), run(q, same, range(4)), rtol=1e-14, atol=1e-14)
    assert opt.state[p]["calls"] == 4


# -- two modes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["mars", "l2"])
def test_of_a_schedule_free_base_the_deployed_weights_are_held(norm):
    """MARS-SP around it, against a loop by hand: x is projected, z is free, y is between them."""
    p = weights()
    w0, radius, lr, beta = p.detach().clone(), 0.12, 0.1, 0.9
    opt = hft.MARSSP(Averaged([p], lr, beta), radius=radius, norm=norm)
    x, z = w0.clone(), w0.clone()
    opt.train()
    for t in range(6):
        run(p, opt, range(t, t + 1))
        z = z - lr * GRADIENT * (1 + 0.3 * t)
        x = x + (z - x) / (t + 1)
        c = x - w0
        n = (c.abs().sum(1, keepdim=True) if norm == "mars" else c.norm()) + 1e-8
        x = w0 + (radius / n).clamp(max=1) * c
        torch.testing.assert_close(p.detach(), (1 - beta) * z + beta * x, rtol=1e-12, atol=1e-12)
    opt.eval()
    torch.testing.assert_close(p.detach(), x, rtol=1e-12, atol=1e-12)
    assert (p.detach() - w0).abs().sum() > 0.9 * radius
    with pytest.raises(RuntimeError, match="Averaged is not in its training mode; call train"):
        opt.step()


@pytest.mark.parametrize("wrap", [WRAPPERS["FTP"], lambda base: hft.SPD(base)], ids=["FTP", "SPD"])
def test_a_schedule_free_run_goes_on_bit_for_bit(wrap):
    def fresh() -> tuple[torch.nn.Parameter, Any]:
        p = weights()
        opt = wrap(Averaged([p]))
        opt.train()
        return p, opt

    p, opt = fresh()
    run(p, opt, range(4))
    saved = copy.deepcopy((p, opt.state_dict()))
    there = run(p, opt, range(4, 8))
    q, again = fresh()
    q.data.copy_(saved[0].data)
    again.load_state_dict(saved[1])
    assert torch.equal(run(q, again, range(4, 8)), there)


def test_the_radius_of_a_schedule_free_base_learns_and_holds_x():
    p = weights()
    w0 = p.detach().clone()
    opt = hft.FTP(Averaged([p], lr=0.5), radius_lr=0.05)
    opt.train()
    run(p, opt, range(10))
    opt.eval()
    assert 0.2 < opt.radii()[0] < 0.5
    assert (p.detach() - w0).abs().sum(1).max() <= opt.radii()[0] * (1 + 1e-12)


def test_a_base_whose_trained_weights_do_not_follow_is_refused():
    p = weights()
    opt = hft.FTP(Kept([p]))
    opt.train()
    p.grad = GRADIENT
    with pytest.raises(RuntimeError, match="Kept trains other weights than those it deploys"):
        opt.step()


def test_a_base_that_does_not_say_its_mode_is_refused_before_it_moves():
    class Silent(torch.optim.SGD):
        def train(self) -> None: ...
        def eval(self) -> None: ...

    p = weights()
    before = p.detach().clone()
    opt = hft.FTP(Silent([p], lr=0.1))
    with pytest.raises(RuntimeError, match="Silent has train.*no train_mode that says"):
        run(p, opt, range(1))
    assert torch.equal(p, before)
    assert not opt.state

    p = torch.nn.Parameter(before)
    opt = hft.FTP(Silent([{"params": [p], "train_mode": True}], lr=0.1))
    with pytest.raises(RuntimeError, match="Silent has train.*no train_mode that says"):
        run(p, opt, range(1))


@pytest.mark.parametrize("first", [torch.empty(0), torch.full((2,), 1e3, dtype=torch.bfloat16)], ids=["empty", "large"])
def test_that_trained_weights_follow_is_seen_whatever_the_first_of_them_is(first):
    odd, p = torch.nn.Parameter(first), weights()
    opt = hft.L2SP(Averaged([odd, p]))
    opt.train()
    odd.grad = torch.zeros_like(odd)
    run(p, opt, range(1))
    assert torch.equal(odd, first)


def test_modes_are_passed_over_where_there_are_none():
    p = weights()
    for opt in (hft.FTPSGD([p], lr=0.1), hft.FTP(torch.optim.SGD([p], lr=0.1))):
        opt.train()
        opt.eval()


def test_weights_that_no_rule_moves_are_those_of_the_base_alone():
    """To the last bit, though to go to and fro rounds them: excluded ones, and those without a gradient."""

    def steps(wrap: Any) -> torch.Tensor:
        torch.manual_seed(0)
        held, out, idle = (torch.nn.Parameter(torch.randn(9, 9)) for _ in range(3))
        opt = wrap(Averaged([{"params": [("held", held), ("idle", idle)]}, {"params": [("out", out)], "beta": 0.7}]))
        opt.train()
        for t in range(6):
            for p in (held, out, idle):
                p.grad = torch.randn(9, 9) if p is not idle or t < 3 else None
            before = idle.detach().clone()
            opt.step()
            assert t < 3 or torch.equal(idle, before)
        return out.detach()

    assert torch.equal(steps(lambda base: hft.MARSSP(base, radius=9.0, exclude="out")), steps(lambda base: base))


def test_a_step_that_is_refused_leaves_both_modes_as_they_were():
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(2, 3)) for _ in range(3)]
    opt = hft.FTP(Averaged([{"params": [p], "beta": beta} for p, beta in zip(params, (0.9, 0.7, 0.6), strict=True)]))
    opt.train()

    def gradients() -> None:
        for p in params:
            p.grad = torch.randn(2, 3)

    for _ in range(3):
        gradients()
        opt.step()
    gradients()
    before = [p.detach().clone() for p in params]
    beta, opt.param_groups[2]["beta"] = opt.param_groups[2]["beta"], 0.0  # the third one cannot go to eval
    with pytest.raises(RuntimeError, match=r"eval\(\) failed within a step"):
        opt.step()
    assert all(map(torch.equal, params, before))
    assert all(group["train_mode"] for group in opt.param_groups)
    opt.param_groups[2]["beta"] = beta
    params[1].grad = torch.zeros(2, 3).to_sparse()
    with pytest.raises(RuntimeError, match="gradients must be dense"):
        opt.step()
    assert all(map(torch.equal, params, before))


def test_a_run_that_goes_on_is_the_same_for_weights_that_are_not_held():
    """The first step of an optimizer also looks whether a base's modes can be trusted; that must not round them."""

    def fresh() -> tuple[list[torch.nn.Parameter], Any]:
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(9, 9)) for _ in range(2)]
        opt = hft.FTP(Averaged([("held", params[0]), ("out", params[1])], beta=0.6), exclude="out")
        opt.train()
        return params, opt

    def steps(params: list[torch.nn.Parameter], opt: Any) -> list[torch.Tensor]:
        for _ in range(4):
            for p in params:
                p.grad = torch.randn(9, 9)
            opt.step()
        return [p.detach().clone() for p in params]

    params, opt = fresh()
    there = steps(params, opt)
    saved = copy.deepcopy(opt.state_dict())
    others, again = fresh()
    for p, value in zip(others, there, strict=True):
        p.data.copy_(value)
    again.load_state_dict(saved)
    torch.manual_seed(1)
    straight = steps(params, opt)
    torch.manual_seed(1)
    assert all(map(torch.equal, steps(others, again), straight))


@pytest.mark.parametrize(
    "first",
    [torch.ones(0, 3), torch.full((2,), 4096.0, dtype=torch.float16), torch.full((2,), float("nan"))],
    ids=["empty", "large in 16 bits", "NaN"],
)
def test_whether_weights_follow_is_seen_whatever_the_first_one_is(first):
    for base in (Averaged, Kept):
        p, q = torch.nn.Parameter(first.clone()), weights()
        opt = hft.MARSSP(base([p, q]), radius=1.0)
        opt.train()
        p.grad, q.grad = torch.zeros_like(p), GRADIENT
        if base is Averaged:
            opt.step()
        else:
            with pytest.raises(RuntimeError, match="Kept trains other weights than those it deploys"):
                opt.step()


def test_modes_are_those_of_the_state_that_was_put_in():
    p = weights()
    opt = hft.MARSSP(Averaged([p]), radius=9.0)
    opt.train()
    run(p, opt, range(3))
    state: Any = defaultdict(dict)
    state[p] = {**opt.state[p], "z": p.detach().clone()}
    opt.state = state
    before = p.detach().clone()
    opt.eval()
    assert torch.equal(p.detach(), before)  # z is where the trained weights are


# -- ways to step -----------------------------------------------------------------------------------------------------


def test_a_base_that_replaces_the_memory_of_weights():
    p, q = weights(), weights()
    opt, same = hft.FTP(Replacing([p]), radius_lr=0.05), hft.FTP(torch.optim.SGD([q], lr=0.1), radius_lr=0.05)
    torch.testing.assert_close(run(p, opt, range(5)), run(q, same, range(5)), rtol=1e-14, atol=1e-14)
    assert opt.radii() == pytest.approx(same.radii(), rel=1e-13)


def test_a_base_that_steps_several_times_makes_one_displacement():
    class Twice(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            super().step()
            return super().step()

    p, q = weights(), weights()
    twice, once = hft.FTP(Twice([p], lr=0.1), radius_lr=0.05), hft.FTP(torch.optim.SGD([q], lr=0.2), radius_lr=0.05)
    torch.testing.assert_close(run(p, twice, range(5)), run(q, once, range(5)), rtol=1e-12, atol=1e-12)


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


def test_global_hooks_see_the_wrappers_step_and_the_bases_inside_it():
    """As with every optimizer that steps another; a hook is told which one steps."""
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    p, seen = weights(), []
    opt = hft.FTP(torch.optim.SGD([p], lr=0.1))
    handle = register_optimizer_step_pre_hook(lambda optimizer, *_: seen.append(optimizer))
    try:
        run(p, opt, range(1))
    finally:
        handle.remove()
    assert len(seen) == 2
    assert seen[0] is opt
    assert seen[1] is opt.base


@every_wrapper
def test_a_base_may_leave_a_parameter_out_at_first(wrap):
    """As where a scaled gradient has overflowed: ours is not to look like its own state of an earlier step."""

    class Skipping(torch.optim.Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {"lr": 0.1})

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None and p.grad.isfinite().all():
                        state = self.state[p]
                        if not state:
                            state["sum"] = torch.zeros_like(p)
                        state["sum"] += p.grad
                        p.sub_(state["sum"], alpha=group["lr"])

    p = weights()
    opt = wrap(Skipping([p]))
    for scale in (float("inf"), 1.0, 1.0):
        p.grad = torch.full_like(p, scale)
        opt.step()
    assert "sum" in opt.state[p]
    assert len(opt.state[p]) > 1
