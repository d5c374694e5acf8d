"""Meta-Weight-Net (arXiv 1902.07379): a small network weighs each sample by its loss; 40 % of the labels are wrong."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

import hyperopt_ftp as hft

from ..digits import Batch, Params, accuracy, batches, digits, logits, loss, network
from .curves import draw

SGD = hft.sgd(lr=1.0)


def meta_weight_net(net: nn.Module, noisy: list[Batch], clean: Batch) -> Params:
    def weighted(params: Params, batch: Batch, own: Params) -> Tensor:
        losses = nn.functional.cross_entropy(logits(params, batch[0]), batch[1], reduction="none")
        weights = torch.func.functional_call(net, own, losses.detach()[:, None])[:, 0]
        return (weights * losses).sum() / weights.sum()

    params, outer = network(), torch.optim.Adam(net.parameters(), lr=3e-3)
    hparams = {**SGD.hparams, "loss": dict(net.named_parameters())}
    for batch in noisy:
        ahead = hft.train(SGD, weighted, params, [batch], hparams=hparams).params
        outer.zero_grad()
        loss(ahead, clean).backward()
        outer.step()
        with torch.no_grad():  # the step itself, with the new weights of the samples
            params = hft.train(SGD, weighted, params, [batch], hparams=hparams).params
    return params


def main(steps: int = 900, figure: str | None = None) -> dict[str, float]:
    g = torch.Generator().manual_seed(0)
    (x, y), held_out = digits()
    wrong = torch.rand(len(y), generator=g) < 0.4
    flipped = torch.where(wrong, (y + torch.randint(1, 10, y.shape, generator=g)) % 10, y)
    clean, noisy = (x[:100], y[:100]), list(batches((x[100:], flipped[100:]), steps, size=100))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 32), nn.ReLU(), nn.Linear(32, 1), nn.Sigmoid()).double()
    trained = {
        "trained on all": hft.train(SGD, loss, network(), noisy).params,
        "on 100 clean ones": hft.train(SGD, loss, network(), [clean] * steps).params,
        "Meta-Weight-Net": meta_weight_net(net, noisy, clean),
    }
    scores = {name: accuracy(params, held_out) for name, params in trained.items()}
    print("accuracy on held-out digits", *(f"{name:>18} {x:5.1f} %" for name, x in scores.items()), sep="\n")
    if figure:
        at = torch.linspace(0, 8, 81, dtype=torch.float64)
        draw(figure, {"learned": (at, net(at[:, None]).detach())}, xlabel="loss of a sample", ylabel="its weight")
    return scores


if __name__ == "__main__":
    main(figure=sys.argv[2] if sys.argv[1:2] == ["--figure"] else None)
