"""What needs no meta-training: class means and linear heads."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from experiments.meta.few_shot.adaptation import Adaptation, head_alone
from experiments.meta.few_shot.config import WAYS
from experiments.meta.few_shot.episodes import Both
from experiments.meta.few_shot.network import Net, hidden

FIT_STEPS = 100  # of a linear head: more no longer change what it predicts


def nearest_mean(both: Both, scale: Tensor, cosine: bool) -> Tensor:
    """Share of each episode's query that is nearest to the mean of its own class: [episode, 1]."""
    (support, _), (query, labels) = both
    support, query = support * scale, query * scale
    if cosine:
        support, query = F.normalize(support, dim=-1), F.normalize(query, dim=-1)
    means = rearrange(support, "e (way each) c -> e way each c", way=WAYS).mean(dim=2)
    return (torch.cdist(query, means).argmin(-1) == labels).float().mean(dim=1, keepdim=True)


def logistic(net: Net, inputs: Tensor, l2: float) -> Adaptation:
    """Logistic regression on what the body makes of the inputs. The rate is safe: the loss bends by at most half the
    squared norm, and the penalty by l2."""
    bend = 0.5 * hidden(net, inputs).square().sum(dim=1).mean().item() + l2
    return head_alone(0.5 / bend, l2, momentum=0.9)
