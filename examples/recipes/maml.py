"""MAML (arXiv 1703.03400), Meta-SGD (1707.09835) and ANIL (1909.09157): sine curves from ten points, in one step."""

from __future__ import annotations

import sys
from typing import Any

import torch

import hyperopt_ftp as hft
from hyperopt_ftp import tree

from .curves import draw
from .sines import head_loss, loss, network, predict, sines

SGD = hft.sgd(lr=0.01)


def maml(net: Any, lr: Any, batch: Any) -> Any:
    return hft.train(SGD, loss, net, [batch]).params


def meta_sgd(net: Any, lr: Any, batch: Any) -> Any:  # each weight has a learning rate
    return hft.train(SGD, loss, net, [batch], hparams={**SGD.hparams, "lr": lr}).params


def anil(net: Any, lr: Any, batch: Any) -> Any:  # the head is trained; the body is an hparam of its loss
    run = hft.train(SGD, head_loss, net["head"], [batch], hparams={**SGD.hparams, "loss": net["body"]})
    return {**net, "head": run.params}


def learn(adapt: Any, steps: int) -> tuple[Any, Any]:
    net, g = network(), torch.Generator().manual_seed(0)
    lr = tree.map_tree(lambda p: torch.full_like(p, 0.01), net)
    outer = torch.optim.Adam([x.requires_grad_() for x in tree.leaves((net, lr))], lr=3e-3)
    for _ in range(steps):
        outer.zero_grad()
        torch.func.vmap(lambda seen, new: loss(adapt(net, lr, seen), new))(*sines(25, g)).mean().backward()
        outer.step()
    return net, lr


def main(steps: int = 800, figure: str | None = None) -> dict[str, float]:
    (seen, new), x = sines(500, torch.Generator().manual_seed(1)), torch.linspace(-5, 5, 101)[:, None]
    losses, lines = {}, {}
    print("loss on new points of new tasks, after one step")
    for name, adapt in (("pre-trained", None), ("MAML", maml), ("Meta-SGD", meta_sgd), ("ANIL", anil)):
        net, lr = learn(adapt or (lambda net, lr, batch: net), steps)
        nets = torch.func.vmap(adapt or maml, (None, None, 0))(net, lr, seen)
        losses[name] = torch.func.vmap(loss)(nets, new).mean().item()
        print(f"{name:>12} {losses[name]:8.3f}")
        lines[name] = x, predict(tree.map_tree(lambda p: p[0], nets), x).detach()
    if figure:
        draw(figure, lines, {"the ten points": (seen[0][0], seen[1][0])}, xlabel="x", ylabel="y")
    return losses


if __name__ == "__main__":
    main(figure=sys.argv[2] if sys.argv[1:2] == ["--figure"] else None)
