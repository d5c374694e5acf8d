"""The drop-in classes against the pure functions, in every execution, with an assertion on which one ran."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hyperopt_ftp as hft

from ..support import contract
from ..support.compare import equal
from ..support.contract import TORCHS
from ..support.draws import gaps
from ..support.executions import FLAGS, every_execution
from ..support.reference_runs import Run, runs

RUNS = list(runs())


def parameters(weights, dtype=None):
    return {n: torch.nn.Parameter(w.clone().to(dtype or w.dtype)) for n, w in weights.items()}


def native(run: Run, params, execution: str, **options):
    make = hft.FTPAdamW if run.adam else hft.FTPSGD
    return make(params.items(), exclude="head.*", kappa=run.kappa, **FLAGS[execution], **run.kwargs, **options)


def wrapped(run: Run, params, execution: str, **options):
    make = torch.optim.AdamW if run.adam else torch.optim.SGD
    base = make(params.items(), **FLAGS[execution], **run.kwargs)
    return hft.FTP(base, exclude=["head.*"], kappa=run.kappa, **options)


def play(run: Run, params, opt, steps):
    for t in steps:
        for name, p in params.items():
            p.grad = run.gradient(name, t, p)
        opt.step()
        yield t


@pytest.mark.parametrize(
    ("build", "dtype"),
    [(native, torch.float64), (wrapped, torch.float64), (native, torch.float32)],
    ids=["own", "around", "own, float32"],
)
@every_execution
@pytest.mark.parametrize("run", RUNS, ids=lambda run: str(run.index))
def test_weights_and_radii_are_those_of_the_reference_runs(run: Run, execution: str, build, dtype: torch.dtype):
    """In float32 a step rounds W', c, s c and W, each by half a unit of the largest weight; the gradients pull errors
    back. The radius adds the error of its direction, which is that of c relative to a step, times radius_lr.
    """
    params = parameters(run.anchor(), dtype)
    opt = build(run, params, execution)
    unit = torch.finfo(torch.float32).eps / 2
    for t in play(run, params, opt, range(run.about["steps"])):
        weights, radii = run.expected(t)
        small = 4 * unit * max(1.0, max(w.abs().max().item() for w in weights.values())) * (t + 1)
        turned = 1e-2 * (t + 1) * 2 * small / run.kwargs["lr"]
        exact = dtype == torch.float64
        for name, p in params.items():
            assert (p.detach() - weights[name]).abs().max() <= (1e-10 if exact else small + turned)
        for name, radius in radii.items():
            summed = turned + 4 * small * weights[name].numel() ** 0.5
            assert abs(opt.radii()[name] - radius.item()) <= (1e-10 if exact else summed)
        assert opt.radii().keys() == radii.keys()
    assert opt.execution == execution


@pytest.mark.parametrize("execution", ["single", "foreach"])
def test_a_step_without_values(execution):
    """On the meta device, where nobody can look at a radius."""
    p = torch.nn.Parameter(torch.empty(3, 2, device="meta"))
    opt = hft.FTPAdamW([p], **FLAGS[execution])
    p.grad = torch.empty_like(p)
    opt.step()
    assert opt.state[p]["radius"].is_meta


def test_fused_steps_without_values_are_refused():
    p = torch.nn.Parameter(torch.empty(3, 2, device="meta"))
    opt = hft.FTPAdamW([p], fused=True)
    p.grad = torch.empty_like(p)
    with pytest.raises(RuntimeError, match=r"fused=True cannot run: the parameters are on \['meta'\]"):
        opt.step()
    assert not opt.state[p]


def around_sgd(params, **options):
    return hft.FTP(torch.optim.SGD(params, lr=0.1, momentum=0.9), **options)


@pytest.mark.parametrize(
    ("make", "flags"),
    [(around_sgd, {}), (hft.FTPSGD, {}), *((hft.FTPAdamW, FLAGS[name]) for name in ("fused_cpu", "foreach", "single"))],
)
def test_a_sparse_embedding_that_is_excluded_is_trained_as_a_dense_one(make, flags):
    models = []
    for sparse in (True, False):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Embedding(5, 3, sparse=sparse), torch.nn.Linear(3, 2)).double()
        opt = make(model.named_parameters(), exclude="0.*", **flags)
        for row in ([0, 1], [1, 3], [3, 4]):
            opt.zero_grad()
            model(torch.tensor(row)).square().sum().backward()
            assert model[0].weight.grad.is_sparse == sparse
            opt.step()
        models.append(model)
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-15)
    model = torch.nn.Embedding(5, 3, sparse=True)
    opt = make(model.named_parameters(), **flags)
    model(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="must be dense.* sparse=False, exclude it, or give it another optimizer"):
        opt.step()


def test_it_may_be_built_before_the_weights_have_a_place():
    """Where ``to_empty`` keeps the parameters that the optimizer knows."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model = torch.nn.Linear(3, 2, device="meta")
        opt = hft.FTPAdamW(model.named_parameters(), fused=True)
        model.to_empty(device="cpu")
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
    model.load_state_dict(torch.nn.Linear(3, 2).state_dict())
    model(torch.ones(1, 3)).sum().backward()
    opt.step()
    assert opt.execution == "fused_cpu"
    assert opt.radii()["weight"] == pytest.approx(1e-8)


def test_a_checkpoint_of_the_plain_optimizer_starts_a_run():
    """With the weights as they are then for the anchor, which is said; not where the pre-trained ones are given."""
    p = torch.nn.Parameter(torch.ones(2, 3))
    adamw = torch.optim.AdamW([p], lr=0.1, weight_decay=0.0)
    p.grad = torch.ones_like(p)
    adamw.step()
    hft.FTPAdamW([("w", p)], anchor={"w": torch.ones(2, 3)}).load_state_dict(adamw.state_dict())
    opt = hft.FTPAdamW([p], lr=0.5)
    with pytest.warns(UserWarning, match=r"without an anchor, so FTPAdamW .* anchor=pretrained.state_dict\(\)") as said:
        opt.load_state_dict(adamw.state_dict())
    assert said[0].filename == __file__
    adagrad = hft.FTP(torch.optim.Adagrad([p]))  # has a state from the beginning
    adagrad.load_state_dict(adagrad.state_dict())
    anchor = p.detach().clone()
    opt.step()
    assert torch.equal(opt.state[p]["anchor"], anchor)
    assert opt.state[p]["step"] == 2
    assert opt.param_groups[0]["lr"] == 0.1
    assert opt.radii()[0] == pytest.approx(1e-8)


@given(
    name=st.sampled_from(sorted(TORCHS)), absent=gaps(2, 6),
    sizes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=2),
)  # fmt: skip
def test_a_class_that_does_nothing_is_any_optimizer(name, absent, sizes):
    """A strength of zero to the last bit; an infinite radius up to the rounding of W0 + c."""
    make, sides = getattr(torch.optim, name), []
    for wrap in (
        lambda base: base,
        lambda base: hft.L2SP(base, strength=0.0),
        lambda base: hft.MARSSP(base, radius=math.inf),
    ):
        params = contract.parameters(shapes=sizes)
        contract.step(params, wrap(make(params, **TORCHS[name])), range(6), absent)
        sides.append(params)
    assert equal(sides[0], sides[1])
    for p, q in zip(sides[0], sides[2], strict=True):
        assert (p - q).abs().max() <= 6 * 1e-14 * p.abs().max()
