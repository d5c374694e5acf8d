"""The weights every fine-tuning starts from, trained once and kept under the digest of their recipe."""

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from experiments.common import checkpoint
from experiments.common.errors import InputError
from experiments.common.options import AnchorOptions, digest
from experiments.common.task import Network, Task, summed_up
from experiments.common.trainer import Trainer

VERSION = 3  # raise when the training below changes, so that kept anchors are trained again
USED = ("anchor_epochs", "anchor_lr", "device")
WEIGHT_DECAY = 0.01


def recipe(options: AnchorOptions, task: Task) -> dict:
    """All that decides the anchor's weights."""
    values = asdict(options)
    return {
        "version": VERSION,
        "torch": str(torch.__version__),
        "task": task.name,
        "examples": task.pretrain_fingerprint(),
        **{name: values[name] for name in USED},
    }


def anchor_file(options: AnchorOptions, task: Task, cache: Path) -> Path:
    return cache / f"anchor-{digest(recipe(options, task))}.pt"


def _optimizer(model: Network, options: AnchorOptions) -> torch.optim.Optimizer:
    head = dict(model.head_parameters())
    body = [parameter for name, parameter in model.named_parameters() if name not in head]
    groups = [{"params": body}, {"params": list(head.values()), "lr": options.anchor_lr * options.anchor_head}]
    return torch.optim.AdamW(groups, lr=options.anchor_lr, weight_decay=WEIGHT_DECAY)


def make_anchor(trainer: Trainer[Task], options: AnchorOptions, cache: Path) -> tuple[dict[str, Tensor], dict]:
    """The weights, and what is to be recorded about them."""
    task = trainer.task
    torch.manual_seed(0)  # of a head that is drawn
    model = task.new_model()
    if options.head_is_new:
        return model.state_dict(), {"kind": options.anchor}
    file = anchor_file(options, task, cache)
    if not file.exists():
        unfinished = file.with_suffix(".unfinished.pt")
        training = trainer.train(
            "anchor",
            model,
            _optimizer(model, options),
            task.parts["pretrain"],
            epochs=options.anchor_epochs,
            batch_size=options.anchor_batch_size,
            seed=0,
            file=unfinished,
            identity=recipe(options, task),
        )
        if training.diverged:
            unfinished.unlink()
            raise InputError("the training of the anchor diverged; give a smaller --anchor-lr")
        about = {"kind": options.anchor, "seconds": round(training.seconds, 1), "losses": training.losses}
        checkpoint.save(file, {"model": model.state_dict(), "about": about})
        unfinished.unlink(missing_ok=True)
    saved = checkpoint.load(file)
    model.load_state_dict(saved["model"])
    scores = task.test(model)
    return saved["model"], saved["about"] | {"scores": scores, **summed_up(task.columns, scores)}
