"""Wrong steps and groups, as rows of the table in docs/errors.md."""

from __future__ import annotations

import copy
from typing import Any

import torch

import hyperopt_ftp as hft

from .bad_inputs import ADAMW, ALL, FTP, NATIVE, Row, Scene, no_gradient, step, tracked
from .bad_inputs_built import BESIDE, FLOATS, LEAVE_OUT, PREFIX, weight

# -- steps ----------------------------------------------------------------------------------------------------------


def first_weight(change: Any, **options: Any) -> Any:
    """Two steps, then ``change`` of the first weight, then a wrong step."""

    def begin(s: Scene) -> Any:
        opt = s.begun(**options)
        change(s.net[0].weight)
        return opt

    return begin


def sparse(p: torch.nn.Parameter) -> None:
    p.grad = torch.ones_like(p).to_sparse()


def complex_gradient(p: torch.nn.Parameter) -> None:
    p.grad = None
    p.grad_dtype = torch.complex64  # pyright: ignore[reportAttributeAccessIssue]
    p.grad = torch.ones_like(p, dtype=torch.complex64)


def resized(p: torch.nn.Parameter) -> None:
    p.data = torch.ones(5, 3)
    p.grad = torch.ones(5, 3)


def as_float8(p: torch.nn.Parameter) -> None:
    p.grad = None
    p.data = p.data.to(torch.float8_e4m3fn)
    p.grad = torch.ones(4, 3).to(torch.float8_e4m3fn)


def as_bfloat16(p: torch.nn.Parameter) -> None:
    p.grad = None
    p.data = p.data.bfloat16()
    p.grad = torch.ones_like(p)


def with_crossed_rows(p: torch.nn.Parameter) -> None:
    p.data = torch.ones(3, 4).t()


def stale(s: Scene) -> Any:
    """Weights that were resized before the first step, with the gradients of before."""
    opt = s.build()
    s.gradients()
    s.net[0].weight.data = torch.ones(5, 3)
    return opt


def on_another_device(s: Scene) -> Any:
    class Elsewhere(torch.nn.Parameter):
        grad = torch.ones(2, device="meta")

    s.gradients()
    return s.make([*s.net.named_parameters(), ("w", Elsewhere(torch.ones(2)))])


def group_changed(**options: Any) -> Any:
    def begin(s: Scene) -> Any:
        opt = s.begun()
        opt.param_groups[0].update(options)
        return opt

    return begin


def with_one_more(s: Scene) -> Any:
    opt = s.begun()
    opt.param_groups[0]["params"].append(torch.nn.Parameter(torch.ones(2)))
    return opt


def with_a_group_of_the_base(s: Scene) -> Any:
    opt = s.begun()
    opt.base.add_param_group({"params": [("w", torch.nn.Parameter(torch.ones(2)))]})
    return opt


def with_a_base_loaded_by_itself(s: Scene) -> Any:
    opt = s.begun()
    opt.base.load_state_dict(copy.deepcopy(opt.base.state_dict()))
    return opt


def around_sparse_adam(s: Scene) -> Any:
    s.gradients()
    return hft.FTP(torch.optim.SparseAdam([p for _, p in s.net.named_parameters()]))


class Refusing(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        if self.tired:
            raise RuntimeError("this base refuses")
        return super().step(closure)

    tired = False


def around_a_base_that_refuses_later(s: Scene) -> Any:
    opt = hft.FTP(Refusing(s.net.named_parameters(), lr=0.1, momentum=0.9, foreach=True))
    late, s.net[1].bias.requires_grad = s.net[1].bias, False  # its first step is the one that fails
    for _ in range(2):
        s.gradients()
        late.grad = None
        opt.step()
    s.gradients()
    opt.base.tired = True
    return opt


def fails() -> None:
    raise ArithmeticError("the loss")


BY_HAND = (
    "were changed by hand; add some by add_param_group (a wrapper's own, not its base's), or build a new optimizer"
)
FUSED = "fused=True cannot run: a parameter of shape (4, 3) and strides (1, 4) does not keep its rows in one piece"
BEST = "fused=None takes the best there is"

STEPS = [
    Row("a sparse gradient", step, RuntimeError, "gradients must be dense, got torch.sparse_coo for parameter "
        "'0.weight'; use dense embeddings, or another optimizer for that parameter", begin=first_weight(sparse)),
    Row("a complex gradient", step, RuntimeError, "gradients must be real and floating, got torch.complex64 for "
        "parameter '0.weight'", begin=first_weight(complex_gradient)),
    Row("a gradient on another device", step, RuntimeError, "the gradient of parameter 'w' is on meta, the parameter "
        "on cpu; move the model before the optimizer is built", begin=on_another_device),
    Row("weights that were resized after steps", step, RuntimeError, "parameter '0.weight' has the shape (5, 3) now "
        "and had (4, 3) at the steps before; build a new optimizer after weights are resized",
        begin=first_weight(resized)),
    Row("weights that were resized, and the old gradient", step, RuntimeError, "the gradient of parameter '0.weight' "
        "has the shape (4, 3), and the parameter (5, 3); call zero_grad() after weights are resized", begin=stale),
    Row("weights that became float8", step, TypeError, f"{FLOATS} torch.float8_e4m3fn for parameter '0.weight'; "
        f"{LEAVE_OUT}", begin=first_weight(as_float8)),
    Row("weights that became bfloat16 under `lean=True`", step, ValueError, "lean=True keeps the deviation in bfloat16 "
        f"and needs float32 weights, got torch.bfloat16; {BESIDE}", NATIVE, first_weight(as_bfloat16, lean=True)),
    Row("weights that lost their layout under `fused=True`", step, RuntimeError, f"{FUSED}; {BEST}", NATIVE,
        first_weight(with_crossed_rows, fused=True)),
    Row("`kappa = 2` put into a group", step, ValueError, "kappa must lie in [0, 1], got 2",
        begin=group_changed(kappa=2)),
    Row("`lr = -1.0` put into a group, by a schedule for instance", step, ValueError,
        "lr must lie in [0, inf), got -1.0", NATIVE, group_changed(lr=-1.0)),
    *(Row(f"an `lr` that requires a gradient, put into a group{place}", step, ValueError, no_gradient("lr", who),
          (who,), group_changed(lr=tracked(0.1))) for who, place in ((ADAMW, ""), (FTP, " of the base"))),
    Row("a parameter appended to a group's list", step, RuntimeError, f"the parameters of group 0 {BY_HAND}",
        begin=with_one_more),
    Row("`base.add_param_group`", step, RuntimeError, f"the parameters of group 1 {BY_HAND}", (FTP,),
        with_a_group_of_the_base),
    Row("`base.load_state_dict`", step, RuntimeError, "the base's state was loaded without its wrapper; call "
        "load_state_dict on FTP(...) itself", (FTP,), with_a_base_loaded_by_itself),
    Row("a base that wants sparse gradients", step, RuntimeError, "SparseAdam does not support dense gradients", (FTP,),
        around_sparse_adam, torch=True),
    Row("a base that raises in its step", step, RuntimeError, "this base refuses", (FTP,),
        around_a_base_that_refuses_later),
    Row("a closure that raises", lambda s: s.opt.step(fails), ArithmeticError, "the loss", begin=Scene.begun),
    Row("`step(loss)`", lambda s: s.opt.step(torch.ones(())), TypeError, "'Tensor' object is not callable",
        begin=Scene.begun, torch=True),
]  # fmt: skip

# -- groups ---------------------------------------------------------------------------------------------------------


def group(done: str, error: type[Exception], text: str, who: tuple[str, ...] = ALL, *, torch: bool = False,
          begin: Any = Scene.begun, params: Any = None, **options: Any) -> Row:  # fmt: skip
    def act(s: Scene) -> None:
        given = [("new", weight())] if params is None else params(s)
        s.opt.add_param_group({"params": given, **options})

    return Row(f"`add_param_group`: {done}", act, error, text, who, begin, torch)


def with_anchor(s: Scene) -> Any:
    return s.begun(anchor=s.weights())


GROUPS = [
    Row("`add_param_group` of a list", lambda s: s.opt.add_param_group([weight()]), TypeError,
        "param_group must be a dict, but got", begin=Scene.begun, torch=True),
    group("`kappa=2.0`", ValueError, "kappa must lie in [0, 1], got 2.0", kappa=2.0),
    group("`constrained='no'`", TypeError, "a group's constrained must be True or False, got 'no'", constrained="no"),
    group("`fused=1`", TypeError, "fused must be True, False or None, got 1", NATIVE, fused=1),
    group("integer weights", TypeError, f"{FLOATS} torch.int8 for parameter 'new'; {LEAVE_OUT}",
          params=lambda s: [("new", weight(dtype=torch.int8))]),
    group("a name that there is", ValueError,
          f"two parameters are called '0.bias'; {PREFIX}",
          params=lambda s: [("module.0.bias", weight())]),
    group("a parameter that there is", ValueError, "some parameters appear in more than one parameter group",
          params=lambda s: [("new", s.net[0].bias)], torch=True),
    group("no names, and the others have some", ValueError, "all optimizer param groups should be with/without names.",
          params=lambda s: [weight()], torch=True),
    group("parameters that the given anchor lacks", ValueError,
          "anchor has no entry for the parameter 'new'; give one, or exclude the parameter", begin=with_anchor),
]  # fmt: skip

TABLES = {"Steps": STEPS, "`add_param_group`": GROUPS}
