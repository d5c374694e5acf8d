"""Bases with two modes, such as schedule-free: ``train()`` sets the weights to train, ``eval()`` those to deploy."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...dtensors import whole


class Modes:
    """The two modes of a base, if it has them.

    A schedule-free base trains ``y = (1 - b) z + b x`` and deploys the average ``x`` (arXiv 2405.15682). A rule acts on
    ``x``, which therefore stays in its ball. The gradient at ``y`` is ``b`` times smaller along ``x``, which does not
    matter for FTP's scale-free radius.
    """

    def __init__(self, base: Any) -> None:
        self._base: Any = base
        self.exist: bool = all(callable(getattr(base, name, None)) for name in ("train", "eval"))
        self._trusted: bool = False

    def _is_training(self) -> bool:
        own = getattr(self._base, "train_mode", None)
        if isinstance(own, bool):
            return own
        return all(group.get("train_mode", True) for group in self._base.param_groups)

    def check(self) -> None:
        """``RuntimeError`` where a step would start from the deployed weights."""
        if self.exist and not self._is_training():
            raise RuntimeError(
                f"{type(self._base).__name__} is not in its training mode; call train() on the optimizer before "
                "training, and eval() before evaluation and before weights are saved"
            )

    @contextmanager
    def deployed(self, moving: Collection[Tensor] = ()) -> Iterator[None]:
        """A context in which the parameters are the deployed weights.

        Those that are not ``moving`` are restored to the last bit, since switching modes rounds.
        """
        if not self.exist:
            yield
            return
        moves = set(moving)
        params = [p for group in self._base.param_groups for p in group["params"] if p not in moves]
        trained = [p.detach().clone() for p in params]
        try:
            try:
                self._base.eval()
            except Exception as error:
                raise RuntimeError(f"{type(self._base).__name__}.eval() failed within a step: {error!r}") from error
            if self._is_training():
                raise self._refusal("has train() and eval(), and no train_mode that says in which of them it is")
            yield
        finally:
            try:
                self._base.train()
            finally:
                _put_back(params, trained)

    def check_follows(self, params: list[Tensor]) -> None:
        """``RuntimeError`` unless the trained weights follow the deployed ones; else the constraint has no effect.

        Checked once, after the first step of the base, by moving one parameter with finite values by more than any
        dtype rounds. It is put back.
        """
        if not self.exist or self._trusted:
            return
        p = next((p for p in params if p.numel() and whole(p).isfinite().all()), None)
        if p is None:
            return
        trained = p.detach().clone()
        with self.deployed([p]):
            p.detach().abs_().mul_(2).add_(1)
        follows = not torch.equal(p, trained)
        _put_back([p], [trained])
        if not follows:
            raise self._refusal("trains other weights than those it deploys, and does not go on from these")
        self._trusted = True

    def _refusal(self, why: str) -> RuntimeError:
        return RuntimeError(
            f"{type(self._base).__name__} {why}: they cannot be held; use it alone, or another base (schedule-free "
            "ones can be)"
        )


def _put_back(params: list[Tensor], values: list[Tensor]) -> None:
    for p, value in zip(params, values, strict=True):
        p.detach().copy_(value)
