"""Rules cost what they compute: numbers that are 0 cost nothing, and those of Python and tensors are rounded alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.hparams import as_numbers
from hyperopt_ftp.optimizers import arithmetic
from hyperopt_ftp.optimizers.by_rule import EntryRule, entry_rule
from hyperopt_ftp.testing import strategies

from ..support.cases import BASES, Case

F64 = torch.float64

#: Of two tensors and a number.
OF_A_NUMBER: dict[str, Callable[[Tensor, Any, Tensor], Tensor]] = {
    "plus": arithmetic.plus,
    "minus": arithmetic.minus,
    "minus a fraction": lambda x, number, y: arithmetic.minus(x, number, y, y.square() + 0.1),
    "toward": arithmetic.toward,
    "blend": lambda x, number, y: arithmetic.blend(number, x, y),
    "shrunk": lambda x, number, y: arithmetic.shrunk(x, number, 0.3),
    "times": lambda x, number, y: arithmetic.times(number, x),
    "at least": lambda x, number, y: arithmetic.at_least(x, number),
    "at most": lambda x, number, y: arithmetic.at_most(x, number),
    "where": lambda x, number, y: arithmetic.where(torch.tensor(True), number, 2.0) * y,
}
every_operation = pytest.mark.parametrize("f", OF_A_NUMBER.values(), ids=OF_A_NUMBER)


@settings(max_examples=50)
@given(
    name=st.sampled_from([*OF_A_NUMBER]), dtype=st.sampled_from([F64, torch.float32]), seed=st.integers(0, 999),
    shape=strategies.shapes(least=1).filter(len), number=st.floats(0, 1, allow_subnormal=False),
)  # fmt: skip
def test_a_number_is_rounded_alike_as_a_tensor(name: str, dtype: Any, seed: int, shape: Any, number: float):
    """Where one of two runs differentiates in a number, ties fall to the same side in both.

    Two 0-d tensors are of the wider dtype in torch, so x has a dimension.
    """
    g, f, tensor = torch.Generator().manual_seed(seed), OF_A_NUMBER[name], torch.tensor(number, dtype=F64)
    x, y = torch.randn(2, *shape, dtype=F64, generator=g).to(dtype)
    assert torch.equal(f(x, number, y), f(x, tensor, y))
    assert torch.equal(f(x, number, y), f(x, tensor.clone().requires_grad_(), y))


@every_operation
def test_a_number_does_not_change_the_dtype(f: Callable[..., Tensor]):
    """Of one dimension or more, mapped or not, traced or not."""
    x, y, one, many = torch.randn(5), torch.randn(5), torch.tensor(0.3, dtype=F64), torch.rand(5, dtype=F64)
    if f not in (OF_A_NUMBER["times"], OF_A_NUMBER["where"], OF_A_NUMBER["at least"], OF_A_NUMBER["at most"]):
        assert f(x, many, y).dtype == torch.float32
    found = torch.func.vmap(lambda number: f(x, number, y))(many)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.stack([f(x, number, y) for number in many]), rtol=1e-6, atol=1e-6)
    assert torch.func.jvp(lambda number: f(x, number, y), (one,), (one,))[1].dtype == torch.float32
    assert torch.func.grad(lambda number: f(x, number, y).sum())(one).dtype == F64
    torch._dynamo.reset()
    assert torch.compile(f, fullgraph=True, backend="eager")(x, one, y).dtype == torch.float32


class Operations(TorchDispatchMode):
    """Counts what torch is asked for."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def rule_of(opt: hft.Optimizer) -> EntryRule:
    found = entry_rule(opt.update)
    assert found is not None
    return found


def cost(opt: hft.Optimizer, **tensors: Any) -> int:
    """Operations of the rule in its third update of a vector, with ``tensors`` in the place of some numbers."""
    own, w = rule_of(opt), torch.ones(3, dtype=F64)
    h = own.by_name(as_numbers(own.flat(opt.hparams))) | tensors
    s = {name: torch.ones(3, dtype=F64) for name in own.keeps}
    with Operations() as operations:
        own.rule(w, torch.full_like(w, 2.0), s, h, 3)
    return operations.count - 1  # the gradient


LR = torch.tensor(0.1, dtype=F64)

#: Operations by hand, with numbers, and with a learning rate that is a tensor.
COSTS = [
    (hft.sgd(), 1, 1),
    (hft.sgd(dampening=0.5), 1, 1),  # without momentum it has no effect
    (hft.sgd(weight_decay=0.1), 2, 2),
    (hft.sgd(momentum=0.9), 2, 2),
    (hft.sgd(momentum=0.9, dampening=0.5), 3, 3),
    (hft.sgd(momentum=0.9, nesterov=True), 3, 3),
    # m, g^2, v, the root of what is not 0, eps; the fraction times lr, and its place in W.
    (hft.adam(), 7, 9),
    (hft.adam(amsgrad=True), 8, 10),
    (hft.adam(betas=(0.0, 0.9)), 6, 8),
    (hft.adamw(weight_decay=0.0), 7, 9),
    (hft.adamw(weight_decay=0.1), 8, 11),
    (hft.adamax(), 6, 8),
    (hft.rmsprop(), 7, 7),
    (hft.rmsprop(momentum=0.9), 8, 8),
    (hft.rmsprop(centered=True), 9, 9),
    (hft.adadelta(), 13, 13),
    (hft.adan(), 13, 14),
    (hft.radam(), 8, 9),
    (hft.adopt(clip_power=None), 8, 8),
    (hft.lion(), 4, 4),
    (hft.signum(), 3, 3),
    (hft.adabelief(), 10, 12),
    (hft.asgd(lambd=0.0, t0=1e6), 1, 6),  # five of them with 0-d tensors
]


@pytest.mark.parametrize(("opt", "plain", "tuned"), COSTS)
def test_what_an_update_costs(opt: hft.Optimizer, plain: int, tuned: int):
    assert (cost(opt), cost(opt, lr=LR)) == (plain, tuned)


def test_a_momentum_that_is_tuned_costs_what_another_does():
    """Where there is no dampening, which acts with momentum alone."""
    assert cost(hft.sgd(), momentum=torch.tensor(0.9, dtype=F64)) == 2


@pytest.mark.parametrize("case", [c for c in BASES if entry_rule(c.build().update)], ids=str)
def test_a_rule_keeps_the_dtype_of_a_vector(case: Case):
    """It may be called for each step of a training, with nothing that casts its results."""
    opt = case.build()
    own, w = rule_of(opt), torch.randn(6)
    values, rebuild = tree.flatten(opt.hparams)

    def dtypes(numbers: list[Any]) -> set[torch.dtype]:
        h, s = own.by_name(own.flat(rebuild(numbers))), {name: torch.zeros(6) for name in own.keeps}
        for t in (1, 2):
            new, s = own.rule(w, w, s, h, t)
        return {x.dtype for x in (new, *s.values())}  # pyright: ignore[reportPossiblyUnboundVariable]

    found = [dtypes(values), dtypes([x.item() for x in values])]
    torch.func.vmap(lambda *numbers: found.append(dtypes([*numbers])) or w)(*(x.expand(2) for x in values))
    assert found == [{torch.float32}] * 3
