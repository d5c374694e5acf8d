"""LiNeS over whole state_dicts."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import hyperopt_ftp as hft


@pytest.fixture
def pair() -> tuple[dict, dict]:
    """Fine-tuned and pre-trained, with other statistics and counts."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 2)).double()
    start = copy.deepcopy(model.state_dict())
    for p in model.parameters():
        p.data += torch.randn_like(p)
    model(torch.randn(8, 3, dtype=torch.float64) * 3 + 1)
    return model.state_dict(), start


def test_every_layer_keeps_its_share(pair):
    tuned, start = pair
    found = hft.lines(tuned, start, [["0", "1"], "2", "3"], alpha=0.2, beta=0.6)
    shares = {"0": 0.2, "1": 0.2, "2": 0.5, "3": 0.8}
    for name, w in tuned.items():
        if w.is_floating_point():
            expected = start[name] + shares[name[0]] * (w - start[name])
            torch.testing.assert_close(found[name], expected, rtol=1e-15, atol=1e-15)
        else:
            assert found[name] == w == 1


def test_what_is_in_no_layer_is_scaled_like_the_first_and_a_new_head_stays(pair):
    tuned, start = pair
    without = {name: w for name, w in start.items() if not name.startswith("3.")}
    found = hft.lines(tuned, without, ["0", "2"], alpha=0.25, beta=0.75)
    torch.testing.assert_close(found["1.weight"], start["1.weight"] + 0.25 * (tuned["1.weight"] - start["1.weight"]))
    assert torch.equal(found["2.weight"], tuned["2.weight"])
    assert torch.equal(found["3.weight"], tuned["3.weight"])
    assert found["3.weight"].data_ptr() != tuned["3.weight"].data_ptr()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_both_ends_are_exact(pair, dtype):
    tuned, start = ({n: w.to(dtype) if w.is_floating_point() else w for n, w in x.items()} for x in pair)
    free = hft.lines(tuned, start, ["0", "2"], alpha=1.0, beta=0.0)
    fixed = hft.lines(tuned, start, ["0", "2"], alpha=0.0, beta=0.0)
    for name, w in tuned.items():
        assert torch.equal(free[name], w)
        assert torch.equal(fixed[name], start[name] if w.is_floating_point() else w)
        assert free[name].dtype == w.dtype


def test_one_share_for_all_is_wise(pair):
    tuned, start = pair
    found, expected = hft.lines(tuned, start, ["0", "2"], alpha=0.3, beta=0.0), hft.wise(tuned, start, strength=0.7)
    for name, w in expected.items():
        torch.testing.assert_close(found[name], w, rtol=1e-14, atol=1e-14)


def test_the_derivatives_and_sweeps_are_those_of_the_formula(pair):
    """d W / d alpha of layer k of L is W - W0, d W / d beta is (k - 1) / (L - 1) of it."""
    tuned, start = pair
    numbers = torch.tensor([0.2, 0.6], dtype=torch.float64)

    def mixed(numbers):
        return hft.lines(tuned, start, ["0", "2", "3"], alpha=numbers[0], beta=numbers[1])

    found = torch.func.jacrev(lambda x: mixed(x)["2.weight"])(numbers)
    way = tuned["2.weight"] - start["2.weight"]
    torch.testing.assert_close(found, torch.stack([way, way / 2], -1), rtol=1e-14, atol=1e-14)
    swept = torch.func.vmap(mixed)(torch.stack([numbers, numbers / 2]))
    torch.testing.assert_close(swept["2.weight"][1], mixed(numbers / 2)["2.weight"])


def test_the_result_is_where_the_weights_are(pair):
    """Also of an anchor on another device, at both ends."""
    tuned, start = pair
    elsewhere = {name: w.to("meta") for name, w in tuned.items()}
    for alpha in (0.0, 0.5, 1.0):
        found = hft.lines(elsewhere, start, ["0", "2"], alpha=alpha, beta=0.0)
        assert {w.device.type for w in found.values()} == {"meta"}
