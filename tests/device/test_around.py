"""What stands around optimizers and trainings, on the device: anchors, averages, loops that are resumed, AMP."""

import io
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


def test_estimate():
    params, data = moved(start(), "sim"), moved(batches(4), "sim")
    for strategy in (hft.Unroll(), hft.Unroll(checkpoint=1), hft.Forward()):
        found = hft.estimate(hft.sgd(lr=0.1), loss, params, data, over="lr", strategy=strategy)
        assert found


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


def test_offload_and_back_through_a_file():
    params = moved(start(), "sim")
    state = hft.adam().init(params)
    file = io.BytesIO()
    torch.save((params, state), file)
    file.seek(0)
    back, _ = torch.load(file, weights_only=False, map_location="cpu")
    same(params, back)
