"""Wrong arguments of the constructors, as rows of the table in docs/reference/errors.md."""

from __future__ import annotations

import math
import os
import re
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import hyperopt_ftp as hft

from .bad_inputs import ADAMW, ALL, FTP, NATIVE, SGD, Row, Scene, mistyped, no_gradient, refused, tracked, unfit


def weight(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    return torch.ones(shape or (2, 3), dtype=dtype, device=device)


class Odd(torch.nn.Parameter):
    """Some subclass of a tensor."""


class WithNorm(torch.optim.SGD):
    """An optimizer with an option that FTP has too."""

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.defaults["norm"] = 2.0


def anchor(text: str, done: str, change: Any, make: Any = unfit) -> Row:
    """A dict of the weights that ``change`` has spoiled."""
    return make(text, f"an anchor {done}", lambda s: s.build(anchor=change(s.weights())))


def in_empty_folder(act: Any) -> Any:
    """With relative paths, so that errors hold none of this machine's."""

    def inside(s: Scene) -> None:
        home = Path.cwd()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                act(s)
            finally:
                os.chdir(home)

    return inside


def of_a_damaged_file(s: Scene) -> None:
    Path("cut.safetensors").write_bytes(b"\x08")
    s.build(anchor="cut.safetensors")


def patched(name: str, value: Any) -> Any:
    """``fused=True`` where a machine is another one."""

    def act(s: Scene) -> None:
        with mock.patch(f"hyperopt_ftp.kernels.ops.{name}", value):
            s.build(fused=True)

    return act


def file_without_safetensors(s: Scene) -> None:
    with mock.patch.dict("sys.modules", safetensors=None):
        s.build(anchor="anchor.safetensors")


PREFIX = "names must differ; prefix those of each model, or of each part: (f'head.{n}', p)"
A_NUMBER = "must be a number or a 0-d floating-point tensor, got"
FLOATS = "parameters must be float16, bfloat16, float32 or float64, got"
LEAVE_OUT = "leave frozen and quantised weights out"
AS_REAL = "keep torch.view_as_real of it as the parameter, and view_as_complex in the model"
ENTRY = "anchor entry '0.weight' must be"
NO_MATCH = "match no parameter; the parameters are ['0.weight', '0.bias', '1.weight', '1.bias']"
EXCLUDE = (
    "exclude must hold glob patterns on names, such as 'head.*' (no regular expressions), tensors, or modules, got"
)
GIVE_NAMES = "give names: [n for n, _ in model.named_parameters() if ...]"
ANCHOR = (
    "anchor must be None (the values just before the first step), 'zero', a dict of tensors by name such as "
    "module.state_dict(), or the path of a .safetensors file, got"
)
DEVICE = "anchor_device must be None or a device of this machine, such as 'cpu', got"
DTYPE = "anchor_dtype must be None or one of (torch.float16, torch.bfloat16, torch.float32, torch.float64), got"
WRAPS = "FTP wraps a torch.optim.Optimizer that steps once for each gradient (not LBFGS, not an anchored one), got"
WRITE = "write FTP(torch.optim.AdamW(params, lr=...))"
AROUND = "it goes around an optimizer: FTP(torch.optim.AdamW(params, lr=...), radius_lr=...)"
BESIDE = "for 16-bit weights the deviation is the master copy"

FUSED = "fused=True cannot run: a parameter of shape (4, 3) and strides (1, 4) does not keep its rows in one piece"
BEST = "fused=None takes the best there is"
ADAMW_OPTIONS = (
    "params, lr, betas, eps, weight_decay, amsgrad, anchor, exclude, radius_lr, kappa, norm, gradient, radius_start, "
    "anchor_dtype, anchor_device, save_anchor, lean, maximize, foreach, fused, capturable"
)
OF_FTP = (
    "base, anchor, exclude, radius_lr, kappa, norm, gradient, radius_start, anchor_dtype, anchor_device, save_anchor"
)
#: Named as in a model of transformers: more parameters than an error lists.
LARGE = [
    *((f"bert.encoder.layer.{i}.{kind}", weight()) for i in range(11) for kind in ("weight", "bias")),
    *((f"{head}.{kind}", weight()) for head in ("bert.pooler", "classifier") for kind in ("weight", "bias")),
]


def group(**options: Any) -> Any:
    return lambda s: s.make([{"params": [weight()], **options}])


PARAMETERS = [
    mistyped(f"{WRAPS} Sequential; {WRITE}", "the model for the base", lambda s: hft.FTP(s.net), (FTP,)),
    unfit(
        "FTP cannot go around a PureOptimizer of a schedule-free optimizer: that goes on from weights in its state, "
        "and what is done to the parameters is lost. Take another one, or the torch optimizer of the package "
        "schedulefree, which is held where it is deployed", "a schedule-free `PureOptimizer` for the base",
        lambda s: hft.FTP(hft.PureOptimizer([weight().requires_grad_()], hft.schedule_free_sgd())), (FTP,)),
    unfit("the base of FTP is inside another optimizer already (L2SP(SGD), format 1); make a new base",
          "a base that is wrapped a second time",
          lambda s: hft.FTP(hft.L2SP(torch.optim.SGD([weight().requires_grad_()])).base), (FTP,)),
    unfit("a step has no derivative: differentiable must be False; pure rules have one, as hft.ftp",
          "`differentiable=True` in a group, or of the base",
          lambda s: s.make([{"params": [weight()], "differentiable": True}])),
    unfit("FTP cannot go around a PureOptimizer with maximize=True, since it minimizes: negate the loss",
          "a `PureOptimizer` that maximizes for the base",
          lambda s: hft.FTP(hft.PureOptimizer([weight().requires_grad_()], hft.sgd(maximize=True))), (FTP,)),
    mistyped("optimizer can only optimize Tensors, but one of the params is", "the model for its parameters",
             lambda s: s.make(s.net), (FTP,), torch=True),
    mistyped("the parameters to optimize are a module, Sequential: give model.named_parameters()",
             "the model itself for its parameters", lambda s: s.make(s.net), NATIVE),
    mistyped("the parameters to optimize are OrderedDict: give model.named_parameters()",
             "its `state_dict()` for its parameters", lambda s: s.make(s.net.state_dict()), NATIVE),
    mistyped("the parameters to optimize are None: give model.named_parameters()", "`None` for its parameters",
             lambda s: s.make(None), NATIVE),
    unfit("a group has the option 'constrain', which nothing reads; did you mean 'constrained'?",
          "a misspelt option in a group", group(constrain=False)),
    unfit("a group has no exclude, the optimizer has; in a group say constrained=False, or True",
          "an exclude in a group", group(exclude=True)),
    mistyped("a group's constrained must be True or False, got 'no'", "a group with `constrained='no'`",
             group(constrained="no")),
    mistyped(f"radius_lr {A_NUMBER} the string '0.1'; write float('0.1')", "a group with `radius_lr='0.1'`",
             group(radius_lr="0.1")),
    *(unfit(no_gradient("lr", who), f"a learning rate that requires a gradient{where}",
            lambda s: s.build(lr=tracked(0.1)), (who,)) for who, where in ((ADAMW, ""), (FTP, ", in the base"))),
    unfit(no_gradient("kappa", FTP), "a kappa of a later group that requires a gradient", lambda s:
          s.opt.add_param_group({"params": [("w", weight())], "kappa": tracked(0.5)}), (FTP,), begin=Scene.begun),
    unfit(no_gradient("betas", ADAMW), "one of the betas that requires a gradient",
          lambda s: s.build(betas=(tracked(0.9), torch.tensor(0.99))), (ADAMW,)),
    *(mistyped(f"FTPAdamW: got an unexpected keyword argument {name!r}; did you mean {meant!r}?",
               f"`FTPAdamW(params, {name}=...)`", lambda s, name=name: s.build(**{name: 0.1}), (ADAMW,))
      for name, meant in (("radius_Ir", "radius_lr"), ("learning_rate", "lr"), ("k", "kappa"), ("pre", "anchor"))),
    mistyped(f"FTPAdamW: got an unexpected keyword argument 'momentum'; the arguments are {ADAMW_OPTIONS}",
             who=(ADAMW,), momentum=0.9),
    mistyped("FTPSGD: missing a required argument: 'params'", "`FTPSGD()`",
             lambda s: hft.FTPSGD(), (SGD,)),  # pyright: ignore[reportCallIssue]
    unfit("parameter 2 is parameter 1 again; give each tensor once", "one parameter twice in a list",
          lambda s: s.make([weight(), s.net[0].bias, s.net[0].bias])),
    unfit("parameter 'b' is parameter 'a' again; give each tensor once", "one parameter under two names",
          lambda s: s.make([("a", s.net[0].bias), ("b", s.net[0].bias)])),
    unfit(f"two parameters are called 'w'; {PREFIX}", "a name that differs by a wrapper's prefix alone",
          lambda s: s.make([("w", weight()), ("_orig_mod.w", weight())])),
    mistyped("names of parameters must be strings, got 7", "numbers for names", lambda s: s.make([(7, weight())])),
    *(mistyped(f"{FLOATS} {dtype} for parameter 'w'; {AS_REAL if what == 'complex' else LEAVE_OUT}", f"{what} weights",
               lambda s, dtype=dtype: s.make([("w", weight().to(dtype))]))
      for what, dtype in (("integer", torch.int8), ("complex", torch.complex64), ("float8", torch.float8_e4m3fn))),
]  # fmt: skip

EXCLUDES = [
    unfit(f"exclude: ['haed.*'] {NO_MATCH}", exclude="haed.*"),
    unfit(f"exclude: ['0', '1'] {NO_MATCH}; did you mean '0.*'?", exclude=["0", "1"]),
    unfit(f"exclude: ['a tensor of shape (7,)'] {NO_MATCH}", "`exclude` with a tensor of another model",
          lambda s: s.build(exclude=weight(7))),
    unfit("exclude: ['x'] match no parameter; the 30 parameters are "
          f"{[str(i) for i in range(20)]} and 10 more", "`exclude` that matches none of 30 parameters",
          lambda s: s.make([(str(i), weight()) for i in range(30)], exclude="x")),
    *(unfit(f"exclude: {wrong!r} match no parameter; the 26 parameters are {[n for n, _ in LARGE][:20]} and 6 more; "
            f"did you mean {meant!r}?", f"`exclude={wrong!r}` of a model with many parameters",
            lambda s, wrong=wrong: s.make(LARGE, exclude=wrong))
      for wrong, meant in ((["clasifier.*"], "classifier.*"), (["pooler.*", "bais"], "*.pooler.*"))),
    unfit("exclude: a ReLU has no parameters; leave it out", "`exclude` with a module without parameters",
          lambda s: s.build(exclude=torch.nn.ReLU())),
    unfit("exclude patterns ['1.*'] need names: pass model.named_parameters(), or exclude tensors or modules, such as "
          "model.head (of a model of timm: model.get_classifier())", "`exclude='1.*'` without names",
          lambda s: s.make(s.net.parameters(), exclude="1.*")),
    *(mistyped(f"{EXCLUDE} {type(value).__name__}", exclude=value) for value in (True, {"1.*": True}, re.compile("1"))),
    mistyped(f"{EXCLUDE} function; {GIVE_NAMES}", "`exclude=lambda name: ...`",
             lambda s: s.build(exclude=lambda name: name[0] == "1")),
]  # fmt: skip

ANCHORS = [
    unfit(f"{ANCHOR} 'anchor.pt'", anchor="anchor.pt"),
    unfit(f"{ANCHOR} 'zeros'; did you mean 'zero'?", anchor="zeros"),
    unfit(f"{ANCHOR} int", anchor=0),
    unfit(f"{ANCHOR} Sequential", "`anchor=model`", lambda s: s.build(anchor=s.net)),
    unfit("an anchor by name needs names: pass model.named_parameters()", "`anchor` by name, parameters without",
          lambda s: s.make(s.net.parameters(), anchor=s.weights())),
    anchor("anchor must have names of parameters as keys, got 0", "with numbers for names",
           lambda w: dict(enumerate(w.values())), mistyped),
    anchor("anchor has two entries for '0.weight', under different prefixes; give one", "with `w` and `module.w`",
           lambda w: w | {f"module.{n}": x for n, x in w.items()}),
    anchor("anchor has no entry for the parameter '1.bias'; give one, or exclude the parameter", "that misses a name",
           lambda w: {n: x for n, x in w.items() if n != "1.bias"}),
    anchor("anchor has no entry for 2 of 4 parameters: ['0.bias', '1.bias']; give them, or exclude=['0.bias', "
           "'1.bias']", "without biases", lambda w: {n: x for n, x in w.items() if "weight" in n}),
    anchor("anchor has no entry for the parameter '1.bias'; give one, or exclude the parameter; did you mean "
           "'1.bais'?", "with a misspelt name", lambda w: {n.replace("1.bias", "1.bais"): x for n, x in w.items()}),
    anchor("anchor has no entry for 4 of 4 parameters: its names lack the prefix '0.'; write anchor="
           "{f\"0.{k}\": v for k, v in state_dict.items()}", "whose names lack a prefix",
           lambda w: {n[2:]: x for n, x in w.items() if n[0] == "0"}),
    anchor("anchor has no entry for 4 of 4 parameters: its names have the prefix 'net.' too many; write anchor="
           "{k.removeprefix(\"net.\"): v for k, v in state_dict.items()}", "whose names have a prefix too many",
           lambda w: {f"net.{n}": x for n, x in w.items()}),
    anchor("anchor has no entry for 4 of 4 parameters; they are ['0.weight', '0.bias', '1.weight', '1.bias'], and the "
           "anchor's names are ['stem']; is it of another model?", "of another model", lambda w: {"stem": weight()}),
    anchor("anchor has no entry for 4 of 4 parameters, but 'model' is a dict of tensors: pass that, anchor['model']",
           "that is a checkpoint with the weights in it", lambda w: {"model": w, "epoch": 3}),
    anchor(f"{ENTRY} a floating-point tensor of shape (4, 3), got (3, 4), torch.float32", "of another shape",
           lambda w: w | {"0.weight": weight(3, 4)}),
    anchor(f"{ENTRY} a floating-point tensor of shape (4, 3), got list", "of lists",
           lambda w: w | {"0.weight": w["0.weight"].tolist()}),
    *(anchor(f"{ENTRY} finite, got NaN or infinity; is the file damaged?", f"with {value}",
             lambda w, value=value: w | {"0.weight": w["0.weight"] * value}) for value in (math.nan, math.inf)),
    Row(FileNotFoundError, "No such file or directory", "an anchor file that is not there",
        in_empty_folder(lambda s: s.build(anchor="anchor.safetensors")), torch=True),
    unfit("anchor: 'cut.safetensors' is damaged, or no safetensors file (Error while deserializing header: header too "
          "small)", "an anchor file that is cut off", in_empty_folder(of_a_damaged_file)),
    Row(ImportError, "an anchor in 'anchor.safetensors' needs safetensors: pip install safetensors",
        "an anchor file without the package safetensors", file_without_safetensors),
    *(unfit(f"{DTYPE} {value!r}", anchor_dtype=value) for value in (torch.int8, "bfloat16")),
    *(unfit(f"{DEVICE} {value!r}", anchor_device=value) for value in ("nowhere", "cuda:99", "meta", 3.5)),
    mistyped("save_anchor must be True or False, got 'yes'", save_anchor="yes"),
]  # fmt: skip

PAIR = torch.tensor([0.1, 0.2])
NUMBERS = [
    *(unfit(f"{name} must lie in {domain}, got {value}", who=who, **{name: value})
      for name, domain, who, values in (
          ("radius_lr", "[0, inf)", ALL, (-0.001, math.nan, math.inf)), ("kappa", "[0, 1]", ALL, (1.5,)),
          ("radius_start", "[0, inf)", ALL, (-0.001,)), ("lr", "[0, inf)", NATIVE, (-0.1,)),
          ("weight_decay", "[0, inf)", NATIVE, (-1.0,)), ("eps", "[0, inf)", (ADAMW,), (-1e-8,)),
          ("momentum", "[0, inf)", (SGD,), (-0.5,)))
      for value in values),
    *(unfit(f"betas must lie in [0, 1), got {x}", who=(ADAMW,), betas=pair)
      for x, pair in ((1.0, (0.9, 1.0)), (-0.1, (-0.1, 0.9)))),
    *(unfit(f"betas must be a pair (beta1, beta2), got {value}", who=(ADAMW,), betas=value) for value in (0.9, (0.9,))),
    *(mistyped(f"{name} {A_NUMBER} {type(value).__name__}", who=who, **{name: value})
      for name, who in (("radius_lr", ALL), ("lr", NATIVE)) for value in (None, True)),
    *(mistyped(f"{name} {A_NUMBER} the string '1e-3'; write float('1e-3')", who=who, **{name: "1e-3"})
      for name, who in (("kappa", ALL), ("radius_start", ALL), ("lr", NATIVE))),
    *(unfit(f"{name} {A_NUMBER} shape (2,), torch.float32", who=who, **{name: PAIR})
      for name, who in (("radius_lr", ALL), ("radius_start", ALL), ("lr", NATIVE))),
    mistyped(f"lr {A_NUMBER} the string 'fast'", who=NATIVE, lr="fast"),
    mistyped(f"betas {A_NUMBER} the string 'a'", who=(ADAMW,), betas=("a", 0.9)),
    unfit("norm must be one of 'mars', 'l2', got 'l1'; 'mars' is the L1 norm of each row", norm="l1"),
    *(unfit(f"norm must be one of 'mars', 'l2', got {value!r}; did you mean 'l2'?", norm=value) for value in ("L2", 2)),
    unfit("gradient must be one of 'paper', 'exact', got 'Paper'; did you mean 'paper'?", gradient="Paper"),
    unfit("nesterov needs momentum > 0 and dampening = 0, got momentum = 0.0 and dampening = 0", who=(SGD,),
          nesterov=True, momentum=0.0),
    unfit("Invalid learning rate: -1", "`lr=-1` of the base", lambda s: s.build(lr=-1), (FTP,), torch=True),
]  # fmt: skip

FLAGS = [
    *(mistyped(f"{name} must be True or False, got 'no'", who=who, **{name: "no"})
      for name, who in (("maximize", NATIVE), ("capturable", NATIVE), ("lean", NATIVE), ("amsgrad", (ADAMW,)),
                        ("nesterov", (SGD,)))),
    *(mistyped(f"{name} must be True, False or None, got 'auto'", who=NATIVE, **{name: "auto"})
      for name in ("foreach", "fused")),
    mistyped("maximize must be True or False, got None", who=NATIVE, maximize=None),
    refused("fused and foreach cannot both be True; choose one, or neither", who=NATIVE, fused=True, foreach=True),
    refused(f"{FUSED}; {BEST}", "`fused=True`, columns that follow each other",
            lambda s: s.make([weight(3, 4).t()], fused=True), NATIVE),
    refused(f"fused=True cannot run: a parameter is a Odd, and it needs plain tensors; {BEST}",
            "`fused=True`, a subclass of tensors", lambda s: s.make([Odd(weight())], fused=True), NATIVE),
    refused("fused=True cannot run: the package numba is not installed (pip install 'hyperopt-ftp[cpu]'); "
            f"{BEST}", "`fused=True` without the package numba",
            patched("INSTALLED", frozenset({"triton"})), NATIVE),
    refused("fused=True cannot run: NUMBA_DISABLE_JIT is set, so that Numba compiles nothing (unset it before Python "
            f"starts); {BEST}", "`fused=True` under `NUMBA_DISABLE_JIT=1`", patched("JIT_DISABLED", True), NATIVE),
    *(unfit(f"lean=True keeps the deviation in bfloat16 and needs float32 weights, got {dtype}; {BESIDE}",
            f"`lean=True` with {str(dtype)[6:]} weights",
            lambda s, dtype=dtype: s.make([weight(dtype=dtype)], lean=True), NATIVE)
      for dtype in (torch.bfloat16, torch.float16, torch.float64)),
]  # fmt: skip

WRAPPED = [
    mistyped(f"FTP: got an unexpected keyword argument 'lr'; the arguments are {OF_FTP}; {AROUND}",
             "`FTP(model.parameters(), lr=0.1)`",
             lambda s: hft.FTP(s.net.parameters(), lr=0.1), (FTP,)),  # pyright: ignore
    mistyped(f"FTP: too many positional arguments; {AROUND}", "`FTP(AdamW, params)`",
             lambda s: hft.FTP(torch.optim.AdamW, s.net.parameters()), (FTP,)),  # pyright: ignore
    *(mistyped(f"{WRAPS} {got}", f"`FTP({done})`", act, (FTP,)) for done, got, act in (
        ("LBFGS(...)", "LBFGS", lambda s: hft.FTP(torch.optim.LBFGS(s.net.parameters()))),
        ("FTPSGD(...)", "FTPSGD", lambda s: hft.FTP(hft.FTPSGD(s.net.parameters()))),
        ("AdamW", f"the class AdamW itself; {WRITE}", lambda s: hft.FTP(torch.optim.AdamW)),
        ("model.parameters()", f"generator; {WRITE}", lambda s: hft.FTP(s.net.parameters())),
        ("hft.adamw()", "a pure optimizer; around that go the pure rules: hft.PureOptimizer(params, hft.ftp(base, "
         "anchor))", lambda s: hft.FTP(hft.adamw()))  # pyright: ignore[reportArgumentType]
    )),
    mistyped(f"{WRAPS} FTP", "`FTP(FTP(...))`", lambda s: hft.FTP(s.opt), (FTP,), begin=Scene.begun),
    unfit("FTP keeps ['norm'] in the groups, where WithNorm has options of these names",
          "`FTP(base)`, which has an option `norm`", lambda s: hft.FTP(WithNorm(s.net.parameters())), (FTP,)),
]  # fmt: skip

TABLES = {
    "Parameters and groups": PARAMETERS,
    "`exclude`": EXCLUDES,
    "`anchor`": ANCHORS,
    "Numbers and choices": NUMBERS,
    "Flags": FLAGS,
    "`FTP(base)`": WRAPPED,
}
