"""What each method of the comparisons stands for: its optimizer, options, and which parameters it moves and holds."""

from typing import Any

import pytest
import torch

import hyperopt_ftp as hft
from experiments.classification.task import Config
from experiments.common.comparison import Comparison
from experiments.common.methods import METHODS, adamw, keep_mean, kept_mean
from experiments.common.task import Network
from experiments.common.trainer import Trainer
from hyperopt_ftp import L2SP, MARSSP, SPD, CautiousDecay, DiGraP, FTPAdamW

from .small_task import Config as PointsConfig
from .small_task import Points


class Small(Network):
    head = "fc.*"

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = torch.nn.Linear(3, 2), torch.nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("linear", {"weight_decay": 0.02}),
        ("adamw", {"weight_decay": 0.02}),
        ("adamw_decay", {"weight_decay": 0.1}),
        ("ftp", {"weight_decay": 0.02, "kappa": 1.0, "gradient": "paper", "radius_lr": 0.01}),
        ("ftp_exact", {"weight_decay": 0.02, "kappa": 1.0, "gradient": "exact", "radius_lr": 0.01}),
        ("ftp_start", {"weight_decay": 0.02, "kappa": 1.0, "gradient": "paper", "radius_start": 10.0}),
        ("ftp_kappa0", {"weight_decay": 0.02, "kappa": 0.0, "gradient": "paper", "radius_lr": 0.01}),
        ("ftp_exact_kappa0", {"weight_decay": 0.02, "kappa": 0.0, "gradient": "exact", "radius_lr": 0.01}),
    ],
)
@pytest.mark.parametrize("anchor", ["styles", "imagenet"])
def test_what_a_method_stands_for(method, expected, anchor):
    config, model = Config(weight_decay=0.02, anchor=anchor), Small()
    optimizer = METHODS[method].optimizer(model, config, 0.125)
    assert type(optimizer) is (FTPAdamW if method.startswith("ftp") else torch.optim.AdamW)
    for group in optimizer.param_groups:
        assert {"lr": 0.125, **expected}.items() <= group.items()
    moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in moved}
    head = {"fc.weight", "fc.bias"}
    assert names == (head if method == "linear" else head | {"body.weight", "body.bias"})
    assert {name for name, p in model.named_parameters() if p.requires_grad} == names
    if method.startswith("ftp"):
        model.fc(model.body(torch.ones(1, 3))).sum().backward()
        optimizer.step()
        assert set(optimizer.radii()) == names - (head if anchor == "imagenet" else set())


@pytest.mark.parametrize(
    ("method", "kind", "option", "strengths"),
    [
        ("l2sp", L2SP, "strength", (0.1, 1.0)),
        ("l2sp_decoupled", L2SP, "strength", (10.0, 50.0)),
        ("cautious", CautiousDecay, "strength", (10.0, 50.0)),
        ("spd", SPD, "strength", (1.0, 0.3)),
        ("digrap", DiGraP, "omega_lr", (0.01, 0.1)),
        ("mars_sp", MARSSP, "radius", (0.1, 0.5)),
    ],
)
def test_a_strength_reaches_the_optimizer_and_a_new_head_is_free(method, kind, option, strengths):
    assert METHODS[method].strengths == strengths
    for given, used in ((None, strengths[0]), (strengths[1], strengths[1])):
        config, model = Config(weight_decay=0.02, anchor="imagenet"), Small()
        optimizer = METHODS[method].make(given)(model, config, 0.125)
        assert type(optimizer) is kind
        (group,) = optimizer.param_groups
        assert (group[option], group["lr"], group["weight_decay"]) == (used, 0.125, 0.02)
        assert group.get("decoupled", False) is (method == "l2sp_decoupled")
        assert group["constrained"] == [True, True, False, False]


def test_the_learned_learning_rate_is_that_of_a_tower():
    model = Small().double()
    optimizer = METHODS["hypergradient"].make(1e-3)(model, Config(weight_decay=0.02), 0.01)
    params = {name: p.detach().clone() for name, p in model.named_parameters()}
    tower = hft.hyper(hft.adamw(lr=0.01, weight_decay=0.02), by=hft.sgd(lr=1e-3), over="lr")
    state = tower.init(params)
    for t in range(4):
        drawn = torch.Generator().manual_seed(t)
        grads = {name: torch.randn(p.shape, generator=drawn, dtype=p.dtype) for name, p in params.items()}
        for name, p in model.named_parameters():
            p.grad = grads[name].clone()
        optimizer.step()
        params, state = tower.update(grads, state, params)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(state.tuned["lr"].item(), abs=1e-12) != 0.01
    torch.testing.assert_close(dict(model.named_parameters()), params, rtol=0, atol=1e-12)


class Deep(Small):
    """Three layers before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
        self.layers = ["first", "second", "body"]


def stepped(model, optimizer, first=0, steps=3):
    """A number of steps, each of a gradient of its own."""
    for t in range(first, first + steps):
        drawn = torch.Generator().manual_seed(t)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=drawn).to(parameter)
        optimizer.step()
        yield {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def begun(kind, make):
    """A model, the same each time, and its optimizer."""
    torch.manual_seed(0)
    model = kind()
    return model, make(model)


def test_layer_wise_learning_rates_fall_to_a_tenth_at_the_first_layer():
    optimizer = METHODS["adamw_layers"].make(None)(Deep(), Config(weight_decay=0.02), 0.5)
    found = {name: group["lr"] for group in optimizer.param_groups for name in group["param_names"]}
    layers = {"first": 0.05, "second": 0.5 * 0.1**0.5, "body": 0.5, "fc": 0.5}
    expected = {f"{layer}.{kind}": lr for layer, lr in layers.items() for kind in ("weight", "bias")}
    assert found == pytest.approx(expected)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.02}


@pytest.mark.parametrize(("method", "shares"), [("ema", (0.81, 0.09, 0.1)), ("ldog_mean", (1 / 55, 9 / 55, 45 / 55))])
def test_the_kept_mean_is_as_its_method_weighs_the_steps(method, shares):
    """LDoG's: the second step moves it by 9/10 of the way, the third by 9/11."""
    model, optimizer = begun(Small, lambda model: adamw(model, Config(), 0.1))
    assert METHODS[method].mean is not None
    keep_mean(optimizer, METHODS[method].mean)
    steps = list(stepped(model, optimizer))
    for name, mean in kept_mean(model, optimizer).items():
        expected = sum(share * step[name] for share, step in zip(shares, steps, strict=True))
        torch.testing.assert_close(mean, expected)


@pytest.mark.parametrize("method", ["schedule_free", "ftp_schedule_free"])
def test_the_weights_of_a_schedule_free_training_are_those_to_deploy(method, quiet, tmp_path):
    """The mean over the steps, not the points between it and the last one at which gradients are taken."""
    task = Points()
    comparison = Comparison(Trainer(task, quiet), PointsConfig(epochs=2), task.new_model().state_dict(), tmp_path)
    fitted = comparison.fit(method, 0, 0.01, "once")
    optimizer: Any = fitted.training.optimizer
    deployed = {name: value.clone() for name, value in fitted.model.named_parameters()}
    optimizer.train()
    for name, value in fitted.model.named_parameters():  # y = (1 - beta) z + beta x
        z = optimizer.state[value]["z"]
        torch.testing.assert_close(value, torch.lerp(z, deployed[name], 0.9))
        assert not torch.equal(value, deployed[name])


class Attention(Small):
    """A layer that LoRA adapts, and one that it leaves alone."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)


def test_lora_moves_products_of_two_factors_that_are_zero_at_first_and_the_head():
    torch.manual_seed(0)
    model = Attention()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = METHODS["lora"].make(None)(model, Config(weight_decay=0.02), 0.1)
    assert torch.equal(model.query.weight, before["query.weight"])
    (group,) = optimizer.param_groups
    adapter = model.query.parametrizations.weight[0]
    moved = {"fc.weight", "fc.bias", *(f"query.parametrizations.weight.0.{factor}" for factor in "ab")}
    assert {*group["param_names"]} == moved == {name for name, p in model.named_parameters() if p.requires_grad}
    assert (adapter.a.shape, adapter.b.shape, group["lr"]) == ((8, 3), (3, 8), 0.1)
    model.query(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    torch.testing.assert_close(model.query.weight, before["query.weight"] + 2 * adapter.b @ adapter.a)
    assert not torch.equal(model.query.weight, before["query.weight"])
    assert torch.equal(model.key.weight, before["key.weight"])


@pytest.mark.parametrize("anchor", ["styles", "imagenet"])
def test_maps_is_spd_whose_strength_falls_to_zero_at_the_last_layer(anchor):
    for given, first in ((None, 1.0), (0.3, 0.3)):
        config, model = Config(weight_decay=0.02, anchor=anchor), Deep()
        optimizer = METHODS["maps"].make(given)(model, config, 0.125)
        assert type(optimizer) is SPD
        found = {}
        for group in optimizer.param_groups:
            assert (group["lr"], group["weight_decay"]) == (0.125, 0.02)
            for name, held in zip(group["param_names"], group["constrained"], strict=True):
                found[name.partition(".")[0]] = group["strength"] if held else None
        head = 0.0 if anchor == "styles" else None
        assert found == {"first": first, "second": first / 2, "body": 0.0, "fc": head}


def test_a_faster_head_has_ten_times_the_rate():
    model = Deep()
    opt = METHODS["adamw_head"].make(None)(model, Config(weight_decay=0.0), 0.5)
    rates = {name: group["lr"] for group in opt.param_groups for name in group["param_names"]}
    assert rates == {name: 5.0 if name.startswith("fc.") else 0.5 for name, _ in model.named_parameters()}


def test_what_is_made_of_ends_of_trainings():
    model = Deep()
    anchor = {name: value.clone() for name, value in model.state_dict().items()}
    ends = [{name: value + n + torch.rand_like(value) for name, value in anchor.items()} for n in (1, 2)]
    for first in (0.5, 0.25):
        mixed = METHODS["lines"].mix(model, ends[:1], anchor, first)
        rest = 1 - first
        for number, layer in enumerate(("first", "second", "body", "fc")):
            w, w0, share = ends[0][f"{layer}.weight"], anchor[f"{layer}.weight"], first + rest * number / 3
            torch.testing.assert_close(mixed[f"{layer}.weight"], w0 + share * (w - w0))
        mixed = METHODS["wise_ftp"].mix(model, ends[:1], anchor, first)
        torch.testing.assert_close(mixed["body.weight"], first * ends[0]["body.weight"] + rest * anchor["body.weight"])
    stock = METHODS["model_stock"].mix(model, ends, anchor, None)
    assert all(torch.equal(value, hft.model_stock(ends, anchor)[0][name]) for name, value in stock.items())
    assert {METHODS[name].usual for name in ("wise", "wise_warmup", "wise_ftp", "lines")} == {0.5}
