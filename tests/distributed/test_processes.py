"""Two and four processes, and checkpoints between one, four and two of them."""

from __future__ import annotations

import traceback

import pytest
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from . import checks
from .launch import launch

if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("needs torch.distributed with gloo", allow_module_level=True)

#: Four processes first: they load what one has saved, and two load what they save. They take long on two cores.
CHECKS = {
    4: [checks.ddp, checks.fsdp, checks.two_collectives, checks.anchors, checks.hsdp, checks.resume_of_1],
    2: [
        checks.ddp,
        checks.fsdp,
        checks.watched,
        checks.family,
        checks.fsdp_in_float32,
        checks.two_collectives,
        checks.anchors,
        checks.sharded_late,
        checks.other_placements,
        checks.nothing_constrained,
        checks.nan_in_an_anchor,
        checks.other_forms_of_state,
        checks.sixteen_bits,
        checks.mixed_precision,
        checks.overflow,
        checks.resume_of_4,
        checks.another_anchor,
    ],
}
#: In the process of the tests, as the only one: what is sharded is whole.
ALONE = [checks.fsdp_in_float32, checks.anchors, checks.sixteen_bits, checks.nothing_constrained]

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], str]:
    """What went wrong, by number of processes and name of the check; all are run before the first test."""
    folder = tmp_path_factory.mktemp("processes")
    for name, (make, options) in checks.KINDS.items():
        model = checks.net()
        opt = make(model.named_parameters(), **options)
        checks.train(model, opt, range(3), whole=True)
        checks.save(model, opt, checks.saved_by(1, folder, name))
    found = {(n, name): said for n, each in CHECKS.items() for name, said in launch(n, each, folder).items()}
    try:
        checks.resume(folder, 2, 1, range(7, 9))
        found[1, "resume"] = ""
    except (Exception, pytest.fail.Exception, CheckpointException):  # the last two are no Exception
        found[1, "resume"] = traceback.format_exc()
    return found


@pytest.mark.parametrize(
    ("processes", "check"), [(n, check.__name__) for n, each in CHECKS.items() for check in each] + [(1, "resume")]
)
def test_in_every_process(outcome, processes, check):
    if outcome[processes, check]:
        pytest.fail(outcome[processes, check], pytrace=False)  # the whole text: a comparison is cut before the error


@pytest.fixture(scope="module")
def alone():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("check", ALONE, ids=lambda check: check.__name__)
def test_one_process_of_a_group(alone, check, tmp_path):
    check(tmp_path)
