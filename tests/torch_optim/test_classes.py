"""The drop-in classes against the pure functions, in every execution, with an assertion on which one ran."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hyperopt_ftp as hft

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


@pytest.mark.parametrize("build", [native, wrapped])
@every_execution
@pytest.mark.parametrize("run", RUNS, ids=lambda run: str(run.index))
def test_weights_and_radii_equal_the_reference_runs(run: Run, execution: str, build):
    params = parameters(run.anchor())
    opt = build(run, params, execution)
    for t in play(run, params, opt, range(run.about["steps"])):
        weights, radii = run.expected(t)
        for name, p in params.items():
            torch.testing.assert_close(p.detach(), weights[name], rtol=0, atol=1e-10)
        assert opt.radii() == pytest.approx({n: r.item() for n, r in radii.items()}, abs=1e-10)
    assert opt.execution == execution


@pytest.mark.parametrize("build", [native, wrapped])
@every_execution
@pytest.mark.parametrize("run", RUNS, ids=lambda run: str(run.index))
def test_float32_stays_near_the_reference_runs(run: Run, execution: str, build):
    """A step rounds W', c, s c and W, each by half a unit of the largest weight; the gradients pull errors back.

    The radius adds the error of its direction, which is that of c relative to a step, times radius_lr.
    """
    params = parameters(run.anchor(), torch.float32)
    opt = build(run, params, execution)
    unit = torch.finfo(torch.float32).eps / 2
    for t in play(run, params, opt, range(run.about["steps"])):
        weights, radii = run.expected(t)
        top = max(1.0, max(w.abs().max().item() for w in weights.values()))
        small = 4 * unit * top * (t + 1)
        turned = 1e-2 * (t + 1) * 2 * small / run.kwargs["lr"]
        for name, p in params.items():
            assert (p.detach() - weights[name]).abs().max() <= small + turned
        for name, radius in radii.items():
            assert abs(opt.radii()[name] - radius.item()) <= turned + 4 * small * weights[name].numel() ** 0.5
    assert opt.execution == execution


@pytest.mark.parametrize("build", [native, wrapped])
@every_execution
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_resumed_run_continues_bit_for_bit(build, execution, dtype):
    run = RUNS[2]
    straight = parameters(run.anchor(), dtype)
    opt = build(run, straight, execution)
    list(play(run, straight, opt, range(12)))
    for at in (1, 2, 7):
        params = parameters(run.anchor(), dtype)
        first = build(run, params, execution)
        list(play(run, params, first, range(at)))
        file = io.BytesIO()
        torch.save({"model": {n: p.data for n, p in params.items()}, "opt": first.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        again = parameters(saved["model"])
        second = build(run, again, execution)
        second.load_state_dict(saved["opt"])
        list(play(run, again, second, range(at, 12)))
        for name in params:
            assert torch.equal(again[name], straight[name])
        assert second.radii() == opt.radii()
        for p, q in zip(straight.values(), again.values(), strict=True):
            assert {k: v.dtype for k, v in opt.state[p].items()} == {k: v.dtype for k, v in second.state[q].items()}


@pytest.mark.parametrize("build", [native, wrapped])
def test_pickle_and_deepcopy_go_on_alike(build):
    run = RUNS[1]
    params = parameters(run.anchor())
    opt = build(run, params, "foreach")
    list(play(run, params, opt, range(5)))
    file = io.BytesIO()
    torch.save(opt, file)
    file.seek(0)
    for twin in (copy.deepcopy(opt), torch.load(file, weights_only=False)):
        theirs = dict(zip(params, (p for g in twin.param_groups for p in g["params"]), strict=True))
        mine = copy.deepcopy(opt)
        own = dict(zip(params, (p for g in mine.param_groups for p in g["params"]), strict=True))
        list(play(run, theirs, twin, range(5, 9)))
        list(play(run, own, mine, range(5, 9)))
        assert all(torch.equal(theirs[n], own[n]) for n in params)


@given(
    seed=st.integers(0, 9999),
    shape=st.lists(st.integers(0, 5), max_size=4),
    sgd=st.booleans(),
    options=st.fixed_dictionaries(
        {
            "norm": st.sampled_from(["mars", "l2"]),
            "gradient": st.sampled_from(["paper", "exact"]),
            "kappa": st.sampled_from([0.0, 0.4, 1.0]),
            "maximize": st.booleans(),
            "weight_decay": st.sampled_from([0.0, 0.1]),
            "anchor": st.sampled_from([None, "zero"]),
            "capturable": st.booleans(),
        }
    ),
    extra=st.sampled_from(
        [{}, {"amsgrad": True}, {"nesterov": True, "momentum": 0.9}, {"momentum": 0.5, "dampening": 0.3}]
    ),
)
def test_foreach_equals_single_in_float64(seed, shape, sgd, options, extra):
    """Shapes with zero-size, 0-d, 1-D and convolution tensors; the tolerance is rounding over 6 steps."""
    if sgd == ("amsgrad" in extra):
        extra = {}
    make = hft.FTPSGD if sgd else hft.FTPAdamW
    g = torch.Generator().manual_seed(seed)
    w = [torch.randn(s, generator=g, dtype=torch.float64) for s in (shape, [3, 2], [4])]
    sides = []
    for execution in FLAGS:
        params = [torch.nn.Parameter(x.clone()) for x in w]
        opt = make(params, lr=0.05, radius_lr=0.05, **FLAGS[execution], **options, **extra)
        sides.append((params, opt, execution))
    for t in range(6):
        grads = [torch.randn(x.shape, generator=g, dtype=torch.float64) for x in w]
        if t == 3:
            grads[2] = None  # one step without a gradient
        for params, opt, execution in sides:
            for p, grad in zip(params, grads, strict=True):
                p.grad = None if grad is None else grad.clone()
            opt.step()
            assert opt.execution == execution
        for p, q in zip(sides[0][0], sides[1][0], strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
        assert sides[0][1].radii() == pytest.approx(sides[1][1].radii(), rel=1e-10, abs=1e-13)


@every_execution
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_lower_precisions_follow_float64(execution, dtype):
    """One step from the anchor's neighbourhood: the error is a few roundings of weights of order 1."""
    run = RUNS[0]
    exact, low = parameters(run.anchor()), parameters(run.anchor(), dtype)
    for p, q in zip(exact.values(), low.values(), strict=True):
        p.data.copy_(q.detach())  # the same start
    opts = [native(run, params, execution) for params in (exact, low)]
    for t in range(8):
        for name in exact:
            g = run.gradient(name, t, exact[name]).to(dtype)
            exact[name].grad, low[name].grad = g.double(), g.clone()
        for opt in opts:
            opt.step()
    eps = torch.finfo(dtype).eps
    for name in exact:
        # One rounding to the stored dtype, beside 8 steps of float32 arithmetic.
        assert (exact[name] - low[name].double()).abs().max() <= eps * exact[name].abs().max() + 1e-5
    assert opts[1].execution == execution


@every_execution
@pytest.mark.parametrize("make", [hft.FTPAdamW, hft.FTPSGD])
def test_late_layers_and_missing_gradients_touch_no_other_layer(make, execution):
    """Each parameter counts its own steps, whatever the others do."""

    def train(alone: bool):
        torch.manual_seed(3)
        a, b = (torch.nn.Parameter(torch.randn(3, 2, dtype=torch.float64)) for _ in range(2))
        params = [b] if alone else [a, b]
        opt = make(params, lr=0.1, radius_lr=0.05, **FLAGS[execution])
        gradients = torch.randn(10, 2, 3, 2, dtype=torch.float64)
        for t in range(10):
            a.grad = None if t < 3 or t == 6 else gradients[t, 0]
            b.grad = gradients[t, 1] if t >= 2 else None
            if not alone or t >= 2:
                opt.step()
        return b.detach(), opt.state[b]["radius"]

    assert all(torch.equal(x, y) for x, y in zip(train(True), train(False), strict=True))


@pytest.mark.parametrize("base", ["Adafactor", "RMSprop", "Muon", "NAdam", "Adagrad", "SGD", "Rprop"])
def test_ftp_around_any_optimizer(base):
    """The wrapper's rule: the base's displacement, projected; compared with a plain transcription of the rule."""
    if not hasattr(torch.optim, base):
        pytest.skip(f"this torch has no {base}")
    make = getattr(torch.optim, base)
    w = torch.randn(4, 3, dtype=torch.float64)
    p, q = torch.nn.Parameter(w.clone()), torch.nn.Parameter(w.clone())
    opt, plain = hft.FTP(make([p], lr=0.05), radius_lr=0.02), make([q], lr=0.05)
    c, n, gamma, m, v = torch.zeros_like(w), torch.full((4, 1), 1e-8).double(), 1e-8, 0.0, 0.0
    for t in range(1, 9):
        p.grad = p.detach() - 2 * w + torch.randn_like(w) * 0.1
        q.grad = p.grad.clone()
        q.data.copy_(p.detach())
        h = (q.grad * c / n).sum().item()
        m, v = 0.9 * m + 0.1 * h, 0.999 * v + 0.001 * h * h
        gamma = max(gamma - 0.02 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)) ** 0.5 + 1e-8), 1e-8)
        plain.step()
        c = q.detach() - w
        n = c.abs().sum(1, keepdim=True) + 1e-8
        gamma = min(gamma, n.max().item())
        opt.step()
        torch.testing.assert_close(p.detach(), w + (gamma / n).clamp(max=1) * c, rtol=1e-12, atol=1e-12)
        assert opt.radii()[0] == pytest.approx(gamma, rel=1e-10)
    assert gamma > 1e-3


@every_execution
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("how", ["data.copy_", "data.add_", "data", "load"])
def test_weights_changed_from_outside_are_respected(execution, dtype, how):
    p = torch.nn.Parameter(torch.ones(2, 3, dtype=dtype))
    opt = hft.FTPAdamW([p], lr=1e-3, radius_lr=10.0, **FLAGS[execution])
    for _ in range(4):
        p.grad = -torch.ones_like(p)
        opt.step()
    target = torch.full((2, 3), 1.5, dtype=dtype)
    if how == "data.copy_":
        p.data.copy_(target)
    elif how == "data.add_":
        p.data.add_(target - p.data)
    elif how == "data":
        p.data = target.clone()
    else:
        torch.nn.ParameterList([p]).load_state_dict({"0": target})
    p.grad = -torch.ones_like(p)
    opt.step()
    # The radius (at most the old deviation, 4e-3 a weight) pulls the row back; it does not restore the old weights.
    assert opt.state[p]["deviation"].sub(0.501).abs().max() < 1e-2


def test_state_is_lazy_and_a_zero_anchor_takes_no_memory():
    p = torch.nn.Parameter(torch.ones(2, 3))
    opt = hft.FTPAdamW([p], anchor="zero")
    assert not opt.state
    p.grad = torch.ones_like(p)
    opt.step()
    assert "anchor" not in opt.state[p]
    assert set(opt.state[p]) == {
        "step", "deviation", "row_norm", "radius", "radius_exp_avg", "radius_exp_avg_sq", "radius_step",
        "exp_avg", "exp_avg_sq", "anchor_fingerprint",
    }  # fmt: skip


def test_anchor_by_name_in_its_own_dtype():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    before = copy.deepcopy(model.half().state_dict())
    model.float()
    for execution in FLAGS:
        opt = hft.FTPSGD(model.named_parameters(), lr=1.0, anchor=before, exclude=["2.*"], **FLAGS[execution])
        for p in model.parameters():
            p.data.add_(torch.randn_like(p))
            p.grad = torch.randn_like(p)
        opt.step()
        weight = model[0].weight
        assert opt.state[weight]["anchor"].dtype == torch.float16
        assert "anchor" not in opt.state[model[2].weight]
        deviation = weight.detach() - before["0.weight"].float()
        assert deviation.abs().sum(1).max().item() <= opt.radii()["0.weight"] * (1 + 1e-5)


def test_groups_override_options_and_say_constrained():
    a, b = (torch.nn.Parameter(torch.zeros(1, 2, dtype=torch.float64)) for _ in range(2))
    opt = hft.FTPSGD([{"params": [a], "radius_lr": 0.5}, {"params": [b], "constrained": False}], lr=1.0)
    late = torch.nn.Parameter(torch.zeros(1, 2, dtype=torch.float64))
    opt.add_param_group({"params": [late], "kappa": 0.0})
    for _ in range(2):
        for p in (a, b, late):
            p.grad = -torch.ones_like(p)
        opt.step()
    assert opt.radii() == pytest.approx({0: 0.5 * 0.744, 2: 0.01 * 0.744}, rel=1e-3)
    assert b.detach().tolist() == [[2.0, 2.0]]


def test_wrapper_shares_groups_and_state_with_its_base():
    a, b = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    base = torch.optim.Adam([a], lr=0.1)
    opt = hft.FTP(base)
    assert opt.param_groups is base.param_groups
    assert opt.state is base.state
    opt.add_param_group({"params": [b]})
    assert base.param_groups[1]["params"] == [b]
    for p in (a, b):
        p.grad = torch.ones_like(p)
    opt.step()
    assert set(opt.radii()) == {0, 1}
    scheduler = torch.optim.lr_scheduler.StepLR(opt, 1, 0.5)
    opt.step()
    scheduler.step()
    assert base.param_groups[0]["lr"] == 0.05


def test_a_tensor_learning_rate_equals_a_number():
    results = []
    for lr in (0.05, torch.tensor(0.05, dtype=torch.float64)):
        for execution in FLAGS:
            for make in (hft.FTPAdamW, hft.FTPSGD):
                for capturable in (False, True):
                    p = torch.nn.Parameter(torch.ones(2, 3, dtype=torch.float64))
                    opt = make([p], lr=lr, **FLAGS[execution], capturable=capturable)
                    for _ in range(4):
                        p.grad = p.detach() + 1
                        opt.step()
                    results.append((make, p.detach()))
    for make in (hft.FTPAdamW, hft.FTPSGD):
        same = [w for m, w in results if m is make]
        assert all((w - same[0]).abs().max() <= 1e-14 for w in same)


@pytest.mark.parametrize("execution", ["single", "foreach"])
def test_a_step_without_values(execution):
    """On the meta device, where nobody can look at a radius."""
    p = torch.nn.Parameter(torch.empty(3, 2, device="meta"))
    opt = hft.FTPAdamW([p], **FLAGS[execution])
    p.grad = torch.empty_like(p)
    opt.step()
    assert opt.state[p]["radius"].is_meta


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


@settings(max_examples=5)
@given(rows=st.integers(1, 3))
def test_channels_last_weights_keep_their_format(rows):
    w = torch.randn(rows, 3, 2, 2, dtype=torch.float64).to(memory_format=torch.channels_last)
    plain = torch.nn.Parameter(w.contiguous())
    last = torch.nn.Parameter(w.clone(memory_format=torch.preserve_format))
    opts = [hft.FTPAdamW([p], lr=0.1) for p in (plain, last)]
    for _ in range(3):
        g = torch.randn_like(plain)
        plain.grad, last.grad = g, g.to(memory_format=torch.channels_last)
        for opt in opts:
            opt.step()
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert opts[1].state[last]["deviation"].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(plain, last, rtol=1e-13, atol=1e-13)


def test_buckets_of_the_foreach_execution_change_nothing(monkeypatch):
    from hyperopt_ftp.kernels import foreach
    from hyperopt_ftp.torch_optim.execution.backends import layers_of

    results = []
    for size in (foreach.CPU_BUCKET, 8):
        monkeypatch.setattr(foreach, "CPU_BUCKET", size)
        params = parameters(RUNS[0].anchor())
        opt = native(RUNS[0], params, "foreach")
        list(play(RUNS[0], params, opt, range(10)))
        buckets = sum(len(foreach.buckets(layers_of(part.columns))) for part in opt._collect()["foreach"])
        results.append((buckets, opt.radii(), [p.detach() for p in params.values()]))
    assert results[0][0] == 1
    assert results[1][0] > 1
    assert results[0][1] == results[1][1]
    assert all(torch.equal(a, b) for a, b in zip(results[0][2], results[1][2], strict=True))
