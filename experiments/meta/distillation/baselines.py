"""A few pictures a class that are not learned through training: [classes * per_class, channels, height, width]."""

import torch
from sklearn.cluster import KMeans
from torch import Generator, Tensor

from experiments.meta.distillation.data import Task


def random_pictures(task: Task, per_class: int, generator: Generator) -> Tensor:
    chosen = []
    for label in range(len(task.classes)):
        own = task.of_class(label)
        chosen.append(own[torch.randperm(len(own), generator=generator)[:per_class]])
    return torch.cat(chosen)


def k_means(task: Task, per_class: int, seed: int) -> tuple[Tensor, Tensor]:
    """Of each class alone: the centroids, and for each the real picture of its cluster that is nearest to it."""
    centroids, nearest = [], []
    for label in range(len(task.classes)):
        own = task.of_class(label)
        flat = own.flatten(1)
        made = KMeans(per_class, n_init=4, random_state=seed)  # pyright: ignore[reportArgumentType]
        fitted = made.fit(flat.numpy())
        centers, cluster = torch.from_numpy(fitted.cluster_centers_).float(), torch.from_numpy(fitted.labels_)
        for number, center in enumerate(centers):
            members = own[cluster == number]
            nearest.append(members[(members.flatten(1) - center).square().sum(1).argmin()])
        centroids.append(centers.reshape(-1, *task.shape).clamp(0, 1))  # rounding may leave [0, 1]
    return torch.cat(centroids), torch.stack(nearest)
