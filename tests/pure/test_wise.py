"""WiSE-FT over whole state_dicts, with one share or learned ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import hyperopt_ftp as hft


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2 * 4, 3)).double()


def pair() -> tuple[dict, dict]:
    """Fine-tuned and pre-trained, with other statistics and counts."""
    model = network()
    start = copy.deepcopy(model.state_dict())
    for p in model.parameters():
        p.data += torch.randn_like(p)
    for _ in range(3):
        model(torch.randn(8, 1, 4, 4, dtype=torch.float64) * 3 + 1)
    return model.state_dict(), start


def test_a_mixture_is_that_of_its_numbers_and_counts_stay():
    tuned, start = pair()
    mixed = hft.wise(tuned, start, strength=0.25)
    for name, w in tuned.items():
        if w.is_floating_point():
            torch.testing.assert_close(mixed[name], 0.75 * w + 0.25 * start[name], rtol=1e-15, atol=1e-15)
        else:
            assert mixed[name] == w == 3
    assert not torch.equal(mixed["1.running_var"], tuned["1.running_var"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_both_ends_are_exact_and_nothing_is_shared(dtype: torch.dtype):
    tuned, start = ({n: w.to(dtype) if w.is_floating_point() else w for n, w in x.items()} for x in pair())
    free, fixed = hft.wise(tuned, start, strength=0.0), hft.wise(tuned, start, strength=1.0)
    for name, w in tuned.items():
        assert torch.equal(free[name], w)
        assert torch.equal(fixed[name], start[name] if w.is_floating_point() else w)
        assert free[name].dtype == fixed[name].dtype == w.dtype
        assert free[name].data_ptr() != w.data_ptr()


def test_a_share_for_each_name_and_a_new_head():
    tuned, start = pair()
    start = {name: w for name, w in start.items() if not name.startswith("3.")}
    mixed = hft.wise(tuned, start, strength={"0.weight": 1.0})
    assert torch.equal(mixed["0.weight"], start["0.weight"])
    for name in tuned.keys() - {"0.weight"}:
        assert torch.equal(mixed[name], tuned[name])


def test_learned_shares_find_the_mixture_that_made_the_targets():
    """Targets of a mixture with a share for each tensor: its loss is 0, and the shares are found again."""
    tuned, start = pair()
    model = network().eval()
    buffers = [name for name, _ in model.named_buffers()]
    names = [name for name, _ in model.named_parameters()]
    true = dict(zip(names, (0.9, 0.1, 0.7, 0.3, 0.2, 0.6), strict=True))
    true |= {"1.running_mean": 0.5, "1.running_var": 0.5}  # the mean of their module's, 0.7 and 0.3
    x = torch.randn(64, 1, 4, 4, dtype=torch.float64)
    y = torch.func.functional_call(model, hft.wise(tuned, start, strength=true), (x,))

    def outer_loss(weights, batch):
        return (torch.func.functional_call(model, weights, (batch,)) - y).square().mean()

    mixed, shares = hft.learned_wise(tuned, start, outer_loss, [x] * 600, statistics=buffers, strength_lr=0.02)
    assert outer_loss(mixed, x) < 1e-4 < 1e-2 < outer_loss(tuned, x)
    assert shares.keys() == true.keys()
    for name, share in true.items():
        assert shares[name] == pytest.approx(share, abs=0.05), name
        torch.testing.assert_close(mixed[name], hft.wise(tuned, start, strength=shares)[name])
    assert mixed["1.num_batches_tracked"] == 3


def test_statistics_follow_their_own_module_and_none_whose_name_begins_alike():
    names = ["bn1.weight", "bn10.weight", "bn1.inner.weight"]  # to the anchor, to the weights, to the weights
    buffers = ["bn1.running_mean", "bn10.running_mean", "bn1.inner.running_mean"]
    w, w0 = ({name: torch.tensor([x]) for name in names + buffers} for x in (1.0, 0.0))

    def outer_loss(p, _):
        return (p["bn1.weight"] - p["bn10.weight"] - p["bn1.inner.weight"]).sum()

    _, shares = hft.learned_wise(w, w0, outer_loss, [0] * 5, statistics=buffers, strength_lr=0.1)
    assert shares["bn1.weight"] > 0.9 > 0.1 > shares["bn10.weight"]
    for name, buffer in zip(names, buffers, strict=True):
        assert shares[buffer] == shares[name]


def test_shares_stay_between_the_two():
    w, w0 = {"w": torch.tensor([3.0])}, {"w": torch.tensor([1.0])}
    for target, share in ((9.0, 0.0), (-9.0, 1.0)):
        _, shares = hft.learned_wise(w, w0, lambda p, x: ((p["w"] - x) ** 2).sum(), [target] * 100, strength_lr=0.1)
        assert shares["w"] == share


def test_entries_that_cannot_be_mixed_stay():
    masked = {
        "mask": torch.tensor([0.0, -torch.inf]),
        "z": torch.ones(1, dtype=torch.complex64),
        "_extra_state": {"a": 1},
    }
    other = {"mask": masked["mask"].clone(), "z": torch.zeros(1, dtype=torch.complex64), "_extra_state": {"a": 2}}
    for mixed in (hft.wise(masked, other), hft.learned_wise(masked, other, lambda p, x: p["mask"][0] * x, [1.0])[0]):
        assert torch.equal(mixed["mask"], masked["mask"])
        assert torch.equal(mixed["z"], masked["z"])
        assert mixed["_extra_state"] == {"a": 1}


def test_no_graph_is_kept_from_batch_to_batch():
    w = {"w": torch.ones(2, requires_grad=True)}
    mixed, shares = hft.learned_wise(w, {"w": torch.zeros(2)}, lambda p, x: p["w"].sum(), [0] * 3, statistics=["freq"])
    assert mixed["w"].grad_fn is None
    assert shares["w"].grad_fn is None
