"""Every strategy that is exact, for every optimizer and hyperparameter, against central differences; and each other."""

from __future__ import annotations

import warnings

import pytest
import torch

import hyperopt_ftp as hft
from hyperopt_ftp import tree

from ..support.cases import CASES, Case
from ..support.problems import batches, central_differences, entries, loss, start, train

SMOOTH = [case for case in CASES if case.smooth]
every_case = pytest.mark.parametrize("case", SMOOTH, ids=str)
EXACT = {
    "unroll": hft.Unroll(),
    "unroll-every-2nd": hft.Unroll(checkpoint=2),
    "unroll-sqrt-offload": hft.Unroll(checkpoint="sqrt", offload=True),
    "unroll-every-step": hft.Unroll(checkpoint=1),
    "forward": hft.Forward(),
}


VALIDATION = batches(1)[0] + 0.3


def outer(params):
    return loss(params, VALIDATION)


def compute(opt, strategy, steps=5, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # some hypergradients are 0 by the rule
        return hft.hypergradient(opt, loss, outer, start(), batches(steps), strategy=strategy, **options)


@every_case
def test_exact_strategies_equal_central_differences_and_each_other(case: Case):
    opt = case.build()
    results = {name: compute(opt, strategy) for name, strategy in EXACT.items()}
    trained = train(opt, None, start(), batches(5))
    want = torch.stack(central_differences(lambda h: outer(train(opt, h, start(), batches(5))[0]), opt.hparams))
    scale = max(want.abs().max().item(), 1.0)
    for name, (value, grads, end) in results.items():
        got = entries(grads)
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8 * scale, msg=lambda m, name=name: f"{name}: {m}")
        # Against each other only rounding remains.
        torch.testing.assert_close(got, entries(results["unroll"][1]), rtol=1e-10, atol=1e-13 * scale)
        assert value.item() == pytest.approx(outer(trained[0]).item(), rel=1e-12)
        for a, b in zip(tree.leaves(end), tree.leaves(trained), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
            assert not a.requires_grad


@pytest.mark.parametrize("name", EXACT)
def test_layers_paths_and_the_losss_own_hyperparameters(name):
    def own_loss(params, x, h):
        return loss(params, x) + h["l2"] * (params["w"] ** 2).sum() + (h["shift"] * params["b"]).sum()

    f64 = torch.float64
    opt = hft.adamw(lr=0.1, eps=1e-2)
    hparams = opt.hparams | {
        "lr": {"w": torch.tensor(0.1, dtype=f64), "b": torch.tensor(0.03, dtype=f64)},
        "loss": {"l2": torch.tensor(0.2, dtype=f64), "shift": torch.linspace(0, 1, 4, dtype=f64)},
    }
    over = ("lr", "betas.1", "loss")

    def run(values):
        full = hparams | {"lr": values["lr"], "loss": values["loss"], "betas": (hparams["betas"][0], values["betas.1"])}
        return outer(hft.train(opt, own_loss, start(), batches(3), hparams=full).params)

    _, grads, _ = hft.hypergradient(
        opt, own_loss, outer, start(), batches(3), over=over, hparams=hparams, strategy=EXACT[name]
    )
    values = {"lr": hparams["lr"], "betas.1": hparams["betas"][1], "loss": hparams["loss"]}
    want = torch.func.grad(run)(values)
    assert grads.keys() == want.keys()
    for got, right in zip(tree.leaves(grads), tree.leaves(want), strict=True):
        torch.testing.assert_close(got, right, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    ("lr", "over", "what"),
    [(1e200, "lr", "outer loss"), (0.1, "loss.x", "hypergradient of 'loss.x'")],
    ids=["the end", "a root at 0"],
)
def test_what_is_not_finite_is_told(lr, over, what):
    def own_loss(w, x, h):
        return w.square().sum() + h["x"].sqrt() * w.sum()

    w, own = torch.ones(2, dtype=torch.float64), {"x": torch.tensor(0.0, dtype=torch.float64)}
    with pytest.warns(UserWarning, match=f"^the {what} is not finite, so training") as told:
        hft.hypergradient(hft.sgd(lr=lr), own_loss, lambda w: w.square().sum(), w, [0] * 3, over, hparams={"loss": own})
    assert told[0].filename == __file__


def test_a_warning_names_the_line_that_calls():
    def call():
        hft.hypergradient(hft.sgd(), loss, lambda p: torch.tensor(1.0), start(), batches(2), "lr")

    with pytest.warns(UserWarning, match="is exactly 0") as seen:
        call()
    assert [(w.filename, w.lineno) for w in seen] == [(__file__, call.__code__.co_firstlineno + 1)]
