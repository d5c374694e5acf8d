"""One parameter's pure optimizer in float64, and how far rounding may take an execution from its step.

After each step the reference takes over the state that it has compared, so a bound is that of a single step and follows
from the values at hand: none of it grows with time, and nothing ill-conditioned in a long run loosens it. Between steps
it takes over nothing but weights that were changed from outside.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import hyperopt_ftp as hft
from hyperopt_ftp.anchored.ftp import FTPState, radius_gradient
from hyperopt_ftp.anchored.projections import FLOOR, largest, per_row, rescaled, row_norm
from hyperopt_ftp.optimizers.adam import AdamState
from hyperopt_ftp.optimizers.sgd import SGDState

#: State of a constrained parameter, beside its counts.
BALL = ("deviation", "row_norm", "radius", "radius_exp_avg", "radius_exp_avg_sq")
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")


def working(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def unit(dtype: torch.dtype) -> float:
    """Relative error of an operation; in float64 the reference has it too."""
    return torch.finfo(dtype).eps / (1 if dtype == torch.float64 else 2)


def row_sums(x: Tensor, norm: str) -> Tensor:
    """As row_norm, but without its 1e-8."""
    if norm == "l2":
        return x.square().sum().sqrt().reshape(1)
    return x.abs().flatten(1).sum(1) if x.ndim >= 2 else x.abs().sum().reshape(1)


@dataclass
class Layer:
    """What the reference knows of a parameter; its numbers are float64."""

    constrained: bool
    anchor: Tensor | None = None  # in its own dtype; none before the first step
    values: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0  # of this parameter

    def step(self, stored: Tensor, grad: Tensor, o: dict[str, Any], moved: Tensor | None = None) -> None:
        """``moved`` is where another optimizer has put the weights; else the base is the pure twin in ``o``."""
        real = working(stored.dtype)
        u = unit(real)
        g = grad.to(real).double() * (-1 if o["maximize"] else 1)
        old = {name: x.to(real).double() for name, x in self.values.items()}  # as the weights' dtype has it now
        self.steps += 1
        if not self.constrained:
            w = moved.double() if moved is not None else stored.double()
            base, state = (_moved(w), ()) if moved is not None else _base(o, old, w, self.steps)
            new, state = base.update({"w": g}, state, {"w": w})
            self.expected = _moments(state) | {"weight": new["w"]}
            self.errors = _base_errors(o, old, g, w, torch.zeros_like(w), self.expected, u, self.steps)
            return

        assert self.anchor is not None
        w0 = self.anchor.to(real).double()
        at = {"w": w0}
        if "radius" not in old:
            c = torch.zeros_like(w0)
            first = largest(row_norm(stored.double() - w0, o["norm"]))
            old |= dict(zip(BALL, (c, row_norm(c, o["norm"]), first, first * 0, first * 0), strict=True))
        w, dw = _wide(stored if moved is None else moved, w0, old)
        base, state = (_moved(w), ()) if moved is not None else _base(o, old, w, self.steps)
        rule = hft.ftp(base, at, o["norm"], o["kappa"], o["radius_lr"], o["gradient"])
        c, n, gamma, m, v = ({"w": old[name]} for name in BALL)
        full = FTPState(state, gamma, AdamState(torch.tensor(self.steps - 1), m, v, ()), c, n)
        new, full = rule.update({"w": g}, full, {"w": w})
        adam = full.radius_opt
        ball = (full.deviation, full.norms, full.radius, adam.exp_avg, adam.exp_avg_sq)
        self.expected = _moments(full.base) | {name: x["w"] for name, x in zip(BALL, ball, strict=True)}
        self.expected["weight"] = self.expected["deviation"] + w0  # moved, not yet projected: for the base's bound
        self.errors = _base_errors(o, old, g, w, dw, self.expected, u, self.steps)
        self.errors |= _ball_errors(o, old, g, w0, self.expected, self.errors["weight"], u, self.steps)
        self.expected["weight"] = new["w"]

    def compare(self, weight: Tensor, state: dict[str, Any], o: dict[str, Any]) -> None:
        """Of what ``step`` expects with what there is."""
        real = working(weight.dtype)
        for name, expected in self.expected.items():
            error = self.errors[name]
            if name == "weight":
                low, high = ((expected + sign * error).to(weight.dtype) for sign in (-1, 1))
                assert ((low <= weight) & (weight <= high)).all(), far(name, weight, expected, error)
                continue
            actual = state[name]
            narrow = o.get("lean") and name == "deviation"
            assert actual.dtype == (torch.bfloat16 if narrow else real), (name, actual.dtype)
            if narrow:
                error = error + torch.finfo(torch.bfloat16).eps / 2 * (expected.abs() + error)
            assert ((actual.double() - expected).abs() <= error).all(), far(name, actual, expected, error)
        if self.constrained:
            assert self.anchor is not None
            self._stays_inside(weight, state, o["norm"])
            assert state["radius_step"] == self.steps
            assert state["radius_step"].dtype == torch.float32
        if "step" in state:
            assert state["step"] == self.steps

    def _stays_inside(self, weight: Tensor, state: dict[str, Any], norm: str) -> None:
        """Rows of W - W0 are in the ball, but for the rounding of the stored W and of s c."""
        assert self.anchor is not None
        w0 = self.anchor.to(working(weight.dtype)).double()
        off = row_sums(weight.double() - w0, norm)
        u = torch.finfo(weight.dtype).eps
        rounded = row_sums(u * (weight.double().abs() + 2 * w0.abs()), norm)
        gamma = state["radius"].double()
        assert (off <= gamma * (1 + weight.numel() * torch.finfo(working(weight.dtype)).eps) + rounded).all(), (
            off,
            gamma,
        )

    def follow(self, state: dict[str, Any]) -> None:
        self.values = {n: state[n].double() for n in (*BALL, *MOMENTS) if isinstance(state.get(n), Tensor)}


def far(name: str, actual: Tensor, expected: Tensor, error: Tensor) -> str:
    off = (actual.double() - expected).abs()
    worst = int((off / error).nan_to_num(torch.inf).argmax()) if off.numel() else 0
    pick = [float(x.expand(expected.shape).flatten()[worst]) for x in (actual.double(), expected, error)]
    return f"{name}: {pick[0]!r} instead of {pick[1]!r} +- {pick[2]:.3g}"


# -- the pure functions around one tensor ---------------------------------------------------------------------------


def _base(o: dict[str, Any], old: dict[str, Tensor], w: Tensor, t: int) -> tuple[hft.Optimizer, Any]:
    """The pure base and its state before step ``t``."""
    if "betas" in o:
        m, v, top = ({"w": old.get(name, torch.zeros_like(w))} for name in MOMENTS[:3])
        base = hft.adamw(o["lr"], o["betas"], o["eps"], o["weight_decay"], o["amsgrad"])
        return base, AdamState(torch.tensor(t - 1), m, v, top if o["amsgrad"] else ())
    # As in torch, the first step with momentum is the one that finds no buffer.
    buffer = old.get("momentum_buffer")
    base = hft.sgd(o["lr"], o["momentum"], o["dampening"], o["weight_decay"], nesterov=o["nesterov"])
    return base, SGDState(
        torch.tensor(0 if buffer is None else 1), {"w": torch.zeros_like(w) if buffer is None else buffer}
    )


def _moved(w: Tensor) -> hft.Optimizer:
    """An optimizer that has moved the weights already."""
    return hft.Optimizer(lambda params, hparams=None: (), lambda *_: ({"w": w}, ()), {})


def _moments(state: Any) -> dict[str, Tensor]:
    return {name: x["w"] for name in MOMENTS if isinstance(x := getattr(state, name, None), dict)}


def _wide(stored: Tensor, w0: Tensor, old: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Weights in working precision and their error.

    Behind 16 bits: W0 + s c where that rounds to the stored W, else the stored W. An execution computes it in float32,
    so where it lies between two 16-bit numbers either may be taken.
    """
    w = stored.double()
    if working(stored.dtype) == stored.dtype:
        return w, torch.zeros_like(w)
    kept = rescaled(w0, old["deviation"], old["radius"], old["row_norm"])
    slack = 4 * unit(torch.float32) * (w0.abs() + (kept - w0).abs())
    low, high = (kept - slack).to(stored.dtype), (kept + slack).to(stored.dtype)
    possible = (low <= stored) & (stored <= high)
    certain = (low == stored) & (high == stored)
    value = torch.where(possible, kept, w)
    return value, torch.where(possible, slack, 0.0) + torch.where(possible & ~certain, (kept - w).abs(), 0.0)


# -- bounds: u bounds the relative error of an operation; factors count those of the slowest execution ----------------

Values = dict[str, Tensor]


def _base_errors(o: dict, old: Values, g: Tensor, w: Tensor, dw: Tensor, new: Values, u: float, t: int) -> Values:
    """Of the moments, and as "weight" of the moved weights, given that of the weights before."""
    tiny = torch.finfo(torch.float32).tiny  # what may be flushed to zero
    found: Values = {}
    if "exp_avg" in new:
        (b1, b2), lr = o["betas"], o["lr"]
        m, v = new["exp_avg"], new["exp_avg_sq"]
        found["exp_avg"] = dm = 4 * u * (old.get("exp_avg", 0 * w).abs() + g.abs()) + tiny
        found["exp_avg_sq"] = 8 * u * v + tiny
        top = v
        if "max_exp_avg_sq" in new:
            top = new["max_exp_avg_sq"]
            found["max_exp_avg_sq"] = 8 * u * top + tiny
        size, root = lr / (1 - b1**t), (top / (1 - b2**t)).sqrt() + o["eps"]
        droot = 8 * u * root + (tiny / (1 - b2**t)) ** 0.5
        d = size * m.abs() / root
        dd = size * dm / root + d * (16 * u + droot / root)
    elif "momentum_buffer" in new:
        lr, mu, decay = o["lr"], o["momentum"], o["weight_decay"]
        pulled = g.abs() + decay * w.abs()
        dg = decay * dw + 2 * u * pulled
        b = old.get("momentum_buffer", 0 * w)
        db = dg + 6 * u * (mu * b.abs() + pulled)
        if mu:
            found["momentum_buffer"] = db
        else:
            del new["momentum_buffer"]  # the class keeps none
        d = lr * (pulled + mu * (mu * b.abs() + pulled) if o["nesterov"] else mu * b.abs() + pulled)
        dd = lr * (dg + mu * db if o["nesterov"] else db) + 4 * u * d
    else:
        return {"weight": dw}
    return found | {"weight": dd + dw + 4 * u * (w.abs() + d)}


def _ball_errors(o: dict, old: Values, g: Tensor, w0: Tensor, new: Values, dmoved: Tensor, u: float, t: int) -> Values:
    """Of c, n, the radius and its moments, and of the weights, given that of the moved weights."""
    size, norm = g.numel(), o["norm"]
    c, n, gamma = (new[name] for name in BALL[:3])
    dc = dmoved + 2 * u * ((w0 + c).abs() + w0.abs())
    dn = row_sums(dc, norm) + (size + 8) * u * n
    if not size:  # nothing to do: what was begun in float32 may stay as it is
        dn = dn + unit(torch.float32) * FLOOR

    h = radius_gradient(g, *(old[name] for name in BALL[:3]), o["gradient"])
    spread = (per_row(1 / old["row_norm"], g) * (g * old["deviation"]).abs()).sum()
    dh = (size + 8) * u * spread
    h = (o["kappa"] * h if h > 0 else h).abs()
    m, v = new["radius_exp_avg"], new["radius_exp_avg_sq"]
    dm = 0.1 * dh + 4 * u * (old["radius_exp_avg"].abs() + h)
    dv = 0.001 * (2 * h * dh + dh * dh) + 8 * u * v
    b1, b2 = 1 - 0.9**t, 1 - 0.999**t
    root, low = (v / b2).sqrt() + 1e-8, ((v - dv).clamp(min=0) / b2).sqrt() + 1e-8
    turned = dm / b1 / low + m.abs() / b1 * (1 / low - 1 / root + 8 * u / root)
    dgamma = o["radius_lr"] * turned + 4 * u * (old["radius"] + o["radius_lr"] * m.abs() / b1 / root)
    if t == 1:  # the first radius is a norm of W - W0, which is stored
        dgamma = dgamma + largest(row_sums(2 * u * (w0.abs() + old["radius"]), norm)) + (size + 8) * u * old["radius"]
    dgamma = torch.maximum(dgamma, largest(dn)) + 4 * u * gamma

    s = (gamma / n).clamp(max=1.0)
    ds = ((dgamma + s * dn) / (n - dn).clamp(min=FLOOR) + 4 * u).clamp(max=1.0)  # both are in [0, 1]
    s, ds = per_row(s, c), per_row(ds, c)
    dw = s * dc + (c.abs() + dc) * ds + 4 * u * (w0.abs() + s * c.abs())
    return dict(zip(BALL, (dc, dn, dgamma, dm, dv), strict=True)) | {"weight": dw}
