"""What is measured and written of each layer, and the figures of it."""

from __future__ import annotations

import csv
import subprocess
import sys

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

    model, opt, start = training(mars_sp, 12)
    measured, radii = hft.measure(opt), opt.radii()
    assert measured.keys() == radii.keys() == {"0.weight", "0.bias", "2.weight"}
    some = 0
    for name, layer in measured.items():
        p = dict(model.named_parameters())[name]
        d = p.detach() - start[name]
        assert layer["distance"] == pytest.approx(d.norm().item(), rel=1e-12)
        assert layer["radius"] == radii[name]
        norms = opt.state[p]["row_norm"]
        assert layer["clipped"] == pytest.approx((norms > radii[name]).double().mean().item(), rel=1e-6)
        some += 0 < layer["clipped"] < 1
    assert some


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


def test_nothing_is_known_before_the_first_step():
    assert hft.measure(training(ftp, 0)[1]) == {}


def test_a_csv_file_grows_step_by_step_and_over_runs(tmp_path):
    file = tmp_path / "layers.csv"
    model, opt, _ = training(ftp, 0)
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


def test_watching_changes_nothing():
    model, opt, _ = training(ftp, 0)
    hft.watch(opt, lambda step, layers: None)
    go_on(model, opt, 4)
    other, _, _ = training(ftp, 4)
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
        (lambda o, f: hft.watch(o, f / "x.csv", every=0), ValueError, "every must be a number of steps, .* got 0"),
        (lambda o, f: hft.watch(o, 3), TypeError, "to must be the path of a CSV file, .* got int"),
        (lambda o, f: hft.watch(torch.optim.SGD([torch.ones(1)]), f), TypeError, "such as FTPAdamW, got SGD"),
        (lambda o, f: hft.measure(torch.optim.SGD([torch.ones(1)])), TypeError, "such as FTPAdamW, got SGD"),
        (lambda o, f: hft.watch(o, f / "other.csv"), ValueError, "its first line is not step,layer,distance"),
        (lambda o, f: plot.history(f / "other.csv"), ValueError, r"has no column 'radius', it has \['a', 'b'\]"),
        (lambda o, f: plot.distances({}), ValueError, "has the optimizer made a step"),
        (lambda o, f: plot.distances({"w": {"radius": 1.0}}), ValueError, r"no layer has a 'distance'; there are"),
        (lambda o, f: plot.traces([]), ValueError, "states must be a sequence of states of hft.hyper"),
        (lambda o, f: plot.radii([1], ["a", "b"], [[1.0]]), ValueError, r"1 steps of 2 layers, got \(1, 1\)"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused(act, error, text, tmp_path):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(error, match=text):
        act(training(ftp, 0)[1], tmp_path)


# -- figures --------------------------------------------------------------------------------------------------------


def test_a_heat_map_shows_every_number(tmp_path):
    values = [[1.0, 1e-9, float("nan")], [0.5, 0.1, float("inf")]]
    figure = plot.radii([1, 5], ["a", "b", "c"], values)
    axes, bar = figure.axes
    mesh = axes.collections[0]
    shown = mesh.get_array()
    assert shown.shape == (3, 2)
    assert shown[0].tolist() == [1.0, 0.5]
    assert shown[1].tolist() == [1e-4, 0.1]
    assert shown.mask[2].all()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    assert bar.get_ylabel() == "radius"
    figure.savefig(tmp_path / "radii.png")
    assert (tmp_path / "radii.png").stat().st_size > 1000


def test_bars_are_as_long_as_the_numbers():
    _, opt, _ = training(ftp, 3)
    measured = hft.measure(opt)
    (axes,) = plot.distances(measured).axes
    assert [bar.get_width() for bar in axes.patches] == [layer["distance"] for layer in measured.values()]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(measured)


def test_traces_have_a_line_for_each_hyperparameter_of_each_level():
    opt = hft.hyper(
        hft.adam(lr=0.01), by=hft.hyper(hft.sgd(lr=1e-4), by=hft.sgd(lr=1e-7), over="lr"), over=("lr", "betas")
    )
    w, states = torch.ones(3, dtype=torch.float64), []
    state = opt.init(w)
    for _ in range(6):
        w, state = opt.update(w, state, w)
        states.append(state)
    lower, upper = plot.traces(states).axes
    lines = {line.get_label(): line.get_ydata() for line in lower.lines}
    assert lines.keys() == {"lr", "betas.0", "betas.1"}
    assert list(lines["lr"]) == [s.tuned["lr"].item() for s in states]
    assert list(upper.lines[0].get_ydata()) == [s.by.tuned["lr"].item() for s in states]


def test_matplotlib_is_imported_when_used_and_named_when_missing():
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import hyperopt_ftp; from hyperopt_ftp import plot\n"
        "try:\n    plot.radii([1], ['a'], [[1.0]])\n"
        "except ImportError as error:\n    print(error)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told == "figures need matplotlib: pip install 'hyperopt-ftp[plot]'\n"
