"""What stands around optimizers and trainings, on the device: anchors, averages, loops that are resumed, AMP."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from tests.device.backend import waits

from ..support.devices import moved, same
from ..support.problems import batches, loss, start

F64 = torch.float64
ANCHOR = {"w": torch.zeros(3, 4, dtype=F64), "b": torch.zeros(4, dtype=F64)}

AROUND: dict[str, Callable[[Any], Any]] = {
    "ftp": lambda a: hft.ftp(hft.sgd(lr=0.1), a),
    "projected": lambda a: hft.projected(hft.sgd(lr=0.1), a, radius=0.3),
    "l2sp": lambda a: hft.l2sp(hft.sgd(lr=0.1), a, strength=0.1),
    "l2sp, decoupled": lambda a: hft.l2sp(hft.sgd(lr=0.1), a, strength=0.1, decoupled=True),
    "cautious_decay": lambda a: hft.cautious_decay(hft.sgd(lr=0.1), a, strength=0.1),
    "spd": lambda a: hft.spd(hft.sgd(lr=0.1), a, strength=0.1),
    "digrap": lambda a: hft.digrap(hft.sgd(lr=0.1), a, omega_lr=0.1),
}


@pytest.mark.parametrize("name", AROUND)
def test_an_anchor_of_the_cpu(name: str):
    """It is taken, or refused by name before anything has changed."""
    params, data = moved(start(), "sim"), moved(batches(1)[0], "sim")
    opt = AROUND[name](ANCHOR)
    grads = torch.func.grad(loss)(params, data)
    with pytest.raises(ValueError, match=r"anchor.* cpu.*sim|sim.*anchor.* cpu"):
        opt.update(grads, opt.init(params), params)


MIXED: dict[str, Callable[[Any, Any], Any]] = {
    "wise": lambda p, a: hft.wise(p, a, 0.5),
    "lines": lambda p, a: hft.lines(p, a, ["b", "w"]),
    "model_stock": lambda p, a: hft.model_stock([p, tree.map_tree(lambda x: x + 1, p)], a)[0],
}


@pytest.mark.parametrize("anchor", ["cpu", "sim"])
@pytest.mark.parametrize("name", MIXED)
def test_mixing(name: str, anchor: str):
    want = MIXED[name](start(), ANCHOR)
    found = MIXED[name](moved(start(), "sim"), moved(ANCHOR, anchor))
    assert all(x.device.type == "sim" for x in tree.leaves(found))
    same(found, want)


def rounds(device: str, state: Any = None) -> list[Any]:
    data = moved(batches(4), device)
    return list(
        hft.bilevel(
            hft.sgd(lr=0.05, momentum=0.5), hft.adam(lr=0.01), "lr", loss, loss, moved(start(), device), data * 2, data,
            inner_steps=2, outer_steps=2, state=state,
        )
    )  # fmt: skip


def test_bilevel():
    same([r.hparams for r in rounds("sim")], [r.hparams for r in rounds("cpu")])


def test_a_round_of_bilevel_reads_once_however_many_tensors_there_are():
    counted = []
    for count in (2, 20):
        params = {f"w{i}": torch.ones(2, dtype=F64, device="sim") for i in range(count)}
        data = [torch.ones((), dtype=F64, device="sim")] * 9

        def own(p: Any, x: Tensor) -> Tensor:
            return torch.stack([((w - 2 * x) ** 2).sum() for w in p.values()]).sum()

        run = hft.bilevel(
            hft.sgd(lr=0.05, momentum=0.5), hft.adam(lr=0.01), "lr", own, own, params, data, data, inner_steps=2,
            outer_steps=3,
        )  # fmt: skip
        next(run)
        with waits() as found:
            next(run)
        counted.append(sum(found.values()))
    assert counted[0] == counted[1]


def test_a_bilevel_that_comes_back_on_the_cpu_goes_on():
    """As ``torch.load(map_location="cpu")`` gives its state."""
    (first, _) = rounds("sim")
    (want,) = rounds("sim", first.state)
    (found,) = rounds("sim", moved(first.state, "cpu"))
    same(found.state.params, moved(want.state.params, "cpu"))


def test_under_a_default_device():
    """Counts are where the weights are, or on the CPU."""
    w = {"w": torch.ones(3)}
    torch.set_default_device("sim")
    try:
        opt = hft.adam(lr=0.1)
        new, _ = opt.update({"w": torch.ones(3, device="cpu")}, opt.init(w), w)
        run = hft.train(opt, lambda p, x: (p["w"] ** 2).sum(), w, [0.0] * 2)
    finally:
        torch.set_default_device("cpu")
    assert new["w"].device.type == run.params["w"].device.type == "cpu"
    assert run.losses.device.type == "cpu"


def test_amp():
    torch.manual_seed(0)
    net, scaler = nn.Linear(4, 2).to("sim"), torch.amp.GradScaler("sim", init_scale=8.0)
    opt, x = hft.FTPAdamW(net.named_parameters(), lr=0.01), torch.randn(5, 4, device="sim")
    before = net.weight.detach().clone()
    for _ in range(3):
        opt.zero_grad()
        with torch.autocast("sim", torch.bfloat16):
            value = net(x).square().mean()
        scaler.scale(value).backward()
        scaler.step(opt)
        scaler.update()
    assert not torch.equal(net.weight, before)
    assert net.weight.isfinite().all()


@pytest.mark.parametrize("strategy", [hft.Unroll(), hft.Unroll(checkpoint=1), hft.Forward()], ids=str)
def test_an_estimate_is_that_of_the_cpu(strategy: Any):
    found, want = (
        hft.estimate(
            hft.sgd(lr=0.1), loss, moved(start(), device), moved(batches(4), device), over="lr", strategy=strategy
        )
        for device in ("sim", "cpu")
    )
    assert (found.gradients, found.products, found.plan) == (want.gradients, want.products, want.plan)
    # What is on the CPU there: states of the generator at each point, and numbers.
    states, rest = divmod(want.memory - found.memory, torch.get_rng_state().numel())
    assert (states > 0) is (strategy == hft.Unroll(checkpoint=1))
    assert 0 <= rest <= 0.1 * found.memory


def test_a_batch_on_another_device():
    params = moved(start(), "sim")
    with pytest.raises(RuntimeError, match="device"):
        hft.train(hft.sgd(lr=0.1), loss, params, batches(2))


def test_a_comparison_of_recomputed_steps_reads_once():
    """However many tensors there are."""
    counted = []
    for count in (2, 20):
        params = {f"w{i}": torch.ones(2, 2, dtype=F64, device="sim") for i in range(count)}
        data = [torch.full((), x, dtype=F64, device="sim") for x in (1.5, 0.2, 0.7)]

        def own(p: Any, x: Tensor) -> Tensor:
            return torch.stack([((w - x) ** 2).sum() for w in p.values()]).sum()

        def call(params: Any = params, data: Any = data) -> None:
            hft.hypergradient(
                hft.adam(lr=0.1),
                own,
                lambda p: own(p, data[0] + 1),
                params,
                data,
                "lr",
                strategy=hft.Unroll(checkpoint=1),
            )

        call()
        with waits() as found:
            call()
        counted.append(found)
    assert counted[0] == counted[1]


def network(device: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double().to(device)


def stepped(net: nn.Module, opt: Any, steps: int = 3) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(5, 4, dtype=F64, generator=g).to(net[0].weight.device)
        opt.zero_grad()
        net(x).square().mean().backward()
        opt.step()
    return [p.detach() for p in net.parameters()]


def elsewhere(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().cpu() + 0.1 for name, p in net.named_parameters()}


OF_A_MODULE: dict[str, Callable[[nn.Module], Any]] = {
    "PureOptimizer": lambda net: hft.PureOptimizer(net.named_parameters(), hft.adam(lr=0.1)),
    "a tower": lambda net: hft.PureOptimizer(
        net.named_parameters(), hft.hyper(hft.adam(lr=0.1), by=hft.sgd(lr=1e-3), over="lr")
    ),
    "anchor_device": lambda net: hft.FTPAdamW(net.named_parameters(), lr=0.1, anchor_device="cpu"),
    "anchor_dtype": lambda net: hft.FTPAdamW(net.named_parameters(), lr=0.1, anchor_dtype=torch.float32),
    "an anchor of the CPU": lambda net: hft.FTPAdamW(net.named_parameters(), lr=0.1, anchor=elsewhere(net)),
    "capturable": lambda net: hft.FTPAdamW(net.named_parameters(), lr=0.1, capturable=True),
}


@pytest.mark.parametrize("name", OF_A_MODULE)
def test_an_optimizer_of_a_module(name: str):
    found, want = (stepped(net, OF_A_MODULE[name](net)) for net in map(network, ("sim", "cpu")))
    same(found, want)


def test_a_copy_steps_as_the_first():
    net = network("sim")
    opt = hft.FTPAdamW(net.named_parameters(), lr=0.1)
    stepped(net, opt)
    other, its = copy.deepcopy((net, opt))
    same(stepped(net, opt), moved(stepped(other, its), "cpu"))


def test_measuring_reads_all_layers_at_once():
    net = network("sim")
    opt = hft.FTPAdamW(net.named_parameters(), lr=0.1)
    stepped(net, opt)
    with waits() as found:
        hft.measure(opt)
    assert sum(found.values()) == 1
