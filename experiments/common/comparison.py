"""Methods side by side on one task: make the anchor, choose learning rates, fine-tune, test, record."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LambdaLR

import hyperopt_ftp as hft
from experiments.common import checkpoint
from experiments.common.anchor import make_anchor
from experiments.common.bilevel_loop import Batches, Losses, Outcome, Radii, fit_radii
from experiments.common.loop import Training, write_steps
from experiments.common.memory import peak, reset_peak
from experiments.common.methods import FASTER, FOLLOWS, METHODS, held, keep_mean, kept_mean
from experiments.common.options import AnchorOptions
from experiments.common.record import RunRecord
from experiments.common.task import Network, Part, Task, tested
from experiments.common.trainer import Trainer, steps_of

OTHER_SEED = 1000  # is added for a further training
SHARE_STEPS, SHARE_LR = 40, 0.05  # of learned shares: enough for one to cross its range


@dataclass(frozen=True)
class Fitted:
    """A model after a training, and the training's own facts."""

    model: Network
    training: Training | Outcome
    radii: dict | None  # layers, steps, radii by step and layer
    mean: dict[str, Tensor] | None = None  # over its steps, where a method is made of that


class Comparison:
    """All trainings of a run; `folder` is the run's."""

    def __init__(
        self, trainer: Trainer[Task], options: AnchorOptions, start: Mapping[str, Tensor], folder: Path
    ) -> None:
        self.trainer, self.options, self.task = trainer, options, trainer.task
        self.start, self.folder = start, folder

    def _part(self, method: str, choosing: bool) -> Part:
        return self.task.parts["train" if choosing or METHODS[method].validates else "finetune"]

    def steps(self, choosing: bool) -> int:
        """Equal for all methods, whatever part they train on; fewer while a learning rate is chosen."""
        part = self.task.parts["train" if choosing else "finetune"]
        return steps_of(part, self.options.epochs, self.options.batch_size)

    def fit(
        self,
        method: str,
        seed: int,
        lr: float,
        name: str,
        choosing: bool = False,
        strength: float | None = None,
        file: str = "checkpoint.pt",
    ) -> Fitted:
        """One training from the anchor, or from where another one ended."""
        options, model = self.options, self.task.new_model()
        model.load_state_dict(dict(self.start))
        if (first := METHODS[method].after) is not None:
            before = self.fit(first, seed, FASTER[first] * lr, f"{name}: {first}", choosing, file="before.pt")
            model.load_state_dict(before.model.state_dict())
        identity = {"training": name, "config": options.as_dict()}
        make = METHODS[method].make(strength)
        if make is None:
            return self._fit_radii(model, method, seed, lr, name, choosing)
        torch.manual_seed(seed)  # LoRA draws its first weights
        optimizer = make(model, options, lr)
        if (clip := options.clip) is not None:

            def clipped(*_: object) -> None:
                clip_grad_norm_(model.parameters(), clip)

            optimizer.register_step_pre_hook(clipped)
        of_means = [mean for name in followers(method, options.methods) if (mean := METHODS[name].mean) is not None]
        for share in of_means[:1]:
            keep_mean(optimizer, share)
        radii = getattr(optimizer, "radii", None)
        training = self.trainer.train(
            name,
            model,
            optimizer,
            self._part(method, choosing),
            epochs=options.epochs,
            batch_size=options.batch_size,
            seed=seed,
            file=self.folder / file,
            identity=identity,
            warm_up=METHODS[method].warm_up if options.warm_up is None else options.warm_up,
            schedule=LambdaLR(optimizer, lambda step: 1.0) if METHODS[method].constant else None,
            forward=self._forward(model, method, strength),
            observe=(lambda: list(radii().values())) if radii is not None and not choosing else None,
        )
        if METHODS[method].mixes and not training.diverged:
            mix_in(model, self.start, self.task, options, seed)
        seen = None
        if radii is not None:
            rows = [[float(f"{value:.5g}") for value in row] for row in training.observed]
            seen = {"layers": list(radii()), "steps": training.observed_at, "radii": rows}
        return Fitted(model, training, seen, kept_mean(model, optimizer) if of_means else None)

    def _forward(self, model: Network, method: str, strength: float | None) -> Callable[[Tensor], Tensor] | None:
        """The forward pass of a step, where the method uses other weights there than it trains."""
        used = METHODS[method].in_a_step(strength)
        if used is None:
            return None
        names = held(model, self.options, dict(model.named_parameters()))
        anchor = {name: self.start[name].to(self.options.device) for name in names}

        def forward(inputs: Tensor) -> Tensor:
            return functional_call(model, dict(used(dict(model.named_parameters()), anchor)), (inputs,))

        return forward

    def _fit_radii(self, model: Network, method: str, seed: int, lr: float, name: str, choosing: bool) -> Fitted:
        options, trainer = self.options, self.trainer
        done = [0]

        def count(steps: int) -> None:
            done[0] += steps
            trainer.on_step(name, done[0])

        torch.manual_seed(seed)
        names = [n for n, _ in model.named_parameters()]
        layers = list(held(model, options, dict(model.named_parameters())))
        free = [name for name in names if name not in layers]
        outcome = fit_radii(
            model,
            self.task,
            Radii(),
            free=free,
            train=self._part(method, choosing),
            outer=self.task.parts["validation"],
            lr=lr,
            weight_decay=options.weight_decay,
            steps=self.steps(choosing),
            batch_size=options.batch_size,
            seed=seed,
            file=self.folder / "checkpoint.pt",
            identity={"training": name, "config": options.as_dict()},
            save_every=math.ceil(self._part(method, choosing).count / options.batch_size),
            progress=trainer.progress,
            description=name,
            on_step=count,
        )
        return Fitted(model, outcome, {"layers": layers, "steps": outcome.observed_at, "radii": outcome.observed})

    def choose(
        self,
        method: str,
        numbers: Sequence[float],
        tried: dict[str, float],
        save: Callable[[], None],
        lr: float | None = None,
    ) -> None:
        """Try what is left of learning rates into `tried`, or with an `lr` of strengths."""
        for number in untried(numbers, tried):
            what, rate, strength = ("lr", number, None) if lr is None else ("strength", lr, number)
            fitted = self.fit(method, self.options.seeds[0], rate, f"{method}, {what} {number}", True, strength)
            tried[str(number)] = -1.0 if fitted.training.diverged else self.task.validate(fitted.model)
            save()

    def fine_tune(self, method: str, seed: int, lr: float, strength: float | None = None) -> dict[str, dict]:
        """Results of one training by name: its own, and those of methods made of its weights."""
        device = torch.device(self.options.device)
        reset_peak(device)
        fitted = self.fit(method, seed, lr, f"{method}, seed {seed}", strength=strength)
        training, mib = fitted.training, peak(device)
        name = f"{method}-seed{seed}"
        write_steps(self.folder / "steps" / f"{name}.csv", training.log)
        if fitted.radii is not None:
            checkpoint.write_text(self.folder / "radii" / f"{name}.json", json.dumps(fitted.radii) + "\n")
        epochs = getattr(training, "epoch", None)
        examples = training.step * self.options.batch_size
        if epochs is not None:  # the last batch of an epoch is smaller
            examples = epochs * self._part(method, False).count
        result = {
            "method": method,
            "seed": seed,
            "lr": lr,
            **({} if strength is None else {"strength": strength}),
            **tested(self.task, fitted.model),
            "diverged": training.diverged,
            "steps": training.step,
            "seconds": round(training.seconds, 1),
            "images_per_second": round(examples / training.seconds, 1) if training.seconds else None,
            "peak_mib": round(mib),
        }
        if isinstance(training, Training):
            result["losses"] = training.losses
        found, fits = {name: result}, [fitted]
        for follower in followers(method, self.options.methods):
            mixed = self.mixed(follower, fits, seed, lr, METHODS[follower].usual)
            own = [fit.training for fit in fits[: METHODS[follower].others + 1]]
            found[f"{follower}-seed{seed}"] = result | {
                "method": follower,
                **tested(self.task, mixed),
                "diverged": any(training.diverged for training in own),
                "seconds": round(sum(training.seconds for training in own), 1),
            }
        return found

    def mixed(self, follower: str, fits: list[Fitted], seed: int, lr: float, strength: float | None) -> Network:
        """The model of a method that is made of the weights of a training, or of several by the same method: `fits`,
        to which this adds those that are missing."""
        method, model = METHODS[follower], self.task.new_model()
        assert method.of is not None
        assert method.mix is not None
        for number in range(len(fits), method.others + 1):
            other = seed + number * OTHER_SEED
            fits.append(self.fit(method.of, other, lr, f"{method.of}, seed {other}"))
        ends = [fit.mean if method.mean and fit.mean else fit.model.state_dict() for fit in fits]
        anchor = held(model, self.options, self.start)
        model.load_state_dict(method.mix(model, ends[: method.others + 1], anchor, strength))
        return model


def mix_in(model: Network, start: Mapping[str, Tensor], task: Task, options: AnchorOptions, seed: int) -> None:
    """Replace the model's weights and statistics by their mixture with the anchor's, by a share for each tensor that is
    learned on held-out examples."""
    device = next(model.parameters()).device
    batches = Batches(task.parts["validation"], options.batch_size, SHARE_STEPS, seed + 1, device)
    tuned = {name: value.detach().clone() for name, value in model.state_dict().items()}
    held_out = Losses(model, task).held_out
    statistics = [name for name, _ in model.named_buffers()]
    mixed, _ = hft.learned_wise(tuned, start, held_out, batches, statistics=statistics, strength_lr=SHARE_LR)
    model.load_state_dict(mixed)


def untried(numbers: Sequence[float], tried: Mapping[str, float]) -> list[float]:
    """What is left to try; what was tried goes by the number as text, so that JSON keeps it, with its score."""
    return [number for number in numbers if str(number) not in tried]


def best(tried: Mapping[str, float], usual: float | None = None) -> float | None:
    """Of two equally good ones the smaller; `usual` where none was tried."""
    return float(max(tried, key=lambda number: (tried[number], -float(number)))) if tried else usual


def followers(method: str, methods: tuple[str, ...]) -> list[str]:
    """Those of the methods that are made of its weights."""
    return [name for name in methods if FOLLOWS.get(name) == method]


def run_comparison(trainer: Trainer[Task], options: AnchorOptions, record: RunRecord, cache: Path) -> None:
    """Do what is left of a run; after every training the record is saved."""
    start, record.content["anchor"] = make_anchor(trainer, options, cache)
    comparison = Comparison(trainer, options, start, record.folder)
    rates, strengths = (record.content.setdefault(name, {}) for name in ("rates", "strengths"))
    record.save()
    methods = [method for method in options.methods if method not in FOLLOWS]
    for method in methods:
        tried, numbers = rates.setdefault(method, {}), METHODS[method].strengths
        if options.lrs:
            comparison.choose(method, options.rates_of(method), tried, record.save)
        if options.lrs and numbers:  # at the best rate, which was chosen with the first of them
            lr = best(tried)
            scores = strengths.setdefault(method, {str(numbers[0]): tried[str(lr)]})
            comparison.choose(method, numbers, scores, record.save, lr)
    done = [(method, seed) for method in methods for seed in options.seeds if f"{method}-seed{seed}" in record.results]
    with trainer.progress.task("fine-tunings", len(methods) * len(options.seeds), done=len(done)) as bar:
        for seed in options.seeds:
            for method in methods:
                if (method, seed) in done:
                    continue
                lr = best(rates[method]) or next(iter(options.rates_of(method)), options.lr)
                strength = best(strengths.get(method, {}), METHODS[method].usual)
                record.results.update(comparison.fine_tune(method, seed, lr, strength))
                record.save()
                bar.advance()
