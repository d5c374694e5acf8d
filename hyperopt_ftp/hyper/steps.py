"""The steps that are differentiated: an optimizer, its training loss, and one step of them as a pure function."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from .. import tree
from ..types import Optimizer, Params, State
from .mutation import refuse_mutation, refuse_other_weights
from .rng import Recorder
from .strategy import Start, Trained

__all__ = ["Gradient", "Steps", "pull", "under_transform"]

_functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]


class Gradient(NamedTuple):
    """A training gradient at leaves of its own, with its graph where that was asked for."""

    loss: Tensor
    grads: list[Tensor]
    params: list[Tensor]  # the leaves; all of the params
    batch: list[Tensor]  # the leaves; those of the batch that are wanted


@dataclass(frozen=True)
class Steps:
    """K steps: ``params, state <- optimizer.update(d train_loss(params, batch[, hparams["loss"]]) / d params, ...)``.

    Attributes:
        optimizer: a pure optimizer.
        train_loss: ``train_loss(params, batch) -> scalar``, or with a third argument where hparams has ``"loss"``.
        wanted: in place of every tensor of the start, whether a derivative in it is asked for. ``False`` in the place
            of batches that are not a list or tuple.
        derived: whether anything is differentiated at all; if not, the loss may write and use any kernel.
        looked_at: whether a loss that uses what requires grad and is no argument is refused.
        apart: whether the steps run inside an ``autograd.Function``, with the transforms around it switched off.
    """

    optimizer: Optimizer
    train_loss: Callable[..., Tensor]
    wanted: Start
    derived: bool = True
    looked_at: bool = True
    apart: bool = False

    def step(self, params: Params, state: State, batch: Any, hparams: dict[str, Any]) -> tuple[Params, State, Tensor]:
        """One step and its training loss, differentiable in all arguments, under ``torch.func`` and without."""
        if under_transform():
            if self.apart:
                self._look_for_strangers(params, batch, hparams)
            grads, loss = torch.func.grad_and_value(self._loss_at)(params, batch, hparams)
        else:
            leaves, rebuild = tree.flatten(params)
            with torch.enable_grad():
                # Aliases: one param may be made of another, and its derivative is to be partial.
                leaves = [x.view_as(x) if x.requires_grad else x.detach().requires_grad_() for x in leaves]
                loss = self._loss_at(rebuild(leaves), batch, hparams)
                grads = rebuild(_grad(loss, leaves, create_graph=True))
        params, state = self.update(grads, state, params, hparams)
        return params, state, loss

    def loop(self, start: Start) -> Trained:
        """The plain loop: differentiable under a transform or where grad mode is on, else without any graph."""
        params, state, losses = start.params, start.state, []
        graph = under_transform() or torch.is_grad_enabled()
        for k in range(len(start.batches)):  # a sequence of somebody's own may not know where it ends
            batch = start.batches[k]
            if graph:
                params, state, loss = self.step(params, state, batch, start.hparams)
            else:
                found = self.gradient(params, batch, start.hparams)
                params, state = self.update(refill(params, found.grads), state, params, start.hparams)
                loss = found.loss
            losses.append(loss.detach())
        return Trained(params, state, torch.stack(losses))

    def gradient(
        self, params: Params, batch: Any, hparams: dict[str, Any], wanted_batch: Any = False, *,
        graph: bool = False, again: bool = False,
    ) -> Gradient:  # fmt: skip
        """The training gradient at new leaves. Not under a transform.

        Args:
            params: at which point.
            batch: of this step; ``wanted_batch`` says which of its tensors are new leaves as well.
            hparams: their tensors that require grad are leaves, made by :func:`fresh`.
            graph: keep the graph, for derivatives of the gradient in all of these leaves.
            again: the step has been made before, and what its loss does was looked at then.
        """
        leaves, at = fresh(params)
        if wanted_batch is False and self.derived and not again:
            for x in tree.leaves(batch):
                if isinstance(x, Tensor) and x.requires_grad:
                    raise ValueError(f"{_stranger(x, 'a sequence of batches that is no list')}; or pass a list")
        extra, batch = fresh(batch, wanted_batch)
        knobs = [x for x in tree.leaves(hparams) if isinstance(x, Tensor) and x.requires_grad]
        known = [*leaves, *extra, *knobs]
        with torch.enable_grad():
            watch = None if again or not self.derived else refuse_mutation(knobs)
            with watch or nullcontext(), refuse_outer_tensors() if self.apart else nullcontext():
                loss = self._loss_at(at, batch, hparams)
            if self.looked_at and not again:
                refuse_strangers(loss, known)
            with refuse_other_weights(known) if watch and watch.has_hooks else nullcontext():
                grads = _grad(loss, leaves, create_graph=graph)
        return Gradient(loss if graph else loss.detach(), grads, leaves, extra)

    def update(self, grads: Params, state: State, params: Params, hparams: dict[str, Any]) -> tuple[Params, State]:
        own = {name: value for name, value in hparams.items() if name != "loss"} if "loss" in hparams else hparams
        return self.optimizer.update(grads, state, params, own)

    def look_at_update(self, start: Start) -> None:
        """Raise where the optimizer's update itself uses a tensor that a derivative is taken in, by a closure."""
        _, (hparams, params, state) = fresh(tuple(start[:3]), False)
        zeros, recorder = tree.map_tree(torch.zeros_like, params), Recorder()
        with torch.enable_grad(), refuse_outer_tensors(True, "the optimizer") if self.apart else nullcontext():
            outputs = recorder.again(recorder.now(), lambda: self.update(zeros, state, params, hparams))
        for x in floats(outputs):
            if x.requires_grad and not under_transform():
                refuse_strangers(x, (), "the optimizer")

    def _loss_at(self, params: Params, batch: Any, hparams: dict[str, Any]) -> Tensor:
        extra = (hparams["loss"],) if "loss" in hparams else ()
        with twice_differentiable() if self.derived else nullcontext():
            loss = check_scalar("train_loss", self.train_loss(params, batch, *extra))
        if not _tracked_here(loss):
            raise ValueError(_NO_GRAPH)
        return loss

    def _look_for_strangers(self, params: Params, batch: Any, hparams: dict[str, Any]) -> None:
        """An evaluation of the loss at the level of the step itself, where tensors from further out stand out."""
        recorder, extra = Recorder(), (hparams["loss"],) if "loss" in hparams else ()
        with refuse_outer_tensors(leaves_too=True), twice_differentiable(), torch.no_grad():
            recorder.again(recorder.now(), lambda: self.train_loss(params, batch, *extra))


class _Shared:
    """Settings of the whole process: entered by the first thread that needs them and left by the last."""

    def __init__(self) -> None:
        self._lock, self._inside, self._stack = threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._stack.enter_context(sdpa_kernel(SDPBackend.MATH))
                self._stack.enter_context(torch.compiler.set_stance("force_eager"))
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._stack.close()


_second_order = _Shared()


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Attention by its formula, since fused kernels have no second derivative; compiled functions run as written."""
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)  # it would hold a copy of every step's params, with their graphs
    try:
        with _second_order:
            yield
    finally:
        torch.set_autocast_cache_enabled(cached)


def refuse_strangers(loss: Tensor, known: Sequence[Tensor], what: str = "train_loss") -> None:
    """Raise where the graph of a loss ends in a leaf that is none of the known ones."""
    names = {id(x) for x in known}
    if loss.is_leaf and id(loss) not in names:
        raise ValueError(_stranger(loss, what))
    seen: set[Node] = set()
    stack = [loss.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, Tensor) and id(leaf) not in names:
            raise ValueError(_stranger(leaf, what))
        stack += [after for after, _ in node.next_functions]


class refuse_outer_tensors(TorchFunctionMode):  # a context manager
    """Raise where the code inside uses a tensor of a transform further out; ``leaves_too``: or one that requires grad.

    Inside an ``autograd.Function`` the transforms around it are switched off: such a tensor would count as a constant.
    """

    def __init__(self, leaves_too: bool = False, what: str = "train_loss") -> None:
        self._leaves_too, self._what = leaves_too, what

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        top = _functorch.peek_interpreter_stack()
        level = -1 if top is None else top.level()
        for x in tree.leaves((args, kwargs)):
            if isinstance(x, Tensor):
                wrapped = _functorch.is_functorch_wrapped_tensor(x)
                # A level above the present one is none that the code inside has opened.
                if _functorch.maybe_get_level(x) > level if wrapped else self._leaves_too and x.requires_grad:
                    raise ValueError(_stranger(x, self._what))
        return func(*args, **(kwargs or {}))


def _stranger(x: Tensor, what: str) -> str:
    return (
        f"{what} uses a tensor of shape {tuple(x.shape)} that a derivative is taken in (it requires grad, or a "
        "torch.func transform tracks it) and that is no argument of train: its derivative would be lost. Pass it in "
        "hparams['loss'], as a param or in the batch (for an optimizer: in its hparams); or hold it fixed by detach() "
        "or requires_grad_(False)"
    )


_NO_GRAPH = (
    "train_loss returned a loss without a graph: it does not depend on the params, or was detached from them (detach, "
    "no_grad, item, inference mode), so nothing would be trained"
)


def _tracked_here(loss: Tensor) -> bool:
    """Whether a loss depends on what the innermost gradient is taken in."""
    top = _functorch.peek_interpreter_stack()
    if top is None:
        return loss.requires_grad
    return _functorch.is_functorch_wrapped_tensor(loss) and _functorch.maybe_get_level(loss) == top.level()


def _grad(loss: Tensor, leaves: list[Tensor], create_graph: bool) -> list[Tensor]:
    with twice_differentiable():  # what a checkpoint computes again is computed alike
        grads = torch.autograd.grad(loss, leaves, create_graph=create_graph, allow_unused=True)
    if all(g is None for g in grads):
        raise ValueError(_NO_GRAPH)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(grads, leaves, strict=True)]


def check_scalar(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.ndim != 0:
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"{name} must return a scalar tensor (shape ()), got {got}; reduce it, for instance by .mean()"
        )
    return value


def under_transform() -> bool:
    """Whether a ``torch.func`` transform is active: there, leaves of our own would cut its graph."""
    return _functorch.peek_interpreter_stack() is not None


def alive(x: Tensor) -> Tensor:
    """Without the wrapper of a transform that has ended, as the pullback of ``torch.func.vjp`` meets it."""
    return _functorch.unwrap_if_dead(x)


def fresh(values: Any, wanted: Any = True, wide: bool = False) -> tuple[list[Tensor], Any]:
    """New leaves for the floating-point tensors of a tree, and the tree with them in place; all else is detached.

    Args:
        values: a tree.
        wanted: a tree of its structure that says which tensors become leaves, or one answer for all.
        wide: leaves of 16-bit tensors are float32.
    """
    rows, rebuild = tree.flatten(values)
    mask = [wanted] * len(rows) if isinstance(wanted, bool) else tree.leaves(wanted)
    new, leaves = [], []
    for x, is_wanted in zip(rows, mask, strict=True):
        if isinstance(x, Tensor):
            x = x.detach()
            if is_wanted and x.is_floating_point():
                x = (tree.working(x) if wide else x).requires_grad_()
                leaves.append(x)
        new.append(x)
    return leaves, rebuild(new)


def refill(values: Any, new: Sequence[Any], wanted: Any = True) -> Any:
    """``values`` with ``new`` in the places of :func:`fresh`'s leaves."""
    return _filled(values, new, wanted, keep=True)


def cotangents_of(values: Any, found: Sequence[Any], wanted: Any = True) -> Any:
    """A tree like ``values`` with ``found`` in the places of :func:`fresh`'s leaves, and ``None`` elsewhere."""
    return _filled(values, found, wanted, keep=False)


def _filled(values: Any, new: Sequence[Any], wanted: Any, keep: bool) -> Any:
    rows, rebuild = tree.flatten(values)
    mask = [wanted] * len(rows) if isinstance(wanted, bool) else tree.leaves(wanted)
    rest = iter(new)
    pairs = zip(rows, mask, strict=True)
    return rebuild([next(rest) if wants and is_float(x) else x if keep else None for x, wants in pairs])


def floats(values: Any) -> list[Tensor]:
    """The floating-point tensors of a tree."""
    return [x for x in tree.leaves(values) if is_float(x)]


def known(cotangents: Any) -> list[Tensor]:
    """The cotangents of the floating-point tensors: there are none of others."""
    return [x for x in tree.leaves(cotangents) if x is not None]


def is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def pull(
    outputs: Sequence[Tensor], cotangents: Sequence[Tensor | None], inputs: Sequence[Tensor], *,
    again: bool = False, rows: bool = False, graph: bool = False,
) -> list[Tensor | None]:  # fmt: skip
    """Vector-Jacobian product; ``None`` is zero. Through a graph in 16 bits cotangents go scaled by a power of two.

    Args:
        outputs, cotangents, inputs: as in ``torch.autograd.grad``.
        again: the graph is kept for another one.
        rows: cotangents have a first dimension, of several products at once.
        graph: the result can be differentiated.
    """
    pairs = [(y, v) for y, v in zip(outputs, cotangents, strict=True) if v is not None and y.requires_grad]
    if not pairs or not inputs:
        return [None] * len(inputs)
    ys, vs = [y for y, _ in pairs], [v for _, v in pairs]
    narrow = any(y.dtype in (torch.float16, torch.bfloat16) for y in ys)
    scale = _power_of_two(vs) if narrow else None
    if scale is not None:
        vs = [(tree.working(v) * scale.to(v.device)).to(y.dtype) for y, v in zip(ys, vs, strict=True)]
    try:
        with twice_differentiable():
            found = torch.autograd.grad(
                ys, inputs, vs, retain_graph=again or graph, create_graph=graph, allow_unused=True,
                is_grads_batched=rows,
            )  # fmt: skip
    except RuntimeError as error:
        if rows and any(text in str(error) for text in ("vmap", "Batching rule")):
            raise RuntimeError(f"vmap cannot take this loss: {error}; take hft.Forward(chunk=1)") from error
        if not any(text in str(error) for text in _ONCE):
            raise
        raise RuntimeError(
            f"train_loss, or the optimizer, has no second derivative ({error}); use operations that have one, or "
            "strategy=hft.ZeroOrder(...), which needs none"
        ) from error
    return list(found) if scale is None else [None if x is None else tree.working(x) / scale.to(x) for x in found]


_ONCE = ("is not implemented", "double backward", "differentiate twice")


def _power_of_two(vs: Sequence[Tensor]) -> Tensor:
    """What brings the largest entry between 8 and 16: far from both ends of float16."""
    tops = [tree.working(v).abs().amax().to(vs[0].device).double() for v in vs if v.numel()]
    top = torch.stack(tops or [torch.ones((), dtype=torch.float64)]).amax()
    usable = top.isfinite() & (top > 0)
    exponent = torch.frexp(torch.where(usable, top, 1.0)).exponent
    return torch.ldexp(torch.ones_like(top), 4 - exponent)
