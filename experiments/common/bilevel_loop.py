"""Fine-tuning whose radii follow K-step hypergradients: TPGM (K = 1, validation examples) and what FTP cuts short."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

import hyperopt_ftp as hft
from experiments.common import checkpoint
from experiments.common.progress import Progress
from experiments.common.task import Part, Task
from hyperopt_ftp.hyper import BilevelState

Batch = tuple[Tensor, Tensor]


class Batches(Sequence[Batch]):
    """Shuffled, augmented batches by number: epoch after epoch, each batch the same whenever it is drawn."""

    def __init__(
        self, part: Part, batch_size: int, steps: int, seed: int, device: torch.device, first: int = 0
    ) -> None:
        self.part, self.batch_size, self.steps, self.seed = part, batch_size, steps, seed
        self.device, self.first = device, first

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, number: int) -> Batch:  # pyright: ignore[reportIncompatibleMethodOverride]  # no slices
        if not 0 <= number < self.steps:
            raise IndexError(number)
        number += self.first
        epoch, place = divmod(number, math.ceil(self.part.count / self.batch_size))
        order = torch.randperm(self.part.count, generator=self._generator(0, epoch))
        chosen = order.split(self.batch_size)[place]
        inputs, targets = self.part.draw(chosen, self._generator(1, number))
        return inputs.to(self.device), targets.to(self.device)

    def _generator(self, kind: int, number: int) -> torch.Generator:
        return torch.Generator().manual_seed((2 * (1_000_003 * self.seed + number) + kind) % 2**63)


@dataclass(frozen=True)
class Losses:
    """A task's losses as functions of a dict of weights. Dropout is part of training alone."""

    model: nn.Module
    task: Task

    def train(self, params: dict[str, Tensor], batch: Batch) -> Tensor:
        self.model.train()
        return self.task.loss(functional_call(self.model, params, (batch[0],)), batch[1])

    def held_out(self, params: dict[str, Tensor], batch: Batch) -> Tensor:
        self.model.eval()
        return self.task.loss(functional_call(self.model, params, (batch[0],)), batch[1])


@dataclass(frozen=True)
class Radii:
    """How the radii are learned."""

    inner_steps: int = 1  # K: training steps between two moves of the radii, and through which is differentiated
    on_validation: bool = True  # False: the hypergradient is that of another training batch
    free_steps: int = 5  # unconstrained steps before the first radii are taken (half the smallest row norm); 0: 1e-8
    radius_lr: float = 1e-2  # of Adam, for one move; multiply by K to let radii grow as fast as step by step


@dataclass
class Outcome:
    """What of it goes into a record."""

    step: int = 0  # training steps
    seconds: float = 0.0
    diverged: bool = False
    log: list[tuple[float, ...]] = field(default_factory=list)
    observed: list[list[float]] = field(default_factory=list)  # radii after each outer step
    observed_at: list[int] = field(default_factory=list)


def cosine(steps: int) -> Callable[[Tensor], Tensor]:
    """The factor of `CosineAnnealingLR(T_max=steps)`."""
    return lambda count: (1 + torch.cos(math.pi * count.to(torch.float64) / steps)) / 2


def fit_radii(
    model: nn.Module,
    task: Task,
    radii: Radii,
    *,
    free: Sequence[str],
    train: Part,
    outer: Part,
    lr: float,
    weight_decay: float,
    steps: int,
    batch_size: int,
    seed: int,
    file: Path,
    identity: dict,
    save_every: int,
    progress: Progress,
    description: str,
    on_step: Callable[[int], None],
) -> Outcome:
    """Train the model's weights with AdamW, projected into balls around where they are now; `hft.bilevel` does it.

    Args:
        free: names of parameters that are not constrained.
        train, outer: examples of the training steps and of the hypergradients.
        save_every: outer steps between two checkpoints in `file`; the training of `identity` goes on from there.
        on_step: called with the number of training steps since its last call; first with those of a checkpoint.
    """
    device = next(model.parameters()).device
    params = {name: p.detach().clone() for name, p in model.named_parameters()}
    anchor = {name: p.clone() for name, p in params.items() if name not in free}
    base = hft.scheduled(hft.adamw(lr=lr, weight_decay=weight_decay), lr=cosine(steps))
    losses, outcome = Losses(model, task), Outcome()
    free_steps = min(radii.free_steps, max(0, steps - radii.inner_steps))
    outer_steps = max(1, (steps - free_steps) // radii.inner_steps)

    def took(count: int, loss: float, seconds: float) -> None:
        outcome.step += count
        outcome.seconds += seconds
        rate = lr * cosine(steps)(torch.tensor(outcome.step - 1)).item()
        outcome.log.append((outcome.step, loss, math.nan, rate, seconds))

    saved = checkpoint.load(file) if file.exists() else {}
    saved = saved if saved.get("identity") == identity else None
    inner = base.init(params)
    if saved is None:
        freely = Batches(train, batch_size, free_steps, seed, device)
        for k in range(free_steps):
            begin = time.perf_counter()
            grads, loss = torch.func.grad_and_value(losses.train)(params, freely[k])
            params, inner = base.update(grads, inner, params)
            took(1, loss.item(), time.perf_counter() - begin)
            on_step(1)
    first = hft.tpgm_radius(params, anchor) if free_steps else dict.fromkeys(anchor, 1e-8)
    if not all(math.isfinite(radius) for radius in first.values()):
        outcome.diverged = True
        model.load_state_dict(params, strict=False)
        return outcome
    optimizer, by = hft.projected(base, anchor, radius=first), hft.adam(lr=radii.radius_lr)
    tuned = {"radius": optimizer.hparams["radius"]}
    # As hft.bilevel begins by itself, but that `base` goes on; and a saved state has to be put into its structure.
    start = optimizer.init(params)._replace(base=inner)
    zero = torch.zeros((), dtype=torch.int64)
    state = BilevelState(zero, params, start, tuned, by.init(tuned), zero)
    if saved is not None:
        leaves, structure = pytree.tree_flatten(state)
        leaves = [new.to(old.device) for new, old in zip(saved["state"], leaves, strict=True)]
        state = pytree.tree_unflatten(leaves, structure)
        outcome = Outcome(**saved["outcome"])
        torch.set_rng_state(saved["rng"]["cpu"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state_all(saved["rng"]["cuda"])
        on_step(outcome.step)
    run = hft.bilevel(
        optimizer, by, "radius", losses.train, losses.held_out if radii.on_validation else losses.train, state.params,
        Batches(train, batch_size, outer_steps * radii.inner_steps, seed, device, first=free_steps),
        Batches(outer, batch_size, outer_steps, seed + 1, device),
        inner_steps=radii.inner_steps, outer_steps=outer_steps, state=state,
    )  # fmt: skip
    with progress.task(description, outer_steps, done=int(state.step)) as bar:
        begin = time.perf_counter()
        try:
            for record in run:
                state = record.state
                took(radii.inner_steps, record.value, time.perf_counter() - begin)
                outcome.observed.append([float(f"{r.item():.5g}") for r in record.tuned["radius"].values()])
                outcome.observed_at.append(outcome.step)
                bar.advance(note=f"loss {record.value:.3f}")
                if record.step % save_every == 0 or record.step == outer_steps:
                    content = {"identity": identity, "state": pytree.tree_leaves(state), "outcome": vars(outcome)}
                    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
                    checkpoint.save(file, content | {"rng": {"cpu": torch.get_rng_state(), "cuda": cuda}})
                on_step(radii.inner_steps)
                begin = time.perf_counter()
        except FloatingPointError:
            outcome.diverged = True
    model.load_state_dict(dict(state.params), strict=False)  # buffers are not trained
    return outcome
