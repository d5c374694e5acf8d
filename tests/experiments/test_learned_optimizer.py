"""The learned optimizer: the rule, its tasks and problems, the curves, and what a stopped run leaves."""

import json

import pytest
import torch

import hyperopt_ftp as hft
from experiments.common.examples import Examples
from experiments.common.small_networks import cross_entropy, mlp, mlp_params
from experiments.meta.learned_optimizer.config import POINTS, Config
from experiments.meta.learned_optimizer.meta_training import length_at, meta_train
from experiments.meta.learned_optimizer.problems import batches, convolutional, convolutional_params, load_parts
from experiments.meta.learned_optimizer.report import end_of, first_at
from experiments.meta.learned_optimizer.rule import FIRST_RATE, first_net, learned, over_tasks
from experiments.meta.learned_optimizer.study import STUDY
from experiments.meta.learned_optimizer.tasks import new_group
from experiments.meta.learned_optimizer.testing import GRIDS, HELD_BACK, MAKERS, WORST, curves
from tests.experiments.running import options_of, ran, results

TINY = Config(
    seeds=(0,), problems=("same",), episodes=2, evolution_episodes=1, tasks=1, longest=10, checks=1, steps=40, samples=1
)


@pytest.fixture(scope="module")
def parts():
    return load_parts(["same"])


def random_net():
    """A rule that uses all it has, in float64."""
    g = torch.Generator().manual_seed(1)
    return {
        name: w.double() + 0.3 * torch.randn(w.shape, generator=g, dtype=torch.float64)
        for name, w in first_net(4, 0).items()
    }


def params_and_grads(scale=1.0):
    g = torch.Generator().manual_seed(2)
    shapes = {"weight": (3, 2), "bias": (3,)}
    params, *grads = (
        {n: scale**k * torch.randn(s, generator=g, dtype=torch.float64) for n, s in shapes.items()} for k in (0, 1, 1)
    )
    return params, grads


def test_the_first_rule_is_adam_with_its_own_decays():
    params, grads = params_and_grads()
    net = {name: w.double() for name, w in first_net(4, 0).items()}
    ours, theirs = learned(net), hft.adam(lr=FIRST_RATE, betas=(0.9, 0.99), eps=0.0, eps_root=1e-12)
    (p, s), (q, t) = (params, ours.init(params)), (params, theirs.init(params))
    for grad in grads:
        p, s = ours.update(grad, s, p)
        q, t = theirs.update(grad, t, q)
    for name in params:
        torch.testing.assert_close(p[name], q[name], rtol=1e-9, atol=0)


def test_the_scale_of_the_loss_changes_nothing():
    def after(scale):
        params, grads = params_and_grads(scale)
        optimizer = learned(random_net())
        state = optimizer.init(params)
        for grad in grads:
            params, state = optimizer.update(grad, state, params)
        return params

    plain, scaled = after(1.0), after(50.0)
    for name in plain:
        torch.testing.assert_close(plain[name], scaled[name], rtol=1e-6, atol=1e-9)


def test_many_tasks_at_once_are_one_after_another():
    params, (grad, other) = params_and_grads()
    optimizer = learned(random_net())
    many = over_tasks(optimizer)

    def both(first, second):
        return {name: torch.stack([first[name], second[name]]) for name in first}

    start, grads = both(params, other), both(grad, params)
    together, _ = many.update(grads, many.init(start), start)
    one, _ = optimizer.update(params, optimizer.init(other), other)
    for name in params:
        torch.testing.assert_close(together[name][1], one[name], rtol=1e-12, atol=0)


def test_parts_share_no_digit(parts):
    everything = [parts.meta.x, parts.train["digits"].x, parts.test["digits"].x]
    rows = [tuple(row) for part in everything for row in part.tolist()]
    assert len(set(rows)) == len(rows) == 1797


def test_a_group_has_tasks_of_one_shape_each_with_its_own_labels(parts):
    digits = Examples(parts.meta.x, parts.meta.y)
    group = new_group(digits, 3, torch.Generator().manual_seed(4))
    assert group.x.shape == (3, 449, 64)
    assert {p.shape[0] for p in group.params.values()} == {3}
    place = {tuple(row): label for row, label in zip(digits.x.tolist(), digits.y.tolist(), strict=True)}
    tables = []
    for x, y in zip(group.x.tolist(), group.y.tolist(), strict=True):
        table = {}
        for row, label in zip(x, y, strict=True):
            assert table.setdefault(place[tuple(row)], label) == label
        tables.append(tuple(sorted(table.items())))
    assert len(set(tables)) == 3
    x, y = group.batches(5, 2, torch.Generator().manual_seed(0))[1]
    assert x.shape == (3, 5, 64)
    for task in range(3):  # a task's batch is made of its own examples
        index = (group.x[task] == x[task][0]).all(-1).nonzero()[0, 0]
        assert group.y[task, index] == y[task, 0]


def test_a_curve_is_that_of_torchs_adam(parts):
    losses, accuracy = curves("same", parts, MAKERS["adam"](0.1, POINTS), 0, POINTS, [0.01, 0.02])
    generator, train = torch.Generator().manual_seed(HELD_BACK), parts.train["digits"]
    params = {name: p.requires_grad_() for name, p in mlp_params((64, 24, 10), generator, variance=2.0).items()}
    optimizer, loss = torch.optim.Adam(params.values(), lr=0.02), cross_entropy(mlp)
    found = [loss(params, train).item()]
    for batch in batches(train, 32, POINTS, generator):
        optimizer.zero_grad()
        loss(params, batch).backward()
        optimizer.step()
        found.append(loss(params, train).item())
    torch.testing.assert_close(losses[1], torch.tensor(found), rtol=1e-3, atol=1e-4)
    assert accuracy.shape == (2,)
    assert 50 < accuracy[1] <= 100


def test_what_diverges_counts_as_the_worst(parts):
    losses, _ = curves("same", parts, hft.sgd(lr=1e9), 0, POINTS, [1e9])
    assert losses[0, -1] == WORST
    assert losses[0, 0] < 10


def test_episodes_grow():
    config = Config(episodes=100, longest=160)
    generator = torch.Generator().manual_seed(0)
    assert {length_at(0, config, generator) for _ in range(50)} == {1}
    late = [length_at(60, config, generator) for _ in range(300)]
    assert (min(late), max(late)) == (1, 16)


def test_meta_training_keeps_the_best_rule_that_was_checked(parts):
    config = Config(episodes=6, tasks=1, longest=20, checks=3)
    made = meta_train(config, parts.meta, 0, hft.Unroll())
    assert [episode for episode, *_ in made.checks] == [0, 2, 4, 6]
    assert min(score for _, score, _ in made.checks) < made.checks[0][1]
    assert made.steps % 10 == 0


def test_convolutions_by_hand():
    g = torch.Generator().manual_seed(0)
    params, x = convolutional_params((2, 3), 4, g), torch.randn(5, 64, generator=g)
    first = torch.nn.functional.conv2d(x.view(5, 1, 8, 8), params["conv0.weight"], padding=1).relu()
    second = torch.nn.functional.conv2d(first, params["conv1.weight"], padding=1).relu()
    pooled = second.view(5, 3, 2, 4, 2, 4).mean((3, 5)).flatten(1)
    torch.testing.assert_close(convolutional(params, x), pooled @ params["head.weight"].T)


def test_the_first_step_at_which_a_curve_is_down():
    assert first_at([2.0, 1.0, 0.5, 0.7, 0.2], 0.6, 40) == 20
    assert first_at([2.0, 1.0], 0.6, 40) is None
    assert end_of([9.0] * 37 + [1.0, 2.0, 3.0, 6.0]) == 3.0


def test_a_stopped_run_goes_on_and_ends_with_its_report(tmp_path, monkeypatch):
    for kind, grid in GRIDS.items():
        monkeypatch.setitem(GRIDS, kind, [grid[5], grid[1]])

    def run(folder, stop_before=None):
        return ran(STUDY, *options_of(TINY), "--out", str(tmp_path / folder), stop_before=stop_before)

    assert run("stopped", stop_before="one-rate")[::2] == (130, ["unroll-seed0", "evolution-seed0"])
    assert run("stopped")[::2] == (0, ["one-rate", "same-adam", "same-momentum", "same-cosine", "same-seconds"])
    assert run("whole").status == 0
    assert results(tmp_path / "stopped") == results(tmp_path / "whole")
    whole = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    rows = whole["summary"]["same"]
    assert list(rows) == ["learned", "evolution", "adam", "cosine", "momentum", "one_rate", "default"]
    grid = whole["results"]["same-adam"]["tests"].values()
    assert rows["adam"]["loss"][0] == min(end_of(test["losses"]) for (test,) in grid)
    report = (tmp_path / "whole" / "report.md").read_text()
    assert "| Adam, tuned |" in report
    for figure in ("training.png", "meta-loss.png"):
        assert f"({figure})" in report
        assert (tmp_path / "whole" / figure).stat().st_size > 5000
