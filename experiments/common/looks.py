"""How each method looks, the same in every figure: a colour, a marker and a line.

Within a study colour says of what kind a method is, and the marker which one. Names that are not listed (of losses, of
labels) get looks that their figure has not used.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Look(NamedTuple):
    """As matplotlib names them."""

    colour: str
    marker: str
    line: str = "-"


# Okabe and Ito's, which colour-blind eyes tell apart; without their yellow, which white paper swallows.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, RED, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#767676"
COLOURS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, BLACK)
MARKERS = "osD^vPX"
SPARE = tuple(
    Look(colour, MARKERS[(number + turn) % len(MARKERS)], "-" if turn == 0 else "--")
    for turn in range(len(MARKERS))
    for number, colour in enumerate(COLOURS)
)

_FINE_TUNING = {
    # where all begin, and what is free to go anywhere
    "anchor, not fine-tuned": Look(GREY, "o"),
    "AdamW": Look(BLACK, "o"),
    "AdamW, weight decay": Look(BLACK, "s", "--"),
    "AdamW, warm-up": Look(BLACK, "v", "--"),
    "AdamW, layer-wise lr": Look(BLACK, "X", "-."),
    "LP-FT": Look(GREY, "^", "--"),
    "linear probe": Look(BLACK, "^", ":"),
    "AdamW, learned lr": Look(BLACK, "D", "-."),
    "Muon": Look(BLACK, "P"),
    # within a learned radius
    "FTPAdamW": Look(BLUE, "o"),
    "FTPAdamW, anchor kept": Look(BLUE, "o"),
    "FTPAdamW, anchor moved": Look(SKY, "s", "--"),
    "FTPAdamW exact": Look(BLUE, "s", "--"),
    "FTPAdamW exact, share": Look(SKY, "D", "--"),
    "FTPAdamW, free first step": Look(BLUE, "D", ":"),
    "FTP around Muon": Look(BLUE, "P"),
    "FTPAdamW kappa 0": Look(SKY, "o"),
    "FTPAdamW exact, kappa 0": Look(SKY, "s", "--"),
    # within a radius of another kind
    "TPGM": Look(PURPLE, "D"),
    "MARS-SP": Look(PURPLE, "s", "--"),
    # means of weights
    "WiSE-FT": Look(ORANGE, "o"),
    "WiSE-FT, warm-up": Look(ORANGE, "X", "--"),
    "WiSE-FT of FTPAdamW": Look(ORANGE, "s", "--"),
    "WiSE-FT, learned shares": Look(ORANGE, "D", ":"),
    "LiNeS": Look(ORANGE, "^"),
    "Model Stock": Look(ORANGE, "v", "--"),
    "uniform soup": Look(ORANGE, "P"),
    "AdamW, EMA": Look(SKY, "^", ":"),
    # pulled toward the anchor
    "L2-SP": Look(GREEN, "o"),
    "EWC": Look(RED, "D", "-."),
    "L2-SP decoupled": Look(GREEN, "s", "--"),
    "cautious decay": Look(GREEN, "^", ":"),
    "SPD": Look(GREEN, "v"),
    "SPD by depth (MAPS)": Look(GREEN, "D", "-."),
    # other gradients, other weights in a step, fewer weights
    "DiGraP": Look(RED, "o"),
    "Mixout": Look(RED, "s", "--"),
    "LoRA": Look(RED, "^"),
    # fewer examples
    "small-loss selection": Look(GREEN, "v"),
}

_TOWERS = {
    "alone": Look(GREY, "o"),
    "height 1": Look(ORANGE, "s"),
    "height 2": Look(BLUE, "D"),
    "height 3": Look(PURPLE, "^"),
    "height 4": Look(GREEN, "v"),
}

_BENCHMARKS = {
    # this library's
    "Unroll()": Look(BLUE, "o"),
    "Unroll(checkpoint=False)": Look(BLUE, "s"),
    "Unroll(compile=True)": Look(BLUE, "D"),
    "Forward()": Look(BLUE, "^"),
    "Forward(compile=True)": Look(BLUE, "v"),
    "Implicit(iterations=100)": Look(BLUE, "P"),
    # others in torch
    "torchopt": Look(RED, "o"),
    "torchopt, vmap": Look(RED, "s"),
    "higher": Look(RED, "D"),
    "by hand": Look(RED, "^"),
    "by hand, vmap": Look(RED, "v"),
    "jax": Look(GREEN, "o"),
    "jax, checkpoint": Look(GREEN, "s"),
    "jax, forward": Look(GREEN, "^"),
}

#: By the name that figures show.
LOOKS: Mapping[str, Look] = {**_FINE_TUNING, **_TOWERS, **_BENCHMARKS}


def looks(names: Iterable[str]) -> dict[str, Look]:
    """Of the names in one figure, each another one but for two names of one method."""
    names = list(names)
    found = {name: LOOKS[name] for name in names if name in LOOKS}
    for name in names:
        if name not in found:
            taken = {look[:2] for look in found.values()}
            used = Counter(look.colour for look in found.values())
            found[name] = min((s for s in SPARE if s[:2] not in taken), key=lambda s: used[s.colour])
    return {name: found[name] for name in names}
