"""K steps of training as one differentiable function; a strategy defines its derivative."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.autograd import forward_ad

from .. import tree
from ..hparams import as_tensor, complete
from ..optimizers.leafwise import check_params
from ..types import HParams, Optimizer, Params, State, check_optimizer
from .rng import Recorder, RngState, refuse_other_losses
from .steps import Steps, _functorch, alive, is_float, under_transform
from .strategy import Start, Strategy, Trained, check_strategy, check_trained, cotangent_leaves
from .unroll import Unroll
from .zero_order import ZeroOrder

__all__ = ["train"]


@_disable_dynamo  # inside a function that torch.compile traces, a graph break: steps are run as they are
def train(
    optimizer: Optimizer,
    train_loss: Callable[..., Tensor],
    params: Params,
    batches: Sequence[Any],
    *,
    hparams: HParams | None = None,
    state: State | None = None,
    strategy: Strategy | None = None,
) -> Trained:
    """Train for ``len(batches)`` steps, as one differentiable function of all that goes in.

    With ``g = d train_loss(params, batches[k]) / d params``, step k is
    ``params, state <- optimizer.update(g, state, params, hparams)``.
    The result can be differentiated in the hparams (those of the loss as well), the params, the state and the
    floating-point tensors of the batches: by ``backward``, by ``torch.autograd.grad`` and, in any nesting, by the
    transforms of ``torch.func``. How, and at what cost, is for the strategy to say; the values are always those of the
    plain loop. What requires no gradient costs nothing.

    Args:
        optimizer: a pure optimizer of the package, tuned ones and combinations included.
        train_loss: ``train_loss(params, batch) -> scalar``; with ``hparams["loss"]`` given,
            ``train_loss(params, batch, hparams["loss"])``. All that a derivative is taken in has to be an argument.
        params: pytree of floating-point tensors; where training starts.
        batches: a list or tuple, one entry for each step, or a tensor whose first dimension is the steps. Any other
            sequence is read entry by entry, more than once, and is constant.
        hparams: as ``optimizer.hparams`` (the default), and optionally ``"loss"``: a tree of the loss's own.
        state: the optimizer's, to train on; ``None``: ``optimizer.init(params, hparams)``, which is differentiated too.
        strategy: :class:`Unroll` by default; :class:`Forward`, :class:`Implicit`, :class:`ZeroOrder`, or an object of
            one's own (:class:`~hyperopt_ftp.hyper.Strategy`).

    Returns:
        ``(params, state, losses)``: where training ended, and the training loss before each step, shape ``(K,)``, which
        carries no graph.

    Raises:
        TypeError: an optimizer that is not pure, integer params, batches that are no sequence, no strategy.
        ValueError: no batches, a loss that is no scalar or has no graph, one that uses a tensor which requires grad and
            is no argument of ``train`` (its derivative would be lost).
        RuntimeError: inference mode; what the strategy raises.

    Attention runs by its formula here, since the fused kernels have no second derivatives, and functions compiled by
    ``torch.compile`` run as they are written.

    >>> import torch, hyperopt_ftp as hft
    >>> def loss(p, x): return ((p - x) ** 2).sum()
    >>> lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    >>> opt, w, x = hft.sgd(), torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    >>> run = hft.train(opt, loss, w, [x] * 3, hparams={**opt.hparams, "lr": lr})
    >>> run.losses
    tensor([1.0000, 0.6400, 0.4096], dtype=torch.float64)
    >>> loss(run.params, x).backward()
    >>> round(lr.grad.item(), 6)                        # d (1 - 2 lr)^6 / d lr = -12 (1 - 2 lr)^5
    -3.93216
    """
    check_optimizer("optimizer", optimizer)
    strategy = Unroll() if strategy is None else strategy
    check_strategy(strategy)
    batches = check_batches(batches)
    check_params(params)
    full = check_hparams(optimizer, hparams)
    check_arguments("train_loss", train_loss, 2, "loss" in full)
    if torch.is_inference_mode_enabled():
        raise RuntimeError("there are no gradients under torch.inference_mode(), so nothing would be trained; leave it")
    if state is None:
        state = optimizer.init(params, {name: value for name, value in full.items() if name != "loss"})
    start = Start(full, params, state, batches)
    leaves, rebuild = _flat(start)
    check_leaves(leaves)
    wanted = [is_float(x) and _tracked(x) and _differentiated(x) for x in leaves]
    transform = under_transform()
    asked = rebuild(wanted) if isinstance(batches, (list, tuple)) else rebuild(wanted)._replace(batches=False)
    derived = transform or any(wanted)
    steps = Steps(optimizer, train_loss, asked, derived, looked_at=derived or torch.is_grad_enabled())
    if not steps.derived:
        with torch.no_grad():
            return steps.loop(start)
    if transform and getattr(strategy, "exact", False):
        if any(wanted):
            _warn_of_float16(params)
        return steps.loop(start)
    places = [i for i, x in enumerate(leaves) if isinstance(x, Tensor) and _tracked(x)]
    own = strategy.generator if isinstance(strategy, ZeroOrder) else None
    recorder = Recorder(*[] if own is None else [own])
    job = _Job(strategy, steps, leaves, rebuild, places, transform, recorder, recorder.now())
    return job.trained(_Train.apply(job, *(leaves[i] for i in places)))


@dataclass
class _Job:
    """What a node of the graph has to know beside the tensors that it is a function of."""

    strategy: Any
    steps: Steps
    leaves: list[Any]  # of the start
    rebuild: Callable[[Sequence[Any]], Start]
    places: list[int]  # of the leaves that are inputs of the node
    transform: bool  # whether one of torch.func was active
    recorder: Recorder
    rng: RngState  # when training began
    residual: Any = None  # of a run without a transform
    losses: Any = None
    versions: list[tuple[Tensor, int]] = field(default_factory=list)  # of all that the run went by
    end: Any = None  # (params, state) with the dtypes of its tensors, which are outputs of the node, in their place

    def start(self, inputs: Sequence[Tensor]) -> Start:
        leaves = list(self.leaves)
        for i, x in zip(self.places, inputs, strict=True):
            leaves[i] = x
        return self.rebuild(leaves)

    def run(self, steps: Steps, inputs: Sequence[Tensor]) -> tuple[Trained, Any]:
        return check_trained(self.strategy, self.strategy.run(steps, self.start(inputs)))

    def outputs(self, trained: Trained) -> list[Tensor]:
        return [x for x in tree.leaves((trained.params, trained.state)) if isinstance(x, Tensor)]

    def trained(self, outputs: Sequence[Tensor]) -> Trained:
        """The node's outputs as what was trained."""
        rows, rebuild = tree.flatten(self.end)
        values = iter(outputs)
        params, state = rebuild([next(values) if isinstance(x, torch.dtype) else x for x in rows])
        return Trained(params, state, outputs[-1])

    def pullback(self, inputs: Sequence[Tensor], residual: Any, cotangents: Sequence[Tensor]) -> list[Tensor | None]:
        """Cotangents of the inputs from those of the floating-point outputs."""
        rows, rebuild = tree.flatten(self.end)
        values = iter(cotangents)
        floating = [isinstance(x, torch.dtype) and x.is_floating_point for x in rows]
        params, state = rebuild([next(values) if yes else None for yes in floating])
        start = self.start(inputs)
        self._check_versions()
        found = self.strategy.pullback(self.steps, residual, Trained(params, state, None))
        leaves = cotangent_leaves(self.strategy, start, found)
        return [_as(leaves[i], x) for i, x in zip(self.places, inputs, strict=True)]

    def _check_versions(self) -> None:
        for x, version in self.versions:
            if x._version != version:
                raise RuntimeError(
                    f"a tensor of shape {tuple(x.shape)} that train was given, or has returned, was modified by an "
                    "inplace operation before the backward pass, which needs it as it was; clone() it"
                )

    def again(self, inputs: Sequence[Tensor]) -> Any:
        """The residual of a run that is differentiable in the inputs."""
        trained, residual = self.recorder.again(self.rng, lambda: self.run(self.steps, inputs))
        refuse_other_losses(self.losses, trained.losses)
        return residual


class _Train(torch.autograd.Function):
    """The node of the graph: outputs are the tensors of (params, state), and the losses."""

    generate_vmap_rule = True

    @staticmethod
    def forward(job: _Job, *inputs: Tensor) -> tuple[Tensor, ...]:
        detached = [x.detach() for x in inputs]
        steps = replace(job.steps, apart=job.transform)
        steps.look_at_update(job.start(detached))
        trained, residual = job.run(steps, detached)
        # The node may not hold its own outputs: it would never be freed.
        complex_ones = [x for x in job.outputs(trained) if x.is_complex()]
        if complex_ones:
            raise ValueError(
                f"the optimizer's state has a complex tensor of shape {tuple(complex_ones[0].shape)}: derivatives go "
                "through real ones; keep torch.view_as_real of it"
            )
        job.end = tree.map_tree(lambda x: x.dtype if isinstance(x, Tensor) else x, (trained.params, trained.state))
        job.losses = trained.losses
        if not job.transform:
            job.residual = residual
            job.versions = [(x, x._version) for x in (*job.leaves, *job.outputs(trained)) if isinstance(x, Tensor)]
        return (*(x.detach() for x in job.outputs(trained)), trained.losses.detach())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        job, *tensors = inputs
        ctx.job = job
        ctx.differentiable = [is_float(x) for x in output[:-1]] + [False]
        ctx.mark_non_differentiable(*(x for x, yes in zip(output, ctx.differentiable, strict=True) if not yes))
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.shapes = [x.new_zeros(()).expand(x.shape) for x in output]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        job: _Job = ctx.job
        given = [alive(v) for v, yes in zip(cotangents, ctx.differentiable, strict=True) if yes]
        inputs = [alive(x) for x in ctx.saved_tensors]
        if job.transform:
            residual = job.again(inputs)
            found = job.recorder.again(job.rng, lambda: job.pullback(inputs, residual, given))
        elif torch.is_grad_enabled():
            found = _pullback_with_graph(job, inputs, given)
        else:
            with job.recorder.without_autocast():
                found = job.pullback(inputs, job.residual, given)
            if not _keeps_graph():
                job.residual, job.versions = None, []
        return (None, *found)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:  # the first is the job's
        """The transpose of the pullback, which is linear in its cotangents."""
        job: _Job = ctx.job
        inputs = [alive(x) for x in ctx.saved_tensors]
        residual = job.again(inputs)

        def back(cotangents: list[Tensor]) -> list[Tensor]:
            found = job.recorder.again(job.rng, lambda: job.pullback(inputs, residual, cotangents))
            pairs = [(v, x) for v, x in zip(found, inputs, strict=True) if is_float(x)]
            return [torch.zeros_like(x) if v is None else v for v, x in pairs]

        zeros = [x.contiguous() for x, yes in zip(ctx.shapes, ctx.differentiable, strict=True) if yes]
        forward = torch.func.vjp(back, zeros)[1]
        pairs = [(x, t) for x, t in zip(inputs, tangents[1:], strict=True) if is_float(x)]
        values = iter(forward([torch.zeros_like(x) if t is None else t for x, t in pairs])[0])
        return tuple(next(values) if yes else None for yes in ctx.differentiable)


def _keeps_graph() -> bool:
    """Whether the backward pass that runs was asked to keep what it has saved."""
    return torch._C._autograd._get_current_graph_task_keep_graph()  # pyright: ignore[reportAttributeAccessIssue]


def _pullback_with_graph(job: _Job, inputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """As ``create_graph=True`` asks for: the steps are made again, and differentiated as they are."""
    if not getattr(job.strategy, "exact", False):
        raise RuntimeError(
            f"a derivative of the derivative by {type(job.strategy).__name__} was asked for (create_graph=True), which "
            "has no graph here; take both by torch.func, such as torch.func.grad of a function that calls train"
        )
    job._check_versions()
    aliases = [x.view_as(x) for x in inputs]  # one input may depend on another outside
    trained = job.recorder.again(job.rng, lambda: job.steps.loop(job.start(aliases)))
    refuse_other_losses(job.losses, trained.losses)
    outputs = [x for x in job.outputs(trained) if is_float(x)]
    pairs = [(y, v) for y, v in zip(outputs, cotangents, strict=True) if y.requires_grad]
    if not pairs:
        return [None] * len(inputs)
    ys, vs = zip(*pairs, strict=True)
    return torch.autograd.grad(ys, aliases, vs, create_graph=True, allow_unused=True)


def check_hparams(optimizer: Optimizer, hparams: HParams | None) -> dict[str, Any]:
    """The optimizer's hparams, completed, and the loss's where they are given."""
    if not isinstance(hparams, dict) or "loss" not in hparams:
        return complete(hparams, optimizer.hparams)
    own = {name: value for name, value in hparams.items() if name != "loss"}
    for name, value in tree.named(hparams["loss"]):
        if not isinstance(value, (Tensor, int, float)):
            raise TypeError(f"hparams['loss'] must hold tensors or numbers, but {name!r} is a {type(value).__name__}")
    return {**complete(own, optimizer.hparams), "loss": tree.map_tree(as_tensor, hparams["loss"])}


def check_arguments(name: str, function: Callable[..., Any], count: int, own: bool) -> None:
    """Raise where a loss has no place for the loss's hparams that are given, or one for those that are not."""
    least, most = argument_counts(function)
    if own and most < count + 1:
        raise ValueError(f"hparams has an entry 'loss', and {name} has no argument for it: it is argument {count + 1}")
    if not own and least == count + 1:
        raise ValueError(
            f"{name} has {least} arguments, the last for the loss's hparams, but hparams has no entry 'loss'"
        )


def argument_counts(function: Callable[..., Any]) -> tuple[float, float]:
    """How many arguments a function takes by position, at least and at most."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 0, math.inf
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    most = math.inf if any(p.kind is p.VAR_POSITIONAL for p in parameters) else len(positional)
    return len([p for p in positional if p.default is p.empty]), most


def check_batches(batches: Any) -> Any:
    """``batches``, or its parts where it is one tensor."""
    if isinstance(batches, Tensor) and batches.ndim > 0:
        return check_batches(list(batches.unbind()))
    whole = isinstance(batches, (dict, str, Tensor))
    if whole or not hasattr(batches, "__len__") or not hasattr(batches, "__getitem__"):
        hint = "give a list with one dict for each step" if isinstance(batches, dict) else "use list(...)"
        raise TypeError(f"batches must be a sequence, it is read again; got {type(batches).__name__}; {hint}")
    if len(batches) == 0:
        raise ValueError("batches is empty: there is no step to differentiate through")
    return list(batches) if isinstance(batches, (list, tuple, torch.nn.ParameterList)) else batches


def check_leaves(leaves: Sequence[Any]) -> None:
    for x in leaves:
        if isinstance(x, Tensor) and x.is_inference():
            raise ValueError(
                f"a tensor of shape {tuple(x.shape)} was made under torch.inference_mode(), so no gradient can be "
                "taken with it; clone() it outside"
            )
        if isinstance(x, Tensor) and x.is_meta:
            raise ValueError(f"a tensor of shape {tuple(x.shape)} has no values: it is on the meta device")
        if isinstance(x, Tensor) and x.is_complex() and _tracked(x):
            raise ValueError(
                f"a complex tensor of shape {tuple(x.shape)} requires grad: derivatives are taken in real ones; pass "
                "torch.view_as_real of it, and view_as_complex inside"
            )
    if forward_ad._current_level >= 0 and not under_transform():
        raise ValueError("inside torch.autograd.forward_ad.dual_level tangents would be lost; use torch.func.jvp")


def _has_tangent(x: Tensor) -> bool:
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None


def _flat(start: Start) -> tuple[list[Any], Callable[[Sequence[Any]], Start]]:
    """All leaves, and the way back; those of batches in a sequence of somebody's own are left where they are."""
    if isinstance(start.batches, (list, tuple)):
        leaves, rebuild = tree.flatten(tuple(start))
        return leaves, lambda new: Start(*rebuild(new))
    leaves, rebuild = tree.flatten(tuple(start[:3]))
    return leaves, lambda new: Start(*rebuild(new), batches=start.batches)


def _tracked(x: Any) -> bool:
    """Whether a derivative of it, or a batch of it, may be asked for."""
    if not isinstance(x, Tensor):
        return False
    return (x.requires_grad and torch.is_grad_enabled()) or _functorch.is_functorch_wrapped_tensor(x)


def _differentiated(x: Tensor) -> bool:
    """Whether more than its batch is of interest: constants that are made under a transform have its wrapper too."""
    stack = _functorch.get_interpreter_stack() or []
    if any(level.key() == _functorch.TransformType.Jvp for level in stack):
        return len(stack) > 1 or _has_tangent(x)  # a tangent cannot be seen from every level
    while not x.requires_grad and _functorch.is_functorch_wrapped_tensor(x):
        x = _functorch.get_unwrapped(x)
    return x.requires_grad


def _as(cotangent: Tensor | None, x: Tensor) -> Tensor | None:
    return cotangent if cotangent is None else cotangent.to(x)


def _warn_of_float16(params: Params) -> None:
    if any(x.dtype == torch.float16 for x in tree.leaves(params)):
        warnings.warn(
            "under a torch.func transform the adjoints of float16 params are float16 too, where small ones vanish; "
            "without a transform they are kept in float32",
            UserWarning,
            stacklevel=3,
        )
