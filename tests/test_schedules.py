"""Schedules and tables: equal to torch's, differentiable in every number, tuned like any hparam."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.optim import lr_scheduler as torchs

import hyperopt_ftp as hft
from hyperopt_ftp import schedules, tree
from hyperopt_ftp.hparams import Domain, domain_at

from .support.problems import batches, central_differences, entries, loss, start, train

LR, K = 0.7, 12
FLOAT = torch.finfo(torch.float64)


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values[0] if len(values) == 1 else values, dtype=torch.float64)


def cycle(opt, **options):
    return torchs.OneCycleLR(opt, max_lr=LR, total_steps=K, cycle_momentum=False, **options)


def in_turn(opt, parts, at):
    return torchs.SequentialLR(opt, [make(opt) for make in parts], at)


def straight(*numbers):
    return lambda opt: torchs.LinearLR(opt, *numbers)


def annealed(steps, floor=0.0):
    return lambda opt: torchs.CosineAnnealingLR(opt, steps, eta_min=floor * LR)


def falling(opt):
    return torchs.ExponentialLR(opt, 0.8)


PEERS = {
    "constant": (schedules.constant(0.3, 5), lambda o: torchs.ConstantLR(o, 0.3, 5)),
    "constant-always": (schedules.constant(0.3), lambda o: torchs.LambdaLR(o, lambda t: 0.3)),
    "linear": (schedules.linear(0.2, 0.9, 7), straight(0.2, 0.9, 7)),
    "linear-down": (schedules.linear(1.0, 0.0, 7), straight(1.0, 0.0, 7)),
    "polynomial": (schedules.polynomial(9, 2.5), lambda o: torchs.PolynomialLR(o, 9, 2.5)),
    "polynomial-root": (schedules.polynomial(9, 0.5), lambda o: torchs.PolynomialLR(o, 9, 0.5)),
    "exponential": (schedules.exponential(0.8), falling),
    "cosine": (schedules.cosine(K, 0.2), annealed(K, 0.2)),
    "one_cycle": (schedules.one_cycle(K), cycle),
    "one_cycle-linear": (
        schedules.one_cycle(K, 0.4, 0.5, 0.01, linear=True),
        lambda o: cycle(o, pct_start=0.4, div_factor=2.0, final_div_factor=50.0, anneal_strategy="linear"),
    ),
    "one_cycle-three-phase": (
        schedules.one_cycle(K, 0.35, 0.5, 0.01, three_phase=True),
        lambda o: cycle(o, pct_start=0.35, div_factor=2.0, final_div_factor=50.0, three_phase=True),
    ),
    "one_cycle-no-rise": (schedules.one_cycle(K, 0.0), lambda o: cycle(o, pct_start=0.0)),
    "one_cycle-no-fall": (schedules.one_cycle(K, 1.0), lambda o: cycle(o, pct_start=1.0)),
    "piecewise": (schedules.piecewise((3, 7), (0.1, 0.1**2)), lambda o: torchs.MultiStepLR(o, [3, 7], 0.1)),
    "warm_up-cosine": (
        schedules.warm_up(schedules.cosine(K, 0.2), 0.25, 0.1),
        lambda o: in_turn(o, [straight(0.1, 1.0, 3), annealed(K - 3, 0.2)], [3]),
    ),
    "warm_up-exponential": (
        schedules.warm_up(schedules.exponential(0.8), 0.5, 0.1, steps=8),
        lambda o: in_turn(o, [straight(0.1, 1.0, 4), falling], [4]),
    ),
    "joined": (
        schedules.joined([schedules.linear(0.2, 1.0, 3), schedules.exponential(0.8), schedules.cosine(4, 0.2)], [4, 8]),
        lambda o: in_turn(o, [straight(0.2, 1.0, 3), falling, annealed(4, 0.2)], [4, 8]),
    ),
    "warm-restarts": (
        schedules.joined([schedules.cosine(3), schedules.cosine(6), schedules.cosine(12)], [3, 9]),
        lambda o: torchs.CosineAnnealingWarmRestarts(o, T_0=3, T_mult=2),
    ),
}


def rates_of_torch(make, steps: int) -> list[float]:
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


@pytest.mark.parametrize("name", PEERS)
def test_it_equals_torchs(name: str):
    schedule, make = PEERS[name]
    steps = K if name.startswith("one_cycle") else K + 1
    want = f64(*rates_of_torch(make, steps))
    counts = torch.arange(steps)
    together = LR * schedule.factor(counts, schedule.hparams)
    # torch multiplies its last rate by a quotient: at most 8 roundings of the largest rate at each of K updates.
    bound = 8 * K * FLOAT.eps * want.max().item()
    torch.testing.assert_close(together, want, rtol=0.0, atol=bound)
    for count in (0, 5, steps - 1):  # a number, and a 0-d tensor
        for given in (count, torch.tensor(count)):
            alone = schedule.factor(given, schedule.hparams)
            assert alone.shape == ()
            assert alone.dtype == torch.float64
            torch.testing.assert_close(LR * alone, want[count], rtol=0.0, atol=bound)


ENDED = {
    "cosine": (schedules.cosine(4, 0.2), 0.2),
    "one_cycle": (schedules.one_cycle(4, floor=0.1), 0.1),
    "one_cycle-three-phase": (schedules.one_cycle(4, floor=0.1, three_phase=True), 0.1),
    "one_cycle-no-fall": (schedules.one_cycle(4, share=1.0, floor=0.1), 1.0),
    "warm_up": (schedules.warm_up(schedules.cosine(4, 0.2)), 0.2),
    "joined": (schedules.joined([schedules.constant(0.3, 2), schedules.cosine(2, 0.2)], [2]), 0.2),
}


@pytest.mark.parametrize("name", ENDED)
def test_after_its_end_it_stays_as_it_is_there(name: str):
    schedule, end = ENDED[name]
    assert schedule.steps == 4
    got = schedule.factor(torch.tensor([4, 5, 9, 10**9]), schedule.hparams)
    torch.testing.assert_close(got, torch.full_like(got, end), rtol=0.0, atol=4 * FLOAT.eps)


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


def test_a_table_gives_each_update_its_own_value():
    data, opt = batches(6), hft.per_step(hft.sgd(lr=9.0, momentum=0.5), lr=TABLE)
    assert opt.hparams["lr"] is TABLE
    assert opt.domains == hft.sgd().domains
    rates = [*TABLE, TABLE[-1], TABLE[-1]]
    by_rates = hft.scheduled(hft.sgd(lr=1.0, momentum=0.5), lr=lambda t: rates[int(t)])
    assert_same_training(opt, by_rates, data)
    rows = {"w": TABLE[:, None], "b": TABLE}
    assert_same_training(hft.per_step(hft.sgd(momentum=0.5), lr=rows), by_rates, data)


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
