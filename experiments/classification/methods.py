"""The ways of fine-tuning that are compared. Each is an optimizer over some of the model's parameters."""

import torch

import hyperopt_ftp
from experiments.classification.config import Config
from experiments.classification.model import HEAD, Classifier


def adamw(model: Classifier, config: Config) -> torch.optim.Optimizer:
    """Every weight moves freely."""
    return torch.optim.AdamW(model.named_parameters(), lr=config.lr, weight_decay=config.weight_decay)


def linear(model: Classifier, config: Config) -> torch.optim.Optimizer:
    """Only the head moves."""
    model.freeze_backbone()
    return torch.optim.AdamW(model.head_parameters(), lr=config.lr, weight_decay=config.weight_decay)


def ftp(model: Classifier, config: Config) -> torch.optim.Optimizer:
    """Every weight stays within a radius of the anchor that FTP learns layer by layer.

    The head belongs to the all-style anchor and is constrained with the rest; on plain ImageNet weights it is new,
    knows nothing worth keeping, and is left free.
    """
    return hyperopt_ftp.FTPAdamW(
        model.named_parameters(),
        lr=config.lr,
        weight_decay=config.weight_decay,
        exclude=(HEAD,) if config.anchor == "imagenet" else (),
        radius_lr=config.radius_lr,
        kappa=config.kappa,
        gradient=config.gradient,
    )


OPTIMIZERS = {"adamw": adamw, "ftp": ftp, "linear": linear}
TITLES = {"anchor": "anchor, not fine-tuned", "adamw": "AdamW", "ftp": "FTPAdamW", "linear": "linear probe"}
