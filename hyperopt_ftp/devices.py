"""What torch says of two devices in one operation, said of the arguments."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import tree

#: Its words differ from operation to operation; of a convolution it names types of tensors alone.
_WORDS = ("device", "should be the same")


def two_devices(error: RuntimeError, params: Any, **given: Any) -> Exception:
    """Of an error of torch, one that says which of ``given`` is elsewhere than the params; or the same.

    Afterwards, not before: a loss may move its batch itself, and lengths of sequences have to be on the CPU.
    """
    if type(error) is not RuntimeError or not any(word in str(error) for word in _WORDS):
        return error
    places = {x.device: None for x in tree.tensors(params)}
    for what, values in given.items():
        for path, x in tree.named(values):
            if isinstance(x, Tensor) and x.ndim and x.device not in places:
                entry = f"entry {path!r} of {what}" if path else what
                found = ValueError(
                    f"{entry}, of shape {tuple(x.shape)}, is on {x.device}, and the params on "
                    f"{' and '.join(map(str, places))}; move it there, by .to({str(next(iter(places)))!r})"
                )
                found.__cause__ = error
                return found
    return error
