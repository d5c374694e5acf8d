"""TPGM: radii learned on validation batches, in training and once after it. Run: python -m examples.tpgm

A network that knows all ten digits is fine-tuned on noisy pictures of five of them. How well does it know the others
after that?
"""

from __future__ import annotations

import torch

import hyperopt_ftp as hft

from .digits import Batch, Params, accuracy, batches, digits, loss, network


def only(data: Batch, keep: torch.Tensor) -> Batch:
    return data[0][keep], data[1][keep]


def noisy(data: Batch, seed: int) -> Batch:
    noise = torch.randn(data[0].shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return data[0] + 0.4 * noise, data[1]


def fine_tune(opt: hft.Optimizer, params: Params, data: Batch, steps: int) -> Params:
    state = opt.init(params)
    for batch in batches(data, steps):
        params, state = opt.update(torch.func.grad(loss)(params, batch), state, params)
    return params


def main() -> None:
    train, held_out = digits()
    w0 = fine_tune(hft.adam(lr=1e-2), network(), train, 150)
    few, rest = (only(noisy(train, 3), train[1] < 5), only(held_out, held_out[1] >= 5))
    validation, test = noisy(only(held_out, held_out[1] < 5), 4), noisy(held_out, 5)
    val_batches = [held_out, validation]  # what must survive, and what is learned

    def report(name: str, params: Params) -> None:
        learned = accuracy(params, only(test, test[1] < 5))
        print(f"{name:>34} {learned:12.1f} {accuracy(params, rest):12.1f}")

    print(f"{'accuracy in %':>34} {'fine-tuned':>12} {'the rest':>12}")
    report("anchor", w0)
    tuned = fine_tune(hft.adam(lr=1e-2), w0, few, 100)
    report("fine-tuned", tuned)

    # In training: bilevel over the radii of a projected optimizer. A few free steps give the first radii their size.
    start = fine_tune(hft.adam(lr=1e-2), w0, few, 5)
    opt = hft.projected(hft.adam(lr=1e-2), w0, radius=hft.tpgm_radius(start, w0))
    run = hft.bilevel(
        opt, hft.adam(lr=1e-2), "radius", loss, loss, start, list(batches(few, 95)), val_batches,
        inner_steps=1, outer_steps=95,
    )  # fmt: skip
    report("TPGM in training", list(run)[-1].state.params)

    # After training: one interpolation for each layer.
    posthoc, radii = hft.tpgm(tuned, w0, loss, val_batches * 50)
    report("TPGM once, after fine-tuning", posthoc)
    print("radius of each layer, L2: " + ", ".join(f"{name} {r.item():.2f}" for name, r in radii.items()))


if __name__ == "__main__":
    main()
