"""Operations in hft.remat beside plain double backward, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import hyperopt_ftp as hft

f64 = torch.float64


def real(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=f64, generator=torch.Generator().manual_seed(seed + sum(shape)))


def positive(n: int) -> Tensor:
    x = real(n, n)
    return x @ x.mT + n * torch.eye(n, dtype=f64)


X, Y, W, V = real(3, 4), real(3, 4, seed=1), real(4, 4), real(4)
IMAGE, SERIES = real(2, 3, 5, 5), real(2, 3, 8)
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


LSTM, GRU = nn.LSTM(3, 2, batch_first=True, dtype=f64), nn.GRU(3, 2, dtype=f64)


class SelfAttention(nn.MultiheadAttention):
    def forward(self, x: Tensor):
        return super().forward(x, x, x)


ATTENTION = SelfAttention(4, 2, dtype=f64)
ENCODER = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, dtype=f64)
RNN_IN, TOKENS = real(2, 3, 3), real(3, 2, 4)

#: Name, function, arguments. Those of floats are differentiated in.
TABLE = [
    ("linear", F.linear, (X, W, V)),
    ("bilinear", F.bilinear, (X, Y, real(2, 4, 4))),
    ("matmul", torch.matmul, (X, W)),
    ("bmm", torch.bmm, (real(2, 3, 4), real(2, 4, 3))),
    ("baddbmm", torch.baddbmm, (real(2, 3, 3), real(2, 3, 4), real(2, 4, 3))),
    ("einsum", lambda x, y: torch.einsum("ij,kj->ik", x, y), (X, Y)),
    ("outer", torch.outer, (V, real(3))),
    ("tensordot", lambda x, y: torch.tensordot(x, y, dims=2), (X, Y)),
    ("layer_norm", lambda x, w, b: F.layer_norm(x, (4,), w, b), (X, V, real(4, seed=1))),
    ("rms_norm", lambda x, w: F.rms_norm(x, (4,), w), (X, V)),
    ("group_norm", lambda x, w, b: F.group_norm(x, 3, w, b), (IMAGE, real(3), real(3, seed=1))),
    ("instance_norm", F.instance_norm, (IMAGE,)),
    ("batch_norm", lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), (IMAGE, real(3), real(3, seed=1))),
    ("batch_norm, evaluated", lambda x: F.batch_norm(x, torch.ones(3, dtype=f64), torch.ones(3, dtype=f64)), (IMAGE,)),
    ("local_response_norm", lambda x: F.local_response_norm(x, 2), (IMAGE,)),
    ("normalize", F.normalize, (X,)),
    ("gelu", F.gelu, (X,)),
    ("gelu, tanh", lambda x: F.gelu(x, approximate="tanh"), (X,)),
    ("silu", F.silu, (X,)),
    ("mish", F.mish, (X,)),
    ("relu", F.relu, (X,)),
    ("leaky_relu", F.leaky_relu, (X,)),
    ("elu", F.elu, (X,)),
    ("celu", F.celu, (X,)),
    ("softplus", F.softplus, (X,)),
    ("tanh", torch.tanh, (X,)),
    ("sigmoid", torch.sigmoid, (X,)),
    ("hardswish", F.hardswish, (X,)),
    ("glu", F.glu, (X,)),
    ("prelu", F.prelu, (IMAGE, real(3))),
    ("softmax", lambda x: x.softmax(-1), (X,)),
    ("log_softmax", lambda x: x.log_softmax(0), (X,)),
    ("logsumexp", lambda x: x.logsumexp(1), (X,)),
    ("masked softmax", lambda x, m: x.masked_fill(m, -1e9).softmax(-1), (X, MASK)),
    ("embedding", lambda w, i: F.embedding(i, w), (X, PLACES)),
    ("embedding_bag", lambda w, i: F.embedding_bag(i, w, mode="mean"), (X, PLACES)),
    ("cross_entropy", F.cross_entropy, (X, CLASSES)),
    ("cross_entropy, smoothed", lambda x, y: F.cross_entropy(x, y, label_smoothing=0.1), (X, CLASSES)),
    ("nll_loss", lambda x, y: F.nll_loss(x, y, weight=torch.ones(4, dtype=f64)), (X, CLASSES)),
    ("binary_cross_entropy_with_logits", F.binary_cross_entropy_with_logits, (X, Y.sigmoid())),
    ("binary_cross_entropy", lambda x, y: F.binary_cross_entropy(x.sigmoid(), y.sigmoid()), (X, Y)),
    ("kl_div", lambda x, y: F.kl_div(x.log_softmax(-1), y.softmax(-1), reduction="batchmean"), (X, Y)),
    ("mse_loss", F.mse_loss, (X, Y)),
    ("smooth_l1_loss", F.smooth_l1_loss, (X, Y)),
    ("huber_loss", F.huber_loss, (X, Y)),
    ("cosine_similarity", F.cosine_similarity, (X, Y)),
    ("ctc_loss", lambda x: F.ctc_loss(x.log_softmax(-1), torch.tensor([[1, 2]]), [6], [2]), (real(6, 1, 4),)),
    ("conv1d", F.conv1d, (SERIES, real(4, 3, 3), V)),
    ("conv2d", lambda x, w: F.conv2d(x, w, stride=2, padding=1), (IMAGE, real(4, 3, 3, 3))),
    ("conv2d, grouped", lambda x, w: F.conv2d(x, w, groups=3), (IMAGE, real(3, 1, 3, 3))),
    ("conv_transpose2d", F.conv_transpose2d, (IMAGE, real(3, 2, 3, 3))),
    ("max_pool2d", lambda x: F.max_pool2d(x, 2), (IMAGE,)),
    ("avg_pool2d", lambda x: F.avg_pool2d(x, 2), (IMAGE,)),
    ("adaptive_avg_pool2d", lambda x: F.adaptive_avg_pool2d(x, 2), (IMAGE,)),
    ("adaptive_max_pool2d", lambda x: F.adaptive_max_pool2d(x, 2), (IMAGE,)),
    ("lp_pool2d", lambda x: F.lp_pool2d(x, 2, 2), (IMAGE.abs(),)),
    ("interpolate", lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False), (IMAGE,)),
    ("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2).tanh(), (real(1, 4, 2, 2),)),
    ("unfold", lambda x: F.unfold(x, 2).square(), (IMAGE,)),
    ("pad", lambda x: F.pad(x, (1, 1), mode="reflect").square(), (SERIES,)),
    ("grid_sample", lambda x, g: F.grid_sample(x, g.tanh(), align_corners=False), (IMAGE, real(2, 2, 2, 2))),
    ("attention", F.scaled_dot_product_attention, QUERIES),
    ("attention, causal", lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), QUERIES),
    ("MultiheadAttention", called(ATTENTION), (TOKENS, *weights_of(ATTENTION))),
    ("TransformerEncoderLayer", called(ENCODER), (TOKENS, *weights_of(ENCODER))),
    ("LSTM", called(LSTM), (RNN_IN, *weights_of(LSTM))),
    ("GRU", called(GRU), (RNN_IN, *weights_of(GRU))),
    ("scatter", lambda x, y, i: torch.scatter_add(x, 0, i, y).square(), (X, Y, PLACES)),
    ("scatter_reduce", lambda x, y, i: x.scatter_reduce(0, i, y, "prod"), (X, Y, PLACES)),
    ("gather", lambda x, i: x.gather(0, i).square(), (X, PLACES)),
    ("index", lambda x, i: x[i].square(), (X, ROWS)),
    ("index_add", lambda x, y, i: x.index_add(0, i, y).square(), (X, Y, ROWS)),
    ("index_put", lambda x, y, i: x.index_put((i,), y).square(), (X, Y, ROWS)),
    ("sort", lambda x: x.sort(-1).values.cumsum(-1).square(), (X,)),
    ("topk", lambda x: x.topk(2).values.square(), (X,)),
    ("max", lambda x: x.max(-1).values.square(), (X,)),
    ("median", lambda x: x.median(-1).values.square(), (X,)),
    ("cumprod", lambda x: x.cumprod(-1), (X,)),
    ("prod", lambda x: x.prod(-1), (X,)),
    ("where", lambda x, y, m: torch.where(m, x, y).square(), (X, Y, MASK)),
    ("var", lambda x: x.var(-1), (X,)),
    ("norm", lambda x: x.norm(dim=-1), (X,)),
    ("cdist", torch.cdist, (X, Y)),
    ("atan2", torch.atan2, (X, Y)),
    ("lerp", torch.lerp, (X, Y, Y.sigmoid())),
    ("solve", torch.linalg.solve, (positive(3), real(3, 2))),
    ("inv", torch.linalg.inv, (positive(3),)),
    ("cholesky", torch.linalg.cholesky, (positive(3),)),
    ("slogdet", lambda x: torch.linalg.slogdet(x)[1], (positive(3),)),
    ("eigvalsh", torch.linalg.eigvalsh, (positive(3),)),
    ("svdvals", torch.linalg.svdvals, (X,)),
    ("qr", lambda x: torch.linalg.qr(x)[1], (real(3, 3),)),
    ("lstsq", lambda a, b: torch.linalg.lstsq(a, b).solution, (real(4, 2), real(4, 1))),
    ("matrix_exp", torch.linalg.matrix_exp, (positive(3) / 9,)),
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
