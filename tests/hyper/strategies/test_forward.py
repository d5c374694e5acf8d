"""Forward holds no more tangents than a chunk has."""

from __future__ import annotations

import pytest
import torch

import hyperopt_ftp as hft

from ...support.hypergradients import F64, call
from ...support.problems import largest_difference, loss


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_a_chunk_bounds_the_tangents_that_live_at_once(chunk):
    """Of seven scalars; the derivative is the same."""
    sizes = [1]

    def count(g):
        if torch._C._functorch.is_batchedtensor(g):
            sizes.append(torch._C._functorch.get_unwrapped(g).shape[torch._C._functorch.maybe_get_bdim(g)])

    def shifted(p, x, h):
        w = 1 * p["w"]
        w.register_hook(count)
        return loss({"w": w, "b": p["b"] + h["shift"]}, x)

    hparams = {"loss": {"shift": torch.linspace(0, 1, 4, dtype=F64)}}
    over = ("lr", "momentum", "weight_decay", "loss")
    want, got = (call(shifted, s, over, hparams)[1] for s in (hft.Unroll(), hft.Forward(chunk=chunk)))
    assert largest_difference(got, want) <= 1e-12
    assert max(sizes) == min(chunk, 7)
