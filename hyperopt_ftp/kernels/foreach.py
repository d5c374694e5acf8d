"""Multi-tensor execution with ``torch._foreach_*`` ops: no host sync, radii of all layers in one packed vector.

Every list holds one tensor per layer; weights, gradients and state are in working precision (float32 or float64).
Steps are Python floats, or 0-d tensors on the layer's device (``capturable``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["adamw_", "master_weights", "project_", "radius_step_", "sgd_"]

Tensors = list[Tensor]


def adamw_(
    weights: Tensors, grads: Tensors, exp_avgs: Tensors, exp_avg_sqs: Tensors, max_exp_avg_sqs: Tensors,
    steps: Sequence[float | Tensor], *, lr: float | Tensor, betas: tuple[float, float], eps: float,
    weight_decay: float,
) -> None:  # fmt: skip
    """One AdamW step; executes :func:`hyperopt_ftp.adamw`. ``steps`` count from 1; an empty max list is no amsgrad."""
    b1, b2 = betas
    if weight_decay != 0:
        torch._foreach_mul_(weights, 1 - lr * weight_decay)
    torch._foreach_lerp_(exp_avgs, grads, 1 - b1)
    torch._foreach_mul_(exp_avg_sqs, b2)
    torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - b2)
    if max_exp_avg_sqs:
        torch._foreach_maximum_(max_exp_avg_sqs, exp_avg_sqs)
    # m / (sqrt(v) / r + eps) = r m / (sqrt(v) + r eps) with r = sqrt(1 - b2^t): one pass less.
    roots = [(1 - b2**t) ** 0.5 for t in steps]
    denominators = list(torch._foreach_sqrt(max_exp_avg_sqs or exp_avg_sqs))
    torch._foreach_add_(denominators, [eps * r for r in roots])
    sizes: list = [-lr * r / (1 - b1**t) for t, r in zip(steps, roots, strict=True)]
    if isinstance(sizes[0], Tensor):
        torch._foreach_div_(denominators, sizes)
        sizes = [1.0] * len(sizes)
    torch._foreach_addcdiv_(weights, exp_avgs, denominators, sizes)


def sgd_(
    weights: Tensors, grads: Tensors, buffers: Tensors, fresh: Sequence[bool], *, lr: float | Tensor,
    momentum: float, dampening: float, weight_decay: float, nesterov: bool,
) -> None:  # fmt: skip
    """One SGD step; executes :func:`hyperopt_ftp.sgd`. ``fresh`` marks buffers at their first step."""
    if weight_decay != 0:
        grads = list(torch._foreach_add(grads, weights, alpha=weight_decay))
    directions = grads
    if momentum != 0:
        old = [i for i, new in enumerate(fresh) if not new]
        new = [i for i, new in enumerate(fresh) if new]
        if old:
            kept = [buffers[i] for i in old]
            torch._foreach_mul_(kept, momentum)
            torch._foreach_add_(kept, [grads[i] for i in old], alpha=1 - dampening)
        if new:
            torch._foreach_copy_([buffers[i] for i in new], [grads[i] for i in new])
        directions = list(torch._foreach_add(grads, buffers, alpha=momentum)) if nesterov else buffers
    if isinstance(lr, Tensor):
        torch._foreach_sub_(weights, torch._foreach_mul(directions, lr))
    else:
        torch._foreach_add_(weights, directions, alpha=-lr)


def radius_step_(
    grads: Tensors, deviations: Tensors, norms: Tensors, radii: Tensors, exp_avgs: Tensors, exp_avg_sqs: Tensors,
    steps: Sequence[float | Tensor], *, radius_lr: float, kappa: float, exact: bool,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, floor: float = 1e-8,
) -> Tensor:  # fmt: skip
    """Hypergradients and the Adam step of all radii; executes the first half of :func:`hyperopt_ftp.ftp`.

    Reads g and c once. Updates the radii's moments in place and returns the new radii, shape (layers,), not yet
    clipped by the largest row norm: :func:`project_` does that.
    """
    b1, b2 = betas
    h = torch.stack([_radius_gradient(*layer, exact) for layer in zip(grads, deviations, norms, radii, strict=True)])
    h = torch.where(h > 0, kappa * h, h)
    t = torch.stack([torch.as_tensor(t, dtype=torch.float64) for t in steps])
    m = torch.stack(exp_avgs).lerp_(h, 1 - b1)
    v = torch.stack(exp_avg_sqs).mul_(b2).addcmul_(h, h, value=1 - b2)
    torch._foreach_copy_(exp_avgs, m.unbind())
    torch._foreach_copy_(exp_avg_sqs, v.unbind())
    size = (radius_lr / (1 - b1**t)).to(h, non_blocking=True)
    correction = (1 - b2**t).sqrt().to(h, non_blocking=True)
    return (torch.stack(radii) - size * m / (v.sqrt() / correction + eps)).clamp_(min=floor)


def project_(
    weights: Tensors, anchors: Sequence[Tensor | None], deviations: Tensors, norms: Tensors, radii: Tensors,
    packed: Tensor, *, norm: str, floor: float = 1e-8,
) -> None:  # fmt: skip
    """Project the moved weights around the anchors (``None``: zero); the second half of :func:`hyperopt_ftp.ftp`.

    Writes c, n and gamma of this step, and the projected weights, in place. Reads W and W0, writes c; reads c; reads c
    and W0, writes W.
    """
    for w, w0, c in zip(weights, anchors, deviations, strict=True):
        c.copy_(w) if w0 is None else torch.sub(w, w0, out=c)
    for c, n in zip(deviations, norms, strict=True):
        if norm == "l2":
            torch.linalg.vector_norm(_rows(c).flatten().unsqueeze(0), dim=1, out=n)
        else:
            torch.sum(_rows(c).abs(), dim=1, out=n)  # vector_norm(ord=1) takes 4 times as long on a CPU
    torch._foreach_add_(norms, floor)
    top = torch.stack([n.amax() if n.numel() else n.new_tensor(floor) for n in norms])
    gammas = torch.where(packed <= top, packed, top)
    torch._foreach_copy_(radii, gammas.unbind())
    scales = torch._foreach_div(gammas.unbind(), norms)
    torch._foreach_clamp_max_(scales, 1.0)
    for w, w0, c, s in zip(weights, anchors, deviations, scales, strict=True):
        s = _per_row(s, c)
        torch.mul(c, s, out=w) if w0 is None else torch.addcmul(w0, c, s, out=w)


def master_weights(stored: Tensors, anchors: Sequence[Tensor | None], deviations: Tensors, norms: Tensors,
                   radii: Tensors) -> Tensors:  # fmt: skip
    """float32 weights behind 16-bit ones: W0 + s c where that rounds to the stored W, else the stored W."""
    result = []
    for w, w0, c, n, gamma in zip(stored, anchors, deviations, norms, radii, strict=True):
        s = _per_row((gamma / n).clamp_(max=1.0), c)
        kept = s * c if w0 is None else torch.addcmul(w0, c, s)
        result.append(torch.where(kept.to(w.dtype) == w, kept, w.to(c.dtype)))
    return result


def _radius_gradient(grad: Tensor, deviation: Tensor, norms: Tensor, radius: Tensor, exact: bool) -> Tensor:
    weight = norms.reciprocal()
    if exact:
        weight = torch.where(radius <= norms, weight, 0.0)
    if norms.numel() == 1:
        return torch.dot(_rows(grad).flatten(), _rows(deviation).flatten()) * weight[0]
    return torch.dot(torch.linalg.vecdot(_rows(grad, deviation), _rows(deviation)), weight)


def _per_row(values: Tensor, like: Tensor) -> Tensor:
    """Values of shape (rows,), shaped to broadcast over the rows of ``like``."""
    return values.view(values.shape + (1,) * (like.ndim - 1)) if like.ndim else values.view(())


def _rows(x: Tensor, like: Tensor | None = None) -> Tensor:
    """``x`` as (rows, columns); without a copy also where the columns lie permuted (channels_last)."""
    if x.ndim < 2:
        return x.reshape(1, -1)
    strides = (x if like is None else like).stride()
    order = sorted(range(1, x.ndim), key=lambda d: -strides[d])
    return x.permute(0, *order).flatten(1)
