"""torch's contract for hooks: of steps, of one optimizer or of all, and of state dicts; in which order, with what."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from ..support.compare import equal, kept, same
from ..support.contract import Row, again, begun, one_base


@one_base
def test_hooks_of_a_step_see_the_weights_and_may_replace_its_arguments_or_stop_it(row: Row):
    params, opt = begun(row, steps=1)
    before, seen = kept(params), []
    handles = [
        opt.register_step_pre_hook(lambda o, *given: seen.append(("pre", o is opt, *given, kept(params)))),
        opt.register_step_post_hook(lambda o, *_: seen.append(("post", o is opt, kept(params)))),
        opt.register_step_pre_hook(lambda o, args, kwargs: (args[:1], {"closure": lambda: "another loss"})),
    ]
    assert opt.step() == "another loss"
    assert same(seen, [("pre", True, (opt,), {}, before), ("post", True, kept(params))])
    assert not equal(params, before)
    for handle in handles:
        handle.remove()
    if not row.own:  # its base makes a step of its own
        opt.base.register_step_pre_hook(lambda *_: seen.append("pre"))
        opt.base.register_step_post_hook(lambda *_: seen.append("post"))
        opt.register_step_post_hook(lambda *_: seen.append("after the wrapper"))
    assert opt.step(lambda: "the loss") == "the loss"
    assert seen[2:] == ([] if row.own else ["pre", "post", "after the wrapper"])

    def stops(*_: Any) -> None:
        raise ArithmeticError("not now")

    opt.register_step_pre_hook(stops)
    now = kept([params, opt])
    with pytest.raises(ArithmeticError, match="not now"):
        opt.step()
    assert same(kept([params, opt]), now)


@one_base
def test_hooks_of_a_state_dict_in_their_order(row: Row):
    _, opt = begun(row, steps=2)
    plain = opt.state_dict()
    order: list[str] = []
    opt.register_state_dict_pre_hook(lambda o: order.append("second"))
    opt.register_state_dict_pre_hook(lambda o: order.append("first"), prepend=True)
    opt.register_state_dict_post_hook(lambda o, found: found["note"].append("added"))
    opt.register_state_dict_post_hook(lambda o, found: {**found, "note": ["new"]}, prepend=True)
    found = opt.state_dict()
    assert order == ["first", "second"]
    assert found.pop("note") == ["new", "added"]
    assert same(found, plain)


@one_base
def test_hooks_of_loading_in_their_order(row: Row):
    """A hook may give another dict, which is what is loaded and checked; the one that was given stays as it was."""
    params, opt = begun(row, steps=2)
    saved = copy.deepcopy(opt.state_dict())
    given = copy.deepcopy(saved)
    order: list[Any] = []
    fresh = row.build(again(params), lr=0.5)

    def seconds(_: Any, found: dict[str, Any]) -> None:
        order.append(("second", found["param_groups"][0]["lr"]))

    def replaces(o: Any, found: dict[str, Any]) -> dict[str, Any]:
        order.append(("first", o.param_groups[0]["lr"]))
        new = copy.deepcopy(found["inside"])
        new["param_groups"][0]["lr"] = 0.25
        return new

    fresh.register_load_state_dict_pre_hook(seconds)
    fresh.register_load_state_dict_pre_hook(replaces, prepend=True)
    fresh.register_load_state_dict_post_hook(lambda o: order.append(("last", o.param_groups[0]["lr"])))
    fresh.register_load_state_dict_post_hook(lambda o: order.append(("then", len(o.state))), prepend=True)
    fresh.load_state_dict({"inside": given})
    assert order == [("first", 0.5), ("second", 0.25), ("then", len(params)), ("last", 0.25)]
    assert same(given, saved)
    assert same(fresh.state_dict()["state"], saved["state"])


@one_base
def test_what_a_hook_makes_of_a_checkpoint_is_checked_and_an_error_changes_nothing(row: Row):
    _, opt = begun(row, steps=2)
    saved = copy.deepcopy(opt.state_dict())
    key = "anchor"

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
