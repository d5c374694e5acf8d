"""The study of learning rates: scores by answers that chose nothing, intervals by groups, and a tiny run of it."""

import json
import math

import numpy as np
import pytest
import torch

from experiments.common.estimate import interval
from experiments.common.task import percent_right
from experiments.sensitivity.free.study import STUDY as FREE
from experiments.sensitivity.protocol import FOLDS, Answered, cross_fitted, fold_of, half_width, resampled
from experiments.sensitivity.radius.study import STUDY as RADIUS
from experiments.sensitivity.study import STUDY
from experiments.sensitivity.summary import Answers, all_scores, by_test, choices, scores_of, table, widest
from experiments.sensitivity.tuning import (
    SOURCES,
    at_one_rate,
    beside,
    chosen_elsewhere,
    drawn,
    gain,
    of_beside,
    of_defaults,
    of_splits,
    radii,
    without_rate,
)
from tests.experiments.running import ran, results


def answered(*right: str, groups=None, classes=None) -> Answered:
    """Of each setting, a digit for each example."""
    hits = np.array([list(map(float, row)) for row in right])
    count = hits.shape[1]
    classes = np.zeros(count) if classes is None else np.array(list(classes))
    return Answered(hits, classes, np.arange(count) if groups is None else np.array(groups))


def test_a_cross_fitted_score_is_that_by_hand():
    """Two settings, two splits, groups 0 to 4 each a fold of its own. Right in both splits without fold 0: 3 and 6 of
    8, so the second setting is taken there, and is wrong on it. So on: 3 and 6; 4 and 4, where the first is taken; 5
    and 4; 5 and 4. In the first split this is right on group 2 alone, in the second nowhere, though the second setting
    has 60 %. Out of distribution the first split scores 50 and 100, the second one 50 and 75, as means of two sets."""
    ids = [answered("11100", "00111"), answered("11000", "00111")]
    oods = [[answered("10", "11")] * 2, [answered("0", "1"), answered("11", "10")]]
    found = cross_fitted(ids, oods, np.arange(5), np.ones((1, 5)))
    assert found.chosen.tolist() == [[1, 1, 0, 0, 0]]
    assert found.id.tolist() == [[20, 0]]
    second = [pytest.approx(2 / 5 * right + 3 / 5 * wrong) for right, wrong in ((100, 0), (50, 100))]
    assert found.ood.tolist() == [[[pytest.approx(2 / 5 * 100 + 3 / 5 * 50)] * 2, second]]


def test_luck_in_a_fold_does_not_choose_there():
    """Each setting is right in one fold alone: what chose by its own fold would score 100."""
    lucky = answered(*("".join("01"[row == fold] for fold in range(FOLDS)) for row in range(FOLDS)))
    found = cross_fitted([lucky], [[lucky]], np.arange(FOLDS), np.ones((1, FOLDS)))
    assert found.id.tolist() == [[0]]


@pytest.mark.parametrize("by_class", [False, True])
def test_a_method_of_one_setting_scores_what_its_answers_do(by_class):
    drawn = torch.Generator().manual_seed(0)
    truth, given = (torch.randint(3, (40,), generator=drawn) for _ in range(2))
    one = Answered((given == truth).double().numpy()[None], truth.numpy() if by_class else np.zeros(40), np.arange(40))
    found = cross_fitted([one], [[one]], np.arange(40) % FOLDS, np.ones((1, 40)))
    expected = percent_right(given, truth, by_class)
    assert (found.id.item(), found.ood.item()) == (pytest.approx(expected), pytest.approx(expected))


def test_an_interval_by_groups_is_that_of_a_mean_over_groups():
    """400 groups of four equal examples; of the groups one method is right in 60 %, the other in 40 %, both in 20 %. A
    difference is 1 in 40 % of them and -1 in 20 %, so of standard deviation sqrt(0.6 - 0.2^2), and its mean has a
    twentieth of that. By examples the interval would be half as wide. A quantile of B draws has the error
    sqrt(p (1 - p) / B) / density: 0.084 standard deviations at 97.5 % of 1,000, 0.060 for half of the distance of two;
    four of these are 12 % of 1.96."""
    count = 400
    one, other = (
        "".join(rows) for rows in zip(*(["11", "10", "10", "01", "00"][k % 5] for k in range(count)), strict=True)
    )
    counts = resampled(count)
    groups = np.repeat(np.arange(count), 4)
    mine, plain = (
        cross_fitted([test], [[test]], np.arange(count) % FOLDS, counts)
        for test in (answered("".join(digit * 4 for digit in row), groups=groups) for row in (one, other))
    )
    expected = 1.96 * 100 * math.sqrt(0.6 - 0.04) / math.sqrt(count)
    for which in ("id", "ood"):
        difference = (getattr(mine, which) - getattr(plain, which)).reshape(len(counts), -1).mean(1)
        assert half_width(difference) == pytest.approx(expected, rel=0.12)
    assert counts.sum(1).tolist() == [count] * len(counts)


def test_folds_are_by_name_and_of_one_size():
    sizes = np.bincount([fold_of(f"cell{number:04}") for number in range(1000)], minlength=FOLDS)
    # binomial: 200 ± sqrt(1000 * 0.2 * 0.8) = 12.6
    assert len(sizes) == FOLDS
    assert sizes.min() > 150
    assert sizes.max() < 250


@pytest.fixture
def content() -> dict:
    """Ten groups, two classes, two splits. At 0.1 AdamW is right in all of the first test and half of the other, at 1
    wrong everywhere; FTP is right at both but for one example at 0.1 in the second split. Of WiSE-FT's shares 0.25 is
    as good as AdamW, 0.5 is always wrong."""
    right, wrong, half = {"in": "0101010101", "out": "01"}, {"in": "1010101010", "out": "10"}, "00"
    test = {"in": {"classes": right["in"], "groups": ",".join(f"g{k}" for k in range(10))}}
    test["out"] = {"classes": "01", "groups": "g0,h"}
    pieces = {}
    for seed in (0, 1):
        for lr, adamw, ftp in ((0.1, {**right, "out": half}, right), (1.0, wrong, right)):
            if (seed, lr) == (1, 0.1):
                ftp = {"in": "1101010101", "out": "01"}
            made = {"adamw": adamw, "wise 0.5": wrong, "wise 0.25": adamw}
            for method, answers in {"adamw": made, "ftp": {"ftp": ftp}}.items():
                pieces[f"split {seed}, {method}, lr {lr:g}"] = {"lr": lr, "seed": seed, "answers": answers}
    data = {"by_class": True, "tests": {"0": test, "1": test}}
    found = {"results": pieces, "data": data}
    return found | {"summary": choices(found)}


def test_what_is_said_of_the_methods(content):
    summary = content["summary"]
    assert summary["adamw"] == {
        "settings": [(0.1, None)] * FOLDS, "id": [100, 100], "ood": [50, 50], "out": [50, 50],
        "by_groups": {"id": 0, "ood": 0}, "equal": {"id": [0, 0], "ood": [0, 0]},
    }  # fmt: skip
    assert by_test(content) == (["minus AdamW", "out"], [
        ["AdamW", "+0.0 ± 0.0"], ["WiSE-FT", "+0.0 ± 0.0"], ["FTPAdamW", "+50.0 ± 0.0"],
    ])  # fmt: skip
    assert summary["wise"]["settings"] == [(0.1, 0.25)] * FOLDS
    held = fold_of("g0")  # where 0.1 looks as good as 1: the first is taken, and is wrong on g0
    assert [lr for lr, _ in summary["ftp"]["settings"]] == [0.1 if fold == held else 1.0 for fold in range(FOLDS)]
    assert summary["ftp"]["id"] == [100, 90]
    # g0 and h are drawn apart from each other: of a difference of 50 points the interval is not empty
    assert summary["ftp"]["by_groups"]["ood"] > 10
    assert widest(summary, "ftp", "id") == (-5, pytest.approx(12.706 * 5, rel=1e-4))
    header, rows = table(content)
    assert header == [
        "method", "best rate", "ID / OOD", "minus AdamW, ID", "by groups", "above", "minus AdamW, OOD", "by groups",
        "above", "equal grids, ID / OOD", "within 5 points",
    ]  # fmt: skip
    by_method = {row[0]: row[1:] for row in rows}
    same = "+0.0 ± 0.0"
    assert by_method["AdamW"] == ["0.1 (edge)", "100.0 / 50.0", *[same, "± 0.0", ""] * 2, f"{same} / {same}", "0.1"]
    assert by_method["WiSE-FT"][0] == "0.1 (edge), share 0.25"
    assert by_method["FTPAdamW"][0] == "0.1 to 1 (edge)"
    assert by_method["FTPAdamW"][-1] == "0.1 to 1"
    assert Answers(content).settings("wise") == [
        (0.1, 0.25),
        (0.1, 0.5),
        (0.1, 1.0),
        (1.0, 0.25),
        (1.0, 0.5),
        (1.0, 1.0),
    ]
    assert np.array_equal(
        *(Answers(content).of(*of, "0", "in").right for of in (("wise", [(1.0, 1.0)]), ("adamw", [(1.0, None)])))
    )
    assert scores_of(content)["ftp"][0.1] == [{"id": 100, "ood": 100}, {"id": 90, "ood": 100}]
    assert [row[0] for row in all_scores(content)[1]] == ["AdamW", "WiSE-FT, 0.5", "WiSE-FT, 0.25", "FTPAdamW"]
    for piece in content["results"].values():
        if "ftp" in piece["answers"]:
            piece["lr"] *= 1 + 1e-12
    header, rows = all_scores(content)
    assert header == ["method", "0.1", "1"]
    assert rows[-1][1] == "95.0 / 100.0"


def test_a_tiny_run_stops_goes_on_and_reports(tmp_path, cache):
    out = tmp_path / "run"
    tiny = ["--anchor", "imagenet", "--methods", "linear", "adamw", "wise", "soup", "--lrs", "1e-3", "1e-2"]
    tiny += ["--seeds", "0", "1", "--epochs", "1", "--limit", "48", "--out", str(out)]
    assert ran(STUDY, *tiny, stop_before="split 1, linear, lr 0.01").status == 130
    kept = results(out)
    assert len(kept) == 4
    done = ran(STUDY, *tiny)
    assert done.status == 0
    assert len(done.begun) == 4
    found = results(out)
    assert kept.items() <= found.items()
    assert {piece["lr"] for piece in found.values()} == {1e-3, 1e-2, 0.1}
    shares = ("wise 0.5", "wise 0.25", "wise 0.75")
    assert {tuple(piece["answers"]) for piece in found.values()} == {("linear",), ("adamw", *shares, "soup")}
    content = json.loads((out / "metrics.json").read_text())
    tests = content["data"]["tests"]
    assert list(tests["0"]) == ["Twemoji", "OpenMoji", "Noto outline"]
    for piece in found.values():
        for answers in piece["answers"].values():
            for name, test in tests[str(piece["seed"])].items():
                assert len(answers[name]) == len(test["classes"]) == len(test["groups"].split(",")) > 0
                assert {*answers[name]} <= {*"01234567"}
    assert {group for test in tests["0"].values() for group in test["groups"].split(",")} == {
        *tests["0"]["Twemoji"]["groups"].split(",")
    }  # an emoji is one group in all styles
    report = (out / "report.md").read_text()
    assert "8 trainings, all of them below" in report
    assert "no score is of an example that chose its rate" in report
    assert "- WiSE-FT (0.5, 0.25, 0.75): mean of the anchor" in report
    assert all((out / figure).exists() for figure in ("rates.png", "trade-off.png"))
    wider = ran(STUDY, *tiny, "--wider", "adamw", "0.03")
    assert wider.begun == ["split 0, adamw, lr 0.03", "split 1, adamw, lr 0.03"]
    assert found.items() <= results(out).items()
    assert ", AdamW also at 0.03, which fall" in (out / "report.md").read_text()
    assert ran(STUDY, *tiny).status == 2  # fewer than there are


def test_a_tiny_run_of_the_rate_of_radii(tmp_path, cache):
    out = tmp_path / "run"
    tiny = ["--anchor", "imagenet", "--lrs", "1e-2", "--radius-lrs", "0.1", "--seeds", "0", "--epochs", "6"]
    tiny += ["--limit", "48", "--out", str(out)]
    assert ran(RADIUS, *tiny).status == 0
    assert ran(RADIUS, *tiny, "--radius-lrs", "0.1", "1e-9").begun == ["split 0, radius_lr 1e-09, lr 0.01"]
    own, frozen = (results(out)[f"split 0, radius_lr {rate}, lr 0.01"]["answers"] for rate in ("0.1", "1e-09"))
    assert own["ftp_radius 0.1"] != frozen["ftp_radius 1e-09"]  # whose radii stay where they are
    assert "| FTPAdamW, radius_lr, 1e-09 |" in (out / "report.md").read_text()
    run = json.loads((out / "metrics.json").read_text())
    usual = {
        "results": {"one": {"lr": 1e-2, "seed": 0, "answers": {"ftp": own["ftp_radius 0.1"]}}},
        "data": run["data"],
    }
    usual |= {"config": {"seeds": [0]}, "summary": {"adamw": {"id": [1.0], "ood": [2.0]}}}
    found = radii({"imagenet": usual}, {"imagenet": run})["imagenet"]
    assert found["lr 0.01, radius_lr 0.01"] == found["lr 0.01, radius_lr 0.1"]
    scores = scores_of(run)["ftp_radius 0.1"][0.01][0]
    assert found["lr 0.01, radius_lr 0.1"] == (scores["id"] - 1.0, scores["ood"] - 2.0)


def test_optimizers_without_a_rate_get_more_splits_and_go_within_radii(cache, tmp_path):
    """First each alone on one split; then on another, and within radii on the first. What was made stays."""
    out = tmp_path / "run"
    tiny = ["--anchor", "imagenet", "--methods", "ldog", "ldog_mean", "ftp_ldog", "ftp_ldog_mean", "--epochs", "6"]
    tiny += ["--limit", "48", "--out", str(out)]
    assert ran(FREE, *tiny, "--seeds", "0").begun == ["split 0, ldog"]
    one = json.loads((out / "metrics.json").read_text())
    more = ran(FREE, *tiny, "--seeds", "0", "1", "--within", "0")
    assert more.begun == ["split 1, ldog", "split 0, ftp_ldog"]
    run = json.loads((out / "metrics.json").read_text())
    assert run["results"]["split 0, ldog"] == one["results"]["split 0, ldog"]
    assert run["data"]["tests"]["0"] == one["data"]["tests"]["0"]
    assert {len(splits) for of in scores_of(run).values() for splits in of.values()} == {1, 2}
    assert run["results"]["split 0, ftp_ldog"]["answers"].keys() == {"ftp_ldog", "ftp_ldog_mean"}
    assert "| FTP around LDoG, averaged | 1 |" in (out / "report.md").read_text()
    answers = {str(seed): run["results"][f"split {seed}, ldog"]["answers"]["ldog"] for seed in (0, 1)}
    usual = {seed: {"lr": 6e-4, "seed": int(seed), "answers": {"ftp": given}} for seed, given in answers.items()}
    study = {"results": usual, "data": run["data"], "config": {"seeds": [0, 1]}}
    study["summary"] = {"adamw": {"id": [1.0, 3.0], "ood": [2.0, 4.0]}}
    found = without_rate({"imagenet": study}, {"imagenet": run})["imagenet"]
    scores = {name: next(iter(of.values())) for name, of in scores_of(run).items()}
    both = scores["ldog"]
    assert found["ldog"]["splits"] == [0, 1]
    assert found["ldog"]["minus"]["FTP"] == [0, 0]
    expected = [sum(s[which] for s in both) / 2 - plain for which, plain in (("id", 2.0), ("ood", 3.0))]
    assert found["ldog"]["minus"]["AdamW"] == pytest.approx(expected)
    (own,), alone = scores["ftp_ldog"], both[0]
    assert found["ftp_ldog"]["splits"] == [0]
    assert found["ftp_ldog"]["minus"]["base"] == pytest.approx([own[which] - alone[which] for which in ("id", "ood")])
    (_, (row,)), (_, sums) = of_defaults({"imagenet": found})
    assert row[:2] == ["free-imagenet", "0, 1"]
    assert {tuple(cells[1:3]) for cells in sums} == {("1", "2"), ("1", "1")}


def test_a_gain_is_that_by_hand():
    """Six groups of one example. AdamW's first rate is right on 0 and 1, its second on 2 to 5, FTP on 0, 2 and 3. Held
    out are 0 and 1: the first rate is taken, which has none of the other four, FTP two. Then 2 and 3: the second, with
    two of four, FTP one. Then 0 and 2, where both rates are as good: one of four and three of four, FTP one. The
    other test has groups 0 and 6: of those that are left FTP is right on both, the rates on 6 and on none."""
    ids = answered("110000", "001111"), answered("101100")
    ood = answered("11", "00", groups=[0, 6]), answered("11", groups=[0, 6])
    held = np.array([[group in own for group in range(7)] for own in ((0, 1), (2, 3), (0, 2))], float)
    own, out = gain(ids, [ood], held)
    assert own == pytest.approx(100 * ((2 / 4 - 0) + (1 / 4 - 2 / 4) + (1 / 4 - 2 / 4)) / 3)
    assert out == pytest.approx(100 * ((1 - 1) + (2 / 2 - 0) + (1 - 1 / 2)) / 3)


def test_one_rate_for_all_is_compared_with_each_best():
    """Of two studies of one split: AdamW has 6e-5 in both, FTP in one alone."""
    test = {"classes": "0110", "groups": "a,b,c,d"}
    studies = {}
    for name, right, best in (("one", "0110", 75.0), ("two", "0000", 35.0)):
        answers = {"adamw": {"own": right, "other": "0111"}}
        results = {"adamw": {"lr": 6e-5, "seed": 0, "answers": answers}}
        if name == "one":
            results["ftp"] = {"lr": 10 * 6e-6, "seed": 0, "answers": {"ftp": answers["adamw"]}}
        data = {"tests": {"0": {"own": test, "other": test}}, "by_class": False}
        studies[name] = {"results": results, "data": data, "summary": {"adamw": {"id": [best], "ood": [50.0]}}}
    studies["two"]["results"]["ftp"] = {"lr": 1.0, "seed": 0, "answers": {"ftp": answers["adamw"]}}
    _, (first, *others) = at_one_rate(studies)
    assert first == ["6e-05", "+20.0 / +25.0", "+15.0 / +25.0", "", ""]
    assert {cell for row in others for cell in row[1:]} == {""}


def test_the_rate_for_a_source_is_chosen_by_the_others():
    """Each study's own best rate of FTP is another than that of the rest."""
    test, studies = {"classes": "01", "groups": "a,b"}, {}
    for source, names in SOURCES.items():
        for name in names:
            own = {6e-4: "01", 2e-3: "00"} if source != "emoji" else {6e-4: "00", 2e-3: "01"}
            results = {"adamw": {"lr": 6e-5, "seed": 0, "answers": {"adamw": {"own": "01", "other": "01"}}}}
            for rate, answers in own.items():
                answered = {"ftp": {"own": answers, "other": "01"}}
                results[f"{rate}"] = {"lr": rate, "seed": 0, "answers": answered}
            data = {"tests": {"0": {"own": test, "other": test}}, "by_class": False}
            summary = {"adamw": {"id": [100.0], "ood": [100.0]}}
            studies[name] = {"results": results, "data": data, "summary": summary}
    assert chosen_elsewhere(studies)["ftp"] == dict.fromkeys(SOURCES, 6e-4)
    assert chosen_elsewhere({**studies, "topics": studies["styles"]})["ftp"]["emoji"] == 6e-4
    others = {name: studies["styles"] for name in studies if name not in SOURCES["emoji"]}
    assert chosen_elsewhere({**studies, **others})["ftp"]["emoji"] == 2e-3


def test_a_further_run_is_compared_with_adamw_on_the_splits_that_both_have(content):
    """Of the study's two splits the run has the second. There AdamW, at 0.1 in all folds, has 100 and 50; a radius_lr
    of 0.1 is right everywhere at 1, one of 0.3 nowhere; FTP has 90 and 100 at 0.1, and all right at 1."""
    test = content["data"]["tests"]["1"]
    right, wrong = ({name: own["classes"] for name, own in test.items()}, {"in": "1010101010", "out": "10"})
    answers = {"a": {"ftp_radius 0.1": right}, "b": {"ftp_radius 0.3": wrong}}
    results = {name: {"lr": 1.0, "seed": 1, "answers": own} for name, own in answers.items()}
    run = {"results": results, "data": {"by_class": True, "tests": {"1": test}}}
    found = beside(content, run)
    assert found["FTPAdamW, radius_lr, chosen"] == found["FTPAdamW, radius_lr, 0.1, lr 1"] == [(0, 50)]
    assert found["FTPAdamW, radius_lr, 0.3, lr 1"] == [(-100, -50)]
    assert (found["FTPAdamW, lr 0.1"], found["FTPAdamW, lr 1"]) == ([(-10, 50)], [(0, 50)])
    assert len(found["FTPAdamW, chosen"]) == 1
    assert {name.partition(",")[0] for name in found} == {"FTPAdamW"}  # nothing else of the study
    header, rows = of_beside({"drawn": found, "sensitivity-minilm": found})
    assert header == ["study", "method", "splits", "minus AdamW"]
    assert ["drawn", "FTPAdamW, radius_lr, 0.3, lr 1", "1", "-100.0 / -50.0"] in rows
    assert {row[1] for row in rows if row[0] == "sensitivity-minilm"} == {
        "FTPAdamW, chosen", "FTPAdamW, radius_lr, chosen",
    }  # fmt: skip
    run["data"]["tests"] = {"1": {**test, "out": {"classes": "10", "groups": "g0,h"}}}
    with pytest.raises(AssertionError, match="other examples"):
        beside(content, run)


def test_probed_fine_tuning_runs_at_its_rates_alone(tmp_path, cache):
    out = tmp_path / "run"
    tiny = ["--anchor", "imagenet", "--methods", "lp_ft", "--lrs", "1e-3", "--seeds", "0", "--epochs", "1"]
    assert ran(RADIUS, *tiny, "--limit", "48", "--out", str(out)).begun == ["split 0, lp_ft, lr 0.001"]
    assert (out / "report.md").read_text().startswith("# LP-FT by its learning rate\n\nEmoji, from ImageNet")


def test_what_is_drawn_are_groups_of_the_test():
    held = drawn([1, 1, 4, 5, 7], 3, 9, [0])
    assert held.sum(1).tolist() == [3] * len(held)
    assert {*held.sum(0).nonzero()[0].tolist()} == {1, 4, 5, 7}


def test_an_interval_of_splits_that_share_examples_is_wider():
    """Nadeau and Bengio: by sqrt(1 / S + test / train) for sqrt(1 / S)."""
    values = [1.0, 2.0, 4.0, 3.0]
    middle, half = of_splits(values, test=150, train=100)
    assert (middle, half) == (2.5, pytest.approx(interval(values)[1] * math.sqrt((1 / 4 + 1.5) * 4)))
