"""Trainings and their derivatives on the device: equal to the CPU by every strategy, wherever hparams are."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.hyper import Strategy
from tests.device.backend import waits

from ..support.devices import moved, same
from ..support.problems import batches, loss, start

F64 = torch.float64
STRATEGIES: dict[str, Strategy] = {
    "Unroll": hft.Unroll(),
    "truncated": hft.Unroll(truncate=2),
    "every step": hft.Unroll(checkpoint=1),
    "every second step": hft.Unroll(checkpoint=2),
    "offloaded": hft.Unroll(offload=True),
    "sqrt, offloaded": hft.Unroll(checkpoint="sqrt", offload=True),
    "log": hft.Unroll(checkpoint="log"),
    "memory": hft.Unroll(memory=2**24),
    "Forward": hft.Forward(),
    "Forward, in chunks": hft.Forward(chunk=1),
    "ZeroOrder": hft.ZeroOrder(4, 1e-3),
    "Implicit": hft.Implicit(tolerance=1e9),
    "identity": hft.Implicit("identity", tolerance=1e9),
    "cg": hft.Implicit("cg", iterations=3, tolerance=1e9, damping=1.0),
    "all graphs": hft.Unroll(checkpoint=False),
    "first order": hft.Unroll(first_order=True),
    "ZeroOrder, one-sided": hft.ZeroOrder(4, 1e-3, antithetic=False),
}
ANCHOR = {"w": torch.zeros(3, 4, dtype=F64), "b": torch.zeros(4, dtype=F64)}
OPTIMIZERS = {
    "sgd": lambda d: hft.sgd(lr=0.1, momentum=0.9),
    "adamw": lambda d: hft.adamw(lr=0.1, eps=1e-2),
    "ftp": lambda d: hft.ftp(hft.adamw(lr=0.1, eps=1e-2), moved(ANCHOR, d), radius_lr=0.1),
}


def decayed(params: Any, batch: Tensor, own: Any) -> Tensor:
    return loss(params, batch) + own * sum(w.square().sum() for w in params.values())


def gradient(
    device: str, optimizer: str, strategy: Strategy, numbers: str, steps: int = 5, over: Any = None
) -> Callable[[], Any]:
    opt, data = OPTIMIZERS[optimizer](device), moved(batches(steps), device)
    hparams = moved({**opt.hparams, "loss": torch.tensor(0.01, dtype=F64)}, numbers)
    params, held_out = moved(start(), device), data[0] + 0.3

    def call() -> Any:
        torch.manual_seed(0)
        return hft.hypergradient(
            opt, decayed, lambda p: loss(p, held_out), params, data, over, hparams, strategy=strategy
        )

    return call


@pytest.mark.filterwarnings("ignore:the hypergradient of", "ignore:Implicit")
@pytest.mark.parametrize("numbers", ["cpu", "sim"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_hypergradients_are_those_of_the_cpu(strategy: str, optimizer: str, numbers: str):
    over = ("lr", "loss", "params") if optimizer == "sgd" else None
    if strategy.startswith("ZeroOrder") or strategy == "cg":
        over = "loss"
    want = gradient("cpu", optimizer, STRATEGIES[strategy], "cpu", over=over)()
    found = gradient("sim", optimizer, STRATEGIES[strategy], numbers, over=over)()
    assert all(x.device.type == "sim" for x in tree.leaves(found[2][0]))
    same(found[:2], want[:2])


@pytest.mark.filterwarnings("ignore:.*compiled again")
@pytest.mark.parametrize("strategy", [hft.Unroll(compile="eager"), hft.Forward(compile="eager")], ids=str)
def test_steps_as_programs(strategy: Strategy):
    """Without a compiler for the device."""
    want = gradient("cpu", "sgd", strategy, "cpu", over=("lr", "loss"))()
    same(gradient("sim", "sgd", strategy, "cpu", over=("lr", "loss"))()[:2], want[:2])


COUNTED = ("Unroll", "every step", "sqrt, offloaded", "Forward")


@pytest.mark.filterwarnings("ignore:the hypergradient of")
@pytest.mark.parametrize("strategy", COUNTED)
@pytest.mark.parametrize("numbers", ["cpu", "sim"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_waits_are_those_of_the_table_for_any_number_of_steps(optimizer: str, numbers: str, strategy: str):
    """That of docs/performance.md."""
    for steps in (3, 6):
        call = gradient("sim", optimizer, STRATEGIES[strategy], numbers, steps)
        over = len(tree.leaves(call()[1]))  # a call that looks at the loss
        with waits() as found:
            call()
        want = over + 1 if numbers == "sim" else 2 * over + 1
        assert sum(found.values()) == want + 2 * (strategy in ("every step", "sqrt, offloaded")), (steps, found)


def network(device: str) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(6, 8), nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), nn.Linear(8, 2)
    ).double()
    return net.to(device), [
        (torch.randn(3, 4, 6, dtype=F64).to(device), torch.randn(3, 4, 2).double().to(device)) for _ in range(4)
    ]


@pytest.mark.parametrize("strategy", [hft.Unroll(), hft.Unroll(checkpoint=1), hft.Forward()], ids=str)
def test_a_transformer(strategy: Strategy):
    def slope(device: str) -> Any:
        net, data = network(device)

        def loss(p: Any, batch: Any) -> Tensor:
            return F.mse_loss(torch.func.functional_call(net, p, (batch[0],)), batch[1])

        params = {n: p.detach() for n, p in net.named_parameters()}
        return hft.hypergradient(
            hft.adamw(lr=1e-2, eps=1e-4), loss, lambda p: loss(p, data[0]), params, data[1:], "lr", strategy=strategy
        )[1]

    same(slope("sim"), slope("cpu"))


@pytest.mark.parametrize("strategy", [hft.Unroll(checkpoint=1), hft.Unroll(checkpoint="log"), hft.Forward()], ids=str)
def test_steps_made_again_draw_the_same_numbers(strategy: Strategy):
    """By the device's own generator, which goes on as after a plain loop."""
    params, data = moved(start(), "sim"), moved(batches(4), "sim")

    def dropped(p: Any, x: Tensor) -> Tensor:
        return loss(tree.map_tree(lambda w: F.dropout(w, 0.3), p), x)

    def run(how: Strategy) -> Any:
        torch.manual_seed(3)
        found = hft.hypergradient(
            hft.sgd(lr=0.05), dropped, lambda p: loss(p, data[0]), params, data, "lr", strategy=how
        )
        return found[:2], torch.sim.get_rng_state()

    (found, after), (want, plain) = run(strategy), run(hft.Unroll())
    same(found, moved(want, "cpu"))
    assert torch.equal(after, plain)
