"""Radii by K-step hypergradients, against loops written by hand on a small network in float64."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import hyperopt_ftp as hft
from experiments.common import checkpoint
from experiments.common.bilevel_loop import Batches, Losses, Outcome, Radii, fit_radii
from experiments.common.task import Part

CPU = torch.device("cpu")
LR, DECAY, RADIUS_LR, BATCH = 0.05, 0.1, 0.005, 4
FLOOR = 1e-8  # no radius is smaller


class Net(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.body, self.head = nn.Linear(3, 5).double(), nn.Linear(5, 3).double()
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)
        self.dropout = nn.Dropout(dropout)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.dropout(torch.tanh(self.body(inputs))))


def part(count: int, seed: int) -> Part:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 3, dtype=torch.float64, generator=generator)
    targets = torch.randint(3, (count,), generator=generator)

    def draw(chosen: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        noise = torch.randn(len(chosen), 3, dtype=torch.float64, generator=generator)
        return inputs[chosen] + 0.1 * noise, targets[chosen]

    return Part(count, draw)


PARTS = {"train": part(10, seed=1), "validation": part(6, seed=2)}


class FakeTask:
    """Of a task, the radii need the loss."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)


class Fit:
    """`fit_radii` with these tests' numbers; keeps the number of steps after each call of `on_step`."""

    def __init__(self, file: Path, progress) -> None:
        self.file, self.progress = file, progress
        self.seen: list[int] = []

    def __call__(self, model: nn.Module, radii: Radii, steps: int, *, stop: int | None = None, **changed) -> Outcome:
        task, self.seen = FakeTask(), []

        def count(more: int) -> None:
            self.seen.append(more + (self.seen[-1] if self.seen else 0))
            if self.seen[-1] == stop:
                raise KeyboardInterrupt

        options = {
            "free": (),
            "train": PARTS["train"],
            "outer": PARTS["validation"],
            "lr": LR,
            "weight_decay": DECAY,
            "batch_size": BATCH,
            "seed": 3,
            "file": self.file,
            "identity": {"training": "one"},
            "save_every": 3,
            "description": "radii",
        }
        with self.progress as progress:
            return fit_radii(model, task, radii, steps=steps, progress=progress, on_step=count, **options | changed)


@pytest.fixture
def fit(tmp_path, quiet) -> Fit:
    return Fit(tmp_path / "checkpoint.pt", quiet)


def batches(name: str, steps: int, seed: int, first: int = 0) -> Batches:
    return Batches(PARTS[name], BATCH, steps, seed, CPU, first)


def within(weights: Tensor, anchor: Tensor, radius: Tensor) -> Tensor:
    """Every row of a matrix, or a whole vector, at most `radius` from the anchor, in L1."""
    moved = weights - anchor
    norms = moved.abs().sum(dim=-1, keepdim=True) + FLOOR
    return anchor + torch.where(norms < radius, torch.ones_like(norms), radius / norms) * moved


def by_hand(model: Net, free_steps: int, steps: int, outer: str) -> tuple[dict[str, Tensor], list, list]:
    """One step of torch's AdamW, one of torch's Adam on the radii, and so on: parameters, radii and losses."""
    anchor = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    inner, validation = batches("train", steps, seed=3), batches(outer, steps, seed=4)
    radii = {name: torch.tensor(FLOOR, dtype=torch.float64, requires_grad=True) for name in anchor}
    tuner = torch.optim.Adam(radii.values(), lr=RADIUS_LR)
    moves, losses = [], []
    for step in range(steps):
        inputs, targets = inner[step]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step < free_steps:
            losses.append(loss.item())
            for name, p in model.named_parameters():
                moved = (p.detach() - anchor[name]).abs().sum(dim=-1) + FLOOR
                radii[name].data.fill_(moved.min().item() / 2)
            continue
        inputs, targets = validation[step - free_steps]
        largest = {
            name: (p.detach() - anchor[name]).abs().sum(dim=-1).max().item() + FLOOR
            for name, p in model.named_parameters()
        }
        projected = {name: within(p.detach(), anchor[name], radii[name]) for name, p in model.named_parameters()}
        loss = F.cross_entropy(functional_call(model, projected, (inputs,)), targets)
        tuner.zero_grad()
        loss.backward()
        tuner.step()
        for name, p in model.named_parameters():
            p.data.copy_(projected[name].detach())
            radii[name].data.clamp_(min=FLOOR, max=largest[name])
        moves.append([radius.item() for radius in radii.values()])
        losses.append(loss.item())
    return {name: p.detach() for name, p in model.named_parameters()}, moves, losses


def close(one, other, digits: float = 1e-10) -> None:
    torch.testing.assert_close(one, other, rtol=digits, atol=digits)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("outer", ["validation", "train"])
@pytest.mark.parametrize("free_steps", [0, 2])
def test_one_step_equals_a_loop_by_hand(fit, free_steps, outer):
    model, steps = Net(), 7
    radii = Radii(1, outer == "validation", free_steps, RADIUS_LR)
    outcome = fit(model, radii, steps, outer=PARTS[outer])
    expected, moves, losses = by_hand(Net(), free_steps, steps, outer)
    close(weights(model), expected)
    close(torch.tensor(outcome.observed), torch.tensor(moves), digits=1e-4)  # five digits are kept
    kept = [x.item() for x in checkpoint.load(fit.file)["state"] if x.ndim == 0 and x.is_floating_point()]
    close(kept[:4], moves[-1])
    close([row[1] for row in outcome.log], losses)
    assert outcome.step == steps
    assert outcome.observed_at == list(range(free_steps + 1, steps + 1))
    assert not outcome.diverged


def test_two_steps_equal_hypergradients_by_hand(fit):
    model, steps = Net(), 6
    outcome = fit(model, Radii(inner_steps=2, free_steps=0, radius_lr=RADIUS_LR), steps)

    reference = Net()
    losses = Losses(reference, FakeTask())
    params = {name: p.detach().clone() for name, p in reference.named_parameters()}
    anchor = {name: p.clone() for name, p in params.items()}
    radius = {name: torch.tensor(FLOOR, dtype=torch.float64) for name in anchor}
    tuner = torch.optim.Adam(radius.values(), lr=RADIUS_LR)
    inner, outer = batches("train", steps, seed=3), batches("validation", steps, seed=4)
    base = hft.scheduled(
        hft.adamw(lr=LR, weight_decay=DECAY), lr=lambda t: 0.5 * (1 + torch.cos(math.pi * t.double() / steps))
    )
    optimizer = hft.projected(base, anchor, radius=1.0)
    state = optimizer.init(params)
    for turn in range(steps // 2):
        value, slopes, (params, state) = hft.hypergradient(
            optimizer,
            losses.train,
            lambda p, b=outer[turn]: losses.held_out(p, b),
            params,
            [inner[2 * turn], inner[2 * turn + 1]],
            "radius",
            {**optimizer.hparams, "radius": radius},
            state,
        )
        assert outcome.log[turn][1] == pytest.approx(value.item(), rel=1e-10)
        for name, r in radius.items():
            r.grad = slopes["radius"][name]
        tuner.step()
        for r in radius.values():
            r.clamp_(min=FLOOR)
        close(outcome.observed[turn], [r.item() for r in radius.values()], digits=1e-4)
    close(weights(model), params)
    assert outcome.observed_at == [2, 4, 6]
    assert fit.seen == [2, 4, 6]


@pytest.mark.parametrize("depth", [1, 2])
def test_a_training_that_was_stopped_ends_as_an_undisturbed_one(fit, depth):
    radii, steps = Radii(inner_steps=depth, free_steps=3, radius_lr=RADIUS_LR), 3 + 8 * depth
    model, stopped, resumed = (Net(dropout=0.3) for _ in range(3))

    def without_times(outcome: Outcome) -> tuple:
        return outcome.step, outcome.observed, outcome.observed_at, [row[:2] + row[3:4] for row in outcome.log]

    torch.manual_seed(0)
    whole = fit(model, radii, steps)
    fit.file.unlink()
    for stop in (2, 3 + 4 * depth, 3 + 8 * depth):  # before the first radii, after the third move was saved, at the end
        torch.manual_seed(0)
        with pytest.raises(KeyboardInterrupt):
            fit(stopped, radii, steps, stop=stop)
        assert all(torch.equal(p, weights(Net())[name]) for name, p in weights(stopped).items())
    torch.manual_seed(0)
    last = fit(resumed, radii, steps)
    assert fit.seen == [steps]  # all of it came from the checkpoint
    assert without_times(last) == without_times(whole)
    assert all(torch.equal(p, weights(resumed)[name]) for name, p in weights(model).items())


@pytest.mark.parametrize("free_steps", [0, 5])
def test_divergence_is_said(fit, free_steps):
    model = Net()
    outcome = fit(model, Radii(free_steps=free_steps, radius_lr=1e300), 10, lr=1e300)
    assert outcome.diverged
    assert outcome.step <= 10
    assert not all(torch.equal(p, weights(Net())[name]) for name, p in weights(model).items())


def indices(count: int) -> Part:
    return Part(count, lambda chosen, generator: (chosen, torch.rand(len(chosen), generator=generator)))


def test_every_example_comes_once_in_an_epoch():
    drawn = Batches(indices(10), 4, 9, 0, CPU)
    epochs = [torch.cat([drawn[number][0] for number in range(start, start + 3)]).tolist() for start in (0, 3, 6)]
    assert [len(drawn[number][0]) for number in range(3)] == [4, 4, 2]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
