"""Few-shot learning: no class, emoji or near-duplicate is on both sides; each method is what its paper says; choices
are made on validation; a run that is stopped ends the same."""

import dataclasses
import random
from collections import Counter, defaultdict
from itertools import permutations
from pathlib import Path

import pytest
import torch

from experiments.classification.data import Pictures
from experiments.meta.few_shot import methods
from experiments.meta.few_shot.adaptation import (
    everything,
    head_alone,
    loss,
    network,
)
from experiments.meta.few_shot.config import WAYS, Config
from experiments.meta.few_shot.data import PARTS, Data, classes_of, draw, prepared, split, subgroups, world
from experiments.meta.few_shot.meta import first_order, through
from experiments.meta.few_shot.methods import Candidate, outcome
from experiments.meta.few_shot.study import STUDY
from hyperopt_ftp import tree
from tests.experiments.running import options_of, ran, results

TINY = Config(seeds=(0,), shots=(1,), episodes=6, validation=6, meta_steps=2, tasks=2, inner_steps=1)


def made_up() -> Data:
    """Thirty real subgroups of nine emoji each, with pictures that tell little of their class and style."""
    of = defaultdict(list)
    for code, name in sorted(subgroups().items()):
        of[name].append(code)
    items = tuple(code for name in sorted(n for n in of if len(of[n]) >= 9)[:30] for code in of[name][:9])
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(270, 3, 5, 5, generator=generator).repeat(3, 1, 1, 1)
    x += torch.randn(3, 1, 3, 5, 5, generator=generator).expand(3, 270, -1, -1, -1).flatten(0, 1)
    styles = torch.arange(3).repeat_interleave(270)
    features = Pictures(x, torch.zeros(810, dtype=torch.long), styles, items * 3, items * 3, ("all",), ("a", "b", "c"))
    return Data(features, classes_of(items, items))


def test_near_duplicates_count_once_and_parts_share_no_class():
    codes = [code for code, name in subgroups().items() if name == "food-fruit"][:12]
    groups = [codes[0], codes[0], *codes[2:]]
    assert classes_of(codes, groups) == {"food-fruit": [0, *range(2, 12)]}
    assert classes_of(codes[:7], codes[:7]) == {}
    data = made_up()
    parts = split(data.classes, seed=3)
    assert list(parts) == list(PARTS)
    assert [len(parts[part]) for part in PARTS] == [17, 5, 8]
    emoji = [number for own in parts.values() for numbers in own.values() for number in numbers]
    assert sorted(emoji) == list(range(270))
    assert split(data.classes, seed=4) != parts


def test_an_episode_asks_for_other_emoji_in_another_style():
    classes = {str(c): list(range(10 * c, 10 * c + 9)) for c in range(6)}
    found = draw(classes, 60, 3, count=12, shots=3, queries=4, generator=random.Random(0))
    assert (found.support.shape, found.query.shape) == ((12, WAYS, 3), (12, WAYS, 4))
    styles = Counter()
    for support, query in zip(found.support, found.query, strict=True):
        ((seen,), (asked,)) = (set((part // 60).flatten().tolist()) for part in (support, query))
        styles[seen, asked] += 1
        assert not set((support % 60).flatten().tolist()) & set((query % 60).flatten().tolist())
        way = torch.cat([support, query], dim=1) % 60 // 10  # which class
        assert (way == way[:, :1]).all()
        assert way[:, 0].unique().numel() == WAYS
    assert styles == dict.fromkeys(permutations(range(3), 2), 2)
    (_, labels), (_, asked_labels) = found.batches(torch.zeros(180, 2))
    assert labels[0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert asked_labels.shape == (12, 20)


def test_inputs_are_made_from_meta_training_pictures_alone():
    flat = torch.randn(3, 20, 5, generator=torch.Generator().manual_seed(0))
    known = [0, 3, 4, 8, 9, 11, 15]
    inputs, spread = prepared(flat, known, 4)
    torch.testing.assert_close(inputs.norm(dim=1), torch.full((60,), 2.0))
    other = flat.clone()
    new = [number for number in range(20) if number not in known]
    other[:, new] *= -3
    again, spread_again = prepared(other, known, 4)
    rows = [20 * style + number for style in range(3) for number in known]
    assert torch.equal(again[rows], inputs[rows])
    assert torch.equal(spread, spread_again)
    shifted, _ = prepared(flat + torch.tensor([5.0, -2.0, 9.0]).view(3, 1, 1), known, 4)  # a style's mean is no matter
    torch.testing.assert_close(shifted, inputs, rtol=1e-3, atol=1e-3)


@pytest.fixture
def tasks():
    """A network, and two tasks, in float64."""
    generator = torch.Generator().manual_seed(0)
    net = tree.map_tree(lambda p: p.double(), network(3, 4, WAYS, seed=1))
    net["head"]["weight"] += 0.3 * torch.randn(WAYS, 4, generator=generator, dtype=torch.float64)
    net = tree.map_tree(lambda p: p.requires_grad_(), net)
    x = torch.randn(2, 2, 2 * WAYS, 3, generator=generator, dtype=torch.float64)
    labels = torch.arange(WAYS).repeat(2, 2)
    return net, ((x[0], labels), (x[1], labels))


def loop(net, batch, lr, steps, parts=("body", "head"), create_graph=True):
    """SGD by hand."""
    for _ in range(steps):
        named = [(part, name) for part in parts for name in net[part]]
        grads = torch.autograd.grad(loss(net, batch), [net[p][n] for p, n in named], create_graph=create_graph)
        moved = {(p, n): net[p][n] - lr * g for (p, n), g in zip(named, grads, strict=True)}
        net = {p: {n: moved.get((p, n), x) for n, x in part.items()} for p, part in net.items()}
    return net


def meta_gradients(value, net):
    return torch.autograd.grad(value, tree.leaves(net))


@pytest.mark.parametrize(("adapt", "parts"), [(everything, ("body", "head")), (head_alone, ("head",))])
def test_maml_and_anil_are_the_loop_by_hand(tasks, adapt, parts):
    net, ((x, y), (new_x, new_y)) = tasks
    expected = sum(loss(loop(net, (x[i], y[i]), 0.2, 3, parts), (new_x[i], new_y[i])) for i in range(2)) / 2
    found = through(adapt(0.2), 3)({"net": net}, tasks[1])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(meta_gradients(found, net), meta_gradients(expected, net))


def test_first_order_is_the_gradient_at_the_end(tasks):
    net, both = tasks
    expected = [torch.zeros_like(p) for p in tree.leaves(net)]
    for i in range(2):
        (x, y), (new_x, new_y) = both
        end = loop(net, (x[i], y[i]), 0.2, 3, create_graph=False)
        end = tree.map_tree(lambda p: p.detach().requires_grad_(), end)
        grads = torch.autograd.grad(loss(end, (new_x[i], new_y[i])), tree.leaves(end))
        expected = [total + g / 2 for total, g in zip(expected, grads, strict=True)]
    found = first_order(everything(0.2), 3)({"net": net}, both)
    grads = meta_gradients(found, net)
    torch.testing.assert_close(grads, tuple(expected))
    second = through(everything(0.2), 3)({"net": net}, both)
    torch.testing.assert_close(found, second)
    assert not torch.allclose(grads[0], meta_gradients(second, net)[0], rtol=1e-3)


def test_settings_are_chosen_on_validation():
    seed = world(made_up(), dataclasses.replace(TINY, validation=7), 0)
    sizes = []

    def candidate(name, on_validation, on_test, steps=(0,)):
        def shares(both, marks):
            sizes.append(len(both[0][0]))
            share = on_validation if len(both[0][0]) == 7 else on_test
            return torch.tensor([[share[steps.index(mark)] for mark in marks]]).expand(len(both[0][0]), -1)

        return Candidate(name, shares, steps, 2.0)

    found = outcome([candidate("a", (0.5,), (0.9,)), candidate("b", (0.6, 0.7), (0.2, 0.3), (1, 2))], seed)
    assert found["chosen"] == "b, 2 steps"
    assert found["tried"] == {"a": 50.0, "b, 1 steps": 60.0, "b, 2 steps": 70.0}
    assert found["accuracy"] == pytest.approx(30)
    assert found["training_seconds"] == 2
    assert sizes == [7, 7, 6]  # the test once


def test_a_meta_training_that_diverges_is_a_result(monkeypatch):
    def fails(*_, **__):
        raise ArithmeticError

    monkeypatch.setattr(methods, "meta_train", fails)
    assert methods.meta_learned("anil", world(made_up(), TINY, 0)) == {
        "anil": {"diverged": ["lr 0.1", "lr 0.3", "lr 1"]}
    }


def run(*arguments, stop_before=None):
    return ran(STUDY, *options_of(TINY), *arguments, data=made_up(), stop_before=stop_before)


def numbers(folder):
    return results(Path(folder), "adaptation_ms")


def test_a_run_and_one_that_is_stopped_measure_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(methods, "FIT_STEPS", 1)
    status, text, _ = run("--out", "whole")
    assert (status, "MAML, long, FTP" in text) == (0, True)
    found = {name: result for piece in numbers("whole").values() for name, result in piece.items()}
    counts = {name: len(found[name]["tried"]) + 4 * len(found[name].get("diverged", [])) for name in methods.TITLES}
    assert counts == dict.fromkeys(methods.TITLES, 12)  # settings of each
    report = Path("whole/report.md").read_text()
    assert "(steps.png)" in report
    assert Path("whole/steps.png").exists()
    assert all(f"| {title} |" in report for title in methods.TITLES.values())
    assert run("--out", "broken", stop_before="seed0-1shot-anil").status == 130
    assert "seed0-1shot-maml" in numbers("broken")
    assert run("--out", "broken").status == 0
    assert numbers("broken") == numbers("whole")
