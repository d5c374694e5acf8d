"""Wrong steps and groups, as rows of the table in docs/reference/errors.md."""

from __future__ import annotations

import copy
from typing import Any

import torch

from .bad_inputs import ADAMW, ALL, FTP, NATIVE, Row, Scene, mistyped, no_gradient, refused, step, tracked, unfit
from .bad_inputs_built import BESIDE, BEST, FLOATS, FUSED, LEAVE_OUT, PREFIX, weight

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


def resized(p: torch.nn.Parameter) -> None:
    p.data = torch.ones(5, 3)
    p.grad = torch.ones(5, 3)


def as_dtype(dtype: torch.dtype, weights: bool) -> Any:
    """The gradient, or the weights too, become others."""

    def change(p: torch.nn.Parameter) -> None:
        p.grad = None
        if weights:
            p.data = p.data.to(dtype)
        else:
            p.grad_dtype = dtype  # pyright: ignore[reportAttributeAccessIssue]
        p.grad = torch.ones(4, 3).to(dtype)

    return change


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


def with_an_anchor_that_moves(s: Scene) -> Any:
    anchor = s.weights()
    opt = s.build(anchor=anchor)
    for x in anchor.values():
        x.mul_(0.5)
    s.gradients()
    return opt


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


def fails() -> None:
    raise ArithmeticError("the loss")


BY_HAND = (
    "were changed by hand; add some by add_param_group (a wrapper's own, not its base's), or build a new optimizer"
)

STEPS = [
    refused("gradients must be dense, got torch.sparse_coo for parameter '0.weight'; make the embedding with "
            "sparse=False, exclude it, or give it another optimizer", "a sparse gradient", step,
            begin=first_weight(sparse)),
    refused("gradients must be real and floating, got torch.complex64 for parameter '0.weight'", "a complex gradient",
            step, begin=first_weight(as_dtype(torch.complex64, weights=False))),
    refused("the gradient of parameter 'w' is on meta, the parameter on cpu; move the model before the optimizer is "
            "built", "a gradient on another device", step, begin=on_another_device),
    refused("parameter '0.weight' has the shape (5, 3) now and had (4, 3) at the steps before; build a new optimizer "
            "after weights are resized", "weights that were resized after steps", step, begin=first_weight(resized)),
    refused("the gradient of parameter '0.weight' has the shape (4, 3), and the parameter (5, 3); call zero_grad() "
            "after weights are resized", "weights that were resized, and the old gradient", step, begin=stale),
    refused("anchor entry '0.weight' has changed since the optimizer was made, and only now does '0.weight' begin to "
            "train; give copies: anchor={n: x.clone() for n, x in given.items()}",
            "an anchor that was written into before the first step", step, begin=with_an_anchor_that_moves),
    mistyped(f"{FLOATS} torch.float8_e4m3fn for parameter '0.weight'; {LEAVE_OUT}", "weights that became float8", step,
             begin=first_weight(as_dtype(torch.float8_e4m3fn, weights=True))),
    unfit(f"lean=True keeps the deviation in bfloat16 and needs float32 weights, got torch.bfloat16; {BESIDE}",
          "weights that became bfloat16 under `lean=True`", step, NATIVE,
          begin=first_weight(as_dtype(torch.bfloat16, weights=True), lean=True)),
    refused(f"{FUSED}; {BEST}", "weights that lost their layout under `fused=True`", step, NATIVE,
            begin=first_weight(with_crossed_rows, fused=True)),
    unfit("kappa must lie in [0, 1], got 2", "`kappa = 2` put into a group", step, begin=group_changed(kappa=2)),
    unfit("lr must lie in [0, inf), got -1.0", "`lr = -1.0` put into a group, by a schedule for instance", step,
          NATIVE, begin=group_changed(lr=-1.0)),
    *(unfit(no_gradient("lr", who), f"an `lr` that requires a gradient, put into a group{place}", step, (who,),
            begin=group_changed(lr=tracked(0.1))) for who, place in ((ADAMW, ""), (FTP, " of the base"))),
    mistyped("constrained of group 0 must now be a list, one bool for each of its parameters",
             "`constrained=False`, put into a group", step, begin=group_changed(constrained=False)),
    refused(f"the parameters of group 0 {BY_HAND}", "a parameter appended to a group's list", step,
            begin=with_one_more),
    refused(f"the parameters of group 1 {BY_HAND}", "`base.add_param_group`", step, (FTP,),
            begin=with_a_group_of_the_base),
    refused("the base's state was loaded without its wrapper; call load_state_dict on FTP(...) itself",
            "`base.load_state_dict`", step, (FTP,), begin=with_a_base_loaded_by_itself),
    Row(ArithmeticError, "the loss", "a closure that raises", lambda s: s.opt.step(fails), begin=Scene.begun),
    mistyped("'Tensor' object is not callable", "`step(loss)`", lambda s: s.opt.step(torch.ones(())),
             begin=Scene.begun, torch=True),
]  # fmt: skip

# -- groups ---------------------------------------------------------------------------------------------------------


def added(make: Any, text: str, done: str, params: Any = None, who: tuple[str, ...] = ALL, *, torch: bool = False,
          begin: Any = Scene.begun, **options: Any) -> Row:  # fmt: skip
    def act(s: Scene) -> None:
        s.opt.add_param_group({"params": [("new", weight())] if params is None else params(s), **options})

    return make(text, f"`add_param_group`: {done}", act, who, begin=begin, torch=torch)


GROUPS = [
    added(unfit, "kappa must lie in [0, 1], got 2.0", "`kappa=2.0`", kappa=2.0),
    added(mistyped, "fused must be True, False or None, got 1", "`fused=1`", who=NATIVE, fused=1),
    added(mistyped, f"{FLOATS} torch.int8 for parameter 'new'; {LEAVE_OUT}", "integer weights",
          lambda s: [("new", weight(dtype=torch.int8))]),
    added(unfit, f"two parameters are called '0.bias'; {PREFIX}", "a name that there is",
          lambda s: [("module.0.bias", weight())]),
    added(unfit, "some parameters appear in more than one parameter group", "a parameter that there is",
          lambda s: [("new", s.net[0].bias)], torch=True),
    added(unfit, "anchor has no entry for the parameter 'new'; give one, or exclude the parameter",
          "parameters that the given anchor lacks", begin=lambda s: s.begun(anchor=s.weights())),
]  # fmt: skip

TABLES = {"Steps": STEPS, "`add_param_group`": GROUPS}
