"""torch's contract for hooks: of steps, of one optimizer or of all, and of state dicts; in which order, with what."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from ..support.compare import equal, kept, same
from ..support.contract import Row, one_base, parameters, step


@one_base
def test_hooks_of_a_step_see_the_weights_before_and_after(row: Row):
    params = parameters()
    opt = row.build(params)
    seen: list[Any] = []
    step(params, opt, [0])
    before = kept(params)
    first = opt.register_step_pre_hook(lambda o, *given: seen.append(("pre", o is opt, *given, kept(params))))
    last = opt.register_step_post_hook(lambda o, *_: seen.append(("post", o is opt, kept(params))))
    opt.register_step_post_hook(lambda *_: seen.append("second"))
    opt.step()
    names = [entry if isinstance(entry, str) else entry[0] for entry in seen]
    assert names == ["pre", "post", "second"]
    assert seen[0][1:4] == (True, (opt,), {})
    assert equal(seen[0][4], before)
    assert equal(seen[1][2], params)
    assert not equal(params, before)
    first.remove()
    last.remove()
    opt.step()
    assert seen[3:] == ["second"]


@one_base
def test_a_hook_before_a_step_may_replace_its_arguments_or_stop_it(row: Row):
    params = parameters()
    opt = row.build(params)
    step(params, opt, [0])
    handle = opt.register_step_pre_hook(lambda o, args, kwargs: (args[:1], {"closure": lambda: "another loss"}))
    assert opt.step() == opt.step(lambda: "the loss") == "another loss"
    handle.remove()
    assert opt.step(lambda: "the loss") == "the loss"

    def stops(*_: Any) -> None:
        raise ArithmeticError("not now")

    opt.register_step_pre_hook(stops)
    before = kept([params, opt])
    with pytest.raises(ArithmeticError, match="not now"):
        opt.step()
    assert same(kept([params, opt]), before)


@one_base
def test_hooks_of_all_optimizers_see_each_step_once_and_that_of_a_base_inside(row: Row):
    """A base makes a step of its own, so a hook on all optimizers sees it, and so does one on the base."""
    params = parameters()
    opt = row.build(params)
    seen: list[tuple[str, Any]] = []
    handles = [
        register_optimizer_step_pre_hook(lambda o, *_: seen.append(("pre", o))),
        register_optimizer_step_post_hook(lambda o, *_: seen.append(("post", o))),
    ]
    try:
        opt.step()
    finally:
        for handle in handles:
            handle.remove()
    steppers = [opt] if row.own else [opt, opt.base]
    expected = [("pre", o) for o in steppers] + [("post", o) for o in reversed(steppers)]
    assert len(seen) == len(expected)
    assert all(a == b and x is y for (a, x), (b, y) in zip(seen, expected, strict=True))
    if not row.own:
        inner: list[str] = []
        opt.base.register_step_pre_hook(lambda *_: inner.append("pre"))
        opt.base.register_step_post_hook(lambda *_: inner.append("post"))
        opt.register_step_post_hook(lambda *_: inner.append("after the wrapper"))
        opt.step()
        assert inner == ["pre", "post", "after the wrapper"]


@one_base
def test_hooks_of_a_state_dict_in_their_order(row: Row):
    params = parameters()
    opt = row.build(params)
    step(params, opt, range(2))
    plain = opt.state_dict()
    order: list[str] = []

    def adds(_: Any, found: dict[str, Any]) -> None:
        order.append("adds")
        found["note"] = [*found.get("note", []), "added"]

    def replaces(_: Any, found: dict[str, Any]) -> dict[str, Any]:
        order.append("replaces")
        return {**found, "note": ["new"]}

    opt.register_state_dict_pre_hook(lambda o: order.append("second"))
    opt.register_state_dict_pre_hook(lambda o: order.append("first"), prepend=True)
    opt.register_state_dict_post_hook(adds)
    handle = opt.register_state_dict_post_hook(replaces, prepend=True)
    found = opt.state_dict()
    assert order == ["first", "second", "replaces", "adds"]
    assert found.pop("note") == ["new", "added"]
    assert same(found, plain)
    handle.remove()
    assert opt.state_dict()["note"] == ["added"]


@one_base
def test_hooks_of_loading_in_their_order(row: Row):
    """A hook may give another dict, which is what is loaded and checked; the one that was given stays as it was."""
    params = parameters()
    opt = row.build(params)
    step(params, opt, range(2))
    saved = copy.deepcopy(opt.state_dict())
    given = copy.deepcopy(saved)
    order: list[Any] = []
    fresh = row.build(kept_parameters(params), lr=0.5)

    def seconds(_: Any, found: dict[str, Any]) -> None:
        order.append(("second", found["param_groups"][0]["lr"]))

    def replaces(o: Any, found: dict[str, Any]) -> dict[str, Any]:
        order.append(("first", o.param_groups[0]["lr"]))
        new = copy.deepcopy(found)
        new["param_groups"][0]["lr"] = 0.25
        return new

    fresh.register_load_state_dict_pre_hook(seconds)
    fresh.register_load_state_dict_pre_hook(replaces, prepend=True)
    fresh.register_load_state_dict_post_hook(lambda o: order.append(("last", o.param_groups[0]["lr"])))
    fresh.register_load_state_dict_post_hook(lambda o: order.append(("then", len(o.state))), prepend=True)
    fresh.load_state_dict(given)
    assert order == [("first", 0.5), ("second", 0.25), ("then", len(params)), ("last", 0.25)]
    assert same(given, saved)
    assert same(fresh.state_dict()["state"], saved["state"])


@one_base
def test_what_a_hook_makes_of_a_checkpoint_is_checked_and_an_error_changes_nothing(row: Row):
    params = parameters()
    opt = row.build(params)
    step(params, opt, range(2))
    saved = copy.deepcopy(opt.state_dict())
    key = next(key for key, kind in opt._mover.kinds.items() if kind != "count" or len(opt._mover.kinds) == 1)

    def spoils(_: Any, found: dict[str, Any]) -> dict[str, Any]:
        new = copy.deepcopy(found)
        new["state"][0][key] = torch.ones(7, 7)
        return new

    handle = opt.register_load_state_dict_pre_hook(spoils)
    before = kept(opt)
    with pytest.raises(ValueError, match=f"the checkpoint's {key} of 0"):
        opt.load_state_dict(saved)
    assert same(kept(opt), before)
    handle.remove()
    opt.load_state_dict(saved)
    assert len(opt._optimizer_load_state_dict_pre_hooks) == 0


def kept_parameters(params: list[Any]) -> list[Any]:
    return [torch.nn.Parameter(p.detach().clone()) for p in params]
