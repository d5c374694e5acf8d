"""Examples, recipes and stories run small, what they tell is true, and the page shows what the stories print."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import hyperopt_ftp as hft
from examples import custom_strategy, estimate_7b, towers, tpgm, watching
from examples.stories import folder, forgetting, layers, schedule

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("example", [towers, tpgm, custom_strategy], ids=lambda m: m.__name__)
def test_an_example_prints_its_table(example, capsys):
    example.main()
    assert len(capsys.readouterr().out.splitlines()) >= 3


def test_seven_billion_weights_on_paper(capsys, monkeypatch):
    """The row that is made soonest; and three layers of an eighth of the width take what one and two of them tell."""
    name, case = "Forward, lr", estimate_7b.CASES["Unroll, sqrt"]
    monkeypatch.setattr(estimate_7b, "CASES", {name: estimate_7b.CASES[name]})
    estimate_7b.main()
    first, _, row = capsys.readouterr().out.splitlines()
    assert first == "6.74 billion weights: 13 GB, and 54 GB of moments"
    assert row in (ROOT / "docs" / "concepts" / "cost.md").read_text().splitlines()
    for size, value in {"LAYERS": 3, "WIDTH": 512, "HIDDEN": 1376, "VOCABULARY": 4000, "STEPS": 4}.items():
        monkeypatch.setattr(estimate_7b, size, value)
    assert estimate_7b.at_all_layers(*case).memory == estimate_7b.estimate(3, *case).memory


def test_watching_leaves_its_figures(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["watching", str(tmp_path / "new")])
    watching.main()
    assert {file.name for file in (tmp_path / "new").iterdir()} == {"radii.png", "distance.png", "traces.png"}


@pytest.mark.parametrize(
    ("factor", "middle"), [(1 / 100, towers.FROM_BELOW), (10, towers.FROM_ABOVE)], ids=["from below", "from above"]
)
def test_a_tower_of_three_mends_a_learning_rate_that_plain_sgd_cannot_use(factor, middle):
    plain, _ = towers.train(hft.sgd(lr=towers.GOOD * factor), steps=120)
    tuned, lr = towers.train(towers.tower(towers.GOOD * factor, middle), steps=120)
    assert plain > 2.2  # chance is log 10 = 2.303
    assert tuned < 0.6
    assert abs(lr - towers.GOOD) < abs(towers.GOOD * factor - towers.GOOD)


def test_darts_approaches_the_exact_hypergradient():
    def weighted(params, batch, h):
        return custom_strategy.weighted(params, batch, h)

    (x, y), held_out = custom_strategy.digits()
    opt = hft.sgd(lr=0.3)
    h = opt.hparams | {"loss": {"weight": torch.zeros(10, dtype=torch.float64)}}
    exact, darts = (
        hft.hypergradient(
            opt, weighted, lambda p: custom_strategy.loss(p, held_out), custom_strategy.network(), [(x, y)], "loss", h,
            strategy=strategy,
        )[1]["loss"]["weight"]
        for strategy in (hft.Unroll(), custom_strategy.Darts())
    )  # fmt: skip
    torch.testing.assert_close(darts, exact, rtol=1e-3, atol=1e-6)


def test_darts_refuses_what_it_has_no_derivative_of():
    def weighted(params, batch, h):
        return h["weight"] * custom_strategy.loss(params, batch)

    data, _ = custom_strategy.digits()
    weight, lr = (torch.tensor(0.3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    opt, params = hft.sgd(), custom_strategy.network()
    for h, batches, text in (
        ({"lr": lr, "loss": {"weight": weight}}, [data], r"in hparams\['loss'\] only"),
        ({"loss": {"weight": weight}}, [data, data], "one step, got 2"),
    ):
        with pytest.raises(ValueError, match=text):
            hft.train(opt, weighted, params, batches, hparams=opt.hparams | h, strategy=custom_strategy.Darts())


# -- recipes -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a recipe, which prints so many lines and leaves a figure."""

    def call(name: str, lines: int, **size: Any) -> Any:
        figure = tmp_path / "figure.png"
        found = importlib.import_module(f"examples.recipes.{name}").main(**size, figure=str(figure))
        assert len(capsys.readouterr().out.splitlines()) == lines
        assert figure.stat().st_size > 0
        return found

    return call


def test_darts_finds_the_right_operations_by_both_orders(run):
    found = run("darts", 3, steps=100, seeds=2)
    assert min(found["second order"]) > 0.7  # chance: 0.2
    assert min(found["first order"]) > 0.7


def test_a_learned_schedule_beats_the_best_constant_rate_and_the_best_ramp(run):
    losses = run("learned_schedule", 4, steps=15)
    assert losses["learned"] < 0.98 * min(losses["constant"], losses["linear"])


def test_maml_adapts_in_one_step_where_pre_training_does_not(run):
    losses = run("maml", 5, steps=150)
    assert max(losses["MAML"], losses["ANIL"]) < 0.8 * losses["pre-trained"]
    assert losses["Meta-SGD"] < 0.5 * losses["pre-trained"]


def test_meta_weight_net_sees_through_wrong_labels(run):
    scores = run("meta_weight_net", 4, steps=300)
    assert scores["Meta-Weight-Net"] > max(scores["trained on all"], scores["on 100 clean ones"]) + 3


def test_torch_optim_tunes_what_is_given_as_leaves_and_bilevel_does_the_same(run):
    values = run("torch_optim_outside", 5, steps=12)
    assert values["Adam"] == pytest.approx(values["Adam, by bilevel"], rel=1e-9)
    assert max(x[-1] for x in values.values()) < 0.5 * values["Adam"][0]


def test_distilled_images_teach_more_than_real_ones(run):
    found = run("distillation", 3, steps=60)
    assert found["distilled"] > found["ten real ones"] + 3


def test_implicit_meta_gradients_are_there_before_unrolled_ones(run):
    found = run("implicit_maml", 7, steps=8, lengths=(50, 100))
    limit, *unroll = found["Unroll"]
    assert limit == 0
    assert found["Implicit"][0] < unroll[0] / 2
    assert found["Implicit"][1] < 0.01  # the tolerance of the solver is 0.003
    assert sum(found["loss"][-3:]) / 3 < 0.7 * found["loss"][0]


def test_one_l2_coefficient_for_each_input_finds_the_noise(run):
    found = run("l2_coefficients", 4, steps=12, noise=200)
    assert found["one for each"] > found["one for all"] + 5
    assert found["noise"] > 20 * found["pixels"]


def test_a_learned_optimizer_beats_those_it_is_compared_with(run):
    found = run("learned_optimizer", 6, steps=25)
    assert found["ZeroOrder"] < min(found["SGD"], found["momentum"], found["Adam"])


def test_learned_weights_of_examples_beat_both_sets_alike_and_the_labels_alone(capsys):
    scores = importlib.import_module("examples.recipes.few_labels").main(steps=200)
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert scores["learned weights"] > max(scores["labels alone"], scores["all alike"]) + 2


def test_a_recipe_has_at_most_60_lines():
    """As docs/recipes.md says."""
    folder = ROOT / "examples" / "recipes"
    lengths = {path.name: len(path.read_text().splitlines()) for path in folder.glob("[!_]*.py")}
    assert len(lengths) >= 9
    assert {name: length for name, length in lengths.items() if length > 60} == {}


# -- stories -----------------------------------------------------------------------------------------------------------


def printed(name: str) -> tuple[str, str]:
    """The section of a story, and what it says that the story prints: its last block of text."""
    sections = (ROOT / "docs" / "stories.md").read_text().split("\n## ")
    (section,) = (text for text in sections if f"python -m examples.stories.{name} FOLDER" in text)
    return section, re.findall(r"```text\n(.*?)```", section, flags=re.S)[-1]


def lines(text: str) -> set[str]:
    """Without their numbers, nor the spaces that a number's width makes, nor which rate was chosen."""
    return {" ".join(re.sub(r"\d[\d.e-]*", "#", line).replace("chosen", "").split()) for line in text.splitlines()}


def check(name: str, figures: set[str], tmp_path: Path, said: str) -> None:
    """The figures are there, the page shows them, and it shows such lines as were printed."""
    assert {file.name for file in tmp_path.iterdir()} == figures
    section, block = printed(name)
    assert set(re.findall(r"\]\(figures/stories/([\w-]+\.png)\)", section)) == figures
    assert len(said.splitlines()) > 3
    assert lines(said) - lines(block) == set()
    (seconds,) = re.findall(r"^took (\d+) s$", block, flags=re.M)  # less than a minute, as the page says
    assert int(seconds) < 60


def test_ftp_forgets_less_than_adamw(tmp_path, capsys):
    runs = forgetting.main(tmp_path, steps=100, seeds=2, lrs=(1e-3, 3e-3))
    check("forgetting", {"forgetting.png"}, tmp_path, capsys.readouterr().out)
    for lr in (1e-3, 3e-3):
        for seed in range(2):
            start, adamw = runs["AdamW"][lr][seed][0], runs["AdamW"][lr][seed][-1]
            wise, ftp = runs["WiSE-FT"][lr][seed][-1], runs["FTPAdamW"][lr][seed][-1]
            assert min(adamw.trained, wise.trained, ftp.trained) > start.trained + 2
            assert adamw.others < start.others - 10
            assert min(wise.others, ftp.others) > adamw.others + 5


def test_a_layer_in_the_middle_is_held(tmp_path, capsys):
    measured = layers.main(tmp_path, steps=100)
    check("layers", {"radii.png", "distance.png"}, tmp_path, capsys.readouterr().out)
    ftp, adamw = measured["FTPAdamW"], measured["AdamW"]
    assert ftp["4.weight"]["distance"] < 0.05 < adamw["4.weight"]["distance"]
    assert max(ftp, key=lambda layer: ftp[layer]["radius"]) == "0.weight"
    assert all(ftp[layer]["distance"] < adamw[layer]["distance"] for layer in ftp if layer.endswith("weight"))


def test_a_schedule_moved_by_its_gradient_is_better_on_test_digits(tmp_path, capsys):
    losses = schedule.main(tmp_path, rounds=8, runs=2, tests=1)
    check("schedule", {"schedule.png", "tuning.png"}, tmp_path, capsys.readouterr().out)
    assert max(losses["bilevel, Unroll"]) < 0.7 * losses["default"][0]
    assert max(losses["random search"]) < 0.7 * losses["default"][0]


def test_a_story_asks_for_a_folder_and_makes_it(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/a/layers.py"])
    with pytest.raises(SystemExit, match=r"give a folder for the figures: python -m examples\.stories\.layers FOLDER"):
        folder.figures()
    monkeypatch.setattr("sys.argv", ["/a/layers.py", str(tmp_path / "b" / "c")])
    assert folder.figures().is_dir()
