"""Pictures that are learned through training (arXiv 1811.10959): back-propagation through all of its steps."""

import time
from typing import NamedTuple

import torch
from torch import Tensor

import hyperopt_ftp as hft
from experiments.meta.distillation.config import (
    INITS,
    LR,
    OUTER_BATCH,
    PICTURE_LR,
    RATE_LR,
    TEST_INITS,
    TRACK,
    Config,
)
from experiments.meta.distillation.training import MOMENTUM, Balanced, Learner, labelled

EDGE = 0.02  # pictures start at least so far from black and white, where the logit is infinite


class Distilled(NamedTuple):
    """What was best on validation pictures, and what was seen on the way."""

    pictures: Tensor  # of 8 bits, in [0, 1]
    lr: float
    round: int
    seconds: float  # without the looks at validation and test pictures
    rounds: list[int]  # of those looks
    validation: list[float]  # accuracy in %
    test: list[float]  # for the figure alone; nothing is chosen by it


def eight_bits(pictures: Tensor) -> Tensor:
    return (255 * pictures).round() / 255


def distil(learner: Learner, start: Tensor, config: Config, *seed: object) -> Distilled:
    """Pictures, and the learning rate to train on them with, for networks of any initial weights.

    Each round draws new networks and trains them for K steps on the pictures. The loss of what they end as, on real
    pictures, is differentiated in the pictures and in the rate.
    """
    task, classes = learner.task, len(learner.task.classes)
    optimizer = hft.sgd(lr=LR, momentum=MOMENTUM)
    before, seconds, rounds, validation, test, kept = time.process_time(), 0.0, [], [], [], []
    records = hft.bilevel(
        optimizer,
        _outer,
        ("loss.pictures", "lr"),
        # The sum, so that each of the networks moves as if it were alone.
        lambda params, _, own: learner.losses(params, labelled(own["pictures"], classes)).sum(),
        lambda params, batch: learner.losses(params, batch).mean(),
        learner.new(INITS, *seed, "round", 0),
        [torch.zeros(())] * config.steps,  # what is trained on is the hyperparameter
        Balanced(task.train, OUTER_BATCH, config.rounds, *seed, "outer"),
        inner_steps=config.steps,
        outer_steps=config.rounds,
        constrain={"loss.pictures": "logit", "lr": "log"},
        hparams={**optimizer.hparams, "loss": {"pictures": start.clamp(EDGE, 1 - EDGE)}},
        reset=lambda number: learner.new(INITS, *seed, "round", number),
        not_finite="skip",
    )
    for record in records:
        if record.step == 1 or record.step % TRACK == 0 or record.step == config.rounds:
            seconds += time.process_time() - before
            pictures, lr = eight_bits(record.tuned["loss.pictures"]), record.tuned["lr"].item()
            seen = look(learner, pictures, lr, config.steps, *seed)
            rounds.append(record.step)
            validation.append(seen[0])
            test.append(seen[1])
            kept.append((pictures, lr))
            before = time.process_time()
    best = validation.index(max(validation))
    pictures, lr = kept[best]
    return Distilled(pictures, lr, rounds[best], seconds, rounds, validation, test)


def look(learner: Learner, pictures: Tensor, lr: float, steps: int, *seed: object) -> tuple[float, float]:
    """Accuracy on validation and test pictures of networks that no round has seen."""
    batch = labelled(pictures, len(learner.task.classes))
    params = learner.new(TEST_INITS, *seed, "look")
    rates = torch.full((TEST_INITS,), lr)
    (ended,) = learner.trained(params, rates, [batch] * steps, [steps])
    validation, test = (
        learner.accuracy(ended, part).mean().item() for part in (learner.task.validation, learner.task.test)
    )
    return validation, test


def _outer(tensors: list[Tensor]) -> torch.optim.Optimizer:
    pictures, rate = tensors
    groups = [{"params": [pictures], "lr": PICTURE_LR}, {"params": [rate], "lr": RATE_LR}]
    return torch.optim.Adam(groups, betas=(0.9, 0.99))
