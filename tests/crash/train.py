"""A small training that can be killed at any moment: run again, it goes on from its last checkpoint.

Whatever may differ after a resume has a part in it: dropout and drawn batches (two random generators), buffers, weights
in two dtypes, accumulated and clipped gradients, a schedule of lr and momentum, a loss scale that overflows.
"""

import argparse
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hyperopt_ftp as hft
from experiments.common.loop import Training
from tests.crash.child import Program, finish, load, new_parser, ready, save
from tests.support.executions import FLAGS

OPTIMIZERS = ("adamw", "sgd", "wrapper")


def program(optimizer: str, execution: str) -> Program:
    """A whole run takes 1 to 3 seconds."""
    return Program(__name__, {"optimizer": optimizer, "execution": execution}, steps=200, every=5, longest=1.0)


class Network(nn.Module):
    """The middle is in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.middle = nn.Linear(8 * 6 * 6, 32, dtype=torch.bfloat16)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(torch.relu(self.norm(self.conv(x))).flatten(1), 0.2)
        x = F.dropout(torch.relu(self.middle(x.bfloat16())), 0.2)
        return self.head(x.float())


def new_optimizer(name: str, execution: str, model: nn.Module) -> hft.FTPAdamW | hft.FTPSGD | hft.FTP:
    named, flags = model.named_parameters(), FLAGS[execution]
    if name == "sgd":
        return hft.FTPSGD(named, momentum=0.9, weight_decay=1e-3, exclude="head.*", **flags)
    if name == "adamw":
        return hft.FTPAdamW(named, weight_decay=1e-2, amsgrad=True, exclude="head.*", **flags)
    return hft.FTP(torch.optim.AdamW(named, weight_decay=1e-2, **flags), exclude="head.*", gradient="exact")


def new_training(args: argparse.Namespace) -> tuple[Training, torch.amp.GradScaler]:
    torch.manual_seed(0)
    model = Network()
    optimizer = new_optimizer(args.optimizer, args.execution, model)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=args.steps + 1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=5)
    return Training(model, optimizer, scheduler, torch.Generator().manual_seed(1)), scaler


def train_step(training: Training, scaler: torch.amp.GradScaler, images: Tensor, labels: Tensor) -> None:
    """One step from two batches; every seventh overflows, and every second is clipped, so unscaled by the scaler."""
    training.optimizer.zero_grad()
    for _ in range(2):
        chosen = torch.randint(len(images), (16,), generator=training.generator)
        scaler.scale(F.cross_entropy(training.model(images[chosen]), labels[chosen]) / 2).backward()
    first, *_ = training.model.parameters()
    if training.step % 7 == 3 and first.grad is not None:
        first.grad.view(-1)[0] = float("inf")
    if training.step % 2:
        scaler.unscale_(training.optimizer)
        nn.utils.clip_grad_norm_(training.model.parameters(), 1.0)
    scaler.step(training.optimizer)
    scaler.update()
    training.scheduler.step()
    training.step += 1


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--optimizer", choices=OPTIMIZERS, required=True)
    parser.add_argument("--execution", choices=FLAGS, required=True)
    args = parser.parse_args()

    torch.set_num_threads(1)
    drawn = torch.Generator().manual_seed(2)
    images, labels = torch.randn(256, 1, 8, 8, generator=drawn), torch.randint(10, (256,), generator=drawn)
    train_step(*new_training(args), images, labels)  # thrown away: loads kernels, a second with nothing in it to kill
    training, scaler = new_training(args)
    optimizer = training.optimizer
    assert isinstance(optimizer, (hft.FTPAdamW, hft.FTPSGD, hft.FTP))
    if saved := load(args.dir):
        training.load_state_dict(saved["training"])
        scaler.load_state_dict(saved["scaler"])
    ready(training.step)

    while training.step < args.steps:
        train_step(training, scaler, images, labels)
        if args.every and training.step % args.every == 0:
            save(args.dir, {"training": training.state_dict(), "scaler": scaler.state_dict()}, args.pause)
    assert optimizer.execution == args.execution, optimizer.execution
    radii = optimizer.radii()
    assert len(radii) == 6, radii  # all but the head's
    assert all(map(math.isfinite, radii.values())), radii  # runs of NaN would be equal
    finish(args.dir, {**training.state_dict(), "scaler": scaler.state_dict(), "radii": radii})


if __name__ == "__main__":
    main()
