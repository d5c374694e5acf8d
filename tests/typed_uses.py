"""What type checkers are to see of the public surface; pyright reads this file in ``make lint``, nothing runs it.

A line with ``pyright: ignore`` is a mistake that has to be found: where it is not, the comment is reported.
"""
# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import assert_type

import hyperopt_ftp as hft
from hyperopt_ftp.anchored import project, radius_gradient
from hyperopt_ftp.hyper import TunedState
from hyperopt_ftp.plot import distances, history


class Params(NamedTuple):
    weight: Tensor
    bias: Tensor


def loss(params: Params, batch: Tensor) -> Tensor:
    return (params.weight - batch).square().sum()


def a_pure_optimizer(params: Params, grads: Params, named: dict[str, Tensor]) -> None:
    opt = hft.adamw(lr=torch.tensor(0.1), betas=(0.9, torch.tensor(0.99)), eps={"weight": 1e-8, "bias": 1e-4})
    new, state = opt.update(grads, opt.init(params), params, {**opt.hparams, "lr": torch.tensor(0.2)})
    assert_type(new, Params)
    assert_type(opt.update(named, state, named)[0], dict[str, Tensor])  # one for every tree
    opt.update(grads, params, state)  # pyright: ignore[reportArgumentType]  # swapped
    hft.sgd(lr=0.1).update(grads, state, params)  # pyright: ignore[reportArgumentType]  # another's state
    hft.sgd(lr="0.1")  # pyright: ignore[reportArgumentType]
    hft.adam(betas=0.9)  # pyright: ignore[reportArgumentType]


def states_of_combinations(params: Params, opt: hft.Optimizer) -> None:
    sgd, adam, grads = hft.sgd(), hft.adam(), params
    sgd.update(grads, hft.clipped(sgd, max_norm=1.0).init(params), params)
    adam.update(grads, hft.damped(adam, kappa=0.5).init(params), params)
    adam.update(grads, hft.decayed(adam, 0.1, exclude=("bias",)).init(params), params)
    sgd.update(grads, hft.clipped_adaptively(sgd, 0.1).init(params), params)
    adam.update(grads, hft.clipped(sgd, 1.0).init(params), params)  # pyright: ignore[reportArgumentType]
    sgd.update(grads, hft.damped(adam, 0.5).init(params), params)  # pyright: ignore[reportArgumentType]
    sgd.update(grads, hft.decayed(adam, 0.1).init(params), params)  # pyright: ignore[reportArgumentType]
    adam.update(grads, hft.clipped_adaptively(sgd, 0.1).init(params), params)  # pyright: ignore[reportArgumentType]
    assert_type(hft.scheduled(sgd, lr=lambda t: 0.5**t).init(params).step, Tensor)
    assert_type(hft.ftp(sgd, params, norm="l2", gradient="exact").init(params).radius, dict[str, Tensor])
    sgd.update(grads, hft.l2sp(sgd, params, strength=0.1).init(params), params)  # pyright: ignore[reportArgumentType]
    assert_type(hft.hyper(sgd, by=adam, over=("lr", "momentum")).init(params), TunedState)
    assert_type(hft.noisy(sgd, 0.1, seed=1).init(params).step, Tensor)
    assert_type(hft.accumulated(sgd, 4).init(params).step, Tensor)
    assert_type(hft.lookahead(sgd).init(params).step, Tensor)
    assert_type(hft.averages(params, hft.averaged(sgd).init(params)), Params)
    sgd.update(grads, hft.averaged(sgd).init(params), params)  # pyright: ignore[reportArgumentType]
    parts = hft.partition({"a": hft.sgd(), "b": hft.frozen()}, {"weight": "a", "bias": "b"})
    assert_type(parts.init(params).parts, dict[str, Any])
    hft.partition({"a": hft.sgd(), "b": hft.adam()}, lambda path: "a" if path == "bias" else "b")
    hft.partition([hft.sgd()], {"*": "a"})  # pyright: ignore[reportArgumentType]
    hft.partition({"a": hft.sgd()}, lambda path: 3)  # pyright: ignore[reportArgumentType]
    assert_type(opt.init(params), Any)  # whose state nobody knows
    hft.clipped(torch.optim.SGD([params.weight]), 1.0)  # pyright: ignore[reportArgumentType]  # not pure


def of_ones_own(opt: hft.Optimizer[TunedState], params: Params) -> dict[str, Any]:
    return opt.init(params).tuned


def choices(params: Params, radius: Tensor) -> None:
    base = hft.sgd()
    hft.ftp(base, params, norm="mrs")  # pyright: ignore[reportArgumentType]
    hft.ftp(base, params, gradient="true")  # pyright: ignore[reportArgumentType]
    hft.projected(base, params, norm="l1")  # pyright: ignore[reportArgumentType]
    hft.digrap(base, params, gradient="true")  # pyright: ignore[reportArgumentType]
    project(params.weight, params.weight, radius, norm="L2")  # pyright: ignore[reportArgumentType]
    radius_gradient(radius, radius, radius, radius, "true")  # pyright: ignore[reportArgumentType]
    hft.tpgm_radius(params, params, norm="linf")  # pyright: ignore[reportArgumentType]
    hft.hyper(base, base, "lr", constrain={"lr": "log", "momentum": "logit"})
    hft.hyper(base, base, "lr", constrain={"lr": "exp"})  # pyright: ignore[reportArgumentType]
    hft.Unroll(checkpoint="sqrt")
    hft.Unroll(checkpoint=4)
    hft.Unroll(checkpoint=False)
    hft.Unroll(checkpoint="log")
    hft.Unroll(memory=2**30)
    hft.Unroll(memory="1 GiB")  # pyright: ignore[reportArgumentType]
    hft.Unroll(checkpoint="root")  # pyright: ignore[reportArgumentType]
    hft.Implicit(solver="cg")
    hft.Implicit(solver="gmres")  # pyright: ignore[reportArgumentType]


def training(params: Params, data: list[Tensor]) -> None:
    run = hft.train(hft.adam(), loss, params, data)
    assert_type(run.params, Params)
    hft.sgd().update(run.params, run.state, run.params)  # pyright: ignore[reportArgumentType]  # Adam's
    for step in hft.steps(hft.adam(), loss, params, iter(data)):
        assert_type(step.params, Params)
        hft.adam().update(params, step.state, step.params)
        hft.sgd().update(params, step.state, params)  # pyright: ignore[reportArgumentType]  # Adam's
    assert_type(run.detached().params, Params)
    again = hft.train(hft.adam(), loss, run.params, data, state=run.state, strategy=hft.Forward(chunk=1))
    assert_type(again.params.weight, Tensor)
    hft.train(hft.adam(), loss, params, data, strategy=hft.Unroll)  # pyright: ignore[reportArgumentType]  # the class
    value, grads, (end, state) = hft.hypergradient(hft.adam(), loss, lambda p: loss(p, data[0]), params, data, "lr")
    assert_type(value, Tensor)
    assert_type(grads, dict[str, Any])
    assert_type(end, Params)
    hft.sgd().update(end, state, end)  # pyright: ignore[reportArgumentType]  # Adam's
    new, radii = hft.tpgm(params, params, loss, data)
    assert_type(new, Params)
    assert_type(radii, dict[str, Tensor])
    hft.bilevel(
        hft.sgd(), hft.adam(), "lr", loss, loss, params, data, data, inner_steps=1, outer_steps=1,
        not_finite="ignore",  # pyright: ignore[reportArgumentType]
    )  # fmt: skip


def drop_in(model: torch.nn.Module, head: torch.nn.Module, path: Path) -> None:
    opt = hft.FTPAdamW(model.named_parameters(), lr=1e-3, anchor=path, exclude=[head, "norm.*"], norm="l2")
    hft.FTPSGD(model.parameters(), anchor=model.state_dict(), exclude=head, gradient="exact", anchor_device="cpu")
    hft.FTPAdamW([{"params": model.named_parameters(), "lr": 0.1}], anchor="zero", exclude="head.*")
    assert_type(opt.radii(), dict[Any, float])
    assert_type(opt.execution, str)
    hft.watch(opt, path).remove()
    print(hft.wise(model.state_dict(), model.state_dict(), 0.5))
    hft.FTPAdamW(model.parameters(), norm="mrs")  # pyright: ignore[reportArgumentType]
    hft.FTPSGD(model.parameters(), gradient="true")  # pyright: ignore[reportArgumentType]
    hft.FTPAdamW(model)  # pyright: ignore[reportArgumentType]
    hft.FTPAdamW(model.parameters(), anchor=model)  # pyright: ignore[reportArgumentType]
    hft.FTPAdamW(model.parameters(), exclude=3)  # pyright: ignore[reportArgumentType]
    hft.FTPAdamW(model.parameters(), anchor_device=0.5)  # pyright: ignore[reportArgumentType]
    base = torch.optim.SGD(model.parameters())
    for held in (hft.FTP(base), hft.L2SP(base), hft.SPD(base), hft.Recall(base), hft.DiGraP(base)):
        held.step()
    hft.FTP(hft.sgd())  # pyright: ignore[reportArgumentType]  # pure
    hft.MARSSP(base, radius=1.0, norm="rows")  # pyright: ignore[reportArgumentType]
    hft.DiGraP(base, gradient="true")  # pyright: ignore[reportArgumentType]
    hft.measure(model)  # pyright: ignore[reportArgumentType]
    distances(hft.measure(opt), "clipped")
    distances(hft.measure(opt), "radii")  # pyright: ignore[reportArgumentType]
    history(path, "raduis")  # pyright: ignore[reportArgumentType]
