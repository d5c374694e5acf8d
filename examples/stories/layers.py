"""See what fine-tuning does to each layer: the training of the first story, watched.

AdamW and FTPAdamW at one learning rate, one seed each. Run: python -m examples.stories.layers FOLDER
"""

from __future__ import annotations

import tempfile
from copy import deepcopy
from itertools import cycle
from pathlib import Path

import torch

import hyperopt_ftp as hft
from experiments.common.figures import save
from experiments.common.looks import LOOKS
from hyperopt_ftp import plot

from .folder import tell
from .styles import STYLES, accuracies, fine_tuning, pre_trained

OPTIMIZERS = {  # what pulls with strength 0 is its base, and has an anchor to measure the distance from
    "AdamW": lambda model, lr: hft.L2SP(torch.optim.AdamW(model.named_parameters(), lr=lr, weight_decay=0), strength=0),
    "FTPAdamW": lambda model, lr: hft.FTPAdamW(model.named_parameters(), lr=lr, foreach=True),
}


def main(folder: Path, steps: int = 300, lr: float = 1e-3) -> dict[str, dict[str, dict[str, float]]]:
    anchor, measured = pre_trained(), {}
    print(f"test accuracy in % after {steps} steps, lr {lr:g}", *(f"{style:>9}" for style in STYLES))
    for name, make in OPTIMIZERS.items():
        model = deepcopy(anchor)
        opt = make(model, lr)
        with tempfile.TemporaryDirectory() as scratch:
            log = Path(scratch) / "layers.csv"
            hft.watch(opt, log, every=5)
            for _ in fine_tuning(model, opt, steps):
                pass
            if name == "FTPAdamW":
                save(plot.radii(*plot.history(log, "radius")), folder / "radii.png")
        measured[name] = hft.measure(opt)
        print(f"{name:>47}", *(f"{x:9.1f}" for x in accuracies(model, model.state_dict())))
    print(f"{'layer':>10} {'radius':>8} {'clipped':>8} {'distance':>9} {'of AdamW':>9}")
    for layer, of in measured["FTPAdamW"].items():
        free = measured["AdamW"][layer]["distance"]
        print(f"{layer:>10} {of['radius']:8.2g} {of['clipped']:8.2f} {of['distance']:9.2g} {free:9.2g}")
    bars = {f"{layer}  {name}": measured[name][layer] for layer in measured["AdamW"] for name in OPTIMIZERS}
    figure = plot.distances(bars)
    for bar, name in zip(figure.axes[0].patches, cycle(OPTIMIZERS)):
        bar.set_facecolor(LOOKS[name].colour)
    save(figure, folder / "distance.png")
    return measured


if __name__ == "__main__":
    tell(main)
