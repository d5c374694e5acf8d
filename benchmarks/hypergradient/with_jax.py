"""The hypergradients by JAX and optax: ``jit`` of ``grad`` or ``jacfwd`` over ``lax.scan``, on the CPU; the losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .problems import Arrays, Batch, Problem


def with_jax(problem: Problem, checkpoint: bool = False, forward: bool = False) -> Callable[[], np.ndarray]:
    """With ``checkpoint``, what a step computes is computed again on the way back; ``forward``: forward mode."""
    import jax
    import jax.numpy as jnp
    import optax

    loss = loss_of(problem)
    one_batch = len(problem.batches) == 1

    def value(over: Any, params: Any, batches: Any, held_out: Any) -> Any:
        params = over if problem.over == "params" else params
        lr = over if problem.over == "lr" else problem.lr
        tx = optax.adam(lr, eps=problem.eps) if problem.rule == "adam" else optax.sgd(lr)

        def inner(p: Any, batch: Any) -> Any:
            return loss(p, batch) + (jnp.sum(over * p["w"] ** 2) if problem.over == "l2" else 0.0)

        def step(carry: Any, batch: Any) -> Any:
            p, state = carry
            updates, state = tx.update(jax.grad(inner)(p, batches if one_batch else batch), state, p)
            return (optax.apply_updates(p, updates), state), None

        step = jax.checkpoint(step) if checkpoint else step
        rows = None if one_batch else batches
        (end, _), _ = jax.lax.scan(step, (params, tx.init(params)), rows, length=problem.steps)
        return loss(end, held_out)

    def outer(over: Any, params: Any, batches: Any, held_out: Any) -> Any:
        if problem.tasks is None:
            return value(over, params, batches, held_out)
        return jax.vmap(value, in_axes=(None, None, 0, 0))(over, params, batches, held_out).mean()

    params, batches, held_out = arrays(problem)
    params, held_out = jax.device_put((params, held_out))
    batches = jax.device_put(batches[0] if one_batch else tuple(np.stack(x) for x in zip(*batches, strict=True)))
    over = jax.device_put({"lr": np.float32(problem.lr), "l2": problem.l2, "params": params}[problem.over])
    run = jax.jit(jax.jacfwd(outer) if forward else jax.grad(outer))

    def call() -> np.ndarray:
        found = jax.block_until_ready(run(over, params, batches, held_out))
        leaves = [found[name] for name in sorted(found)] if isinstance(found, dict) else [found]
        return np.concatenate([np.asarray(x).reshape(-1) for x in leaves])

    return call


def arrays(problem: Problem) -> tuple[Arrays, list[Batch], Batch]:
    """Params, batches and held-out data; pictures with their channels last, as XLA has them on CPUs."""
    params, batches, held_out = problem.params, problem.batches, problem.held_out
    if problem.net == "conv":
        params = {n: x.transpose(2, 3, 1, 0).copy() if x.ndim == 4 else x for n, x in params.items()}
        moved = [(x.transpose(0, 2, 3, 1).copy(), y) for x, y in [*batches, held_out]]
        batches, held_out = moved[:-1], moved[-1]

    def narrow(batch: Batch) -> Batch:
        return tuple(x if x.dtype == np.float32 else x.astype(np.int32) for x in batch)

    return params, [narrow(batch) for batch in batches], narrow(held_out)


def loss_of(problem: Problem) -> Callable[[Any, Any], Any]:
    import jax
    import jax.numpy as jnp
    import optax

    def linear(p: Any, name: str, x: Any) -> Any:
        return x @ p[f"{name}_w"].T + p.get(f"{name}_b", 0.0)

    def cross_entropy(logits: Any, y: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def normed(p: Any, name: str, x: Any) -> Any:
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * p[f"{name}_w"] + p[f"{name}_b"]

    def mlp(p: Any, batch: Any) -> Any:
        x, y = batch
        for k in range(2):
            x = jnp.tanh(linear(p, f"l{k}", x))
        return cross_entropy(linear(p, "l2", x), y)

    def conv(p: Any, batch: Any) -> Any:
        x, y = batch
        for k in range(3):
            count, height, width, channels = x.shape
            # A product of matrices: lax.conv_general_dilated took 35 times as long on CPUs (jaxlib 0.10.2), most of it
            # in the second derivatives.
            padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            shifted = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
            w = p[f"c{k}_w"].reshape(9 * channels, -1)
            x = jnp.tanh(jnp.concatenate(shifted, -1) @ w + p[f"c{k}_b"])
            channels = x.shape[-1]
            x = x.reshape(count, height // 2, 2, width // 2, 2, channels).mean((2, 4))
        return cross_entropy(linear(p, "out", x.transpose(0, 3, 1, 2).reshape(len(x), -1)), y)

    def transformer(p: Any, batch: Any) -> Any:
        x, y = batch
        x = linear(p, "in", x) + p["place"]
        count, length, width = x.shape
        for b in ("b0", "b1"):
            heads = linear(p, f"{b}_qkv", normed(p, f"{b}_n1", x)).reshape(count, length, 3, 4, width // 4)
            q, k, v = heads.transpose(2, 0, 3, 1, 4)
            weights = jax.nn.softmax(q @ k.swapaxes(-1, -2) * (width // 4) ** -0.5, -1)
            x = x + linear(p, f"{b}_mix", (weights @ v).swapaxes(1, 2).reshape(count, length, width))
            up = jax.nn.gelu(linear(p, f"{b}_up", normed(p, f"{b}_n2", x)), approximate=True)
            x = x + linear(p, f"{b}_down", up)
        return cross_entropy(linear(p, "out", x.mean(1)), y)

    def sine(p: Any, batch: Any) -> Any:
        x, y = batch
        for k in range(2):
            x = jax.nn.relu(linear(p, f"l{k}", x))
        return ((linear(p, "l2", x) - y) ** 2).mean()

    def logistic(p: Any, batch: Any) -> Any:
        x, y = batch
        return optax.sigmoid_binary_cross_entropy(x @ p["w"], y).mean()

    losses = {"mlp": mlp, "conv": conv, "transformer": transformer, "sine": sine, "logistic": logistic}
    return losses[problem.net]
