"""Angles between normals, and what the field says of them (Eigen & Fergus, 2015)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WITHIN = (11.25, 22.5, 30.0)  # degrees


def present(normals: Tensor) -> Tensor:
    """Where there is a normal at all, [n, h, w]: elsewhere it is zero."""
    return (normals != 0).any(dim=1)


def cosine_loss(outputs: Tensor, normals: Tensor) -> Tensor:
    """One minus the cosine of the angle, as is usual: the mean over the pixels that have a normal, 0 if none has."""
    there = present(normals)
    total = torch.where(there, F.cosine_similarity(outputs, normals, dim=1), 0).sum()
    count = there.sum()
    return (count > 0).to(total.dtype) - total / count.clamp(min=1)


def angles(outputs: Tensor, normals: Tensor) -> Tensor:
    """Of outputs of any length against unit normals, both [n, 3, h, w]: degrees [n, h, w]. An output without a
    direction (zero, not finite) is as wrong as can be: 180."""
    # By the two-argument arctangent: the arccosine is flat near 0, where the best predictions are.
    directions, normals = F.normalize(outputs.double(), dim=1), normals.double()
    sine = torch.linalg.cross(directions, normals, dim=1).norm(dim=1)
    found = torch.rad2deg(torch.atan2(sine, (directions * normals).sum(1)))
    return torch.where(directions.norm(dim=1) > 0.5, found, 180.0)


def measures(errors: Tensor) -> dict[str, float]:
    """Mean and median error in degrees, and the percentages of pixels within each angle."""
    errors = errors.flatten()
    shares = {f"within {limit:g}": 100 * (errors < limit).double().mean().item() for limit in WITHIN}
    middle = errors.sort().values[(len(errors) - 1) // 2 : len(errors) // 2 + 1]  # torch's quantile takes 2^24 at most
    return {**shares, "mean": errors.mean().item(), "median": middle.mean().item()}


@torch.no_grad()
def measured(model: nn.Module, images: Tensor, normals: Tensor, device: torch.device) -> dict[str, float]:
    was_training = model.training
    model.eval()
    errors = [
        angles(model(some.to(device)).cpu(), truth)
        for some, truth in zip(images.split(32), normals.split(32), strict=True)
    ]
    model.train(was_training)
    return measures(torch.cat(errors))
