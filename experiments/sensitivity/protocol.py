"""How a method is scored by answers that chose none of its settings, and how sure its score is.

The groups of the tests in distribution are cut into folds, the same in all splits. Each fold is scored at the setting
(a learning rate, or that and a share of the anchor) with the best mean over the splits on the other folds. Out of
distribution a split's score is the mean over the folds' settings. No training is made for it.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch

from experiments.common.examples import generator

FOLDS, RESAMPLES, SEED = 5, 1000, 0


class Answered(NamedTuple):
    """A test set of one split, N examples, and which of them each of C settings has right."""

    right: np.ndarray  # [C, N] of 0 and 1
    classes: np.ndarray  # [N]; the score is the mean over these. All equal: the accuracy
    groups: np.ndarray  # [N], the index of each example's group in all splits


class Overlaps(NamedTuple):
    """The same of N scenes with L classes, whose score is the mean intersection over union."""

    shared: np.ndarray  # [C, N, L], pixels of intersection
    union: np.ndarray  # [C, N, L]
    groups: np.ndarray  # [N]


Test: TypeAlias = Answered | Overlaps


class Scores(NamedTuple):
    """Of B resamples and S splits, in percent."""

    chosen: np.ndarray  # [B, FOLDS], the index of a setting
    id: np.ndarray  # [B, S]
    ood: np.ndarray  # [B, S, T], of each test out of distribution


def fold_of(group: str) -> int:
    """By its name alone, so that it is the same whatever other groups there are."""
    return int(hashlib.sha256(f"{SEED} {group}".encode()).hexdigest()[:8], 16) % FOLDS


def resampled(groups: int) -> np.ndarray:
    """How often each group is drawn [RESAMPLES, groups], if as many as there are are drawn with replacement."""
    drawn = torch.randint(groups, (RESAMPLES, groups), generator=generator("groups", SEED))
    return torch.zeros(RESAMPLES, groups).scatter_add_(1, drawn, torch.ones(RESAMPLES, groups)).double().numpy()


def counted(test: Test, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each class how many examples are right [B, C, L], and how many there are [B, 1, L], or pixels of intersection
    and of union [B, C, L]; groups count [B, G]."""
    each = counts[:, test.groups]
    if isinstance(test, Overlaps):
        return np.tensordot(each, test.shared, (1, 1)), np.tensordot(each, test.union, (1, 1))
    by_class = [each * (test.classes == one) for one in np.unique(test.classes)]
    right = np.stack([own @ test.right.T for own in by_class], -1)
    return right, np.stack([own.sum(1, keepdims=True) for own in by_class], -1)


def percent(right: np.ndarray, there: np.ndarray) -> np.ndarray:
    """The mean over the classes of which there are any."""
    shares = right / np.maximum(there, 1)
    return 100 * shares.sum(-1) / np.maximum((there > 0).sum(-1), 1)


def cross_fitted(
    ids: Sequence[Test],
    oods: Sequence[Sequence[Test]],
    folds: np.ndarray,
    counts: np.ndarray,
) -> Scores:
    """The scores of a method.

    Args:
        ids, oods: of each split the test in distribution, and those out of it.
        folds: [G], of each group.
        counts: [B, G], how often each group counts: ones, or `resampled`. In each resample settings are chosen anew.
    """
    rows = np.arange(len(counts))
    whole = [counted(test, counts) for test in ids]
    held = [[counted(test, counts * (folds == fold)) for test in ids] for fold in range(FOLDS)]
    chosen = []
    for parts in held:
        others = [percent(right - r, there - t) for (right, there), (r, t) in zip(whole, parts, strict=True)]
        chosen.append(np.mean(others, 0).argmax(1))  # of equally good settings the first
    own, out = [], []
    for split, tests in enumerate(oods):
        pairs = [(np.broadcast_arrays(*parts[split]), best) for parts, best in zip(held, chosen, strict=True)]
        right, there = (np.sum([pair[which][rows, best] for pair, best in pairs], 0) for which in (0, 1))
        own.append(percent(right, there))
        of_settings = np.stack([percent(*counted(test, counts)) for test in tests], -1)
        out.append(np.mean([of_settings[rows, best] for best in chosen], 0))
    return Scores(np.stack(chosen, 1), np.stack(own, 1), np.stack(out, 1))


def half_width(differences: np.ndarray) -> float:
    """Half of what the middle 95 % of the resamples [B] span."""
    low, high = np.quantile(differences, [0.025, 0.975])
    return float(high - low) / 2
