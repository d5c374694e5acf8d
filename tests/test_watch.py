"""What is measured and written of each layer, and the figures of it."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
import warnings
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import hyperopt_ftp as hft
from hyperopt_ftp import plot


def training(make, steps: int, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, hft.FTPAdamW, dict]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).to(dtype)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    opt = make(model)
    go_on(model, opt, steps)
    return model, opt, start


def go_on(model: nn.Module, opt, steps: int) -> None:
    for t in range(steps):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
        opt.zero_grad()
        model(x.to(next(model.parameters()).dtype)).sub(1).square().mean().backward()
        opt.step()


def ftp(model: nn.Module) -> hft.FTPAdamW:
    return hft.FTPAdamW(model.named_parameters(), lr=0.1, radius_lr=0.1, exclude="2.bias", foreach=True)


def test_measured_numbers_are_those_of_the_weights():
    def mars_sp(m):
        return hft.MARSSP(torch.optim.SGD(m.named_parameters(), lr=0.1), radius=0.2, exclude="2.bias")

    model, opt, start = training(mars_sp, 11)
    asked = {}  # by the base, before the projection
    opt.base.register_step_post_hook(
        lambda *_: asked.update({name: p.detach().clone() for name, p in model.named_parameters()})
    )
    go_on(model, opt, 1)
    measured, radii = hft.measure(opt), opt.radii()
    assert measured.keys() == radii.keys() == {"0.weight", "0.bias", "2.weight"}
    some = 0
    for name, layer in measured.items():
        p = dict(model.named_parameters())[name]
        d = p.detach() - start[name]
        assert layer["distance"] == pytest.approx(d.norm().item(), rel=1e-12)
        assert layer["radius"] == radii[name]
        rows = (p.detach() - asked[name]).flatten(min(1, p.ndim - 1)).abs().sum(-1)
        assert layer["clipped"] == pytest.approx((rows > 1e-12).double().mean().item(), rel=1e-7)
        some += 0 < layer["clipped"] < 1
    assert some


def test_a_row_that_lies_on_the_radius_is_not_clipped():
    """A radius is never above the largest row: where no row is scaled down, that one lies exactly on it."""
    w = nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))
    opt = hft.MARSSP(torch.optim.SGD([("w", w)], lr=1.0), radius=10.0)
    w.grad = torch.tensor([[-3.0, 0.0], [0.0, -0.5]], dtype=torch.float64)
    opt.step()
    assert hft.measure(opt)["w"]["radius"] == opt.state[w]["row_norm"].max()
    assert hft.measure(opt)["w"]["clipped"] == 0


def test_what_has_no_rows_is_not_clipped_and_where_the_radius_is_no_number_nobody_knows():
    w, empty = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(0, 3))
    opt = hft.MARSSP(torch.optim.SGD([("w", w), ("empty", empty)], lr=1.0), radius=0.5)
    w.grad, empty.grad = torch.ones(2, 2), torch.ones(0, 3)
    opt.step()
    assert [hft.measure(opt)[name]["clipped"] for name in ("w", "empty")] == [1, 0]
    opt.state[w]["radius"].fill_(math.nan)
    assert math.isnan(hft.measure(opt)["w"]["clipped"])


@pytest.mark.parametrize(
    ("make", "fields"),
    [
        (lambda m: hft.DiGraP(torch.optim.SGD(m.named_parameters(), lr=0.1)), {"distance", "omega"}),
        (lambda m: hft.SPD(torch.optim.SGD(m.named_parameters(), lr=0.1), anchor="zero"), {"distance"}),
        (lambda m: hft.FTP(torch.optim.SGD(m.named_parameters(), lr=0.1)), {"distance", "radius", "clipped"}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_each_class_has_its_fields(make, fields, dtype):
    model, opt, start = training(make, 3, dtype)
    measured = hft.measure(opt)
    for name, p in model.named_parameters():
        assert measured[name].keys() == fields
        w0 = 0 if "omega" not in fields and "radius" not in fields else start[name].double()
        assert measured[name]["distance"] == pytest.approx((p.detach().double() - w0).norm().item(), rel=1e-5)


def test_a_csv_file_grows_step_by_step_and_over_runs(tmp_path):
    file = tmp_path / "layers.csv"
    model, opt, _ = training(ftp, 0)
    assert hft.measure(opt) == {}
    handle = hft.watch(opt, file, every=2)
    go_on(model, opt, 5)
    handle.remove()
    go_on(model, opt, 2)
    hft.watch(opt, str(file), first=10)
    go_on(model, opt, 1)
    with file.open() as opened:
        rows = list(csv.DictReader(opened))
    assert [row["step"] for row in rows if row["layer"] == "0.weight"] == ["2", "4", "11"]
    assert len(rows) == 9
    last = hft.measure(opt)["2.weight"]
    for field in ("distance", "radius", "clipped"):
        assert float(rows[-1][field]) == pytest.approx(last[field], rel=1e-5)
    assert rows[-1]["omega"] == ""
    steps, layers, values = plot.history(file)
    assert (steps, layers) == ([2, 4, 11], ["0.weight", "0.bias", "2.weight"])
    assert values[2][2] == pytest.approx(last["radius"], rel=1e-5)


def test_a_run_that_begins_again_takes_the_place_of_what_came_later(tmp_path):
    file = tmp_path / "layers.csv"
    for first, count, every in ((0, 6, 1), (3, 2, 1), (0, 0, 1), (4, 6, 2)):
        model, opt, _ = training(ftp, 0)
        handle = hft.watch(opt, file, first=first, every=every)
        go_on(model, opt, count)
        handle.remove()
    assert plot.history(file)[0] == [1, 2, 3, 4, 5, 6, 8, 10]
    model, opt, _ = training(ftp, 0)
    hft.watch(opt, file)
    go_on(model, opt, 2)
    steps, _, values = plot.history(file, "distance")
    assert steps == [1, 2]
    assert values[1][0] == pytest.approx(hft.measure(opt)["0.weight"]["distance"], rel=1e-5)


def test_a_line_that_was_cut_does_not_count(tmp_path):
    file = tmp_path / "layers.csv"
    model, opt, _ = training(ftp, 0)
    hft.watch(opt, file)
    go_on(model, opt, 3)
    whole = file.read_bytes()
    file.write_bytes(whole[: whole.rindex(b",0.")])  # in the middle of the last line
    model, opt, _ = training(ftp, 3)
    hft.watch(opt, file, first=3)
    go_on(model, opt, 1)
    steps, layers, values = plot.history(file)
    assert (steps, layers) == ([1, 2, 3, 4], ["0.weight", "0.bias", "2.weight"])
    unknown = [
        (step, layers[i]) for step, row in zip(steps, values, strict=True) for i in range(3) if math.isnan(row[i])
    ]
    assert unknown == [(3, "2.weight")]


@pytest.mark.parametrize("flags", [{"foreach": True}, {"fused": True}], ids=["by the scaler", "by the step itself"])
def test_a_step_that_is_skipped_is_no_step(flags):
    if "fused" in flags:
        pytest.importorskip("numba")
    w = nn.Parameter(torch.ones(2, 3))
    opt, seen = hft.FTPAdamW([("w", w)], lr=0.1, **flags), []
    hft.watch(opt, lambda step, layers: seen.append(step))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for i in range(6):
        opt.zero_grad()
        scaler.scale((w * (float("inf") if i in (1, 4) else 1.0)).sum()).backward()
        scaler.step(opt)
        scaler.update()
    assert opt.state[w]["step"] == 4
    assert seen == [1, 2, 3, 4]


def test_tensorboard_and_functions(tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model, opt, _ = training(ftp, 0)
    writer, seen = tensorboard.SummaryWriter(tmp_path), []
    hft.watch(opt, writer)
    hft.watch(opt, lambda step, layers: seen.append((step, layers)))
    go_on(model, opt, 3)
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    found = events.Scalars("radius/0.weight")
    assert [event.step for event in found] == [1, 2, 3]
    assert found[2].value == pytest.approx(seen[2][1]["0.weight"]["radius"], rel=1e-6)
    assert {"distance/0.weight", "clipped/2.weight"} <= set(events.Tags()["scalars"])
    other, _, _ = training(ftp, 3)  # watching has changed nothing
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("look", [hft.measure, hft.FTPAdamW.radii])
def test_looking_changes_nothing_where_a_file_holds_another_dtype(look, tmp_path):
    """The anchor of the file serves float64 weights as it lies; a look at them in float32 must not round it."""
    safetensors = pytest.importorskip("safetensors.torch")
    ends = []
    for looks in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
        file = tmp_path / "anchor.safetensors"
        safetensors.save_file({name: p.detach().clone() for name, p in model.named_parameters()}, file)
        opt = hft.FTPAdamW(model.named_parameters(), lr=0.1, anchor=str(file), foreach=True)
        go_on(model, opt, 2)
        model.float()
        if looks:
            assert look(opt)
            assert not any("anchor" in state for state in opt.state.values())
        model.double()
        go_on(model, opt, 2)
        ends.append([p.detach() for p in model.parameters()])
    assert all(torch.equal(p, q) for p, q in zip(*ends, strict=True))


@pytest.mark.parametrize(
    ("act", "error", "text"),
    [
        (lambda o, f: hft.watch(o, f / "x.csv", every=0), ValueError, "every must be a number of steps >= 1, got 0"),
        (lambda o, f: hft.watch(o, f / "x.csv", first=-1), ValueError, "first must be a number of steps >= 0, got -1"),
        (lambda o, f: hft.watch(o, f / "x.csv", first="7"), ValueError, "first must be a number of .* >= 0, got .*7"),
        (lambda o, f: hft.watch(o, f / "no" / "x.csv"), ValueError, "there is no folder .*no for x.csv; make it first"),
        (lambda o, f: plot.history(f / "rows.csv"), ValueError, "rows.csv, line 2: step must be a number, got 'foo'"),
        (lambda o, f: plot.distances({"w": 1.0}), TypeError, r"measured must be what hft.measure\(opt\) gives"),
        (lambda o, f: plot.radii([], [], []), ValueError, "there is nothing to draw: 0 steps of 0 layers"),
        (lambda o, f: hft.watch(o, 3), TypeError, "to must be the path of a CSV file, .* got int"),
        (lambda o, f: hft.watch(torch.optim.SGD([torch.ones(1)]), f), TypeError, "such as FTPAdamW, got SGD"),
        (lambda o, f: hft.measure(torch.optim.SGD([torch.ones(1)])), TypeError, "such as FTPAdamW, got SGD"),
        (lambda o, f: hft.watch(o, f / "other.csv"), ValueError, "its first line is not step,layer,distance"),
        (lambda o, f: plot.history(f / "other.csv"), ValueError, r"has no column 'radius', it has \['a', 'b'\]"),
        (lambda o, f: plot.distances({}), ValueError, "has the optimizer made a step"),
        (lambda o, f: plot.distances({"w": {"radius": 1.0}}), ValueError, r"no layer has a 'distance'; there are"),
        (lambda o, f: plot.traces([tower()[1]], steps=[1, 2]), ValueError, "one for each of the 1 states, got 2"),
        (lambda o, f: plot.traces([]), ValueError, "states must be a sequence of states of hft.hyper"),
        (lambda o, f: plot.radii([1], ["a", "b"], [[1.0]]), ValueError, r"1 steps of 2 layers, got \(1, 1\)"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused(act, error, text, tmp_path):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "rows.csv").write_text("step,layer,radius\nfoo,w,1\n")
    with pytest.raises(error, match=text):
        act(training(ftp, 0)[1], tmp_path)


# -- figures --------------------------------------------------------------------------------------------------------


def test_a_heat_map_shows_every_number(tmp_path):
    values = [[1.0, 1e-9, float("nan")], [0.5, 0.1, float("inf")]]
    figure = plot.radii([1, 5], ["a", "b", "c"], values, label="x")
    axes, bar = figure.axes
    mesh = axes.collections[0]
    shown = mesh.get_array()
    assert shown.shape == (3, 2)
    assert shown[0].tolist() == [1.0, 0.5]
    assert shown[1].tolist() == [1e-4, 0.1]
    assert shown.mask[2].all()
    assert mesh.get_datalim(axes.transData).intervalx.tolist() == [-1, 7]  # cells around steps 1 and 5
    assert axes.yaxis_inverted()  # the first layer is at the top
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    assert bar.get_ylabel() == "x"
    figure.savefig(tmp_path / "radii.png")
    assert (tmp_path / "radii.png").stat().st_size > 1000


def test_names_of_layers_do_not_overlap():
    """Ten points for a name of nine points."""
    for count in (1, 12, 31, 45, 149):
        figure = plot.radii([1, 2], [f"block.{k}.weight" for k in range(count)], [[1.0] * count] * 2)
        figure.draw_without_rendering()
        axes = figure.axes[0]
        places = [axes.transData.transform((1, place))[1] for place in axes.get_yticks()]
        assert all(upper - lower >= 10 * figure.dpi / 72 for upper, lower in pairwise(places)), count
        assert len(places) > count / 4


def test_bars_are_as_long_as_the_numbers():
    _, opt, _ = training(ftp, 3)
    measured = hft.measure(opt)
    (axes,) = plot.distances(measured).axes
    assert [bar.get_width() for bar in axes.patches] == [layer["distance"] for layer in measured.values()]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(measured)
    (axes,) = plot.distances({"a": {"radius": 1.0}, "b": {"radius": float("inf")}}, "radius").axes
    assert axes.get_xlabel() == "radius"
    assert [str(bar.get_width()) for bar in axes.patches] == ["1.0", "nan"]


def tower(steps: int = 2) -> list:
    opt = hft.hyper(
        hft.adam(lr=0.01), by=hft.hyper(hft.sgd(lr=1e-4), by=hft.sgd(lr=1e-7), over="lr"), over=("lr", "betas")
    )
    w, states = torch.ones(3, dtype=torch.float64), []
    state = opt.init(w)
    for _ in range(steps):
        w, state = opt.update(w, state, w)
        states.append(state)
    return states


def test_traces_have_a_line_for_each_hyperparameter_of_each_level():
    states = tower(6)
    lower, upper = plot.traces(states).axes
    assert lower.lines[0].get_xdata().tolist() == [1, 2, 3, 4, 5, 6]
    assert plot.traces(states[::3], steps=[1, 4]).axes[0].lines[0].get_xdata().tolist() == [1, 4]
    lines = {line.get_label(): line.get_ydata() for line in lower.lines}
    assert lines.keys() == {"lr", "betas.0", "betas.1"}
    assert list(lines["lr"]) == [s.tuned["lr"].item() for s in states]
    assert list(upper.lines[0].get_ydata()) == [s.by.tuned["lr"].item() for s in states]
    table = [SimpleNamespace(tuned={"lr": torch.full((3,), 0.1 * k), "eps": torch.tensor(1.0)}) for k in range(4)]
    (axes,) = plot.traces(table).axes  # a line for each of its numbers, of one colour and with one label
    assert [line.get_label() for line in axes.lines if not line.get_label().startswith("_")] == ["lr", "eps"]
    assert len({line.get_color() for line in axes.lines[:3]}) == 1
    assert axes.lines[2].get_ydata()[3] == pytest.approx(0.3)


def test_matplotlib_is_imported_when_used_and_named_when_missing():
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import hyperopt_ftp; from hyperopt_ftp import plot\n"
        "try:\n    plot.radii([1], ['a'], [[1.0]])\n"
        "except ImportError as error:\n    print(error)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told == "figures need matplotlib: pip install 'hyperopt-ftp[plot]'\n"


# In words


def three_layers() -> tuple[list[tuple[str, torch.nn.Parameter]], hft.MARSSP]:
    """Of which one is pushed beyond its ball in both rows, one in one row of two, one in none."""
    named = [(name, torch.nn.Parameter(torch.zeros(2, 2))) for name in ("a.up", "a.down", "b")]
    opt = hft.MARSSP(torch.optim.SGD(named, lr=1.0), radius=1.0)
    for (_, p), far in zip(named, ([3.0, 3.0], [3.0, 0.01], [0.01, 0.01]), strict=True):
        p.grad = -torch.tensor(far).unsqueeze(1).expand(2, 2).clone()
    return named, opt


def test_each_case_is_described():
    _, opt = three_layers()
    opt.step()
    assert hft.describe(opt).splitlines() == [
        "held: 1 of 3 layers (a.up); their balls decide how far they go; to let them go further, raise radius",
        "partly held: 1 of 3 layers (a.down); their balls limit some of their rows",
        "free: 1 of 3 layers (b); they go as without a ball; to hold them, lower radius",
    ]


def test_layers_at_their_anchor_are_described_by_module():
    named = [(f"{n}.{kind}", torch.nn.Parameter(torch.zeros(2, 2))) for n in "ab" for kind in ("weight", "bias")]
    opt = hft.FTPSGD(named, lr=0.1)
    for _, p in named:
        p.grad = torch.ones(2, 2)
    assert hft.describe(opt).startswith("no layer with a radius has made a step: there was none, or it found no grad")
    opt.step()
    said = hft.describe(opt)
    assert said.startswith("at the anchor: 4 of 4 layers (a.*, b.*); their gradients do not agree")
    assert "raise" not in said


def test_a_watch_counts_the_steps_for_which_a_layer_is_held(tmp_path):
    named, opt = three_layers()
    seen = hft.watch(opt, lambda step, layers: None, every=2)
    for t in range(8):
        if t == 4:  # the second row too
            named[1][1].grad = named[0][1].grad.clone()
        opt.step()
    assert seen.held == {"a.up": 6, "a.down": 2}
    assert "held: 2 of 3 layers (a.*), for 2 steps or more; their balls" in hft.describe(opt, seen.held)
    named[0][1].grad = torch.full((2, 2), 0.45)  # back toward the anchor, in two steps
    opt.step()
    opt.step()
    assert "a.up" not in seen.held


@pytest.mark.parametrize(("agree", "steps", "warns"), [(False, 320, True), (True, 320, False), (False, 299, False)])
def test_a_network_that_stays_at_its_anchor_is_told_once(agree, steps, warns):
    w = torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))
    opt = hft.FTPSGD([w], lr=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for t in range(steps):
            w.grad = torch.full_like(w, 1.0 if agree or t % 2 else -1.0)
            opt.step()
    assert [str(x.message)[:54] for x in caught] == ["after 300 steps every layer is still at its anchor: gr"] * warns
    assert all(x.filename == __file__ for x in caught)


def test_what_has_no_radii_is_not_described():
    w = torch.nn.Parameter(torch.zeros(2))
    opt = hft.L2SP(torch.optim.SGD([w], lr=0.1), strength=0.1)
    w.grad = torch.ones(2)
    opt.step()
    with pytest.raises(TypeError, match="describe is for optimizers with radii, such as FTPAdamW, got L2SP"):
        hft.describe(opt)
