"""Each row of the table of wrong arguments: the type of the error, its exact text, and that nothing has changed."""

from __future__ import annotations

import copy

import pytest
import torch

from ..support.compare import kept, same
from . import bad_inputs
from .bad_inputs import Scene

ROWS = [row for rows in bad_inputs.tables().values() for row in rows]
CASES = [pytest.param(row, who, id=f"{who}: {row.done}") for row in ROWS for who in row.who]


@pytest.mark.parametrize(("row", "who"), CASES)
@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
def test_an_error_says_what_is_wrong_and_leaves_all_as_it_was(row, who):
    scene = Scene(who)
    if row.begin is not None:
        scene.opt = row.begin(scene)
        scene.watched.clear()
        scene.watch(scene.opt)
    weights = kept([(p, p.grad) for p in scene.net.parameters()])
    twin = copy.deepcopy((scene.net, scene.opt))
    with pytest.raises(row.error) as caught:
        row.act(scene)
    assert type(caught.value) is row.error
    if row.torch:
        assert row.text in str(caught.value)
    else:
        assert str(caught.value) == row.text
    assert same(kept([(p, p.grad) for p in scene.net.parameters()]), weights)
    for opt, before in scene.watched:
        assert same(kept(opt), before)
    if scene.opt is not None and row.act not in (bad_inputs.step,):
        for net, opt in (twin, (scene.net, scene.opt)):  # nothing out of sight has changed either
            torch.manual_seed(1)
            for p in net.parameters():
                p.grad = torch.randn_like(p)
            opt.step()
        assert same(kept(list(twin[0].parameters())), kept(list(scene.net.parameters())))


def test_rows_are_told_apart():
    assert len({row.done for row in ROWS}) == len(ROWS)


def test_the_page_is_what_the_rows_say():
    assert bad_inputs.DOCS.read_text() == bad_inputs.document(), "run python -m tests.torch_optim.bad_inputs"
