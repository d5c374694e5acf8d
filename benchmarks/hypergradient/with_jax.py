"""The hypergradients by JAX and optax: ``jit`` of ``grad`` or ``jacfwd`` over ``lax.scan``, on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import jax_losses
from .problems import Problem


def with_jax(problem: Problem, checkpoint: bool = False, forward: bool = False) -> Callable[[], np.ndarray]:
    """With ``checkpoint``, what a step computes is computed again on the way back; ``forward``: forward mode."""
    import jax
    import jax.numpy as jnp
    import optax

    loss = jax_losses.loss_of(problem)
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

    params, batches, held_out = jax_losses.arrays(problem)
    params, held_out = jax.device_put((params, held_out))
    batches = jax.device_put(batches[0] if one_batch else tuple(np.stack(x) for x in zip(*batches, strict=True)))
    over = jax.device_put({"lr": np.float32(problem.lr), "l2": problem.l2, "params": params}[problem.over])
    run = jax.jit(jax.jacfwd(outer) if forward else jax.grad(outer))

    def call() -> np.ndarray:
        found = jax.block_until_ready(run(over, params, batches, held_out))
        leaves = [found[name] for name in sorted(found)] if isinstance(found, dict) else [found]
        return np.concatenate([np.asarray(x).reshape(-1) for x in leaves])

    return call
