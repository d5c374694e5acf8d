"""Wrong checkpoints, as rows of the table in docs/reference/errors.md."""

from __future__ import annotations

import copy
from typing import Any

import torch

import hyperopt_ftp as hft

from .bad_inputs import ADAMW, ALL, FTP, NATIVE, SGD, Row, Scene, no_gradient, tracked, unfit
from .bad_inputs_built import BESIDE, weight


def load(text: str, done: str, change: Any, who: tuple[str, ...] = ALL, begin: Any = Scene.begun,
         torch: bool = False) -> Row:  # fmt: skip
    """The optimizer's own checkpoint, changed."""

    def act(s: Scene) -> None:
        saved = copy.deepcopy(s.opt.state_dict())
        changed = change(saved)
        s.opt.load_state_dict(saved if changed is None else changed)

    return unfit(text, f"a checkpoint {done}", act, who, begin=begin, torch=torch)


def entry(key: str, value: Any) -> Any:
    """State of the first parameter with another value."""
    return lambda saved: saved["state"][0].update({key: value})


def without(key: str) -> Any:
    def change(saved: Any) -> None:
        del saved["state"][0][key]

    return change


def option(key: str, value: Any) -> Any:
    return lambda saved: saved["param_groups"][0].update({key: value})


def other(text: str, done: str, theirs: Any, begin: Any = Scene.begun, who: tuple[str, ...] = ALL) -> Row:
    """What another run has saved: ``theirs`` makes its optimizer, or its checkpoint, in a scene of its own."""

    def act(s: Scene) -> None:
        found = theirs(Scene(s.who))
        s.opt.load_state_dict(found if isinstance(found, dict) else copy.deepcopy(found.state_dict()))

    return unfit(text, f"a checkpoint {done}", act, who, begin=begin)


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


def rmsprop(s: Scene) -> Any:
    opt = torch.optim.RMSprop(s.net.named_parameters())
    s.gradients()
    opt.step()
    return opt


def adam_without_steps(s: Scene) -> dict[str, Any]:
    saved = copy.deepcopy(around_adam(s).base.state_dict())
    for group in saved["param_groups"]:
        del group["made_by"]
    saved["state"] = {key: {"exp_avg": state["exp_avg"]} for key, state in saved["state"].items()}
    return saved


def far_away(s: Scene) -> Any:
    """Of a run that leaves its anchor out."""
    return s.begun(save_anchor=False, anchor=far(s))


def pure(s: Scene) -> Any:
    """Its groups have the options of the class, which would take it for a checkpoint of its base."""
    rule = hft.adamw(lr=0.1) if s.who == ADAMW else hft.sgd(lr=0.1, momentum=0.9)
    opt = hft.PureOptimizer(s.net.named_parameters(), rule)
    s.gradients()
    opt.step()
    return opt.state_dict()


DAMAGED = "it is damaged"
STATE_OF = "of '0.weight'"
OTHER = "the anchor of '0.weight' is not the one that the checkpoint was made with"
OTHER_ANCHOR = f"{OTHER}; give the weights that the run began with"
LEFT_OUT = "the checkpoint leaves out the anchor of '0.weight'; build the optimizer with anchor="
NO_CHECKPOINT = "load_state_dict needs what an optimizer's state_dict() returned, got"

FITS_NOT = "is it a checkpoint of this model?"

CHECKPOINTS = [
    load(f"{NO_CHECKPOINT} int", "that is a number", lambda saved: 0),
    load(f"{NO_CHECKPOINT} a dict with the keys ['0.weight']", "of the model, not the optimizer",
         lambda saved: {"0.weight": weight()}),
    load(f"{NO_CHECKPOINT} a dict with the keys ['model', 'optimizer', 'epoch']; pass checkpoint['optimizer']",
         "in a dict with others", lambda saved: {"model": {}, "optimizer": saved, "epoch": 3}),
    load(f"{NO_CHECKPOINT} str; load it first: torch.load('opt.pt')", "that is its path", lambda saved: "opt.pt"),
    load("loaded state dict has a different number of parameter groups", "with one group more", one_group_more,
         torch=True),
    load("loaded state dict contains a parameter group that doesn't match the size of optimizer's group",
         "with one parameter less", one_parameter_less, torch=True),
    load("the checkpoint's parameters are in another order: number 0 is '1.bias' there and '0.weight' here; build the "
         "optimizer with the parameters in the checkpoint's order, or delete param_names from its groups if they were "
         "renamed", "with the parameters in another order", reversed_names),
    load("kappa must lie in [0, 1], got 2.0", "with `kappa=2.0`", option("kappa", 2.0)),
    load(no_gradient("lr", ADAMW), "with an `lr` that requires a gradient", option("lr", tracked(0.1)), (ADAMW,)),
    load("FTPSGD has no dampening, got 0.1; take FTP(torch.optim.SGD(params, ...))", "with `dampening=0.1`",
         option("dampening", 0.1), (SGD,)),
    load(f"lean=True keeps the deviation in bfloat16 and needs float32 weights, got torch.bfloat16; {BESIDE}",
         "with `lean=True`, for bfloat16 weights", option("lean", True), NATIVE, in_bfloat16),
    load("the checkpoint has the format 2, and this release reads format 1; load it with the release that wrote it",
         "with another format", option("made_by", "FTPAdamW, format 2")),
    load("the checkpoint's constrained must be a bool for each parameter, got True", "with `constrained=True`",
         option("constrained", True)),
    *(load(f"the checkpoint's {key} {STATE_OF} has shape (3, 4), and this parameter needs (4, 3); {FITS_NOT}",
           f"with {what} of another shape", entry(key, torch.zeros(3, 4)))
      for key, what in (("deviation", "a deviation"), ("anchor", "an anchor"))),
    load(f"the checkpoint's row_norm {STATE_OF} has shape (4,), and this parameter needs (1,); {FITS_NOT}",
         "with radii of another norm", option("norm", "l2")),
    load(f"the checkpoint's state {STATE_OF} lacks radius: {DAMAGED}, or of an earlier version", "without radii",
         without("radius")),
    load(f"the checkpoint's state {STATE_OF} lacks exp_avg: {DAMAGED}, or of another optimizer", "without moments",
         without("exp_avg"), (ADAMW,)),
    load(f"the checkpoint's radius {STATE_OF} must be a floating-point tensor, got float: {DAMAGED}",
         "with a radius that is a number", entry("radius", 0.5)),
    load(f"the checkpoint's exp_avg {STATE_OF} must be a floating-point tensor, got torch.int8: {DAMAGED}",
         "with moments of integers", entry("exp_avg", torch.zeros(4, 3, dtype=torch.int8)), (ADAMW,)),
    *(load(f"the checkpoint's radius_step {STATE_OF} must be a number of steps, got {got}: {DAMAGED}",
           f"with {what} for a step count", entry("radius_step", value))
      for what, value, got in (("-1", torch.tensor(-1.0), "tensor(-1.)"),
                               ("NaN", torch.tensor(torch.nan), "tensor(nan)"),
                               ("two numbers", torch.ones(2), "tensor([1., 1.])"),
                               ("a word", "ten", "an object of the class str"))),
    load(f"the checkpoint has no anchor and no fingerprint of one for '0.weight': {DAMAGED}",
         "without anchors, which were not left out", without("anchor")),
    other("FTPSGD made the checkpoint, and this is FTPAdamW; load it into what made it", "of FTPSGD, for FTPAdamW",
          lambda s: Scene(SGD).begun(), who=(ADAMW,)),
    *(other(f"PureOptimizer made the checkpoint, and this is {here}; load it into what made it",
            f"of PureOptimizer, for {here}", pure, who=(who,))
      for who, here in ((ADAMW, ADAMW), (SGD, SGD), (FTP, "FTP(SGD)"))),
    other("FTP(SGD) made the checkpoint, and this is FTP(Adam); load it into what made it",
          "of FTP(SGD), for FTP(Adam)", Scene.begun, around_adam, (FTP,)),
    other("the checkpoint does not suit Adam, which cannot load it (KeyError('step')); was it made around another "
          "base?", "of a base that lacks its steps", adam_without_steps, around_adam, (FTP,)),
    other("the options of the checkpoint lack betas, which FTPAdamW needs: it is damaged, or of another optimizer",
          "of torch's RMSprop", rmsprop, who=(ADAMW,)),
    other(OTHER_ANCHOR, "of `save_anchor=False`, no anchor given", far_away),
    other(OTHER_ANCHOR, "of `save_anchor=False`, another anchor given", far_away,
          lambda s: s.begun(anchor=s.weights())),
    other(f"{OTHER}; build the optimizer with anchor='zero'", "of `anchor='zero'`, which was not given",
          lambda s: s.begun(anchor="zero")),
    other(f"{LEFT_OUT}a dict or file of the weights that the run began with",
          "of `save_anchor=False` into a fresh optimizer, no anchor given", far_away, Scene.build),
    other(f"{LEFT_OUT}'zero'", "of `anchor='zero'` into a fresh optimizer, which was not given",
          lambda s: s.begun(anchor="zero"), Scene.build),
    other(OTHER_ANCHOR, "of another run, `anchor='zero'` given", Scene.begun, lambda s: s.begun(anchor="zero")),
    other(OTHER_ANCHOR, "with anchors, other ones given", Scene.begun, lambda s: s.begun(anchor=far(s))),
    other("anchor has no entry for 2 of 4 parameters: ['1.*']; give them, or exclude=['1.*']",
          "that constrains what the given anchor lacks", Scene.begun,
          lambda s: s.begun(anchor=without_the_head(s), exclude="1.*")),
]  # fmt: skip

TABLES = {"`load_state_dict`": CHECKPOINTS}
