"""Settings of the process are as they were after a training, whoever else trains meanwhile, and where one fails."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import hyperopt_ftp as hft
from tests.support.descent import DATA, W, line, one

LR = one(0.1)


def by_formula(p, x):
    """Also on devices with kernels of their own, which torch switches by a name without a public one."""
    assert not torch.backends.cuda.flash_sdp_enabled()
    assert not torch._C._get_overrideable_sdp_enabled()
    return line(p, x)


def value(lr, strategy=None, train_loss=line):
    return hft.train(hft.sgd(), train_loss, W, DATA, hparams={"lr": lr}, strategy=strategy).params.sum()


def assert_as_before():
    assert torch.backends.cuda.flash_sdp_enabled()
    assert torch._C._get_overrideable_sdp_enabled()


@pytest.mark.skipif(
    torch.__version__ < (2, 13), reason="torch 2.10 compiles no more after modes ran in two threads at once"
)
def test_threads_have_their_own_results_and_leave_the_settings_of_the_process():
    want = torch.func.grad(value)(LR, hft.Unroll(checkpoint=False))

    def work(strategy):
        for _ in range(5):
            value(lr := LR.clone().requires_grad_(), strategy).backward()
            torch.testing.assert_close(lr.grad, want)
            torch.testing.assert_close(torch.func.grad(value)(LR, strategy), want)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, (hft.Unroll(), hft.Unroll(checkpoint=2), hft.Forward())))
    assert_as_before()
    assert torch._dynamo.eval_frame._stance.stance == "default"


def test_settings_of_the_process_are_left_where_one_of_them_cannot_be_had(monkeypatch):
    import torch._dynamo  # before it nothing is compiled, and there is no stance

    def refused(stance):
        raise RuntimeError("not here")

    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "set_stance", refused)
        with pytest.raises(RuntimeError, match="not here"):
            value(LR.clone().requires_grad_())
    assert_as_before()
    value(LR.clone().requires_grad_(), train_loss=by_formula).backward()
    given = (hft.sgd(), line, lambda p: by_formula(p, DATA[0]), W, DATA, "lr")
    torch.func.grad(lambda lr: hft.hypergradient(*given, hparams={"lr": lr})[0])(LR)
    assert_as_before()


@pytest.mark.parametrize("strategy", [hft.Unroll(), hft.Unroll(checkpoint=1), hft.Forward()], ids=repr)
def test_attention_has_second_derivatives_also_under_transforms(strategy):
    """Its fast kernels have none; the loop by hand takes the formula."""
    w, x = {"q": torch.randn(3, 3, dtype=LR.dtype)}, torch.randn(1, 1, 4, 3, dtype=LR.dtype)

    def attention(p, x):
        return scaled_dot_product_attention(x @ p["q"], x, x).square().sum()

    def trained(lr):
        return hft.train(hft.sgd(), attention, w, [x] * 3, hparams={"lr": lr}, strategy=strategy).params["q"].sum()

    lr = LR.clone().requires_grad_()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        p = w["q"].clone().requires_grad_()
        for _ in range(3):
            p = p - lr * torch.autograd.grad(attention({"q": p}, x), p, create_graph=True)[0]
        (want,) = torch.autograd.grad(p.sum(), lr)
    torch.testing.assert_close(torch.autograd.grad(trained(lr), lr)[0], want, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.func.grad(trained)(LR), want, rtol=1e-12, atol=0)
