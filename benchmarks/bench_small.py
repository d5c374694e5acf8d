"""Small problems against a loop written by hand: CPU time of the second call, one thread, medians.

An MLP 20-64-64-5 and batches of 32, in float32: what it costs that a training is looked at and kept apart.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import hyperopt_ftp as hft

from .measure import Others, interleaved, machine, options, ratio, write

Params = dict[str, Tensor]


def net(p: Params, x: Tensor) -> Tensor:
    return torch.tanh(torch.tanh(x @ p["a"]) @ p["b"]) @ p["c"]


def loss(p: Params, batch: tuple[Tensor, Tensor]) -> Tensor:
    return torch.nn.functional.cross_entropy(net(p, batch[0]), batch[1])


def decayed(p: Params, batch: tuple[Tensor, Tensor], h: Tensor) -> Tensor:
    return loss(p, batch) + h * sum(w.square().sum() for w in p.values())


def by_hand(
    step: Callable[..., tuple[Params, Any]], loss: Callable[..., Tensor], params: Params, state: Any, data: list[Any]
) -> Params:
    """A training whose steps have graphs where grad mode is on."""
    graph = torch.is_grad_enabled()
    for k, batch in enumerate(data):
        if not graph:
            params = {n: p.detach().requires_grad_() for n, p in params.items()}
        with torch.enable_grad():
            value = loss(params, batch)
            grads = torch.autograd.grad(value, [*params.values()], create_graph=graph)
        params, state = step(dict(zip(params, grads, strict=True)), state, params, k + 1)
    return params


def sgd(lr: Tensor) -> Callable[..., tuple[Params, Any]]:
    return lambda g, s, p, k: ({n: p[n] - lr * g[n] for n in p}, s)


def adam(lr: Tensor) -> Callable[..., tuple[Params, Any]]:
    def step(g: Params, state: tuple[Params, Params], p: Params, k: int) -> tuple[Params, Any]:
        m = {n: 0.9 * state[0][n] + 0.1 * g[n] for n in p}
        v = {n: 0.999 * state[1][n] + 0.001 * g[n] ** 2 for n in p}
        bias = (1 - 0.9**k), (1 - 0.999**k)
        return {n: p[n] - lr * (m[n] / bias[0]) / ((v[n] / bias[1] + 1e-12).sqrt() + 1e-8) for n in p}, (m, v)

    return step


def problems() -> dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]]:
    """By name: a derivative of ours, and by hand."""
    torch.manual_seed(0)
    start = {"a": torch.randn(20, 64) / 4, "b": torch.randn(64, 64) / 8, "c": torch.randn(64, 5) / 8}
    data = [(torch.randn(32, 20), torch.randint(5, (32,))) for _ in range(11)]
    *data, held_out = data
    zeros = {n: torch.zeros_like(p) for n, p in start.items()}

    def outer(p: Params) -> Tensor:
        return loss(p, held_out)

    def ours(opt: Any, over: str, count: int = 10, train_loss: Any = loss, **options: Any) -> Any:
        return hft.hypergradient(opt, train_loss, outer, start, data[:count], over, **options)[1][over]

    def hand(rule: Any, in_: Tensor | None, state: Any = None, count: int = 10, loss: Any = loss) -> Tensor:
        """The derivative in ``in_``; without it, in the initial params, of which the first is returned."""
        p = {n: x.detach().requires_grad_() for n, x in start.items()}
        end = by_hand(rule, loss, p, state, data[:count])
        return torch.autograd.grad(outer(end), [*p.values()] if in_ is None else in_)[0]

    def of_lr(rule: Callable[..., Any], lr: float, state: Any) -> Tensor:
        h = torch.tensor(lr, requires_grad=True)
        return hand(rule(h), h, state)

    def of_loss() -> Tensor:
        h = torch.tensor(1e-3, requires_grad=True)
        return hand(sgd(torch.tensor(0.1)), h, loss=lambda p, x: decayed(p, x, h))

    @torch.no_grad()
    def values() -> Tensor:
        return by_hand(sgd(torch.tensor(0.1)), loss, start, None, data)["a"]

    def anew() -> Tensor:
        """With a loss and an optimizer that no call has seen, as users make them."""
        return ours(hft.sgd(lr=0.1), "params", 1, lambda p, batch: loss(p, batch))["a"]

    def maml() -> Tensor:
        return hand(sgd(torch.tensor(0.1)), None, count=1)

    with_decay = {"train_loss": decayed, "hparams": {"loss": torch.tensor(1e-3)}}
    plain, moments = hft.sgd(lr=0.1), hft.adam(lr=1e-2)
    return {
        "MAML, K = 1": (lambda: ours(plain, "params", 1)["a"], maml),
        "MAML, made anew": (anew, maml),
        "SGD, K = 10": (lambda: ours(plain, "lr"), lambda: of_lr(sgd, 0.1, None)),
        "an hparam of the loss": (lambda: ours(plain, "loss", **with_decay), of_loss),
        "Adam, K = 10": (lambda: ours(moments, "lr"), lambda: of_lr(adam, 1e-2, (zeros, zeros))),
        "values only": (lambda: hft.train(plain, loss, start, data).params["a"], values),
    }


def main() -> None:
    args = options(__doc__, "small.json", rounds=41).parse_args()
    torch.set_num_threads(1)
    others, found = Others(), {}
    print("| problem | ms by hand | ours / by hand |\n|---|---|---|")
    for name, (ours, hand) in problems().items():
        torch.testing.assert_close(ours(), hand(), rtol=1e-3, atol=1e-6, check_dtype=False)
        seconds = interleaved({"ours": ours, "by hand": hand}, args.rounds, clock=time.process_time)
        row = {"by_hand_ms": 1e3 * statistics.median(seconds["by hand"]), "ratio": ratio(seconds, "ours", "by hand")}
        found[name] = row
        print(f"| {name} | {row['by_hand_ms']:.2f} | {row['ratio']:.2f} |", flush=True)
    about = {"machine": machine(), "rounds": args.rounds, "share_of_other_processes": others.share()}
    write(args.out, {**about, "problems": found})


if __name__ == "__main__":
    main()
