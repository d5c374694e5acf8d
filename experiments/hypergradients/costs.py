"""What a full hypergradient costs by each strategy: seconds and memory, and how near it is to that of `Unroll()`."""

import math
import time
from collections.abc import Mapping, Sequence

import torch

import hyperopt_ftp as hft
from experiments.common.bilevel_loop import Losses
from experiments.common.memory import peak_above
from experiments.hypergradients.gradients import Segment, full

#: Without compiled steps: of the derivative of one of EfficientNet-Lite0 torch 2.13 makes 5,730 kernels, and had
#: compiled 3,103 of them after 52 minutes.
STRATEGIES: Mapping[str, hft.Unroll | hft.Forward] = {
    "Unroll()": hft.Unroll(),
    'Unroll(checkpoint="sqrt")': hft.Unroll(checkpoint="sqrt"),
    "Forward()": hft.Forward(),
}
LOSS = "training"  # that of which the hypergradient is taken
FORWARDS = 3  # depths of which forward mode is measured


def cost(segment: Segment, losses: Losses, depths: Sequence[int], name: str) -> dict:
    """Of one strategy, by depth.

    In forward mode every number is a tangent of its own, so one layer's radius and few steps say what all would take.
    """
    strategy, device = STRATEGIES[name], segment.end[next(iter(segment.end))].device
    forwards = isinstance(strategy, hft.Forward)
    layer = next(iter(segment.deviation)) if forwards else None
    found: dict = {"depths": [], "seconds": [], "mib": [], "differs": []}
    for depth in depths[:FORWARDS] if forwards else depths:
        expected = full(segment, losses, LOSS, depth)
        expected = expected if layer is None else {layer: expected[layer]}
        begin = time.perf_counter()
        gradients, mib = peak_above(device, lambda k=depth, one=layer: full(segment, losses, LOSS, k, strategy, one))
        found["seconds"].append(time.perf_counter() - begin)
        found["mib"].append(mib)
        found["depths"].append(depth)
        off = torch.stack([gradients[name] - value for name, value in expected.items()]).norm().item()
        size = math.hypot(*(value.item() for value in expected.values()))
        found["differs"].append(off / size if size else math.nan if off else 0.0)
    return found
