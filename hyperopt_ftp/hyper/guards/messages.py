"""Whose code is checked, and the errors that several guards raise."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Subject(NamedTuple):
    """A function of the user's."""

    name: str
    on_write: str  # why it may not write, and what to do
    reads_data: bool = False  # whether its ``data`` is a number taken; in a loss it is what ``detach()`` is
    of: str = "train"
    knobs: str = "an hparam"
    pass_it: str = "in hparams['loss'], as a param or in the batch (for an optimizer: in its hparams)"


LOSS = Subject(
    "train_loss",
    "such as a running statistic or a meter: a step that is computed twice would write twice. Put modules that keep "
    "statistics (BatchNorm, spectral_norm) into eval mode by eval(), make BatchNorm keep none by "
    "torch.func.replace_all_batch_norm_modules_(net), or hand them on by hft.of_module(net, ...); a mean "
    "over the steps is that of train(...).losses",
)
LOSSES = LOSS._replace(name="train_loss or the outer loss")
LAYER = Subject(
    "the layer in hft.remat",
    "and would write again each time that it is computed again. Put modules that keep statistics (BatchNorm) into eval "
    "mode, make BatchNorm keep none by torch.func.replace_all_batch_norm_modules_(net), or leave such layers out",
    of="hft.remat",
    pass_it="to it: hft.remat(lambda w, x: ..., w, x); or give the module that it is a parameter of as the layer",
)
UPDATE = Subject(
    "the optimizer",
    "and the step before it, or the same step computed again, would read what was written. Return new tensors: "
    "m = b * m + g",
    reads_data=True,
)
EQUATION = Subject("the equation", "", of="root", knobs="x or theta", pass_it="in theta")


def reads_number(who: Subject) -> RuntimeError:
    return RuntimeError(
        f"{who.name} takes the number of {who.knobs} that a derivative is asked for (item(), float(), or a function "
        "that wants a number): what is made of that has no derivative. Use the tensor, or detach() it"
    )


def writes(who: Subject, how: str, target: Tensor | None) -> RuntimeError:
    """The error for code that writes into a tensor that it has not made."""
    shape = "" if target is None else f" of shape {tuple(target.shape)}"
    return RuntimeError(f"{who.name} writes in place{how} into a tensor{shape} that it has not made, {who.on_write}")


def captured(who: Subject, x: Tensor) -> ValueError:
    """The error for code that uses a tensor that a derivative is taken in and that is none of its arguments."""
    return ValueError(
        f"{who.name} uses a tensor of shape {tuple(x.shape)} that a derivative is taken in (it requires grad, or a "
        f"torch.func transform tracks it) and that is no argument of {who.of}: its derivative would be lost. Pass it "
        f"{who.pass_it}; or hold it fixed by detach() or requires_grad_(False)"
    )
