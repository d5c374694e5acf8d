"""What needs a GPU: the Triton execution on it, without a host sync, in few launches, compiled; a CUDA graph."""

from __future__ import annotations

import pytest
import torch

import hyperopt_ftp as hft
from hyperopt_ftp.kernels import ops

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")

SHAPES = [(64, 3, 7, 7), (64,), (5, 123), (3, 1023), (1, 197, 768), (768, 3072), (2, 70_000), (70_000,), ()]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def problem(dtype=torch.float32, shapes=SHAPES):
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(s).to(dtype).cuda()) for s in shapes]


def draw(params, seed):
    torch.manual_seed(seed)
    for p in params:
        p.grad = (torch.randn(p.shape) + 0.3).to(p.dtype).cuda()


MAKES = {
    "adamw": lambda p, **kw: hft.FTPAdamW(p, lr=1e-2, weight_decay=0.1, **kw),
    "sgd": lambda p, **kw: hft.FTPSGD(p, lr=1e-2, momentum=0.9, nesterov=True, **kw),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MAKES)
def test_triton_equals_foreach_on_the_gpu(name, dtype):
    """Roundings of W and c, as in tests/kernels; 16-bit weights may differ by their last bit."""
    sides = []
    for flags in ({"fused": True}, {"foreach": True}):
        params = problem(dtype)
        opt = MAKES[name](params, **flags)
        for t in range(4):
            draw(params, t)
            opt.step()
        sides.append((params, opt))
    assert [opt.execution for _, opt in sides] == ["triton", "foreach"]
    slack = 64 * torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    for p, q in zip(sides[0][0], sides[1][0], strict=True):
        close = slack * 4 + (torch.finfo(dtype).eps * 4 if dtype.itemsize == 2 else 0)
        torch.testing.assert_close(p, q, rtol=0, atol=close)
    assert sides[0][1].radii() == pytest.approx(sides[1][1].radii(), rel=1e-3)


def test_triton_is_the_default_where_it_is_trusted():
    """``ops.UNASKED`` has "cuda" from when this file has passed on a device."""
    trusted = "cuda" in ops.UNASKED
    assert hft.FTPAdamW(problem()).execution == ("triton" if trusted else "foreach")


@pytest.fixture
def trusted(monkeypatch):
    """What takes no flag of ours takes Triton, as it will by default."""
    monkeypatch.setattr(ops, "UNASKED", frozenset({"cpu", "cuda"}))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_around_an_optimizer_triton_equals_foreach(dtype, trusted):
    """torch's own step moves the weights of both: the halves before and after it are what differs."""
    sides = []
    for execution in ("triton", "foreach"):
        params = problem(dtype)
        with pytest.MonkeyPatch.context() as patch:
            if execution == "foreach":
                patch.setattr(ops, "UNASKED", frozenset())
            opt = hft.FTP(torch.optim.AdamW(params, lr=1e-2, fused=True))
            for t in range(4):
                draw(params, t)
                opt.step()
        assert opt.execution == execution
        sides.append((params, opt))
    slack = 256 * torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    for p, q in zip(sides[0][0], sides[1][0], strict=True):
        close = slack + (torch.finfo(dtype).eps * 4 if dtype.itemsize == 2 else 0)
        torch.testing.assert_close(p, q, rtol=0, atol=close)
    assert sides[0][1].radii() == pytest.approx(sides[1][1].radii(), rel=1e-3)


@pytest.mark.parametrize("name", MAKES)
def test_a_step_waits_for_nothing(name):
    params = problem()
    opt = MAKES[name](params, fused=True, capturable=True)
    for t in range(2):
        draw(params, t)
        opt.step()
    draw(params, 2)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        opt.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_at_most_ten_launches():
    params = problem()
    opt = MAKES["adamw"](params, fused=True)
    for t in range(3):
        draw(params, t)
        opt.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        opt.step()
        torch.cuda.synchronize()
    kernels = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA and "mem" not in e.name]
    assert 0 < len(kernels) <= 10, [e.name for e in kernels]


def test_a_graph_takes_no_step_of_triton():
    params = problem()
    opt = MAKES["adamw"](params, fused=True, capturable=True)
    draw(params, 0)
    opt.step()
    torch.cuda.synchronize()
    with pytest.raises(RuntimeError, match="foreach=True"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        opt.step()


@pytest.mark.parametrize("name", MAKES)
def test_a_cuda_graph_replays_steps(name):
    eager, graphed = problem(), problem()
    a, b = (MAKES[name](p, foreach=True, capturable=True) for p in (eager, graphed))
    draw(graphed, 0)
    grads = [p.grad for p in graphed]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        b.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        b.step()
    draw(eager, 0)
    a.step()
    for t in range(1, 5):
        draw(eager, t)
        a.step()
        for held, p in zip(grads, eager, strict=True):
            held.copy_(p.grad)
        graph.replay()
    for p, q in zip(eager, graphed, strict=True):
        assert torch.equal(p, q)
    assert a.radii() == b.radii()


def test_a_scaler_skips_on_the_device():
    params = problem()
    opt = MAKES["adamw"](params, fused=True)
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
    for t in range(4):
        draw(params, t)
        for p in params:
            p.grad.mul_(1024.0)
        if t == 2:
            params[0].grad.view(-1)[0] = float("inf")
            before = [p.detach().clone() for p in params]
        scaler.scale(torch.zeros((), device="cuda"))
        scaler.step(opt)
        if t == 2:
            assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
        scaler.update(1024.0)
    assert {opt.state[p]["step"].item() for p in params} == {3.0}


def test_anchors_on_the_cpu_give_the_same_run():
    sides = []
    for device in (None, "cpu"):
        params = problem()
        opt = hft.FTPAdamW(params, lr=1e-2, anchor_device=device, fused=True)
        for t in range(3):
            draw(params, t)
            opt.step()
        sides.append(params)
        assert opt.execution == "triton"
        assert opt.state[params[0]]["anchor"].device.type == (device or "cuda")
    assert all(torch.equal(p, q) for p, q in zip(*sides, strict=True))


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_step_is_one_graph():
    params = problem()
    opt = MAKES["adamw"](params, fused=True)
    step = torch.compile(opt.step, fullgraph=True)
    for t in range(3):
        draw(params, t)
        step()
    assert opt.execution == "triton"
