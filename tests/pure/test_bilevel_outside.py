"""`bilevel` with an optimizer of torch.optim outside, where its rounds start, rounds that are taken back, loaders."""

from __future__ import annotations

import functools
import io

import pytest
import torch
import torch.nn.functional as F

import hyperopt_ftp as hft
from hyperopt_ftp import tree

from ..support.compare import same
from ..support.hypergradients import (
    DATA,
    EXACT,
    F64,
    HELD_OUT,
    SGD,
    call,
    every_strategy,
    f64,
    not_converged,
    outer,
    own,
    rounds,
)
from ..support.problems import batches, largest_difference, loss, start


def identical(a, b):
    """Two records or states, and the order in which they hold what they hold."""
    return tree.structure(a) == tree.structure(b) and same(a, b)


# -- the optimizer outside, where rounds start, what is tuned ---------------------------------------------------------


OUTSIDE = {
    "Adam": torch.optim.Adam,
    "SGD": functools.partial(torch.optim.SGD, lr=0.1),
    "momentum": functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "RMSprop": lambda values: torch.optim.RMSprop(values, lr=0.01),
}
OVER = ("lr", "momentum")


def by_hand(make, steps, log=False):
    """The same in a plain loop with an optimizer of torch.optim."""
    free = {n: (SGD.hparams[n].log() if log else SGD.hparams[n].clone()).requires_grad_() for n in OVER}
    optimizer, params, state, found = make(list(free.values())), start(), None, []
    for k in range(steps):
        tuned = {n: u.detach().exp() if log else u.detach().clone() for n, u in free.items()}
        data = [DATA[(2 * k + i) % 4] for i in range(2)]
        _, h, (params, state) = hft.hypergradient(SGD, loss, outer, params, data, OVER, SGD.hparams | tuned, state)
        for n, u in free.items():
            u.grad = h[n] * tuned[n] if log else h[n]
        optimizer.step()
        found.append({n: u.detach().exp() if log else u.detach().clone() for n, u in free.items()})
    return found, params


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("make", OUTSIDE.values(), ids=OUTSIDE)
def test_an_optimizer_of_torch_outside_is_its_loop_by_hand(make, log):
    options = {"constrain": dict.fromkeys(OVER, "log")} if log else {}
    records = rounds(OVER, make, outer_steps=4, **options)
    tuned, params = by_hand(make, 4, log)
    assert largest_difference([r.tuned for r in records], tuned) <= 1e-15
    assert largest_difference(records[-1].state.params, params) <= 1e-15


def through_a_file(state):
    """As docs/checkpoints.md saves a state: its leaves."""
    file = io.BytesIO()
    values, rebuild = tree.flatten(state)
    torch.save(values, file)
    file.seek(0)
    return rebuild(torch.load(file, weights_only=True))


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

    alpha = f64([0.3, -0.2])
    want = alpha.clone().requires_grad_()
    at(want, strategy).backward()
    got = call(mixed, strategy, "loss.alpha", own({"alpha": alpha}), lambda p, h: mixed(p, HELD_OUT, h))[1]
    torch.testing.assert_close(got["loss.alpha"], want.grad, rtol=1e-10, atol=1e-14)
    if strategy in EXACT.values():
        ends = [[alpha + sign * 1e-5 * e for sign in (1, -1)] for e in torch.eye(2, dtype=F64)]
        want = torch.stack([(at(a) - at(b)) / 2e-5 for a, b in ends])
        torch.testing.assert_close(got["loss.alpha"], want, rtol=1e-6, atol=1e-9)
    record = rounds(
        "loss.alpha", train_loss=mixed, outer_loss=mixed, hparams=own({"alpha": alpha}), inner_steps=4, outer_steps=1,
        strategy=strategy,
    )[0]  # fmt: skip
    torch.testing.assert_close(record.hypergradient["loss.alpha"], got["loss.alpha"], rtol=1e-12, atol=1e-15)


# -- a skipped round is taken back ------------------------------------------------------------------------------------


# -- loaders that shuffle ---------------------------------------------------------------------------------------------

ROWS = torch.cat(batches(5))[:22]  # 5 batches of 5 and less


def loader(seed=11):
    return torch.utils.data.DataLoader(ROWS, 5, shuffle=True, generator=torch.Generator().manual_seed(seed))


def loader_of_a_sampler(seed=11):
    sampler = torch.utils.data.RandomSampler(ROWS, generator=torch.Generator().manual_seed(seed))
    return torch.utils.data.DataLoader(ROWS, 5, sampler=sampler)


def loader_with_two_generators(seed=11):
    sampler = torch.utils.data.RandomSampler(ROWS, generator=torch.Generator().manual_seed(seed))
    return torch.utils.data.DataLoader(ROWS, 5, sampler=sampler, generator=torch.Generator().manual_seed(seed))


def loader_of_a_batch_sampler(seed=11):
    sampler = torch.utils.data.RandomSampler(ROWS, generator=torch.Generator().manual_seed(seed))
    return torch.utils.data.DataLoader(ROWS, batch_sampler=torch.utils.data.BatchSampler(sampler, 5, False))


@pytest.mark.parametrize(
    "make",
    [
        loader,
        loader_of_a_sampler,
        loader_with_two_generators,
        loader_of_a_batch_sampler,
    ],
)
@pytest.mark.parametrize("inner_steps", [2, 5])
def test_a_shuffled_loader_resumes_bit_for_bit_at_any_round(make, inner_steps):
    """5 batches a pass: rounds of 2 end in the middle of one, rounds of 5 at its end."""

    def run(seed=11, **options):
        return rounds(
            train_batches=make(seed), outer_batches=make(seed + 1), inner_steps=inner_steps, outer_steps=6, **options
        )

    records = run()
    order = [r.value for r in records]
    assert len(set(order)) == 6
    for k in range(5):
        # The new process has a generator of its own, wherever that stands.
        again = run(seed=99, state=through_a_file(records[k].state))
        assert [r.value for r in again] == order[k + 1 :]
        assert identical(again[-1].state, records[-1].state)


@pytest.mark.parametrize("make", [loader, loader_of_a_sampler])
def test_reading_again_leaves_the_default_generator_where_it_is(make):
    """A loss with dropout, and examples with noise: both draw from it. A loader without a generator draws a seed."""

    def noisy(rows):
        return torch.stack(rows) + 0.1 * torch.randn(len(rows), 3, dtype=F64)

    def run(seed, **options):
        read = make(seed)
        read.collate_fn = noisy
        return hft.bilevel(
            SGD, hft.sgd(lr=0.1), "lr", lambda p, x: loss(p, F.dropout(x, 0.3)), loss, start(), read, [HELD_OUT],
            inner_steps=2, outer_steps=6, **options,
        )  # fmt: skip

    records = [(record, torch.get_rng_state()) for record in run(11)]
    for record, rng in records[:-1]:
        torch.set_rng_state(rng)
        again = list(run(99, state=through_a_file(record.state)))
        assert identical(again[-1].state, records[-1][0].state)


def test_a_loader_after_a_list_begins_with_a_warning():
    """Its place in the pass is not in the state."""
    first = rounds(train_batches=list(loader(11)), outer_batches=[HELD_OUT], outer_steps=2)

    def call():
        return list(hft.bilevel(
            SGD, hft.sgd(lr=0.1), "lr", loss, loss, start(), loader(11), [HELD_OUT],
            inner_steps=2, outer_steps=3, state=first[-1].state,
        ))  # fmt: skip

    with pytest.warns(UserWarning, match="train_batches is read from its beginning.*pass the same batches as") as seen:
        call()
    lines = range(call.__code__.co_firstlineno + 1, call.__code__.co_firstlineno + 5)
    assert [w.filename for w in seen] == [__file__]
    assert seen[0].lineno in lines
