"""Errors of a training loss, or of an optimizer, that several checks raise."""

from __future__ import annotations

from torch import Tensor


def taken(what: str) -> RuntimeError:
    return RuntimeError(
        f"{what} takes the number of an hparam that a derivative is asked for (item(), float(), or a function that "
        "wants a number): what is made of that has no derivative. Use the tensor, or detach() it"
    )


def writes(what: str, how: str, target: Tensor | None) -> RuntimeError:
    """The error of code that writes into a tensor that it has not made."""
    shape = "" if target is None else f" of shape {tuple(target.shape)}"
    if what == "the optimizer":
        return RuntimeError(
            f"the optimizer writes in place{how} into a tensor{shape} that it has not made: the step before it, or the "
            "same step computed again, would read what was written. Return new tensors: m = b * m + g"
        )
    return RuntimeError(
        f"{what} writes in place{how} into a tensor{shape} that it has not made, such as "
        "BatchNorm's running statistics; a step that is computed twice would write twice. Put such modules into eval "
        "mode by eval(), make BatchNorm keep no statistics by torch.func.replace_all_batch_norm_modules_(net), or give "
        "functional_call clones of the buffers"
    )
