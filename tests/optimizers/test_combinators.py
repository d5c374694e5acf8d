"""Combinators against torch's own, transcriptions of their papers, and themselves, one around the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.optimizers.noise import normal, threefry

from ..support.cases import ANCHOR
from ..support.problems import largest_difference, start

F64 = torch.float64
CLOSE = 1e-13  # rounding of a dozen operations a step, over 10 steps of values of order 1


def gradients(steps: int, params: Any = None) -> list[Any]:
    g = torch.Generator().manual_seed(3)
    like = start() if params is None else params
    return [tree.map_tree(lambda p: torch.randn(p.shape, generator=g, dtype=F64), like) for _ in range(steps)]


def run(opt: hft.Optimizer, grads: list[Any], params: Any = None) -> tuple[Any, Any]:
    params = start() if params is None else params
    state = opt.init(params)
    for g in grads:
        params, state = opt.update(g, state, params)
    return params, state


def seen_by_the_base(wrap: Callable[[hft.Optimizer], hft.Optimizer], grads: Any, params: Any) -> Any:
    """The gradient that a base gets."""
    return tree.map_tree(torch.sub, params, run(wrap(hft.sgd(lr=1.0)), [grads], params)[0])


# -- clipping ---------------------------------------------------------------------------------------------------------


def torch_clips(clip: Callable[[Any], Any], grads: dict[str, Tensor]) -> dict[str, Tensor]:
    ps = {name: torch.nn.Parameter(torch.zeros_like(g)) for name, g in grads.items()}
    for name, p in ps.items():
        p.grad = grads[name].clone()
    clip(list(ps.values()))
    return {name: p.grad for name, p in ps.items()}


def one_by_one(ps: list[Any]) -> None:
    for p in ps:
        torch.nn.utils.clip_grad_norm_([p], 0.8)


CLIPS = {
    "value": (lambda opt: hft.clipped_by_value(opt, 0.5), lambda ps: torch.nn.utils.clip_grad_value_(ps, 0.5)),
    "norm": (lambda opt: hft.clipped(opt, 2.5), lambda ps: torch.nn.utils.clip_grad_norm_(ps, 2.5)),
    "layers": (lambda opt: hft.clipped_per_layer(opt, 0.8), one_by_one),
}


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
@pytest.mark.parametrize(("clip", "torchs"), CLIPS.values(), ids=CLIPS)
def test_clipping_equals_torchs(clip: Any, torchs: Any, scale: float):
    params, grads = start(), {name: scale * g for name, g in gradients(1)[0].items()}
    assert largest_difference(seen_by_the_base(clip, grads, params), torch_clips(torchs, grads)) <= CLOSE


def agc(w: Tensor, g: Tensor, ratio: float) -> Tensor:
    """Adaptive clipping, unit by unit (arXiv 2102.06171, equation 3)."""
    units = [(w, g)] if w.ndim < 2 else list(zip(w, g, strict=True))
    new = []
    for unit, slope in units:
        most = ratio * max(unit.norm().item(), 1e-3)
        norm = slope.norm().item()
        new.append(slope * (most / max(norm, 1e-6)) if norm > most else slope)
    return new[0] if w.ndim < 2 else torch.stack(new)


@pytest.mark.parametrize("ratio", [0.0, 1e-2, 0.7, 10.0])
def test_adaptive_clipping_is_that_of_the_paper(ratio: float):
    g = torch.Generator().manual_seed(0)
    shapes = {"number": (), "vector": (5,), "matrix": (4, 3), "kernel": (4, 3, 2, 2)}
    params = {name: torch.randn(shape, generator=g, dtype=F64) for name, shape in shapes.items()}
    params["matrix"] = params["matrix"] * torch.tensor([[0.0], [1e-4], [1.0], [9.0]])  # below the least norm, and above
    grads = gradients(1, params)[0]
    grads["kernel"] = grads["kernel"] * torch.tensor([0.0, 1e-9, 1.0, 9.0]).view(4, 1, 1, 1)
    got = seen_by_the_base(lambda opt: hft.clipped_adaptively(opt, ratio), grads, params)
    for name, w in params.items():
        torch.testing.assert_close(got[name], agc(w, grads[name], ratio), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("clip", [hft.clipped, hft.clipped_per_layer, hft.clipped_adaptively])
def test_layers_on_two_devices_are_clipped(clip):
    with FakeTensorMode():
        params = {"a": torch.ones(3), "b": torch.ones(2, device="cuda")}
        opt = clip(hft.sgd(lr=1.0), 0.5)
        moved, _ = opt.update(params, opt.init(params), params)
    assert [x.device.type for x in moved.values()] == ["cpu", "cuda"]


@pytest.mark.parametrize("clip", [hft.clipped, hft.clipped_per_layer, hft.clipped_by_value, hft.clipped_adaptively])
def test_a_gradient_of_zeros_or_none(clip: Any):
    params = {"a": torch.ones(2, 2, dtype=F64), "b": torch.ones(2, dtype=F64), "none": torch.ones(0, 3, dtype=F64)}
    grads = {"a": torch.zeros(2, 2, dtype=F64), "b": None, "none": torch.ones(0, 3, dtype=F64)}
    opt = clip(hft.sgd(lr=1.0), 0.5)
    assert torch.equal(run(opt, [grads], params)[0]["b"], params["b"])

    def value(h: Any) -> Tensor:
        return opt.update(grads, opt.init(params), params, h)[0]["a"].sum()

    assert all(x.isfinite() for x in tree.leaves(torch.func.grad(value)(opt.hparams)))


# -- noise ------------------------------------------------------------------------------------------------------------

N = 2**16


def drawn(seed: int = 0, leaf: int = 0, step: int = 0, n: int = N) -> Tensor:
    return normal(torch.zeros(n, dtype=F64), seed, leaf, torch.tensor(step))


def test_threefry_gives_the_known_answers():
    """Those of the authors' file kat_vectors (Random123): numbers, and tensors of several counters."""
    zero, most = (0, 0), (0xFFFFFFFF, 0xFFFFFFFF)
    pi = (0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3)  # key, counter
    assert threefry(zero, zero) == (0x9D1C5EC6, 0x8BD50731)
    assert threefry(most, most) == (0xFD36D048, 0x2D17272C)
    assert threefry(*pi) == (0xBA3E4725, 0xF27D669E)
    x, y = threefry(zero, (torch.tensor(0), torch.tensor([0, 1])))
    assert (x[0], y[0]) == (0x9D1C5EC6, 0x8BD50731)
    assert (x[1].item(), y[1].item()) == threefry(zero, (0, 1))


def test_noise_is_standard_normal():
    """Bounds of 5 standard deviations of each estimate, for n independent numbers."""
    for z in (drawn(), drawn(7, 3, 1000)):
        assert abs(z.mean()) < 5 / math.sqrt(N)
        assert abs((z**2).mean() - 1) < 5 * math.sqrt(2 / N)
        assert abs((z**3).mean()) < 5 * math.sqrt(15 / N)
        assert abs((z**4).mean() - 3) < 5 * math.sqrt(96 / N)
        # Kolmogorov and Smirnov: more than 1.95 / sqrt(n) has probability 0.001.
        expected = torch.special.ndtr(z.sort().values)
        assert (expected - (torch.arange(N) + 0.5) / N).abs().max() < 1.95 / math.sqrt(N) + 0.5 / N


def test_noise_is_independent_between_entries_steps_leaves_and_seeds():
    """A correlation of n independent pairs has the deviation 1 / sqrt(n); that of squares, too."""
    z = drawn()
    pairs = [(z[:-lag], z[lag:]) for lag in (1, 2, 3, 64, N // 2)]
    others = [drawn(step=1), drawn(leaf=1), drawn(seed=1), drawn(1, 1), drawn(leaf=1, step=1), drawn(step=N // 2)]
    pairs += [(z, other) for other in others] + [(drawn(seed=1), drawn(leaf=1))]
    for a, b in pairs:
        bound = 5 / math.sqrt(len(a))
        assert abs((a * b).mean()) < bound
        assert abs(((a**2 - 1) * (b**2 - 1)).mean()) < 2 * bound  # of variance 2 each
    everything = torch.cat([z, *others])
    assert len(everything.unique()) == len(everything)


def test_noise_has_the_papers_variance():
    opt, w = hft.noisy(hft.sgd(lr=1.0), scale=0.3, decay=0.55, seed=5), torch.zeros(N, dtype=F64)
    state = opt.init(w)
    for t in range(3):
        new, state = opt.update(torch.ones(N, dtype=F64), state, w)
        noise = w - new - 1
        # z is divided out, so only rounding of numbers of order 1 is left.
        torch.testing.assert_close(noise, math.sqrt(0.3 / (1 + t) ** 0.55) * drawn(5, 0, t), rtol=1e-13, atol=1e-14)
    assert state.step == 3
    two = dict.fromkeys("ab", w[:8])
    new, _ = opt.update(two, opt.init(two), two)
    assert not torch.equal(new["a"], new["b"])
    no_noise = hft.noisy(hft.sgd(lr=1.0), scale=0.0)
    assert torch.equal(no_noise.update(w + 1, no_noise.init(w), w)[0], w - 1)
    slopes = torch.func.grad(lambda h: no_noise.update(w + 1, no_noise.init(w), w, h)[0].sum())(no_noise.hparams)
    assert all(x.isfinite() for x in tree.leaves(slopes))


def test_noise_needs_no_random_state_and_is_the_same_each_time():
    opt, grads = hft.noisy(hft.sgd(lr=1.0), 0.3), gradients(3)
    before = torch.get_rng_state()
    first, _ = run(opt, grads)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert largest_difference(run(opt, grads)[0], first) == 0
    assert largest_difference(run(hft.noisy(hft.sgd(lr=1.0), 0.3, seed=1), grads)[0], first) > 0.1


def test_noise_of_any_shape_and_dtype():
    for shape in [(), (1,), (3,), (2, 0), (2, 3, 5)]:
        z = normal(torch.zeros(shape, dtype=F64), 0, 0, torch.tensor(0))
        assert z.shape == shape
    narrow = normal(torch.zeros(N), 0, 0, torch.tensor(0))
    torch.testing.assert_close(narrow.double(), drawn(), rtol=0, atol=1e-4)  # tails: u in float32 near 1


# -- accumulation -----------------------------------------------------------------------------------------------------

BASES = {
    "adam": lambda: hft.adam(lr=0.1),
    "clipped": lambda: hft.clipped(hft.sgd(lr=0.1, momentum=0.9), 0.5),
    "ftp": lambda: hft.ftp(hft.adam(lr=0.1), ANCHOR),
    "hyper": lambda: hft.hyper(hft.sgd(lr=0.1), by=hft.sgd(lr=1e-2), over="lr"),
    "partition": lambda: hft.partition({"w": hft.adam(lr=0.1), "b": hft.frozen()}, lambda path: path),
}


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_accumulating_is_one_update_on_the_mean(base: Callable[[], hft.Optimizer]):
    grads, every = gradients(9), 3
    windows = [grads[i : i + every] for i in range(0, 9, every)]
    means = [tree.map_tree(lambda *g: (g[0] + g[1] + g[2]) / 3, *w) for w in windows]
    opt, plain = hft.accumulated(base(), every), base()
    params, state = start(), opt.init(start())
    want, its_state = start(), plain.init(start())
    for window, mean in zip(windows, means, strict=True):
        for g in window[:-1]:
            new, state = opt.update(g, state, params)
            assert largest_difference((new, state.base), (want, its_state)) == 0  # nothing moves
            params = new
        params, state = opt.update(window[-1], state, params)
        want, its_state = plain.update(mean, its_state, want)
        assert largest_difference((params, state.base), (want, its_state)) == 0
        assert all((x == 0).all() for x in tree.leaves(state.total))


# -- averages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.9, 0.0, 1.0, None])
def test_averages_equal_torchs(decay: float | None):
    grads, opt = gradients(6), hft.averaged(hft.sgd(lr=0.1), decay)
    model = torch.nn.Module()
    for name, w in start().items():
        model.register_parameter(name, torch.nn.Parameter(w.clone()))
    if decay is None:
        peer = AveragedModel(model)
    else:
        peer = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
        peer.update_parameters(model)  # the first one copies
    params, state = start(), opt.init(start())
    assert largest_difference(hft.averages(params, state), params) == 0
    for g in grads:
        params, state = opt.update(g, state, params)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(params[name])
        peer.update_parameters(model)
        want = {name.removeprefix("module."): p for name, p in peer.named_parameters()}
        assert largest_difference(hft.averages(params, state), want) <= CLOSE
    assert largest_difference(params, run(hft.sgd(lr=0.1), grads)[0]) == 0  # the training is the base's


def averaged() -> hft.Optimizer:
    return hft.averaged(hft.sgd(lr=0.1), 0.5)


READ = {
    "bare": lambda: averaged(),
    "ftp": lambda: hft.ftp(averaged(), ANCHOR),
    "lookahead": lambda: hft.lookahead(averaged(), every=9),
    "hyper": lambda: hft.hyper(averaged(), by=hft.averaged(hft.sgd(lr=1e-3)), over="lr"),
    "partition": lambda: hft.partition({"w": averaged(), "b": averaged()}, lambda path: path),
    "partition in one": lambda: hft.partition(
        {"all": hft.projected(hft.partition({"w": averaged(), "b": averaged()}, lambda path: path), ANCHOR)}, "all"
    ),
}


@pytest.mark.parametrize("make", READ.values(), ids=READ)
def test_averages_are_found_inside(make: Callable[[], hft.Optimizer]):
    params, state = run(make(), gradients(3))
    got = hft.averages(params, state)
    assert got.keys() == params.keys()

    def find(state: Any) -> dict[str, Any]:
        """By hand: the bare state at the end of the way."""
        if hasattr(state, "parts"):
            return {k: v for part in state.parts.values() for k, v in find(part).items()}
        return state.average if hasattr(state, "average") else find(state.base)

    assert largest_difference(got, find(state)) == 0
    assert largest_difference(got, params) > 1e-3


def test_averages_of_some_parts_and_of_other_dtypes():
    opt = hft.partition({"w": averaged(), "b": hft.sgd(lr=0.1)}, lambda path: path)
    params, state = run(opt, gradients(2))
    got = hft.averages(params, state)
    assert got["b"] is params["b"]
    assert largest_difference(got["w"], state.parts["w"].average["w"]) == 0
    narrow = {name: w.bfloat16() for name, w in start().items()}
    state = averaged().init(narrow)
    assert {x.dtype for x in tree.leaves(state.average)} == {torch.float32}
    assert {x.dtype for x in hft.averages(narrow, state).values()} == {torch.bfloat16}


# -- lookahead --------------------------------------------------------------------------------------------------------


def transcribed_lookahead(grads: list[Any], k: int, alpha: float) -> Any:
    """Algorithm 1 of arXiv 1907.08610 around SGD with momentum, on one tensor."""
    slow, i = start()["w"], 0
    momentum = torch.zeros_like(slow)
    while i < len(grads):
        fast = slow
        for g in grads[i : i + k]:
            momentum = 0.9 * momentum + g["w"]
            fast = fast - 0.1 * momentum
        if i + k > len(grads):
            return fast, slow
        slow, i = slow + alpha * (fast - slow), i + k
    return slow, slow


@pytest.mark.parametrize(("steps", "k", "alpha"), [(7, 3, 0.5), (6, 3, 0.8), (4, 1, 0.3)])
def test_lookahead_is_algorithm_1(steps: int, k: int, alpha: float):
    params, state = run(hft.lookahead(hft.sgd(lr=0.1, momentum=0.9), k, alpha), gradients(steps))
    fast, slow = transcribed_lookahead(gradients(steps), k, alpha)
    torch.testing.assert_close(params["w"], fast, rtol=CLOSE, atol=CLOSE)
    torch.testing.assert_close(state.slow["w"], slow, rtol=CLOSE, atol=CLOSE)


def test_limits_of_lookahead():
    grads, base = gradients(6), hft.adam(lr=0.1)
    assert largest_difference(run(hft.lookahead(base, 3, 1.0), grads)[0], run(base, grads)[0]) <= CLOSE
    assert largest_difference(run(hft.lookahead(base, 3, 0.0), grads)[0], start()) == 0
    without = [*gradients(2), {**gradients(3)[2], "b": None}]  # at the synchronisation
    params, state = run(hft.lookahead(base, 3, 0.5), without)
    assert torch.equal(params["b"], run(base, without)[0]["b"])
    assert torch.equal(state.slow["b"], start()["b"])
    assert torch.equal(state.slow["w"], params["w"])


# -- decay ------------------------------------------------------------------------------------------------------------


def test_decayed_adam_is_adamw():
    grads, rates = gradients(5), {"w": torch.tensor(0.1, dtype=F64), "b": torch.tensor(0.02, dtype=F64)}
    grads[2] = {**grads[2], "b": None}  # which moves nothing
    for lr in (0.1, rates):
        want = run(hft.adamw(lr=lr, weight_decay=0.3), grads)
        got = run(hft.decayed(hft.adam(lr=lr, weight_decay=0.0), 0.3), grads)
        assert largest_difference(got, want) <= CLOSE
    narrow = {name: w.bfloat16() for name, w in start().items()}
    got = run(hft.decayed(hft.adam(lr=0.1), 0.3), grads, narrow)
    assert largest_difference(got, run(hft.adamw(lr=0.1, weight_decay=0.3), grads, narrow)) == 0
    opt = hft.decayed(hft.adam(weight_decay=0.1), {"w": 0.2, "b": 0.0})
    assert opt.hparams["weight_decay"] == 0.1
    assert opt.hparams["weight_decay_2"]["w"] == 0.2


@pytest.mark.parametrize("exclude", ["b", ["b"], "?", ("w", "b"), lambda path: path == "b"])
def test_what_is_excluded_does_not_decay(exclude: Any):
    grads = [{**gradients(1)[0], "b": 0 * start()["b"]}]
    params, _ = run(hft.decayed(hft.sgd(lr=0.1), 0.5, exclude=exclude), grads)
    assert torch.equal(params["b"], start()["b"])
    both = exclude in ("?", ("w", "b"))
    decay = 0.0 if both else 0.5
    torch.testing.assert_close(params["w"], (1 - 0.1 * decay) * start()["w"] - 0.1 * grads[0]["w"])


# -- twice ------------------------------------------------------------------------------------------------------------

BASE = hft.sgd(lr=0.1, momentum=0.5)
TWICE: dict[str, tuple[Callable[[Any, float], hft.Optimizer], float, float]] = {
    "clipped": (hft.clipped, 0.3, 0.7),
    "clipped_by_value": (hft.clipped_by_value, 0.3, 0.7),
    "clipped_per_layer": (hft.clipped_per_layer, 0.3, 0.7),
    "projected": (lambda opt, x: hft.projected(opt, ANCHOR, radius=x), 0.2, 0.4),
}


@pytest.mark.parametrize(("wrap", "small", "large"), TWICE.values(), ids=TWICE)
def test_of_two_bounds_the_smaller_counts(wrap: Any, small: float, large: float):
    grads, alone = gradients(4), run(wrap(BASE, small), gradients(4))[0]
    for inner, outer in ((small, large), (large, small)):
        twice = wrap(wrap(BASE, inner), outer)
        first, second = (name for name in twice.hparams if name not in BASE.hparams)
        assert second == f"{first}_2"
        assert [tree.leaves(twice.hparams[name])[0].item() for name in (first, second)] == [inner, outer]
        # A gradient just clipped is once more multiplied by m / (m + 1e-6), where m is above its norm by 1e-6.
        assert largest_difference(run(twice, grads)[0], alone) <= 1e-7


@pytest.mark.parametrize("around", [lambda opt, anchor: hft.decayed(opt, 0.1), hft.l2sp, hft.ftp])
def test_a_base_gets_16_bit_weights_in_one_dtype_from_the_first(around: Any):
    """One that keeps them, as lookahead does."""
    params, anchor = ({name: w.bfloat16() for name, w in x.items()} for x in (start(), ANCHOR))
    opt = around(hft.lookahead(hft.sgd(lr=0.1)), anchor)
    first = opt.init(params)
    _, later = opt.update(params, first, params)
    assert [x.dtype for x in tree.leaves(later)] == [x.dtype for x in tree.leaves(first)]


READS_LR = {
    "decayed": lambda opt: hft.decayed(opt, 0.1),
    "l2sp": lambda opt: hft.l2sp(opt, ANCHOR, decoupled=True),
    "cautious_decay": lambda opt: hft.cautious_decay(opt, ANCHOR),
    "recall": lambda opt: hft.recall(opt, ANCHOR),
}


@pytest.mark.parametrize("around", READS_LR.values(), ids=READS_LR)
def test_what_reads_an_lr_takes_a_scheduled_one_and_no_table(around: Any):
    """A table of the length of a row would be stretched over the rows."""
    table = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=F64)
    with pytest.raises(ValueError, match=r"lr of base is a table of the shape \(4,\).*; per_step goes around"):
        around(hft.clipped(hft.per_step(hft.sgd(), lr=table), 1.0))
    run(hft.per_step(around(hft.sgd()), lr=table), gradients(2))
    still = hft.scheduled(around(hft.sgd(lr=0.1)), lr=lambda count: 0.0 * count)
    assert largest_difference(run(still, gradients(2))[0], start()) == 0


# -- around a schedule-free base --------------------------------------------------------------------------------------

FREE: dict[str, Callable[[], hft.Optimizer]] = {
    "sgd": lambda: hft.schedule_free_sgd(lr=0.1, momentum=0.7),
    "adamw": lambda: hft.schedule_free_adamw(lr=0.1),
    "seen through others": lambda: hft.scheduled(hft.clipped(hft.schedule_free_sgd(lr=0.1), 1.0), lr=lambda t: 1.0),
    "seen through a table": lambda: hft.per_step(hft.schedule_free_sgd(), weight_decay=torch.tensor([0.0])),
}
MOVES_WEIGHTS: dict[str, tuple[Callable[[hft.Optimizer], hft.Optimizer], str]] = {
    "decayed": (lambda opt: hft.decayed(opt, 0.1), "weight decay .* lost; use its own, weight_decay="),
    "lookahead": (hft.lookahead, "way back to the slow weights would be lost; leave lookahead out .hft.averages"),
    **{
        make.__name__: (lambda opt, make=make: make(opt, ANCHOR), "holds these near the anchor would be lost; take ano")
        for make in (hft.ftp, hft.projected, hft.spd, hft.cautious_decay, hft.recall)
    },
    "l2sp": (lambda opt: hft.l2sp(opt, ANCHOR, decoupled=True), "l2sp with decoupled=False.*schedule-free torch opt"),
}


@pytest.mark.parametrize("base", FREE.values(), ids=FREE)
@pytest.mark.parametrize(("around", "text"), MOVES_WEIGHTS.values(), ids=MOVES_WEIGHTS)
def test_what_moves_weights_is_refused_around_a_base_that_goes_on_from_its_own(around: Any, text: str, base: Any):
    with pytest.raises(ValueError, match=f"goes on from weights in its state, as schedule-free optimizers do.*{text}"):
        around(base())


@pytest.mark.parametrize("of", ["a tuned one", "a part", "a tuned part"])
def test_a_schedule_free_base_is_seen_in_towers_and_partitions(of: str):
    base = FREE["sgd"]()
    if "part" in of:
        base = hft.partition({"free": base, "rest": hft.sgd(lr=0.1)}, {"w": "free", "b": "rest"})
    if "tuned" in of:
        base = hft.hyper(base, by=hft.sgd(), over="free.lr" if "part" in of else "lr")
    with pytest.raises(ValueError, match="goes on from weights in its state"):
        hft.projected(base, ANCHOR, radius=0.1)
    rest = hft.projected(hft.sgd(lr=0.1), {"b": ANCHOR["b"]}, radius=0.1)  # the remedy that the error names
    run(hft.partition({"free": FREE["sgd"](), "rest": rest}, {"w": "free", "b": "rest"}), gradients(2))


def test_pulls_by_the_gradient_hold_a_schedule_free_base():
    """They are not refused: what is deployed ends where the loss and the pull are in balance."""
    target = {"w": ANCHOR["w"] + 1, "b": ANCHOR["b"] + 1}  # of |W - target|^2 / 2
    half = tree.map_tree(lambda w0: w0 + 0.5, ANCHOR)
    for opt in (hft.l2sp(FREE["sgd"](), ANCHOR, 1.0), hft.digrap(hft.l2sp(FREE["sgd"](), ANCHOR, 1.0), ANCHOR)):
        params = start()
        state = opt.init(params)
        for _ in range(300):
            params, state = opt.update(tree.map_tree(torch.sub, params, target), state, params)
        assert largest_difference(hft.averages(params, state), half) < 0.03
