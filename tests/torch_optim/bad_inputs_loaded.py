"""Wrong checkpoints, as rows of the table in docs/errors.md."""

from __future__ import annotations

import copy
from typing import Any

import torch

import hyperopt_ftp as hft

from .bad_inputs import ADAMW, ALL, FTP, NATIVE, SGD, Row, Scene, no_gradient, tracked
from .bad_inputs_built import BESIDE, weight


def load(done: str, change: Any, error: type[Exception], text: str, who: tuple[str, ...] = ALL,
         begin: Any = Scene.begun, torch: bool = False) -> Row:  # fmt: skip
    """The optimizer's own checkpoint, changed."""

    def act(s: Scene) -> None:
        saved = copy.deepcopy(s.opt.state_dict())
        changed = change(saved)
        s.opt.load_state_dict(saved if changed is None else changed)

    return Row(f"a checkpoint {done}", act, error, text, who, begin, torch)


def entry(key: str, value: Any) -> Any:
    """State of the first parameter with another value."""
    return lambda saved: saved["state"][0].update({key: value})


def without(key: str) -> Any:
    def change(saved: Any) -> None:
        del saved["state"][0][key]

    return change


def option(key: str, value: Any) -> Any:
    return lambda saved: saved["param_groups"][0].update({key: value})


def of(theirs: Any, **here: Any) -> tuple[Any, Any]:
    """A checkpoint of another run, into an optimizer with the options ``here``; callables are given the scene."""

    def resolved(s: Scene) -> dict[str, Any]:
        return {name: value(s) if callable(value) else value for name, value in here.items()}

    def act(s: Scene) -> None:
        other = Scene(s.who)
        s.opt.load_state_dict(copy.deepcopy(theirs(other).state_dict()))

    return act, lambda s: s.begun(**resolved(s))


def other_run(done: str, pair: tuple[Any, Any], error: type[Exception], text: str, who: tuple[str, ...] = ALL) -> Row:
    return Row(f"a checkpoint {done}", pair[0], error, text, who, pair[1])


def reversed_names(saved: Any) -> None:
    saved["param_groups"][0]["param_names"].reverse()


def one_group_more(saved: Any) -> None:
    saved["param_groups"].append(saved["param_groups"][0])


def one_parameter_less(saved: Any) -> None:
    del saved["param_groups"][0]["params"][-1], saved["param_groups"][0]["param_names"][-1]


def in_bfloat16(s: Scene) -> Any:
    s.net.bfloat16()
    return s.begun()


def far(s: Scene) -> dict[str, torch.Tensor]:
    """Another anchor than the weights at the first step."""
    return {n: w + 1 for n, w in s.weights().items()}


def without_the_head(s: Scene) -> dict[str, torch.Tensor]:
    return {n: w for n, w in s.weights().items() if n.startswith("0.")}


def around_adam(s: Scene) -> Any:
    opt = hft.FTP(torch.optim.Adam(s.net.named_parameters(), foreach=True))
    s.gradients()
    opt.step()
    return opt


def rmsprop(s: Scene) -> dict[str, Any]:
    other = Scene(s.who)
    opt = torch.optim.RMSprop(other.net.named_parameters())
    other.gradients()
    opt.step()
    return opt.state_dict()


def adam_without_steps(s: Scene) -> dict[str, Any]:
    saved = copy.deepcopy(around_adam(Scene(s.who)).base.state_dict())
    for group in saved["param_groups"]:
        del group["made_by"]
    saved["state"] = {key: {"exp_avg": state["exp_avg"]} for key, state in saved["state"].items()}
    return saved


def into_adam(s: Scene) -> None:
    s.opt.load_state_dict(copy.deepcopy(Scene(FTP).begun().state_dict()))


DAMAGED = "it is damaged"
STATE_OF = "of '0.weight'"
OTHER = "the anchor of '0.weight' is not the one that the checkpoint was made with"
OTHER_ANCHOR = f"{OTHER}; give the weights that the run began with"
LEFT_OUT = "the checkpoint leaves out the anchor of '0.weight'; build the optimizer with anchor="
NO_CHECKPOINT = "load_state_dict needs what an optimizer's state_dict() returned, got"

CHECKPOINTS = [
    load("that is a number", lambda saved: 0, ValueError, f"{NO_CHECKPOINT} int"),
    load("of the model, not the optimizer", lambda saved: {"0.weight": weight()}, ValueError,
         f"{NO_CHECKPOINT} a dict with the keys ['0.weight']"),
    load("in a dict with others", lambda saved: {"model": {}, "optimizer": saved, "epoch": 3}, ValueError,
         f"{NO_CHECKPOINT} a dict with the keys ['model', 'optimizer', 'epoch']; pass checkpoint['optimizer']"),
    load("that is the path of one", lambda saved: "opt.pt", ValueError,
         f"{NO_CHECKPOINT} str; load it first: torch.load('opt.pt')"),
    load("with one group more", one_group_more, ValueError,
         "loaded state dict has a different number of parameter groups", torch=True),
    load("with one parameter less", one_parameter_less, ValueError,
         "loaded state dict contains a parameter group that doesn't match the size of optimizer's group", torch=True),
    load("with the parameters in another order", reversed_names, ValueError,
         "the checkpoint's parameters are in another order: number 0 is '1.bias' there and '0.weight' here; build the "
         "optimizer with the parameters in the checkpoint's order"),
    load("with `kappa=2.0`", option("kappa", 2.0), ValueError, "kappa must lie in [0, 1], got 2.0"),
    load("with an `lr` that requires a gradient", option("lr", tracked(0.1)), ValueError, no_gradient("lr", ADAMW),
         (ADAMW,)),
    load("with `differentiable=True`", option("differentiable", True), ValueError, "differentiable must be False, got "
         "True: a step works in place; hft.ftp is the differentiable rule", NATIVE),
    load("with `lean=True`, for bfloat16 weights", option("lean", True), ValueError, "lean=True keeps the deviation in "
         f"bfloat16 and needs float32 weights, got torch.bfloat16; {BESIDE}", NATIVE, in_bfloat16),
    load("with another format", option("made_by", "FTPAdamW, format 2"), ValueError,
         "the checkpoint has the format 2, and this release reads format 1; load it with the release that wrote it"),
    load("with `constrained=True`", option("constrained", True), ValueError,
         "the checkpoint's constrained must be a bool for each parameter, got True"),
    load("with weights of another shape", entry("deviation", torch.zeros(3, 4)), ValueError,
         f"the checkpoint's deviation {STATE_OF} has shape (3, 4), and this parameter needs (4, 3); is it a checkpoint "
         "of this model?"),
    load("with an anchor of another shape", entry("anchor", torch.zeros(3, 4)), ValueError,
         f"the checkpoint's anchor {STATE_OF} has shape (3, 4), and this parameter needs (4, 3); is it a checkpoint of "
         "this model?"),
    load("with radii of another norm", option("norm", "l2"), ValueError,
         f"the checkpoint's row_norm {STATE_OF} has shape (4,), and this parameter needs (1,); is it a checkpoint of "
         "this model?"),
    load("without radii", without("radius"), ValueError,
         f"the checkpoint's state {STATE_OF} lacks radius: {DAMAGED}, or of an earlier version"),
    load("without moments", without("exp_avg"), ValueError,
         f"the checkpoint's state {STATE_OF} lacks exp_avg: {DAMAGED}, or of another optimizer", (ADAMW,)),
    load("with a radius that is a number", entry("radius", 0.5), ValueError,
         f"the checkpoint's radius {STATE_OF} must be a floating-point tensor, got float: {DAMAGED}"),
    load("with moments of integers", entry("exp_avg", torch.zeros(4, 3, dtype=torch.int8)), ValueError,
         f"the checkpoint's exp_avg {STATE_OF} must be a floating-point tensor, got torch.int8: {DAMAGED}", (ADAMW,)),
    *(load(f"with {what} for a step count", entry("radius_step", value), ValueError,
           f"the checkpoint's radius_step {STATE_OF} must be a number of steps, got {got}: {DAMAGED}")
      for what, value, got in (("-3", torch.tensor(-3.0), "tensor(-3.)"),
                               ("NaN", torch.tensor(torch.nan), "tensor(nan)"),
                               ("two numbers", torch.ones(2), "tensor([1., 1.])"),
                               ("a word", "ten", "an object of the class str"))),
    other_run("of FTPSGD, for FTPAdamW", (lambda s: s.opt.load_state_dict(Scene(SGD).begun().state_dict()),
              Scene.begun), ValueError, "FTPSGD made the checkpoint, and this is FTPAdamW; load it into what made it",
              (ADAMW,)),
    other_run("of FTP(SGD), for FTP(Adam)", (into_adam, around_adam), ValueError, "FTP(SGD) made the checkpoint, and "
              "this is FTP(Adam); load it into what made it", (FTP,)),
    other_run("of a base that lacks its steps", (lambda s: s.opt.load_state_dict(adam_without_steps(s)), around_adam),
              ValueError, "the checkpoint does not suit Adam, which cannot load it (KeyError('step')); was it made "
              "around another base?", (FTP,)),
    other_run("of torch's RMSprop", (lambda s: s.opt.load_state_dict(rmsprop(s)), Scene.begun), ValueError,
              "the options of the checkpoint lack betas, which FTPAdamW needs: it is damaged, or of another optimizer",
              (ADAMW,)),
    load("without anchors, which were not left out", without("anchor"), ValueError,
         f"the checkpoint has no anchor and no fingerprint of one for '0.weight': {DAMAGED}"),
    other_run("of `save_anchor=False`, no anchor given", of(lambda s: s.begun(save_anchor=False, anchor=far(s))),
              ValueError, OTHER_ANCHOR),
    other_run("of `save_anchor=False`, another anchor given",
              of(lambda s: s.begun(save_anchor=False, anchor=far(s)), anchor=Scene.weights), ValueError, OTHER_ANCHOR),
    other_run("of `anchor='zero'`, which was not given", of(lambda s: s.begun(anchor="zero")), ValueError,
              f"{OTHER}; build the optimizer with anchor='zero'"),
    other_run("of `save_anchor=False` into a fresh optimizer, no anchor given",
              (of(lambda s: s.begun(save_anchor=False, anchor=far(s)))[0], Scene.build), ValueError,
              f"{LEFT_OUT}a dict or file of the weights that the run began with"),
    other_run("of `anchor='zero'` into a fresh optimizer, which was not given",
              (of(lambda s: s.begun(anchor="zero"))[0], Scene.build), ValueError, f"{LEFT_OUT}'zero'"),
    other_run("of another run, `anchor='zero'` given", of(lambda s: s.begun(), anchor="zero"), ValueError,
              OTHER_ANCHOR),
    other_run("with anchors, other ones given", of(lambda s: s.begun(), anchor=far), ValueError, OTHER_ANCHOR),
    other_run("that constrains what the given anchor lacks", of(lambda s: s.begun(), anchor=without_the_head,
              exclude="1.*"), ValueError,
              "anchor has no entry for 2 of 4 parameters: ['1.*']; give them, or exclude=['1.*']"),
]  # fmt: skip

TABLES = {"`load_state_dict`": CHECKPOINTS}
