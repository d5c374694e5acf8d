"""What a strategy evaluates in a whole run, counted, and what processes send each other for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..unrolling.schedules import Plan, backward_schedule

#: Bytes that each process gives to the others for the value of a loss.
VALUE = 32


class Work(NamedTuple):
    """Evaluations of the training loss and of its derivatives; those of the outer loss are not among them."""

    gradients: int  # each with its value
    products: int  # with the Hessian, or with the mixed second derivatives: a backward pass through a gradient
    calls: int  # of the training loss: gradients that vmap evaluates together are one call
    passes: int  # backward passes through gradients: products that vmap makes together are one
    slopes: int = 0  # gradients in the loss's hparams, beside those in the params


class Traffic(NamedTuple):
    """Between data-parallel processes."""

    collectives: int
    bytes: int  # that each process sends


def of_unroll(steps: int, first: int, plan: Plan, needs_hvp: bool, probed: bool) -> Work:
    """One gradient a step, one more where its graph is not kept, one for each step on the way to a point.

    Args:
        steps: of training.
        first: the first step that is differentiated.
        plan: what is kept of those from there on.
        needs_hvp: whether the gradient of step ``first`` is differentiated; if not, it has no product.
        probed: whether a step is made once more to be measured.
    """
    count = steps - first
    again = sum(made for _, _, made in backward_schedule(plan.parts, 0, count))
    gradients = steps + again + max(0, count - plan.graphs) + probed
    products = count - (not needs_hvp) + probed
    return Work(gradients, products, gradients, products)


class Chunk(NamedTuple):
    """Tangents that :class:`~hyperopt_ftp.Forward` carries at once through a training."""

    tangents: int
    graphs: int  # steps whose gradient has a graph
    passes: int  # steps that have products: there is a tangent of the params, the loss's hparams or the batch


def of_forward(steps: int, chunks: Sequence[Chunk], slopes: bool, loop: bool) -> Work:
    """One gradient for each step and chunk, and one product for each of its tangents.

    Args:
        steps: of training.
        chunks: that are carried one after the other.
        slopes: whether the gradient in the loss's hparams is taken too, for the tangents that are theirs.
        loop: whether a plain training comes first.
    """
    gradients = steps * (len(chunks) + loop)
    products, passes = sum(x.tangents * x.passes for x in chunks), sum(x.passes for x in chunks)
    return Work(gradients, products, gradients, passes, sum(x.graphs for x in chunks) if slopes else 0)


def of_implicit(steps: int, iterations: int, batches: int, checked: bool) -> Work:
    """A training; the graph of the last steps twice, for the solver and for the hparams; one product an iteration.

    ``checked``: a product more tells whether the optimizer's state may be held.
    """
    gradients, products = steps + 2 * batches, batches * (iterations + 1 + checked)
    return Work(gradients, products, gradients, products)


def of_zero_order(steps: int, points: int, together: bool) -> Work:
    """A plain training, and one from each point; one more where they do not run together, as a check."""
    if together:
        return Work(steps * (1 + points), 0, 2 * steps, 0)
    return Work(steps * (2 + points), 0, steps * (2 + points), 0)


def traffic_of(work: Work, vector: int, processes: int) -> Traffic:
    """By :func:`~hyperopt_ftp.data_parallel`'s rules.

    Each value is an all-gather of a few numbers. Each gradient, each product and each gradient in the loss's hparams is
    an all-reduce of one vector: each process sends ``2 (n - 1) / n`` times its bytes around the ring. Products that are
    made together are one collective of so many vectors.
    """
    if processes == 1:
        return Traffic(0, 0)
    collectives = 2 * work.calls + work.passes + work.slopes
    vectors = work.gradients + work.products + work.slopes
    reduced = 2 * (processes - 1) * vectors * vector // processes
    return Traffic(collectives, reduced + (processes - 1) * VALUE * work.gradients)
