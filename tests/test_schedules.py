"""Schedules and tables: equal to torch's, differentiable in every number, tuned like any hparam."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler as torchs

import hyperopt_ftp as hft
from hyperopt_ftp import schedules, tree
from hyperopt_ftp.hparams import Domain, domain_at
from hyperopt_ftp.testing import CLOSE, largest_difference, same, strategies

from .support.problems import batches, central_differences, entries, loss, start, train

LR = 0.7
FLOAT = torch.finfo(torch.float64)


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values[0] if len(values) == 1 else values, dtype=torch.float64)


#: A schedule, torch's, and the number of updates that torch's has.
Peer = tuple[schedules.Schedule, Callable[[Any], Any], int]

factors, lengths = strategies.between(0.05, 1.0), st.integers(2, 12)


@st.composite
def simple(draw: Any) -> Peer:
    n, x, y = draw(lengths), draw(factors), draw(factors)
    peers: list[Peer] = [
        (schedules.constant(x, n), lambda o: torchs.ConstantLR(o, x, n), n + 2),
        (schedules.constant(x), lambda o: torchs.LambdaLR(o, lambda t: x), n),
        (schedules.linear(x, y, n), lambda o: torchs.LinearLR(o, x, y, n), n + 2),
        (schedules.polynomial(n, 3 * x), lambda o: torchs.PolynomialLR(o, n, 3 * x), n + 1),
        (schedules.exponential(x), lambda o: torchs.ExponentialLR(o, x), n),
        (schedules.cosine(n, y), lambda o: torchs.CosineAnnealingLR(o, n, eta_min=y * LR), n + 1),
    ]
    return draw(st.sampled_from(peers))


@st.composite
def cycles(draw: Any) -> Peer:
    """Of 4 updates or more; a phase may have no length, but torch's three have some."""
    n, start, floor = draw(st.integers(4, 14)), draw(factors), draw(factors) / 10
    linear, three = draw(st.booleans()), draw(st.booleans())
    share = draw(strategies.between(0.3, 0.45) if three else strategies.between(0.0, 1.0))

    def peer(opt: Any) -> Any:
        return torchs.OneCycleLR(
            opt, max_lr=LR, total_steps=n, pct_start=share, div_factor=1 / start, final_div_factor=start / floor,
            anneal_strategy="linear" if linear else "cos", three_phase=three, cycle_momentum=False,
        )  # fmt: skip

    return schedules.one_cycle(n, share, start, floor, linear=linear, three_phase=three), peer, n


@st.composite
def steps_down(draw: Any) -> Peer:
    at, gamma = sorted(draw(st.sets(st.integers(1, 9), min_size=1, max_size=3))), draw(factors)
    ours = schedules.piecewise(at, [gamma ** (i + 1) for i in range(len(at))])
    return ours, lambda o: torchs.MultiStepLR(o, at, gamma), 11


@st.composite
def warm_ups(draw: Any) -> Peer:
    n, start, floor = 4 * draw(st.integers(1, 3)), draw(factors), draw(factors)
    rise = n * draw(st.integers(1, 3)) // 4
    endless = draw(st.booleans())
    then = schedules.exponential(floor) if endless else schedules.cosine(n, floor)

    def peer(opt: Any) -> Any:
        rest = torchs.ExponentialLR(opt, floor) if endless else annealed(opt, n - rise, floor)
        return torchs.SequentialLR(opt, [torchs.LinearLR(opt, start, 1.0, rise), rest], [rise])

    return schedules.warm_up(then, rise / n, start, steps=n if endless else None), peer, n + 1


@st.composite
def sequences(draw: Any) -> Peer:
    parts = [draw(simple()) for _ in range(draw(st.integers(2, 3)))]
    at = list(itertools.accumulate(n for *_, n in parts))
    ours = schedules.joined([part for part, *_ in parts], at[:-1])
    return ours, lambda o: torchs.SequentialLR(o, [make(o) for _, make, _ in parts], at[:-1]), at[-1]


def annealed(opt: Any, steps: int, floor: float) -> Any:
    return torchs.CosineAnnealingLR(opt, steps, eta_min=floor * LR)


def rates_of_torch(make: Any, steps: int) -> list[float]:
    p = torch.nn.Parameter(f64(1.0))
    opt = torch.optim.SGD([p], lr=LR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*epoch parameter.*")  # SequentialLR's own call
        scheduler, rates = make(opt), []
        for i in range(steps):
            rates.append(opt.param_groups[0]["lr"])
            opt.step()
            if i < steps - 1:
                scheduler.step()
    return rates


def assert_torchs(peer: Peer) -> None:
    schedule, make, steps = peer
    want = f64(*rates_of_torch(make, steps))
    together = LR * schedule.factor(torch.arange(steps), schedule.hparams)
    # torch multiplies its last rate by a quotient: at most 8 roundings of the largest rate at each of the updates.
    # Near 0 a power below 1 is steep, (1 - t / n)^0.15: the rounding of 1 - t / n, at least 1 / n, is n times as large.
    bound = 8 * steps * FLOAT.eps * max(want.max().item(), LR)
    torch.testing.assert_close(together, want.expand(steps), rtol=0.0, atol=bound)


@settings(max_examples=40)
@given(peer=simple())
def test_it_equals_torchs(peer: Peer):
    assert_torchs(peer)


@given(peer=cycles())
def test_one_cycle_equals_torchs(peer: Peer):
    assert_torchs(peer)


@given(peer=st.one_of(steps_down(), warm_ups()))
def test_steps_and_warm_ups_equal_torchs(peer: Peer):
    assert_torchs(peer)


@given(peer=sequences())
def test_schedules_in_turn_equal_torchs(peer: Peer):
    assert_torchs(peer)


def test_warm_restarts_are_torchs():
    ours = schedules.joined([schedules.cosine(3), schedules.cosine(6), schedules.cosine(12)], [3, 9])
    assert_torchs((ours, lambda o: torchs.CosineAnnealingWarmRestarts(o, T_0=3, T_mult=2), 13))


every_schedule = st.one_of(simple(), cycles(), steps_down(), warm_ups(), sequences()).map(lambda peer: peer[0])


@settings(max_examples=40)
@given(schedule=every_schedule, count=st.integers(0, 20))
def test_a_count_may_be_a_number_a_tensor_or_one_of_many(schedule: schedules.Schedule, count: int):
    one, many = (schedule.factor(torch.tensor(x), schedule.hparams) for x in (count, [count, 3]))
    number = schedule.factor(count, schedule.hparams)
    assert (one.shape, one.dtype, number.shape, number.dtype) == ((), torch.float64, (), torch.float64)
    assert torch.equal(one, number)
    # A vectorised loop rounds some functions otherwise: a dozen operations.
    torch.testing.assert_close(many[0], one, rtol=0.0, atol=12 * FLOAT.eps)


@given(schedule=every_schedule, opt=strategies.rules(), run=strategies.runs())
def test_a_schedule_is_the_table_of_its_values(schedule: schedules.Schedule, opt: Any, run: strategies.Run):
    """Rules that read the rate in init have the first value of both."""
    lr, counts = opt.hparams["lr"], range(len(run.grads))
    table = torch.stack([lr * schedule.factor(torch.tensor(t), schedule.hparams) for t in counts])
    found = run.by(hft.scheduled(opt, lr=schedule)), run.by(hft.per_step(opt, lr=table))
    assert same(found[0][0], found[1][0])


@given(a=every_schedule, b=every_schedule, run=strategies.runs())
def test_of_two_schedules_the_product_counts_in_either_order(a: Any, b: Any, run: strategies.Run):
    sgd = hft.sgd(lr=0.3, momentum=0.5)
    found = [run.by(hft.scheduled(hft.scheduled(sgd, lr=x), lr=y))[0] for x, y in ((a, b), (b, a))]
    together = hft.scheduled(sgd, lr=lambda t: a.factor(t, a.hparams) * b.factor(t, b.hparams))
    for other in (found[1], run.by(together)[0]):
        assert largest_difference(found[0], other) <= CLOSE  # x y z in another order


@given(
    values=st.lists(strategies.between(0.01, 0.5), min_size=1, max_size=5),
    run=strategies.runs(),
    opt=strategies.rules(),
)
def test_a_table_is_a_loop_in_which_each_update_has_its_own_value(values: list[float], run: strategies.Run, opt: Any):
    """And later ones the last."""
    params, state = run.params, opt.init(run.params, {**opt.hparams, "lr": f64(values[0])})
    for t, g in enumerate(run.grads):
        h = {**opt.hparams, "lr": f64(values[min(t, len(values) - 1)])}
        params, state = opt.update(g, state, params, h)
    table = torch.tensor(values, dtype=torch.float64)
    assert same(run.by(hft.per_step(opt, lr=table))[0], params)


@given(schedule=every_schedule, later=st.integers(0, 10**9))
def test_after_its_end_it_stays_as_it_is_there(schedule: schedules.Schedule, later: int):
    if schedule.steps:
        got = schedule.factor(torch.tensor([schedule.steps, schedule.steps + later]), schedule.hparams)
        assert got[0] == got[1]


def test_a_warm_up_squeezes_what_has_a_length_and_shifts_what_has_none():
    endless = schedules.joined([schedules.constant(1.0), schedules.constant(0.5)], [6])
    shifted = schedules.warm_up(endless, 0.25, steps=8)
    assert shifted.steps is None
    assert shifted.factor(torch.tensor([7, 8]), shifted.hparams).tolist() == [1.0, 0.5]  # it begins at 2
    s = schedules.warm_up(schedules.linear(1.0, 0.0, 8), 0.25, start=0.5)
    assert s.steps == 8
    got = s.factor(torch.arange(9), s.hparams)
    torch.testing.assert_close(got, f64(0.5, 0.75, 1, 5 / 6, 4 / 6, 0.5, 2 / 6, 1 / 6, 0), rtol=0.0, atol=4 * FLOAT.eps)


def test_counts_that_float32_does_not_hold():
    s = schedules.warm_up(schedules.linear(1.0, 0.0, 2**26), share=torch.tensor(0.25))  # in float32
    got = s.factor(torch.tensor(2**25 + 1), s.hparams)
    assert got.item() == pytest.approx(1 - (2**24 + 1) / (2**26 - 2**24), rel=4 * FLOAT.eps)


# Numbers at which no update of the trainings below is at a kink.
SMOOTH = {
    "constant": schedules.constant(0.3, 3),
    "linear": schedules.linear(0.2, 0.9, 4),
    "polynomial": schedules.polynomial(4, 1.5),
    "polynomial-root": schedules.polynomial(4, 0.5),
    "exponential": schedules.exponential(0.8),
    "cosine": schedules.cosine(4, 0.2),
    "one_cycle": schedules.one_cycle(6, 0.4, 0.5, 0.01),
    "one_cycle-linear": schedules.one_cycle(6, 0.4, 0.5, 0.01, linear=True),
    "one_cycle-three-phase": schedules.one_cycle(6, 0.4, 0.5, 0.01, three_phase=True),
    "piecewise": schedules.piecewise((2, 4), (0.5, 0.2)),
    "warm_up": schedules.warm_up(schedules.cosine(6, 0.2), 0.4, 0.1),
    "warm_up-root": schedules.warm_up(schedules.polynomial(4, 0.5), 0.35, 0.1),  # a root after its end, squeezed
    "warm_up-exponential": schedules.warm_up(schedules.exponential(0.8), 0.4, 0.1, steps=6),
    "warm_up-one_cycle": schedules.warm_up(schedules.one_cycle(6, 0.4, 0.5, 0.01), 0.4, 0.1),
    "joined": schedules.joined([schedules.linear(0.2, 1.0, 3), schedules.warm_up(schedules.cosine(4), 0.3)], [3]),
}
STEPS = 6


@pytest.mark.parametrize("name", SMOOTH)
def test_hypergradients_in_every_number_equal_central_differences(name: str):
    opt, data = hft.scheduled(hft.sgd(lr=0.3, momentum=0.5), lr=SMOOTH[name]), batches(STEPS)

    def outer(params):
        return loss(params, data[0] + 0.3)

    _, got, _ = hft.hypergradient(opt, loss, outer, start(), data, over="lr_schedule")
    numbers = opt.hparams["lr_schedule"]
    want = torch.stack(
        central_differences(lambda h: outer(train(opt, opt.hparams | {"lr_schedule": h}, start(), data)[0]), numbers)
    )
    # As in the contract: 1e-12 from the rounding of f, and a fifth derivative times 1e-16 from the differences.
    torch.testing.assert_close(entries(got["lr_schedule"]), want, rtol=1e-6, atol=1e-8)
    assert (want.abs() > 1e-5).all()  # each number counts


@pytest.mark.parametrize("share", [0.0, 1 / STEPS, 1.0])
@pytest.mark.parametrize("name", ["warm_up", "one_cycle", "one_cycle-three-phase"])
def test_derivatives_are_finite_where_a_phase_has_no_length(name: str, share: float):
    schedule = SMOOTH[name]
    counts, h = torch.arange(2 * STEPS), {**schedule.hparams, "share": f64(share)}
    slopes = torch.func.jacrev(lambda h: schedule.factor(counts, h))(h)
    assert all(x.isfinite().all() for x in tree.leaves((schedule.factor(counts, h), slopes)))
    # And where a part grows beyond the numbers after its time.
    s = schedules.joined([schedules.exponential(2.0), schedules.exponential(0.0)], [3])
    slope = torch.func.grad(lambda h: s.factor(torch.tensor(10**5), h))(s.hparams)
    assert all(x.isfinite() for x in tree.leaves(slope))


@pytest.mark.parametrize("name", SMOOTH)
def test_it_maps_over_its_numbers_and_compiles(name: str):
    torch._dynamo.reset()
    schedule, counts = SMOOTH[name], torch.arange(STEPS)
    values, rebuild = tree.flatten(schedule.hparams)
    many = rebuild([torch.stack([x, 0.9 * x]) for x in values])
    got = torch.func.vmap(lambda h: schedule.factor(counts, h))(many)
    compiled = torch.compile(schedule.factor, fullgraph=True, backend="eager")
    for i in range(2):
        h = rebuild([(x, 0.9 * x)[i] for x in values])
        want = schedule.factor(counts, h)
        # The same operations in the same order, but for those that a vectorised loop rounds otherwise: a dozen.
        torch.testing.assert_close(got[i], want, rtol=0.0, atol=12 * FLOAT.eps)
        torch.testing.assert_close(compiled(counts, h), want, rtol=0.0, atol=12 * FLOAT.eps)


def test_every_schedule_has_a_domain_for_every_number():
    assert {name.partition("-")[0] for name in SMOOTH} == set(schedules.__all__) - {"Schedule"}
    for schedule in SMOOTH.values():
        opt = hft.scheduled(hft.sgd(), lr=schedule)
        for path in tree.by_path(schedule.hparams):
            assert isinstance(domain_at(opt.domains, f"lr_schedule.{path}"), Domain)


# -- tuned ----------------------------------------------------------------------------------------------------------


def assert_same_training(ours, theirs, data):
    torch.testing.assert_close(*(train(opt, None, start(), data)[0] for opt in (ours, theirs)), rtol=1e-14, atol=1e-14)


def test_schedules_nest_and_their_numbers_have_schedules():
    data, cosine = batches(5), schedules.cosine(5, 0.1)
    inner = hft.scheduled(hft.sgd(lr=0.3), lr=cosine)
    twice = hft.scheduled(inner, lr=schedules.exponential(0.9))
    assert set(twice.hparams) - set(hft.sgd().hparams) == {"lr_schedule", "lr_schedule_2"}
    assert set(twice.domains["lr_schedule_2"]) == {"decay"}
    both = hft.scheduled(hft.sgd(lr=0.3), lr=lambda t: 0.9 ** t.double() * cosine.factor(t, {"floor": f64(0.1)}))
    assert_same_training(twice, both, data)
    slope = hft.hypergradient(twice, loss, lambda p: loss(p, data[0]), start(), data, over="lr_schedule_2.decay")[1]
    assert slope["lr_schedule_2.decay"].abs() > 1e-3
    outer = hft.scheduled(inner, {"lr_schedule.floor": schedules.exponential(0.5)})
    assert "lr_schedule.floor_schedule" in outer.hparams
    want = hft.scheduled(hft.sgd(lr=0.3), lr=lambda t: cosine.factor(t, {"floor": 0.1 * 0.5 ** t.double()}))
    assert_same_training(outer, want, data)


def parts(w: hft.Optimizer, b: hft.Optimizer) -> hft.Optimizer:
    return hft.partition({"w": w, "b": b}, lambda path: path)


def adam(beta: float = 0.9) -> hft.Optimizer:
    return hft.adam(lr=0.1, eps=1e-2, betas=(beta, 0.999))


def test_paths_lead_into_hparams_that_nest():
    """Around a partition it is as around its parts."""
    data, s, sgd = batches(4), schedules.cosine(4, 0.1), hft.sgd(lr=0.2)
    opt = hft.scheduled(parts(adam(), sgd), {"w.lr": s, "b.lr": s, "w.betas.0": schedules.constant(0.5)})
    assert set(opt.hparams) == {"w", "b", "w.lr_schedule", "b.lr_schedule", "w.betas.0_schedule"}
    alone = parts(hft.scheduled(adam(0.45), lr=s), hft.scheduled(sgd, lr=s))
    # The longest key that fits: "w.lr_schedule" is a name, "w" is one too.
    over = ("w.lr", "w.lr_schedule.floor", "b.lr_schedule")
    outer = lambda p: loss(p, data[0])  # noqa: E731
    got, want = (hft.hypergradient(x, loss, outer, start(), data, over=over) for x in (opt, alone))
    torch.testing.assert_close(got[2][0], want[2][0], rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(got[1], want[1], rtol=1e-10, atol=1e-13)
    got, want = (train(hft.hyper(x, by=hft.sgd(lr=0.1), over=over), None, start(), data)[1].tuned for x in (opt, alone))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-13)
    assert got["w.lr_schedule.floor"] != 0.1


def test_a_number_that_only_init_reads_has_the_schedules_first_value():
    """As under torch's schedulers, which set the first rate before the first step."""
    halved = hft.scheduled(hft.rprop(lr=0.1), lr=lambda t: 0.5 ** (t + 1))
    assert_same_training(hft.rprop(lr=0.05), halved, batches(1))


def test_what_is_scaled_may_hold_several_numbers():
    params, g = start(), start()
    layered = hft.scheduled(hft.sgd(lr={"w": 0.1, "b": 0.2}), lr=schedules.constant(0.5))
    new, _ = layered.update(g, layered.init(params), params)
    for name, lr in (("w", 0.1), ("b", 0.2)):
        assert torch.equal(new[name], torch.sub(params[name], g[name], alpha=0.5 * lr))
    halved, plain = hft.scheduled(hft.adam(), betas=schedules.constant(0.5)), hft.adam(betas=(0.45, 0.4995))
    assert_same_training(halved, plain, batches(3))


# -- tables ---------------------------------------------------------------------------------------------------------

TABLE = f64(0.3, 0.1, 0.5, 0.2)


def test_a_table_may_have_a_row_for_each_row_of_a_matrix():
    data, opt = batches(6), hft.per_step(hft.sgd(lr=9.0, momentum=0.5), lr=TABLE)
    assert opt.hparams["lr"] is TABLE
    assert opt.domains == hft.sgd().domains
    rows = {"w": TABLE[:, None], "b": TABLE}
    assert_same_training(hft.per_step(hft.sgd(momentum=0.5), lr=rows), opt, data)


def test_tables_of_hparams_with_several_numbers_and_by_path():
    data, betas = batches(3), (f64(0.8, 0.5), f64(0.9, 0.95))
    opt = hft.per_step(hft.adam(lr=0.1), betas=betas, lr={"w": TABLE, "b": 2 * TABLE})
    got, _ = train(opt, None, start(), data)
    plain = hft.adam()
    params, state = start(), plain.init(start())
    for t, x in enumerate(data):
        now = (betas[0][min(t, 1)], betas[1][min(t, 1)])
        h = {**plain.hparams, "betas": now, "lr": {"w": TABLE[t], "b": 2 * TABLE[t]}}
        params, state = plain.update(torch.func.grad(loss)(params, x), state, params, h)
    assert all(torch.equal(got[k], params[k]) for k in params)
    nested = hft.per_step(parts(adam(), hft.sgd(lr=0.2)), {"w.lr": TABLE, "w.betas.0": betas[0]})
    assert nested.hparams["w"]["lr"] is TABLE
    alone = parts(hft.per_step(adam(), {"betas.0": betas[0]}, lr=TABLE), hft.sgd(lr=0.2))
    assert_same_training(nested, alone, data)


def test_hyper_moves_the_entry_that_was_used_last():
    opt, data = hft.per_step(hft.sgd(), lr=TABLE), batches(6)
    tuner = hft.hyper(opt, by=hft.sgd(lr=1e-2), over="lr", constrain={"lr": "log"})
    params, state = start(), tuner.init(start())
    for t, x in enumerate(data):
        old = state.tuned["lr"]
        params, state = tuner.update(torch.func.grad(loss)(params, x), state, params)
        changed = (state.tuned["lr"] / old - 1).abs() > 4 * FLOAT.eps  # a logarithm and back
        assert changed.nonzero().flatten().tolist() == ([] if t == 0 else [min(t - 1, 3)])


def test_what_a_base_settles_goes_into_the_entry_that_was_used():
    """A ball's radius is clipped to the largest norm after each update, in a table as elsewhere."""
    w0 = {"w": torch.zeros(1, 2, dtype=torch.float64)}
    opt = hft.per_step(hft.projected(hft.sgd(lr=1.0), w0), radius={"w": f64(0.5, 100.0, 7.0)})
    tuner = hft.hyper(opt, by=hft.sgd(lr=0.0), over="radius.w")
    params, state = w0, tuner.init(w0)
    assert state.tuned["radius.w"].tolist() == [0.5, 100.0, 7.0]  # given, so no first radius is asked for
    for want in ([0.5, 100.0, 7.0], [0.5, 2.5, 7.0]):
        params, state = tuner.update({"w": -torch.ones(1, 2, dtype=torch.float64)}, state, params)
        torch.testing.assert_close(state.tuned["radius.w"], f64(*want), rtol=1e-7, atol=0.0)  # the norm's 1e-8


def test_trainings_at_different_counts_map_together():
    opt, w = hft.per_step(hft.sgd(), lr=TABLE), torch.zeros(2, dtype=torch.float64)
    _, state = opt.update(w, opt.init(w), w)
    both = state._replace(step=torch.tensor([1, 9]))
    step = lambda n, table: opt.update(-w - 1, state._replace(step=n), w, {**opt.hparams, "lr": table})[0]  # noqa: E731
    got = torch.func.vmap(step)(both.step, torch.stack([TABLE, 2 * TABLE]))
    assert got[:, 0].tolist() == [0.1, 0.4]
