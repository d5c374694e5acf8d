"""The backward pass without torch's checks in Python is that of ``torch.autograd.grad``; calls inside compiled code."""

from __future__ import annotations

import pytest
import torch
from torch.overrides import TorchFunctionMode

import hyperopt_ftp as hft
from hyperopt_ftp.hyper.core.torch_private import run_backward


class Counts(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("retain_graph", [False, True])
def test_it_is_torchs_gradient(retain_graph: bool, create_graph: bool):
    torch.manual_seed(0)
    x, unused = torch.randn(3, dtype=torch.float64, requires_grad=True), torch.ones(2, requires_grad=True)
    v = torch.randn(3, dtype=torch.float64, requires_grad=True)

    def graph():
        return [torch.sin(x) * x.sum(), x**3]

    def starts():
        return [v, 2 * v]

    keep, ys = retain_graph or create_graph, graph()
    got = run_backward(ys, [x, unused], starts(), keep, create_graph)
    want = torch.autograd.grad(graph(), [x, unused], starts(), keep, create_graph, allow_unused=True)
    assert (got[1], want[1]) == (None, None)
    assert torch.equal(got[0], want[0])
    assert got[0].requires_grad == create_graph
    if keep:
        assert torch.equal(run_backward(ys, [x], starts(), True, False)[0], want[0])
    else:
        with pytest.raises(RuntimeError, match="a second time"):
            run_backward(ys, [x], starts(), False, False)
    if create_graph:
        second = [torch.autograd.grad(g.square().sum(), [x, v]) for g in (got[0], want[0])]
        assert all(map(torch.equal, *second))


def test_a_function_mode_sees_it():
    x = torch.ones(2, requires_grad=True)
    with Counts() as mode:
        run_backward([(x * x).sum()], [x], [torch.ones(())], False, False)
    assert torch.autograd.grad in mode.seen


def test_without_leaves_it_is_torchs_error():
    """The engine would fill the ``.grad`` of all leaves."""
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(RuntimeError, match="cannot be empty"):
        run_backward([x.sum()], [], [torch.ones(())], False, False)
    assert x.grad is None


def quartic(p, x):
    return ((p - x) ** 4).sum()


GIVEN = (hft.sgd(), quartic)
W, DATA = torch.ones(3, dtype=torch.float64), [torch.tensor(0.5, dtype=torch.float64)] * 2
CALLS = {
    "train": lambda h: hft.train(*GIVEN, W, DATA, hparams=h).params.sum(),
    "steps": lambda h: [*hft.steps(*GIVEN, W, DATA, hparams=h)][-1].params.sum(),
    "hypergradient": lambda h: hft.hypergradient(*GIVEN, torch.sum, W, DATA, "lr", h)[1]["lr"],
}


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo's own, at the break
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_compiled_code_around_a_call_breaks_its_graph_there(call):
    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)

    def value(lr):
        return call({"lr": lr}) + lr

    got, want = torch.compile(value, backend="aot_eager")(lr), value(lr)
    torch.testing.assert_close(got, want, rtol=1e-14, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(x, lr)[0] for x in (got, want)), rtol=1e-14, atol=0)
