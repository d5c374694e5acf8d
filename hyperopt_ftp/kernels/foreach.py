"""Plain torch: multi-tensor execution with ``torch._foreach_*`` ops, on any device, no host sync.

The reference of the fused kernels: :func:`step_`, :func:`radii_` and :func:`project_` have the signatures of theirs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .layers import SGD, AdamW, Amp, Ball, Layers, choose, working_dtype

__all__ = ["project_", "radii_", "step_"]

Tensors = list[Tensor]

#: Elements in a bucket on the CPU. Temporaries of this size come from the heap; those of a whole model are mapped and
#: zeroed anew at each step, which costs more than the arithmetic.
CPU_BUCKET = 2**22
FLOOR = 1e-8


def step_(layers: Layers, base: AdamW | SGD, ball: Ball, amp: Amp = Amp()) -> None:  # noqa: B008 (immutable)
    """A whole step: radii, the base's move, projection; executes :func:`hyperopt_ftp.ftp` around the base.

    Reads g, c; then g, the moments and W, writes the moments and W; then W, W0 to c, and W0, c to W.
    """
    if amp.found_inf is not None and amp.found_inf.item():
        return
    for bucket in _buckets(layers):
        held = [i for i, radius in enumerate(bucket.radii) if radius.numel()]
        inside = choose(bucket, held)
        weights = _working_weights(bucket)
        grads = _gradients(bucket, weights, amp)
        torch._foreach_add_([*bucket.steps, *inside.radius_steps], 1.0)
        packed = _step_radii(inside, [grads[i] for i in held], ball) if held else None
        if isinstance(base, AdamW):
            _adamw(weights, grads, bucket, base)
        else:
            _sgd(weights, grads, bucket, base)
        if packed is not None:
            _project(inside, [weights[i] for i in held], packed, ball)
        if weights[0].dtype != bucket.weights[0].dtype:
            torch._foreach_copy_(bucket.weights, weights)


def radii_(layers: Layers, ball: Ball, amp: Amp = Amp()) -> Tensor:  # noqa: B008 (immutable)
    """Hypergradients and the Adam step of all radii, before a base moves the weights.

    Returns the new radii, shape (layers,), not yet clipped by the largest row norm: :func:`project_` does that.
    """
    torch._foreach_add_(layers.radius_steps, 1.0)
    parts = []
    for bucket in _buckets(layers):
        parts.append(_step_radii(bucket, _gradients(bucket, bucket.norms, amp), ball))
    return torch.cat(parts)


def project_(layers: Layers, packed: Tensor, ball: Ball) -> None:
    """Project weights that a base has moved. Writes c, n, gamma of this step, and the weights."""
    first = 0
    for bucket in _buckets(layers):
        weights = _working_weights(bucket)
        last = first + len(weights)
        _project(bucket, weights, packed[first:last], ball)
        if weights[0].dtype != bucket.weights[0].dtype:
            torch._foreach_copy_(bucket.weights, weights)
        first = last


def _buckets(layers: Layers) -> list[Layers]:
    """All layers at once, but on the CPU not too many elements."""
    if not layers.weights or layers.weights[0].device.type != "cpu":
        return [layers] if layers.weights else []
    parts: list[list[int]] = []
    filled = 0
    for i, w in enumerate(layers.weights):
        if not parts or filled + w.numel() > CPU_BUCKET:
            parts.append([])
            filled = 0
        parts[-1].append(i)
        filled += w.numel()
    return [choose(layers, part) for part in parts]


def _gradients(layers: Layers, like: Tensors, amp: Amp) -> Tensors:
    grads = [g.to(x.dtype) for g, x in zip(layers.grads, like, strict=True)]
    if amp.grad_scale is not None:
        grads = list(torch._foreach_div(grads, amp.grad_scale.reshape(()).to(grads[0])))
    return list(torch._foreach_neg(grads)) if amp.maximize else grads


def _working_weights(layers: Layers) -> Tensors:
    """The weights themselves, or float32 weights behind 16-bit ones.

    Constrained ones keep in c what 16 bits cannot: W0 + s c where that rounds to the stored W, else the stored W.
    """
    if not layers.weights or layers.weights[0].dtype == working_dtype(layers.weights[0]):
        return layers.weights
    result = []
    for w, w0, c, n, gamma in zip(
        layers.weights, layers.anchors, layers.deviations, layers.norms, layers.radii, strict=True
    ):
        wide = w.float()
        if c.numel():
            kept = _per_row((gamma / n).clamp_(max=1.0), c) * c
            kept = kept + w0.float() if w0.numel() else kept
            wide = torch.where(kept.to(w.dtype) == w, kept, wide)
        result.append(wide)
    return result


def _adamw(weights: Tensors, grads: Tensors, layers: Layers, base: AdamW) -> None:
    """Executes :func:`hyperopt_ftp.adamw`."""
    lr, b1, b2, eps, decay = base
    m, v, *rest = layers.moments
    if decay != 0:
        torch._foreach_mul_(weights, 1 - lr * decay)
    torch._foreach_lerp_(m, grads, 1 - b1)
    torch._foreach_mul_(v, b2)
    torch._foreach_addcmul_(v, grads, grads, 1 - b2)
    if rest:
        torch._foreach_maximum_(rest[0], v)
    # m / (sqrt(v) / r + eps) = r m / (sqrt(v) + r eps) with r = sqrt(1 - b2^t): one pass less.
    t, like = _counts(layers.steps), weights[0]
    root = (1 - b2**t).sqrt()
    denominators = list(torch._foreach_sqrt(rest[0] if rest else v))
    if t.device == like.device and like.device.type == "cpu" and not torch.compiler.is_compiling():
        sizes = (-lr * root / (1 - b1**t)).tolist()
        torch._foreach_add_(denominators, (eps * root).tolist())
        torch._foreach_addcdiv_(weights, m, denominators, sizes)
    else:
        sizes = (-lr * root / (1 - b1**t)).to(like, non_blocking=True)
        torch._foreach_add_(denominators, list((eps * root).to(like, non_blocking=True).unbind()))
        torch._foreach_div_(denominators, list(sizes.unbind()))
        torch._foreach_addcdiv_(weights, m, denominators)


def _sgd(weights: Tensors, grads: Tensors, layers: Layers, base: SGD) -> None:
    """Executes :func:`hyperopt_ftp.sgd`."""
    lr, momentum, dampening, decay, nesterov = base
    if decay != 0:
        grads = list(torch._foreach_add(grads, weights, alpha=decay))
    directions = grads
    if momentum != 0:
        buffers, *starts = layers.moments
        torch._foreach_mul_(buffers, momentum)
        if dampening == 0:
            torch._foreach_add_(buffers, grads)
        else:
            running = torch.stack(starts[0]) + 1 != torch.stack(layers.steps)
            takes = (1 - dampening * running.double()).to(buffers[0])
            torch._foreach_add_(buffers, torch._foreach_mul(grads, list(takes.unbind())))
        directions = list(torch._foreach_add(grads, buffers, alpha=momentum)) if nesterov else buffers
    if isinstance(lr, Tensor):
        torch._foreach_sub_(weights, torch._foreach_mul(directions, lr.to(weights[0])))
    else:
        torch._foreach_add_(weights, directions, alpha=-lr)


def _counts(steps: Tensors) -> Tensor:
    """Steps of each layer, float64: a float32 power of 0.999 would be off by 1e-5 after 1000 steps."""
    return torch.stack(steps).double()


def _step_radii(layers: Layers, grads: Tensors, ball: Ball) -> Tensor:
    """The first half of :func:`hyperopt_ftp.ftp`, for all radii in one packed vector. Reads g and c once."""
    b1, b2, eps = 0.9, 0.999, 1e-8
    rows = zip(grads, layers.deviations, layers.norms, layers.radii, strict=True)
    h = torch.stack([_radius_gradient(g, c.to(n.dtype), n, gamma, ball.exact) for g, c, n, gamma in rows])
    h = torch.where(h > 0, ball.kappa * h, h)
    m = torch.stack(layers.radius_exp_avgs).lerp_(h, 1 - b1)
    v = torch.stack(layers.radius_exp_avg_sqs).mul_(b2).addcmul_(h, h, value=1 - b2)
    torch._foreach_copy_(layers.radius_exp_avgs, list(m.unbind()))
    torch._foreach_copy_(layers.radius_exp_avg_sqs, list(v.unbind()))
    t = _counts(layers.radius_steps)
    size = (ball.radius_lr / (1 - b1**t)).to(h, non_blocking=True)
    correction = (1 - b2**t).sqrt().to(h, non_blocking=True)
    return (torch.stack(layers.radii) - size * m / (v.sqrt() / correction + eps)).clamp_(min=FLOOR)


def _radius_gradient(grad: Tensor, deviation: Tensor, norms: Tensor, radius: Tensor, exact: bool) -> Tensor:
    weight = norms.reciprocal()
    if exact:
        weight = torch.where(radius <= norms, weight, 0.0)
    if norms.numel() == 1:
        return torch.dot(_rows(grad, deviation).flatten(), _rows(deviation).flatten()) * weight[0]
    return torch.dot(torch.linalg.vecdot(_rows(grad, deviation), _rows(deviation)), weight)


def _project(layers: Layers, weights: Tensors, packed: Tensor, ball: Ball) -> None:
    """The second half of :func:`hyperopt_ftp.ftp`. Reads W and W0, writes c; reads c; reads c and W0, writes W.

    Loops over layers where torch's foreach ops can neither write to another list nor scale row by row.
    """
    anchors = [None if not w0.numel() else w0.to(w.dtype) for w0, w in zip(layers.anchors, weights, strict=True)]
    lean = layers.deviations[0].dtype != weights[0].dtype
    exact = [torch.empty_like(w) for w in weights] if lean else layers.deviations
    for w, w0, c in zip(weights, anchors, exact, strict=True):
        c.copy_(w) if w0 is None else torch.sub(w, w0, out=c)
    for c, n in zip(exact, layers.norms, strict=True):
        if ball.norm == "l2":
            torch.linalg.vector_norm(_rows(c).flatten().unsqueeze(0), dim=1, out=n)
        else:
            torch.sum(_rows(c).abs(), dim=1, out=n)  # vector_norm(ord=1) takes 4 times as long on a CPU
    torch._foreach_add_(layers.norms, FLOOR)
    top = torch.stack([n.amax() if n.numel() else n.new_tensor(FLOOR) for n in layers.norms])
    gammas = torch.where(packed > top, top, packed)
    torch._foreach_copy_(layers.radii, list(gammas.unbind()))
    scales = torch._foreach_div(list(gammas.unbind()), layers.norms)
    torch._foreach_clamp_max_(scales, 1.0)
    for w, w0, c, s in zip(weights, anchors, exact, scales, strict=True):
        s = _per_row(s, c)
        torch.mul(c, s, out=w) if w0 is None else torch.addcmul(w0, c, s, out=w)
    if lean:
        torch._foreach_copy_(layers.deviations, exact)


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
