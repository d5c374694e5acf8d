"""torch.compile(opt.step): no graph break in any execution, equal to the eager step, no recompiles by a schedule."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import hyperopt_ftp as hft

from ..support.executions import FLAGS

CLASSES = {
    "adamw": lambda p, **kw: hft.FTPAdamW(p, weight_decay=0.1, **kw),
    "amsgrad": lambda p, **kw: hft.FTPAdamW(p, amsgrad=True, norm="l2", gradient="exact", **kw),
    "momentum": lambda p, **kw: hft.FTPSGD(p, momentum=0.9, **kw),
}
SHAPES = [(4, 3), (5,), (2, 3, 2, 2)]


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def make(name, flags, lr):
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(s, dtype=torch.float64)) for s in SHAPES]
    named = [(f"p{i}", p) for i, p in enumerate(params)]
    return params, CLASSES[name](named, lr=lr, **flags)


@pytest.mark.parametrize(("name", "execution"), list(zip(CLASSES, reversed(FLAGS), strict=True)))
@pytest.mark.filterwarnings("ignore")  # torch's own, about its internals
def test_a_compiled_step_is_one_graph_and_equals_the_eager_one(name, execution):
    counter = CompileCounterWithBackend("aot_eager")
    results = []
    for compiled in (False, True):
        params, opt = make(name, FLAGS[execution], torch.tensor(0.05, dtype=torch.float64))
        step = torch.compile(opt.step, fullgraph=True, backend=counter) if compiled else opt.step
        torch.manual_seed(1)
        for t in range(6):
            for p in params:
                p.grad = torch.randn_like(p)
            opt.param_groups[0]["lr"].fill_(0.05 / (t + 1))
            step()
        results.append((params, opt.radii()))
        assert opt.execution == execution
    (plain, radii), (fast, fast_radii) = results
    for p, q in zip(plain, fast, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
    assert fast_radii == pytest.approx(radii, rel=1e-10, abs=1e-13)
    assert counter.frame_count <= 2, "the first step makes the state; a schedule must not compile again"


@pytest.mark.filterwarnings("ignore")
def test_a_base_without_state_compiles():
    p = torch.nn.Parameter(torch.ones(3, 4))
    opt = hft.FTPSGD([p], lr=0.1, foreach=False)
    step = torch.compile(opt.step, fullgraph=True, backend="eager")
    for _ in range(3):
        p.grad = torch.ones(3, 4)
        step()
    assert 0 < (1 - p).max() < 0.3


AROUND = {
    "FTP(AdamW)": lambda params, lr: hft.FTP(torch.optim.AdamW(params, lr=lr, betas=(0.9, 0.9)), radius_lr=0.05),
    "L2SP(SGD)": lambda params, lr: hft.L2SP(torch.optim.SGD(params, lr=lr, momentum=0.9), strength=0.3),
}


@pytest.mark.skipif(
    torch.__version__ < (2, 12), reason="torch before 2.12 loses fields of a tuple behind a graph break"
)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", AROUND)
def test_around_a_compiled_wrapper_a_schedule_in_a_tensor_compiles_nothing_again(name):
    """Every step of a torch optimizer breaks a graph that calls it; what comes before and after is compiled. The first
    step makes the state; from the second on there is nothing new."""
    counter = CompileCounterWithBackend("aot_eager")
    results, frames = [], []
    for compiled in (False, True):
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(s, dtype=torch.float64)) for s in SHAPES]
        lr = torch.tensor(0.05, dtype=torch.float64)
        opt = AROUND[name](params, lr)
        schedule = torch.optim.lr_scheduler.ExponentialLR(opt, 0.5)
        step = torch.compile(opt.step, backend=counter) if compiled else opt.step
        for t in range(5):
            for p in params:
                p.grad = torch.randn_like(p)
            step()
            assert lr == 0.05 * 0.5**t
            schedule.step()
            frames.append(counter.frame_count)
        assert opt.param_groups[0]["lr"] is lr
        results.append(params)
    assert 0 < frames[6] == frames[-1]
    # torch's compiled AdamW takes 1 - beta2^t from a float32 step: half of 6e-8 / 0.1 of each move, in its root.
    for p, q in zip(*results, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=2 * 0.05 * 3e-7 if name == "FTP(AdamW)" else 1e-14)
