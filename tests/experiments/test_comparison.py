"""Every method side by side on a small task: what is chosen on what, what each is made of, and what a run leaves."""

import csv
import json
from pathlib import Path

import pytest
import torch

import hyperopt_ftp as hft
from experiments.common import checkpoint, tables
from experiments.common.comparison import Comparison, best
from experiments.common.methods import FOLLOWS, METHODS, held
from experiments.common.trainer import Trainer, schedule_of

from ..support.measured import numbers
from .running import Ran, ran
from .small_task import STUDY, Config, Points

WITH_RADII = {
    "ftp", "ftp_exact", "ftp_kappa0", "ftp_exact_kappa0", "ftp_radius", "ftp_start", "tpgm",
    "ftp_nesterov", "mars_sp", "ftp_prodigy", "ftp_dadapt", "ftp_ldog", "ftp_schedule_free",
}  # fmt: skip
TRAINED = METHODS.keys() - FOLLOWS.keys()


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """And without figures, which cost more than the trainings here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tables, "trade_off", lambda file, *_: checkpoint.write_text(file, ""))


def command(task: Points, *arguments: str, interrupt: tuple[str, int] | None = None) -> Ran:
    """The study's command; Ctrl-C arrives after a step of a training."""

    def on_step(name: str, step: int) -> None:
        task.on_step(name, step)
        if (name, step) == interrupt:
            raise KeyboardInterrupt

    return ran(STUDY, *arguments, data=task, on_step=on_step)


def read(folder: str) -> dict:
    content = json.loads(Path(folder, "metrics.json").read_text())
    assert content["status"] == "finished"
    return content


def steps_of(folder: str, name: str) -> list[dict[str, str]]:
    with Path(folder, "steps", f"{name}.csv").open() as opened:
        return list(csv.DictReader(opened))


def trainings(task: Points) -> list[str]:
    return [event for event in task.events if event not in ("anchor", "test", "validate")]


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


def test_the_learning_rate_is_the_best_on_held_out_items_and_no_other_item_decides():
    task = Points(given=[50.0, 75.0, 60.0])
    arguments = ("--method", "linear", "--lrs", "0.0003", "0.001", "0.003", "--seeds", "1", "0")
    assert command(task, *arguments, "--out", "chosen").status == 0
    chosen = [f"linear, lr {lr}" for lr in (0.0003, 0.001, 0.003)]
    fine_tuned = ["linear, seed 1", "linear, seed 0"]
    expected = [e for name in chosen for e in (name, "validate")] + [e for name in fine_tuned for e in (name, "test")]
    assert task.events == ["anchor", "test", *expected]
    # The first batch of a training is drawn before its first step is told.
    for name in chosen[1:]:
        assert task.drawn[name] <= set(task.places["train"].tolist())
    for name in fine_tuned:
        assert task.drawn[name] <= set(task.places["finetune"].tolist())
    content = read("chosen")
    assert content["rates"] == {"linear": {"0.0003": 50.0, "0.001": 75.0, "0.003": 60.0}}
    assert {result["lr"] for result in content["results"].values()} == {0.001}
    assert float(steps_of("chosen", "linear-seed0")[0]["lr"]) == 0.001
    assert "| linear probe | 50.0 | 75.0 (chosen) | 60.0 |" in Path("chosen/report.md").read_text()


def test_of_equally_good_learning_rates_the_smaller_is_taken_and_none_that_diverged():
    assert best({"0.003": 80.0, "0.0003": 80.0, "0.001": 80.0}) == 0.0003
    assert best({"0.003": 0.0, "1e+30": -1.0}) == 0.003
    assert best({}, usual=0.5) == 0.5
    task = Points(given=[0.0])
    assert command(task, "--method", "adamw", "--lrs", "0.003", "1e30", "2e30", "--out", "run").status == 0
    assert read("run")["rates"] == {"adamw": {"0.003": 0.0, "1e+30": -1.0, "2e+30": -1.0}}
    assert "0.0 (chosen, edge) | diverged | diverged" in Path("run/report.md").read_text()


def test_the_strength_is_chosen_at_the_best_learning_rate_and_one_method_may_choose_from_more_rates():
    task = Points(given=[50.0, 60.0, 70.0, 40.0, 30.0, 10.0])
    arguments = ("--method", "spd", "adamw", "--lrs", "0.0003", "0.001", "--wider", "adamw", "0.0001")
    assert command(task, *arguments, "--out", "strength").status == 0
    choosing = ["spd, lr 0.0003", "spd, lr 0.001", "spd, strength 0.3"]
    choosing += [f"adamw, lr {lr}" for lr in (0.0003, 0.001, 0.0001)]
    assert trainings(task) == [*choosing, "spd, seed 0", "adamw, seed 0"]
    content = read("strength")
    assert content["strengths"] == {"spd": {"1.0": 60.0, "0.3": 70.0}}
    assert content["rates"]["adamw"] == {"0.0003": 40.0, "0.001": 30.0, "0.0001": 10.0}
    result = content["results"]["spd-seed0"]
    assert (result["lr"], result["strength"]) == (0.001, 0.3)
    report = Path("strength/report.md").read_text()
    assert "- SPD: 1.0: 60.0, 0.3: 70.0; chosen 0.3." in report
    assert "| AdamW | 10.0 | 40.0 (chosen) | 30.0 |" in report


@pytest.mark.parametrize(
    ("arguments", "interrupts", "saved_step"),
    [
        # An epoch has two steps: at step 1 there is no checkpoint, at 3 one lies behind, at 4 it comes too late.
        (("--method", "adamw", "ftp", "linear"), [("adamw, seed 0", 1), ("ftp, seed 0", 3), ("linear, seed 0", 4)], 2),
        (("--method", "linear", "--lrs", "0.0003", "0.001"), [("linear, lr 0.001", 3)], 2),
        (("--method", "adamw", "lp_ft", "linear"), [("lp_ft, seed 0", 3)], 2),
        (("--method", "adamw", "ema"), [("adamw, seed 0", 3)], 2),
        # eight steps, of which five without radii; three of the anchor, one an epoch
        (("--method", "tpgm", "--epochs", "4", "--lr", "0.01"), [("tpgm, seed 0", 8)], None),
        (("--method", "adamw", "--anchor-epochs", "3"), [("anchor", 2)], None),
    ],
)
def test_a_run_stopped_in_its_trainings_ends_with_the_same_numbers(arguments, interrupts, saved_step, tmp_path):
    for interrupt in interrupts:
        assert command(Points(), *arguments, "--out", "stopped", interrupt=interrupt).status == 130
    if saved_step is not None and len(interrupts) == 1:
        assert checkpoint.load(Path("stopped/checkpoint.pt"))["training"]["progress"]["step"] == saved_step
    resumed = Points()
    assert command(resumed, *arguments, "--out", "stopped").status == 0
    assert interrupts[-1][0] in resumed.events
    for file in Path("runs/cache").glob("anchor-*"):
        file.unlink()
    whole = Points()
    assert command(whole, *arguments, "--out", "whole").status == 0
    assert numbers(Path("stopped")) == numbers(Path("whole"))
    assert len(resumed.events) < len(whole.events) or interrupts[-1][0] == "anchor"
    for name, value in whole.tested[-1].items():
        assert torch.equal(value, resumed.tested[-1][name])
    assert command(Points(), *arguments, "--out", "whole").begun == []  # finished


@pytest.mark.parametrize(("follower", "of"), [("wise", "adamw"), ("wise_ftp", "ftp")])
def test_wise_is_the_mean_of_the_anchor_and_of_what_it_follows(follower, of):
    task = Points()
    assert command(task, "--method", follower, of, "--seeds", "4", "--out", "run").status == 0
    assert trainings(task) == [f"{of}, seed 4"]
    anchor, tuned, mixed = task.tested
    for name, value in mixed.items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), (anchor[name].double() + tuned[name]) / 2, rtol=1e-6, atol=1e-7)
            assert not torch.equal(value, tuned[name])
        else:
            assert torch.equal(value, anchor[name])
    results = read("run")["results"]
    for name, weights in ((of, tuned), (follower, mixed)):
        model = task.new_model()
        model.load_state_dict(weights)
        assert results[f"{name}-seed4"]["scores"] == task.test(model)
        assert results[f"{name}-seed4"]["method"] == name


def test_model_stock_and_the_soup_are_made_of_the_same_two_trainings():
    task = Points()
    assert command(task, "--method", "model_stock", "soup", "adamw", "--seeds", "4", "--out", "stock").status == 0
    assert trainings(task) == ["adamw, seed 4", "adamw, seed 1004"]
    anchor, tuned, merged, soup = task.tested
    other = checkpoint.load(Path("stock/checkpoint.pt"))["training"]["model"]
    expected = hft.model_stock([tuned, other], anchor)[0]
    assert all(torch.equal(value, merged[name]) for name, value in expected.items())
    assert all(torch.equal(value, ((tuned[name].double() + other[name]) / 2).to(value)) for name, value in soup.items())


def test_lp_ft_begins_where_a_probe_at_ten_times_the_rate_ends():
    task = Points()
    assert command(task, "--method", "adamw", "lp_ft", "--lr", "0.001", "--epochs", "1", "--out", "run").status == 0
    probe = checkpoint.load(Path("run/before.pt"))["training"]
    assert probe["optimizer"]["param_groups"][0]["initial_lr"] == 0.01
    anchor, _, tuned = task.tested
    assert {name for name in anchor if not torch.equal(anchor[name], probe["model"][name])} == {"fc.weight", "fc.bias"}
    # AdamW moves an entry by at most the rate a step, and there are two.
    assert (tuned["fc.weight"] - probe["model"]["fc.weight"]).abs().max() < 0.0021
    assert (tuned["fc.weight"] - anchor["fc.weight"]).abs().max() > 0.005


@pytest.mark.parametrize("anchor", ["styles", "none"])
def test_a_step_of_mixout_is_made_with_mixed_weights(anchor, quiet):
    """And with the trained ones where nothing is to be mixed: in the free head of an anchor without one."""
    task, config = Points(), Config(anchor=anchor)
    model = task.new_model()
    start = {name: value + 0.1 if value.is_floating_point() else value for name, value in model.state_dict().items()}
    forward = Comparison(Trainer(task, quiet), config, start, Path())._forward(model, "mixout", 0.5)
    assert forward is not None
    named = dict(model.named_parameters())
    torch.manual_seed(0)
    used = hft.mixout(named, {name: start[name] for name in held(model, config, named)}, p=0.5)
    model.eval()
    expected = torch.func.functional_call(model, used, (task.x[:4],))
    torch.manual_seed(0)
    assert torch.equal(forward(task.x[:4]), expected)
    assert not torch.equal(model(task.x[:4]), expected)
    assert (used["fc.weight"] is named["fc.weight"]) is (anchor == "none")


def test_every_method_leaves_its_scores_steps_and_radii():
    done = command(Points(), "--method", *METHODS, "--out", "all")
    assert done.status == 0
    content = read("all")
    assert content["results"].keys() == {f"{method}-seed0" for method in METHODS}
    for name, result in content["results"].items():
        assert name == f"{result['method']}-seed0"
        assert (result["id"], result["ood"]) == (result["scores"]["near"], result["scores"]["far"])
        assert (result["steps"], result["diverged"], result["lr"]) == (4, False, 5e-4)
        assert result["images_per_second"] > 0
        assert result["peak_mib"] > 100
    assert {file.stem for file in Path("all/steps").iterdir()} == {f"{method}-seed0" for method in TRAINED}
    assert {file.stem for file in Path("all/radii").iterdir()} == {f"{method}-seed0" for method in WITH_RADII}
    for method in WITH_RADII:
        radii = json.loads(Path("all/radii", f"{method}-seed0.json").read_text())
        assert radii["steps"] == ([4] if method == "tpgm" else [1, 2, 3, 4])  # tpgm: three steps without radii
        assert all(len(row) == len(radii["layers"]) == 6 and min(row) > 0 for row in radii["radii"])
    for method in TRAINED:
        rows = steps_of("all", f"{method}-seed0")
        assert [int(row["step"]) for row in rows] == [1, 2, 3, 4]
        assert all(0 < float(row["loss"]) < 10 and float(row["seconds"]) > 0 for row in rows)
        rates = [float(row["lr"]) for row in rows]
        if method not in ("adamw_warmup", "adamw_layers", "hypergradient", "lora"):
            assert rates == pytest.approx([5e-4] * 4 if METHODS[method].constant else cosine(5e-4, 4), rel=1e-5)
    losses = [float(row["loss"]) for row in steps_of("all", "ftp-seed0")]
    expected = [sum(losses[:2]) / 2, sum(losses[2:]) / 2]
    assert content["results"]["ftp-seed0"]["losses"] == pytest.approx(expected, rel=1e-5)
    report = Path("all/report.md").read_text()
    assert all(f"| {method.title} |" in report for method in METHODS.values())
    assert "FTPAdamW minus AdamW" in done.text


def test_a_rate_that_warms_up_rises_from_its_share_to_the_whole_and_falls_as_a_cosine():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    schedule, rates = schedule_of(optimizer, steps=10, rising=4), []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.125, 0.21875, 0.3125, 0.40625, *cosine(0.5, 6)])


@pytest.mark.parametrize("method", ["adamw", "tpgm"])
def test_a_diverging_training_is_said_and_not_hidden(method):
    done = command(Points(), "--method", method, "--lr", "1e30", "--epochs", "4", "--out", "run")
    assert (done.status, "1 diverged" in done.text) == (0, True)
    assert read("run")["results"][f"{method}-seed0"]["diverged"]


@pytest.mark.parametrize("method", ["ftp", "tpgm"])
def test_a_new_head_is_free(method):
    free = {}
    for anchor in ("styles", "none"):
        out = f"run-{anchor}"
        assert (
            command(
                Points(), "--anchor", anchor, "--method", method, "--epochs", "4", "--lr", "0.01", "--out", out
            ).status
            == 0
        )
        free[anchor] = set(json.loads(Path(out, f"radii/{method}-seed0.json").read_text())["layers"])
    assert free["styles"] - free["none"] == {"fc.weight", "fc.bias"}


def test_a_difference_is_the_mean_over_the_seeds_of_that_at_each():
    """Of 1, 0, 2 and 11, 13, 12 points; of three values 1 apart the standard error is 1 / sqrt(3)."""
    scores = {"adamw": [(70, 30), (72, 34), (74, 38)], "ftp": [(71, 41), (72, 47), (76, 50)]}
    facts = {"images_per_second": 100.0, "peak_mib": 500, "seconds": 2.0, "lr": 5e-4, "diverged": False}
    results = {
        f"{method}-seed{seed}": {"id": near, "ood": far, **facts}
        for method, pairs in scores.items()
        for seed, (near, far) in enumerate(pairs)
    }
    config = {"methods": [*scores], "seeds": [0, 1, 2]}
    content = tables.summarise({"config": config, "anchor": {"kind": "imagenet"}, "results": results}, Points())
    said = ["FTPAdamW minus AdamW, seed by seed: OOD +12.0 ± 0.6, ID +1.0 ± 0.6 points."]
    assert tables.differences(content["summary"]) == said
