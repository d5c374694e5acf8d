"""New classes in sequence: the measures by hand, EWC's penalty, and a tiny run that stops and goes on."""

import pytest
import torch

from experiments.common.examples import generator
from experiments.continual.methods import Data, fisher, penalty
from experiments.continual.study import STUDY, final, forgetting
from tests.experiments.running import ran, refused, results

TINY = ["--methods", "ftp_kept", "l2sp", "ewc", "--tasks", "2", "--per-task", "2", "--train", "4"]
TINY += ["--test", "4", "--epochs", "1", "--batch-size", "4", "--seeds", "0", "--choice", "100"]


class Attention(torch.nn.Module):
    """As little of a layer as has keys and values, by MiniLM's names."""

    def __init__(self):
        super().__init__()
        self.attention = torch.nn.ModuleDict({name: torch.nn.Linear(8, 8) for name in ("query", "key", "value")})

    def forward(self, x, mask):
        q, k, v = (self.attention[name](x)[:, None] for name in ("query", "key", "value"))
        return x + torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)[:, 0]


@pytest.fixture
def data():
    torch.manual_seed(0)
    tokens = torch.randint(0, 3, (5, 16, 3)).index_fill_(2, torch.tensor(0), 1)
    return Data(torch.randn(5, 16, 3, 8), tokens, torch.nn.ModuleList([Attention()]))


def test_measures_of_a_small_matrix():
    matrix = [[60.0], [55.0, 80.0], [70.0, 50.0, 40.0]]  # the first task is best at the end
    assert final(matrix) == pytest.approx((70 + 50 + 40) / 3)
    assert forgetting(matrix) == pytest.approx(((60 - 70) + (80 - 50)) / 2)


def test_the_penalty_is_half_of_fishers_diagonal_by_squared_distances():
    """One row of logits w x: the gradient of the log-likelihood of label c is (1[c] - p) x."""
    w, x = torch.nn.Parameter(torch.tensor([[0.5], [-0.25]])), torch.tensor([[2.0]])
    found = fisher({"w": w}, x @ w.T, generator(0))
    label = int(torch.multinomial((x @ w.T).softmax(1), 1, generator=generator(0)))
    gradient = (torch.eye(2)[label] - (x @ w.T).softmax(1)[0]) * 2.0
    torch.testing.assert_close(found["w"][0], gradient.square()[:, None])
    moved = torch.nn.Parameter(w.detach() + torch.tensor([[1.0], [3.0]]))
    by_hand = (gradient[0] ** 2 * 1 + gradient[1] ** 2 * 9) / 2
    torch.testing.assert_close(penalty({"w": moved}, [found, found]), 2 * by_hand)  # two tasks
    assert penalty({"w": moved}, []) == 0


def test_a_run_that_stops_goes_on_to_the_same_numbers(tmp_path, data):
    whole = ran(STUDY, *TINY, "--out", str(tmp_path / "whole"), data=data)
    assert whole.status == 0, whole.text
    assert ran(STUDY, *TINY, "--out", str(tmp_path / "cut"), data=data, stop_before=whole.begun[4]).status == 130
    assert len(results(tmp_path / "cut")) == 4
    assert ran(STUDY, *TINY, "--out", str(tmp_path / "cut"), data=data).status == 0
    found = results(tmp_path / "whole")
    assert results(tmp_path / "cut") == found
    assert all([len(row) for row in matrix] == [1, 2] for by in found.values() for matrix in by.values())
    report = (tmp_path / "whole" / "report.md").read_text()
    assert all(key in report for key in found)  # every run
    assert (tmp_path / "whole" / "seen.png").exists()


def test_bad_input_is_refused_with_what_is_allowed(capsys):
    for wrong in (
        ["--methods", "sgd"],
        ["--seeds", "100"],
        ["--seeds", "1", "1"],
        ["--tasks", "11"],
        ["--train", "60"],
    ):
        assert refused(STUDY, *wrong), wrong
    errors = capsys.readouterr().err
    assert "linear, adamw, ftp_kept, ftp_moved, l2sp, ewc" in errors
    assert "rates are chosen on other splits" in errors
