"""What is told of checks that fail, and what becomes of their processes."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch.distributed as dist

import hyperopt_ftp as hft

from .hypergradients import batch, held_out, params, shard
from .launch import gathered, launch

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
