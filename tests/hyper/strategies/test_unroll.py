"""Where autograd owns the graph: what only a captured tensor asks for is checked and kept like the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.hyper.guards import verdict
from hyperopt_ftp.hyper.unrolling import budget

from ...support.problems import Cube, loop

F64 = torch.float64
ONES = torch.ones(3, dtype=F64)
SGD = hft.sgd(lr=0.1, momentum=0.5)


def captured() -> Tensor:
    return torch.tensor(0.5, dtype=F64, requires_grad=True)


def slopes(loss: Callable[..., Tensor], c: Tensor, w: Tensor, data: list[Any]) -> tuple[Tensor, Tensor]:
    """d/dc of the end of a training, and of the loop by hand, with the same random numbers."""
    torch.manual_seed(3)
    (got,) = torch.autograd.grad(hft.train(SGD, loss, w, data).params.square().sum(), c)
    torch.manual_seed(3)
    (want,) = torch.autograd.grad(loop(SGD, loss, w, data)[0].square().sum(), c)
    return got, want


REFUSED = {
    "Cube": (lambda p, x, c: (c * p).sum() + Cube.apply(p - x).sum(), "no second derivative .Cube"),
    "a write": (lambda p, x, c: (c * p).sum() + (p.data.mul_(1.5) * p).sum(), "writes in place"),  # torch counts none
}


@pytest.mark.parametrize(("loss", "text"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_elsewhere_is_refused_here(loss: Callable[..., Tensor], text: str):
    c = captured()
    with pytest.raises(RuntimeError, match=text):
        hft.train(SGD, lambda p, x: loss(p, x, c), torch.ones(3, dtype=F64), [0.0] * 4)


def test_attention_has_a_second_derivative():
    c, data = captured(), [*torch.randn(3, 4, 8, dtype=F64)]

    def loss(p, x):
        q = (x * p).view(1, 1, 4, 8)  # in four dimensions a fused kernel would take it
        return c * F.scaled_dot_product_attention(q, q, q).square().sum()

    (got,) = torch.autograd.grad(hft.train(SGD, loss, torch.ones(8, dtype=F64), data).params.square().sum(), c)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        (want,) = torch.autograd.grad(loop(SGD, loss, torch.ones(8, dtype=F64), data)[0].square().sum(), c)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("writes", "text"), [(False, "no argument of train"), (True, "writes in place")])
def test_graphs_above_the_limit_are_refused(writes: bool, text: str, monkeypatch: pytest.MonkeyPatch):
    """Steps that are made again would lose the derivative in what is captured, and write once more."""
    monkeypatch.setattr(budget, "SMALL", 0)
    c, count = captured(), torch.zeros(())

    def loss(p, x):
        if writes:
            count.add_(1)
        return ((1.0 if writes else c) * (p - x) ** 2).sum()

    with pytest.raises((ValueError, RuntimeError), match=rf"{text}.*hft.Unroll\(checkpoint=False\)"):
        hft.train(SGD, loss, torch.ones(3, dtype=F64, requires_grad=True), [0.0] * 4)


def test_random_numbers_are_drawn_as_by_hand():
    c = captured()

    def loss(p, x):
        return (c * (F.dropout(p, 0.5) - x) ** 2).sum()

    got, want = slopes(loss, c, torch.linspace(1, 2, 6, dtype=F64), [0.0, 0.5, 1.0, 1.5])
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("place", ["loss", "update", "module", "nowhere"])
def test_a_loss_beside_what_is_captured_runs_once_in_each_step(place: str, steps: int):
    """Counters, averages and generators of its own go on by one a step, as in a loop by hand."""
    c, net, calls = captured(), nn.Linear(1, 1).double(), []

    def loss(p, x):
        calls.append(x)
        used = {"loss": c, "module": net.weight.sum()}.get(place, 1.0)
        return len(calls) * (used * (p - x) ** 2).sum()

    def update(grads, state, params, hparams):
        return params - 0.1 * (c if place == "update" else 1.0) * grads, state

    opt, start, data = (
        hft.Optimizer(lambda p, h=None: (), update, {}),
        torch.ones(3, dtype=F64),
        [0.1, 0.2, 0.3][:steps],
    )
    run = hft.train(opt, loss, start, data)
    assert calls == data
    calls.clear()
    torch.testing.assert_close(run.params, loop(opt, loss, ONES, data)[0], rtol=1e-12, atol=0)
    assert run.params.requires_grad == (place != "nowhere")
    if place in ("loss", "update"):
        (got,) = torch.autograd.grad(run.params.sum(), c)
        calls.clear()
        (want,) = torch.autograd.grad(loop(opt, loss, ONES, data)[0].sum(), c)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=0)


def test_where_nothing_depends_on_what_is_captured_the_loss_may_do_what_a_loop_may():
    """Write into its batch, or by data; take numbers of the module; detach."""
    net, mean = nn.Linear(3, 1).double(), nn.Linear(3, 1).double()
    params = {name: p.detach() for name, p in net.named_parameters()}

    def loss(p, x):
        mean.weight.data.mul_(0.9)
        x.mul_(0.5)
        norm = sum(w.norm() for w in net.parameters()).item()
        y = torch.func.functional_call(net, p, (x,))
        return (norm > 0) * (y - 0.5 * y.detach()).square().mean()

    for _ in range(2):  # the second call is known
        batch = torch.ones(4, 3, dtype=F64)
        run = hft.train(SGD, loss, params, [batch])
        assert torch.equal(batch, torch.full_like(batch, 0.5))
        want = loop(SGD, loss, params, [torch.ones(4, 3, dtype=F64)])[0]
        torch.testing.assert_close(run.params, want, rtol=1e-12, atol=0, check_dtype=True)


def test_a_number_of_what_is_captured_is_refused_in_an_only_step():
    c = captured()
    with pytest.raises(RuntimeError, match="takes the number"):
        hft.train(SGD, lambda p, x: c * p.sum() ** 2 + c.item() * p.square().sum(), ONES, [0.0])


def test_a_captured_tensor_that_only_a_later_loss_uses_counts():
    c, data = captured(), [(0.1, False), (0.2, False), (0.3, True), (0.4, True)]

    def loss(p, batch):
        x, uses = batch
        return ((p - x) ** 4).sum() * (c if uses else 1.0)

    for _ in range(2):  # the second training is known
        got, want = slopes(loss, c, torch.ones(3, dtype=F64), data)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="train_loss uses a tensor .* no argument of train"):  # a node would lose it
        hft.train(hft.sgd(lr=c), loss, torch.ones(3, dtype=F64), data, strategy=hft.Unroll(checkpoint=1))


@pytest.mark.parametrize("known", [False, True])
def test_a_batch_that_alone_requires_grad_counts(known: bool):
    """The first one does not, and of the loss nothing else does."""

    def loss(p, x):
        return ((p - x) ** 4).sum()

    def end(x):
        return hft.train(hft.sgd(lr=0.1), loss, torch.ones(3, dtype=F64), [0.5 * ONES, x, 2 * ONES]).params

    verdict._known.cache_clear()
    if known:
        end(ONES), end(ONES)
    x = (1.5 * ONES).requires_grad_()
    (got,) = torch.autograd.grad(end(x).sum(), x)
    p = ONES
    for batch in (0.5 * ONES, x, 2 * ONES):
        p = p - 0.4 * (p - batch) ** 3
    (want,) = torch.autograd.grad(p.sum(), x)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)


@pytest.mark.parametrize("holder", ["closure", "first batch", "later batch"])
def test_a_captured_tensor_that_is_an_attribute_of_another_counts(holder: str):
    """Also where a loss is known: what hangs on a tensor may have a derivative where the tensor has none."""
    c, mask, data = captured(), torch.ones(3, dtype=F64), [0.1 * ONES, 0.2 * ONES, 0.3 * ONES]

    def loss(p, x):
        scale = getattr(mask if holder == "closure" else x, "scale", 1.0)
        return ((p - x) ** 4).sum() * scale

    verdict._known.cache_clear()
    for _ in range(2):
        hft.train(SGD, loss, 2 * ONES, data)
    {"closure": mask, "first batch": data[0], "later batch": data[2]}[holder].scale = c
    for _ in range(2):
        got, want = slopes(loss, c, 2 * ONES, data)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=0)


class Noted:
    """Data with a tensor that no walk of trees finds."""

    def __init__(self, x: Tensor, scale: Any) -> None:
        self.x, self.scale = x, scale


class Sequence:
    """Of somebody's own, which is read entry by entry."""

    def __init__(self, entries: list[Any]) -> None:
        self._entries = entries

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, k: int) -> Any:
        return self._entries[k]


@pytest.mark.parametrize("sequence", [list, Sequence])
def test_a_captured_tensor_inside_an_object_counts(sequence: Any):
    c = captured()

    def loss(p, batch):
        return ((p - batch.x) ** 4).sum() * batch.scale

    def slope(*scales: Any) -> Tensor:
        data = sequence([Noted(k * ONES / 10, scale) for k, scale in enumerate(scales)])
        return hft.train(SGD, loss, 2 * ONES, data, strategy=hft.Unroll(checkpoint=False)).params.square().sum()

    def by_hand(*scales: Any) -> Tensor:
        data = [Noted(k * ONES / 10, scale) for k, scale in enumerate(scales)]
        return loop(SGD, loss, 2 * ONES, data)[0].square().sum()

    verdict._known.cache_clear()
    for _ in range(2):
        slope(1.0, 1.0, 1.0)
        (got,), (want,) = (torch.autograd.grad(f(1.0, 1.0, c), c) for f in (slope, by_hand))
        torch.testing.assert_close(got, want, rtol=1e-12, atol=0)


def test_a_training_inside_a_checkpoint():
    def loss(p, x):
        return (p * p * x).sum()

    def end(lr):
        return hft.train(hft.sgd(lr=lr), loss, torch.ones(3, dtype=F64), [1.0] * 3).params.sum()

    for _ in range(2):  # in the second call the loss is not looked at any more
        lr = torch.tensor(0.1, dtype=F64, requires_grad=True)
        (got,) = torch.autograd.grad(checkpoint(end, lr, use_reentrant=False), lr)
        (want,) = torch.autograd.grad(end(lr), lr)
        assert torch.equal(got, want)
        assert got != 0


# -- first order -----------------------------------------------------------------------------------------------------


FIRST = hft.Unroll(first_order=True)
NET = {"w": torch.linspace(-1, 1, 12, dtype=F64).view(3, 4), "b": torch.linspace(0.3, -0.2, 4, dtype=F64)}
DATA = [torch.linspace(-1, 1, 15, dtype=F64).view(5, 3).roll(k) for k in range(4)]


def curved(p, x):
    return ((x @ p["w"] + p["b"]).tanh() ** 2).mean() + (p["w"] ** 4).sum()


@pytest.mark.parametrize("captures", [False, True])
def test_first_order_of_a_loss_that_checkpoints_activations(captures: bool):
    """Its gradient is no function that is differentiated, so nothing is computed again in the backward pass."""
    lr = torch.tensor(0.1, dtype=F64, requires_grad=True)

    def plain(p, x):
        return (torch.tanh(p) - x).square().sum()

    def checkpointed(p, x):
        return (checkpoint(torch.tanh, p, use_reentrant=False) - x).square().sum()

    def slope(loss):
        opt = hft.Optimizer(lambda p, h=None: (), lambda g, s, p, h: (p - (lr if captures else h["lr"]) * g, s),
                            {"lr": torch.tensor(1.0, dtype=F64)})  # fmt: skip
        own = {} if captures else {"lr": lr}
        run = hft.train(opt, loss, ONES, [0.1, 0.2, 0.3], hparams=own, strategy=FIRST)
        return torch.autograd.grad(run.params.square().sum(), lr)[0]

    torch.testing.assert_close(slope(checkpointed), slope(plain), rtol=1e-12, atol=0)


def test_a_loss_that_checkpoints_activations_beside_what_the_update_captures():
    """An error from the first training on, not in the second, which knows the loss, alone."""
    lr = torch.tensor(0.1, dtype=F64, requires_grad=True)
    opt = hft.Optimizer(lambda p, h=None: (), lambda g, s, p, h: (p - lr * g, s), {"lr": 1.0})
    for _ in range(2):
        with pytest.raises(ValueError, match=r"the optimizer uses a tensor .* no argument of train"):
            hft.train(opt, lambda p, x: checkpoint(torch.sin, p * x, use_reentrant=False).sum(), ONES, [0.1, 0.2])


def test_first_order_under_transforms():
    opt = hft.sgd(lr=0.1)

    def end(params, lr, x):
        return curved(hft.train(opt, curved, params, [x, x + 0.1], hparams={"lr": lr}, strategy=FIRST).params, x - 0.2)

    def by_hand(params, lr, x):
        for batch in (x, x + 0.1):
            g = torch.func.grad(curved)({n: w.detach() for n, w in params.items()}, batch.detach())
            params = {n: w - lr * g[n].detach() for n, w in params.items()}
        return curved(params, x - 0.2)

    lrs, xs = torch.tensor([0.1, 0.2], dtype=F64), torch.stack(DATA[:2])
    found, want = (
        torch.func.vmap(torch.func.grad(f, argnums=(0, 1, 2)), (None, 0, 0))(NET, lrs, xs) for f in (end, by_hand)
    )
    for x, y in zip(tree.leaves(found), tree.leaves(want), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-14)
    tangent = torch.func.jvp(lambda lr: end(NET, lr, DATA[0]), (lrs[0],), (torch.ones((), dtype=F64),))[1]
    torch.testing.assert_close(tangent, found[1][0], rtol=1e-12, atol=1e-14)


def test_first_order_makes_no_products_and_leaves_the_batch_alone():
    calls = []

    class Once(torch.autograd.Function):
        """Whose backward shows whether its graph is asked for."""

        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            calls.append(torch.is_grad_enabled())
            return g

    def penalised(p, x):
        return curved({n: Once.apply(w) for n, w in p.items()}, x.requires_grad_())

    lr = torch.tensor(0.1, dtype=F64, requires_grad=True)
    run = hft.train(hft.sgd(lr=lr), penalised, NET, DATA, strategy=FIRST)
    assert calls == [False] * 2 * len(DATA)
    assert not any(x.requires_grad for x in DATA)
    curved(run.params, DATA[0]).backward()
    assert lr.grad
    found = hft.estimate(hft.sgd(lr=0.1), curved, NET, DATA, over="lr", strategy=FIRST)
    assert (found.gradients, found.products) == (len(DATA), 0)


@pytest.mark.parametrize("more", [{"compile": True}, {"checkpoint": 2}, {"offload": True}, {"memory": 10**6}], ids=str)
def test_first_order_refuses_what_it_has_no_use_for(more):
    with pytest.raises(ValueError, match="graphs of updates alone"):
        hft.Unroll(first_order=True, **more)


def test_first_order_of_16_bit_params_is_refused():
    params = {n: w.bfloat16() for n, w in NET.items()}
    with pytest.raises(ValueError, match="float32 or float64"):
        hft.train(hft.sgd(lr=0.1), curved, params, DATA, strategy=FIRST)
