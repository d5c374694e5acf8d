"""The weights every fine-tuning starts from, trained once and kept under the digest of their recipe."""

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from experiments.classification.config import Config, digest
from experiments.classification.data import Pictures
from experiments.classification.study import Study
from experiments.common import checkpoint
from experiments.common.errors import InputError

VERSION = 1  # raise when the training below changes, so that kept anchors are trained again
OPTIONS = (
    "anchor_epochs",
    "anchor_lr",
    "anchor_weight_decay",
    "anchor_batch_size",
    "dropout",
    "shift",
    "device",
)


def recipe(config: Config, pictures: Pictures) -> dict:
    """All that decides the anchor's weights."""
    options = asdict(config)
    return {
        "version": VERSION,
        "torch": str(torch.__version__),
        "pictures": pictures.fingerprint(),
        **{name: options[name] for name in OPTIONS},
    }


def anchor_file(config: Config, pictures: Pictures, cache: Path) -> Path:
    return cache / f"anchor-{digest(recipe(config, pictures))}.pt"


def make_anchor(study: Study, cache: Path) -> tuple[dict[str, Tensor], dict]:
    """The weights, and what is to be recorded about them."""
    config, pictures = study.config, study.parts["pretrain"]
    model = study.new_model()
    if config.anchor == "imagenet":
        return model.state_dict(), {"kind": "imagenet"}
    file = anchor_file(config, pictures, cache)
    if not file.exists():
        unfinished = file.with_suffix(".unfinished.pt")
        training = study.train(
            "anchor",
            model,
            torch.optim.AdamW(model.parameters(), lr=config.anchor_lr, weight_decay=config.anchor_weight_decay),
            pictures,
            epochs=config.anchor_epochs,
            batch_size=config.anchor_batch_size,
            seed=0,
            file=unfinished,
            identity=recipe(config, pictures),
        )
        if training.diverged:
            unfinished.unlink()
            raise InputError("the training of the anchor diverged; give a smaller --anchor-lr")
        about = {"kind": "styles", "seconds": round(training.seconds, 1), "losses": training.losses}
        checkpoint.save(file, {"model": model.state_dict(), "about": about | study.test(model)})
        unfinished.unlink()
    saved = checkpoint.load(file)
    return saved["model"], saved["about"]
