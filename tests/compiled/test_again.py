"""Compiled steps that are compiled anew, or run in several threads: what is refused stays refused, nothing is left."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo import eval_frame

import hyperopt_ftp as hft

from ..support.problems import batches, loss, start
from .strategies import CHEAP, slope

F64 = torch.float64
DATA, COMPILED = batches(3), hft.Unroll(compile=CHEAP)


@pytest.mark.filterwarnings("ignore:.*compiled again")
def test_a_loss_that_was_refused_when_compiled_again_is_refused_each_time():
    def loss_with(t: Tensor) -> Any:
        return lambda p, x: loss(p, x * t)

    two = torch.full((), 2.0, dtype=F64)
    slope(loss_with(two), DATA, COMPILED)
    for _ in range(2):
        with pytest.raises(ValueError, match="its derivative would be lost"):
            slope(loss_with(two.clone().requires_grad_()), DATA, COMPILED)


def test_a_later_program_that_takes_the_number_of_an_hparam_is_refused():
    def of_the_same_graph(p: Any, batch: Any, scale: Tensor) -> Tensor:
        x, warm = batch
        return loss(p, x) * (1.0 if warm else scale.item())

    def total(p: Any) -> Tensor:
        return p["b"].sum()

    opt, data = hft.sgd(lr=0.05), [(x, k == 0) for k, x in enumerate(DATA)]
    own = {**opt.hparams, "loss": torch.tensor(0.7, dtype=F64)}
    for _ in range(2):
        with pytest.raises(RuntimeError, match="takes the number of an hparam"):
            hft.hypergradient(opt, of_the_same_graph, total, start(), data, "loss", own, strategy=COMPILED)


@pytest.mark.filterwarnings("ignore:.*compiled again")
def test_more_closures_than_torch_keeps_programs_for():
    def loss_with(word: str) -> Any:
        return lambda p, x: loss(p, x * len(word))

    with torch._dynamo.config.patch(recompile_limit=1):
        for word in ("x", "xx"):  # torch compiles anew for each
            got, want = (slope(loss_with(word), DATA, hft.Forward(compile=how)) for how in (CHEAP, False))
            torch.testing.assert_close(got, want, rtol=1e-12, atol=0)


@pytest.mark.filterwarnings("error:.*compiled again")
def test_the_strides_of_cotangents_compile_nothing_anew():
    lr = torch.tensor(0.1, dtype=F64, requires_grad=True)
    hparams = {**hft.sgd().hparams, "lr": lr}
    for outer in (torch.sum, lambda w: w.square().sum()):  # the cotangent of a sum is expanded
        run = hft.train(hft.sgd(), loss, start(), DATA, hparams=hparams, strategy=COMPILED)
        outer(run.params["w"]).backward()


@pytest.mark.filterwarnings("error:.*compiled again")
def test_cotangents_that_are_one_tensor_compile_nothing_anew():
    def near(p: Any, x: Tensor) -> Tensor:
        return ((p[0] - x) ** 2).sum() + ((p[1] + x) ** 2).sum()

    for outer in (lambda p: (p[0] * p[1]).sum(), lambda p: (p[0] + p[1]).square().sum()):
        params = torch.ones(3, dtype=F64), torch.zeros(3, dtype=F64)
        hft.hypergradient(hft.sgd(), near, outer, params, [torch.rand(3, dtype=F64)] * 2, "lr", strategy=COMPILED)


def test_threads_share_a_program_and_leave_torch_as_it_was():
    want, stance, failed = slope(loss, DATA, hft.Unroll(checkpoint=1)), eval_frame._stance.stance, []

    def work(strategy: hft.Unroll) -> None:
        try:
            for _ in range(20):
                torch.testing.assert_close(slope(loss, DATA, strategy), want, rtol=1e-12, atol=0)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(s,)) for s in (COMPILED, COMPILED, hft.Unroll(checkpoint=1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert eval_frame._stance.stance == stance
    assert torch.backends.cuda.flash_sdp_enabled()
