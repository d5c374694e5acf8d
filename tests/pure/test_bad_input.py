"""Wrong arguments of the functional API."""

from __future__ import annotations

import inspect
import math
from fractions import Fraction

import pytest
import torch

import hyperopt_ftp as hft

from ..support.cases import BASES

W = {"w": torch.zeros(2, 3)}


def quadratic(params, batch):
    return (params["w"] ** 2).sum()


@pytest.mark.parametrize("case", BASES, ids=str)
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, torch.tensor(-1.0)], ids=str)
def test_learning_rates_outside_their_domain(case, value):
    with pytest.raises(ValueError, match=r"lr must lie in \[0, inf\), got"):
        case.build(lr=value)


@pytest.mark.parametrize("case", BASES, ids=str)
def test_hparams_of_a_wrong_type(case):
    with pytest.raises(TypeError, match="lr must be a number or a 0-d floating-point tensor, got the string"):
        case.build(lr="0.1")
    with pytest.raises(TypeError, match=r"got Fraction; write float\(Fraction\(1, 10\)\)"):
        case.build(lr=Fraction(1, 10))
    with pytest.raises(TypeError, match="got Fraction$"):
        case.build(lr=Fraction(10**400))
    with pytest.raises(TypeError, match="got bool"):
        case.build(lr=True)
    with pytest.raises(ValueError, match=r"got shape \(2,\)"):
        case.build(lr=torch.ones(2))


@pytest.mark.parametrize("case", BASES, ids=str)
def test_params_grads_and_hparams_of_a_wrong_structure(case):
    opt = case.build()
    state = opt.init(W)
    with pytest.raises(ValueError, match="grads must have the structure of the parameters"):
        opt.update({"v": W["w"]}, state, W)
    with pytest.raises(ValueError, match="hparams must be a dict with names among"):
        opt.update(W, state, W, {"lr": 0.1, "typo": 1.0})
    with pytest.raises(TypeError, match=r"must be floating-point .* but 'w' is torch.int64"):
        opt.init({"w": torch.zeros(2, dtype=torch.int64)})
    with pytest.raises(TypeError, match="must be a pytree of tensors, but 'w' is a float"):
        opt.init({"w": 1.0})


def test_betas():
    with pytest.raises(ValueError, match=r"betas must lie in \[0, 1\), got 1.0"):
        hft.adam(betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="betas must be a pair"):
        hft.lion(betas=(0.9,))
    with pytest.raises(ValueError, match="eps_root must lie in"):
        hft.adam(eps_root=-1.0)
    with pytest.raises(ValueError, match="nesterov needs momentum > 0"):
        hft.sgd(nesterov=True)
    with pytest.raises(ValueError, match="and dampening = 0, got .* dampening = 0.5"):
        hft.sgd(nesterov=True, momentum=0.9, dampening=torch.tensor(0.5))
    with pytest.raises(ValueError, match="nesterov needs momentum > 0"):
        hft.sgd(nesterov=True, momentum={"w": 0.0})
    for zero in (torch.tensor(0.0), {"w": torch.tensor(0.0), "b": 0.0}):
        hft.sgd(nesterov=True, momentum=0.9, dampening=zero)


OWN_NUMBER = {
    **dict.fromkeys(("clipped", "clipped_per_layer", "clipped_by_value"), 1.0),
    **dict.fromkeys(("clipped_adaptively", "damped", "noisy", "averaged", "decayed"), 0.1),
}


@pytest.mark.parametrize("name", OWN_NUMBER)
def test_arguments_of_a_combinator_that_are_swapped_or_misnamed(name):
    make, number = getattr(hft, name), OWN_NUMBER[name]
    with pytest.raises(TypeError, match="must be a number .*, got an optimizer; the optimizer goes first"):
        make(number, hft.sgd())
    with pytest.raises(TypeError, match=f"{name}: got an unexpected keyword argument 'bound'; the arguments are "):
        make(hft.sgd(), bound=number)


def test_a_tuple_of_another_length_in_a_call():
    """It would shift all numbers after it."""
    opt, w = hft.adam(), torch.ones(2)
    half = torch.tensor(0.5)
    for wrong in ((half,), (half, half, half), half):
        with pytest.raises(ValueError, match=r"betas must be a pair \(beta1, beta2\), got "):
            updated(opt, w, betas=wrong)


@pytest.mark.parametrize("flag", ["maximize", "amsgrad", "nesterov", "centered", "decoupled", "decoupled_weight_decay"])
def test_flags(flag):
    """A string would count as true."""
    taking = [case for case in BASES if flag in inspect.signature(case.make).parameters]
    assert taking
    for case in taking:
        with pytest.raises(TypeError, match=f"{flag} must be True or False, got 'no'"):
            case.build(**{flag: "no"})


@pytest.mark.parametrize("make", [hft.ftp, hft.projected])
def test_anchors(make):
    with pytest.raises(ValueError, match=r"anchor has entries \['v'\] that are not parameters"):
        make(hft.sgd(), {"v": W["w"]}).init(W)
    with pytest.raises(ValueError, match=r"anchor entry 'w' has shape \(3, 2\), its parameter \(2, 3\)"):
        make(hft.sgd(), {"w": torch.zeros(3, 2)}).init(W)
    with pytest.raises(TypeError, match="anchor must hold floating-point tensors, but its entry 'w' is torch.int64"):
        make(hft.sgd(), {"w": torch.zeros(2, 3, dtype=torch.int64)})
    with pytest.raises(ValueError, match="norm must be one of"):
        make(hft.sgd(), W, norm="l1")


def test_ftp_options():
    with pytest.raises(ValueError, match=r"kappa must lie in \[0, 1\], got 2"):
        hft.ftp(hft.sgd(), W, kappa=2)
    with pytest.raises(ValueError, match="gradient must be one of 'paper', 'exact'"):
        hft.ftp(hft.sgd(), W, gradient="true")
    with pytest.raises(ValueError, match="radius must lie in"):
        hft.projected(hft.sgd(), W, radius=-1.0)
    with pytest.raises(ValueError, match=r"radius must have the names of the anchor \['w'\], got \['v'\]"):
        hft.projected(hft.sgd(), W, radius={"v": 1.0})
    with pytest.raises(ValueError, match=r"schedules for \['rate'\], but the hparams are"):
        hft.scheduled(hft.sgd(), rate=lambda t: t)


@pytest.mark.parametrize(
    ("over", "text"),
    [
        ("rate", "over names 'rate', but the hyperparameters are .*'lr'"),
        (("lr", "rate"), "over names 'rate', but the hyperparameters are .*'lr'"),
        ("betas.2", r"over names 'betas.2', but 'betas' has \['betas.0', 'betas.1'\]"),
        ("lr.x", "over names 'lr.x', but 'lr' has no parts"),
        (3, "over must name at least one hyperparameter of .*'lr'.*, got 3$"),
        (hft.sgd(), "over must name at least one hyperparameter of .*'lr'.*, got an object of the class Optimizer$"),
    ],
)
def test_over_names_what_does_not_exist(over, text):
    with pytest.raises(ValueError, match=text):
        hft.hyper(hft.adam(), by=hft.sgd(), over=over)


def steps(opt: hft.Optimizer, **options):
    return hft.bilevel(
        opt, options.pop("by", hft.sgd()), "lr", lambda p, x: p["w"].sum(), lambda p, x: p["w"].sum(), W, [0], [0],
        inner_steps=1, outer_steps=1, **options,
    )  # fmt: skip


TORCHS = torch.optim.SGD([torch.ones(1)])


@pytest.mark.parametrize(
    ("act", "text"),
    [
        (
            lambda: hft.hyper(TORCHS, by=hft.sgd(), over="lr"),
            "base must be a pure optimizer .*, got an object of .* SGD",
        ),
        (
            lambda: hft.hyper(hft.sgd(), by=hft.adam, over="lr"),
            "by must be a pure optimizer .*, got adam itself: call it",
        ),
        (lambda: hft.ftp(hft.FTPAdamW, W), "base must be .* got FTPAdamW itself: call it .* those of this package"),
        (lambda: hft.clipped(TORCHS, 1.0), "base must be a pure optimizer"),
        (lambda: hft.l2sp(TORCHS, W), "base must be a pure optimizer"),
        (lambda: steps(TORCHS), "optimizer must be a pure optimizer"),
        (lambda: steps(hft.sgd(), by=TORCHS), "by must be a pure optimizer"),
        (lambda: hft.to_torchopt(TORCHS), "optimizer must be a pure optimizer"),
        (
            lambda: hft.from_torchopt(hft.sgd()),
            "factory must be a function .* got a Optimizer; give the function and its",
        ),
        (lambda: steps(hft.sgd(), strategy=hft.Unroll), r"got the class Unroll; write Unroll\(\)"),
        (lambda: hft.hyper(hft.sgd(), by=hft.sgd(), over="lr", strategy=hft.OneStep), r"write OneStep\(\)"),
        (lambda: steps(hft.sgd(), constrain="log"), r"constrain must be a dict .* such as \{'lr': 'log'\}, got 'log'"),
        (
            lambda: steps(hft.sgd(), state=next(steps(hft.sgd()))),
            "state must be the BilevelState .* Record; pass record.state",
        ),
        (lambda: steps(hft.sgd(), state={}), "state must be the BilevelState of an earlier record, got dict$"),
        (lambda: hft.ftp(hft.sgd(), None), "anchor must be the weights to stay near, .* got None"),
        (
            lambda: hft.PureOptimizer(hft.sgd(), torch.nn.Linear(1, 1).parameters()),
            "optimizer must be .* got an object of the class generator",
        ),
        (lambda: hft.adam(lr=lambda t: 0.1), r"got a function; .* hft.scheduled\(optimizer, lr=schedule\)"),
        (lambda: hft.adam(lr=hft.schedules.cosine(9)), r"got a schedule; .* hft.scheduled\(optimizer, lr=schedule\)"),
        (lambda: hft.clipped(1.0, hft.adam()), "max_norm must be .* got an optimizer; the optimizer goes first"),
        (lambda: hft.adam(1e-3, b1=0.9, b2=0.99), "unexpected keyword argument 'b1'; did you mean 'betas'[?]$"),
        (lambda: hft.ftp(hft.sgd(), W, exclude="w"), "what the anchor leaves out moves freely"),
    ],
)
def test_things_of_another_kind(act, text):
    with pytest.raises(TypeError, match=text):
        act()


@pytest.mark.parametrize(
    ("over", "kind", "base", "text"),
    [
        (
            "momentum",
            "log",
            hft.sgd(),
            "constrain of 'momentum': 'log' needs a first value above 0, got 0; start there",
        ),
        ("lr", "log", hft.sgd(lr=0.0), "needs a first value above 0, got 0"),
        ("betas", "logit", hft.adam(betas=(0.0, 0.9)), r"'logit' needs a first value in \(0, 1\), got 0"),
    ],
)
def test_a_first_value_that_its_map_cannot_take(over, kind, base, text):
    tuned = hft.hyper(base, by=hft.sgd(), over=over, constrain={over: kind})
    with pytest.raises(ValueError, match=text):
        tuned.init(W)
    with pytest.raises(ValueError, match=text):
        hft.bilevel(
            base,
            hft.sgd(),
            over,
            quadratic,
            quadratic,
            W,
            [0],
            [0],
            inner_steps=1,
            outer_steps=1,
            constrain={over: kind},
        )


def test_values_by_path_go_inside():
    opt = hft.scheduled(hft.sgd(), lr=hft.schedules.cosine(9))
    with pytest.raises(ValueError, match=r"\['lr_schedule.floor'\] are paths: hyperopt_ftp.tree.replaced"):
        hft.train(opt, lambda p, x: p["w"].sum(), W, [0], hparams={**opt.hparams, "lr_schedule.floor": 0.1})


def test_a_loss_with_more_than_its_value():
    with pytest.raises(ValueError, match="train_loss must return a scalar tensor .*, got tuple; return the loss alone"):
        hft.train(hft.sgd(), lambda p, x: (p["w"].sum(), {"accuracy": 1.0}), W, [0])


def test_the_length_of_a_warm_up_is_a_share():
    with pytest.raises(ValueError, match=r"leave steps out: the warm-up takes the first share \* 9 of them"):
        hft.schedules.warm_up(hft.schedules.cosine(9), steps=3)


def test_tpgm_needs_batches():
    with pytest.raises(ValueError, match="batches is empty, or an iterator that has been read before"):
        hft.tpgm(W, {"w": torch.zeros_like(W["w"])}, lambda p, x: p["w"].sum(), iter([]))
    with pytest.raises(ValueError, match="radius_lr must lie in"):
        hft.tpgm(W, W, lambda p, x: p["w"].sum(), [0], radius_lr=-1.0)


def test_over_and_strategies():
    with pytest.raises(ValueError, match="over must name at least one"):
        hft.hyper(hft.sgd(), by=hft.sgd(), over=())
    with pytest.raises(ValueError, match="over names a hyperparameter twice"):
        hft.hyper(hft.adam(), by=hft.sgd(), over=("betas", "betas.0"))
    with pytest.raises(TypeError, match="strategies that need gradients alone"):
        hft.hyper(hft.sgd(), by=hft.sgd(), over="lr", strategy=object())
    tuned = hft.hyper(hft.sgd(), by=hft.sgd(), over="lr")
    with pytest.raises(ValueError, match="already tunes"):
        hft.hyper(tuned, by=hft.sgd(), over="base.lr")


# -- hparams, gradients and states at the time of the call ----------------------------------------------------------

VECTORS = {"w": torch.ones(1), "b": torch.ones(3, 2)}


def updated(opt: hft.Optimizer, params=VECTORS, grads=None, **hparams):
    full = {**opt.hparams, **hparams}
    return opt.update(params if grads is None else grads, opt.init(params, full), params, full)


@pytest.mark.parametrize("case", BASES, ids=str)
def test_an_hparam_does_not_make_a_parameter_larger(case):
    opt, wide = case.build(), torch.full((4,), 0.1)
    for lr in (wide, {"w": wide, "b": torch.tensor(0.1)}, {"w": torch.tensor(0.1), "b": torch.full((1, 3, 2), 0.1)}):
        with pytest.raises(
            ValueError, match=r"a hyperparameter has the shape \((4,|1, 3, 2)\).*; give a 0-d tensor, or"
        ):
            updated(opt, lr=lr)
    with pytest.raises(ValueError, match=r"has the shape \(4,\), its parameter \(1,\); give a 0-d tensor"):
        updated(opt, VECTORS["w"], lr=wide)
    with pytest.raises(ValueError, match=r"has the shape \(2,\); give a 0-d tensor"):  # fits "b" alone
        updated(opt, lr=torch.full((2,), 0.1))


def test_no_hparam_makes_a_moment_larger():
    """Lion's second beta enters the moment only."""
    opt, w = hft.lion(), torch.ones(1)
    with pytest.raises(ValueError, match=r"has the shape \(4,\), its parameter \(1,\)"):
        updated(opt, w, betas=(opt.hparams["betas"][0], torch.full((4,), 0.9)))
    with pytest.raises(ValueError, match=r"has the shape \(4,\), its parameter \(1,\)"):
        hft.adagrad().init(w, {**hft.adagrad().hparams, "initial_accumulator_value": torch.ones(4)})


@pytest.mark.parametrize("case", [case for case in BASES if not case.whole], ids=str)
def test_a_learning_rate_for_each_entry_is_allowed(case):
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


@pytest.mark.parametrize(
    ("opt", "name", "value"),
    [
        (hft.projected(hft.sgd(), VECTORS, radius=1.0), "radius", torch.ones(4)),
        (hft.projected(hft.sgd(), VECTORS, radius=1.0), "radius", {"w": torch.ones(4), "b": torch.ones(())}),
        (hft.l2sp(hft.sgd(), VECTORS), "strength", torch.ones(1)),
        (hft.spd(hft.sgd(), VECTORS), "strength", {"w": torch.ones(()), "b": torch.ones(2)}),
        (hft.directed(hft.sgd(), VECTORS), "omega", torch.ones(2)),
        (hft.digrap(hft.sgd(), VECTORS), "omega_lr", torch.ones(2)),
        (hft.ftp(hft.sgd(), VECTORS), "kappa", torch.ones(1)),
        (hft.clipped(hft.sgd(), 1.0), "max_norm", torch.ones(1)),
        (hft.damped(hft.sgd()), "kappa", torch.ones(2)),
    ],
)
def test_numbers_of_a_tensor_are_0_d(opt, name, value):
    with pytest.raises(ValueError, match=rf"{name} must be a 0-d tensor, got the shape \("):
        updated(opt, **{name: value})


def test_each_constrained_tensor_needs_its_number():
    with pytest.raises(ValueError, match=r"radius has no entry for 'b', only for \['w'\]"):
        updated(hft.projected(hft.sgd(), VECTORS), radius={"w": torch.ones(())})
    with pytest.raises(ValueError, match=r"strength has no entry for 'w', only for \['b'\]"):
        updated(hft.l2sp(hft.sgd(), VECTORS), strength={"b": 1.0})
    with pytest.raises(ValueError, match=r"radius_lr must be a 0-d tensor, got the shape \(2,\)"):
        updated(hft.ftp(hft.sgd(), VECTORS), radius_lr=torch.ones(2))


@pytest.mark.parametrize("value", [None, "0.1", 1j, True, object()], ids=lambda x: type(x).__name__)
def test_hparams_that_are_no_numbers(value):
    with pytest.raises(TypeError, match="hparams must hold numbers and tensors, but 'lr' is"):
        updated(hft.sgd(), lr=value)
    with pytest.raises(TypeError, match="but 'lr.b' is"):
        updated(hft.ftp(hft.sgd(), VECTORS), lr={"w": 0.1, "b": value})
    with pytest.raises(TypeError, match=r"but 'betas.1' is"):
        updated(hft.adam(), betas=(0.9, value))
    opt = hft.hyper(hft.sgd(), by=hft.sgd(), over="lr")
    with pytest.raises(TypeError, match="but 'by.lr' is"):
        opt.init(W, {"base": opt.hparams["base"], "by": {**opt.hparams["by"], "lr": value}})


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
around = pytest.mark.parametrize("wrap", AROUND.values(), ids=AROUND)


@around
@pytest.mark.parametrize(
    ("gradient", "error", "text"),
    [
        (0.0, TypeError, "grads must be a pytree of tensors, but 'b' is a float"),
        (torch.ones(3, 2).to_sparse(), TypeError, r"gradient of 'b' is sparse \(torch.sparse_coo\); give its to_dense"),
        (torch.ones(2), ValueError, r"gradient of 'b' has the shape \(2,\), its parameter \(3, 2\)"),
        (torch.ones(1, 3, 2), ValueError, r"gradient of 'b' has the shape \(1, 3, 2\), its parameter \(3, 2\)"),
    ],
    ids=["number", "sparse", "smaller", "larger"],
)
def test_gradients_that_do_not_fit(wrap, gradient, error, text):
    with pytest.raises(error, match=text):
        updated(wrap(hft.sgd()), grads={**VECTORS, "b": gradient})


def test_torchopt_is_given_what_fits():
    opt = hft.from_torchopt(pytest.importorskip("torchopt").sgd, lr=0.1)
    with pytest.raises(ValueError, match=r"gradient of 'b' has the shape \(2,\), its parameter \(3, 2\)"):
        updated(opt, grads={**VECTORS, "b": torch.ones(2)})
    with pytest.raises(TypeError, match="state must be the BridgeState that init or update returned, got dict"):
        opt.update(VECTORS, VECTORS, opt.init(VECTORS))


STATES = {case.name: case.build for case in BASES}
STATES |= {name: lambda wrap=wrap: wrap(hft.sgd(lr=0.1)) for name, wrap in AROUND.items()}


@pytest.mark.parametrize("name", STATES)
def test_a_state_of_another_optimizer(name):
    opt = STATES[name]()
    state = opt.init(VECTORS)
    title = type(state).__name__
    for wrong in (VECTORS, (), state._asdict(), hft.wise):
        with pytest.raises(
            TypeError, match=rf"the {title} that init or update .*; the order is update\(grads, state, par"
        ):
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
def test_a_state_of_other_parameters(case):
    opt, state = case.build(), case.build().init(VECTORS)
    here = {**VECTORS, "b": torch.ones(5, 4)}
    with pytest.raises(ValueError, match=r"a parameter of the shape \(5, 4\) has a state .*is of other parameters"):
        opt.update(here, state, here)
    one = opt.init(torch.ones(1))  # which torch would stretch to any other
    with pytest.raises(ValueError, match=r"a parameter of the shape \(3,\) has a state of the shapes .*\(1,\)"):
        opt.update(torch.ones(3), one, torch.ones(3))


def test_params_without_values():
    for make in (hft.sgd, lambda: hft.ftp(hft.adam(), {"w": torch.zeros(2)})):
        with pytest.raises(TypeError, match="must be a pytree of tensors, but 'b' is None; leave it out"):
            make().init({"w": torch.zeros(2), "b": None})
        with pytest.raises(ValueError, match="parameter 'w' has no values: it is on the meta device"):
            make().init({"w": torch.zeros(2, device="meta")})


def test_tensors_that_stand_for_others_while_a_program_is_traced():
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    def run(w):
        opt = hft.ftp(hft.adam(), {"w": torch.zeros(2)})
        return torch.func.grad(lambda w: opt.update({"w": w}, opt.init({"w": w}), {"w": w})[0]["w"].sum())(w)

    with FakeTensorMode():
        assert run(torch.ones(2)).shape == (2,)
    assert torch.equal(make_fx(run, tracing_mode="fake")(torch.ones(2))(torch.ones(2)), run(torch.ones(2)))
    compiled = torch.compile(lambda w: hft.adam().init({"w": w}), fullgraph=True, backend="eager")
    assert compiled(torch.ones(2)).exp_avg["w"].shape == (2,)


def test_paths_that_collide():
    twice = {"a": {"b": torch.zeros(2)}, "a.b": torch.zeros(2)}
    once = {"a.b": torch.zeros(2)}
    text = "two entries of a tree have the path 'a.b'; rename a key"
    for make in (hft.projected, hft.ftp, hft.l2sp):
        with pytest.raises(ValueError, match=text):
            make(hft.sgd(), twice)
        with pytest.raises(ValueError, match=text):
            make(hft.sgd(), once).init(twice)
    assert updated(hft.sgd(), twice)[0].keys() == twice.keys()  # who needs no paths does not mind
