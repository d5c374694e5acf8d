"""Every method side by side: learning rates chosen on held-out examples, WiSE-FT, logs, memory."""

import csv
import json
import math
import sys
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

import hyperopt_ftp as hft
from experiments.classification.data import Pictures
from experiments.classification.study import load_parts, make_task
from experiments.classification.task import ClassificationTask, Config
from experiments.common import checkpoint, comparison, figures
from experiments.common.comparison import Comparison
from experiments.common.memory import peak, reset_peak
from experiments.common.methods import FOLLOWS, METHODS
from experiments.common.trainer import Trainer, schedule_of

from ..support.measured import numbers
from .running import CONVOLUTIONAL

CPU = torch.device("cpu")
WITH_RADII = {"ftp", "ftp_exact", "ftp_kappa0", "ftp_exact_kappa0", "ftp_share", "ftp_start", "tpgm", "mars_sp"}
TRAINED = set(CONVOLUTIONAL) - FOLLOWS.keys()


def read(folder: Path) -> dict:
    content = json.loads((folder / "metrics.json").read_text())
    assert content["status"] == "finished"
    return content


def steps_of(folder: Path, method: str) -> list[dict[str, str]]:
    with (folder / "steps" / f"{method}-seed0.csv").open() as opened:
        return list(csv.DictReader(opened))


def cosine(lr: float, steps: int) -> list[float]:
    """The rates of torch's own schedule."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@dataclass
class Watch:
    """What is done in a run, in order, and which items each training sees."""

    validation: list[float] = field(default_factory=list)  # what the next ones are to be; then the real ones
    events: list[str] = field(default_factory=list)
    drawn: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    tested: list[dict[str, torch.Tensor]] = field(default_factory=list)


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    """They cost more than the trainings here; the runs `finished` and `everything`, made before, have theirs."""
    monkeypatch.setattr(figures, "save", lambda figure, file: checkpoint.write_text(file, ""))


@pytest.fixture
def watch(monkeypatch) -> Watch:
    seen = Watch()
    train, draw = Trainer.train, ClassificationTask._draw
    validate, test = ClassificationTask.validate, ClassificationTask.test

    def note_train(self, name, *arguments, **named):
        seen.events.append(name)
        return train(self, name, *arguments, **named)

    def note_draw(self, pictures: Pictures, chosen, generator):
        seen.drawn[seen.events[-1]] |= {pictures.items[i] for i in chosen.tolist()}
        assert set(pictures.domains[chosen].tolist()) == {self.id_domain} or seen.events[-1] == "anchor"
        return draw(self, pictures, chosen, generator)

    def note_validate(self, model):
        seen.events.append("validate")
        return seen.validation.pop(0) if seen.validation else validate(self, model)

    def note_test(self, model):
        seen.events.append("test")
        seen.tested.append({name: value.clone() for name, value in model.state_dict().items()})
        return test(self, model)

    monkeypatch.setattr(Trainer, "train", note_train)
    monkeypatch.setattr(ClassificationTask, "_draw", note_draw)
    monkeypatch.setattr(ClassificationTask, "validate", note_validate)
    monkeypatch.setattr(ClassificationTask, "test", note_test)
    return seen


def test_the_learning_rate_is_the_best_on_held_out_items_and_no_other_item_decides(workplace, watch, cache, quiet):
    watch.validation = [50.0, 75.0, 60.0]
    arguments = ("--method", "linear", "--lrs", "0.0003", "0.001", "0.003", "--seeds", "1", "0")
    assert workplace.command(*arguments, "--out", "runs/chosen").status == 0
    chosen = [f"linear, lr {lr}" for lr in (0.0003, 0.001, 0.003)]
    fine_tuned = ["linear, seed 1", "linear, seed 0"]
    told = [event for event in watch.events if event != "anchor"]
    first, then = (
        [e for name in chosen for e in (name, "validate")],
        [e for name in fine_tuned for e in (name, "test")],
    )
    assert told == ["test", *first, *then]
    with quiet as progress:
        parts, _ = load_parts(Config(limit=48, lrs=(0.001,)), cache, progress)
    for name in chosen:
        assert watch.drawn[name] == set(parts["train"].items)
    for name in fine_tuned:
        assert watch.drawn[name] == set(parts["finetune"].items)
    for other in ("validation", "test", "pretrain"):
        assert not set(parts["train"].items) & set(parts[other].items)
    content = read(Path("runs/chosen"))
    assert content["rates"] == {"linear": {"0.0003": 50.0, "0.001": 75.0, "0.003": 60.0}}
    assert {result["lr"] for result in content["results"].values()} == {0.001}
    rows = steps_of(Path("runs/chosen"), "linear")
    assert float(rows[0]["lr"]) == 0.001
    report = Path("runs/chosen/report.md").read_text()
    assert "| linear probe | 50.0 | 75.0 (chosen) | 60.0 |" in report
    assert content["summary"]["methods"]["linear"]["lr"] == 0.001


@pytest.mark.parametrize(
    ("scores", "lr", "shown"),
    [
        ([80.0, 80.0, 80.0], 0.0003, "80.0 (chosen, edge) | 80.0 | 80.0"),
        ([0.0, -1.0, -1.0], 0.003, "0.0 (chosen, edge) | diverged | diverged"),
    ],
)
def test_of_equally_good_learning_rates_the_smaller_is_taken(workplace, watch, tmp_path, scores, lr, shown):
    watch.validation = [score for score in scores if score >= 0]
    usual, lost = ("0.003", "0.0003", "0.001"), ("0.003", "1e30", "2e30")
    rates = [rate if score >= 0 else other for score, rate, other in zip(scores, usual, lost, strict=True)]
    out = tmp_path / "run"
    arguments = ("--method", "adamw", "--epochs", "2") if -1.0 in scores else ("--method", "linear")
    assert workplace.command(*arguments, "--lrs", *rates, "--out", str(out)).status == 0
    content = read(out)
    (result,) = content["results"].values()
    assert list(content["rates"].values()) == [dict(zip((str(float(r)) for r in rates), scores, strict=True))]
    assert result["lr"] == lr
    assert shown in (out / "report.md").read_text()


def test_a_choice_that_was_stopped_ends_with_the_same_numbers(workplace):
    arguments = ("--method", "linear", "--epochs", "2", "--lrs", "0.0003", "0.001")
    assert workplace.command(*arguments, "--out", "runs/choice").status == 0
    again = ("--out", "runs/stopped-choice")
    # an epoch of the choice has two steps
    first = workplace.command(*arguments, *again, interrupt=("linear, lr 0.001", 3))
    assert (first.status, first.trainings) == (130, ["linear, lr 0.0003", "linear, lr 0.001"])
    half = json.loads(Path("runs/stopped-choice/metrics.json").read_text())
    assert (half["rates"]["linear"].keys(), half["results"]) == ({"0.0003"}, {})
    last = workplace.command(*arguments, *again)
    assert last.trainings == ["linear, lr 0.001", "linear, seed 0"]
    assert numbers(Path("runs/stopped-choice")) == numbers(Path("runs/choice"))


@pytest.mark.parametrize(("follower", "of"), [("wise", "adamw"), ("wise_ftp", "ftp")])
def test_wise_is_the_mean_of_the_anchor_and_of_what_it_follows(workplace, watch, follower, of):
    folder = Path(f"runs/{follower}")
    arguments = ("--method", follower, of, "--seeds", "4")
    done = workplace.command(*arguments, "--out", str(folder))
    assert (done.status, [name for name in done.trainings if name != "anchor"]) == (0, [f"{of}, seed 4"])
    anchor, tuned, mixed = watch.tested
    kept = checkpoint.load(folder / "checkpoint.pt")["training"]["model"]
    assert all(torch.equal(value, kept[name]) for name, value in tuned.items())
    assert anchor.keys() == tuned.keys() == mixed.keys()
    moved = 0
    for name, value in mixed.items():
        if value.is_floating_point():
            expected = (anchor[name].double() + tuned[name].double()) / 2
            torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)
            moved += not torch.equal(value, tuned[name])
        else:
            assert torch.equal(value, anchor[name])
    assert moved > 100
    results = read(folder)["results"]
    assert results.keys() == {f"{follower}-seed4", f"{of}-seed4"}
    task = make_task(Config(limit=48), Path("runs/cache"), Quiet())
    model = task.new_model()
    for name, weights in ((of, tuned), (follower, mixed)):
        model.load_state_dict(weights)
        assert results[f"{name}-seed4"]["scores"] == task.test(model)
        assert results[f"{name}-seed4"]["method"] == name


def test_model_stock_and_the_soup_are_made_of_the_same_two_trainings(workplace, watch):
    done = workplace.command("--method", "model_stock", "soup", "adamw", "--seeds", "4", "--out", "runs/stock")
    assert done.status == 0
    assert [name for name in done.trainings if name != "anchor"] == ["adamw, seed 4", "adamw, seed 1004"]
    anchor, tuned, merged, soup = watch.tested
    other = checkpoint.load(Path("runs/stock/checkpoint.pt"))["training"]["model"]
    assert workplace.command("--method", "adamw", "--seeds", "1004", "--out", "runs/other").status == 0
    assert all(torch.equal(value, other[name]) for name, value in watch.tested[-1].items())
    expected = hft.model_stock([tuned, other], anchor)[0]
    assert all(torch.equal(value, merged[name]) for name, value in expected.items())
    assert all(torch.equal(value, ((tuned[name].double() + other[name]) / 2).to(value)) for name, value in soup.items())
    results = read(Path("runs/stock"))["results"]
    assert results["model_stock-seed4"]["seconds"] >= results["adamw-seed4"]["seconds"]


def test_lp_ft_begins_where_a_probe_ends_and_goes_on_from_its_own_checkpoint(workplace, monkeypatch):
    begun, train = {}, Trainer.train

    def note(self, name, model, *arguments, **named):
        begun[name] = {name: value.clone() for name, value in model.state_dict().items()}
        return train(self, name, model, *arguments, **named)

    monkeypatch.setattr(Trainer, "train", note)
    arguments = ("--method", "adamw", "lp_ft", "linear", "--lr", "0.001", "--epochs", "2")
    assert workplace.command(*arguments, "--out", "runs/probed").status == 0
    probe = checkpoint.load(Path("runs/probed/before.pt"))["training"]
    assert probe["optimizer"]["param_groups"][0]["initial_lr"] == 0.01
    anchor, start = begun["linear, seed 0"], begun["lp_ft, seed 0"]
    moved = {name for name, value in start.items() if not torch.equal(value, anchor[name])}
    assert moved == {"network._fc.weight", "network._fc.bias"}
    assert all(torch.equal(value, probe["model"][name]) for name, value in start.items())
    assert all(torch.equal(value, anchor[name]) for name, value in begun["lp_ft, seed 0: linear"].items())
    stopped = workplace.command(*arguments, "--out", "runs/probed2", interrupt=("lp_ft, seed 0", 3))
    assert (stopped.status, stopped.trainings[-2:]) == (130, ["lp_ft, seed 0: linear", "lp_ft, seed 0"])
    assert workplace.command(*arguments, "--out", "runs/probed2").trainings == ["lp_ft, seed 0", "linear, seed 0"]
    assert numbers(Path("runs/probed2")) == numbers(Path("runs/probed"))


def test_the_mean_over_a_training_that_was_stopped_is_that_of_a_whole_one(workplace, watch):
    arguments = ("--method", "adamw", "ema", "--lr", "0.003", "--epochs", "2")
    assert workplace.command(*arguments, "--out", "runs/mean").status == 0
    *_, tuned, mean = watch.tested
    assert workplace.command(*arguments, "--out", "runs/mean2", interrupt=("adamw, seed 0", 3)).status == 130
    assert workplace.command(*arguments, "--out", "runs/mean2").status == 0
    assert numbers(Path("runs/mean2")) == numbers(Path("runs/mean"))
    assert all(torch.equal(value, mean[name]) for name, value in watch.tested[-1].items())
    assert not torch.equal(mean["network._fc.weight"], tuned["network._fc.weight"])


@pytest.mark.parametrize("anchor", ["styles", "imagenet"])
def test_a_step_of_mixout_is_made_with_mixed_weights(cache, quiet, workplace, anchor):
    """And with the trained ones where nothing is to be mixed: in the free head of an anchor without one."""
    config = Config(limit=48, anchor=anchor, lrs=(1e-3,))
    task = make_task(config, cache, quiet)
    model = task.new_model()
    start = {name: value + 0.1 if value.is_floating_point() else value for name, value in model.state_dict().items()}
    forward = Comparison(Trainer(task, quiet), config, start, Path())._forward(model, "mixout", 0.5)
    assert forward is not None
    images = task.parts["finetune"].draw(torch.arange(2), torch.Generator())[0]
    names = [name for name, _ in model.named_parameters() if anchor == "styles" or not name.startswith(model.head[:-1])]
    torch.manual_seed(0)
    used = hft.mixout(dict(model.named_parameters()), {name: start[name] for name in names}, p=0.5)
    model.eval()
    expected = torch.func.functional_call(model, used, (images,))
    torch.manual_seed(0)
    assert torch.equal(forward(images), expected)
    assert not torch.equal(model(images), expected) or anchor == "imagenet"  # whose new head is zero
    assert (used["network._fc.weight"] is model.get_parameter("network._fc.weight")) is (anchor == "imagenet")


class Quiet:
    """Nothing is drawn or read anew, so nothing is shown."""

    def task(self, *_):
        raise AssertionError("drawn again")


def test_every_method_leaves_its_scores_steps_and_radii(everything):
    content = read(everything)
    assert content["results"].keys() == {f"{method}-seed0" for method in CONVOLUTIONAL}
    scores = set()
    for name, result in content["results"].items():
        assert name == f"{result['method']}-seed0"
        assert result["scores"].keys() == {"Twemoji", "OpenMoji", "Noto outline"}
        values = [*result["scores"].values(), result["id"], result["ood"]]
        assert all(math.isfinite(value) and 0 <= value <= 100 for value in values)
        assert result["steps"] == 2
        assert not result["diverged"]
        assert result["lr"] == 5e-4
        assert result["images_per_second"] > 0
        assert result["peak_mib"] > 100
        scores.add(tuple(values))
    assert len(scores) > 1
    assert {file.name for file in (everything / "steps").iterdir()} == {f"{method}-seed0.csv" for method in TRAINED}
    assert {file.name for file in (everything / "radii").iterdir()} == {f"{m}-seed0.json" for m in WITH_RADII}
    for method in WITH_RADII:
        radii = json.loads((everything / "radii" / f"{method}-seed0.json").read_text())
        assert radii["steps"] == ([2] if method == "tpgm" else [1, 2])  # tpgm: one step without radii
        assert len(radii["layers"]) == len(set(radii["layers"])) > 100
        assert all(len(row) == len(radii["layers"]) and min(row) > 0 for row in radii["radii"])
    drawn = {"scores.png", "trade-off.png", "pictures.png", "radii.png"}
    assert {file.name for file in everything.glob("*.png")} == drawn
    report = (everything / "report.md").read_text()
    shown = (everything.parent / "everything.txt").read_text()
    for method in map(METHODS.__getitem__, CONVOLUTIONAL):
        assert f"| {method.title} |" in report
        assert f"{method.title} minus AdamW" in report or method.title == "AdamW"
        assert method.title in shown
    assert all(f"({figure})" in report for figure in drawn)


def test_the_strength_is_chosen_at_the_best_learning_rate(workplace, watch):
    watch.validation = [50.0, 60.0, 70.0]
    arguments = ("--method", "spd", "adamw", "--lrs", "0.0003", "0.001", "--out", "runs/strength")
    watch.validation += [40.0, 30.0]  # of adamw
    done = workplace.command(*arguments)
    assert done.status == 0
    choosing = ["spd, lr 0.0003", "spd, lr 0.001", "spd, strength 0.3", "adamw, lr 0.0003", "adamw, lr 0.001"]
    assert [name for name in done.trainings if name != "anchor"] == [*choosing, "spd, seed 0", "adamw, seed 0"]
    content = read(Path("runs/strength"))
    assert content["strengths"] == {"spd": {"1.0": 60.0, "0.3": 70.0}}
    result = content["results"]["spd-seed0"]
    assert (result["lr"], result["strength"]) == (0.001, 0.3)
    assert "strength" not in content["results"]["adamw-seed0"]
    assert "- SPD: 1.0: 60.0, 0.3: 70.0; chosen 0.3." in Path("runs/strength/report.md").read_text()


def test_every_step_is_written_down(everything, finished):
    for method in TRAINED:
        rows = steps_of(everything, method)
        assert [int(row["step"]) for row in rows] == [1, 2]
        assert all(0 < float(row["loss"]) < 10 and float(row["seconds"]) > 0 for row in rows)
        assert [float(row["lr"]) for row in rows] == pytest.approx(cosine(5e-4, 2), rel=1e-5)
        right = [float(row["right"]) for row in rows]
        if method == "tpgm":
            assert all(map(math.isnan, right))
        else:
            sizes = (8, 5) if METHODS[method].validates else (8, 8)  # some hold out three of the sixteen
            counts = [size * share for size, share in zip(sizes, right, strict=True)]
            assert counts == pytest.approx([round(count) for count in counts])
    rows = steps_of(finished, "ftp")  # of two epochs
    assert [float(row["lr"]) for row in rows] == pytest.approx(cosine(5e-4, 4), rel=1e-5)
    losses = [float(row["loss"]) for row in rows]
    result = read(finished)["results"]["ftp-seed0"]
    assert result["losses"] == pytest.approx([sum(losses[:2]) / 2, sum(losses[2:]) / 2], rel=1e-5)


def test_a_rate_that_warms_up_rises_from_its_share_to_the_whole_and_falls_as_a_cosine():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    schedule, rates = schedule_of(optimizer, steps=10, rising=4), []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.125, 0.21875, 0.3125, 0.40625, *cosine(0.5, 6)])


def test_tpgm_resumes_and_diverges_as_the_others(workplace):
    arguments = ("--method", "tpgm", "--epochs", "4")  # eight steps, five of them without radii
    assert workplace.command(*arguments, "--out", "runs/tpgm").status == 0
    stopped = workplace.command(*arguments, "--out", "runs/tpgm2", interrupt=("tpgm, seed 0", 8))
    assert (stopped.status, stopped.trainings) == (130, ["tpgm, seed 0"])
    assert workplace.command(*arguments, "--out", "runs/tpgm2").status == 0
    assert numbers(Path("runs/tpgm2")) == numbers(Path("runs/tpgm"))
    assert read(Path("runs/tpgm"))["results"]["tpgm-seed0"]["steps"] == 8
    done = workplace.command("--method", "tpgm", "--lr", "1e30", "--out", "runs/tpgm3")
    assert done.status == 0
    assert "1 diverged" in done.text
    assert read(Path("runs/tpgm3"))["results"]["tpgm-seed0"]["diverged"]


def test_tpgm_leaves_a_new_head_free(workplace):
    done = workplace.command("--anchor", "imagenet", "--method", "tpgm", "--out", "runs/tpgm-imagenet")
    assert done.status == 0
    layers = json.loads(Path("runs/tpgm-imagenet/radii/tpgm-seed0.json").read_text())["layers"]
    assert len(layers) > 100
    assert not any(name.startswith("network._fc.") for name in layers)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak cannot be forgotten")
def test_the_peak_of_memory_is_that_since_the_reset():
    size = 256
    reset_peak(CPU)
    before = peak(CPU)
    assert before > 100  # torch alone
    block = torch.ones(size, 2**18)
    high = peak(CPU)
    assert high == pytest.approx(before + size, abs=32)
    del block
    assert peak(CPU) == pytest.approx(high, abs=8)  # the kernel counts in batches
    reset_peak(CPU)
    assert peak(CPU) < high - size + 32


def test_the_peak_is_that_of_the_device_that_trains(workplace, monkeypatch, cache, quiet, tmp_path):
    """The anchor's weights come from a file, on the CPU; the training may be elsewhere."""
    config = replace(Config(limit=48, methods=("linear",), epochs=1, batch_size=8), device="cpu:0")
    seen = []
    monkeypatch.setattr(comparison, "peak", lambda device: seen.append(device) or 1.0)
    monkeypatch.setattr(comparison, "reset_peak", seen.append)
    with quiet as progress:
        task = make_task(config, cache, progress)
        trainer = Trainer(task, progress)
        start = {name: value.cpu() for name, value in task.new_model().state_dict().items()}
        comparison.Comparison(trainer, config, start, tmp_path).fine_tune("linear", 0, 1e-3)
    assert seen == [torch.device("cpu:0")] * 2


def test_one_method_may_choose_from_more_rates(workplace, watch, tmp_path):
    out = tmp_path / "wider"
    watch.validation += [50.0, 60.0, 70.0, 80.0, 10.0]
    given = ["--method", "linear", "adamw", "--lrs", "0.001", "0.003", "--wider", "adamw", "0.0001"]
    assert workplace.command(*given, "--out", str(out)).status == 0
    tried = {"linear": {"0.001": 50.0, "0.003": 60.0}, "adamw": {"0.001": 70.0, "0.003": 80.0, "0.0001": 10.0}}
    assert read(out)["rates"] == tried
    report = (out / "report.md").read_text()
    assert "| linear probe |  | 50.0 | 60.0 (chosen, edge) |" in report
    assert "| AdamW | 10.0 | 70.0 | 80.0 (chosen, edge) |" in report
    assert workplace.command("--method", "linear", "--lrs", "0.1", "--wider", "ftp", "0.2").status == 2
