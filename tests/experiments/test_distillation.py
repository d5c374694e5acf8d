"""Distilled pictures: the tasks, the pictures they are compared with, training by a loop by hand, and the command."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from experiments.classification.data import Pictures
from experiments.common.examples import Examples
from experiments.meta.distillation.config import INITS, LR, OUTER_BATCH, PICTURE_LR, RATE_LR, Config
from experiments.meta.distillation.data import Task, emoji_task, k_means, load, random_pictures
from experiments.meta.distillation.distil import EDGE, distil, eight_bits
from experiments.meta.distillation.report import pictures_of
from experiments.meta.distillation.study import STUDY, sheet
from experiments.meta.distillation.training import MOMENTUM, Balanced, Choice, Learner, labelled
from tests.experiments.running import ran, results

SMALL = "--data digits --per-class 1 2 --seeds 3 --rounds 3 --steps 2 --lrs 0.01 0.1 --few-steps 2 4 --whole-steps 2 4"


@pytest.fixture(scope="module")
def digits():
    return load(("digits",), None, None).task("digits", 0)  # pyright: ignore[reportArgumentType]


def tiny(count=12, classes=2, side=8):
    """Pictures whose classes differ in brightness."""
    g = torch.Generator().manual_seed(0)
    y = torch.arange(count) % classes
    part = Examples(torch.rand(count, 1, side, side, generator=g) * 0.4 + 0.3 * y[:, None, None, None], y)
    return Task(tuple(map(str, range(classes))), part, part, part)


def rows(pictures):
    return {tuple(picture.flatten().tolist()) for picture in pictures}


def test_parts_of_digits_are_disjoint_pictures_of_all_classes(digits):
    assert digits.shape == (1, 8, 8)
    parts = [digits.train, digits.validation, digits.test]
    assert [len(part.y) for part in parts] == [1000, 300, 497]
    assert all(part.y.bincount().min() > 20 for part in parts)
    assert len(set.union(*(rows(part.x) for part in parts))) == 1797


def test_parts_of_emoji_share_no_group_and_are_of_the_first_style():
    styles, items = 3, 48
    number = torch.arange(items)
    images = torch.zeros(styles * items, 3, 64, 64, dtype=torch.uint8)
    images += (number.repeat(styles) + 50 * torch.arange(styles).repeat_interleave(items)).byte()[:, None, None, None]
    pictures = Pictures(
        images, (number % 2).repeat(styles), torch.arange(styles).repeat_interleave(items),
        tuple(map(str, range(items))) * styles, tuple(str(i // 4) + str(i % 2) for i in range(items)) * styles,
        ("a", "b"), ("first", "second", "third"),
    )  # fmt: skip
    task = emoji_task(pictures, 0)
    groups = []
    for part in (task.train, task.validation, task.test):
        assert part.x.shape[1:] == (3, 16, 16)
        found = (255 * part.x[:, 0, 0, 0]).round().long()
        assert found.max() < items
        assert torch.equal(found % 2, part.y)
        groups.append({pictures.groups[i] for i in found.tolist()})
    assert sum(map(len, groups)) == len(set.union(*groups)) == 24


def test_one_mean_is_that_of_the_class_and_the_nearest_picture_is_real():
    task = tiny()
    centroids, nearest = k_means(task, 1, 0)
    for label in (0, 1):
        own = task.of_class(label)
        torch.testing.assert_close(centroids[label], own.mean(0))
        far = (own - own.mean(0)).flatten(1).norm(dim=1)
        assert torch.equal(nearest[label], own[far.argmin()])


def test_baselines_have_different_pictures_in_the_order_of_their_classes():
    task = tiny()
    for pictures in (random_pictures(task, 3, torch.Generator().manual_seed(1)), k_means(task, 3, 0)[1]):
        assert len(rows(pictures)) == 6
        for label in (0, 1):
            assert rows(pictures[3 * label : 3 * label + 3]) < rows(task.of_class(label))


def test_batches_are_balanced_and_the_same_when_read_again():
    part = tiny().train
    part = part.take(torch.tensor([0, 1, 3, 5, 7]))
    batches = Balanced(part, 8, 3, "seed")
    assert all(batch.y.tolist() == [0] * 4 + [1] * 4 for batch in batches)
    assert torch.equal(batches[1].x, batches[1].x)
    assert not torch.equal(batches[1].x, batches[2].x)
    assert len(list(batches)) == 3


def test_accuracy_counts_each_class_alike():
    task = tiny(count=4)
    task = replace(task, test=task.train.take(torch.tensor([0, 0, 0, 1])))
    learner = Learner(task, "mlp")
    params = {name: torch.zeros_like(w) for name, w in learner.new(1, 0).items()}
    params["out.bias"][0, 0] = 1.0  # says 0 always
    assert learner.accuracy(params, task.test).tolist() == [50.0]


@pytest.mark.parametrize("network", ["mlp", "convolutional"])
def test_training_of_many_is_that_of_each_by_torch(network):
    task, rates, stops = tiny(), torch.tensor([0.01, 0.1]), [2, 3]
    learner, batches = Learner(task, network), [task.train.take(torch.arange(k, k + 6)) for k in range(3)]
    start = learner.new(2, 7)
    ended = learner.trained(start, rates, batches, stops)
    for number, lr in enumerate(rates.tolist()):
        own = {name: w[number].clone().requires_grad_() for name, w in start.items()}
        sgd = torch.optim.SGD(own.values(), lr=lr, momentum=MOMENTUM)
        for k, batch in enumerate(batches):
            sgd.zero_grad()
            learner.loss(own, batch).backward()
            sgd.step()
            if k + 1 in stops:
                for name, w in own.items():
                    torch.testing.assert_close(ended[stops.index(k + 1)][name][number], w.detach())


def test_a_choice_is_by_validation_alone_and_of_equals_the_smallest():
    task = tiny(count=40)
    noise = Examples(torch.rand(task.train.x.shape, generator=torch.Generator().manual_seed(1)), task.train.y)
    task = Task(task.classes, noise, noise, Examples(noise.x, 1 - noise.y))  # learned by heart, which takes steps
    assert Learner(task, "mlp").chosen([noise] * 60, (1e-6, 0.1), (1, 50, 60), "seed") == Choice(0.1, 50, 100.0)


def test_a_round_of_distillation_is_a_loop_by_hand():
    task, config = tiny(), Config(rounds=1, steps=3)
    learner, start = Learner(task, "mlp"), k_means(task, 1, 0)[0]
    found = distil(learner, start, config, "seed")
    free = torch.logit(start.clamp(EDGE, 1 - EDGE)).requires_grad_()
    log_lr = torch.tensor(LR).log().requires_grad_()
    params, velocity = learner.new(INITS, "seed", "round", 1), {}
    params = {name: w.requires_grad_() for name, w in params.items()}
    few = labelled(free.sigmoid(), 2)

    def losses(params, batch):
        x = (batch.x - task.train.x.mean()) / task.train.x.std()
        hidden = F.silu(x.flatten(1) @ params["hidden"].mT + params["hidden.bias"][:, None])
        logits = hidden @ params["out"].mT + params["out.bias"][:, None]
        return torch.stack([F.cross_entropy(one, batch.y) for one in logits])

    for _ in range(config.steps):
        grads = torch.autograd.grad(losses(params, few).sum(), tuple(params.values()), create_graph=True)
        for (name, w), g in zip(params.items(), grads, strict=True):
            velocity[name] = MOMENTUM * velocity.get(name, 0.0) + g
            params = params | {name: w - log_lr.exp() * velocity[name]}
    losses(params, Balanced(task.train, OUTER_BATCH, 1, "seed", "outer")[0]).mean().backward()
    adam = torch.optim.Adam(
        [{"params": [free], "lr": PICTURE_LR}, {"params": [log_lr], "lr": RATE_LR}], betas=(0.9, 0.99)
    )
    adam.step()
    torch.testing.assert_close(found.pictures, eight_bits(free.detach().sigmoid()), atol=1.01 / 255, rtol=0)
    assert found.lr == pytest.approx(log_lr.exp().item(), rel=1e-5)


def test_sheets_keep_every_value():
    for channels in (1, 3):
        pictures = torch.randint(0, 256, (6, channels, 4, 4), generator=torch.Generator().manual_seed(0)) / 255
        back = pictures_of(sheet(pictures, 2), 2)
        assert back.shape == (2, 3, 4, 4, 3)
        kept = torch.tensor(back).flatten(0, 1).permute(0, 3, 1, 2)[:, :channels]
        assert torch.equal(kept, (255 * pictures).round().byte())


def test_a_stopped_run_ends_as_an_undisturbed_one_and_reports(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert ran(STUDY, *SMALL.split(), "--out", str(whole)).status == 0
    assert ran(STUDY, *SMALL.split(), "--out", str(stopped), stop_before="digits-2-nearest-seed3").status == 130
    assert ran(STUDY, *SMALL.split(), "--out", str(stopped)).status == 0
    assert results(whole) == results(stopped)
    report = (whole / "report.md").read_text()
    assert "| digits, 2 | convolutional |" in report
    for figure in ("digits-1.png", "digits-2.png", "rounds.png"):
        assert f"]({figure})" in report
        assert (whole / figure).exists()
