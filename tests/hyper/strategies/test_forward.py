"""Forward holds no more tangents than a chunk has, ends where the loop ends, and says what vmap cannot take."""

from __future__ import annotations

import pytest
import torch

import hyperopt_ftp as hft

from ...support.hypergradients import DATA, F64, call
from ...support.problems import largest_difference, loss, start


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_a_chunk_bounds_the_tangents_that_live_at_once(chunk):
    """Of seven scalars; the derivative is the same."""
    sizes = [1]

    def count(g):
        if torch._C._functorch.is_batchedtensor(g):
            sizes.append(torch._C._functorch.get_unwrapped(g).shape[torch._C._functorch.maybe_get_bdim(g)])

    def shifted(p, x, h):
        w = 1 * p["w"]
        w.register_hook(count)
        return loss({"w": w, "b": p["b"] + h["shift"]}, x)

    hparams = {"loss": {"shift": torch.linspace(0, 1, 4, dtype=F64)}}
    over = ("lr", "momentum", "weight_decay", "loss")
    want, got = (call(shifted, s, over, hparams)[1] for s in (hft.Unroll(), hft.Forward(chunk=chunk)))
    assert largest_difference(got, want) <= 1e-12
    assert max(sizes) == min(chunk, 7)


def test_over_sparse_tensors_it_names_the_way_out():
    edges = (torch.arange(25).view(5, 5) % 3 == 0).double().to_sparse()

    def graph(p, x):
        return torch.tanh(torch.sparse.mm(edges, x @ p["w"] + p["b"])).square().mean()

    def slopes(strategy):
        return call(graph, strategy, ("lr", "momentum"))[1]

    with pytest.raises(RuntimeError, match=r"vmap cannot take this loss: .*Sparse.*; take hft\.Forward\(chunk=1\)"):
        slopes(hft.Forward())
    torch.testing.assert_close(slopes(hft.Forward(chunk=1)), slopes(hft.Unroll()), rtol=1e-10, atol=0)


def test_an_error_of_memory_keeps_its_class():
    def full(g):
        if torch._C._functorch.is_batchedtensor(g):  # not the gradient, but its products with the tangents
            raise torch.OutOfMemoryError("no memory")

    def hooked(p, x):
        w = 1 * p["w"]
        w.register_hook(full)
        return loss({**p, "w": w}, x)

    with pytest.raises(torch.OutOfMemoryError, match="^no memory$"):
        call(hooked, hft.Forward(), ("lr", "momentum"))


def test_it_ends_where_the_loop_ends_in_16_bits():
    def update(g, s, p, h):
        new = {name: (w - h["lr"] * g[name]).to(w.dtype) for name, w in p.items()}
        return new, s + g["w"].sum().to(s.dtype)

    opt = hft.Optimizer(lambda params, hparams=None: torch.zeros((), dtype=torch.bfloat16), update, {"lr": 0.1})

    def ends(requires_grad):
        lr = torch.tensor(0.1, dtype=F64, requires_grad=requires_grad)
        short = lambda p, x: loss(p, x.bfloat16())  # noqa: E731
        run = hft.train(opt, short, start(torch.bfloat16), DATA, hparams={"lr": lr}, strategy=hft.Forward())
        return [*run.params.values(), run.state]

    for x, y in zip(ends(True), ends(False), strict=True):
        assert x.dtype == torch.bfloat16
        assert torch.equal(x, y)
