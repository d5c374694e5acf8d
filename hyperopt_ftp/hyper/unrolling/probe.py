"""The memory that a step takes, measured by running it once as if it were in the middle of others."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ... import tree
from ...types import Offload, Params, State
from ..core.inputs import TrainInputs
from ..core.leaves import OptionalTensors, floats
from ..core.memory import Meter, bytes_of, changed
from ..core.replay import Replay, fingerprint
from .budget import Sizes
from .eager import EagerSteps
from .plans import points_of_every
from .points import Checkpoints, Link


def sizes_of(steps: EagerSteps, inputs: TrainInputs, k: int, params: Params, state: State, offload: Offload) -> Sizes:
    """Bytes of step k, which is run forward with its graph and back; the random state is restored."""
    count = len(inputs.batches) - k
    hvps = count if steps.needs_hvp(k) else count - 1
    kind = tree.leaves(params)[0].device.type
    size = partial(bytes_of, kind=kind)
    points, replay = Checkpoints(inputs, points_of_every(1), k, offload), Replay()
    probe = steps.beginning(k - 1)
    probe.keep_graphs(count)
    given = floats(params), floats(state)
    back_p: OptionalTensors = [torch.zeros_like(tree.working(x)) for x in given[0]]
    back_s: OptionalTensors = [torch.zeros_like(tree.working(x)) for x in given[1]]

    def measured() -> Sizes:
        with Meter(kind) as meter:
            new_params, new_state, loss = probe.forward(k, points, params, state)
            made = meter.peak()
            moved, new = changed((params, state), (new_params, new_state))
            graph = meter.live() - size(new)  # which is part of the next point
            notes = size((fingerprint(loss, floats(new_params)), loss.clone()))
            rng, ending = size(replay.now()), size(moved)
            stored, beside, link = (size(points.stored(Link(part, replay.now()))) for part in (moved, new, given[0]))
            dropped = {id(x) for x in changed(new_state, state)[1]}
            own = tree.map_tree(lambda x: x.clone() if isinstance(x, Tensor) and id(x) in dropped else x, state)
            points.visit(k, params, own)  # of which the state goes before the peak
            del new_params, new_state, moved, new, own
            held = meter.live()
            meter.peak()
            with replay.without_autocast():
                new_p, new_s, more, of_batch = probe.back(k, points, back_p, back_s)
            back = meter.peak() - held
        return Sizes(
            steps=count,
            hvps=hvps,
            fixed=ending + size(given[0]) + count * notes,
            first=stored if steps.first else rng,  # the start is the caller's
            point=stored,
            beside=beside,
            link=link,
            first_state=0 if steps.first else held - graph,
            graph=graph + rng,
            made=made,
            back=back,
            adjoints=size((new_p, new_s)) + 2 * size(more),
            batch=size(of_batch),
        )

    return replay.again(measured)
