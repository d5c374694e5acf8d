"""The memory that a step takes, measured by running it once as if it were in the middle of others."""

from __future__ import annotations

from functools import partial

import torch

from ... import tree
from ...types import Params, State
from ..core.inputs import TrainInputs
from ..core.leaves import OptionalTensors, floats
from ..core.memory import Meter, bytes_of, changed, kind_of
from ..core.replay import Replay, fingerprint
from .budget import Sizes
from .eager import EagerSteps
from .plans import every
from .points import Checkpoints


def sizes_of(steps: EagerSteps, inputs: TrainInputs, k: int, params: Params, state: State, offload: bool) -> Sizes:
    """Bytes of step k, which is run forward with its graph and back; the random state is restored."""
    count = len(inputs.batches) - k
    hvps = count if steps.needs_hvp(k) else count - 1
    kind = kind_of(params)
    size = partial(bytes_of, kind=kind)
    points, replay = Checkpoints(inputs, every(1), k, offload), Replay()
    probe = steps.beginning(k - 1)
    probe.keep_graphs(count)
    given = floats(params), floats(state)
    back_p: OptionalTensors = [torch.zeros_like(tree.working(x)) for x in given[0]]
    back_s: OptionalTensors = [torch.zeros_like(tree.working(x)) for x in given[1]]

    def measured() -> Sizes:
        points.visit(k, params, state)
        with Meter(kind) as meter:
            new_params, new_state, loss = probe.forward(k, params, state)
            made = meter.peak()
            moved, new = changed((params, state), (new_params, new_state))
            graph = meter.live() - size(new)  # which is part of the next point
            notes = size((fingerprint(loss, floats(new_params)), loss.clone()))
            rng, ending = size(replay.now()), size(moved)
            stored, beside = (size(points.stored(part, None)) for part in (moved, new))
            del new_params, new_state, moved, new
            meter.peak()
            with replay.without_autocast():
                new_p, new_s, more, of_batch = probe.back(k, points, back_p, back_s)
            back = meter.peak() - graph
        return Sizes(
            steps=count,
            hvps=hvps,
            fixed=ending + size(given[0]) + count * notes,
            first=stored if steps.first else rng,  # the start is the caller's
            point=stored,
            beside=beside,
            graph=graph + rng,
            made=made,
            back=back,
            adjoints=size((new_p, new_s)) + 2 * size(more),
            batch=size(of_batch),
        )

    return replay.run(replay.now(), measured)
