"""Numbers that are linear in depth, and the layers that are named for them."""

from __future__ import annotations

import pytest
import torch
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


def test_a_number_is_linear_in_the_place_of_its_layer():
    """MAPS: strength (1 - (k - 1) / (L - 1)) for layer k of L."""
    found = hft.by_depth(NAMES, LAYERS, 0.9, 0.0)
    places = dict(zip(NAMES, (1, 2, 2, 3, 3, 4), strict=True))
    assert found == {name: pytest.approx(0.9 * (1 - (k - 1) / 3), abs=1e-15) for name, k in places.items()}
    for first, last in ((0.9, 0.0), (0.03, 0.01), (1e-4, 0.7)):  # 0.03 + (0.01 - 0.03) is not 0.01 in floating point
        found = hft.by_depth(NAMES, LAYERS, first, last)
        groups = hft.depth_groups(network().named_parameters(), ["0", "2", "4"], lr=(first, last))
        assert (found["stem.weight"], found["head.weight"]) == (groups[0]["lr"], groups[-1]["lr"]) == (first, last)


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
