"""What stands around optimizers and trainings, on the device: anchors, averages, loops that are resumed, AMP."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hyperopt_ftp as hft
from benchmarks.nets import NETS, Problem
from hyperopt_ftp import tree
from hyperopt_ftp.hyper.core.memory import trial_peak
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


def test_mixout_draws_by_the_generator_of_the_device():
    found = {}
    for device in ("cpu", "sim"):
        torch.manual_seed(0)
        params, anchor = moved(start(), device), moved(ANCHOR, device)
        before = torch.get_rng_state()
        with waits() as waited:
            found[device] = hft.mixout(params, anchor, 0.5)
        assert torch.equal(before, torch.get_rng_state()) is (device == "sim")
        assert not waited
    same(found["sim"], found["cpu"])


def test_learned_wise():
    found, want = (
        hft.learned_wise(moved(start(), d), moved(ANCHOR, d), loss, moved(batches(4), d)) for d in ("sim", "cpu")
    )
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


@pytest.mark.parametrize("foreach", [False, True])
def test_a_step_that_overflowed_is_left_out(foreach: bool):
    """And the host reads that once, where GradScaler does."""
    w, scaler = nn.Parameter(torch.ones(3, device="sim")), torch.amp.GradScaler("sim", init_scale=8.0)
    opt = hft.FTPAdamW([w], lr=0.1, radius_lr=0.1, foreach=foreach)
    for size in (1.0, float("inf"), 2.0):
        before = w.detach().clone()
        w.grad = torch.full((3,), 8 * size, device="sim")
        scaler._lazy_init_scale_growth_tracker(w.device) if scaler._scale is None else None
        with waits() as found:
            scaler.step(opt)
        assert sum(found.values()) == 1, found
        scaler.update()
        assert size != float("inf") or torch.equal(w, before)
    assert scaler.get_scale() == 4.0
    assert not torch.equal(w, before)


@pytest.mark.parametrize(
    "strategy",
    [
        hft.Unroll(), hft.Unroll(checkpoint=1), hft.Forward(), hft.Implicit(iterations=2, tolerance=1e9),
        hft.ZeroOrder(4, 1e-3), hft.ZeroOrder(4, 1e-3, antithetic=False),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("numbers", ["cpu", "sim"])
def test_an_estimate_is_that_of_the_cpu(numbers: str, strategy: Any):
    found, want = (
        problem.estimate(strategy, None) for problem in (network_on("sim", numbers), network_on("cpu", "cpu"))
    )
    assert (found.gradients, found.products, found.plan) == (want.gradients, want.products, want.plan)
    # On the CPU the states of its generator count, at each point.
    size = torch.get_rng_state().numel()
    states = round((want.memory - found.memory) / size)
    assert (states > 0) is (strategy == hft.Unroll(checkpoint=1))
    assert found.memory == pytest.approx(want.memory - size * states, rel=0.01)


def network_on(device: str, numbers: str) -> Problem:
    torch.manual_seed(0)
    problem = NETS["mlp"](6)
    params, data = moved((problem.params, problem.batches), device)
    return problem._replace(params=params, batches=data, hparams=moved(problem.optimizer.hparams, numbers))


@pytest.mark.parametrize("numbers", ["cpu", "sim"])
def test_what_trainings_at_once_take_is_what_was_estimated(numbers: str):
    """In one thread. Autograd's own, for a device, may free the graph of a step while the next is made: one more."""
    problem, strategy = network_on("sim", numbers), hft.ZeroOrder(4, 1e-3)
    said = problem.estimate(strategy, None).memory
    with torch.autograd.set_multithreading_enabled(False):
        assert trial_peak(problem.params, lambda: problem.hypergradient(strategy, None)) == pytest.approx(
            said, rel=0.01
        )
    assert trial_peak(problem.params, lambda: problem.hypergradient(strategy, None)) >= 0.99 * said


def weighted(params: Any, batch: Tensor, own: Tensor) -> Tensor:
    return loss(params, batch) + (own * params["b"]).sum()


def elsewhere_in_training(**changes: Any) -> Callable[[], Any]:
    """A training of adam on the device, with some arguments from the CPU."""
    there = {"params": moved(start(), "sim"), "batches": moved(batches(3), "sim")}
    own = weighted if "loss" in changes.get("hparams", {}) else loss
    return lambda: hft.train(hft.adam(lr=0.1), own, **{**there, **changes})


def mixed_update(on_cpu: str) -> Callable[[], Any]:
    opt = hft.adam(lr=0.1)
    place = {name: "cpu" if name == on_cpu else "sim" for name in ("grads", "state", "params")}
    grads, state, params = start(), opt.init(start()), start()
    return lambda: opt.update(
        moved(grads, place["grads"]), moved(state, place["state"]), moved(params, place["params"])
    )


def two_levels(inner: str, outer: str) -> Callable[[], Any]:
    data = {where: moved(batches(4), where) for where in ("cpu", "sim")}
    opt, by, params = hft.sgd(lr=0.1), hft.sgd(lr=1e-3), moved(start(), "sim")
    return lambda: next(
        hft.bilevel(opt, by, "lr", loss, loss, params, data[inner], data[outer], inner_steps=2, outer_steps=1)
    )


RATES = {"w": torch.full((3, 4), 0.1, dtype=F64), "b": torch.full((4,), 0.1, dtype=F64)}
MOVED = moved(ANCHOR, "sim")
ELSEWHERE: dict[str, tuple[str, Callable[[], Any]]] = {
    "batches": ("entry '0' of batches", elsewhere_in_training(batches=batches(3))),
    "one batch": ("entry '2' of batches", elsewhere_in_training(batches=[*moved(batches(2), "sim"), batches(1)[0]])),
    "a tensor of batches": ("entry '0' of batches", elsewhere_in_training(batches=torch.stack(batches(3)))),
    "hparams": ("entry '0.w' of hparams", lambda: hft.sgd().update(MOVED, hft.sgd().init(MOVED), MOVED, {"lr": RATES})),
    "hparams of the loss": ("entry 'loss' of hparams", elsewhere_in_training(hparams={"loss": RATES["b"]})),
    "state": ("entry '0.w' of state", elsewhere_in_training(state=hft.adam().init(start()))),
    "gradients, in update": ("entry 'w' of gradient", mixed_update("grads")),
    "state, in update": ("entry '0.w' of state", mixed_update("state")),
    "bilevel": ("entry '0' of batches", two_levels("cpu", "sim")),
    "bilevel, held out": ("outer_batches", two_levels("sim", "cpu")),
    "tpgm": (
        "batch", lambda: hft.tpgm(moved(start(), "sim"), MOVED, loss, batches(2), radius_lr=0.1)
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", ELSEWHERE)
def test_what_is_on_another_device_is_named(what: str):
    name, act = ELSEWHERE[what]
    with pytest.raises(ValueError, match=f"^{name}, .* is on cpu, and the params on sim:0; move it there"):
        act()


@pytest.mark.parametrize(
    "strategy", [hft.Unroll(checkpoint=1), hft.Forward(), hft.ZeroOrder(2, 1e-3), hft.Implicit()], ids=str
)
def test_a_batch_on_another_device_under_a_strategy(strategy: Any):
    params, held_out = moved(start(), "sim"), moved(batches(1)[0], "sim")
    with pytest.raises(ValueError, match="entry '0' of batches, .* is on cpu, and the params on sim:0"):
        hft.hypergradient(
            hft.sgd(lr=0.1), loss, lambda p: loss(p, held_out), params, batches(2), "lr", strategy=strategy
        )


def test_a_loss_may_move_its_batch():
    """And what it raises itself is not taken for a device."""
    params = moved(start(), "sim")
    found = hft.train(hft.sgd(lr=0.1), lambda p, x: loss(p, x.to("sim")), params, batches(2))
    same(found.params, hft.train(hft.sgd(lr=0.1), loss, start(), batches(2)).params)

    def fails(p: Any, x: Tensor) -> Tensor:
        raise RuntimeError("no such file")

    with pytest.raises(RuntimeError, match="no such file"):
        hft.train(hft.sgd(lr=0.1), fails, params, batches(2))


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
    "anchor_device": lambda net: hft.FTPAdamW(net.named_parameters(), lr=0.1, foreach=True, anchor_device="cpu"),
    "anchor_dtype": lambda net: hft.FTPAdamW(net.named_parameters(), lr=0.1, foreach=True, anchor_dtype=torch.float32),
    "an anchor of the CPU": lambda net: hft.FTPAdamW(
        net.named_parameters(), lr=0.1, foreach=True, anchor=elsewhere(net)
    ),
    "capturable": lambda net: hft.FTPAdamW(net.named_parameters(), lr=0.1, foreach=True, capturable=True),
}


@pytest.mark.parametrize("name", OF_A_MODULE)
def test_an_optimizer_of_a_module(name: str):
    found, want = (stepped(net, OF_A_MODULE[name](net)) for net in map(network, ("sim", "cpu")))
    same(found, want)


@pytest.mark.parametrize("option", ["lean", "anchor_device", "anchor_dtype", "amsgrad"])
@pytest.mark.parametrize("foreach", [False, True])
def test_options_of_float32_weights(option: str, foreach: bool):
    """A step waits for nothing: an anchor on the CPU is fetched, of small tensors at once."""
    options: Any = {"lean": True, "anchor_device": "cpu", "anchor_dtype": torch.bfloat16, "amsgrad": True}[option]
    found = {}
    for device in ("cpu", "sim"):
        net = network(device).float()
        for p in net.parameters():
            p.data = p.data.bfloat16().float()  # so that an anchor of 16 bits holds them
        opt = hft.FTPAdamW(net.named_parameters(), lr=0.1, foreach=foreach, **{option: options})
        x = torch.linspace(-1, 1, 20).view(5, 4).to(device)
        for k in range(3):
            opt.zero_grad()
            net(x + k).square().mean().backward()
            with waits() as waited:
                opt.step()
            assert not waited or k == 0, waited
        found[device] = [p.detach().cpu() for p in net.parameters()]
    for one, other in zip(found["cpu"], found["sim"], strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)


def test_a_copy_steps_as_the_first():
    net = network("sim")
    opt = hft.FTPAdamW(net.named_parameters(), lr=0.1)
    stepped(net, opt)
    other, its = copy.deepcopy((net, opt))
    same(stepped(net, opt), moved(stepped(other, its), "cpu"))


def test_measuring_reads_all_layers_at_once():
    seen: dict[str, Any] = {"cpu": [], "sim": []}
    for device, rows in seen.items():
        net = network(device)
        opt = hft.FTPAdamW(net.named_parameters(), lr=0.1, foreach=True)
        hft.watch(opt, lambda step, measured, rows=rows: rows.append((step, measured)), every=2)
        with waits() as found:
            stepped(net, opt, 4)
        assert sum(x for what, x in found.items() if "watch.py" in what) == 2 * (device == "sim"), found
    for (k, found), (j, want) in zip(seen["sim"], seen["cpu"], strict=True):
        assert k == j
        assert {n: pytest.approx(layer, rel=1e-12) for n, layer in want.items()} == found


def test_tpgm():
    """And its first radii: numbers on the device of the weights."""
    found, want = (
        hft.tpgm(moved(start(), d), moved(ANCHOR, d), loss, moved(batches(4), d), radius_lr=0.1) for d in ("sim", "cpu")
    )
    same(found, want)
    assert all(r.device.type == "sim" for r in found[1].values())


@pytest.mark.parametrize("numbers", ["cpu", "sim"])
def test_a_training_reads_its_losses_once(numbers: str):
    """However many steps there are."""
    opt, counted = hft.adamw(lr=0.1, eps=1e-2), []
    for steps in (3, 6):
        params, data = moved(start(), "sim"), moved(batches(steps), "sim")
        with waits() as waited:
            found = hft.train(opt, loss, params, data, hparams=moved(opt.hparams, numbers))
        same(found, hft.train(opt, loss, start(), batches(steps)))
        counted.append(sum(waited.values()))
    assert counted == [1, 1] if numbers == "cpu" else [1 + 5, 1 + 5]  # a number of the device is looked at
