"""The emoji's features, and which of them each part of the study sees."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from experiments.classification.data import Pictures, hold_out, limit_items, split
from experiments.common.errors import InputError
from experiments.common.frozen import BLOCKS, frozen_features
from experiments.common.progress import Progress
from experiments.tuning.knobs.config import HELD_OUT, Config

#: What a style is to a fine-tuning: the one it learns from, another one, and one that nothing was tuned on.
ROLES = ("own", "other", "unseen")

Rows = Tensor  # [n] int64: which features


@dataclass(frozen=True)
class Parts:
    """Of one seed and one style that is fine-tuned on. No item is in two parts, whatever its style."""

    pretrain: Rows  # all styles
    train: Rows  # the own style
    held_out: Mapping[str, Rows]  # by role, "own" and "other": the same items in two styles
    test: Mapping[str, Rows]  # by role: the same items in three styles


class Styles:
    """The features in memory; parts are row numbers."""

    def __init__(self, features: Pictures) -> None:
        self.features = features
        # A split of pictures serves as well for their numbers.
        self._numbered = replace(features, images=torch.arange(len(features.labels)))

    def fingerprint(self) -> str:
        return self.features.fingerprint()

    def about(self) -> dict:
        features = self.features
        return {"items": len(set(features.items)), "classes": len(features.classes), "styles": features.domain_names}

    def parts(self, config: Config, seed: int, style: int) -> Parts:
        roles = {role: (style + number) % 3 for number, role in enumerate(ROLES)}
        whole = split(self._numbered, seed)
        if config.pretrain_items > (most := len(set(whole["pretrain"].items))):
            raise InputError(f"--pretrain-items {config.pretrain_items}: there are {most}")
        train, held_out = hold_out(whole["finetune"].of_domain(style), HELD_OUT, seed)
        kept = set(held_out.items)
        elsewhere = whole["finetune"].of_domain(roles["other"])
        other = elsewhere.select(torch.tensor([i for i, item in enumerate(elsewhere.items) if item in kept]))
        return Parts(
            pretrain=limit_items(whole["pretrain"], config.pretrain_items, seed).images,
            train=train.images,
            held_out={"own": held_out.images, "other": other.images},
            test={role: whole["test"].of_domain(number).images for role, number in roles.items()},
        )


def load(config: Config, cache: Path, progress: Progress) -> Styles:
    """Features of the last block: the last convolution and the head are what is trained."""
    return Styles(frozen_features(cache, progress, BLOCKS))
