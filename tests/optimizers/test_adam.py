"""Adam where eps is 0."""

from __future__ import annotations

import pytest
import torch

import hyperopt_ftp as hft

F64 = torch.float64


@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=str)
def test_adam_without_eps_is_torchs_and_leaves_a_dead_unit_where_it_is(dtype: torch.dtype):
    """Where torch divides 0 by 0."""
    opt, w = hft.adam(lr=0.1, eps=0.0), torch.ones(5, dtype=dtype)
    p, state = torch.nn.Parameter(w.clone()), opt.init(w)
    peer = torch.optim.Adam([p], lr=0.1, eps=0.0)
    for _ in range(4):
        p.grad = torch.randn(5, dtype=dtype) * torch.tensor([0, 1, 1, 1, 1], dtype=dtype)
        peer.step()
        w, state = opt.update(p.grad, state, w)
    assert (w[0].item(), p[0].isnan().item()) == (1, True)
    close = 32 * torch.finfo(dtype).eps  # a dozen roundings a step
    torch.testing.assert_close(w[1:], p.detach()[1:], rtol=close, atol=close)
