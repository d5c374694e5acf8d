"""Compiled steps that are compiled anew, or run in several threads: what is refused stays refused, nothing is left."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo import eval_frame

import hyperopt_ftp as hft

F64 = torch.float64
DATA = [torch.full((3,), 1 + k / 10, dtype=F64) for k in range(3)]
PLAIN, COMPILED = hft.Unroll(checkpoint=1), hft.Unroll(compile="eager")


def lr_slope(loss: Callable[[Tensor, Any], Tensor], strategy: hft.Unroll | hft.Forward) -> float:
    w = torch.zeros(3, dtype=F64)
    found = hft.hypergradient(hft.sgd(lr=0.05), loss, lambda p: p.sum(), w, DATA, "lr", strategy=strategy)
    return found[1]["lr"].item()


@pytest.mark.filterwarnings("ignore:.*compiled again")
def test_a_loss_that_was_refused_when_compiled_again_is_refused_each_time():
    def loss_with(t: Tensor) -> Callable[[Tensor, Any], Tensor]:
        return lambda p, x: (p - x * t).square().sum()

    two = torch.full((), 2.0, dtype=F64)
    lr_slope(loss_with(two), COMPILED)
    for _ in range(2):
        with pytest.raises(ValueError, match="its derivative would be lost"):
            lr_slope(loss_with(two.clone().requires_grad_()), COMPILED)


def test_a_later_program_that_takes_the_number_of_an_hparam_is_refused():
    def loss(p: Tensor, batch: Any, scale: Tensor) -> Tensor:
        x, warm = batch
        return (p - x).square().sum() * (1.0 if warm else scale.item())  # of the same graph

    opt, data = hft.sgd(lr=0.05), [(x, k == 0) for k, x in enumerate(DATA)]
    own = {**opt.hparams, "loss": torch.tensor(0.7, dtype=F64)}
    for _ in range(2):
        with pytest.raises(RuntimeError, match="takes the number of an hparam"):
            hft.hypergradient(opt, loss, torch.sum, torch.zeros(3, dtype=F64), data, "loss", own, strategy=COMPILED)


@pytest.mark.filterwarnings("ignore:.*compiled again")
def test_more_closures_than_torch_keeps_programs_for():
    def loss_with(word: str) -> Callable[[Tensor, Any], Tensor]:
        return lambda p, x: (p - x * len(word)).square().sum()

    forward = hft.Forward(compile="eager")
    with torch._dynamo.config.patch(recompile_limit=1):
        for i in (1, 2):
            loss = loss_with("x" * i)  # torch compiles anew for each
            assert lr_slope(loss, forward) == pytest.approx(lr_slope(loss, PLAIN), rel=1e-12)


@pytest.mark.filterwarnings("error:.*compiled again")
def test_the_strides_of_cotangents_compile_nothing_anew():
    def loss(p: Tensor, x: Tensor) -> Tensor:
        return (p - x).square().sum()

    lr = torch.tensor(0.1, dtype=F64, requires_grad=True)
    hparams = {**hft.sgd().hparams, "lr": lr}
    for outer in (torch.sum, lambda p: p.square().sum()):  # the cotangent of a sum is expanded
        run = hft.train(hft.sgd(), loss, torch.zeros(3, dtype=F64), DATA, hparams=hparams, strategy=COMPILED)
        outer(run.params).backward()


def test_threads_share_a_program_and_leave_torch_as_it_was():
    def loss(p: Tensor, x: Tensor) -> Tensor:
        return (p - x).square().sum()

    want, stance, failed = lr_slope(loss, PLAIN), eval_frame._stance.stance, []

    def work(strategy: hft.Unroll) -> None:
        try:
            for _ in range(20):
                assert lr_slope(loss, strategy) == pytest.approx(want, rel=1e-12)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(s,)) for s in (COMPILED, COMPILED, PLAIN)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert eval_frame._stance.stance == stance
    assert torch.backends.cuda.flash_sdp_enabled()
