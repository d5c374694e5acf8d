"""Wrong arguments: each row of ``wrong_inputs.py``, and what every optimizer or combinator refuses."""

from __future__ import annotations

import inspect
import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.testing import strategies

from .support.cases import BASES
from .support.compare import kept, same
from .support.wrong_inputs import TABLES, VECTORS, M, Row, updated

every_base = pytest.mark.parametrize("case", BASES, ids=str)


@pytest.mark.parametrize("row", [pytest.param(row, id=row[2]) for rows in TABLES.values() for row in rows])
def test_an_error_says_what_is_wrong(row: Row):
    act, error, text = row
    with pytest.raises(error, match=text):
        act()


@every_base
def test_learning_rates_that_are_none(case: Any):
    for value in (-1.0, math.nan, math.inf, torch.tensor(-1.0)):
        with pytest.raises(ValueError, match=r"lr must lie in \[0, inf\), got"):
            case.build(lr=value)
    with pytest.raises(ValueError, match=r"got shape \(2,\)"):
        case.build(lr=torch.ones(2))
    texts = {"0.1": "the string", True: "bool", Fraction(1, 10): r"Fraction; write float\(Fraction\(1, 10\)\)"}
    for value, text in (*texts.items(), (Fraction(10**400), "Fraction$")):
        with pytest.raises(TypeError, match=f"lr must be a number or a 0-d floating-point tensor, got {text}"):
            case.build(lr=value)
    for params in (nn.Linear(2, 2), nn.Linear(2, 2).parameters(), [*nn.Linear(2, 2).parameters()]):
        with pytest.raises(TypeError, match="lr must be .*; a pure optimizer gets no params here"):
            case.make(params, 0.1)


FLAGS = ("maximize", "amsgrad", "nesterov", "centered", "decoupled", "decoupled_weight_decay")


@settings(max_examples=40)
@given(
    make=st.sampled_from(strategies.RULES),
    value=st.sampled_from(["no", 1, None, 0.0, torch.tensor(True)]),
    data=st.data(),
)
def test_flags(make: Any, value: Any, data: Any):
    """A string would count as true."""
    flag = data.draw(st.sampled_from([name for name in FLAGS if name in inspect.signature(make).parameters]))
    with pytest.raises(TypeError, match=f"{flag} must be True or False, got "):
        make(**{flag: value})


@every_base
def test_an_hparam_does_not_make_a_parameter_larger(case: Any):
    opt, wide = case.build(), torch.full((4,), 0.1)
    for lr in (wide, {"w": wide, "b": torch.tensor(0.1)}, {"w": torch.tensor(0.1), "b": torch.full((1, 3, 2), 0.1)}):
        with pytest.raises(ValueError, match=r"has the shape \((4,|1, 3, 2)\).*; give a 0-d tensor, or"):
            updated(opt, lr=lr)
    with pytest.raises(ValueError, match=r"has the shape \(2,\); give a 0-d tensor"):  # fits "b" alone
        updated(opt, lr=torch.full((2,), 0.1))


@pytest.mark.parametrize("case", [case for case in BASES if not case.whole], ids=str)
def test_a_learning_rate_for_each_entry_is_allowed(case: Any):
    opt, params = case.build(), {name: w.double() for name, w in VECTORS.items()}
    rates = {"w": torch.tensor(0.3).double(), "b": torch.linspace(0.1, 0.6, 6).double().view(3, 2)}
    new, _ = updated(opt, params, lr=rates)
    for i, j in ((0, 0), (1, 0), (2, 1)):
        alone, _ = updated(opt, params["b"][i, j], lr=rates["b"][i, j])
        torch.testing.assert_close(new["b"][i, j], alone, rtol=1e-14, atol=1e-14)
    rows, _ = updated(opt, params, lr={"w": rates["w"], "b": rates["b"][:, :1]})
    assert torch.equal(rows["b"][:, 0], new["b"][:, 0])
    slopes = torch.func.grad(lambda lr: updated(opt, params, lr=lr)[0]["b"].sum())(rates)
    assert slopes["b"].shape == (3, 2)


@pytest.mark.parametrize("value", [None, "0.1", 1j, True, object()], ids=lambda x: type(x).__name__)
def test_hparams_that_are_no_numbers(value: Any):
    with pytest.raises(TypeError, match="hparams must hold numbers and tensors, but 'lr' is"):
        updated(hft.sgd(), lr=value)
    with pytest.raises(TypeError, match="but 'lr.b' is"):
        updated(hft.ftp(hft.sgd(), VECTORS), lr={"w": 0.1, "b": value})
    with pytest.raises(TypeError, match=r"but 'betas.1' is"):
        updated(hft.adam(), betas=(0.9, value))
    opt = hft.hyper(hft.sgd(), by=hft.sgd(), over="lr")
    with pytest.raises(TypeError, match="but 'by.lr' is"):
        opt.init(M, {"base": opt.hparams["base"], "by": {**opt.hparams["by"], "lr": value}})


AROUND = {
    "bare": lambda opt: opt,
    "clipped": lambda opt: hft.clipped(opt, 1.0),
    "damped": hft.damped,
    "scheduled": hft.scheduled,
    "per_step": hft.per_step,
    "projected": lambda opt: hft.projected(opt, VECTORS),
    "ftp": lambda opt: hft.ftp(opt, VECTORS),
    "l2sp": lambda opt: hft.l2sp(opt, VECTORS),
    "digrap": lambda opt: hft.digrap(opt, VECTORS),
    "hyper": lambda opt: hft.hyper(opt, by=hft.sgd(), over="lr"),
}
GRADIENTS = [
    (0.0, TypeError, "grads must be a pytree of tensors, but 'b' is a float"),
    (torch.ones(3, 2).to_sparse(), TypeError, r"gradient of 'b' is sparse \(torch.sparse_coo\); give its to_dense"),
    (torch.ones(2), ValueError, r"gradient of 'b' has the shape \(2,\), its parameter \(3, 2\)"),
    (torch.ones(1, 3, 2), ValueError, r"gradient of 'b' has the shape \(1, 3, 2\), its parameter \(3, 2\)"),
]


@pytest.mark.parametrize(("gradient", "error", "text"), GRADIENTS, ids=["number", "sparse", "smaller", "larger"])
def test_gradients_that_do_not_fit(gradient: Any, error: type[Exception], text: str):
    with pytest.raises(error, match=text):
        updated(hft.sgd(), grads={**VECTORS, "b": gradient})


@settings(max_examples=50)
@given(data=st.data(), run=strategies.runs(none=False, max_steps=2))
def test_a_gradient_that_does_not_fit_is_refused_below_any_combinators(data: Any, run: strategies.Run):
    """And what was given is as it was."""
    opt = data.draw(strategies.optimizers(run.params))
    params, state = run.by(opt)
    leaves, rebuild = tree.flatten(run.grads[0])
    i = data.draw(st.integers(0, len(leaves) - 1))
    wrong = [0.0, torch.ones(*leaves[i].shape, 2), torch.ones(7, 3, *leaves[i].shape).double()]
    leaves[i] = data.draw(st.sampled_from(wrong))
    before = kept([params, tree.leaves(state), tree.leaves(opt.hparams)])
    with pytest.raises((TypeError, ValueError), match="grad"):
        opt.update(rebuild(leaves), state, params)
    assert same(kept([params, tree.leaves(state), tree.leaves(opt.hparams)]), before)


@settings(max_examples=100)
@given(make=st.sampled_from(strategies.RULES), data=st.data())
def test_a_number_outside_its_domain_is_refused_by_name(make: Any, data: Any):
    name, domain = data.draw(st.sampled_from(sorted(make().domains.items())))
    outside = [x for x in (-1.0, 1.0, 2.0, math.inf, -math.inf, math.nan) if not domain.holds(x)]
    value, parts = data.draw(st.sampled_from([*outside, "0.1", True, 1j])), domain.parts
    right = data.draw(strategies.options(make))
    if parts:
        i = data.draw(st.integers(0, len(parts) - 1))
        value = tuple(value if k == i else x for k, x in enumerate(right.get(name, (0.5,) * len(parts))))
    with pytest.raises((TypeError, ValueError), match=name):
        make(**{**right, name: value})


STATES = {case.name: case.build for case in BASES}
STATES |= {name: lambda wrap=wrap: wrap(hft.sgd(lr=0.1)) for name, wrap in AROUND.items()}


@pytest.mark.parametrize("name", STATES)
def test_a_state_of_another_optimizer(name: str):
    opt = STATES[name]()
    state = opt.init(VECTORS)
    title = type(state).__name__
    for wrong in (VECTORS, (), state._asdict(), hft.wise):
        with pytest.raises(TypeError, match=rf"the {title} that init or update .*; the order is update\(grads, state"):
            opt.update(VECTORS, wrong, VECTORS)
    error, text = TypeError, f"the {title} that .* got dict"
    if name in ("clipped", "damped"):  # these have no state of their own, and look at the gradients first
        error, text = ValueError, "grads must have the structure of the parameters"
    with pytest.raises(error, match=text):
        opt.update(VECTORS, VECTORS, state)
    other = hft.lion() if title != "LionState" else hft.sgd()
    with pytest.raises(TypeError, match=f"the {title} that .* got {type(other.init(VECTORS)).__name__}"):
        opt.update(VECTORS, other.init(VECTORS), VECTORS)


@pytest.mark.parametrize("case", [case for case in BASES if case.build().init(VECTORS)], ids=str)
def test_a_state_of_other_parameters(case: Any):
    opt, state = case.build(), case.build().init(VECTORS)
    here = {**VECTORS, "b": torch.ones(5, 4)}
    with pytest.raises(ValueError, match=r"a parameter of the shape \(5, 4\) has a state .*is of other parameters"):
        opt.update(here, state, here)
    one = opt.init(torch.ones(1))  # which torch would stretch to any other
    with pytest.raises(ValueError, match=r"a parameter of the shape \(3,\) has a state of the shapes .*\(1,\)"):
        opt.update(torch.ones(3), one, torch.ones(3))


def test_tensors_that_stand_for_others_while_a_program_is_traced():
    """Their values are not known: nothing is refused for them."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    def run(w):
        opt = hft.ftp(hft.adam(), {"w": torch.zeros(2)})
        return torch.func.grad(lambda w: opt.update({"w": w}, opt.init({"w": w}), {"w": w})[0]["w"].sum())(w)

    with FakeTensorMode():
        assert run(torch.ones(2)).shape == (2,)
    traced, plain = make_fx(run, tracing_mode="fake")(torch.ones(2))(torch.ones(2)), run(torch.ones(2))
    # Numbers are tensors there, and a derivative is multiplied by them in another order: roundings of float32.
    torch.testing.assert_close(traced, plain, rtol=4 * torch.finfo(torch.float32).eps, atol=0)
    compiled = torch.compile(lambda w: hft.adam().init({"w": w}), fullgraph=True, backend="eager")
    assert compiled(torch.ones(2)).exp_avg["w"].shape == (2,)


def test_what_is_nearly_wrong_is_taken():
    twice = {"a": {"b": torch.zeros(2)}, "a.b": torch.zeros(2)}  # who needs no paths does not mind two alike
    assert updated(hft.sgd(), twice)[0].keys() == twice.keys()
    for zero in (torch.tensor(0.0), {"w": torch.tensor(0.0), "b": 0.0}):
        hft.sgd(nesterov=True, momentum=0.9, dampening=zero)
    assert hft.muon().update(w := torch.zeros(3, 0), hft.muon().init(w), w)[0].shape == (3, 0)
