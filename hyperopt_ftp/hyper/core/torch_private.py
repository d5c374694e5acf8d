"""What active ``torch.func`` transforms, autograd tasks and modules reveal; torch has no public way to ask."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack, temporarily_pop_interpreter_stack
from torch.autograd import forward_ad
from torch.nn.utils.stateless import _untie_named_tensors_map
from torch.overrides import _get_current_function_mode_stack, has_torch_function
from torch.utils._python_dispatch import TorchDispatchMode

_functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
_autograd: Any = torch._C._autograd  # pyright: ignore[reportAttributeAccessIssue]


F = TypeVar("F", bound=Callable[..., Any])


def uncompiled(function: F) -> F:
    """A graph break inside a function that torch.compile traces: what is called runs as it is.

    Without torch._dynamo, which takes a second to import, nothing is traced, and it is called directly.
    """
    outside: Any = _disable_dynamo(function)

    @wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        traced = torch.compiler.is_compiling() or "torch._dynamo" in sys.modules  # what is traced takes the first
        return (outside if traced else function)(*args, **kwargs)

    return called  # pyright: ignore[reportReturnType]


class DispatchMode(TorchDispatchMode):
    """Kept out of what torch.compile traces, as torch's are, but only once somebody has imported torch._dynamo."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __enter__(self) -> Any:
        kind: Any = type(self)
        if "torch._dynamo" in sys.modules and not hasattr(kind.__torch_dispatch__, "__wrapped__"):
            kind.__torch_dispatch__ = _disable_dynamo(kind.__torch_dispatch__)
        return super().__enter__()


def under_transform() -> bool:
    return _functorch.peek_interpreter_stack() is not None


def kinds_of_transforms() -> list[Any]:
    """Of those that are active, the outermost first."""
    return [level.key() for level in _functorch.get_interpreter_stack() or []]


def refuse_forward_twice(name: str) -> None:
    """Raise under two forward transforms: the tangents of an autograd.Function have no tangents, in silence (2.13)."""
    if kinds_of_transforms().count(_functorch.TransformType.Jvp) > 1:
        raise RuntimeError(
            f"{name} under two forward transforms (torch.func.jvp, jacfwd): torch loses the second derivative of an "
            "autograd.Function there; take a reverse one for the inner or the outer one: torch.func.hessian, jacrev"
        )


def outside_transforms() -> Any:
    """A context in which plain tensors are computed with as if no transform were active."""
    return temporarily_clear_interpreter_stack()


def run_backward(
    ys: Sequence[Tensor], xs: Sequence[Tensor], vs: Sequence[Tensor], retain_graph: bool, create_graph: bool
) -> tuple[Any, ...]:
    """``torch.autograd.grad(ys, xs, vs, retain_graph, create_graph, allow_unused=True)`` for cotangents that fit.

    Without its checks in Python, which cost as much as some operations of torch: 4 % of a small training.
    """
    if torch.compiler.is_compiling() or not xs or has_torch_function((*ys, *xs)):
        return torch.autograd.grad(ys, xs, vs, retain_graph, create_graph, allow_unused=True)
    run: Any = torch.autograd.Variable._execution_engine.run_backward
    return run(tuple(ys), tuple(vs), retain_graph, create_graph, tuple(xs), True, False)


def keeps_graph() -> bool:
    """Whether the running backward pass retains the graph; true if none runs."""
    return _autograd._get_current_graph_task_keep_graph()


def pins(device: torch.device) -> bool:
    """Whether a tensor that goes from there to the CPU without blocking gets pinned memory by torch."""
    return device.type in ("cuda", torch._C._get_privateuse1_backend_name())


def unwrap_dead(x: Tensor) -> Tensor:
    """The tensor inside the wrapper of a transform that has ended, as the pullback of ``torch.func.vjp`` gets it."""
    return _functorch.unwrap_if_dead(x)


def values_of(x: Tensor) -> Tensor:
    while _functorch.is_functorch_wrapped_tensor(x):
        x = _functorch.get_unwrapped(x)
    return x.detach()


def is_batched(x: Tensor) -> bool:
    return _functorch.is_batchedtensor(x) or _functorch.is_legacy_batchedtensor(x)


def saved_tensor_hooks() -> Any:
    """The innermost hooks on saved tensors, as activation checkpointing sets them; ``None``: there are none."""
    return _autograd._top_saved_tensors_default_hooks(True)


def inside_mode(kind: type) -> bool:
    """Whether a ``TorchFunctionMode`` of that class is active."""
    return any(isinstance(mode, kind) for mode in _get_current_function_mode_stack())


def has_saved_tensor_hooks() -> bool:
    return saved_tensor_hooks() is not None


def refuse_saved_tensor_hooks(why: str | None) -> str | None:
    """From now on hooks on saved tensors are an error with that text; ``None``: they are allowed. Returns what was so.

    Each step asks, and torch's context manager takes ten times as long.
    """
    before = _autograd._saved_tensors_hooks_get_disabled_error_message()
    if why is None:
        _autograd._saved_tensors_hooks_enable()
    else:
        _autograd._saved_tensors_hooks_disable(why)
    return before


def tracked(x: Any) -> bool:
    """Whether a derivative of it, or a batch of it, may be asked for."""
    if not isinstance(x, Tensor):
        return False
    return (x.requires_grad and torch.is_grad_enabled()) or _functorch.is_functorch_wrapped_tensor(x)


def _levels_of_derivatives(x: Tensor, tangents: bool = True) -> Iterator[int]:
    """Of the transforms that differentiate it, the innermost first; -1: autograd. Constants have their wrappers too."""
    kinds = {level.level(): level.key() for level in _functorch.get_interpreter_stack() or []}
    while _functorch.is_functorch_wrapped_tensor(x):
        level = _functorch.maybe_get_level(x)
        forward = tangents and kinds.get(level) == _functorch.TransformType.Jvp
        if x.requires_grad or (forward and _has_tangent(x, level)):
            yield level
        x = _functorch.get_unwrapped(x)
    if x.requires_grad:
        yield -1


def _has_tangent(x: Tensor, level: int) -> bool:
    """Whether it has one of the forward transform of that level, which alone sees it."""
    with ExitStack() as stack:
        while top_level() > level:
            stack.enter_context(temporarily_pop_interpreter_stack())
        return forward_ad.unpack_dual(x).tangent is not None


def differentiated(x: Tensor) -> bool:
    """Whether a derivative may be asked for, by autograd or by a transform."""
    return x.requires_grad or next(_levels_of_derivatives(x), None) is not None


def differentiated_outside(x: Tensor, level: int, tangents: bool = False) -> bool:
    """Whether a derivative of it may be asked for by transforms below a level, or by autograd, and none by others.

    ``tangents``: those of forward transforms count too, which ``no_grad`` does not end.
    """
    return next(_levels_of_derivatives(x, tangents), level) < level


def top_level() -> int:
    top = _functorch.peek_interpreter_stack()
    return -1 if top is None else top.level()


def level_of(x: Tensor) -> int:
    return _functorch.maybe_get_level(x) if _functorch.is_functorch_wrapped_tensor(x) else -1


def has_graph(x: Tensor) -> bool:
    """Whether it depends on what the innermost gradient is taken in."""
    return level_of(x) == top_level() if under_transform() else x.requires_grad


def by_place(net: nn.Module, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by name, tied ones under each place that they have in a module, but none twice.

    ``functional_call`` goes by all names: of a module that lies in two places it keeps what it has put in (2.13).
    """
    places = {f"{at}.{n}" if at else n for at, m in net.named_modules() for n in (*m._parameters, *m._buffers)}
    return {name: x for name, x in _untie_named_tensors_map(net, values).items() if name in places}
