"""Wrong arguments of the functional API, as rows by topic: what is done, the error, what its text says.

``test_wrong_arguments.py`` runs them. The classes have a table of their own, of which docs/reference/errors.md is made:
``tests/torch_optim/bad_inputs.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torchopt
from torch import nn
from torch.optim import lr_scheduler

import hyperopt_ftp as hft
from hyperopt_ftp import schedules
from hyperopt_ftp.hyper import Strategy

from .hypergradients import DATA, F64, SGD, call, f64, first_state, outer, own, rounds
from .problems import loss, start

Row = tuple[Callable[[], Any], type[Exception], str]


VECTORS = {"w": torch.ones(1), "b": torch.ones(3, 2)}
M = {"w": torch.zeros(2, 3)}
AVERAGED = hft.averaged(SGD)
TORCHS = torch.optim.SGD([torch.ones(1)])
HALF = torch.tensor(0.5)
TOWER = hft.hyper(SGD, by=SGD, over="lr")
TWO_LEVELS = hft.hyper(hft.adam(), by=SGD, over="betas.0")
PARTS = {"w": hft.adam(lr=0.1), "b": hft.sgd(lr=0.2)}
BY_NAME = hft.partition(PARTS, lambda path: path)
TWICE = {"a": {"b": HALF}, "a.b": HALF}


def updated(opt: hft.Optimizer, params: Any = VECTORS, grads: Any = None, **hparams: Any) -> Any:
    """One update, with some of the hparams changed."""
    full = {**opt.hparams, **hparams}
    return opt.update(params if grads is None else grads, opt.init(params, full), params, full)


def tuned(base: hft.Optimizer, over: Any, **options: Any) -> hft.Optimizer:
    return hft.hyper(base, by=hft.sgd(), over=over, **options)


OPTIMIZERS: list[Row] = [
    (lambda: hft.adam(betas=(0.9, 1.0)), ValueError, r"betas must lie in \[0, 1\), got 1.0"),
    (lambda: hft.lion(betas=(0.9,)), ValueError, "betas must be a pair"),  # pyright: ignore
    (lambda: updated(hft.adam(), betas=(HALF, HALF, HALF)), ValueError, r"betas must be a pair \(beta1, beta2\), got"),
    (lambda: hft.adam(eps_root=-1.0), ValueError, "eps_root must lie in"),
    (lambda: hft.sgd(nesterov=True), ValueError, "nesterov needs momentum > 0"),
    (lambda: hft.sgd(nesterov=True, momentum={"w": 0.0}), ValueError, "nesterov needs momentum > 0"),
    (lambda: hft.sgd(nesterov=True, momentum=0.9, dampening=HALF), ValueError, "and dampening = 0, got .*ing = 0.5"),
    (lambda: hft.adam(lr=lambda t: 0.1), TypeError, r"got a function; .* hft.scheduled\(optimizer, lr=schedule\)"),
    (lambda: hft.adam(lr=schedules.cosine(9)), TypeError, r"got a schedule; .* hft.scheduled\(optimizer, lr=sche"),
    (lambda: hft.adam(1e-3, b1=0.9), TypeError, "unexpected keyword argument 'b1'; did you mean 'betas'[?]$"),
    (lambda: hft.adafactor(eps=1e-3), ValueError, r"eps must be a pair \(eps1, eps2\), where eps1 may be None"),
    (lambda: hft.adafactor(d=0.5), ValueError, r"d must lie in \[1, inf\), got 0.5"),
    (lambda: hft.muon().init(M | {"b": torch.zeros(3)}), ValueError, r"'b' has the shape \(.*\); with hft.part"),
    (lambda: hft.muon(ns_coefficients=(1.0, 2.0)), ValueError, r"must be a tuple \(a, b, c\), got \(1.0, 2.0\)"),
    (lambda: hft.muon(ns_steps=0), ValueError, "ns_steps must be a number of Newton-Schulz steps >= 1, got 0"),
    (lambda: hft.muon(adjust_lr_fn="match"), ValueError, "must be one of 'original', 'match_rms_adamw', got 'match'"),
    (lambda: hft.muon(ns_dtype="bfloat16"), TypeError, "must be None or a floating-point dtype such as torch.bfloat16"),
    (lambda: hft.muon().init({"w": 1.0}), TypeError, "must be a pytree of tensors, but 'w' is a float"),
    (lambda: hft.muon(nn.Linear(2, 2).parameters()), TypeError, "a pure optimizer gets no params here"),
    (lambda: hft.schedule_free_sgd(warmup_steps=-1), ValueError, "warmup_steps must be a number of updates >= 0, got"),
    (lambda: hft.rprop(etas=(1.5, 1.2)), ValueError, r"etaminus must lie in \[0, 1\), got 1.5"),
    (lambda: hft.rprop(etas=(0.5, {"w": 0.9, "b": 1.2})), ValueError, r"etaplus must lie in \[1, inf\), got 0.9"),
    (lambda: hft.rprop(etas=(0.5,)), ValueError, r"etas must be a pair \(etaminus, etaplus\)"),
    (lambda: updated(hft.sgd(), M, {"v": M["w"]}), ValueError, "grads must have the structure of the parameters"),
    (lambda: updated(hft.sgd(), M, typo=1.0), ValueError, "hparams must be a dict with names among"),
    (lambda: hft.sgd().init({"w": torch.zeros(2).int()}), TypeError, "'w' is torch.int32; of a module give dict"),
    (lambda: hft.sgd().init({"w": torch.zeros(2) + 1j}), TypeError, "'w' is torch.complex64; pass torch.view_as_real"),
    (
        lambda: hft.sgd().update(torch.ones(2).to_sparse(), hft.sgd().init(torch.ones(2)), torch.ones(2)), TypeError,
        "is sparse .* give its to_dense.., or an embedding with sparse=False",
    ),
    (lambda: hft.sgd().init(M | {"b": None}), TypeError, "must be a pytree of tensors, but 'b' is None; leave it out"),
    (lambda: hft.sgd().init({"w": torch.zeros(2, device="meta")}), ValueError, "'w' has no values: it is on the meta"),
    (lambda: hft.to_torchopt(TORCHS), TypeError, "optimizer must be a pure optimizer"),
    (lambda: hft.from_torchopt(hft.sgd()), TypeError, "factory must be a function .* got a Optimizer; give the functi"),
    (
        lambda: updated(hft.from_torchopt(torchopt.sgd, lr=0.1), grads={**VECTORS, "b": torch.ones(2)}),
        ValueError, r"gradient of 'b' has the shape \(2,\), its parameter \(3, 2\)",
    ),
    (lambda: hft.from_torchopt(torchopt.sgd, lr=0.1).update(M, M, M), TypeError, "must be the BridgeState .* got dict"),
    (lambda: hft.PureOptimizer(SGD, nn.Linear(1, 1).parameters()), TypeError, "got an object of the class generator"),
    (lambda: hft.PureOptimizer(nn.Linear(1, 1), SGD), TypeError, "to optimize are a module, Linear: give model.named_"),
    (lambda: hft.optimizers.to_tensors(0.1), TypeError, r"takes numbers by name, to_tensors\(lr=0.1\), got 0.1"),  # pyright: ignore
    # A number that an entry of a parameter would have to be stretched for, or that is to be one for a tensor.
    (lambda: updated(hft.sgd(), VECTORS["w"], lr=torch.ones(4)), ValueError, r"\(4,\), its parameter \(1,\)"),
    (
        lambda: updated(hft.sgd(), VECTORS, lr={"a": HALF}), ValueError,
        r"no entry 'w' among \['a'\](.|\n)*; a rule with weights of its own is an hft.Optimizer\(",
    ),
    (
        lambda: updated(hft.lion(), VECTORS["w"], betas=(HALF, torch.full((4,), 0.9))),
        ValueError, r"has the shape \(4,\), its parameter \(1,\)",  # the second beta enters the moment only
    ),
    (
        lambda: hft.adagrad().init(VECTORS["w"], {**hft.adagrad().hparams, "initial_accumulator_value": torch.ones(4)}),
        ValueError, r"has the shape \(4,\), its parameter \(1,\)",
    ),
]  # fmt: skip

COMBINATORS: list[Row] = [
    (lambda: hft.hyper(TORCHS, by=SGD, over="lr"), TypeError, "base must be a pure optimizer .*, got .* SGD"),
    (lambda: hft.hyper(SGD, by=hft.adam, over="lr"), TypeError, "by must be a pure optimizer .*, got adam itself"),
    (lambda: hft.ftp(hft.FTPAdamW, M), TypeError, "base must be .* got FTPAdamW itself: call it .* those of this pack"),
    *(
        row
        for make in (
            hft.clipped, hft.clipped_per_layer, hft.clipped_by_value, hft.clipped_adaptively, hft.damped, hft.noisy,
            hft.averaged, hft.decayed,
        )
        for row in (
            (lambda make=make: make(0.1, SGD), TypeError, "must be a number .*, got an .*; the optimizer goes first"),
            (lambda make=make: make(SGD, bound=0.1), TypeError, f"{make.__name__}: got an .* 'bound'; the arg"),
        )
    ),
    (lambda: hft.noisy(SGD, 0.1, seed=-1), ValueError, "seed must"),
    (lambda: hft.noisy(SGD, 0.1, seed=2**32), ValueError, "seed must"),
    (lambda: hft.noisy(SGD, 0.1, seed=0.5), TypeError, "seed must"),
    (lambda: hft.noisy(SGD, 0.1, seed=True), TypeError, "seed must"),
    (lambda: hft.accumulated(SGD, 0), ValueError, "every must be a number of gradients >= 1, got 0"),
    (lambda: updated(hft.accumulated(SGD, 2), M, {"w": None}), ValueError, r"of 'w' each time, got None; .*frozen"),
    (lambda: hft.averaged(SGD, 2.0), ValueError, r"decay must lie in \[0, 1\], got 2"),
    (lambda: hft.averages(M, SGD.init(M)), ValueError, r"a SGDState, keeps no average; put hft.averaged\(...\) around"),
    (lambda: hft.averages(M, hft.averaged(AVERAGED).init(M)), ValueError, "more than one average of 'w'; pass"),
    (
        lambda: hft.averages(M, hft.averaged(hft.partition({"w": AVERAGED}, "w")).init(M)),
        ValueError, "more than one average of 'w'; pass the inner state",
    ),
    (lambda: hft.averages(M, AVERAGED.init(VECTORS)), ValueError, r"averages of .*'b'.* not among the params.*\['w'\]"),
    (lambda: hft.lookahead(SGD, 0), ValueError, "every must be a number of updates >= 1, got 0"),
    (lambda: hft.lookahead(SGD, alpha=1.5), ValueError, r"alpha must lie in \[0, 1\], got 1.5"),
    (lambda: hft.decayed(SGD, 0.1, exclude="bb").init(VECTORS), ValueError, r"entry 'bb' matches .*\['w', 'b'\]"),
    (lambda: hft.decayed(SGD, 0.1, exclude=[3]), TypeError, "exclude must hold paths or glob patterns.*, got "),
    (lambda: hft.decayed(TOWER, 0.1), ValueError, "decayed reads the lr of base, which has none, its hparams .*inside"),
    (lambda: hft.l2sp(TOWER, M, decoupled=True), ValueError, "has no lr"),
    # Anchors.
    (lambda: hft.ftp(SGD, None), TypeError, "anchor must be the weights to stay near, .* got None"),
    (lambda: hft.ftp(SGD, {"v": M["w"]}).init(M), ValueError, r"anchor has entries \['v'\] that are not parameters"),
    (lambda: hft.ftp(SGD, {"w": torch.zeros(3, 2)}).init(M), ValueError, r"'w' has shape \(3, 2\), its .*\(2, 3\)"),
    (lambda: hft.ftp(SGD, {"w": torch.zeros(2).int()}), TypeError, "must hold floating-point tensors.* torch.int32"),
    (lambda: hft.ftp(SGD, M, norm="l1"), ValueError, "norm must be one of"),
    (lambda: hft.ftp(SGD, M, gradient="Exact"), ValueError, "got .Exact.; did you mean .exact."),
    (lambda: hft.ftp(SGD, M, radius_start=math.inf), ValueError, r"radius_start must lie in \[0, inf\), got"),
    (lambda: hft.ftp(SGD, M, exclude="w"), TypeError, "what the anchor leaves out moves freely"),
    (lambda: hft.projected(SGD, M, radius=-1.0), ValueError, "radius must lie in"),
    (lambda: hft.projected(SGD, M, radius={"v": 1.0}), ValueError, r"names of the anchor .*, got \['v'\]"),
    (lambda: hft.l2sp(SGD, VECTORS, strength={"w": 0.0}), ValueError, r"names of the anchor \['w', 'b'\], got \['w'\]"),
    (lambda: updated(hft.l2sp(SGD, VECTORS), VECTORS, M), ValueError, "structure|no entry .b. among"),
    (lambda: updated(hft.projected(SGD, VECTORS), radius={"w": HALF}), ValueError, r"no entry for 'b', only for .*w"),
    (
        lambda: updated(hft.projected(SGD, VECTORS, radius=1.0), radius={"w": torch.ones(4), "b": HALF}),
        ValueError, r"radius must be a 0-d tensor, got the shape \(",
    ),
    *(
        (
            lambda opt=opt, name=name: updated(opt, **{name: torch.ones(2)}),
            ValueError, rf"{name} must be a 0-d tensor, got the shape \(2,\)",
        )
        for opt, name in (
            (hft.l2sp(SGD, VECTORS), "strength"), (hft.directed(SGD, VECTORS), "omega"),
            (hft.ftp(SGD, VECTORS), "kappa"), (hft.clipped(SGD, 1.0), "max_norm"), (hft.damped(SGD), "kappa"),
        )
    ),
    (lambda: hft.projected(SGD, TWICE), ValueError, "two entries of a tree have the path 'a.b'; rename a key"),
    (lambda: hft.projected(SGD, {"a.b": HALF}).init(TWICE), ValueError, "two entries of a tree have the path 'a.b'"),
]  # fmt: skip

LABELS: list[Row] = [
    (lambda: hft.partition(PARTS, {"w": "w"}).init(VECTORS), ValueError, "no entry of labels fits 'b', they are"),
    (
        lambda: hft.PureOptimizer(nn.Linear(1, 1).parameters(), hft.partition(PARTS, {"w": "w"})),
        ValueError, "no entry of labels fits '0', .*for names give model.named_parameters",
    ),
    (lambda: hft.partition({"fast": SGD}, {"*": "fats"}).init(M), ValueError, r"'\*' is 'fats', but .*; .* 'fast'\?"),
    (lambda: hft.partition({"fast": SGD}, lambda path: "fats").init(M), ValueError, r".w. is .fats., .*.fast.\?"),
    (lambda: hft.partition({"a": SGD}, lambda path: None).init(M), ValueError, "the label of 'w' is None, but the opt"),
    (lambda: hft.partition(PARTS, {"bb.*": "w", "*": "b"}).init(VECTORS), ValueError, r"'bb.\*' matches no .* 'b'\?"),
    (lambda: hft.partition(PARTS, {"*": "w", "b": "b"}).init(VECTORS), ValueError, "'b' gives no .*; put it before"),
    (lambda: hft.partition(PARTS, {"*": "w"}).init(M), ValueError, r"no parameter has the label 'b'; .* are \['w'\]"),
    (lambda: hft.partition(PARTS, {"w": 1, "*": "b"}).init(M), TypeError, "but the entry .w. is 1"),
    *(
        (lambda wrong=wrong: hft.partition({wrong: SGD}, {"*": wrong}), ValueError, "a string without a dot")
        for wrong in ("a.b", "", 1, "loss", "params", "batches")
    ),
    (lambda: hft.partition({}, {"*": "a"}), ValueError, "optimizers must be a dict of at least one optimizer by label"),
    (lambda: hft.partition({"a": hft.sgd}, "a"), TypeError, "optimizer of 'a' must be .*got sgd itself: call it"),
    (lambda: hft.partition({"a": SGD}), TypeError, r"missing a required argument: 'labels'; partition\(\{"),
    (lambda: BY_NAME.init(VECTORS, {"lr": 0.1}), ValueError, r"with names among .*, got \['lr'\]"),
    (lambda: BY_NAME.update(VECTORS, {}, VECTORS), TypeError, "the PartitionState .* got dict"),
    (lambda: updated(hft.partition({"a": SGD}, "a"), HALF, torch.ones(3)), ValueError, r"of '' has the shape \(3,\)"),
]  # fmt: skip

OVER: list[Row] = [
    (lambda: tuned(hft.adam(), "rate"), ValueError, "over names 'rate', but the hyperparameters are .*'lr'"),
    (lambda: tuned(hft.adam(), "betas.2"), ValueError, r"'betas.2', but .* did you mean 'betas.[01]'"),
    (lambda: tuned(hft.adam(), "beta1"), ValueError, "'beta1', .*; did you mean 'betas.0'"),
    (lambda: tuned(hft.adam(), "lr.x"), ValueError, "over names 'lr.x', but the hyperparameters are"),
    (lambda: tuned(hft.adam(), 3), ValueError, "over must name at least one hyperparameter of .*'lr'.*, got 3$"),
    (lambda: tuned(SGD, ()), ValueError, "over must name at least one"),
    (lambda: tuned(hft.frozen(), "lr"), ValueError, "over must name at least one|over names 'lr', but"),
    (lambda: tuned(hft.adam(), ("betas", "betas.0")), ValueError, "over names a hyperparameter twice"),
    (lambda: tuned(TOWER, "base.lr"), ValueError, "already tunes"),
    (lambda: tuned(hft.partition({"a": TOWER}, "a"), "a.base.lr"), ValueError, r"a.base.lr.*, which base already tu"),
    (lambda: tuned(BY_NAME, "b.lrr"), ValueError, "over names 'b.lrr', but .*; did you mean 'b.lr'"),
    (lambda: tuned(SGD, "lr", through=hft.Unroll()), TypeError, "through must be a pure optimizer"),
    # First values that a map cannot take.
    *(
        (act, ValueError, text)
        for base, over, kind, text in (
            (hft.sgd(), "momentum", "log", "constrain of 'momentum': 'log' needs a first value above 0, got 0"),
            (hft.sgd(lr=0.0), "lr", "log", "needs a first value above 0, got 0"),
            (hft.adam(betas=(0.0, 0.9)), "betas", "logit", r"'logit' needs a first value in \(0, 1\), got 0"),
        )
        for act in (
            lambda base=base, over=over, kind=kind: tuned(base, over, constrain={over: kind}).init(start()),
            lambda base=base, over=over, kind=kind: rounds(over, opt=base, constrain={over: kind}),
        )
    ),
]  # fmt: skip


TABLE = f64([0.3, 0.1, 0.5, 0.2])
COSINE = schedules.cosine(3)
WARM = hft.scheduled(SGD, lr=schedules.warm_up(schedules.cosine(8, 0.1), share=0.3))


def with_schedule(values: Any) -> Any:
    return updated(WARM, HALF, lr_schedule=values)


SCHEDULES: list[Row] = [
    (lambda: hft.scheduled(SGD, lr=0.5), TypeError, r"schedule of 'lr' must be one of hft.schedules.*constant\(0.5"),
    (lambda: hft.scheduled(SGD, lr="cosine"), TypeError, "or a function of the count of updates, got 'cosine'"),
    (lambda: hft.scheduled(SGD, lr=TABLE), TypeError, "one value for each update is hft.per_step"),
    (lambda: hft.scheduled(SGD, lr=schedules.cosine), TypeError, "call it"),
    (lambda: hft.scheduled(SGD, lr=lr_scheduler.CosineAnnealingLR), TypeError, "here it is hft.schedules.cosine"),
    (lambda: hft.scheduled(SGD, lr=lr_scheduler.StepLR(TORCHS, 3)), TypeError, "act on its own classes, .*s.piecewise"),
    (lambda: hft.scheduled(SGD, COSINE), TypeError, "schedules must be a dict by the path of an hparam"),
    (lambda: hft.scheduled(SGD, {"lr": COSINE}, lr=len), ValueError, r"schedules for \['lr'\] twice"),
    (lambda: hft.scheduled(SGD, {"lr.x": COSINE}), ValueError, r"schedules for \['lr.x'\], but the hparams are"),
    (lambda: hft.scheduled(SGD, {3: COSINE}), ValueError, r"schedules for \[3\], but the hparams are"),
    (lambda: hft.scheduled(SGD, momentun=len), ValueError, "did you mean 'momentum'"),
    (lambda: hft.scheduled(BY_NAME, w=COSINE), ValueError, "'w' holds several hparams, .*'w.lr'"),
    (lambda: hft.scheduled(TWO_LEVELS, {"base.betas": COSINE}), ValueError, "base tunes 'base.betas.0'"),
    (lambda: hft.per_step(TOWER, {"base.lr": TABLE}), ValueError, "base tunes 'base.lr' itself"),
    (lambda: hft.per_step(SGD, lr=0.1), TypeError, r"table of 'lr' must be a floating-point tensor of shape \(K,\)"),
    (lambda: hft.per_step(SGD, lr=[0.1, 0.2]), TypeError, r"table of 'lr' .* got 0.1; write torch.tensor"),
    (lambda: hft.per_step(SGD, lr=torch.arange(3)), TypeError, "got torch.int64"),
    (lambda: hft.per_step(SGD, lr=TABLE[:0]), ValueError, r"shape \(K,\) with K >= 1, got \(0,\)"),
    (lambda: hft.per_step(SGD, lr=-TABLE), ValueError, r"lr must lie in \[0, inf\), got -0.3 in its table"),
    (lambda: hft.per_step(torch.optim.SGD, lr=TABLE), TypeError, "base must be a pure optimizer"),
    (lambda: hft.per_step(SGD, rate=TABLE), ValueError, r"tables for \['rate'\], but the hparams are"),
    (lambda: hft.per_step(hft.adam(), betas=TABLE), ValueError, "'betas' holds 2 numbers: give as many tables"),
    (lambda: updated(hft.per_step(SGD, lr=TABLE), HALF, lr=0.1), ValueError, r"one number for 'lr', .*table of shape"),
    (lambda: schedules.cosine(0), ValueError, "steps must be a number of steps >= 1, got 0"),
    (lambda: schedules.cosine(T_max=9), TypeError, "unexpected keyword argument 'T_max'; did you mean 'steps'[?]$"),
    (lambda: schedules.linear(start_factor=0.1), TypeError, "argument 'start_factor'; did you mean 'start'[?]$"),
    (lambda: schedules.piecewise(milestones=[3]), TypeError, "argument 'milestones'; did you mean 'at'[?]$"),
    (lambda: schedules.cosine(9, floor=-0.1), ValueError, r"floor must lie in \[0, inf\), got -0.1"),
    (lambda: schedules.warm_up(COSINE, 1.5), ValueError, r"share must lie in \[0, 1\], got 1.5"),
    (lambda: schedules.warm_up(schedules.exponential(0.9)), ValueError, "has no end; give steps"),
    (lambda: schedules.warm_up(COSINE, steps=8), ValueError, r"has 3 steps, got steps=8; leave .* first share \* 3 of"),
    (lambda: schedules.warm_up(len), TypeError, "then must be a Schedule"),  # pyright: ignore
    (lambda: schedules.piecewise((1.5, 3), (0.1, 0.2)), ValueError, r"increasing order, got \(1.5, 3\)"),
    (lambda: schedules.piecewise((3, 3), (0.1, 0.2)), ValueError, r"in increasing order, got \(3, 3\)"),
    (lambda: schedules.piecewise((3, 5), (0.1,)), ValueError, "one factor for each count in at, got 1 for 2"),
    (lambda: schedules.joined([COSINE], [3]), ValueError, "each schedule but the first, got 1 for 1"),
    (lambda: schedules.joined([COSINE, 0.5], [3]), TypeError, "must be a Schedule"),  # pyright: ignore
    (lambda: schedules.one_cycle(9, linear="cos"), TypeError, "linear must be True or False"),  # pyright: ignore
    (lambda: with_schedule({"then": {"flor": 0.1}}), ValueError, "hparams must be a dict with names among"),
    (
        lambda: trained(optimizer=WARM, hparams={**WARM.hparams, "lr_schedule.then.floor": 0.1}),
        ValueError, r"\['lr_schedule.then.floor'\] are paths: hyperopt_ftp.tree.replaced",
    ),
]  # fmt: skip


LAYERS = ["stem.weight", "blocks.0.a.weight", "blocks.0.b.bias", "blocks.1.a.weight", "head.weight"]
ONES, ANCHOR = ({name: number * torch.ones(2) for name in ("a", "b")} for number in (1, 2))
NET = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2))


def groups(layers: Any = ("0", "1", "2"), given: Any = None, **options: Any) -> Any:
    return hft.depth_groups(list(NET.named_parameters()) if given is None else given, list(layers), **options)


def by_depth(layers: Any, first: Any = 1.0, last: Any = 0.0) -> Any:
    return hft.by_depth(LAYERS, layers, first, last)


MIXING: list[Row] = [
    (lambda: hft.wise(ONES, ANCHOR, strength=1.5), ValueError, r"strength must lie in \[0, 1\], got 1.5"),
    (lambda: hft.wise(ONES, ANCHOR, strength={"head": 0.5}), ValueError, r"strength has the names \['head'\]"),
    (lambda: hft.wise(ONES, {**ONES, "head": HALF}), ValueError, r"anchor has entries \['head'\] that are not"),
    (lambda: hft.wise(ONES, {"a": torch.ones(3)}), ValueError, r"has shape \(3,\), its weights \(2,\)"),
    (lambda: hft.wise(NET, ONES), TypeError, "must be dicts of tensors by name, got Sequential"),  # pyright: ignore
    *(
        (act, ValueError, r"are the same tensors \('w' and all others\), .*copy.deepcopy\(model.state_dict\(\)\)")
        for act in (
            lambda: hft.wise(VECTORS, {name: x.detach() for name, x in VECTORS.items()}),
            lambda: hft.learned_wise(VECTORS, VECTORS, loss, DATA),
            lambda: hft.lines(VECTORS, {"w": VECTORS["w"]}, ["w", "b"]),
            lambda: hft.model_stock([VECTORS, VECTORS], VECTORS),
            lambda: hft.mixout(VECTORS, VECTORS, p=0.5),
        )
    ),
    (lambda: hft.learned_wise(ONES, ANCHOR, loss, [], strength_lr=-1.0), ValueError, "strength_lr must lie in"),
    (lambda: hft.learned_wise(ONES, ANCHOR, loss, iter([])), ValueError, "batches is empty"),
    (lambda: hft.learned_wise(ONES, ANCHOR, loss, [], statistics="a"), TypeError, "a list of names, got the string"),
    (lambda: hft.learned_wise(ONES, ANCHOR, loss, [], statistics=["aa"]), ValueError, "no such entry; did you mean"),
    (lambda: hft.lines(ONES, ANCHOR, ["a", "b"], alpha=-0.1), ValueError, "alpha must lie in"),
    (lambda: hft.lines(ONES, ANCHOR, ["a", "b"], beta=math.inf), ValueError, "beta must lie in"),
    (lambda: hft.lines(ONES, {**ONES, "b": torch.ones(3)}, ["a", "b"]), ValueError, "leave out a head"),
    (lambda: hft.model_stock(ONES, ANCHOR), TypeError, "list of state_dicts, got dict"),  # pyright: ignore
    (lambda: hft.model_stock([ONES], ANCHOR), ValueError, "at least two, got 1"),
    (lambda: hft.model_stock([ONES, {**ONES, "v": HALF}], ANCHOR), ValueError, r"names, but only some have \['v'\]"),
    (lambda: hft.model_stock([ONES, {**ONES, "b": 3}], {"a": ANCHOR["a"]}), ValueError, r"same shapes, but \['b'\]"),
    (lambda: hft.model_stock([ONES, ONES], {"v": HALF}), ValueError, "not in weights"),
    (lambda: hft.mixout(ONES, ANCHOR, p=1.0), ValueError, r"p must lie in \[0, 1\)"),
    (lambda: hft.mixout(ONES, {"v": HALF}, p=0.5), ValueError, "not in weights"),
    (lambda: hft.mixout(ONES, ANCHOR, p=torch.tensor(0.5, requires_grad=True)), ValueError, "p must not require grad"),
    (lambda: torch.func.grad(lambda p: hft.mixout(ONES, ANCHOR, p=p)["a"].sum())(HALF), ValueError, "not require grad"),
    (lambda: by_depth([]), ValueError, "at least two"),
    (lambda: by_depth("stem"), TypeError, "list of names"),
    (lambda: by_depth(["stem", 1]), TypeError, "list of names"),
    (lambda: by_depth({"stem", "head"}), TypeError, "list of names"),
    (lambda: by_depth(["stem", [], "head"]), ValueError, r"layer 1 .* is empty"),
    (lambda: by_depth(["stem", "block.0"]), ValueError, r"'block.0' matches no parameter.*did you mean 'blocks.0'"),
    (lambda: by_depth(["stem", "blocks", "blocks.1"]), ValueError, r"layers 1 and 2 .* both have .*blocks.1.a.weight"),
    (lambda: by_depth(["stem", "head"], math.inf, 0.1), ValueError, "first must"),
    (lambda: by_depth(["stem", "head"], 0.1, math.inf), ValueError, "last must"),
    (lambda: by_depth(["stem", "head"], 0.1, True), TypeError, "last must"),
    (lambda: groups(radius=(math.nan, 0.1)), ValueError, "radius must"),
    (lambda: groups(given=NET.parameters(), lr=(1.0, 0.0)), TypeError, "needs names and parameters"),
    (lambda: groups(given=[(1, torch.ones(2))], lr=(1.0, 0.0)), TypeError, "needs names and parameters"),
    (lambda: groups(given=dict(NET.named_parameters()), lr=(1.0, 0.0)), TypeError, "pass model.named_param"),
    (lambda: groups(), TypeError, "needs a number"),
    (lambda: groups(strength=1.0), TypeError, r"strength must be a pair .* got 1.0"),
    (lambda: groups(params=(1.0, 0.0)), TypeError, "params is no option"),
    (lambda: groups(("0", "1"), strength=(1.0, 0.0)), ValueError, r"'2.weight', '2.bias'.* in no layer: .*rest="),
]  # fmt: skip


W = start()
MIXED = [(x, torch.arange(5)) for x in DATA[:2]]


def trained(**options: Any) -> Any:
    given: Any = {"optimizer": SGD, "train_loss": loss, "params": W, "batches": DATA} | options
    return hft.train(**given)


def of_a_user(params: Any, batch: Any) -> Any:
    return loss(params, batch)


def scaled(p: Any, x: Any, h: Any) -> Any:
    return h["s"] * loss(p, x)


class Rows:
    """A data set by index, whose batches require grad."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> torch.Tensor:
        return DATA[i].clone().requires_grad_()


class Own(Strategy):
    def __call__(self, problem: Any, inputs: Any) -> Any: ...


def estimated(**options: Any) -> Any:
    return hft.estimate(SGD, loss, W, DATA, **options)


def dual() -> Any:
    from torch.autograd import forward_ad

    with forward_ad.dual_level():
        return call(hparams={"lr": forward_ad.make_dual(f64(0.1), f64(1.0))})


TRAINING: list[Row] = [
    (lambda: call(data={"x": DATA}), TypeError, r"got dict; give a list with one dict for each step: \[\{name: x\[k\]"),
    (lambda: trained(batches="abc"), TypeError, r"must be a sequence, .*got str; use list\("),
    (lambda: trained(batches=torch.tensor(1.0)), TypeError, "must be a sequence, .*got Tensor"),
    (lambda: trained(batches=20), TypeError, "got int; give the batches, not their number"),
    (
        lambda: trained(batches=(torch.ones(20, 3), torch.ones(20))),
        TypeError, r"a tuple of 2 tensors of one length, .* write list\(batches\) for 2 steps, .*zip",
    ),
    (lambda: call(data=Rows()), ValueError, "batches is a sequence that is no list, and a tensor .* Pass a list"),
    (lambda: call(data=(x for x in DATA)), TypeError, "got generator; use list"),
    (lambda: call(data=[]), ValueError, "batches is empty"),
    (lambda: call(data=[x.to("meta") for x in DATA]), ValueError, "meta device"),
    (lambda: call(params=W | {"b": None}), TypeError, "'b' is None; leave it out"),
    (lambda: trained(params=W | {"b": 3}), TypeError, "but 'b' is a int"),
    (
        lambda: trained(params=nn.BatchNorm1d(2).state_dict()),
        TypeError, r"'num_batches_tracked' is torch.int64; of a module give dict.*: a state_dict has buffers too",
    ),
    (lambda: trained(params=nn.Linear(2, 2)), TypeError, "got a Linear; of a module give dict.*of_module"),
    (lambda: call(params=W | {"b": W["b"].to("meta")}), ValueError, "'b' has no values: .* meta"),
    (lambda: call(hparams=own({"mode": "sum"})), TypeError, r"hparams\['loss'\] must hold tensors .* 'mode' is a str"),
    (lambda: call(hparams={"momentun": 0.1}), ValueError, "did you mean 'momentum'.*the loss's are under 'loss'"),
    (lambda: trained(hparams={"Lr": 0.1}), ValueError, r"names among .* got \['Lr'\]; did you mean 'lr'\?"),
    (dual, ValueError, "use torch.func.jvp"),
    (lambda: hft.load(NET, {}), ValueError, "load got no tensors, so .*; it has "),
    (lambda: hft.load(trained(), NET), TypeError, "takes a module, then a run .*, got TrainOutputs and Sequential"),
    (lambda: hft.train(of_a_user, SGD, W, DATA), TypeError, "optimizer must be .* got the function of_a_user"),
    # Losses.
    (lambda: trained(train_loss=lambda p, x: loss(p, x).item()), ValueError, r"float; return the .*, without .item"),
    (lambda: call(lambda p, x: p["b"]), ValueError, r"train_loss must return a scalar .* got a tensor of shape \(4,\)"),
    (lambda: call(lambda p, x: (loss(p, x), {})), ValueError, "got tuple; return the loss alone"),
    (
        lambda: call(lambda p, x: loss(p, x) * (1 + 1j)), ValueError,
        r"train_loss must return a scalar tensor \(shape \(\)\), got .* complex numbers; take its .real or .abs\(\)",
    ),
    (lambda: call(outer_loss=lambda p: 1.0), ValueError, "outer_loss must return a scalar .* got float"),
    (lambda: call(train_loss=F64), TypeError, "train_loss must be a function .* got dtype"),
    (lambda: call(outer_loss=F64), TypeError, "outer_loss must be a function .* got dtype"),
    (lambda: call(nn.MSELoss()), TypeError, "is called with params, not .*functional_call"),
    (lambda: call(lambda p: p.sum()), ValueError, r"train_loss\(params, batch\), but takes 1 argument$"),
    (lambda: call(scaled), ValueError, "train_loss has 3 arguments, the last .* no entry 'loss'"),
    (lambda: call(hparams=own({"s": f64(1.0)})), ValueError, "train_loss has no argument for it: it is argument 3"),
    (lambda: call(outer_loss=lambda p, h: outer(p)), ValueError, r"second argument, .*no entry 'loss'; .*lambda p"),
    (lambda: rounds(outer_loss=lambda p, x, h: loss(p, x)), ValueError, "hparams has no entry 'loss'"),
    # What is tuned.
    (lambda: call(over="rate"), ValueError, r"over names 'rate', but the hyperparameters are \['lr'"),
    (lambda: call(scaled, over="s", hparams=own({"s": f64(0.1)})), ValueError, "did you mean 'loss.s'"),
    (lambda: hft.hypergradient(SGD, loss, outer, W, DATA, overr="lr"), TypeError, "did you mean .over."),
    (
        lambda: call(lambda p, b: loss(p, b[0]), over="batches", data=MIXED),
        ValueError, "over names 'batches', but 'batches.0.1' is torch.int64: only floating-point",
    ),
    (lambda: rounds("batches.1", train_batches=MIXED), ValueError, "'batches.1', but 'batches.1.1' is torch.int64"),
    # Strategies.
    (lambda: rounds(strategy="forward"), TypeError, r"got str; did you mean 'Forward\(\)'"),
    (lambda: rounds(strategy=hft.Unroll), TypeError, r"got the class Unroll; write Unroll\(\)"),
    (lambda: hft.ZeroOrder(0, 0.1), ValueError, "samples must be a number of samples >= 1, got 0"),
    (lambda: hft.ZeroOrder(2, 0.0), ValueError, "sigma must be above 0"),
    (lambda: hft.ZeroOrder(2, -1.0), ValueError, r"sigma must lie in \[0, inf\)"),
    (lambda: hft.ZeroOrder(2, 0.1, generator=3), TypeError, "a torch.Generator, got int"),
    (lambda: hft.Forward(chunk=0), ValueError, "chunk must be None or a number of tangents >= 1, got 0"),
    (lambda: hft.Implicit(solver="lu"), ValueError, "must be one of 'neumann', 'cg', 'dense', 'identity', got 'lu'"),
    (lambda: hft.Implicit(iterations=0), ValueError, "iterations must be a number of products >= 1"),
    (lambda: hft.Implicit(batches=0), ValueError, "batches must be .* >= 1, got 0"),
    (lambda: hft.Implicit(tolerance=-1.0), ValueError, r"tolerance must lie in \[0, inf\], got -1"),
    (lambda: hft.Implicit(damping=-1.0), ValueError, r"damping must lie in \[0, inf\), got -1"),
    (lambda: call(strategy=hft.Implicit(batches=9)), ValueError, "there are 4 steps, fewer than batches = 9"),
    (lambda: hft.Unroll(truncate=0), ValueError, "truncate must be None or a number of steps >= 1, got 0"),
    (lambda: hft.Unroll("sqrt"), ValueError, r"got 'sqrt'; write Unroll\(checkpoint='sqrt'\)"),
    (lambda: hft.Unroll(truncate=True), ValueError, "truncate must be .* got True"),
    (lambda: call(strategy=hft.Unroll(truncate=9)), ValueError, "batches has 4 steps, fewer than truncate = 9"),
    (lambda: hft.Unroll(checkpoint=1.5), ValueError, "checkpoint must be .* got 1.5"),
    (lambda: hft.Unroll(checkpoint=True), ValueError, "checkpoint must be a number of steps"),
    (lambda: hft.Unroll(checkpoint=False, offload=True), ValueError, "leave offload out"),
    (lambda: hft.Unroll(offload="cpu"), ValueError, "offload must be True, False or 'disk', got 'cpu'"),
    (lambda: hft.Unroll(memory=1e9), ValueError, "memory must be .*, got"),
    (lambda: hft.Unroll(checkpoint=2, memory=2**30), ValueError, "memory=.* decides .* so does checkpoint=2"),
    (lambda: call(strategy=hft.Unroll(memory=9)), ValueError, "memory=9 bytes are too few: .* need"),
    # Estimates.
    (lambda: estimated(strategy=hft.Unroll(compile=True)), ValueError, "compile=True"),
    (lambda: estimated(strategy=Own()), TypeError, "what Own takes: give it a method costs"),
    (lambda: estimated(strategy=hft.Unroll(truncate=9)), ValueError, "fewer than truncate = 9"),
    (lambda: estimated(strategy=hft.Implicit(batches=9)), ValueError, "fewer than batches = 9"),
    (lambda: estimated(strategy=hft.Unroll(memory=10)), ValueError, "too few"),
]  # fmt: skip

LOOPS: list[Row] = [
    (lambda: rounds(by=TORCHS), TypeError, "by must be a pure optimizer .* .*functools.partial"),
    (lambda: rounds(by=hft.adam), TypeError, r"adam made a Optimizer. Is it adam\(...\) that was"),
    (lambda: rounds(by=torch.optim.LBFGS), TypeError, "by: LBFGS evaluates the loss itself"),
    (lambda: rounds(by=partial(torch.optim.SGD, lr=-1)), TypeError, "with a list of 1 tensors and failed: Invalid"),
    (lambda: rounds(inner_steps=0), ValueError, "inner_steps must be a number of steps >= 1, got 0"),
    (lambda: rounds(outer_steps=0), ValueError, "outer_steps must be a number of steps >= 1, got 0"),
    (lambda: rounds(inner_steps=lambda n: n == 1), ValueError, "inner_steps must be a number of steps >= 1, got True"),
    (lambda: rounds("batches", inner_steps=lambda n: 4), ValueError, "entries, a number, the same in each"),
    (lambda: rounds(outer_loss=None), TypeError, "must be a function that returns a scalar tensor, got NoneType"),
    (lambda: rounds(outer_loss=lambda p: p.sum()), ValueError, r"outer_loss takes \(params, batch\)"),
    (lambda: rounds(train_batches=[]), ValueError, "train_batches is empty"),
    (lambda: rounds(train_batches="abc"), TypeError, "train_batches"),
    (lambda: rounds(outer_batches=None), TypeError, "outer_batches"),
    (lambda: rounds("batches"), ValueError, "must be a list of inner_steps = 2 entries, .* got 4"),
    (lambda: rounds(not_finite="ignore"), ValueError, "not_finite must be one of"),
    (lambda: rounds(constrain="log"), TypeError, r"constrain must be a dict .* such as \{'lr': 'log'\}, got 'log'"),
    (lambda: rounds(constrain={"momentum": "clip"}), ValueError, r"names \['momentum'\], but over tunes \['lr'\]"),
    (lambda: rounds(constrain={"lr": "exp"}), ValueError, "must be one of 'clip', 'log', 'logit', got 'exp'"),
    (lambda: rounds("dampening", constrain={"dampening": "log"}), ValueError, "'log' is for positive values"),
    (lambda: rounds("params", reset=W), ValueError, "over='params' tunes where each round starts, and reset"),
    (lambda: rounds(reset=lambda k: None), TypeError, "params must be a pytree .* is None"),
    (lambda: rounds(reset=W | {"w": torch.zeros(2, 2, dtype=F64)}), ValueError, "reset"),
    # States of other runs.
    (lambda: rounds(state={}), TypeError, "state must be the BilevelState of an earlier record, got dict$"),
    (lambda: rounds(state=rounds(outer_steps=1)[0]), TypeError, "got Record; pass record.state"),
    (lambda: rounds("momentum", state=first_state()), ValueError, r"run over \['lr'\], this one is over .*mom"),
    (lambda: rounds(opt=hft.adam(lr=0.2), state=first_state()), ValueError, "state.inner does not fit.* optimizer"),
    (lambda: rounds(params={"w": W["w"]}, state=first_state()), ValueError, "state.params does not fit.* params"),
    (lambda: rounds(by=hft.adam(lr=0.1), state=first_state()), ValueError, "state.outer does not fit.* by"),
    (lambda: rounds(state=first_state()._replace(tuned={"lr": torch.ones(2)})), ValueError, "state.tuned"),
    (lambda: rounds(state=first_state()._replace(inner=hft.adam().init(W))), ValueError, "state.inner does not fit"),
    (lambda: rounds(state=first_state()._replace(outer={"lr": f64(1.0)})), ValueError, "state.outer"),
    (lambda: rounds(by=torch.optim.SGD, state=first_state()), ValueError, "state.outer"),
    (lambda: hft.tpgm(W, W, loss, iter([])), ValueError, "batches is empty, or an iterator that has been read before"),
    (lambda: hft.tpgm(W, W, loss, DATA, radius_lr=-1.0), ValueError, "radius_lr must lie in"),
]  # fmt: skip

TABLES = {
    "optimizers": OPTIMIZERS,
    "combinators": COMBINATORS,
    "labels": LABELS,
    "over": OVER,
    "schedules": SCHEDULES,
    "mixing": MIXING,
    "training": TRAINING,
    "loops": LOOPS,
}
