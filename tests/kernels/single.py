"""The pure functions behind the signatures of the kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperopt_ftp.anchored.ftp import ftp_rule
from hyperopt_ftp.anchored.rule import Rule
from hyperopt_ftp.kernels.layers import SGD, AdamW, Amp, Ball, Layers
from hyperopt_ftp.torch_optim.execution import single
from hyperopt_ftp.torch_optim.execution.store import Columns

PLAIN = Amp()


class Single:
    """A step in one go, or in the two parts that lie around a given base's."""

    def step_(self, layers: Layers, base: AdamW | SGD, ball: Ball, amp: Amp = PLAIN) -> None:
        rule = _rule(ball)
        single.step_(_columns(layers), base, rule, rule.hparams, amp)

    def radii_(self, layers: Layers, ball: Ball, amp: Amp = PLAIN) -> Tensor:
        rule, columns = _rule(ball), _columns(layers)
        _, kept = single.before(columns, rule, rule.hparams, amp)
        states = [k.state for k in kept if k.state is not None]
        for i, state in enumerate(states):
            for spec, column in zip(rule.specs, columns.state, strict=True):
                if spec.name not in ("deviation", "row_norm", "radius"):
                    column[i].copy_(state[spec.name])
        return torch.stack([state["radius"] for state in states])

    def project_(self, layers: Layers, packed: Tensor, ball: Ball) -> None:
        rule, columns = _rule(ball), _columns(layers)
        kept = []
        for i, (w, g, w0) in enumerate(zip(columns.weights, columns.grads, columns.anchors, strict=True)):
            old = {s.name: column[i].to(packed.dtype) for s, column in zip(rule.specs, columns.state, strict=True)}
            w0 = w0.to(packed.dtype) if w0.numel() else torch.zeros_like(w, dtype=packed.dtype)
            kept.append(single.Kept(g, w, w0, old, {**old, "radius": packed[i]}))
        single.after_(columns, rule, rule.hparams, kept)


def _rule(ball: Ball) -> Rule:
    return ftp_rule(ball.radius_lr, ball.kappa, ball.norm, "exact" if ball.exact else "paper")


def _columns(layers: Layers) -> Columns:
    return Columns(*layers[:4], list(layers[4:10]), layers.moments)
