"""What each method of the comparisons stands for: its optimizer, options, and which parameters it moves and holds."""

import pytest
import torch

from experiments.classification.config import Config
from experiments.common.methods import FOLLOWS, METHODS
from experiments.common.network import Network
from hyperopt_ftp import L2SP, MARSSP, SPD, CautiousDecay, DiGraP, FTPAdamW, HypergradientDescent


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
        ("adamw_decay", {"weight_decay": 0.4}),
        ("ftp", {"weight_decay": 0.02, "kappa": 0.3, "gradient": "paper", "radius_lr": 0.7}),
        ("ftp_exact", {"weight_decay": 0.02, "kappa": 0.3, "gradient": "exact", "radius_lr": 0.7}),
        ("ftp_start", {"weight_decay": 0.02, "kappa": 0.3, "gradient": "paper", "radius_start": 10.0}),
        ("ftp_kappa0", {"weight_decay": 0.02, "kappa": 0.0, "gradient": "paper", "radius_lr": 0.7}),
        ("ftp_exact_kappa0", {"weight_decay": 0.02, "kappa": 0.0, "gradient": "exact", "radius_lr": 0.7}),
    ],
)
@pytest.mark.parametrize("anchor", ["styles", "imagenet"])
def test_what_a_method_stands_for(method, expected, anchor):
    config, model = Config(kappa=0.3, radius_lr=0.7, weight_decay=0.02, strong_decay=0.4, anchor=anchor), Small()
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
        ("hypergradient", HypergradientDescent, "lr_lr", (1e-7, 1e-6)),
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
        if kind is not HypergradientDescent:
            assert group["constrained"] == [True, True, False, False]


def test_what_follows_is_made_of_another_method_and_has_no_training_of_its_own():
    assert FOLLOWS == {"wise": "adamw", "wise_ftp": "ftp"}
    for follower, of in FOLLOWS.items():
        assert METHODS[follower].make(None) is None
        assert METHODS[of].make(None) is not None
    assert len({method.title for method in METHODS.values()}) == len(METHODS)
