"""What studies share: bags of words, networks, batches of whole passes, numbers of reports and figures."""

import pytest
import torch
import torch.nn.functional as F

from experiments.common.figures import mean_curve
from experiments.common.report_kit import fixed, over, paired, significant
from experiments.common.score_figures import unbeaten
from experiments.common.small_networks import accuracy, mlp, mlp_params, passes
from experiments.common.tweets import Tweets, bags


@pytest.mark.parametrize("known", [1, 2])
def test_words_are_those_of_the_first_parts_and_no_tweet_is_in_two(known):
    texts = tuple(f"word{i % 7} only{i}" for i in range(120))
    made = Tweets(texts, torch.arange(120) % 3, ("x",) * 120)
    parts = bags(made, {"train": 60, "clean": 30, "test": 30}, 300, 0, known)
    # A word of every seventh tweet, one of its own and their pair: of others the first alone is known.
    most = {name: int((part.x > 0).sum(1).max()) for name, part in parts.items()}
    assert most == {"train": 3, "clean": 3 if known == 2 else 1, "test": 1}
    assert [len(part.y) for part in parts.values()] == [60, 30, 30]
    assert parts["train"].y.bincount().tolist() == [20, 20, 20]
    assert bags(made, {"train": 60, "test": 30}, 5, 0)["train"].x.shape == (60, 5)


def test_passes_have_every_example_once_before_any_twice():
    steps = passes(10, 7, 3, torch.Generator().manual_seed(0))
    assert [len(step) for step in steps] == [3] * 7
    assert torch.cat(steps[:3]).unique().numel() == torch.cat(steps[3:6]).unique().numel() == 9


def test_a_network_by_hand():
    params = mlp_params((300, 200, 2), torch.Generator().manual_seed(0))
    assert params["0.weight"].std().item() == pytest.approx((1 / 300) ** 0.5, rel=0.02)
    x = torch.randn(4, 300)
    for activation in (torch.relu, torch.tanh):
        hidden = activation(x @ params["0.weight"].T + params["0.bias"])
        expected = hidden @ params["1.weight"].T + params["1.bias"]
        torch.testing.assert_close(mlp(params, x, activation), expected)
    logits = F.one_hot(torch.tensor([0, 1, 1, 1])).float()
    assert accuracy(logits, torch.tensor([0, 0, 1, 1])) == 75


def test_numbers_of_reports_by_hand():
    assert [fixed((12.346, 0.25), 2), fixed((1.0, None), signed=True), fixed(None)] == [
        "12.35 ± 0.25", "+1.0", "diverged"
    ]  # fmt: skip
    assert [significant((1234.0, 56.0)), significant((0.012345, None))] == ["1.23e+03 ± 6e+01", "0.0123"]
    assert paired([3.0, 5.0], [1.0, 1.0]) == (3.0, 1.0)
    assert [over([3, 4]), over([7])] == ["mean ± standard error over seeds 3, 4", "seed 7"]


def test_a_mean_curve_is_the_mean_over_seeds_at_each_place():
    assert mean_curve([1, 2], [[1.0, 10.0], [3.0, 10.0]]) == ([1, 2], [2.0, 10.0], [1.0, 0.0])
    assert mean_curve([1, 2], [[1.0, 10.0]]) == ([1, 2], [1.0, 10.0], None)


def test_not_beaten_is_who_has_nobody_above_in_both():
    points = {"a": ((1.0, None), (3.0, None)), "b": ((2.0, 9.0), (2.0, 9.0)), "c": ((1.5, None), (1.0, None))}
    assert unbeaten(points) == "Not beaten in both at once: a; b."
