"""Operations in hft.remat beside plain double backward, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import hyperopt_ftp as hft

from .problems import f64, real


def positive(n: int) -> Tensor:
    x = real(n, n)
    return x @ x.mT + n * torch.eye(n, dtype=f64)


X, Y, W, V = real(3, 4), real(3, 4, seed=1), real(4, 4), real(4)
IMAGE = real(2, 3, 5, 5)
ROWS, PLACES = torch.tensor([0, 2, 1]), torch.tensor([[0, 1, 1, 2], [2, 0, 1, 1], [1, 2, 0, 0]])
CLASSES, MASK = torch.tensor([1, 0, 3]), torch.rand(3, 4, generator=torch.Generator().manual_seed(3)) > 0.5
QUERIES = [real(2, 2, 3, 4, seed=i) for i in range(3)]


def weights_of(module: nn.Module) -> list[Tensor]:
    return [real(*p.shape, seed=i) / 2 for i, p in enumerate(module.parameters())]


def called(module: nn.Module):
    """A module as a function of its parameters and what it gets."""
    names = [name for name, _ in module.named_parameters()]

    def call(x: Tensor, *weights: Tensor):
        return torch.func.functional_call(module, dict(zip(names, weights, strict=True)), (x,))

    return call


LSTM = nn.LSTM(3, 2, batch_first=True, dtype=f64)
ENCODER = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, dtype=f64)
RNN_IN, TOKENS = real(2, 3, 3), real(3, 2, 4)

#: Name, function, arguments. Those of floats are differentiated in. A remat knows no operation: a row is here for what
#: it gives (several tensors, integers, complex ones), or does inside (writes, or no second derivative).
TABLE = [
    ("linear", F.linear, (X, W, V)),
    ("baddbmm", torch.baddbmm, (real(2, 3, 3), real(2, 3, 4), real(2, 4, 3))),
    ("layer_norm", lambda x, w, b: F.layer_norm(x, (4,), w, b), (X, V, real(4, seed=1))),
    ("rms_norm", lambda x, w: F.rms_norm(x, (4,), w), (X, V)),
    ("instance_norm", F.instance_norm, (IMAGE,)),
    ("batch_norm", lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), (IMAGE, real(3), real(3, seed=1))),
    ("batch_norm, evaluated", lambda x: F.batch_norm(x, torch.ones(3, dtype=f64), torch.ones(3, dtype=f64)), (IMAGE,)),
    ("local_response_norm", lambda x: F.local_response_norm(x, 2), (IMAGE,)),
    ("prelu", F.prelu, (IMAGE, real(3))),
    ("masked softmax", lambda x, m: x.masked_fill(m, -1e9).softmax(-1), (X, MASK)),
    ("embedding", lambda w, i: F.embedding(i, w), (X, PLACES)),
    ("embedding_bag", lambda w, i: F.embedding_bag(i, w, mode="mean"), (X, PLACES)),
    ("cross_entropy, smoothed", lambda x, y: F.cross_entropy(x, y, label_smoothing=0.1), (X, CLASSES)),
    ("ctc_loss", lambda x: F.ctc_loss(x.log_softmax(-1), torch.tensor([[1, 2]]), [6], [2]), (real(6, 1, 4),)),
    ("conv2d, grouped", lambda x, w: F.conv2d(x, w, groups=3), (IMAGE, real(3, 1, 3, 3))),
    ("conv_transpose2d", F.conv_transpose2d, (IMAGE, real(3, 2, 3, 3))),
    ("max_pool2d", lambda x: F.max_pool2d(x, 2), (IMAGE,)),
    ("grid_sample", lambda x, g: F.grid_sample(x, g.tanh(), align_corners=False), (IMAGE, real(2, 2, 2, 2))),
    ("attention, causal", lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), QUERIES),
    ("TransformerEncoderLayer", called(ENCODER), (TOKENS, *weights_of(ENCODER))),
    ("LSTM", called(LSTM), (RNN_IN, *weights_of(LSTM))),
    ("scatter_reduce", lambda x, y, i: x.scatter_reduce(0, i, y, "prod"), (X, Y, PLACES)),
    ("index_put", lambda x, y, i: x.index_put((i,), y).square(), (X, Y, ROWS)),
    ("sort", lambda x: x.sort(-1).values.cumsum(-1).square(), (X,)),
    ("cumprod", lambda x: x.cumprod(-1), (X,)),
    ("cdist", torch.cdist, (X, Y)),
    ("eigvalsh", torch.linalg.eigvalsh, (positive(3),)),
    ("qr", lambda x: torch.linalg.qr(x)[1], (real(3, 3),)),
    ("lstsq", lambda a, b: torch.linalg.lstsq(a, b).solution, (real(4, 2), real(4, 1))),
    ("fft", lambda x: torch.view_as_real(torch.fft.rfft(x)).square(), (X,)),
    ("complex", lambda x, y: torch.complex(x, y).exp().abs(), (X, Y)),
    ("a derivative inside", lambda x: torch.autograd.grad(x.exp().sum(), x, create_graph=True)[0] * x, (X,)),
]  # fmt: skip


def flat(found) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else [x for part in found for x in flat(part)]


def derivatives(call, given) -> list[Tensor]:
    """Of first order, and of a product with second derivatives, in all arguments of floats."""
    torch.manual_seed(0)
    args = [x.clone().requires_grad_() if x.is_floating_point() else x for x in given]
    at = [x for x in args if x.requires_grad]
    with sdpa_kernel(SDPBackend.MATH):
        ys = [y for y in flat(call(*args)) if y.requires_grad]
        vs = [real(*y.shape, seed=7).requires_grad_() for y in ys]
        grads = torch.autograd.grad(ys, at, vs, create_graph=True, allow_unused=True)
        grads = [torch.zeros_like(x) if g is None else g for g, x in zip(grads, at, strict=True)]
        rows = [(g, real(*g.shape, seed=9)) for g in grads if g.requires_grad]
        more = torch.autograd.grad([g for g, _ in rows], [*at, *vs], [u for _, u in rows], allow_unused=True)
    return [*ys, *grads, *(torch.zeros_like(x) if g is None else g for g, x in zip(more, [*at, *vs], strict=True))]


@pytest.mark.parametrize(("function", "given"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_an_operation_has_the_derivatives_of_plain_autograd_or_is_refused_by_both(function, given):
    try:
        plain = derivatives(function, given)
    except RuntimeError:
        with pytest.raises(RuntimeError):
            derivatives(lambda *args: hft.remat(function, *args), given)
        return
    found = derivatives(lambda *args: hft.remat(function, *args), given)
    assert len(found) == len(plain)
    for x, y in zip(found, plain, strict=True):
        assert (x - y).abs().max() <= 1e-12 * y.abs().max()
