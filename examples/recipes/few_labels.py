"""A hundred right labels beside many doubtful ones: how much an example counts, by its group and by its loss."""

import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

import hyperopt_ftp as hft

from ..digits import Batch, Params, accuracy, batches, digits, logits, loss, network


def learn_weights(
    losses: Callable[[Params, Batch], Tensor], params: Params, batch_of: Callable[[Tensor], Batch], groups: Tensor,
    labels: int, optimizer: hft.Optimizer, steps: int, every: int = 10, size: int = 80, few: int = 20, seed: int = 0,
) -> tuple[Params, Params]:  # fmt: skip
    """`losses` of each example in a batch, which is made of indices: those of the source, then those of the labels."""
    count, draw = len(groups), partial(torch.randint, generator=torch.Generator().manual_seed(seed))

    def weighted(params: Params, batch: tuple[Batch, Tensor], own: Params) -> Tensor:
        doubtful, right = losses(params, batch[0]).split([size, few])
        weight = (own["group"][batch[1]] - own["loss"] * doubtful.detach()).softmax(0)
        return torch.lerp((weight * doubtful).sum(), right.mean(), own["share"].sigmoid())

    train, judge = [], []
    for k in range(steps // every):  # every second label is trained on, the others judge; they take turns
        for _ in range(every):
            source, right = draw(count, (size,)), count + k % 2 + 2 * draw(labels // 2, (few,))
            train.append((batch_of(torch.cat([source, right])), groups[source]))
        judge.append(batch_of(count + (k + 1) % 2 + 2 * draw(labels // 2, (32,))))
    warnings.filterwarnings("ignore", "train_loss detaches")  # weights of examples are constants for a step, on purpose
    own = {"group": torch.zeros(int(max(groups)) + 1), "loss": torch.zeros(()), "share": torch.tensor(few / size).log()}
    *_, last = hft.bilevel(
        optimizer, hft.adam(lr=0.1), "loss", weighted, lambda params, batch: losses(params, batch).mean(), params,
        train, judge, inner_steps=every, outer_steps=len(judge), strategy=hft.Unroll(truncate=2), hparams={"loss": own},
    )  # fmt: skip
    return last.state.params, last.tuned["loss"]


def main(steps: int = 900) -> dict[str, float]:
    ((x, y), held_out), opt, every = digits(), hft.sgd(lr=1.0), partial(nn.functional.cross_entropy, reduction="none")
    y[:1300] += (torch.rand(1300, generator=torch.Generator().manual_seed(0)) < 0.7) & (y[:1300] < 5)  # wrong by one
    noisy, right = (x[:1300], y[:1300]), (x[1300:], y[1300:])
    both = list(zip(batches(noisy, steps, 80), batches(right, steps, 20), strict=True))
    found = {
        "labels alone": hft.train(opt, loss, network(), [right] * steps).params,
        "all alike": hft.train(opt, lambda p, b: 0.8 * loss(p, b[0]) + 0.2 * loss(p, b[1]), network(), both).params,
        "learned weights": learn_weights(
            lambda p, b: every(logits(p, b[0]), b[1]), network(), lambda i: (x[i], y[i]), noisy[1], 100, opt, steps
        )[0],
    }
    scores = {name: accuracy(params, held_out) for name, params in found.items()}
    print("accuracy on held-out digits", *(f"{name:>18} {x:5.1f} %" for name, x in scores.items()), sep="\n")
    return scores


if __name__ == "__main__":
    main()
