"""The checks of this folder, in one, two and four processes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.distributed as dist

import hyperopt_ftp as hft

from . import checks, hypergradient_faults, hypergradients, sharded_hypergradients
from .launch import Check, launch

if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("needs torch.distributed with gloo", allow_module_level=True)

#: Modules whose checks run together, and their stages in order: some go on with what an earlier stage has saved.
GROUPS = {
    "classes": ([checks], ["1 process", "4 processes", "2 processes", "1 process again"]),
    "hypergradients": (
        [hypergradients, hypergradient_faults, sharded_hypergradients],
        ["2 processes", "4 processes", "1 process"],
    ),
}


def checks_of(group: str, stage: str) -> list[Check]:
    found = (check for module in GROUPS[group][0] for check in vars(module).values())
    return [check for check in found if stage in getattr(check, "stages", ())]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[tuple[str, str], str]]:
    """What went wrong, by stage and name of the check; all of a group are run before its first test."""

    @cache
    def of(group: str) -> dict[tuple[str, str], str]:
        folder, found = tmp_path_factory.mktemp(group), {}
        for stage in GROUPS[group][1]:
            told = launch(int(stage.split()[0]), checks_of(group, stage), folder)
            found |= {(stage, name): said for name, said in told.items()}
        return found

    return of


@pytest.mark.parametrize(
    ("group", "stage", "name"),
    [
        (group, stage, check.__name__)
        for group, (_, stages) in GROUPS.items()
        for stage in stages
        for check in checks_of(group, stage)
    ],
)
def test_in_every_process(outcomes, group, stage, name):
    if said := outcomes(group)[stage, name]:
        pytest.fail(said, pytrace=False)  # the whole text: a comparison is cut before the error


def test_without_a_process_group_it_says_how():
    with pytest.raises(RuntimeError, match=r"needs a process group: call torch.distributed.init_process_group\(\)"):
        hft.data_parallel(hypergradients.held_out)(hypergradients.params(), hypergradients.batch(0))


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        ({"loss": 3}, TypeError, "loss must be a function"),
        ({"loss": lambda params: 0.0}, ValueError, r"loss must take \(params, batch\).*takes 1"),
        ({"loss": lambda params, x, h, z: 0.0}, ValueError, r"loss must take \(params, batch\).*takes 4"),
        ({"loss": torch.nn.Linear(2, 2)}, TypeError, "as of_module makes, got Linear"),
        ({"loss": hft.data_parallel(hypergradients.loss)}, TypeError, "data-parallel already"),
        ({"loss": hypergradients.loss, "reduction": "avg"}, ValueError, "must be one of 'mean', 'sum', got 'avg'"),
        ({"loss": hypergradients.loss, "size": 12}, TypeError, "size must be a function of the batch, got 12"),
        ({"loss": hypergradients.loss, "redution": "sum"}, TypeError, "did you mean 'reduction'"),
    ],
)
def test_wrong_arguments(arguments, kind, text):
    with pytest.raises(kind, match=text):
        hft.data_parallel(**arguments)
