"""Noise of a counter-based generator."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.optimizers.noise import normal, threefry
from hyperopt_ftp.testing import same, strategies

from ..support.updates import F64

N = 2**16


def drawn(seed: int = 0, leaf: int = 0, step: int = 0, n: int = N) -> Tensor:
    return normal(torch.zeros(n, dtype=F64), seed, leaf, torch.tensor(step))


def test_threefry_gives_the_known_answers():
    """Those of the authors' file kat_vectors (Random123): numbers, and tensors of several counters."""
    zero, most = (0, 0), (0xFFFFFFFF, 0xFFFFFFFF)
    pi = (0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3)  # key, counter
    assert threefry(zero, zero) == (0x9D1C5EC6, 0x8BD50731)
    assert threefry(most, most) == (0xFD36D048, 0x2D17272C)
    assert threefry(*pi) == (0xBA3E4725, 0xF27D669E)
    x, y = threefry(zero, (torch.tensor(0), torch.tensor([0, 1])))
    assert (x[0], y[0]) == (0x9D1C5EC6, 0x8BD50731)
    assert (x[1].item(), y[1].item()) == threefry(zero, (0, 1))


def test_noise_is_standard_normal():
    """Bounds of 5 standard deviations of each estimate, for n independent numbers."""
    for z in (drawn(), drawn(7, 3, 1000)):
        assert abs(z.mean()) < 5 / math.sqrt(N)
        assert abs((z**2).mean() - 1) < 5 * math.sqrt(2 / N)
        assert abs((z**3).mean()) < 5 * math.sqrt(15 / N)
        assert abs((z**4).mean() - 3) < 5 * math.sqrt(96 / N)
        # Kolmogorov and Smirnov: more than 1.95 / sqrt(n) has probability 0.001.
        expected = torch.special.ndtr(z.sort().values)
        assert (expected - (torch.arange(N) + 0.5) / N).abs().max() < 1.95 / math.sqrt(N) + 0.5 / N


def test_noise_is_independent_between_entries_steps_leaves_and_seeds():
    """A correlation of n independent pairs has the deviation 1 / sqrt(n); that of squares, too."""
    z = drawn()
    pairs = [(z[:-lag], z[lag:]) for lag in (1, 2, 3, 64, N // 2)]
    others = [drawn(step=1), drawn(leaf=1), drawn(seed=1), drawn(1, 1), drawn(leaf=1, step=1), drawn(step=N // 2)]
    pairs += [(z, other) for other in others] + [(drawn(seed=1), drawn(leaf=1))]
    for a, b in pairs:
        bound = 5 / math.sqrt(len(a))
        assert abs((a * b).mean()) < bound
        assert abs(((a**2 - 1) * (b**2 - 1)).mean()) < 2 * bound  # of variance 2 each
    everything = torch.cat([z, *others])
    assert len(everything.unique()) == len(everything)


def test_noise_has_the_papers_variance():
    opt, w = hft.noisy(hft.sgd(lr=1.0), scale=0.3, decay=0.55, seed=5), torch.zeros(N, dtype=F64)
    state = opt.init(w)
    for t in range(3):
        new, state = opt.update(torch.ones(N, dtype=F64), state, w)
        noise = w - new - 1
        # z is divided out, so only rounding of numbers of order 1 is left.
        torch.testing.assert_close(noise, math.sqrt(0.3 / (1 + t) ** 0.55) * drawn(5, 0, t), rtol=1e-13, atol=1e-14)
    assert state.step == 3
    two = dict.fromkeys("ab", w[:8])
    new, _ = opt.update(two, opt.init(two), two)
    assert not torch.equal(new["a"], new["b"])
    no_noise = hft.noisy(hft.sgd(lr=1.0), scale=0.0)
    assert torch.equal(no_noise.update(w + 1, no_noise.init(w), w)[0], w - 1)
    slopes = torch.func.grad(lambda h: no_noise.update(w + 1, no_noise.init(w), w, h)[0].sum())(no_noise.hparams)
    assert all(x.isfinite() for x in tree.leaves(slopes))


@given(drawn=strategies.runs(), opt=strategies.rules(), seed=st.integers(0, 2**31), state=st.integers(0, 99))
def test_noise_needs_no_random_state_and_is_the_same_each_time(drawn: Any, opt: Any, seed: int, state: int):
    noisy = hft.noisy(opt, 0.3, seed=seed)
    first, before = drawn.by(noisy), torch.get_rng_state()
    torch.manual_seed(state)
    assert same(drawn.by(noisy), first)
    torch.set_rng_state(before)
    assert same(drawn.by(hft.noisy(opt, 0.0, seed=seed))[0], drawn.by(opt)[0])


@given(shape=strategies.shapes(), seed=st.integers(0, 2**31), leaf=st.integers(0, 99), step=st.integers(0, 10**6))
def test_noise_of_any_shape_is_the_noise_of_a_vector(shape: Any, seed: int, leaf: int, step: int):
    z = normal(torch.zeros(shape, dtype=F64), seed, leaf, torch.tensor(step))
    assert z.shape == shape
    assert torch.equal(z.flatten(), drawn(seed, leaf, step, z.numel()))


def test_noise_in_float32():
    narrow = normal(torch.zeros(N), 0, 0, torch.tensor(0))
    torch.testing.assert_close(narrow.double(), drawn(), rtol=0, atol=1e-4)  # tails: u in float32 near 1
