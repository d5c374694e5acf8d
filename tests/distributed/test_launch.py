"""What is told of checks that fail, and what becomes of their processes."""

from __future__ import annotations

import ctypes
import os
import re
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist

import hyperopt_ftp as hft

from ..support.processes import Patience, start
from .hypergradients import batch, held_out, params, shard
from .launch import ROOT, gathered, launch

if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("needs torch.distributed with gloo", allow_module_level=True)


def passes(folder: Path) -> None:
    everywhere = gathered(dist.get_rank())
    assert everywhere == [0, 1]


def passes_too(folder: Path) -> None:
    passes(folder)


def fails(folder: Path) -> None:
    assert dist.get_rank() != 1, "the second process is wrong"


def raises_nothing(folder: Path) -> None:
    with pytest.raises(ValueError, match="there is a reason"):
        dist.get_rank()


def dies(folder: Path) -> None:
    if dist.get_rank() == 1:
        os._exit(3)


def crashes(folder: Path) -> None:
    if dist.get_rank() == 1:
        ctypes.string_at(0)


def waits(folder: Path) -> None:
    """For what the second process never sends."""
    if dist.get_rank() == 0:
        dist.recv_object_list([None], src=1)


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (fails, "process 1: .*AssertionError: the second process is wrong"),
        (raises_nothing, "process 0: .*DID NOT RAISE.*process 1: .*DID NOT RAISE"),
        (dies, "process 1 did not get to its end\nprocess 1 terminated with exit code 3"),
        (crashes, "process 1 terminated with signal SIGSEGV\nprocess 1 is in\n.*in crashes"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_check_that_fails_is_told_and_hides_no_other(check, text, tmp_path):
    found = launch(2, [passes, check, passes_too], tmp_path)
    assert re.search(text, found[check.__name__], flags=re.DOTALL)
    assert (found["passes"], found["passes_too"]) == ("", "")


def test_a_process_that_waits_in_vain_says_where(tmp_path):
    found = launch(2, [passes, waits], tmp_path, idle=5.0)
    assert found["passes"] == ""
    assert found["waits"].startswith("process 0 did not get to its end\nnobody has computed for 5 s\nprocess 0 is in\n")
    assert re.search("in waits.*process 1 is in\n", found["waits"], flags=re.DOTALL)


def loses_another(folder: Path) -> None:
    mine, loss = shard(batch(0)), hft.data_parallel(held_out)
    loss(params(), mine)
    assert dist.get_rank() == 0, "the second process ends"
    loss(params(), mine)


def test_who_is_left_says_that_another_process_has_ended(tmp_path):
    text = "process 0 of 2 has lost the others of data_parallel, in a value of the loss"
    assert text in launch(2, [loses_another], tmp_path)["loses_another"]


def sleeps(folder: Path) -> None:
    (folder / f"begun-{os.environ.get('RANK') or dist.get_rank()}").write_text(str(os.getpid()))
    time.sleep(600)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux tells a process of its parent's end")
@pytest.mark.parametrize("how", ["launch", "torchrun"])
def test_processes_end_with_the_one_that_launched_them(how, tmp_path):
    code = {
        "launch": f"launch(2, [test_launch.sleeps], Path({str(tmp_path)!r}))",
        "torchrun": f"torchrun('tests.distributed.test_launch', [{str(tmp_path)!r}], 2, Path({str(tmp_path)!r}))",
    }[how]
    program = tmp_path / "program.py"
    program.write_text(
        "from pathlib import Path\n"
        "from tests.distributed import test_launch\n"
        "from tests.distributed.launch import launch, torchrun\n"
        f"if __name__ == '__main__':\n    {code}\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    files = [tmp_path / f"begun-{rank}" for rank in range(2)]
    with start([sys.executable, "-W", "ignore", str(program)], cwd=ROOT, env=environment) as parent:
        patience = Patience([parent.pid])
        while not all(file.exists() and file.read_text() for file in files):
            assert parent.poll() is None
            assert not patience.lost()
            time.sleep(0.1)
        children = [psutil.Process(int(file.read_text())) for file in files]
        parent.kill()
    assert psutil.wait_procs(children, timeout=60)[1] == []


if __name__ == "__main__":
    sleeps(Path(sys.argv[1]))
