"""A look at the test pictures."""

from pathlib import Path

import torch

from experiments.classification.data import Pictures
from experiments.common.figures import montage


def draw_montage(file: Path, test: Pictures, columns: int = 12) -> None:
    """Random items that are drawn in every domain, or the first ones of each domain where items are not shared."""
    places = [
        {test.items[i]: i for i in (test.domains == number).nonzero().flatten().tolist()}
        for number in range(len(test.domain_names))
    ]
    shared = [item for item in places[0] if all(item in place for place in places)]
    if shared:
        order = torch.randperm(len(shared), generator=torch.Generator().manual_seed(0))[:columns].tolist()
        chosen = [[place[shared[i]] for i in order] for place in places]
    else:
        width = min(columns, *map(len, places))
        chosen = [list(place.values())[:width] for place in places]
    montage(file, test.images[torch.tensor(chosen)], list(test.domain_names))
