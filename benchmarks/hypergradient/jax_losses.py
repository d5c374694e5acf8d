"""The losses in JAX, and a problem's numbers as it likes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .problems import Arrays, Batch, Problem


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
