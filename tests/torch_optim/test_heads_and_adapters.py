"""New and re-initialised heads, and adapters."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ..support.compare import equal
from ..support.executions import every_execution
from ..support.ftp_training import F64, build, every_class, feed, loss, net, train, weights


@every_execution
@every_class
@pytest.mark.parametrize("how", ["pattern", "flag", "module", "tensors"])
def test_a_new_head_moves_as_under_the_plain_base(how, name, execution):
    """Whichever way it is excluded: no ball, no anchor; and the body moves as without it."""
    model = net()
    body, head = model[:3], model[3]
    anchor = {f"{n}": p.detach().clone() for n, p in body.named_parameters()}
    params = list(model.named_parameters())
    if how == "flag":
        params = [{"params": params[:4]}, {"params": params[4:], "constrained": False}]
    exclude = {"pattern": "3.*", "flag": (), "module": head, "tensors": list(head.parameters())}[how]
    opt = build(name, params, execution, exclude=exclude, anchor=anchor)
    plain_body, plain_head = copy.deepcopy(body), copy.deepcopy(head)
    alone = build(name, plain_body.named_parameters(), execution, anchor=anchor)
    if name == "FTPSGD":
        base = torch.optim.SGD(plain_head.parameters(), lr=0.05, momentum=0.9, weight_decay=0.0)
    else:
        base = torch.optim.AdamW(plain_head.parameters(), lr=0.05, weight_decay=0.0)
    for t in range(5):
        opt.zero_grad()
        loss(model, t).backward()
        grads = [p.grad.clone() for p in model.parameters()]
        opt.step()
        feed(plain_body.parameters(), grads[:4], alone)
        feed(plain_head.parameters(), grads[4:], base)
    assert equal(body.parameters(), plain_body.parameters())
    for p, q in zip(head.parameters(), plain_head.parameters(), strict=True):
        torch.testing.assert_close(p, q, **F64)
        assert not opt.state[p].keys() & {"anchor", "deviation", "radius", "anchor_fingerprint"}
    assert list(opt.radii()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert opt.execution == execution


@every_execution
@every_class
def test_a_head_that_was_reset_after_its_anchor_was_taken_is_not_thrown_back(name, execution):
    model = net()
    anchor = copy.deepcopy(model.state_dict())
    model[3].reset_parameters()
    start = weights(model[3])
    opt = build(name, model.named_parameters(), execution, anchor=anchor, lr=1e-3)
    far = (model[3].weight - anchor["3.weight"]).abs().sum(1).max().item()
    train(model, opt, range(1))
    # The radius that holds the start; the step moves the weights by lr, and nothing pulls them.
    assert opt.radii()["3.weight"] == pytest.approx(far, abs=5e-3)
    assert opt.radii()["0.weight"] == pytest.approx(1e-8, abs=1e-12)
    assert all((p - q).abs().max() < 5e-3 for p, q in zip(model[3].parameters(), start, strict=True))
    train(model, opt, range(1, 5))
    reference = net()
    reference[3].load_state_dict(dict(zip(("weight", "bias"), start, strict=True)))
    pure = build(name, reference.named_parameters(), "single", anchor=anchor, lr=1e-3)
    train(reference, pure)
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, **F64)
    assert opt.radii() == pytest.approx(pure.radii(), rel=1e-9)
    assert (opt.execution, pure.execution) == (execution, "single")


class LoRA(nn.Module):
    """``W x + B A x`` with frozen W; B is 0 at first, A is not."""

    def __init__(self, inside: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.inside = inside.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.randn(rank, inside.in_features, dtype=torch.float64))
        self.lora_b = nn.Parameter(torch.zeros(inside.out_features, rank, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inside(x) + x @ self.lora_a.T @ self.lora_b.T


def adapted() -> nn.Sequential:
    model = net()
    torch.manual_seed(1)
    return nn.Sequential(*(LoRA(m) if isinstance(m, nn.Linear) else m for m in model))


@every_execution
@every_class
def test_adapters_around_zero_take_no_memory_for_it(name, execution):
    """B A x is what keeps to the pre-trained function: the anchor of adapters is 0."""
    sides = []
    for anchor in ("zero", "given"):
        model = adapted()
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        zeros = {n: torch.zeros_like(p) for n, p in named}
        opt = build(name, named, execution, anchor=zeros if anchor == "given" else "zero")
        frozen = [p.clone() for p in model.parameters() if not p.requires_grad]
        first = {n: p.detach().abs().sum(1).max().item() for n, p in named}
        train(model, opt, range(1))
        assert opt.radii()["0.lora_a"] == pytest.approx(first["0.lora_a"], rel=0.1)  # not thrown onto 0
        assert opt.radii()["0.lora_b"] <= 1e-8
        if anchor == "zero":  # through a checkpoint, which holds no anchor either
            saved = copy.deepcopy(opt.state_dict())
            assert not any("anchor" in state for state in saved["state"].values())
            opt = build(name, named, execution, anchor="zero")
            opt.load_state_dict(saved)
        train(model, opt, range(1, 6))
        assert equal((p for p in model.parameters() if not p.requires_grad), frozen)
        assert opt.execution == execution
        sides.append((weights(model), opt.radii(), opt))
    assert equal(sides[0][0], sides[1][0])
    assert sides[0][1] == sides[1][1]
    assert set(sides[0][1]) == {n for n, p in adapted().named_parameters() if "lora" in n}
    assert not any("anchor" in state for state in sides[0][2].state.values())
