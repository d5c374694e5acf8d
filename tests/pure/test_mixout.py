"""Mixout: the formula, its mean, its derivative, and training through it."""

from __future__ import annotations

import torch

import hyperopt_ftp as hft


def pair() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"linear": (3, 5), "conv": (4, 6, 2, 2), "bias": (7,), "head": (2, 2)}
    w = {name: torch.randn(shape, dtype=torch.float64, generator=generator) for name, shape in shapes.items()}
    return w, {name: x + 1 for name, x in w.items() if name != "head"}


def test_each_input_is_the_anchors_or_further_away():
    w, w0 = pair()
    torch.manual_seed(1)
    found = hft.mixout(w, w0, p=0.6)
    both = set()
    for name in ("linear", "conv"):
        for j in range(w[name].shape[1]):
            kept = not torch.equal(found[name][:, j], w0[name][:, j])
            both.add(kept)
            if kept:
                expected = w0[name][:, j] + (w[name][:, j] - w0[name][:, j]) / 0.4
                torch.testing.assert_close(found[name][:, j], expected, rtol=1e-13, atol=1e-13)
    assert both == {True, False}
    assert found["bias"] is w["bias"]
    assert found["head"] is w["head"]


def test_a_depthwise_convolution_has_an_input_for_each_channel():
    w, w0 = {"depthwise": torch.full((64, 1, 3, 3), 3.0)}, {"depthwise": torch.full((64, 1, 3, 3), 1.0)}
    torch.manual_seed(1)
    channels = hft.mixout(w, w0, p=0.5)["depthwise"].flatten(1)
    assert {tuple(row.unique().tolist()) for row in channels} == {(1.0,), (5.0,)}


def test_the_formula_is_the_papers():
    """``(m W + (1 - m) W0 - p W0) / (1 - p)``, with the same draws."""
    w, w0 = pair()
    torch.manual_seed(2)
    found = hft.mixout(w, w0, p=0.3)["linear"]
    torch.manual_seed(2)
    m = (torch.rand(5) >= 0.3).double()
    expected = (m * w["linear"] + (1 - m) * w0["linear"] - 0.3 * w0["linear"]) / 0.7
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


def test_the_mean_over_draws_is_the_weights():
    w, w0 = pair()
    torch.manual_seed(3)
    draws = torch.stack([hft.mixout(w, w0, p=0.5)["linear"] for _ in range(4000)])
    # Each entry is W0 or W0 + 2 (W - W0), |W - W0| = 1: standard deviation 1. 15 entries in 5 draws: 5 sigma.
    assert (draws.mean(0) - w["linear"]).abs().max() < 5 / 4000**0.5


def test_p_zero_is_the_weights():
    w, w0 = pair()
    for name, x in hft.mixout(w, w0, p=0.0).items():
        torch.testing.assert_close(x, w[name], rtol=1e-15, atol=1e-15)


def test_the_gradient_is_that_of_the_formula():
    w, w0 = pair()
    w = {name: x.requires_grad_() for name, x in w.items()}
    torch.manual_seed(4)
    hft.mixout(w, w0, p=0.75)["linear"].sum().backward()
    torch.manual_seed(4)
    expected = (torch.rand(5) >= 0.75).double() / 0.25
    assert w["linear"].grad is not None
    torch.testing.assert_close(w["linear"].grad, expected.expand(3, 5), rtol=0, atol=0)


def test_a_sweep_over_p_has_the_same_draws_for_all():
    w, w0 = pair()
    shares = torch.tensor([0.2, 0.7], dtype=torch.float64)
    torch.manual_seed(5)
    found = torch.func.vmap(lambda p: hft.mixout(w, w0, p=p)["linear"], randomness="same")(shares)
    for p, x in zip(shares.tolist(), found, strict=True):
        torch.manual_seed(5)
        torch.testing.assert_close(x, hft.mixout(w, w0, p=p)["linear"], rtol=1e-14, atol=1e-14)
