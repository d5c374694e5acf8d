"""The state of a torch optimizer goes into train and back, and continues there as torch would."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

import hyperopt_ftp as hft
from hyperopt_ftp import tree

from ..support.cases import CASES, Case
from ..support.contract import through_a_file
from ..support.problems import batches, largest_difference, loss, start

F64 = torch.float64
DATA = batches(8)
MOMENTS = {"betas": (0.8, 0.95), "weight_decay": 0.1}

TORCHS = [
    (torch.optim.SGD, hft.sgd, {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    (torch.optim.SGD, hft.sgd, {"momentum": 0.9, "nesterov": True, "maximize": True}),
    (torch.optim.SGD, hft.sgd, {"momentum": 0.0}),
    (torch.optim.Adam, hft.adam, MOMENTS),
    (torch.optim.Adam, hft.adam, {"amsgrad": True, "maximize": True}),
    (torch.optim.AdamW, hft.adamw, {**MOMENTS, "amsgrad": True}),
    (torch.optim.NAdam, hft.nadam, MOMENTS),
    (torch.optim.RAdam, hft.radam, MOMENTS),
    (torch.optim.Adamax, hft.adamax, MOMENTS),
    (torch.optim.Adadelta, hft.adadelta, {"rho": 0.7}),
    (torch.optim.Adagrad, hft.adagrad, {"lr_decay": 0.1, "initial_accumulator_value": 0.2}),
    (torch.optim.RMSprop, hft.rmsprop, {"momentum": 0.5, "centered": True}),
    (torch.optim.RMSprop, hft.rmsprop, {"momentum": 0.0}),
    (torch.optim.Rprop, hft.rprop, {}),
    (torch.optim.ASGD, hft.asgd, {"t0": 2, "lambd": 0.3}),
    (torch.optim.Adafactor, hft.adafactor, {}),
    (torch.optim.Muon, partial(hft.muon, ns_dtype=torch.bfloat16), {}),
]


def parameters():
    return {name: nn.Parameter(w.clone()) for name, w in start().items() if w.ndim == 2 or name != "w"}


def stepped(params, opt, data, absent=()):
    for x in data:
        opt.zero_grad()
        loss(params, x).backward()
        for name in absent:
            params[name].grad = None
        opt.step()


@pytest.fixture
def wide():
    """NAdam and ASGD of torch keep numbers in the default dtype."""
    torch.set_default_dtype(F64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize(("theirs", "ours", "options"), TORCHS, ids=lambda x: getattr(x, "__name__", ""))
@pytest.mark.parametrize("gaps", [False, True], ids=["", "gaps"])
def test_train_continues_where_torch_has_stopped(theirs, ours, options, gaps):
    """Also where one parameter has made fewer updates, or none."""
    params, options = parameters(), {"lr": 0.05, **options}
    trained = {n: p for n, p in params.items() if p.ndim == 2} if theirs is torch.optim.Muon else params
    others = {n: p.detach() for n, p in params.items() if n not in trained}
    opt = theirs(trained.items(), **options)
    last = [*trained][-1]
    if gaps and len(trained) > 1:
        stepped(params, opt, DATA[:2], [last])
        if theirs is not torch.optim.RAdam:
            stepped(params, opt, DATA[2:3])
    else:
        stepped(params, opt, DATA[:3])
    state, beginning = hft.state_from(opt), {n: p.detach().clone() for n, p in trained.items()}
    run = hft.train(ours(**options), lambda p, x: loss({**p, **others}, x), beginning, DATA[3:6], state=state)
    stepped(params, opt, DATA[3:6])
    assert largest_difference(dict(run.params), {n: p.detach() for n, p in trained.items()}) < 1e-13
    again = hft.state_from(opt, trained)
    unknown = {"step"} if theirs is torch.optim.SGD else set()  # which counts none
    unknown |= {"momentum_buffer"} if options.get("momentum") == 0.0 else set()
    for name in {*again._fields} - unknown:
        mine, other = (tree.leaves(getattr(state, name)) for state in (run.state, again))
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("over", [hft.adam(lr=0.1, betas=(0.8, 0.9)), hft.hyper(hft.adam(0.1), hft.sgd(1e-3), "lr")])
def test_a_pure_optimizer_continues_where_train_has_stopped_and_back(over):
    whole = hft.train(over, loss, start(), DATA)
    run = hft.train(over, loss, start(), DATA[:3])
    params = {name: nn.Parameter(w.clone()) for name, w in run.params.items()}
    opt = hft.PureOptimizer(params.items(), over, state=run.state)
    kept = opt.state_dict()
    stepped(params, opt, DATA[3:5])
    assert largest_difference(run.state, through_a_file(run.state)) == 0  # which the steps have not written into
    rest = hft.train(over, loss, {n: p.detach() for n, p in params.items()}, DATA[5:], state=opt.pure_state())
    assert largest_difference(rest.params, whole.params) == 0
    assert largest_difference(rest.state, whole.state) == 0
    again = {name: nn.Parameter(w.clone()) for name, w in run.params.items()}
    other = hft.PureOptimizer(again.items(), over)
    other.load_state_dict(through_a_file(kept))
    stepped(again, other, DATA[3:5])
    assert largest_difference(dict(again), dict(params)) == 0
    assert other.hparams() == opt.hparams()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_states_are_read_from_files_without_code(case: Case):
    run = hft.train(case.build(), loss, start(), DATA[:2])
    again = through_a_file(run)
    assert tree.structure(again) == tree.structure(run)
    assert type(again.state) is type(run.state)
    assert largest_difference(again, run) == 0


def test_what_is_not_known_is_refused_in_words():
    params, pure = parameters(), hft.adam()
    w = params["w"]
    with pytest.raises(TypeError, match="state_from knows .* Adam, .*, got an .* LBFGS"):
        hft.state_from(torch.optim.LBFGS([w]))

    class Adam(torch.optim.Adam):
        pass

    for other in (Adam([w]), hft.FTPAdamW([w])):
        with pytest.raises(TypeError, match=f"got .*{type(other).__name__}"):
            hft.state_from(other)
    with pytest.raises(TypeError, match="got .*AdamState"):
        hft.state_from(pure.init(w))  # pyright: ignore
    with pytest.raises(ValueError, match="has no names .*give params=dict"):
        hft.state_from(torch.optim.Adam([w]))
    with pytest.raises(ValueError, match=r"params \['w'\] are no parameters of the optimizer; .* not copies"):
        hft.state_from(torch.optim.Adam([w]), {"w": w.detach()})


def test_a_pure_state_in_the_wrong_place_is_refused_in_words():
    params, pure = parameters(), hft.adam()
    opt = hft.PureOptimizer(params.items(), pure)
    state = pure.init(start())
    with pytest.raises(ValueError, match=r"got AdamState; .* PureOptimizer\(params, optimizer, state=...\)"):
        opt.load_state_dict(state)  # pyright: ignore
    stepped(params, opt, DATA[:1])
    saved = opt.state_dict()
    saved["state"]["pure"] = state
    with pytest.raises(ValueError, match=r"state\['pure'\] must be a dict by path, .* state=...\)"):
        opt.load_state_dict(saved)
    for wrong, words in (
        (pure.init({**start(), "more": torch.zeros(2)}), r"the state has entries \['exp_avg.more'"),
        (pure.init({n: w[:1] for n, w in start().items()}), "has the shape .* in the state, and"),
    ):
        with pytest.raises(ValueError, match=words):
            hft.PureOptimizer(params.items(), pure, state=wrong)


def test_a_state_of_another_rule_with_the_same_names_is_refused():
    w = torch.nn.Parameter(torch.ones(2))
    state = hft.adam().init({"w": w.detach()})
    with pytest.raises(TypeError, match="state must be of this optimizer, YogiState, got AdamState"):
        hft.PureOptimizer([("w", w)], hft.yogi(), state=state)
    with pytest.raises(TypeError, match=r"a PureOptimizer has pure_state\(\)"):
        hft.state_from(hft.PureOptimizer([("w", w)], hft.adam()), {"w": w})
