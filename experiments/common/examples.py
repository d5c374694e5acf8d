"""Examples as two tensors, their split into parts, wrong labels, and random draws."""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from experiments.common.errors import InputError


class Examples(NamedTuple):
    """Inputs [N, ...] and labels [N]."""

    x: Tensor
    y: Tensor

    def take(self, index: Tensor) -> "Examples":
        return Examples(self.x[index], self.y[index])

    def fingerprint(self) -> str:
        """A digest of all that is in it."""
        digest = hashlib.sha256()
        for tensor in self:
            digest.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def split(examples: Examples, sizes: Mapping[str, int], seed: int) -> dict[str, Examples]:
    """Disjoint parts in a random order, each with the same shares of labels, as far as whole numbers allow.

    >>> parts = split(Examples(torch.arange(6), torch.tensor([0, 1, 0, 1, 0, 1])), {"train": 4, "test": 2}, seed=0)
    >>> [part.y.sort().values.tolist() for part in parts.values()]
    [[0, 0, 1, 1], [0, 1]]
    """
    count = len(examples.y)
    if sum(sizes.values()) > count:
        wanted = ", ".join(f"{size} for {name}" for name, size in sizes.items())
        raise InputError(f"there are {count} examples, but {wanted} are {sum(sizes.values())}; ask for fewer")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(count, generator=generator)
    # Each label's examples evenly spread over the whole order: any stretch of it has every label's share.
    place = torch.empty(count, dtype=torch.float64)
    for label in examples.y.unique():
        own = order[examples.y[order] == label]
        place[own] = (torch.arange(len(own)) + torch.rand((), generator=generator, dtype=torch.float64)) / len(own)
    spread, parts, first = place.argsort(), {}, 0
    for name, size in sizes.items():
        chosen = spread[first : first + size]
        parts[name] = examples.take(chosen[torch.randperm(size, generator=generator)])
        first += size
    return parts


def digits() -> Examples:
    """1,797 hand-written digits of 8 x 8 pixels, which scikit-learn ships: pixels in [0, 1], float32 [1797, 64], and
    labels 0 to 9."""
    from sklearn.datasets import load_digits  # of the extra `studies`

    pictures, labels = load_digits(return_X_y=True)
    return Examples(torch.from_numpy(pictures).float() / 16, torch.from_numpy(labels).long())


def flipped(labels: Tensor, classes: int, share: float, drawn: torch.Generator) -> Tensor:
    """Labels of which round(share * n) are replaced by another class, by chance."""
    wrong = torch.randperm(len(labels), generator=drawn)[: round(share * len(labels))]
    away = torch.randint(1, classes, wrong.shape, generator=drawn)
    return labels.index_put((wrong,), (labels[wrong] + away) % classes)


def generator(*what: object) -> torch.Generator:
    """Of its own for each use, though a study has one seed: two that begin with the same seed draw the same order.

    >>> [generator("labels", 3).initial_seed() == generator(name, 3).initial_seed() for name in ("labels", "order")]
    [True, False]
    """
    digest = hashlib.sha256(repr(what).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
