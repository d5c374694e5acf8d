"""Wrong arguments: an error that says what was given and what is allowed, and nothing changed."""

from __future__ import annotations

import copy
import math

import pytest
import torch

import hyperopt_ftp as hft
from hyperopt_ftp.kernels import ops

from .test_classes import FLAGS


def model():
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))


def weights(net):
    return {n: p.detach().clone() for n, p in net.named_parameters()}


CLASSES = [
    pytest.param(hft.FTPAdamW, id="FTPAdamW"),
    pytest.param(hft.FTPSGD, id="FTPSGD"),
    pytest.param(lambda params, lr=0.1, **options: hft.FTP(torch.optim.SGD(params, lr=lr), **options), id="FTP"),
]
every_class = pytest.mark.parametrize("make", CLASSES)


@every_class
@pytest.mark.parametrize("exclude", ["haed.*", ["2.*", "nothing"], torch.zeros(7)])
def test_an_exclude_that_matches_nothing(make, exclude):
    with pytest.raises(ValueError, match=r"match no parameter; the parameters are \['0.weight'"):
        make(model().named_parameters(), exclude=exclude)


@every_class
def test_patterns_need_names(make):
    with pytest.raises(ValueError, match="need names: pass model.named_parameters"):
        make(model().parameters(), exclude="2.*")
    with pytest.raises(ValueError, match="needs names: pass model.named_parameters"):
        make(model().parameters(), anchor={})


@every_class
def test_an_exclude_of_another_type(make):
    with pytest.raises(TypeError, match="glob patterns on names, tensors, or modules, got int"):
        make(model().named_parameters(), exclude=[3])


@every_class
def test_anchor_entries_that_are_missing_extra_or_misshapen(make):
    net = model()
    good = weights(net)
    with pytest.raises(ValueError, match=r"no entry for the parameter '1.bias'; give one, or exclude"):
        make(net.named_parameters(), anchor={n: w for n, w in good.items() if n != "1.bias"})
    with pytest.raises(ValueError, match=r"entries \['3.weight'\] that are not parameters"):
        make(net.named_parameters(), anchor=good | {"3.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"'0.weight' must be a floating-point tensor of shape \(4, 3\), got \(3, 4\)"):
        make(net.named_parameters(), anchor=good | {"0.weight": torch.zeros(3, 4)})
    with pytest.raises(ValueError, match="got .*int64"):
        make(net.named_parameters(), anchor=good | {"0.weight": torch.zeros(4, 3, dtype=torch.int64)})
    with pytest.raises(ValueError, match="anchor must be None .* got 'none'"):
        make(net.named_parameters(), anchor="none")
    make(net.named_parameters(), anchor=net.state_dict())  # buffers of a module are no mistake


@every_class
@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("radius_lr", -1e-3, r"radius_lr must lie in \[0, inf\), got -0.001"),
        ("radius_lr", math.nan, "radius_lr must lie in"),
        ("kappa", 1.5, r"kappa must lie in \[0, 1\], got 1.5"),
        ("kappa", -0.1, r"kappa must lie in \[0, 1\], got -0.1"),
        ("kappa", math.nan, "kappa must lie in"),
        ("norm", "l1", "norm must be one of 'mars', 'l2', got 'l1'"),
        ("gradient", "fast", "gradient must be one of 'paper', 'exact', got 'fast'"),
    ],
)
def test_numbers_outside_their_domain(make, option, value, allowed):
    with pytest.raises(ValueError, match=allowed):
        make([torch.nn.Parameter(torch.ones(2))], **{option: value})


@pytest.mark.parametrize("lr", [-0.1, math.nan, math.inf])
@pytest.mark.parametrize("make", [hft.FTPAdamW, hft.FTPSGD])
def test_learning_rates_outside_their_domain(make, lr):
    with pytest.raises(ValueError, match=r"lr must lie in \[0, inf\), got"):
        make([torch.nn.Parameter(torch.ones(2))], lr=lr)


@pytest.mark.parametrize("name", ["eps", "weight_decay"])
def test_adamw_numbers(name):
    with pytest.raises(ValueError, match=rf"{name} must lie in \[0, inf\), got -1"):
        hft.FTPAdamW([torch.nn.Parameter(torch.ones(2))], **{name: -1.0})
    with pytest.raises(ValueError, match=r"betas must lie in \[0, 1\), got 1.0"):
        hft.FTPAdamW([torch.nn.Parameter(torch.ones(2))], betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="betas must be a pair"):
        hft.FTPAdamW([torch.nn.Parameter(torch.ones(2))], betas=0.9)
    with pytest.raises(TypeError, match="lr must be a number or a 0-d floating-point tensor, got str"):
        hft.FTPAdamW([torch.nn.Parameter(torch.ones(2))], lr="fast")


def test_sgd_conditions():
    with pytest.raises(ValueError, match="nesterov needs momentum > 0 and dampening = 0, got momentum = 0"):
        hft.FTPSGD([torch.nn.Parameter(torch.ones(2))], nesterov=True)
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, inf\), got -0.5"):
        hft.FTPSGD([torch.nn.Parameter(torch.ones(2))], momentum=-0.5)


@every_class
def test_empty_and_integer_parameters(make):
    with pytest.raises(ValueError, match="empty parameter list"):
        make([])
    with pytest.raises(
        TypeError, match="must be float16, bfloat16, float32 or float64, got torch.int64 for parameter 0"
    ):
        make([torch.ones(2, dtype=torch.int64)])


@every_class
@pytest.mark.parametrize("kind", ["sparse", "complex"])
def test_sparse_and_complex_gradients_change_nothing(make, kind):
    good = torch.nn.Parameter(torch.ones(2, 3))
    bad = torch.nn.Parameter(torch.ones(2, 3, dtype=torch.complex64 if kind == "complex" else torch.float32))
    if kind == "complex":
        with pytest.raises(TypeError, match="float32 or float64, got torch.complex64 for parameter 1"):
            make([good, bad])
        return
    opt = make([("good", good), ("bad", bad)])
    good.grad, bad.grad = torch.ones(2, 3), torch.ones(2, 3).to_sparse()
    before = copy.deepcopy(opt.state_dict())
    with pytest.raises(RuntimeError, match="needs dense gradients, got torch.sparse_coo for parameter 'bad'"):
        opt.step()
    assert opt.state_dict() == before
    assert torch.equal(good.detach(), torch.ones(2, 3))


def test_a_refused_group_leaves_the_optimizer_as_it_was():
    opt = hft.FTPAdamW([torch.nn.Parameter(torch.ones(2))])
    with pytest.raises(ValueError, match="kappa"):
        opt.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "kappa": 2.0})
    with pytest.raises(TypeError, match="constrained must be True or False"):
        opt.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "constrained": "no"})
    assert len(opt.param_groups) == 1
    wrapped = hft.FTP(torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1))
    with pytest.raises(ValueError, match="kappa"):
        wrapped.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "kappa": 2.0})
    assert len(wrapped.base.param_groups) == 1


@pytest.mark.parametrize("make", [hft.FTPAdamW, hft.FTPSGD])
def test_fused_is_refused_where_it_cannot_run(make, monkeypatch):
    with pytest.raises(RuntimeError, match=r"needs all on the CPU, or all on a GPU"):
        make([torch.nn.Parameter(torch.ones(2, device="meta"))], fused=True)
    crossed = torch.nn.Parameter(torch.ones(3, 4).t())
    with pytest.raises(RuntimeError, match=r"shape \(4, 3\) and strides \(1, 4\) does not keep its rows in one piece"):
        make([crossed], fused=True)
    assert make([crossed]).execution == "foreach"
    with pytest.raises(RuntimeError, match="fused and foreach cannot both be True"):
        make([torch.nn.Parameter(torch.ones(2))], fused=True, foreach=True)
    monkeypatch.setattr(ops, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"the package numba is not installed \(pip install numba\)"):
        make([torch.nn.Parameter(torch.ones(2))], fused=True)
    assert make([torch.nn.Parameter(torch.ones(2))]).execution == "foreach"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_lean_needs_float32_weights(dtype):
    with pytest.raises(ValueError, match=f"lean=True .* needs float32 weights, got {dtype}"):
        hft.FTPAdamW([torch.nn.Parameter(torch.ones(2, dtype=dtype))], lean=True)


def test_the_wrapper_refuses_what_it_cannot_wrap():
    p = torch.nn.Parameter(torch.ones(2))
    for base in (torch.optim.LBFGS([p]), hft.FTPSGD([p]), [p]):
        with pytest.raises(TypeError, match="FTP wraps a torch.optim.Optimizer that steps once"):
            hft.FTP(base)


@pytest.mark.parametrize("execution", FLAGS)
@pytest.mark.parametrize("make", [hft.FTPAdamW, hft.FTPSGD])
@pytest.mark.parametrize("kind", ["dtype", "layout", "expanded", "zero-size", "weight", "sliced weight"])
def test_odd_gradients_and_weights_give_the_reference_result(kind, make, execution):
    """Gradients of another dtype or layout, or expanded; no elements; weights that are not contiguous."""
    results = []
    for flags in ({"foreach": False}, FLAGS[execution]):
        torch.manual_seed(0)
        shape = (0, 4) if kind == "zero-size" else (4, 6)
        w = torch.randn(shape, dtype=torch.float32)
        if kind == "weight":
            w = torch.randn(6, 4).t()
            flags = {"foreach": True} if flags.get("fused") else flags  # fused=True refuses it
        if kind == "sliced weight":
            w = torch.randn(4, 9)[:, :6]
            flags = {"foreach": True} if flags.get("fused") else flags
        p = torch.nn.Parameter(w)
        if kind == "dtype":
            p.grad_dtype = torch.float64
        opt = make([p], lr=0.05, radius_lr=0.05, **flags)
        for _ in range(4):
            g = torch.randn(shape) + 0.3
            if kind == "dtype":
                g = g.double()
            if kind == "layout":
                g = g.t().contiguous().t()
            if kind == "expanded":
                g = g[:, :1].expand(4, 6)
            p.grad = g
            opt.step()
        results.append((p.detach(), opt.radii()))
    torch.testing.assert_close(*(r[0] for r in results), rtol=1e-5, atol=1e-6)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-4)


@pytest.mark.parametrize("execution", FLAGS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_spoils_its_layer_and_no_other(value, execution):
    p, q = torch.nn.Parameter(torch.ones(3, 4)), torch.nn.Parameter(torch.ones(3, 4))
    opt = hft.FTPAdamW([p, q], lr=0.1, **FLAGS[execution])
    for t in range(3):
        p.grad, q.grad = torch.ones(3, 4), torch.ones(3, 4)
        if t == 1:
            p.grad[1, 2] = value
        opt.step()
        # It is in h, so in the radius, so in every row.
        assert p.isnan().all() == (t > 0)
        assert math.isnan(opt.radii()[0]) == (t > 0)
    assert not q.isnan().any()


def test_a_gradient_on_another_device_is_refused():
    class Elsewhere(torch.nn.Parameter):
        grad = torch.ones(2, device="meta")

    opt = hft.FTPAdamW([Elsewhere(torch.ones(2))], foreach=True)
    with pytest.raises(RuntimeError, match="the gradient of parameter 0 is on meta, the parameter on cpu"):
        opt.step()
    assert not opt.state
