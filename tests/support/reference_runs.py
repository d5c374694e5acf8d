"""The reference trajectories in tests/reference: gradients of a run, and what weights and radii it must have."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).parents[1] / "reference"


@dataclass(frozen=True)
class Run:
    """One reference trajectory: its settings, and its arrays by name."""

    index: int
    about: dict[str, Any]
    arrays: dict[str, Tensor]

    @property
    def adam(self) -> bool:
        return self.about["optimizer"] == "adam"

    @property
    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the base optimizer."""
        return {k: v for k, v in self.about["kwargs"].items() if k != "k"}

    @property
    def kappa(self) -> float:
        return self.about["kwargs"]["k"]

    def anchor(self) -> dict[str, Tensor]:
        return {n: self.arrays[f"anchor/{n}"].clone() for n in self.about["names"]}

    def constrained(self) -> dict[str, Tensor]:
        return {n: w for n, w in self.anchor().items() if n in self.about["constrained"]}

    def gradient(self, name: str, t: int, w: Tensor) -> Tensor:
        flip = self.about["flip"]
        target = self.arrays[f"{'anchor' if flip is not None and t >= flip else 'target'}/{name}"]
        pull = self.about["gscale"] * self.arrays[f"curvature/{name}"].to(w) * (w.detach() - target.to(w))
        return pull + self.arrays[f"noise/{name}"][t].to(w)

    def expected(self, t: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weights and radii after step t."""
        weights = {n: self.arrays[f"params/{n}"][t] for n in self.about["names"]}
        return weights, dict(zip(self.about["constrained"], self.arrays["radius"][t], strict=True))


def runs() -> Iterator[Run]:
    """All reference trajectories, in the order of the file."""
    abouts = json.loads((HERE / "ftp_public.json").read_text())
    with np.load(HERE / "ftp_public.npz") as archive:
        arrays = {key: torch.from_numpy(archive[key]) for key in archive}
    for i, about in enumerate(abouts):
        prefix = f"{i}/"
        yield Run(i, about, {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)})
