"""WiSE-FT with a share of the anchor for each tensor, learned on held-out examples."""

from collections.abc import Mapping

from torch import Tensor

import hyperopt_ftp as hft
from experiments.common.bilevel_loop import Batches, Losses
from experiments.common.network import Network
from experiments.common.options import Options
from experiments.common.task import Task

STEPS, SHARE_LR = 40, 0.05  # enough for a share to cross its range


def mix_in(model: Network, start: Mapping[str, Tensor], task: Task, options: Options, seed: int) -> None:
    """Replace the model's weights and statistics by the mixture."""
    device = next(model.parameters()).device
    batches = Batches(task.parts["validation"], options.batch_size, STEPS, seed + 1, device)
    tuned = {name: value.detach().clone() for name, value in model.state_dict().items()}
    held_out = Losses(model, task).held_out
    statistics = [name for name, _ in model.named_buffers()]
    mixed, _ = hft.learned_wise(tuned, start, held_out, batches, statistics=statistics, strength_lr=SHARE_LR)
    model.load_state_dict(mixed)
