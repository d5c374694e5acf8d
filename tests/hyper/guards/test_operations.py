"""What a loss does operation by operation: its writes in place, and the bytes that it makes."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import save_on_cpu
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import hyperopt_ftp as hft
from hyperopt_ftp.hyper.guards.messages import LOSS
from hyperopt_ftp.hyper.guards.operations import watched_operations
from hyperopt_ftp.hyper.unrolling import budget

from ...support.hypergradients import (
    DATA,
    F64,
    HIDING,
    SGD,
    call,
    differences,
    every_exact,
    hidden,
    not_converged,
    outer,
    slope,
)
from ...support.problems import largest_difference, loop, start

WRITES = {
    "batch norm": lambda s, p, y: F.batch_norm(y, s["mean"], s["var"], training=True),
    "foreach": lambda s, p, y: torch._foreach_lerp_([s["mean"]], [y.detach().mean(0)], 0.1),
    "instance norm": lambda s, p, y: F.instance_norm(y.unflatten(1, (2, 2)), s["mean"][:2], s["var"][:2]),
    "an alias": lambda s, p, y: s["mean"].view(2, 2).lerp_(y.detach().mean(0).view(2, 2), 0.1),
    "an item of a view": lambda s, p, y: s["mean"].__setitem__(1, 3.0),
    "data": lambda s, p, y: s["mean"].data.add_(1.0),
    "out=": lambda s, p, y: torch.add(s["mean"], 1.0, out=s["mean"]),
    "from the second step": lambda s, p, y: s["mean"].add_(1.0) if s["calls"] else s["calls"].append(0),
    "NumPy": lambda s, p, y: s["mean"].numpy().__iadd__(1.0),
    "embedding": lambda s, p, y: F.embedding(torch.tensor([0, 2]), p["w"], max_norm=0.5),
}
#: Those that torch does not count, or into params: refused even where autograd owns the graph.
NEVER = ("data", "NumPy", "embedding")
REFUSED = r"writes in place .*eval\(\).*torch.func.replace_all_batch_norm_modules_\(net\)"


def writing(how):
    """A loss that does so, and the tensors that it holds."""
    held = {"mean": torch.zeros(4, dtype=F64), "var": torch.ones(4, dtype=F64), "calls": []}

    def train_loss(p, x):
        y = hidden(p, x)
        WRITES[how](held, p, y)
        return torch.tanh(y + held["mean"]).square().mean()

    return train_loss, held


@not_converged
@pytest.mark.parametrize("how", [how for how in WRITES if how != "from the second step"])
@pytest.mark.parametrize("strategy", [*HIDING.values(), hft.ZeroOrder(2, 1e-3)], ids=[*HIDING, "zero order"])
def test_a_write_is_refused_where_steps_may_be_made_again(strategy, how):
    if how == "NumPy" and isinstance(strategy, hft.ZeroOrder):
        pytest.skip("vmap does not take it")
    (train_loss, held), params = writing(how), start()
    before = copy.deepcopy(held)
    with pytest.raises(RuntimeError, match=REFUSED):
        call(train_loss, strategy, params=params)
    if how == "NumPy":  # seen once it is done
        before["mean"] += 1.0
    assert largest_difference((held["mean"], held["var"], params), (before["mean"], before["var"], start())) == 0


@pytest.mark.parametrize("strategy", [hft.Unroll(checkpoint=1), hft.Unroll(checkpoint="sqrt")], ids=repr)
def test_a_write_that_begins_in_a_later_step_shows_where_the_step_is_made_again(strategy):
    with pytest.raises(RuntimeError, match="the training loss of step . was .* when the step is computed again"):
        call(writing("from the second step")[0], strategy)


@pytest.mark.filterwarnings("ignore:train_loss detaches")  # as the statistics do that are read again
@pytest.mark.parametrize("how", WRITES)
@pytest.mark.parametrize("strategy", [hft.Unroll(), hft.Unroll(checkpoint=False), hft.Unroll(truncate=2)], ids=repr)
def test_a_write_is_done_as_often_as_by_hand_where_autograd_owns_the_graph(strategy, how):
    """The derivative is that of the loop by hand, and so is what was written; what torch does not count is refused."""
    train_loss, held = writing(how)
    if how in NEVER:
        with pytest.raises(RuntimeError, match=REFUSED):
            call(train_loss, strategy)
        return
    other, by_hand = writing(how)
    lr = SGD.hparams["lr"].clone().requires_grad_()
    params, _ = loop(SGD, other, start(), DATA, hparams={**SGD.hparams, "lr": lr}, last=strategy.truncate)
    (want,) = torch.autograd.grad(outer(params), lr)
    got = call(train_loss, strategy)[1]["lr"]
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-15)
    assert largest_difference((held["mean"], held["var"]), (by_hand["mean"], by_hand["var"])) == 0


def test_a_write_is_refused_where_graphs_turn_out_to_be_too_large(monkeypatch):
    monkeypatch.setattr(budget, "SMALL", 0)
    with pytest.raises(RuntimeError, match=r"writes in place .*checkpoint=False"):
        call(writing("batch norm")[0], hft.Unroll())


@every_exact
def test_writes_into_what_the_loss_made_itself(strategy):
    def busy(p, x):
        y = hidden(p, x)
        y += 1.0
        mean = torch.zeros(4, dtype=F64)
        mean.view(2, 2).lerp_(y.mean(0).view(2, 2), 0.1)
        y = F.batch_norm(y, torch.zeros(4, dtype=F64), torch.ones(4, dtype=F64), training=True)
        rows = [torch.empty(4, dtype=F64) for _ in range(2)]
        torch.mul(torch.ones(4, dtype=F64), x.mean(), out=rows[0])
        rows[1][:] = x.mean()
        rows.append(torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=F64).add_(x.mean()))
        return torch.tanh(F.elu(y, inplace=True) + mean + sum(rows)).square().mean()

    assert slope(busy, strategy).item() == pytest.approx(differences(busy), rel=1e-6)


@every_exact
def test_weight_norm_is_refused_whose_second_derivative_is_wrong_in_torch(strategy):
    with pytest.raises(RuntimeError, match="whose second derivative is wrong in torch"):
        call(lambda p, x: (x @ torch._weight_norm(p["w"], p["b"][None], 1)).square().mean(), strategy)


@every_exact
def test_an_embedding_scaled_by_frequency_is_refused_whose_second_derivative_is_wrong_in_torch(strategy):
    def rows(p, x):
        return F.embedding(torch.tensor([0, 1, 1]), p["w"], scale_grad_by_freq=True).tanh().square().mean()

    with pytest.raises(RuntimeError, match="scale_grad_by_freq=False"):
        call(rows, strategy)
    table, ones = torch.zeros(3, 2, requires_grad=True), torch.ones(3, 2, requires_grad=True)
    found = F.embedding(torch.tensor([0, 1, 1]), table, scale_grad_by_freq=True)
    (first,) = torch.autograd.grad(found, table, ones, create_graph=True)
    (second,) = torch.autograd.grad(first[1].sum(), ones)
    assert first[1, 0] == 1  # two times a half
    assert second[1, 0] == 1  # in torch, which should give a half


def test_bytes_are_counted_where_memory_is_used_again():
    """Of a tensor that has gone, the next one may have the place."""
    with watched_operations(LOSS) as operations:
        for _ in range(8):
            torch.ones(1000).view(10, 100).add_(1)
    assert operations.bytes_made == 8 * 4000


# -- activation checkpointing -----------------------------------------------------------------------------------------


class Checkpointed(nn.Sequential):
    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


PARTS = nn.Linear(3, 3).double(), nn.Tanh(), nn.Linear(3, 1).double()
WHOLE, PLAIN = Checkpointed(*PARTS), nn.Sequential(*PARTS)
OTHERS = {name: 1.5 * p.detach() for name, p in PLAIN.named_parameters()}
#: Of params that functional_call gives; where the checkpoint lies.
CHECKPOINTS = {
    "around": lambda p, x: functional_call(WHOLE, p, (x,)).square().sum(),
    "inside": lambda p, x: checkpoint(functional_call, PLAIN, p, (x,), use_reentrant=False).square().sum(),
    "none": lambda p, x: functional_call(PLAIN, p, (x,)).square().sum(),
}


def checkpointing(train_loss, lr):
    return hft.train(hft.sgd(lr=lr), train_loss, OTHERS, [torch.full((2, 3), 1.0 + k, dtype=F64) for k in range(3)])


@pytest.mark.parametrize("first", CHECKPOINTS)
def test_a_module_that_checkpoints_inside_functional_call_is_refused(first):
    """Its backward pass would run with the module's own weights, not with the params; also after other steps."""
    with pytest.raises(RuntimeError, match="checkpoints activations inside a module"):
        checkpointing(lambda p, x: CHECKPOINTS["around" if x.sum() > 6 else first](p, x), lr=0.1)


@pytest.mark.parametrize("around", [torch.no_grad, save_on_cpu])
def test_and_so_it_is_where_values_alone_are_asked_for_or_the_caller_has_hooks(around):
    lr = torch.tensor(0.1, dtype=F64, requires_grad=around is save_on_cpu)
    with around(), pytest.raises(RuntimeError, match="checkpoints activations inside a module"):
        checkpointing(CHECKPOINTS["around"], lr)


def test_a_checkpoint_around_functional_call_is_right():
    found = []
    for name in ("inside", "none"):
        lr = torch.tensor(0.1, dtype=F64, requires_grad=True)
        found += torch.autograd.grad(checkpointing(CHECKPOINTS[name], lr).params["0.weight"].sum(), lr)
    torch.testing.assert_close(*found, rtol=1e-12, atol=0)


def test_a_loss_that_checkpoints_in_later_steps_only_draws_what_it_would_draw():
    """The step where that is found is begun again, also with its random numbers."""

    def slope(late: bool):
        def dropped(p, x):
            q = F.dropout(p * x, 0.5)
            return (checkpoint(torch.tanh, q, use_reentrant=False) if late and x > 0.5 else q.tanh()).sum()

        torch.manual_seed(0)
        runs, lr = [], torch.tensor(0.1, dtype=F64, requires_grad=True)
        for _ in range(2):  # the second one knows the loss
            end = hft.train(hft.sgd(lr=lr), dropped, torch.ones(20, dtype=F64), [0.5, 0.5, 1.0, 2.0]).params
            runs.append(torch.autograd.grad(end.square().sum(), lr)[0])
        return torch.stack(runs)

    torch.testing.assert_close(slope(True), slope(False), rtol=1e-12, atol=0)
