"""A small tuning by `bilevel` that can be killed at any moment: run again, it goes on from its last checkpoint.

Whatever may differ after a resume has a part in it: dropout, a loader that is in the middle of a pass, the state of the
optimizer and of the one outside it, hyperparameters under every map, rounds that are taken back. The checkpoint is as
docs/checkpoints.md tells.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.hyper import BilevelState, Record
from tests.crash.child import Program, finish, load, new_parser, ready, save

SIZE, BATCH = 192, 12  # 16 batches a pass, so in each the rounds of three begin elsewhere
ROUNDS, STEPS = 60, 3
BROKEN = 100  # the example that is NaN where rounds may be lost


class Variant(NamedTuple):
    """What differs between the tunings."""

    inner: Callable[[dict[str, Tensor]], hft.Optimizer]  # of the anchor
    over: tuple[str, ...]  # beside those of all
    by: Any
    strategy: Any
    breaks: bool = False


def around_adam(anchor: dict[str, Tensor]) -> hft.Optimizer:
    return hft.ftp(hft.adam(lr=0.02, eps=1e-3), anchor, radius_lr=0.05)


def in_balls(anchor: dict[str, Tensor]) -> hft.Optimizer:
    """Radii that are larger than any row is at first: settling takes them down."""
    return hft.projected(hft.adam(lr=0.02, eps=1e-3), anchor, radius=0.5)


def on_a_schedule(anchor: dict[str, Tensor]) -> hft.Optimizer:
    return hft.scheduled(around_adam(anchor), lr=hft.schedules.cosine(ROUNDS * STEPS, floor=0.2))


torch_adam = functools.partial(torch.optim.Adam, lr=0.05)
VARIANTS = {
    "unroll": Variant(in_balls, ("radius",), hft.adam(lr=0.05), hft.Unroll()),
    "log": Variant(around_adam, ("radius_lr",), torch_adam, hft.Unroll(checkpoint="log")),
    "truncate": Variant(on_a_schedule, ("lr_schedule.floor",), hft.adam(lr=0.05), hft.Unroll(truncate=2)),
    "forward": Variant(in_balls, ("radius",), torch_adam, hft.Forward()),
    "skip": Variant(around_adam, ("radius_lr",), hft.adam(lr=0.05), hft.Unroll(), breaks=True),
}  # fmt: skip


def program(variant: str) -> Program:
    return Program(__name__, {"variant": variant}, steps=ROUNDS, every=2, longest=0.5)


class Examples(Dataset):
    """Inputs with noise of their own at every reading, targets, and their number, by which they are weighted."""

    def __init__(self, breaks: bool) -> None:
        drawn = torch.Generator().manual_seed(3)
        self.x, noise = torch.randn(SIZE, 6, generator=drawn), torch.randn(SIZE, 1, generator=drawn)
        self.y = self.x[:, :1].sin() + 0.3 * noise
        if breaks:
            self.x[BROKEN] = float("nan")

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, int]:
        return self.x[i] + 0.01 * torch.randn(6), self.y[i], i


def forward(w: dict[str, Tensor], x: Tensor, drop: float) -> Tensor:
    return F.dropout(torch.tanh(x @ w["first"] + w["bias"]), drop) @ w["second"]


def train_loss(w: dict[str, Tensor], batch: Any, own: dict[str, Any]) -> Tensor:
    x, y, i = batch
    errors = (forward(w, x, 0.2) - y).square().mean(1)
    return (own["weights"][i // 20] * errors).mean() + sum(own["l2"][k] * w[k].square().sum() for k in own["l2"])


def outer_loss(w: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    return (forward(w, batch[0], 0.0) - batch[1]).square().mean()


def new_records(variant: Variant, rounds: int, state: BilevelState | None = None) -> Iterator[Record]:
    drawn = torch.Generator().manual_seed(2)
    shapes = {"first": (6, 16), "bias": (16,), "second": (16, 1)}
    params = {name: 0.4 * torch.randn(shape, generator=drawn) for name, shape in shapes.items()}
    held_out = [(x, x[:, :1].sin()) for x in torch.randn(7, 20, 6, generator=drawn)]
    if variant.breaks:
        held_out[4][0][0] = float("nan")
    inner = variant.inner(params)
    own = {"weights": torch.ones(SIZE // 20 + 1), "l2": {"first": torch.tensor(1e-3), "second": torch.tensor(1e-3)}}
    return hft.bilevel(
        inner,
        variant.by,
        ("lr", "betas.0", "loss.weights", "loss.l2", *variant.over),
        train_loss,
        outer_loss,
        params,
        DataLoader(Examples(variant.breaks), BATCH),
        held_out,
        inner_steps=STEPS,
        outer_steps=rounds,
        strategy=variant.strategy,
        constrain={"lr": "log", "betas.0": "logit", "loss.l2": "log"},
        hparams={**inner.hparams, "loss": own},
        state=state,
        not_finite="skip" if variant.breaks else "error",
    )


def packed(state: BilevelState) -> dict[str, Any]:
    """The leaves; a `state_dict` of torch.optim as it is."""
    if isinstance(state.outer, dict):
        return {"outer": state.outer, "leaves": tree.leaves(state._replace(outer=()))}
    return {"leaves": tree.leaves(state)}


def unpacked(saved: dict[str, Any], like: BilevelState) -> BilevelState:
    if "outer" in saved:
        return tree.flatten(like._replace(outer=()))[1](saved["leaves"])._replace(outer=saved["outer"])
    return tree.flatten(like)[1](saved["leaves"])


def row(record: Record) -> Tensor:
    """All that a record has beside its state."""
    entries = [x.double().reshape(-1) for x in tree.leaves((record.hypergradient, record.tuned))]
    skipped = [float(name in record.skipped) for name in record.tuned]
    return torch.cat([torch.tensor([record.value, *skipped], dtype=torch.float64), *entries])


def check_that_all_had_work(variant: Variant, rows: Tensor, state: BilevelState) -> None:
    """Ends of runs in which nothing happens would be equal too."""
    assert len(rows) == ROUNDS
    tuned = tree.leaves(state.tuned)
    assert all(bool(x.isfinite().all()) for x in (*tree.leaves(state.params), *tuned)), state
    moved = rows[:, -sum(x.numel() for x in tuned) :]
    assert bool((moved[0] != moved[-1]).all()), moved
    skipped = rows[:, 1 : 1 + len(state.tuned)].all(1)
    assert (0 < skipped.sum() < ROUNDS) if variant.breaks else not skipped.any(), skipped


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--variant", choices=VARIANTS, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    variant = VARIANTS[args.variant]

    like = next(new_records(variant, 1)).state  # a round that is thrown away: the structure; and it loads kernels
    torch.manual_seed(0)
    state, rows = None, []
    saved = load(args.dir)
    if saved:
        state, rows = unpacked(saved["state"], like), list(saved["rows"])
    records = new_records(variant, args.steps, state)
    if saved:
        torch.set_rng_state(saved["rng"])
    ready(len(rows))

    for record in records:
        state, rows = record.state, [*rows, row(record)]
        if args.every and record.step % args.every == 0:
            content = {"state": packed(state), "rng": torch.get_rng_state(), "rows": torch.stack(rows)}
            save(args.dir, content, args.pause)
    assert state is not None
    whole = torch.stack(rows)
    check_that_all_had_work(variant, whole, state)
    finish(args.dir, {"state": packed(state), "rows": whole, "rng": torch.get_rng_state()})


if __name__ == "__main__":
    main()
