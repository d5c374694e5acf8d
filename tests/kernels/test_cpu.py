"""The fused CPU execution by itself: threads, forks, plain CPUs, layers that are cut, conversions by bits, its ops."""

from __future__ import annotations

import multiprocessing
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch

import hyperopt_ftp as hft
from hyperopt_ftp.kernels import cpu, custom_op, ops

from ..support import processes
from .problems import LR, SGD, AdamW, Case, run, tensors

pytest.importorskip("numba")


def train(seed: int, steps: int = 4, shape: tuple[int, ...] = (300, 700)) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    params = [torch.nn.Parameter(torch.randn(shape, generator=g)), torch.nn.Parameter(torch.randn(40, generator=g))]
    opt = hft.FTPAdamW(params, lr=1e-2, fused=True)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=g)
        opt.step()
    assert opt.execution == "fused_cpu"
    return torch.cat([p.detach().flatten() for p in params])


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("base", [AdamW(LR, 0.9, 0.99, 1e-8, 0.1), SGD(LR, 0.9, 0.1, False)], ids=["adamw", "sgd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_layers_that_are_cut_into_blocks_of_rows(dtype, base, monkeypatch):
    monkeypatch.setattr(cpu, "LARGE", 64)
    monkeypatch.setattr(cpu, "BLOCK", 48)
    case = Case([(30, 12), (5, 3), (70,), (64, 3, 3, 3)], dtype, base=base, free=(1,))
    run(cpu, case)


def test_the_number_of_threads_changes_no_bit(threads, monkeypatch):
    monkeypatch.setattr(cpu, "THREAD", 1)
    monkeypatch.setattr(cpu, "LARGE", 64)
    monkeypatch.setattr(cpu, "BLOCK", 48)
    results = []
    for count in (1, 2, 5):
        threads(count)
        torch.manual_seed(4)
        case = Case([(30, 12), (5, 3), (70,), (9, 40)])
        run(cpu, case)
        results.append([x.clone() for x in tensors(case.layers)])
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*results, strict=True))


def test_two_optimizers_step_in_two_threads(threads):
    threads(2)
    alone = [train(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(train, range(4)))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def _child(queue) -> None:
    # A forked child must not touch torch's own thread pool, which a fork breaks; ours is made anew by each call.
    torch.set_num_threads(1)
    queue.put(train(3, shape=(20, 30)).numpy())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
# Of forks of processes with threads: Python's own, and JAX's where a test before this one has imported it.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:os.fork:RuntimeWarning")
def test_a_forked_child_steps():
    expected = train(3, shape=(20, 30))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_child, args=(queue,))
    child.start()
    patience = processes.Patience([child.pid])
    while child.is_alive() and not patience.lost():
        child.join(1)
    assert child.exitcode == 0
    found = queue.get()
    assert torch.equal(torch.from_numpy(found), expected)


def test_on_a_cpu_without_avx_and_f16c(tmp_path):
    """Numba compiles for the oldest CPU of this machine's kind: the same within rounding."""
    code = (
        "import sys, torch\n"
        "from tests.kernels.problems import Case, run\n"
        "from hyperopt_ftp.kernels import cpu\n"
        "torch.manual_seed(0)\n"
        "run(cpu, Case([(5, 123), (7,), (3, 16)], torch.float16))\n"
    )
    plain = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    for compiled in (["float16"], []):  # a second process finds the code on disk
        done = processes.run([sys.executable, "-W", "ignore", "-c", code], env=os.environ | plain)
        assert done.returncode == 0, done.stderr
        said = [line for line in done.stderr.splitlines() if "compiled the fused CPU step" in line]
        assert [line.partition(" weights")[0].split()[-1] for line in said] == compiled
        assert all(f"once on this machine, kept in {tmp_path}" in line for line in said)


def test_a_compilation_is_said_once(caplog):
    """Where Numba has no place for it. The line for one that it keeps: in the test above."""
    caplog.clear()
    cpu.say_compiled(None, torch.float32, 4.7)
    assert [record.getMessage() for record in caplog.records if record.name == "hyperopt_ftp"] == [
        "compiled the fused CPU step for float32 weights in 5 s, and will in every process: set NUMBA_CACHE_DIR"
    ]
    train(0)
    caplog.clear()
    train(0)  # compiled by now: nothing to say
    assert not caplog.records


def test_without_a_compiler_the_best_that_runs_is_foreach():
    code = (
        "import torch, hyperopt_ftp as hft\n"
        "w = torch.nn.Parameter(torch.ones(2, 2)); w.grad = torch.ones(2, 2)\n"
        "opt = hft.FTPAdamW([w]); opt.step(); print(opt.execution)\n"
    )
    assert hft.FTPAdamW([torch.nn.Parameter(torch.ones(2, 2))]).execution == "fused_cpu"
    done = processes.run([sys.executable, "-W", "error", "-c", code], env=os.environ | {"NUMBA_DISABLE_JIT": "1"})
    assert done.stdout.split() == ["foreach"], done.stderr


def test_half_and_bfloat_numbers_are_converted_as_torch_does():
    """Every 16-bit number to float32 and back, and float32 numbers around all ties."""
    from numba import njit

    from hyperopt_ftp.kernels import cpu_kernels

    @njit
    def load(source, target):
        for i in range(len(source)):
            target[i] = cpu_kernels._wide(source[i])

    @njit
    def store(source, target):
        for i in range(len(source)):
            target[i] = cpu_kernels._narrow(source[i], target)

    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype, storage in ((torch.bfloat16, np.uint16), (torch.float16, np.int16)):
        stored = every.view(dtype)
        wide = np.empty(2**16, np.float32)
        load(every.numpy().view(storage), wide)
        assert torch.equal(torch.from_numpy(wide).view(torch.int32), stored.float().view(torch.int32)) or torch.equal(
            torch.from_numpy(wide).nan_to_num(7.0), stored.float().nan_to_num(7.0)
        )
        exact = stored[~stored.isnan()].float()
        next_ = torch.from_numpy(np.nextafter(exact.numpy(), np.float32(np.inf)))
        half = (exact + torch.roll(exact, 1)) / 2
        for values in (exact, next_, half, torch.from_numpy(np.nextafter(half.numpy(), np.float32(np.inf)))):
            values = values[~values.isnan()].contiguous()
            back = np.empty(len(values), storage)
            store(values.numpy(), back)
            expected = values.to(dtype)
            assert torch.equal(torch.from_numpy(back.view(np.int16)).view(dtype), expected)


def test_state_in_another_layout_or_dtype_is_refused_before_anything_changes():
    case = Case([(2, 3, 2, 2)])
    m = case.layers.moments[0]
    m[0] = m[0].to(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match=r"gradient or state of shape \(2, 3, 2, 2\) and strides \(12, 1, 6, 3\)"):
        cpu.step_(case.layers, case.base, case.ball)
    m[0] = torch.zeros(2, 3, 2, 2, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"state of torch.float32 weights must be torch.float32, got torch.float64"):
        cpu.step_(case.layers, case.base, case.ball)
    assert case.layers.steps[0] == 0


KERNEL = ops.FUSED["fused_cpu"]


def captured(monkeypatch, call):
    """The op and the arguments that a call makes inside a graph."""
    seen = []

    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        patch.setattr(custom_op, "run", lambda *arguments: seen.append((torch.ops.hyperopt_ftp.run.default, arguments)))
        call()
    return seen[0]


@pytest.mark.parametrize(
    "options",
    [{"base": AdamW(LR, 0.9, 0.99, 1e-8, 0.1), "amsgrad": True}, {"base": SGD(torch.tensor(LR), 0.9, 0.1, False)}],
    ids=["adamw", "sgd"],
)
def test_a_step_through_the_op_passes_opcheck_and_is_the_same_to_the_last_bit(options, monkeypatch):
    results = []
    for through in (False, True):
        torch.manual_seed(2)
        case = Case([(5, 12), (7,), (3, 4)], free=(1,), zero=(2,), **options)
        for _ in range(3):
            case.draw()
            step = partial(KERNEL.step_, case.layers, case.base, case.ball, case.amp)
            op, arguments = captured(monkeypatch, step)
            if through:
                op(*arguments)
            else:
                step()
        results.append([x.clone() for x in case.layers.weights + case.layers.radii])
        torch.library.opcheck(op, arguments)  # pyright: ignore[reportPossiblyUnboundVariable]
    assert all(map(torch.equal, *results))


def test_both_halves_pass_opcheck(monkeypatch):
    case = Case([(5, 12), (7,)])
    case.draw()
    torch.library.opcheck(*captured(monkeypatch, lambda: KERNEL.radii_(case.layers, case.ball)))
    packed = KERNEL.radii_(case.layers, case.ball)
    torch.library.opcheck(*captured(monkeypatch, lambda: KERNEL.project_(case.layers, packed, case.ball)))
