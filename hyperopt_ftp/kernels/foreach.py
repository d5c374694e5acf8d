"""Plain torch: multi-tensor execution with ``torch._foreach_*`` ops, on any device, no host sync.

The reference of the fused kernels: :func:`step_`, :func:`radii_` and :func:`project_` have the signatures of theirs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .layers import PLAIN, SGD, AdamW, Amp, Ball, Layers, choose, working_dtype

Tensors = list[Tensor]

#: Elements in a bucket on the CPU. Temporaries of this size come from the heap; those of a whole model are mapped and
#: zeroed anew at each step, which costs more than the arithmetic.
CPU_BUCKET = 2**22
FLOOR = 1e-8


def step_(layers: Layers, base: AdamW | SGD, ball: Ball, amp: Amp = PLAIN) -> None:
    """A whole step: radii, the base's move, projection; executes :func:`hyperopt_ftp.ftp` around the base.

    Reads g, c; then g, the moments and W, writes the moments and W; then W, W0 to c, and W0, c to W.
    """
    if amp.found_inf is not None and amp.found_inf.item():
        return
    for bucket in buckets(layers):
        grads = gradients(bucket, amp)
        inside, inner = constrained(bucket, grads)
        h = hypergradients(inside, inner, ball)
        torch._foreach_add_([*bucket.steps, *inside.radius_steps], 1.0)
        packed = radii_along(inside, h, ball)
        move_(bucket, grads, base, ball)
        settle_(inside, packed)


def radii_(layers: Layers, ball: Ball, amp: Amp = PLAIN) -> Tensor:
    """Hypergradients and the Adam step of all radii, before a base moves the weights.

    Returns the new radii, shape (layers,), not yet clipped by the largest row norm: :func:`project_` does that.
    """
    h = torch.cat([hypergradients(bucket, gradients(bucket, amp), ball) for bucket in buckets(layers)])
    torch._foreach_add_(layers.radius_steps, 1.0)
    return radii_along(layers, h, ball)


def project_(layers: Layers, packed: Tensor, ball: Ball) -> None:
    """Project weights that a base has moved. Writes c, n, gamma of this step, and the weights."""
    first = 0
    for bucket in buckets(layers):
        last = first + len(bucket.weights)
        deviate_(bucket, working_weights(bucket), ball)
        settle_(bucket, packed[first:last])
        first = last


# The parts of a step. What lies between two of them may need to know the layers' other shards.


def buckets(layers: Layers) -> list[Layers]:
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


def constrained(layers: Layers, grads: Tensors) -> tuple[Layers, Tensors]:
    """Those layers that have a ball, and their gradients."""
    held = [i for i, radius in enumerate(layers.radii) if radius.numel()]
    return choose(layers, held), [grads[i] for i in held]


def gradients(layers: Layers, amp: Amp) -> Tensors:
    """g in working precision."""
    real = working_dtype(layers.weights[0])
    grads = [g.to(real) for g in layers.grads]
    if amp.grad_scale is not None:
        grads = list(torch._foreach_div(grads, amp.grad_scale.reshape(()).to(grads[0])))
    return list(torch._foreach_neg(grads)) if amp.maximize else grads


def hypergradients(layers: Layers, grads: Tensors, ball: Ball) -> Tensor:
    """``sum_i <g_i, c_i> / n_i`` of each layer, shape (layers,). Reads g and c once."""
    rows = zip(grads, layers.deviations, layers.norms, layers.radii, strict=True)
    found = [_radius_gradient(g, c.to(n.dtype), n, gamma, ball.exact) for g, c, n, gamma in rows]
    return torch.stack(found) if found else torch.empty(0)


def radii_along(layers: Layers, h: Tensor, ball: Ball) -> Tensor:
    """The Adam step of all radii along ``h``, in one packed vector; writes their moments."""
    if not layers.radii:
        return h
    m, v = torch.stack(layers.radius_exp_avgs), torch.stack(layers.radius_exp_avg_sqs)
    packed = move_radii(torch.stack(layers.radii), m, v, torch.stack(layers.radius_steps), h, ball)
    torch._foreach_copy_(layers.radius_exp_avgs, list(m.unbind()))
    torch._foreach_copy_(layers.radius_exp_avg_sqs, list(v.unbind()))
    return packed


def move_radii(radii: Tensor, m: Tensor, v: Tensor, steps: Tensor, h: Tensor, ball: Ball) -> Tensor:
    """Adam on packed radii: changes the moments, returns new radii."""
    b1, b2, eps = 0.9, 0.999, 1e-8
    h = torch.where(h > 0, ball.kappa * h, h)
    m.lerp_(h, 1 - b1)
    v.mul_(b2).addcmul_(h, h, value=1 - b2)
    t = steps.double()  # as in _adamw
    size = (ball.radius_lr / (1 - b1**t)).to(h, non_blocking=True)
    correction = (1 - b2**t).sqrt().to(h, non_blocking=True)
    return (radii - size * m / (v.sqrt() / correction + eps)).clamp_(min=FLOOR)


def move_(layers: Layers, grads: Tensors, base: AdamW | SGD, ball: Ball) -> None:
    """The base's move, then :func:`deviate_`. Constrained 16-bit weights are left to :func:`settle_`."""
    weights = working_weights(layers)
    if isinstance(base, AdamW):
        _adamw(weights, grads, layers, base)
    else:
        _sgd(weights, grads, layers, base)
    inside, moved = constrained(layers, weights)
    deviate_(inside, moved, ball)
    if weights[0].dtype != layers.weights[0].dtype:
        for stored, w, radius in zip(layers.weights, weights, layers.radii, strict=True):
            if not radius.numel():
                stored.copy_(w)


def deviate_(layers: Layers, weights: Tensors, ball: Ball) -> None:
    """``c = W' - W0`` and, in place of n, its row norms without their 1e-8. Reads W' and W0, writes c; reads c."""
    for w, w0, c, n in zip(weights, layers.anchors, layers.deviations, layers.norms, strict=True):
        if c.dtype != w.dtype:  # lean
            exact = w - w0.to(w.dtype) if w0.numel() else w
            c.copy_(exact)
        else:
            exact = c.copy_(w) if not w0.numel() else torch.sub(w, w0.to(w.dtype), out=c)
        if ball.norm == "l2":
            torch.linalg.vector_norm(_rows(exact).flatten().unsqueeze(0), dim=1, out=n)
        else:
            torch.sum(_rows(exact).abs(), dim=1, out=n)  # vector_norm(ord=1) takes 4 times as long on a CPU


def largest(norms: Tensors) -> Tensor:
    """The largest norm of each layer, shape (layers,); 0 where there are no rows."""
    return torch.stack([n.amax() if n.numel() else n.new_zeros(()) for n in norms]) if norms else torch.empty(0)


def settle_(layers: Layers, packed: Tensor, top: Tensor | None = None) -> None:
    """``n + 1e-8``, then ``gamma = min(gamma, max_i n_i)`` and ``W = W0 + min(gamma / n, 1) c``. Reads c, W0, writes W.

    Args:
        layers: after :func:`deviate_`.
        packed: new radii, shape (layers,).
        top: what :func:`largest` cannot know where other processes have rows too.
    """
    if not layers.weights:
        return
    top = (largest(layers.norms) if top is None else top) + FLOOR
    torch._foreach_add_(layers.norms, FLOOR)
    torch._foreach_copy_(layers.radii, list(torch.where(packed > top, top, packed).unbind()))
    scales = torch._foreach_div(layers.radii, layers.norms)
    torch._foreach_clamp_max_(scales, 1.0)
    for w, w0, c, s in zip(layers.weights, layers.anchors, layers.deviations, scales, strict=True):
        s = _per_row(s, c)
        if c.dtype != s.dtype:  # lean: W is still W'
            c = w - w0 if w0.numel() else w
        out = w if w.dtype == s.dtype else torch.empty_like(w, dtype=s.dtype)
        torch.mul(c, s, out=out) if not w0.numel() else torch.addcmul(w0.to(s.dtype), c, s, out=out)
        if out is not w:
            w.copy_(out)


def working_weights(layers: Layers) -> Tensors:
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
    t, like = torch.stack(layers.steps).double(), weights[0]  # a float32 power of 0.999 is off by 1e-5 after 1000 steps
    if any(isinstance(x, Tensor) and not x.is_cpu for x in base):
        t = t.to(like.device, non_blocking=True)
    root = (1 - b2**t).sqrt()
    denominators = list(torch._foreach_sqrt(rest[0] if rest else v))
    if like.device.type == "cpu" and not torch.compiler.is_compiling():
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
    lr, momentum, decay, nesterov = base
    if decay != 0:
        grads = list(torch._foreach_add(grads, weights, alpha=decay))
    directions = grads
    if momentum != 0:
        (buffers,) = layers.moments
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, grads)
        directions = list(torch._foreach_add(grads, buffers, alpha=momentum)) if nesterov else buffers
    if isinstance(lr, Tensor):
        torch._foreach_sub_(weights, torch._foreach_mul(directions, lr.to(weights[0])))
    else:
        torch._foreach_add_(weights, directions, alpha=-lr)


def _radius_gradient(grad: Tensor, deviation: Tensor, norms: Tensor, radius: Tensor, exact: bool) -> Tensor:
    weight = norms.reciprocal()
    if exact:
        weight = torch.where(radius <= norms, weight, 0.0)
    if norms.numel() == 1:
        return torch.dot(_rows(grad, deviation).flatten(), _rows(deviation).flatten()) * weight[0]
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
