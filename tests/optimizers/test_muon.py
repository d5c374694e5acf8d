"""Muon maps singular values."""

from __future__ import annotations

import math

import pytest
import torch

import hyperopt_ftp as hft

F64 = torch.float64


@pytest.mark.parametrize("shape", [(3, 4), (5, 2), (1, 3), (3, 3)], ids=str)
@pytest.mark.parametrize("coefficients", [(3.4445, -4.775, 2.0315), (2.0, -1.5, 0.5)], ids=str)
def test_muon_maps_singular_values_and_keeps_their_vectors(shape: tuple[int, ...], coefficients: tuple[float, ...]):
    g = torch.randn(shape, dtype=F64)
    u, s, vh = torch.linalg.svd(g, full_matrices=False)
    s = s / s.square().sum().sqrt()
    a, b, c = coefficients
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    opt = hft.muon(lr=1.0, weight_decay=0.0, ns_coefficients=coefficients, adjust_lr_fn="match_rms_adamw")
    w = torch.zeros(shape, dtype=F64)
    new, _ = opt.update(g, opt.init(w), w)
    want = -0.2 * math.sqrt(max(shape)) * (u * s) @ vh
    # A rounding of 1e-16 grows by at most 3.5 in each of five steps.
    torch.testing.assert_close(new, want, rtol=1e-12, atol=1e-12)


def test_muon_is_not_rounded_by_default():
    w = torch.zeros(3, 4, dtype=F64)
    g = torch.randn(3, 4, dtype=F64)
    full, rounded = (
        opt.update(g, opt.init(w), w)[0] for opt in (hft.muon(lr=1), hft.muon(lr=1, ns_dtype=torch.bfloat16))
    )
    assert 1e-4 < (full - rounded).abs().max() < 1e-1
    assert rounded.dtype == F64
