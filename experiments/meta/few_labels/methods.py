"""What is compared: from a problem to a trained network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import hyperopt_ftp as hft
from examples.recipes.few_labels import learn_weights
from experiments.common.bilevel_loop import Batch, Losses
from experiments.common.examples import generator
from experiments.common.methods import FASTER
from experiments.common.task import Network, percent_right
from experiments.common.trainer import schedule_of
from experiments.meta.few_labels.config import BATCH, HELD_OUT, LR, Config
from experiments.meta.few_labels.data import Problem

WARM_UP = 0.1  # share of the steps in which the learning rate rises
FOR_LABELS = 0.25  # share of the steps that are for the labels alone, where they come afterwards
SHARES = (0.25, 0.5, 0.75, 1.0)  # of the fine-tuned weights, to choose from
SHARE_STEPS, SHARE_LR = 40, 0.05  # of shares that are learned: enough for one to cross its range
FEW = 2  # labels in a batch of the recipe
TENTH = FEW / BATCH  # how the recipe begins
EVERY = 10  # steps from one move of the weights of examples to the next


@dataclass(frozen=True)
class Run:
    """One split of a problem, and what all methods do there alike."""

    problem: Problem
    config: Config
    seed: int

    @property
    def labels(self) -> Tensor:
        return torch.arange(self.problem.labels)

    def cut(self) -> tuple[Tensor, Tensor]:
        """Labels to train on, and those that are held out."""
        out = self.labels % HELD_OUT == 0
        return self.labels[~out], self.labels[out]

    def new(self) -> Network:
        torch.manual_seed(self.seed)
        return self.problem.task.new_model()

    def drawn(self, chances: Tensor, steps: int) -> Iterable[Batch]:
        """Batches of examples of the part, by their chances."""
        g = generator("order", self.seed, steps)
        for _ in range(steps):
            yield self.problem.part.draw(torch.multinomial(chances, BATCH, replacement=True, generator=g), g)

    def chances(self, labels: Tensor, share: float | None = None, source: Tensor | None = None) -> Tensor:
        """Equal ones, or with this share for the labels, and the rest for the source as `source` says."""
        n, m = self.problem.source, len(labels)
        share = m / (n + m) if share is None else share
        of_source = torch.ones(n) if source is None else source
        found = torch.zeros(n + self.problem.labels)
        found[:n] = (1 - share) * of_source / of_source.sum()
        found[n + labels] = share / m
        return found

    def train(
        self, model: Network, chances: Tensor, share_of_steps: float = 1.0, lr: float = LR,
        make: Callable[..., torch.optim.Optimizer] | None = None, keep: Callable[[float], float] = lambda done: 1.0,
    ) -> Network:  # fmt: skip
        """By AdamW, or what `make` gives; of a batch the share `keep` with the smallest losses counts."""
        steps = round(share_of_steps * self.config.steps)
        make = make or (lambda params, lr: torch.optim.AdamW(params, lr=lr, weight_decay=0.0, fused=True))
        optimizer = make(list(model.named_parameters()), lr)
        schedule = schedule_of(optimizer, steps, round(WARM_UP * steps))
        torch.manual_seed(self.seed)
        model.train()
        for k, (inputs, targets) in enumerate(self.drawn(chances, steps)):
            losses = F.cross_entropy(model(inputs), targets, reduction="none")
            kept = losses.topk(math.ceil(keep(k / steps) * len(losses)), largest=False).values
            optimizer.zero_grad()
            kept.mean().backward()
            optimizer.step()
            schedule.step()
        return model

    @torch.no_grad()
    def score(self, model: Network, labels: Tensor) -> float:
        """Minus the loss on some labels: of so few the share of right answers is coarse."""
        model.eval()
        inputs, targets = self.problem.held_out(labels)
        return -F.cross_entropy(model(inputs), targets).item()


def labels(run: Run) -> Network:
    return run.train(run.new(), run.chances(run.labels, 1.0), 2 * FOR_LABELS)


def both(
    run: Run, share: float | None = None, last: float = 0.0, labels: Tensor | None = None, lr: float = LR,
    make: Callable[..., torch.optim.Optimizer] | None = None,
) -> Network:  # fmt: skip
    """The labels have a share of each batch, and the last part of the steps for themselves, where `make` trains."""
    labels = run.labels if labels is None else labels
    model = run.train(run.new(), run.chances(labels, share), 1 - last, lr)
    return run.train(model, run.chances(labels, 1.0), last, lr, make) if last else model


def small_loss(run: Run) -> Network:
    """Co-teaching's schedule (arXiv 1804.06872) with one network: the share of wrong labels is told."""
    wrong = 1 - right_labels(run).mean().item()
    return run.train(run.new(), run.chances(run.labels), keep=lambda done: 1 - wrong * min(1.0, done / 0.2))


def pruned(run: Run) -> Network:
    """Two trainings: the second without the examples of the largest losses after the first."""
    losses = F.cross_entropy(*run.problem.source_outputs(both(run)), reduction="none")
    kept = losses <= losses.quantile(right_labels(run).mean())
    return run.train(run.new(), run.chances(run.labels, source=kept.float()))


def told(run: Run) -> Network:
    return run.train(run.new(), run.chances(run.labels, source=right_labels(run)))


def right_labels(run: Run) -> Tensor:
    """1 or 0 [N]."""
    assert run.problem.right is not None
    return run.problem.right.float()


def agreement(run: Run) -> Network:
    """Groups of the source count by how much more often than by chance a network of the labels alone agrees."""
    groups = run.problem.groups
    found, given = run.problem.source_outputs(labels(run))
    shares = groups.bincount((found.argmax(1) == given).float()) / groups.bincount().clamp(min=1)
    counts = (shares - 1 / found.shape[1]).clamp(min=0.01)
    return run.train(run.new(), run.chances(run.labels, source=counts[groups]))


def optuna(run: Run) -> Network:
    """By TPE on the labels that are held out; the first two trials are "a tenth" and "then labels"."""
    import optuna as peer

    peer.logging.set_verbosity(peer.logging.WARNING)
    seen, held_out = run.cut()

    def trial(asked: Any) -> float:
        lr = asked.suggest_float("lr", LR / 4, LR * 4, log=True)
        share, last = asked.suggest_float("share", 0.0, 0.6), asked.suggest_float("last", 0.0, 2 * FOR_LABELS)
        return run.score(both(run, share, last, seen, lr), held_out)

    study = peer.create_study(direction="maximize", sampler=peer.samplers.TPESampler(seed=run.seed, n_startup_trials=2))
    for share, last in ((TENTH, 0.0), (0.0, FOR_LABELS)):
        study.enqueue_trial({"lr": LR, "share": share, "last": last})
    study.optimize(trial, n_trials=run.config.trials)
    return both(run, **study.best_params)


def by_ftp(params: Any, lr: float) -> torch.optim.Optimizer:
    return hft.FTPAdamW(params, lr=FASTER["ftp"] * lr, weight_decay=0.0)


def then_wise(run: Run) -> Network:
    """The labels that are held out choose the share."""
    anchor, tuned, held_out = ends(run)
    mixed = {share: loaded(run, hft.wise(tuned, anchor, 1 - share)) for share in SHARES}
    return mixed[max(SHARES, key=lambda share: run.score(mixed[share], held_out))]


def then_learned_wise(run: Run) -> Network:
    """A share for each tensor, by its hypergradient."""
    anchor, tuned, held_out = ends(run)
    model = run.new()
    loss, batch = Losses(model, run.problem.task).held_out, run.problem.held_out(held_out)
    statistics = [name for name, _ in model.named_buffers()]
    batches = [batch] * SHARE_STEPS
    return loaded(run, hft.learned_wise(tuned, anchor, loss, batches, statistics=statistics, strength_lr=SHARE_LR)[0])


def ends(run: Run) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Weights after the source, those after the labels that are not held out, and the others."""
    seen, held_out = run.cut()
    model = run.train(run.new(), run.chances(run.labels, 0.0), 1 - FOR_LABELS)
    anchor = {name: value.clone() for name, value in model.state_dict().items()}
    return anchor, run.train(model, run.chances(seen, 1.0), FOR_LABELS).state_dict(), held_out


def loaded(run: Run, weights: Mapping[str, Tensor]) -> Network:
    model = run.new()
    model.load_state_dict(dict(weights))
    return model


def importance(run: Run) -> Network:
    """Odds of a logistic regression that tells the domains apart, on the features of the network as it comes."""
    from sklearn.linear_model import LogisticRegression

    problem, model = run.problem, run.new().eval()
    features: list[Tensor] = []
    hook = model.get_submodule(model.head.removesuffix(".*")).register_forward_pre_hook(
        lambda module, inputs: features.append(inputs[0])
    )
    with torch.no_grad():
        for chosen in torch.arange(problem.part.count).split(BATCH):
            model(problem.part.draw(chosen, generator("features", run.seed))[0])
    hook.remove()
    x = torch.cat(features).float().numpy()
    target = torch.arange(problem.part.count) >= problem.source
    told = LogisticRegression(C=0.1, max_iter=1000, class_weight="balanced").fit(x, target.numpy())
    odds = torch.from_numpy(told.decision_function(x[: problem.source])).clamp(-3, 3).exp().float()
    return run.train(run.new(), run.chances(run.labels, source=odds))


def rates_of(lr: float, steps: int) -> Tensor:
    """Of each step, by the schedule of all methods."""
    optimizer, rates = torch.optim.SGD([torch.zeros(1)], lr=lr), []
    schedule = schedule_of(optimizer, steps, round(WARM_UP * steps))
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return torch.tensor(rates)


def learned(
    run: Run, last: float = 0.0, make: Callable[..., torch.optim.Optimizer] | None = None
) -> tuple[Network, Mapping[str, Tensor]]:
    """The recipe: a weight for each group, and for the loss; and the share of the labels. Then as `both`."""
    problem, model, steps = run.problem, run.new(), EVERY * max(1, round((1 - last) * run.config.steps / EVERY))
    statistics = dict(model.named_buffers())
    optimizer = hft.per_step(hft.adamw(lr=LR, weight_decay=0.0), lr=rates_of(LR, steps))
    g = generator("learned", run.seed)

    def losses(params: dict[str, Tensor], batch: Batch) -> Tensor:
        outputs = functional_call(model, {**statistics, **params}, (batch[0],))
        return F.cross_entropy(outputs, batch[1], reduction="none")

    torch.manual_seed(run.seed)
    model.train()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
        params, own = learn_weights(
            losses, start, lambda chosen: problem.part.draw(chosen, g), problem.groups, problem.labels, optimizer,
            steps, every=EVERY, size=BATCH - FEW, few=FEW, seed=run.seed,
        )  # fmt: skip
    model.load_state_dict(params, strict=False)
    return run.train(model, run.chances(run.labels, 1.0), last, make=make) if last else model, own


@dataclass(frozen=True)
class Method:
    """One row of the table."""

    title: str
    about: str
    fit: Callable[[Run], Any]  # a network, or that and what was learned
    wrong: bool | None = None  # whether it is for problems with wrong labels alone; None: for all


METHODS: Mapping[str, Method] = {
    "source": Method("source alone", "no labels of the target", partial(both, share=0.0)),
    "labels": Method("labels alone", "no source, half of the steps", labels),
    "add": Method("labels added", "both, each example alike", both),
    "add_tenth": Method("a tenth", "the same, with a tenth of each batch for the labels", partial(both, share=TENTH)),
    "then_labels": Method(
        "then labels",
        "the source, and in the last quarter of the steps the labels",
        partial(both, share=0.0, last=FOR_LABELS),
    ),
    "tenth_then": Method(
        "a tenth, then labels",
        "both, a tenth of each batch labels; in the last quarter of the steps the labels",
        partial(both, share=TENTH, last=FOR_LABELS),
    ),
    "optuna": Method(
        "Optuna", "learning rate, the labels' share, and how many steps they have alone, chosen by Optuna's TPE", optuna
    ),
    "then_ftp": Method(
        "then labels by FTP",
        "the source, and in the last quarter of the steps the labels, by FTPAdamW at ten times the rate",
        partial(both, share=0.0, last=FOR_LABELS, make=by_ftp),
    ),
    "tenth_then_ftp": Method(
        "a tenth, then labels by FTP",
        "the same, with a tenth of each batch for the labels before",
        partial(both, share=TENTH, last=FOR_LABELS, make=by_ftp),
    ),
    "then_wise": Method(
        "then labels, WiSE-FT", "then two thirds of the labels; the others choose WiSE-FT's share", then_wise
    ),
    "then_learned_wise": Method(
        "then labels, learned shares", "the same, with a share for each tensor by hypergradients", then_learned_wise
    ),
    "importance": Method(
        "importance weights", "both, the source by the odds of a domain classifier", importance, False
    ),
    "agreement": Method(
        "weights by agreement", "both, a group of the source by how often labels alone agree with it", agreement, True
    ),
    "small_loss": Method("small-loss selection", "both, without the share of large losses", small_loss, True),
    "pruned": Method(
        "pruned", "both, twice: then without the largest losses, as many as labels are wrong", pruned, True
    ),
    "told": Method("wrong labels known", "both, without the wrong labels, which nobody knows: the ceiling", told, True),
    "learned": Method("learned weights", "the recipe, by hypergradients through two of ten steps", learned),
    "learned_then": Method(
        "learned weights, then labels",
        "the recipe, and in the last quarter of the steps the labels",
        partial(learned, last=FOR_LABELS),
    ),
    "learned_then_ftp": Method(
        "learned weights, then labels by FTP",
        "the same, where FTPAdamW takes the labels, at ten times the rate",
        partial(learned, last=FOR_LABELS, make=by_ftp),
        False,
    ),
}


def fitted(run: Run, method: str) -> tuple[Network, Mapping[str, Tensor] | None]:
    """The network, and what was learned beside it."""
    found = METHODS[method].fit(run)
    return found if isinstance(found, tuple) else (found, None)


def tested(problem: Problem, model: Network) -> float:
    """The score on the tests."""
    given = problem.task.answers(model)[problem.test]  # pyright: ignore[reportAttributeAccessIssue]
    truth = problem.task.tests[problem.test].labels  # pyright: ignore[reportAttributeAccessIssue]
    return percent_right(given, truth, problem.task.by_class)  # pyright: ignore[reportAttributeAccessIssue]
