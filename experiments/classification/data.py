"""Pictures of several domains in memory, the split that keeps every item on one side, and their augmentation."""

import hashlib
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from experiments.common.errors import InputError
from experiments.common.options import check_share

PARTS = ("pretrain", "finetune", "test")
SHARES = (0.375, 0.375, 0.25)  # of the items, by part


@dataclass(frozen=True)
class Pictures:
    """Every picture is one item (an emoji, a file stem) drawn in one domain (a style).

    Items of one group are near-duplicates (the man and the woman of one emoji) and always share a part of the split.
    """

    images: Tensor  # [N, 3, H, W] uint8; or what stands for them
    labels: Tensor  # [N] int64, index into classes
    domains: Tensor  # [N] int64, index into domain_names
    items: tuple[str, ...]  # [N]
    groups: tuple[str, ...]  # [N]
    classes: tuple[str, ...]
    domain_names: tuple[str, ...]

    def select(self, index: Tensor) -> "Pictures":
        chosen = index.tolist()
        return Pictures(
            images=self.images[index],
            labels=self.labels[index],
            domains=self.domains[index],
            items=tuple(self.items[i] for i in chosen),
            groups=tuple(self.groups[i] for i in chosen),
            classes=self.classes,
            domain_names=self.domain_names,
        )

    def of_domain(self, domain: int) -> "Pictures":
        return self.select((self.domains == domain).nonzero().flatten())

    def led_by(self, name: str) -> "Pictures":
        """The same with this domain as the first one."""
        if name not in self.domain_names:
            raise InputError(f"--domain {name}: the domains are {', '.join(self.domain_names)}")
        names = (name, *(other for other in self.domain_names if other != name))
        places = torch.tensor([names.index(other) for other in self.domain_names])
        return replace(self, domains=places[self.domains], domain_names=names)

    def fingerprint(self) -> str:
        """A digest of everything that can change a result; without features, whose last bits depend on the machine."""
        digest = hashlib.sha256(repr((self.items, self.groups, self.classes, self.domain_names)).encode())
        pictures = [self.images] if self.images.dtype == torch.uint8 else []
        for tensor in (*pictures, self.labels, self.domains):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def limit_items(pictures: Pictures, limit: int, seed: int) -> Pictures:
    """Keep `limit` items, as evenly over the classes as possible and at most one of each group."""
    smallest = len(PARTS) * len(pictures.classes)
    if limit < smallest:
        raise InputError(
            f"--limit {limit} is too small: {len(pictures.classes)} classes need at least {smallest} items, "
            "one of each class for each part of the split"
        )
    first_of_group: dict[int, dict[str, str]] = defaultdict(dict)
    for item, group, label in zip(pictures.items, pictures.groups, pictures.labels.tolist(), strict=True):
        first_of_group[label].setdefault(group, item)
    rows = []
    for label, groups in sorted(first_of_group.items()):
        items = list(groups.values())
        random.Random(f"{seed}-limit-{label}").shuffle(items)
        rows += [(rank, label, item) for rank, item in enumerate(items)]
    kept = {item for _, _, item in sorted(rows)[:limit]}
    return pictures.select(torch.tensor([i for i, item in enumerate(pictures.items) if item in kept]))


def _members(pictures: Pictures) -> tuple[list[str], dict[str, dict[str, set[str]]]]:
    """The class of each picture, and the items of each group by class."""
    members: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    names = [pictures.classes[label] for label in pictures.labels.tolist()]
    for item, group, name in zip(pictures.items, pictures.groups, names, strict=True):
        members[name][group].add(item)
    return names, members


def hold_out(pictures: Pictures, share: float, seed: int) -> tuple[Pictures, Pictures]:
    """What stays, with at least one group of each class, and about `share` of the items: whole groups, class by class.

    What one class cannot give evenly is owed by the next, so that small parts are cut too.
    """
    names, members = _members(pictures)
    held: set[tuple[str, str]] = set()
    owed = 0.0
    for name, groups in sorted(members.items()):
        order = sorted(groups)
        random.Random(f"{seed}-hold-out-{name}").shuffle(order)
        owed += share * sum(map(len, groups.values()))
        for group in order[:-1]:  # one group stays
            if owed < 0.5:
                break
            owed -= len(groups[group])
            held.add((name, group))
    index: tuple[list[int], list[int]] = ([], [])
    for i, key in enumerate(zip(names, pictures.groups, strict=True)):
        index[key in held].append(i)
    stays, out = (pictures.select(torch.tensor(rows, dtype=torch.long)) for rows in index)
    if not len(out.items) or not len(stays.items):
        raise InputError(f"too few pictures to hold out a share of {share:g} of {len(pictures.items)}")
    return stays, out


def fewer(pictures: Pictures, share: float, seed: int) -> Pictures:
    """About that share of the pictures: whole groups, class by class, at least one of each."""
    check_share(share, len(pictures.items), len(pictures.classes))
    return pictures if share == 1 else hold_out(pictures, 1 - share, seed)[0]


def split(pictures: Pictures, seed: int, shares: Sequence[float] = SHARES) -> dict[str, Pictures]:
    """Split by group, class by class, into pre-train, fine-tune and test.

    Large groups are placed first, each into the part that lacks most items of its share; single items follow in a
    random order that only `seed` and the class decide.
    """
    names, members = _members(pictures)
    part_of: dict[tuple[str, str], str] = {}
    for name, groups in sorted(members.items()):
        order = sorted(groups)
        random.Random(f"{seed}-{name}").shuffle(order)
        order.sort(key=lambda group: -len(groups[group]))
        total = sum(map(len, groups.values()))
        missing = {part: share * total for part, share in zip(PARTS, shares, strict=True)}
        for group in order:
            part = max(PARTS, key=lambda p: missing[p])
            missing[part] -= len(groups[group])
            part_of[name, group] = part
    index: dict[str, list[int]] = {part: [] for part in PARTS}
    for i, (name, group) in enumerate(zip(names, pictures.groups, strict=True)):
        index[part_of[name, group]].append(i)
    parts = {part: pictures.select(torch.tensor(rows, dtype=torch.long)) for part, rows in index.items()}
    for part, chosen in parts.items():
        for number, domain in enumerate(pictures.domain_names):
            if not (chosen.domains == number).any():
                raise InputError(
                    f"too few pictures: the {part} part of the split has none of domain '{domain}'; "
                    "every domain needs at least four pictures of some class"
                )
    return parts


def flip_and_shift(images: Tensor, generator: torch.Generator, shift: int) -> Tensor:
    """Mirror every second picture (uint8) on average and move each by up to `shift` pixels; what comes in is white."""
    count, _, height, width = images.shape
    flipped = torch.rand(count, generator=generator) < 0.5
    images = torch.where(rearrange(flipped, "n -> n 1 1 1"), images.flip(-1), images)
    padded = F.pad(images, (shift,) * 4, value=255)
    moves = torch.randint(2 * shift + 1, (2, count), generator=generator)
    rows = rearrange(moves[0], "n -> n 1 1") + rearrange(torch.arange(height), "h -> h 1")
    columns = rearrange(moves[1], "n -> n 1 1") + torch.arange(width)
    each = rearrange(torch.arange(count), "n -> n 1 1")
    return rearrange(padded[each, :, rows, columns], "n h w c -> n c h w")
