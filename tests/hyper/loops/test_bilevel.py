"""`bilevel`: params, batches and hparams of the loss outside, what a record holds, and loaders."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

import hyperopt_ftp as hft
from hyperopt_ftp import tree

from ...support import contract
from ...support.compare import same
from ...support.hypergradients import DATA, EXACT, HELD_OUT, SGD, call, every_strategy, f64, not_converged, own, rounds
from ...support.problems import batches, central_differences, largest_difference, loss, start


def identical(a, b):
    """Two records or states, and the order in which they hold what they hold."""
    return tree.structure(a) == tree.structure(b) and same(a, b)


def through_a_file(state):
    """As docs/checkpoints.md saves a state: its leaves."""
    values, rebuild = tree.flatten(state)
    return rebuild(contract.through_a_file(values))


def test_a_record_has_the_hparams_of_the_next_training():
    numbers = {"lr": f64(0.05), "loss": {"l2": f64(0.1)}}
    ridge = lambda p, x, h: loss(p, x) + h["l2"] * p["w"].square().sum()  # noqa: E731
    for over in ("lr", ("lr", "loss.l2"), ("params", "lr")):
        record = rounds(over, hft.sgd(lr=0.01), train_loss=ridge, hparams=numbers)[-1]
        want = SGD.hparams | numbers
        for path, value in record.tuned.items():
            want = want if path == "params" else tree.replaced(want, path, value)
        assert record.hparams.keys() == want.keys()
        assert largest_difference(record.hparams, want) == 0
        hft.train(SGD, ridge, start(), DATA[:1], hparams=record.hparams)


@pytest.mark.filterwarnings("ignore:the hypergradient of .radius.w. is exactly 0")  # where no row is clipped
def test_a_radius_ends_each_round_at_most_at_the_largest_distance():
    """As the projected rule leaves it, which FTP's clip is too; a smaller one stays as it is tuned."""
    anchor = {n: x - 0.01 for n, x in start().items()}
    opt = hft.projected(hft.sgd(lr=0.01), anchor)
    for radius in (5.0, 1e-3):
        given = opt.hparams | {"radius": dict.fromkeys(anchor, f64(radius))}
        record = rounds("radius.w", hft.sgd(lr=0.0), opt, hparams=given, outer_steps=1)[0]
        farthest = (record.state.params["w"] - anchor["w"]).abs().sum(1).max().item() + 1e-8  # as norms of rows are
        assert record.tuned["radius.w"].item() == pytest.approx(min(radius, farthest), rel=1e-12)


def test_params_outside_are_maml():
    """Each round starts from the tuned params, and moves them along their hypergradient."""
    records = rounds("params", hft.sgd(lr=0.5))
    tuned = start()
    for k, record in enumerate(records):
        value, h, _ = call(params=tuned, data=[DATA[(2 * k + i) % 4] for i in range(2)], over="params")
        assert record.value == value.item()
        assert largest_difference(record.hypergradient["params"], h["params"]) == 0
        tuned = {n: x - 0.5 * h["params"][n] for n, x in tuned.items()}
        assert largest_difference(record.tuned["params"], tuned) <= 1e-15
    assert records[-1].value < records[0].value
    assert identical(
        rounds("params", hft.sgd(lr=0.5), state=through_a_file(records[0].state))[-1].state, records[-1].state
    )


def test_batches_outside_are_distillation():
    """Inputs of both steps are learned, their targets stay; derivatives against those of train under a transform."""
    data = [{"x": x, "y": torch.ones(5, dtype=torch.int64)} for x in DATA[:2]]
    over = ("batches.0.x", "batches.1.x")

    def fit(p, batch):
        return F.cross_entropy(batch["x"] @ p["w"] + p["b"], batch["y"])

    def held_out(p, x):
        return F.cross_entropy(x @ p["w"] + p["b"], torch.tensor([0, 1, 2, 3, 0]))

    records = rounds(over, hft.adam(lr=0.1), train_batches=data, train_loss=fit, outer_loss=held_out, reset=start())

    def at(xs):
        new = [{**b, "x": xs[f"batches.{i}.x"]} for i, b in enumerate(data)]
        return hft.train(SGD, fit, start(), new).params

    first = {name: data[i]["x"] for i, name in enumerate(over)}
    want = torch.func.grad(lambda xs: held_out(at(xs), HELD_OUT))(first)
    assert largest_difference(records[0].hypergradient, want) <= 1e-13
    assert records[-1].value < records[0].value
    assert data[0]["x"] is DATA[0]


@not_converged
@every_strategy
def test_an_outer_loss_that_sees_the_losss_hparams(strategy):
    """DARTS: its direct derivative counts, beside that through training."""

    def mixed(p, x, h):
        a = torch.softmax(h["alpha"], 0)
        return a[0] * loss(p, x) + a[1] * (p["w"] ** 2).sum()

    def at(alpha, how=None):
        run = hft.train(SGD, mixed, start(), DATA, hparams=own({"alpha": alpha}), strategy=how)
        return mixed(run.params, HELD_OUT, {"alpha": alpha})

    alpha, given = f64([0.3, -0.2]), own({"alpha": f64([0.3, -0.2])})
    want = alpha.clone().requires_grad_()
    at(want, strategy).backward()
    got = call(mixed, strategy, "loss.alpha", given, lambda p, h: mixed(p, HELD_OUT, h))[1]["loss.alpha"]
    torch.testing.assert_close(got, want.grad, rtol=1e-10, atol=1e-14)
    if strategy in EXACT.values():
        torch.testing.assert_close(got, torch.stack(central_differences(at, alpha)), rtol=1e-6, atol=1e-9)
    options = {"inner_steps": 4, "outer_steps": 1, "strategy": strategy}
    (record,) = rounds("loss.alpha", train_loss=mixed, outer_loss=mixed, hparams=given, **options)
    torch.testing.assert_close(record.hypergradient["loss.alpha"], got, rtol=1e-12, atol=1e-15)


# -- numbers of inner steps --------------------------------------------------------------------------------------------

STEPWISE = {"unroll": hft.Unroll(), "every-step": hft.Unroll(checkpoint=1), "last": hft.Unroll(truncate=1)}


def by_calls(counts, strategy, train_batches=DATA, outer_batches=(HELD_OUT,)):
    """Rounds of so many steps, by a call for each: their records' values, and lr after each."""
    lr, params, state, read, found = SGD.hparams["lr"], start(), None, 0, []
    for n, count in enumerate(counts):
        data = [train_batches[(read + i) % len(train_batches)] for i in range(count)]
        held_out = outer_batches[n % len(outer_batches)]
        value, h, (params, state) = hft.hypergradient(
            SGD, loss, lambda p, x=held_out: loss(p, x), params, data, "lr", {"lr": lr}, state, strategy
        )
        lr, read = lr - 0.1 * h["lr"], read + count
        found.append((value, lr))
    return found


def by_records(strategy=None, state=None, **options):
    records = rounds(strategy=strategy, state=state, **options)
    return [(f64(r.value), r.tuned["lr"]) for r in records], records


@pytest.mark.parametrize("strategy", [*STEPWISE.values(), hft.Unroll(checkpoint="sqrt"), hft.Forward()], ids=str)
def test_a_schedule_of_inner_steps(strategy):
    """A function of the number of the outer step, that any strategy takes; also resumed in the middle."""
    given = {"inner_steps": lambda n: 2 * n - 1, "outer_steps": 3}
    found, records = by_records(strategy, **given)
    torch.testing.assert_close(found, by_calls([1, 3, 5], strategy), rtol=1e-12, atol=0)
    assert [int(r.state.trained) for r in records] == [1, 4, 9]
    again = by_records(strategy, through_a_file(records[0].state), **given)[1]
    assert identical(again, records[1:])


@pytest.mark.parametrize("strategy", STEPWISE.values(), ids=STEPWISE)
def test_a_rule_that_ends_each_round(strategy):
    """By what it sees of a step, of the loss or a validation loss; the batches that it has left come next."""

    def until(n):
        seen = []  # of this round alone

        def stop(step):
            seen.append(loss(step.params, HELD_OUT).item())
            return step.k == 3 or (n > 1 and step.loss < 0.9 * seen[0])

        return stop

    found, records = by_records(strategy, inner_steps=until)
    ends = [0] + [int(r.state.trained) for r in records]
    counts = [b - a for a, b in pairwise(ends)]
    assert counts[0] == 4
    assert len({*counts}) > 1
    torch.testing.assert_close(found, by_calls(counts, strategy), rtol=1e-12, atol=1e-15)
    again = by_records(strategy, through_a_file(records[0].state), inner_steps=until)[1]
    assert identical(again, records[1:])


@not_converged
def test_a_rule_with_the_implicit_derivative():
    """Which is taken at the end, whenever that is, by the last batch."""
    how, ridge = hft.Implicit(iterations=1, tolerance=1e9), lambda p, x, h: loss(p, x) + h * p["w"].square().sum()
    options = {"over": "loss", "train_loss": ridge, "hparams": own(f64(0.1)), "strategy": how, "outer_steps": 1}
    (record,) = rounds(inner_steps=lambda n: lambda step: step.k == 2, **options)
    (want,) = rounds(inner_steps=3, **options)
    torch.testing.assert_close(record.hypergradient, want.hypergradient, rtol=1e-12, atol=0)
    assert want.hypergradient["loss"] != 0


def test_a_round_that_is_undone_has_read_its_batches():
    data = [DATA[0], DATA[1] * torch.nan, *DATA[2:]]
    two = {"inner_steps": lambda n: lambda step: step.k == 1, "outer_steps": 2}
    records = rounds(train_batches=data, not_finite="skip", **two)
    assert records[0].skipped == ("lr",)
    assert [int(r.state.trained) for r in records] == [2, 4]
    (want,) = rounds(train_batches=DATA[2:], outer_steps=1)
    assert records[1].value == pytest.approx(want.value, rel=1e-12)


def how_many_nan(p, x):
    return p["w"].isnan().double().sum()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("strategy", "outer_loss"),
    [(hft.ZeroOrder(2, 1e-3), how_many_nan), (hft.Implicit(tolerance=10.0), loss)],
    ids=["zero order", "implicit"],
)
def test_a_round_that_ends_in_nan_is_taken_back_also_where_its_slopes_are_finite(strategy, outer_loss):
    """As ZeroOrder's are, of an outer loss that counts."""

    def lost(p, x):
        return (p["w"] * torch.where(x.sum() > 10, torch.nan, 1.0)).sum() + 0 * p["b"].sum()

    data = [x.new_full(x.shape, 1.0 if k == 2 else 0.5) for k, x in enumerate(DATA)]
    options = {"train_loss": lost, "outer_loss": outer_loss, "train_batches": data, "strategy": strategy}
    options |= {"inner_steps": 1, "outer_steps": 4}
    records = rounds(not_finite="skip", **options)
    assert [r.skipped for r in records] == [(), (), ("lr",), ()]
    assert identical(records[2].state.params, records[1].state.params)
    with pytest.raises(FloatingPointError, match="at outer step 3"):
        rounds(not_finite="error", **options)


# -- loaders ----------------------------------------------------------------------------------------------------------

ROWS = torch.cat(batches(5))[:22]  # 5 batches of 5 and less


SHUFFLED = {
    "loader": lambda g: DataLoader(ROWS, 5, shuffle=True, generator=g),
    "sampler": lambda g: DataLoader(ROWS, 5, sampler=RandomSampler(ROWS, generator=g)),
    "batch sampler": lambda g: DataLoader(ROWS, batch_sampler=BatchSampler(RandomSampler(ROWS, generator=g), 5, False)),
}
IN_ORDER = {
    "loader": lambda **options: DataLoader(ROWS, 5, **options),
    "batch sampler": lambda **options: DataLoader(
        ROWS, batch_sampler=BatchSampler(SequentialSampler(ROWS), 5, False), **options
    ),
    "one by one": lambda **options: DataLoader(torch.stack(batches(5)), batch_size=None, **options),
}


@pytest.mark.parametrize("make", IN_ORDER.values(), ids=IN_ORDER)
@pytest.mark.parametrize("inner_steps", [2, 5])
def test_a_loader_in_order_resumes_bit_for_bit_at_any_round(make, inner_steps):
    """5 batches a pass: rounds of 2 end in the middle of one, rounds of 5 at its end.

    A loss with dropout and examples with noise draw from the default generator, and so does a loader, for a seed.
    """

    def noisy(rows):
        x = torch.stack(rows) if isinstance(rows, list) else rows
        return x + 0.1 * torch.randn_like(x)

    def run(**options):
        return hft.bilevel(
            SGD, hft.sgd(lr=0.1), "lr", lambda p, x: loss(p, F.dropout(x, 0.3)), loss, start(), make(collate_fn=noisy),
            make(), inner_steps=inner_steps, outer_steps=6, **options,
        )  # fmt: skip

    records = [(record, torch.get_rng_state()) for record in run()]
    assert len({record.value for record, _ in records}) == 6
    for record, rng in records[:-1]:
        torch.set_rng_state(rng)
        again = list(run(state=through_a_file(record.state)))
        assert identical(again[-1].state, records[-1][0].state)


def test_loaders_are_started_anew():
    starts = []

    class Loader:
        def __iter__(self):
            starts.append(0)
            return iter(DATA[:2])

    assert len(rounds(train_batches=Loader(), inner_steps=3, outer_steps=2)) == 2
    assert len(starts) == 3  # 6 batches, 2 a pass


@pytest.mark.parametrize("make", SHUFFLED.values(), ids=SHUFFLED)
def test_a_shuffled_loader_begins_with_a_warning(make):
    first = rounds(train_batches=make(None), outer_steps=2)[-1].state

    def call():
        return list(hft.bilevel(
            SGD, hft.sgd(lr=0.1), "lr", loss, loss, start(), make(torch.Generator()), DATA[:1],
            inner_steps=2, outer_steps=3, state=first,
        ))  # fmt: skip

    with pytest.warns(UserWarning, match="train_batches is read from its beginning.*pass a sequence") as seen:
        call()
    lines = range(call.__code__.co_firstlineno + 1, call.__code__.co_firstlineno + 5)
    assert [w.filename for w in seen] == [__file__]
    assert seen[0].lineno in lines
