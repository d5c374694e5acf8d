"""Hypergradients of a decoder with 7 billion weights, on paper. Run: python -m examples.estimate_7b

Eight GPUs of 80 GB train data-parallel for eight steps of AdamW, in bfloat16 with float32 moments, one sequence of 512
tokens each, each layer through hft.remat. How much does a derivative in the learning rate take on each GPU?
The weights are on the meta device, so nothing is computed. All layers are alike, so 32 are extrapolated from one and
two. "sharded" is the share of a GPU if everything were divided equally among the eight.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import hyperopt_ftp as hft
from hyperopt_ftp import tree

LAYERS, WIDTH, HEADS, HIDDEN, VOCABULARY = 32, 4096, 32, 11008, 32000
STEPS, TOKENS, GPUS, GPU = 8, 512, 8, 80e9

Layer = dict[str, Tensor]


def weights(*shape: int) -> Tensor:
    return torch.empty(*shape, dtype=torch.bfloat16, device="meta")


def model(layers: int) -> dict[str, Any]:
    def layer() -> Layer:
        square = {name: weights(WIDTH, WIDTH) for name in ("q", "k", "v", "o")}
        wide = {name: weights(HIDDEN, WIDTH) for name in ("gate", "up")}
        return square | wide | {"down": weights(WIDTH, HIDDEN), "norm": weights(WIDTH), "norm_mlp": weights(WIDTH)}

    ends = {"embed": weights(VOCABULARY, WIDTH), "head": weights(VOCABULARY, WIDTH), "norm": weights(WIDTH)}
    return {**ends, "layers": [layer() for _ in range(layers)]}


def block(p: Layer, x: Tensor) -> Tensor:
    y = F.rms_norm(x, (WIDTH,), p["norm"])
    q, k, v = ((y @ p[name].T).unflatten(-1, (HEADS, -1)).transpose(1, 2) for name in "qkv")
    x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2) @ p["o"].T
    y = F.rms_norm(x, (WIDTH,), p["norm_mlp"])
    return x + (F.silu(y @ p["gate"].T) * (y @ p["up"].T)) @ p["down"].T


def loss(p: dict[str, Any], batch: tuple[Tensor, Tensor], h: dict[str, Tensor]) -> Tensor:
    """Cross entropy; ``h["sources"]`` weighs eight sources of text, of which the sequence has these shares."""
    tokens, shares = batch
    x = p["embed"][tokens[:, :-1]]
    for layer in p["layers"]:
        x = hft.remat(block, layer, x)
    logits = F.rms_norm(x, (WIDTH,), p["norm"]) @ p["head"].T
    return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten()) * (h["sources"] * shares).sum()


def estimate(layers: int, strategy: Any, over: str) -> hft.Estimate:
    batch = (torch.empty(1, TOKENS + 1, dtype=torch.int64, device="meta"), torch.empty(8, device="meta"))
    opt = hft.adamw()
    hparams = {"loss": {"sources": torch.ones(8)}}
    return hft.estimate(opt, loss, model(layers), [batch] * STEPS, over=over, hparams=hparams, strategy=strategy)


def at_all_layers(strategy: Any, over: str) -> hft.Estimate:
    """By one and two layers: memory grows by the same with each."""
    one, two = (estimate(n, strategy, over) for n in (1, 2))
    return one._replace(memory=one.memory + (LAYERS - 1) * (two.memory - one.memory))


CASES = {
    "Unroll, sqrt": (hft.Unroll(checkpoint="sqrt"), "lr"),
    "Unroll, log": (hft.Unroll(checkpoint="log"), "lr"),
    "Unroll, offload": (hft.Unroll(offload=True), "lr"),
    "Forward, lr": (hft.Forward(), "lr"),
    "Forward, 8 sources": (hft.Forward(), "loss.sources"),
    "Implicit": (hft.Implicit(iterations=10), "loss.sources"),
}


def main() -> None:
    params = tree.leaves(model(LAYERS))
    numbers = sum(x.numel() for x in params)
    print(f"{numbers / 1e9:.2f} billion weights: {2 * numbers / 1e9:.0f} GB, and {8 * numbers / 1e9:.0f} GB of moments")
    print(f"{'':>18}   memory  of a GPU  sharded  gradients  products   time")
    for name, (strategy, over) in CASES.items():
        found = at_all_layers(strategy, over)
        whole = found.memory + 10 * numbers  # the weights and moments that training begins with
        print(
            f"{name:>18} {whole / 1e9:5.0f} GB {whole / GPU:9.1f} {whole / GPUS / GPU:8.1f} {found.gradients:10} "
            f"{found.products:9} {found.time:6}"
        )


if __name__ == "__main__":
    main()
