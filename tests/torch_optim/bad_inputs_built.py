"""Wrong arguments of the constructors, as rows of the table in docs/errors.md."""

from __future__ import annotations

import math
import os
import re
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import hyperopt_ftp as hft
from hyperopt_ftp.kernels import ops

from .bad_inputs import ADAMW, FTP, NATIVE, SGD, Row, Scene, no_gradient, tracked


def weight(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    return torch.ones(shape or (2, 3), dtype=dtype, device=device)


class Odd(torch.nn.Parameter):
    """Some subclass of a tensor."""


class WithNorm(torch.optim.SGD):
    """An optimizer with an option that FTP has too."""

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.defaults["norm"] = 2.0


def option(name: str, value: Any, error: type[Exception], text: str, who: Any = (*NATIVE, FTP), **rest: Any) -> Row:
    return Row(f"`{name}={rest.pop('shown', value)!r}`", lambda s: s.build(**{name: value}), error, text, who, **rest)


def anchor(done: str, change: Any, error: type[Exception], text: str) -> Row:
    """A dict of the weights that ``change`` has spoiled."""
    return Row(done, lambda s: s.build(anchor=change(s.weights())), error, text)


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


def without(package: str) -> Any:
    return mock.patch.object(ops, "INSTALLED", ops.INSTALLED - {package})


def fused_without_numba(s: Scene) -> None:
    with without("numba"):
        s.build(fused=True)


def fused_without_jit(s: Scene) -> None:
    with mock.patch.object(ops, "JIT_DISABLED", True):
        s.build(fused=True)


def file_without_safetensors(s: Scene) -> None:
    with mock.patch.dict("sys.modules", safetensors=None):
        s.build(anchor="anchor.safetensors")


PREFIX = "names must differ; prefix those of each model, or of each part: (f'head.{n}', p)"
A_NUMBER = "must be a number or a 0-d floating-point tensor, got"
FLOATS = "parameters must be float16, bfloat16, float32 or float64, got"
LEAVE_OUT = "leave frozen and quantised weights out"
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
DTYPE = "anchor_dtype must be None or one of (torch.float16, torch.bfloat16, torch.float32, torch.float64), got"
WRAPS = "FTP wraps a torch.optim.Optimizer that steps once for each gradient (not LBFGS, not an anchored one), got"
WRITE = "write FTP(torch.optim.AdamW(params, lr=...))"
AROUND = "it goes around an optimizer: FTP(torch.optim.AdamW(params, lr=...), radius_lr=...)"
BESIDE = "for 16-bit weights the deviation is the master copy"

ADAMW_OPTIONS = (
    "params", "lr", "betas", "eps", "weight_decay", "amsgrad", "anchor", "exclude", "radius_lr", "kappa", "norm",
    "gradient", "radius_start", "anchor_dtype", "anchor_device", "save_anchor", "lean", "maximize", "foreach", "fused",
    "capturable", "differentiable",
)  # fmt: skip
OF_FTP = (
    "base", "anchor", "exclude", "radius_lr", "kappa", "norm", "gradient", "radius_start", "anchor_dtype",
    "anchor_device", "save_anchor",
)  # fmt: skip
#: Named as in a model of transformers: more parameters than an error lists.
LARGE = [
    *((f"bert.encoder.layer.{i}.{kind}", weight()) for i in range(11) for kind in ("weight", "bias")),
    *((f"{head}.{kind}", weight()) for head in ("bert.pooler", "classifier") for kind in ("weight", "bias")),
]

PARAMETERS = [
    Row("no parameters", lambda s: s.make([]), ValueError, "optimizer got an empty parameter list", torch=True),
    Row("the model for its parameters", lambda s: s.make(s.net), TypeError,
        "optimizer can only optimize Tensors, but one of the params is", torch=True),
    Row("the model for the base", lambda s: hft.FTP(s.net), TypeError, f"{WRAPS} Sequential; {WRITE}",
        (FTP,)),
    Row("a schedule-free `PureOptimizer` for the base",
        lambda s: hft.FTP(hft.PureOptimizer([weight().requires_grad_()], hft.schedule_free_sgd())), ValueError,
        "FTP cannot go around a PureOptimizer of a schedule-free optimizer: that goes on from weights in its state, "
        "and what is done to the parameters is lost. Take another one, or the torch optimizer of the package "
        "schedulefree, which is held where it is deployed", (FTP,)),
    Row("the method for the parameters", lambda s: s.make(s.net.named_parameters), TypeError,
        "'method' object is not iterable", torch=True),
    Row("a misspelt option in a group", lambda s: s.make([{"params": [weight()], "constrain": False}]), ValueError,
        "a group has the option 'constrain', which nothing reads; did you mean 'constrained'?"),
    Row("a group with `learning_rate`", lambda s: s.make([{"params": [weight()], "learning_rate": 1e-4}]), ValueError,
        "a group has the option 'learning_rate', which nothing reads; did you mean 'lr'?"),
    *(Row(f"{done} that requires a gradient{place}", act, ValueError, no_gradient(name, who), (who,), begin)
      for who, place in ((ADAMW, ""), (FTP, ", in the base"))
      for done, name, act, begin in (
          ("a learning rate", "lr", lambda s: s.build(lr=tracked(0.1)), None),
          ("a learning rate of a group", "lr", lambda s: s.make([{"params": [weight()], "lr": tracked(0.1)}]), None),
          ("a kappa of a later group", "kappa",
           lambda s: s.opt.add_param_group({"params": [("w", weight())], "kappa": tracked(0.5)}), lambda s: s.begun()),
      )),
    Row("a learning rate of shape (1,) that requires a gradient", lambda s: s.build(lr=tracked([0.1])), ValueError,
        no_gradient("lr", ADAMW), (ADAMW,)),
    Row("one of the betas that requires a gradient", lambda s: s.build(betas=(tracked(0.9), torch.tensor(0.99))),
        ValueError, no_gradient("betas", ADAMW), (ADAMW,)),
    Row("an exclude in a group", lambda s: s.make([{"params": [weight()], "exclude": True}]), ValueError,
        "a group has no exclude, the optimizer has; in a group say constrained=False, or True"),
    Row("a `state_dict` for parameters", lambda s: s.make(s.net.state_dict()), TypeError,
        "optimizer can only optimize Tensors, but one of the params is str", torch=True),
    Row("`FTPAdamW(params, radius_Ir=0.1)`", lambda s: s.build(radius_Ir=0.1), TypeError,
        "FTPAdamW: got an unexpected keyword argument 'radius_Ir'; did you mean 'radius_lr'?", (ADAMW,)),
    *(Row(f"`FTPAdamW(params, {name}=...)`", lambda s, name=name: s.build(**{name: 0.1}), TypeError,
          f"FTPAdamW: got an unexpected keyword argument {name!r}; did you mean {meant!r}?", (ADAMW,))
      for name, meant in (("learning_rate", "lr"), ("k", "kappa"), ("pre", "anchor"))),
    Row("`FTPAdamW(params, momentum=0.9)`", lambda s: s.build(momentum=0.9), TypeError,
        f"FTPAdamW: got an unexpected keyword argument 'momentum'; the arguments are {', '.join(ADAMW_OPTIONS)}",
        (ADAMW,)),
    Row("`FTPSGD()`", lambda s: hft.FTPSGD(), TypeError,  # pyright: ignore[reportCallIssue]
        "FTPSGD: missing a required argument: 'params'", (SGD,)),
    Row("one tensor, not in a list", lambda s: s.make(weight()), TypeError,
        "params argument given to the optimizer should be an iterable of Tensors or dicts, but got", torch=True),
    Row("a set of parameters in a group", lambda s: s.make([{"params": {weight()}}]), TypeError,
        "optimizer parameters need to be organized in ordered collections", torch=True),
    Row("a group without `params`", lambda s: s.make([{"lr": 0.1}]), KeyError, "'params'", torch=True),
    Row("a tensor that was computed (`2 * w`)", lambda s: s.make([2 * torch.nn.Parameter(weight())]), ValueError,
        "can't optimize a non-leaf Tensor", torch=True),
    Row("names for some parameters of a group", lambda s: s.make([("a", weight()), weight()]), ValueError,
        "all optimizer params should be with/without names. Some param names are missing", torch=True),
    Row("names in one group and not in another", lambda s: s.make([{"params": [("a", weight())]},
        {"params": [weight()]}]), ValueError, "all optimizer param groups should be with/without names.", torch=True),
    Row("one parameter in two groups", lambda s: s.make([{"params": [s.net[0].weight]},
        {"params": [s.net[0].weight]}]), ValueError, "some parameters appear in more than one parameter group",
        torch=True),
    Row("one parameter twice in a list", lambda s: s.make([weight(), s.net[0].bias, s.net[0].bias]), ValueError,
        "parameter 2 is parameter 1 again; give each tensor once"),
    Row("one parameter under two names", lambda s: s.make([("a", s.net[0].bias), ("b", s.net[0].bias)]), ValueError,
        "parameter 'b' is parameter 'a' again; give each tensor once"),
    Row("two models with the same names", lambda s: s.make([*s.net.named_parameters(), ("0.bias", weight())]),
        ValueError, f"two parameters are called '0.bias'; {PREFIX}"),
    Row("a name that differs by a wrapper's prefix alone", lambda s: s.make([("w", weight()), ("_orig_mod.w", weight())]
        ), ValueError, f"two parameters are called 'w'; {PREFIX}"),
    Row("numbers for names", lambda s: s.make([(7, weight())]), TypeError,
        "names of parameters must be strings, got 7"),
    Row("integer weights", lambda s: s.make([weight(), weight(dtype=torch.int8)]), TypeError,
        f"{FLOATS} torch.int8 for parameter 1; {LEAVE_OUT}"),
    Row("complex weights", lambda s: s.make([("w", weight(dtype=torch.complex64))]), TypeError,
        f"{FLOATS} torch.complex64 for parameter 'w'; {LEAVE_OUT}"),
    Row("float8 weights", lambda s: s.make([("w", weight().to(torch.float8_e4m3fn))]), TypeError,
        f"{FLOATS} torch.float8_e4m3fn for parameter 'w'; {LEAVE_OUT}"),
    Row("a group with `constrained='no'`", lambda s: s.make([{"params": [weight()], "constrained": "no"}]), TypeError,
        "a group's constrained must be True or False, got 'no'"),
    Row("a group of another optimizer, its `constrained` included", lambda s: s.make(
        [{"params": [weight()], "constrained": s.opt.param_groups[0]["constrained"]}]), TypeError,
        "a group's constrained must be True or False, got [True, True, True, True]", begin=Scene.begun),
    Row("a group with `radius_lr='0.1'`", lambda s: s.make([{"params": [weight()], "radius_lr": "0.1"}]), TypeError,
        f"radius_lr {A_NUMBER} the string '0.1'; write float('0.1')"),
]  # fmt: skip

EXCLUDES = [
    Row("`exclude='haed.*'`", lambda s: s.build(exclude="haed.*"), ValueError, f"exclude: ['haed.*'] {NO_MATCH}"),
    Row("`exclude=['1.*', 'head']`, of which one matches", lambda s: s.build(exclude=["1.*", "head"]), ValueError,
        f"exclude: ['head'] {NO_MATCH}"),
    Row("`exclude` with a tensor of another model", lambda s: s.build(exclude=weight(7)), ValueError,
        f"exclude: ['a tensor of shape (7,)'] {NO_MATCH}"),
    Row("`exclude` with a module of another model", lambda s: s.build(exclude=torch.nn.Linear(5, 1, bias=False)),
        ValueError, f"exclude: ['a tensor of shape (1, 5)'] {NO_MATCH}"),
    Row("`exclude` that matches none of 30 parameters", lambda s: s.make([(str(i), weight()) for i in range(30)],
        exclude="x"), ValueError, "exclude: ['x'] match no parameter; the 30 parameters are "
        f"{[str(i) for i in range(20)]} and 10 more"),
    Row("`exclude='clasifier.*'` of a model with many parameters", lambda s: s.make(LARGE, exclude="clasifier.*"),
        ValueError, "exclude: ['clasifier.*'] match no parameter; the 26 parameters are "
        f"{[n for n, _ in LARGE][:20]} and 6 more; did you mean 'classifier.*'?"),
    Row("`exclude=['pooler.*', 'bais']` of the same model", lambda s: s.make(LARGE, exclude=["pooler.*", "bais"]),
        ValueError, "exclude: ['pooler.*', 'bais'] match no parameter; the 26 parameters are "
        f"{[n for n, _ in LARGE][:20]} and 6 more; did you mean ['*.pooler.*', '*.bias']?"),
    Row("`exclude=['0', '1']`", lambda s: s.build(exclude=["0", "1"]), ValueError,
        f"exclude: ['0', '1'] {NO_MATCH}; did you mean ['0.*', '1.*']?"),
    Row("`exclude='2.weight'`, of a number that there is not", lambda s: s.build(exclude="2.weight"), ValueError,
        f"exclude: ['2.weight'] {NO_MATCH}"),
    Row("`exclude` with a module without parameters", lambda s: s.build(exclude=torch.nn.ReLU()), ValueError,
        "exclude: a ReLU has no parameters; leave it out"),
    Row("`exclude='1.*'` without names", lambda s: s.make(s.net.parameters(), exclude="1.*"), ValueError,
        "exclude patterns ['1.*'] need names: pass model.named_parameters(), or exclude tensors or modules, such as "
        "model.head (of a model of timm: model.get_classifier())"),
    option("exclude", [3], TypeError, f"{EXCLUDE} int"),
    option("exclude", True, TypeError, f"{EXCLUDE} bool"),
    option("exclude", {"1.*": True}, TypeError, f"{EXCLUDE} dict"),
    Row("`exclude=lambda name: ...`", lambda s: s.build(exclude=lambda name: name[0] == "1"), TypeError,
        f"{EXCLUDE} function; {GIVE_NAMES}"),
    option("exclude", re.compile("1.*"), TypeError, f"{EXCLUDE} Pattern"),
    Row("`exclude=head.named_parameters()`", lambda s: s.build(exclude=s.net[1].named_parameters()), TypeError,
        f"{EXCLUDE} tuple"),
]  # fmt: skip

ANCHORS = [
    option("anchor", "none", ValueError, f"{ANCHOR} 'none'"),
    option("anchor", "anchor.pt", ValueError, f"{ANCHOR} 'anchor.pt'"),
    option("anchor", "zeros", ValueError, f"{ANCHOR} 'zeros'; did you mean 'zero'?"),
    option("anchor", 0, ValueError, f"{ANCHOR} int"),
    Row("`anchor=model`", lambda s: s.build(anchor=s.net), ValueError, f"{ANCHOR} Sequential"),
    Row("`anchor=model.named_parameters()`", lambda s: s.build(anchor=s.net.named_parameters()), ValueError,
        f"{ANCHOR} generator"),
    Row("`anchor` as a dict, parameters without names", lambda s: s.make(s.net.parameters(), anchor=s.weights()),
        ValueError, "an anchor by name needs names: pass model.named_parameters()"),
    anchor("an anchor with numbers for names", lambda w: dict(enumerate(w.values())), TypeError,
           "anchor must have names of parameters as keys, got 0"),
    anchor("an anchor with `w` and `module.w`", lambda w: w | {f"module.{n}": x for n, x in w.items()}, ValueError,
           "anchor has two entries for '0.weight', under different prefixes; give one"),
    anchor("an anchor that misses a name", lambda w: {n: x for n, x in w.items() if n != "1.bias"}, ValueError,
           "anchor has no entry for the parameter '1.bias'; give one, or exclude the parameter"),
    anchor("an anchor that misses several names", lambda w: {n: x for n, x in w.items() if n[0] == "0"}, ValueError,
           "anchor has no entry for 2 of 4 parameters: ['1.*']; give them, or exclude=['1.*']"),
    anchor("an anchor without biases", lambda w: {n: x for n, x in w.items() if "weight" in n}, ValueError,
           "anchor has no entry for 2 of 4 parameters: ['0.bias', '1.bias']; give them, or exclude=['0.bias', "
           "'1.bias']"),
    anchor("an anchor with a misspelt name", lambda w: {n.replace("1.bias", "1.bais"): x for n, x in w.items()},
           ValueError, "anchor has no entry for the parameter '1.bias'; give one, or exclude the parameter; is the "
           "entry '1.bais' meant?"),
    anchor("an anchor whose names lack a prefix", lambda w: {n[2:]: x for n, x in w.items() if n[0] == "0"},
           ValueError, "anchor has no entry for 4 of 4 parameters: its names lack the prefix '0.'; write anchor="
           "{f\"0.{k}\": v for k, v in state_dict.items()}"),
    anchor("an anchor whose names have a prefix too many", lambda w: {f"net.{n}": x for n, x in w.items()}, ValueError,
           "anchor has no entry for 4 of 4 parameters: its names have the prefix 'net.' too many; write anchor="
           "{k.removeprefix(\"net.\"): v for k, v in state_dict.items()}"),
    anchor("an anchor of another model", lambda w: {"stem": weight()}, ValueError,
           "anchor has no entry for 4 of 4 parameters; they are ['0.weight', '0.bias', '1.weight', '1.bias'], and the "
           "anchor's names are ['stem']; is it of another model?"),
    anchor("a checkpoint with the weights in it", lambda w: {"model": w, "epoch": 3}, ValueError,
           "anchor has no entry for 4 of 4 parameters, but 'model' is a dict of tensors: pass that, anchor['model']"),
    anchor("an anchor of another shape", lambda w: w | {"0.weight": weight(3, 4)}, ValueError,
           f"{ENTRY} a floating-point tensor of shape (4, 3), got (3, 4), torch.float32"),
    anchor("an anchor of integers", lambda w: w | {"0.weight": weight(4, 3, dtype=torch.int8)}, ValueError,
           f"{ENTRY} a floating-point tensor of shape (4, 3), got (4, 3), torch.int8"),
    anchor("an anchor of lists", lambda w: w | {"0.weight": w["0.weight"].tolist()}, ValueError,
           f"{ENTRY} a floating-point tensor of shape (4, 3), got list"),
    anchor("an anchor with NaN", lambda w: w | {"0.weight": w["0.weight"] * math.nan}, ValueError,
           f"{ENTRY} finite, got NaN or infinity; is the file damaged?"),
    anchor("an anchor with infinity", lambda w: w | {"0.weight": w["0.weight"] * math.inf}, ValueError,
           f"{ENTRY} finite, got NaN or infinity; is the file damaged?"),
    Row("an anchor file that is not there", in_empty_folder(lambda s: s.build(anchor="anchor.safetensors")),
        FileNotFoundError, "No such file or directory", torch=True),
    Row("an anchor file that is cut off", in_empty_folder(of_a_damaged_file), ValueError,
        "anchor: 'cut.safetensors' is damaged, or no safetensors file (Error while deserializing header: header too "
        "small)"),
    Row("an anchor file without the package safetensors", file_without_safetensors, ImportError,
        "an anchor in 'anchor.safetensors' needs safetensors: pip install safetensors"),
    option("anchor_dtype", torch.int8, ValueError, f"{DTYPE} torch.int8"),
    option("anchor_dtype", "bfloat16", ValueError, f"{DTYPE} 'bfloat16'"),
    option("save_anchor", "yes", TypeError, "save_anchor must be True or False, got 'yes'"),
]  # fmt: skip

PAIR = torch.tensor([0.1, 0.2])
NUMBERS = [
    *(option("radius_lr", value, ValueError, f"radius_lr must lie in [0, inf), got {value}")
      for value in (-0.001, math.nan, math.inf)),
    *(option("radius_lr", value, TypeError, f"radius_lr {A_NUMBER} {type(value).__name__}")
      for value in (None, True)),
    option("radius_lr", "0.01", TypeError, f"radius_lr {A_NUMBER} the string '0.01'; write float('0.01')"),
    option("radius_lr", PAIR, ValueError, f"radius_lr {A_NUMBER} shape (2,), torch.float32"),
    *(option("kappa", value, ValueError, f"kappa must lie in [0, 1], got {value}") for value in (1.5, -0.1, math.nan)),
    option("kappa", "1", TypeError, f"kappa {A_NUMBER} the string '1'; write float('1')"),
    option("norm", "l1", ValueError, "norm must be one of 'mars', 'l2', got 'l1'; 'mars' is the L1 norm of each row"),
    option("norm", "L2", ValueError, "norm must be one of 'mars', 'l2', got 'L2'; did you mean 'l2'?"),
    option("norm", 2, ValueError, "norm must be one of 'mars', 'l2', got 2; did you mean 'l2'?"),
    *(option("radius_start", value, ValueError, f"radius_start must lie in [0, inf), got {value}")
      for value in (-0.001, math.nan, math.inf)),
    option("radius_start", "0.1", TypeError, f"radius_start {A_NUMBER} the string '0.1'; write float('0.1')"),
    option("radius_start", PAIR, ValueError, f"radius_start {A_NUMBER} shape (2,), torch.float32"),
    option("gradient", "fast", ValueError, "gradient must be one of 'paper', 'exact', got 'fast'"),
    option("gradient", "Paper", ValueError,
           "gradient must be one of 'paper', 'exact', got 'Paper'; did you mean 'paper'?"),
    *(option("lr", value, ValueError, f"lr must lie in [0, inf), got {value}", NATIVE)
      for value in (-0.1, math.nan, math.inf)),
    *(option("lr", value, TypeError, f"lr {A_NUMBER} {type(value).__name__}", NATIVE)
      for value in (None, True)),
    option("lr", [1e-3], TypeError, f"lr {A_NUMBER} list", NATIVE),
    option("lr", "fast", TypeError, f"lr {A_NUMBER} the string 'fast'", NATIVE),
    option("lr", "1e-3", TypeError, f"lr {A_NUMBER} the string '1e-3'; write float('1e-3')", NATIVE),
    option("lr", Fraction(1, 10), TypeError, f"lr {A_NUMBER} Fraction; write float(Fraction(1, 10))", NATIVE),
    option("lr", PAIR, ValueError, f"lr {A_NUMBER} shape (2,), torch.float32", NATIVE),
    option("lr", torch.tensor(1), ValueError, f"lr {A_NUMBER} shape (), torch.int64", NATIVE),
    *(option("weight_decay", value, ValueError, f"weight_decay must lie in [0, inf), got {value}", NATIVE)
      for value in (-1.0, math.nan)),
    option("eps", -1e-8, ValueError, "eps must lie in [0, inf), got -1e-08", (ADAMW,)),
    option("betas", 0.9, ValueError, "betas must be a pair (beta1, beta2), got 0.9", (ADAMW,)),
    option("betas", (0.9,), ValueError, "betas must be a pair (beta1, beta2), got (0.9,)", (ADAMW,)),
    option("betas", (0.9, 1.0), ValueError, "betas must lie in [0, 1), got 1.0", (ADAMW,)),
    option("betas", (-0.1, 0.9), ValueError, "betas must lie in [0, 1), got -0.1", (ADAMW,)),
    option("betas", ("a", 0.9), TypeError, f"betas {A_NUMBER} the string 'a'", (ADAMW,)),
    option("momentum", -0.5, ValueError, "momentum must lie in [0, inf), got -0.5", (SGD,)),
    option("dampening", math.nan, ValueError, "dampening must lie in [-inf, inf], got nan", (SGD,)),
    option("nesterov", True, ValueError,
           "nesterov needs momentum > 0 and dampening = 0, got momentum = 0.0 and dampening = 0.0", (SGD,)),
    Row("`nesterov=True` with dampening", lambda s: s.build(nesterov=True, momentum=0.9, dampening=0.1), ValueError,
        "nesterov needs momentum > 0 and dampening = 0, got momentum = 0.9 and dampening = 0.1", (SGD,)),
    Row("`lr=-1` of the base", lambda s: s.build(lr=-1), ValueError, "Invalid learning rate: -1", (FTP,), torch=True),
]  # fmt: skip

FLAGS = [
    *(option(name, "no", TypeError, f"{name} must be True or False, got 'no'", NATIVE)
      for name in ("maximize", "capturable", "lean")),
    option("amsgrad", 1, TypeError, "amsgrad must be True or False, got 1", (ADAMW,)),
    option("nesterov", "no", TypeError, "nesterov must be True or False, got 'no'", (SGD,)),
    *(option(name, "auto", TypeError, f"{name} must be True, False or None, got 'auto'", NATIVE)
      for name in ("foreach", "fused")),
    Row("`fused=True, foreach=True`", lambda s: s.build(fused=True, foreach=True), RuntimeError,
        "fused and foreach cannot both be True; choose one, or neither", NATIVE),
    option("differentiable", True, ValueError,
           "differentiable must be False, got True: a step works in place; hft.ftp is the differentiable rule", NATIVE),
    Row("a group with `differentiable=True`", lambda s: s.make([{"params": [weight()], "differentiable": True}]),
        ValueError, "differentiable must be False, got True: a step works in place; hft.ftp is the differentiable rule",
        NATIVE),
    Row("`fused=True`, columns that follow each other", lambda s: s.make([weight(3, 4).t()], fused=True), RuntimeError,
        "fused=True cannot run: a parameter of shape (4, 3) and strides (1, 4) does not keep its rows in one piece; "
        "fused=None takes the best there is", NATIVE),
    Row("`fused=True`, a subclass of tensors", lambda s: s.make([Odd(weight())], fused=True), RuntimeError,
        "fused=True cannot run: a parameter is a Odd, and it needs plain tensors; fused=None takes the best there is",
        NATIVE),
    Row("`fused=True` without the package numba", fused_without_numba, RuntimeError,
        "fused=True cannot run: the package numba is not installed (pip install 'hyperopt-ftp[cpu]'); fused=None takes "
        "the best there is", NATIVE),
    Row("`fused=True` under `NUMBA_DISABLE_JIT=1`", fused_without_jit, RuntimeError,
        "fused=True cannot run: NUMBA_DISABLE_JIT is set, so that Numba compiles nothing (unset it before Python "
        "starts); fused=None takes the best there is", NATIVE),
    *(Row(f"`lean=True` with {str(dtype)[6:]} weights", lambda s, dtype=dtype: s.make([weight(dtype=dtype)], lean=True),
          ValueError, "lean=True keeps the deviation in bfloat16 and needs float32 weights, got "
          f"{dtype}; {BESIDE}", NATIVE) for dtype in (torch.bfloat16, torch.float16, torch.float64)),
]  # fmt: skip

WRAPPED = [
    Row("`FTP(model.parameters(), lr=0.1)`", lambda s: hft.FTP(s.net.parameters(), lr=0.1),  # pyright: ignore
        TypeError, f"FTP: got an unexpected keyword argument 'lr'; the arguments are {', '.join(OF_FTP)}; {AROUND}",
        (FTP,)),
    Row("`FTP(AdamW, params)`", lambda s: hft.FTP(torch.optim.AdamW, s.net.parameters()),  # pyright: ignore
        TypeError, f"FTP: too many positional arguments; {AROUND}", (FTP,)),
    Row("`FTP(base, radius_Ir=0.1)`", lambda s: hft.FTP(torch.optim.SGD(s.net.parameters()), radius_Ir=0.1),  # pyright: ignore
        TypeError, "FTP: got an unexpected keyword argument 'radius_Ir'; did you mean 'radius_lr'?", (FTP,)),
    Row("`FTP(LBFGS(...))`", lambda s: hft.FTP(torch.optim.LBFGS(s.net.parameters())), TypeError,
        f"{WRAPS} LBFGS", (FTP,)),
    Row("`FTP(FTPSGD(...))`", lambda s: hft.FTP(hft.FTPSGD(s.net.parameters())), TypeError, f"{WRAPS} FTPSGD", (FTP,)),
    Row("`FTP(FTP(...))`", lambda s: hft.FTP(s.opt), TypeError, f"{WRAPS} FTP", (FTP,), Scene.begun),
    Row("`FTP(hft.adamw())`", lambda s: hft.FTP(hft.adamw()), TypeError,  # pyright: ignore[reportArgumentType]
        f"{WRAPS} a pure optimizer; around that go the pure rules: "
        "hft.PureOptimizer(params, hft.ftp(base, anchor))", (FTP,)),
    Row("`FTP(AdamW)`", lambda s: hft.FTP(torch.optim.AdamW), TypeError,
        f"{WRAPS} the class AdamW itself; write FTP(torch.optim.AdamW(params, lr=...))", (FTP,)),
    Row("`FTP(model.parameters())`", lambda s: hft.FTP(s.net.parameters()), TypeError,
        f"{WRAPS} generator; {WRITE}", (FTP,)),
    Row("`FTP(base)`, which has an option `norm` of its own", lambda s: hft.FTP(WithNorm(s.net.parameters())),
        ValueError, "FTP keeps ['norm'] in the groups, where WithNorm has options of these names", (FTP,)),
]  # fmt: skip

TABLES = {
    "Parameters and groups": PARAMETERS,
    "`exclude`": EXCLUDES,
    "`anchor`": ANCHORS,
    "Numbers and choices": NUMBERS,
    "Flags": FLAGS,
    "`FTP(base)`": WRAPPED,
}
