"""Numbers that are linear in depth, and the layers that are named for them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hyperopt_ftp as hft

NAMES = [
    "stem.weight",
    "blocks.0.a.weight",
    "blocks.0.b.bias",
    "blocks.1.a.weight",
    "blocks.10.a.weight",
    "head.weight",
]
LAYERS = ["stem", "blocks.0", ["blocks.1", "blocks.10"], "head"]


numbers = st.floats(1e-6, 1e3)


@given(count=st.integers(2, 12), first=numbers, last=numbers)
def test_a_number_is_linear_in_the_place_of_its_layer(count: int, first: float, last: float):
    """MAPS: strength (1 - (k - 1) / (L - 1)) for layer k of L. 0.03 + (0.01 - 0.03) is not 0.01, but both ends are."""
    names = [f"layers.{i}.{kind}" for i in range(count) for kind in ("weight", "bias")]
    found = hft.by_depth(names, [f"layers.{i}" for i in range(count)], first, last)
    assert (found[names[0]], found[names[-1]]) == (first, last)
    for i, name in enumerate(names):
        want = first + (last - first) * (i // 2) / (count - 1)
        # Four roundings of the larger end.
        assert found[name] == pytest.approx(want, rel=0, abs=5e-16 * max(first, last))


def test_layers_are_several_modules_or_one_and_groups_have_their_ends():
    places = dict(zip(NAMES, (1, 2, 2, 3, 3, 4), strict=True))
    found = hft.by_depth(NAMES, LAYERS, 0.9, 0.0)
    assert found == {name: pytest.approx(0.9 * (1 - (k - 1) / 3), abs=1e-15) for name, k in places.items()}
    groups = hft.depth_groups(network().named_parameters(), ["0", "2", "4"], lr=(0.03, 0.01))
    assert (groups[0]["lr"], groups[-1]["lr"]) == (0.03, 0.01)


def test_what_is_in_no_layer_is_absent_and_a_name_is_no_prefix():
    assert list(hft.by_depth(NAMES, ["blocks.0", "blocks.1"], 0.0, 1.0)) == [NAMES[1], NAMES[2], NAMES[3]]
    assert hft.by_depth(NAMES, ["*.a.weight", "*.bias"], 0.0, 1.0) == {
        **dict.fromkeys([NAMES[1], NAMES[3], NAMES[4]], 0.0),
        NAMES[2]: 1.0,
    }


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def trained(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        x = torch.randn(8, 3, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_groups_are_the_same_as_the_numbers_by_name():
    """L2-SP with a strength for each layer: the class with groups, and one group for each parameter by hand."""
    found = []
    for by_hand in (False, True):
        model = network()
        groups = hft.depth_groups(model.named_parameters(), ["0", "2", "4"], strength=(2.0, 0.5), lr=(0.01, 0.03))
        if by_hand:
            strengths = hft.by_depth(dict(model.named_parameters()), ["0", "2", "4"], 2.0, 0.5)
            lrs = {"0": 0.01, "2": 0.02, "4": 0.03}
            groups = [
                {"params": [(name, p)], "strength": strengths[name], "lr": lrs[name[0]]}
                for name, p in model.named_parameters()
            ]
        found.append(trained(hft.L2SP(torch.optim.SGD(groups, lr=1.0), strength=9.0), model))
    for name, w in found[0].items():
        torch.testing.assert_close(w, found[1][name], rtol=1e-14, atol=1e-14)
    plain = network()
    other = trained(hft.L2SP(torch.optim.SGD(plain.named_parameters(), lr=0.01), strength=2.0), plain)
    assert not torch.allclose(other["4.weight"], found[0]["4.weight"], rtol=1e-3)


def test_the_rest_is_a_group_of_its_own():
    model = network()
    groups = hft.depth_groups(model.named_parameters(), ["0", "2"], {"constrained": False}, radius=(0.0, 0.2))
    opt = hft.MARSSP(torch.optim.SGD(groups, lr=0.1), radius=1.0)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    end = trained(opt, model)
    assert torch.equal(end["0.weight"], start["0.weight"])
    assert (end["2.weight"] - start["2.weight"]).abs().sum(1).max() <= 0.2 + 1e-12
    assert (end["4.weight"] - start["4.weight"]).abs().sum(1).max() > 0.2


def test_a_pure_optimizer_takes_the_numbers_as_an_hparam():
    model = network()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    strengths = hft.by_depth(start, ["0", "2", "4"], 2.0, 0.5)
    pure = hft.l2sp(hft.sgd(lr=0.01), start, strength=strengths)
    grads = {name: torch.ones_like(w) for name, w in start.items()}
    moved = {name: w + 0.1 for name, w in start.items()}
    new, _ = pure.update(grads, pure.init(start), moved)
    for name, w in moved.items():
        torch.testing.assert_close(new[name], w - 0.01 * (1 + strengths[name] * 0.1), rtol=1e-12, atol=1e-12)
