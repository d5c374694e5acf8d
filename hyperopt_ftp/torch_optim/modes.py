"""Bases with two modes, such as schedule-free ones: ``train()`` has the weights that gradients are taken at, ``eval()``
those that are deployed. What is deployed is what is held."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["Modes"]


class Modes:
    """The two modes of a base, if it has them.

    A schedule-free base trains ``y = (1 - b) z + b x`` and deploys the average ``x`` (arXiv 2405.15682); ``train()``
    and ``eval()`` turn one into the other. A rule acts on ``x``, so that this is what stays in a ball; ``y`` follows.
    The gradient at ``y`` is ``b`` times smaller along ``x``, a factor that FTP's scale-free radius does not see.
    """

    def __init__(self, base: Any) -> None:
        self._base: Any = base
        self.exist: bool = all(callable(getattr(base, name, None)) for name in ("train", "eval"))
        self._trusted: bool = False

    def _is_training(self) -> bool | None:
        """``None``: the base does not say."""
        own = getattr(self._base, "train_mode", None)
        if isinstance(own, bool):
            return own
        said = [group["train_mode"] for group in self._base.param_groups if "train_mode" in group]
        return all(said) if said else None

    def check(self) -> None:
        """``RuntimeError`` where a step would start from the deployed weights, or nobody can tell."""
        if not self.exist:
            return
        training = self._is_training()
        if training is None:
            raise self._refusal("has train() and eval(), and does not say in its groups (train_mode) which it is in")
        if not training:
            raise RuntimeError(
                f"{type(self._base).__name__} is not in its training mode; call train() on the optimizer before "
                "training, and eval() before evaluation and before weights are saved"
            )

    @contextmanager
    def deployed(self) -> Iterator[None]:
        """Meanwhile the parameters are the deployed weights."""
        if not self.exist:
            yield
            return
        try:
            self._base.eval()
        except Exception as error:
            raise RuntimeError(f"{type(self._base).__name__}.eval() failed within a step: {error!r}") from error
        try:
            yield
        finally:
            self._base.train()

    def check_follows(self, held: Iterable[Tensor]) -> None:
        """``RuntimeError`` unless the trained weights follow the deployed ones: else to hold these holds nothing.

        Looked at once, after the first step of the base, by moving them, each by more than its rounding. All are put
        back: to go to and fro rounds them.
        """
        if not self.exist or self._trusted:
            return
        params = list(held)
        if not params:
            return
        trained = [p.detach().clone() for p in params]
        with self.deployed():
            told = not self._is_training()
            for p in params:
                p.detach().add_(p.detach().abs() + 1)
        follows = not all(map(torch.equal, params, trained))
        for p, y in zip(params, trained, strict=True):
            p.detach().copy_(y)
        if not told:
            raise self._refusal("has train() and eval(), and its train_mode is the same in both")
        if not follows:
            raise self._refusal("trains other weights than those it deploys, and does not go on from these")
        self._trusted = True

    def _refusal(self, why: str) -> RuntimeError:
        return RuntimeError(
            f"{type(self._base).__name__} {why}: they cannot be held; use it alone, or another base (schedule-free "
            "ones can be)"
        )
