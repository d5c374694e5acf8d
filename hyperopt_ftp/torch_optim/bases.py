"""What moves the weights: an update of our own, in one go with the projection, or a torch optimizer that is given."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..anchored.rule import Spec
from ..hparams import check_hparam
from ..kernels.layers import SGD, AdamW, Amp
from ..tree import working
from .backends import BACKENDS, Part, by_device_and_dtype
from .checks import check_flags
from .store import choose

if TYPE_CHECKING:
    from .optimizer import DropIn

__all__ = ["Base", "Extra", "Formula", "Given", "Own"]


class Base(ABC):
    """What moves the weights of a drop-in optimizer.

    Attributes:
        strict: whether the flags of a group are meant for our backends.
        options: entries of a group that are ours, with their defaults.
        specs: state that is made and read for it.
        whole: whether a checkpoint has all that a group uses of it or none.
    """

    strict: bool
    options: Mapping[str, Any] = MappingProxyType({})
    specs: tuple[Spec, ...] = ()
    whole: bool = False

    @abstractmethod
    def state_of(self, opt: DropIn, p: Tensor, constrained: bool) -> dict[str, Any]:
        """A parameter's state, into which that of the hold goes."""

    @abstractmethod
    def check_ready(self, opt: DropIn) -> None:
        """``RuntimeError`` where a step cannot begin."""

    @abstractmethod
    def step(self, opt: DropIn) -> None:
        """A step with what holds the weights. After an error nothing has changed, unless a given base has moved."""

    def moments(self, group: dict[str, Any]) -> tuple[str, ...]:
        """Which of its state a step of a group takes, in the order of ``Columns.moments``."""
        return ()

    def attach(self, opt: DropIn) -> None:
        """Take over the optimizer's groups and state as they are now, where they are shared."""

    def begin_group(self, group: dict[str, Any]) -> None:
        """Before the state of a group's parameters is made."""

    def begin(self, p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Put into a parameter's state what its step needs of the base's, once the hold's is there."""

    def check(self, group: dict[str, Any]) -> None:
        """Of a new group, of one that a checkpoint brings along, and of one that was changed since."""

    def check_weights(self, opt: DropIn, group: dict[str, Any]) -> None:
        """Whether the options of a group can be had with its weights."""

    def check_state(self, state: dict[str, Any]) -> None:
        """``ValueError`` where it cannot load a checkpoint's state."""


class Formula(NamedTuple):
    """An update that kernels have."""

    kernel: type[AdamW] | type[SGD]
    numbers: tuple[str, ...]  # group entries that it takes after lr, in its order; pairs one after the other
    flags: tuple[str, ...]  # of them and others, those that are bools
    specs: tuple[Spec, ...]  # beside the number of steps
    moments: Callable[[dict[str, Any]], tuple[str, ...]]  # those that a group uses
    whole: bool  # whether a checkpoint has all of them or none
    check: Callable[[dict[str, Any]], None] | None = None  # what else a group's options must be
    begin: Callable[[dict[str, Any], dict[str, Any]], None] | None = None  # state and group, before blank moments


class Own(Base):
    """An update of our own: a step is one call of the picked backend."""

    strict: bool = True

    def __init__(self, formula: Formula) -> None:
        self.formula: Formula = formula
        self.specs: tuple[Spec, ...] = (Spec("step", "count"), *formula.specs)
        self.whole: bool = formula.whole

    def moments(self, group: dict[str, Any]) -> tuple[str, ...]:
        return self.formula.moments(group)

    def state_of(self, opt: DropIn, p: Tensor, constrained: bool) -> dict[str, Any]:
        return opt.state[p]

    def begin(self, p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32)
        if self.formula.begin is not None:
            self.formula.begin(state, group)
        for key in self.moments(group):
            if state.get(key) is None:
                state[key] = torch.zeros_like(working(p.detach()))

    def check_ready(self, opt: DropIn) -> None:
        if hasattr(opt, "_accelerator_graph_capture_health_check"):  # capture needs capturable=True
            opt._accelerator_graph_capture_health_check()  # pyright: ignore
        else:
            opt._cuda_graph_capture_health_check()  # torch 2.10

    def check(self, group: dict[str, Any]) -> None:
        for name in ("lr", *(name for name in self.formula.numbers if name not in self.formula.flags)):
            check_hparam(name, group[name])
        check_flags(group, ("maximize", "capturable", "lean", *self.formula.flags), ("foreach", "fused"))
        if self.formula.check is not None:
            self.formula.check(group)
        if group["fused"] and group["foreach"]:
            raise RuntimeError("fused and foreach cannot both be True; choose one, or neither")
        if group["differentiable"] is not False:
            raise ValueError(
                f"differentiable must be False, got {group['differentiable']!r}: a step works in place; hft.ftp is the "
                "differentiable rule"
            )

    def check_weights(self, opt: DropIn, group: dict[str, Any]) -> None:
        if group["fused"]:
            opt._pick(group)
        narrow = [p.dtype for p in group["params"] if p.dtype != torch.float32]
        if group["lean"] and narrow:
            raise ValueError(
                f"lean=True keeps the deviation in bfloat16 and needs float32 weights, got {narrow[0]}; for 16-bit "
                "weights the deviation is the master copy"
            )

    def step(self, opt: DropIn) -> None:
        scale, found_inf = getattr(opt, "grad_scale", None), getattr(opt, "found_inf", None)
        if found_inf is not None and found_inf.device.type == "cpu" and found_inf.item():
            return  # not even the state of a first step
        work: dict[str, list[Part]] = {}
        for group, execution, columns in opt._work():
            for part in by_device_and_dtype(columns):
                like = part.weights[0]
                amp = Amp(group["maximize"], _near(scale, like), _near(found_inf, like))
                work.setdefault(execution, []).append(Part(part, self._numbers(group, like), group, opt._holding, amp))
        for execution, parts in work.items():
            BACKENDS[execution].step_(parts)

    def _numbers(self, group: dict[str, Any], like: Tensor) -> AdamW | SGD:
        lr, rest = group["lr"], [group[name] for name in self.formula.numbers]
        if isinstance(lr, Tensor):  # a number where that costs no sync, else on the weights' device
            on_device = torch.compiler.is_compiling() or group["capturable"] or lr.device.type != "cpu"
            lr = lr.to(like.device, non_blocking=True) if on_device else lr.item()
        flat = chain.from_iterable(x if isinstance(x, (tuple, list)) else [x] for x in rest)
        # Numbers beside lr are Python's; a tensor is read, which waits for its device.
        return self.formula.kernel._make([lr, *(x.item() if isinstance(x, Tensor) else x for x in flat)])


class Extra(NamedTuple):
    """What a class without anchors does around the step of a base that is given."""

    options: dict[str, Any]  # entries of a group, with their defaults
    specs: tuple[Spec, ...]
    check: Callable[[dict[str, Any]], None]  # a group's options
    step: Callable[[DropIn], None]  # steps the base; after an error nothing has changed


class Given(Base):
    """Any :class:`torch.optim.Optimizer` that steps once for each gradient. Groups and state are shared with it.

    A step needs nothing of its state; only shapes are checked, and layouts fitted for its own kernels.
    """

    strict: bool = False

    def __init__(self, optimizer: torch.optim.Optimizer, extra: Extra | None = None) -> None:
        self.optimizer: torch.optim.Optimizer = optimizer
        self.extra: Extra | None = extra
        if extra is not None:
            self.options: Mapping[str, Any] = extra.options
            self.specs: tuple[Spec, ...] = extra.specs
        method = getattr(optimizer, "_init_group", None)
        #: How many lists torch's method that makes a group's state fills; ``None``: there is no such method.
        self._columns: int | None = None if method is None else len(inspect.signature(method).parameters) - 1
        self._waiting: dict[Tensor, dict[str, Any]] = {}
        self._shared: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shared": None}  # an optimizer shares its own when it is made again

    def groups(self, title: str, options: dict[str, Any], refused: type) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Groups and defaults for a wrapper of the class ``title`` that has ``options``."""
        base = self.optimizer
        if not isinstance(base, torch.optim.Optimizer) or isinstance(base, (torch.optim.LBFGS, refused)):
            got = f"the class {base.__name__} itself" if isinstance(base, type) else type(base).__name__
            raise TypeError(
                f"{title} wraps a torch.optim.Optimizer that steps once for each gradient (not LBFGS, not an anchored "
                f"one), got {got}"
            )
        taken = [name for name in (*options, "constrained") if name in base.defaults]
        if taken:
            raise ValueError(
                f"{title} keeps {taken} in the groups, where {type(base).__name__} has options of these names"
            )
        groups = [{**group} for group in base.param_groups]
        for group in groups:
            if "param_names" in group:
                group["params"] = list(zip(group["param_names"], group["params"], strict=True))
        return groups, {**base.defaults, **options}

    def check_ready(self, opt: DropIn) -> None:
        if self.optimizer.param_groups is not opt.param_groups or self.optimizer.state is not self._shared:
            raise RuntimeError(
                f"the base's state was loaded without its wrapper; call load_state_dict on {type(opt).__name__}(...) "
                "itself"
            )

    def attach(self, opt: DropIn) -> None:
        if self._shared is opt.state and self.optimizer.param_groups is opt.param_groups:
            return
        self.optimizer.param_groups = opt.param_groups
        self.optimizer.state = self._shared = opt.state

    def begin_group(self, group: dict[str, Any]) -> None:
        # Bases take an empty state for a first step: the base's state is made before ours.
        if self._columns is not None:
            self.optimizer._init_group(group, *([] for _ in range(self._columns)))  # pyright: ignore

    def state_of(self, opt: DropIn, p: Tensor, constrained: bool) -> dict[str, Any]:
        if not constrained:
            return opt.state.get(p, {})
        if self._columns is None and not opt.state.get(p):
            return self._waiting.setdefault(p, {})  # until the base has made its own, in its step
        return opt.state[p]

    def check(self, group: dict[str, Any]) -> None:
        if self.extra is not None:
            self.extra.check(group)

    def check_state(self, state: dict[str, Any]) -> None:
        twin = object.__new__(type(self.optimizer))
        twin.__dict__.update(self.optimizer.__dict__)
        try:
            twin.__setstate__(dict(state))
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise ValueError(
                f"the checkpoint does not suit {type(self.optimizer).__name__}, which cannot load it ({error!r}); was "
                "it made around another base?"
            ) from error

    def step(self, opt: DropIn) -> None:
        if self.extra is not None:
            self.extra.step(opt)
            return
        fresh = self._fresh(opt)
        saved: list[tuple[list[Tensor], Tensor]] = []
        raw: dict[Tensor, Any] = {}
        work: dict[str, list[Part]] = {}
        try:
            for group, execution, columns in opt._work():
                held = choose(columns, [i for i, x in enumerate(columns.state[-1]) if x.numel()])
                amp = Amp(bool(group.get("maximize", False)))
                for part in by_device_and_dtype(held) if held.weights else ():
                    work.setdefault(execution, []).append(Part(part, None, group, opt._holding, amp))
            for part in chain.from_iterable(work.values()):
                small = [i for i, spec in enumerate(opt._holding.specs) if spec.kind in ("scalar", "count")]
                saved += [(column, torch.stack(column)) for column in map(part.columns.state.__getitem__, small)]
            before = {execution: BACKENDS[execution].before_(parts) for execution, parts in work.items()}
            for part, (grads, _) in zip(chain(*work.values()), chain(*before.values()), strict=True):
                for p, grad in zip(part.columns.weights, grads, strict=False):
                    old: Any = p.grad
                    p.grad = grad.to(old.dtype)  # where this is an error there is nothing to restore
                    raw[p] = old
            self.optimizer.step()
        except BaseException:
            for column, values in saved:
                torch._foreach_copy_(column, list(values.unbind()))
            self._roll_back(opt, fresh)
            raise
        finally:
            for p, grad in raw.items():
                p.grad = grad
        for execution, parts in work.items():
            BACKENDS[execution].after_(parts, before[execution])
        for p, state in self._waiting.items():
            opt.state[p].update(state)
        self._waiting.clear()

    def _fresh(self, opt: DropIn) -> dict[Tensor, dict[str, Any]]:
        """State, as it is now, of parameters that are about to be initialized."""
        stepped = [p for group in opt.param_groups for p in group["params"] if p.grad is not None]
        return {p: dict(opt.state.get(p, {})) for p in stepped if not opt._holding.is_initialized(opt.state.get(p, {}))}

    def _roll_back(self, opt: DropIn, fresh: dict[Tensor, dict[str, Any]]) -> None:
        """The base has refused its step: what was made for it is undone."""
        for p, state in fresh.items():
            opt.state[p].clear()
            opt.state[p].update(state)
            if not state:
                del opt.state[p]
        self._waiting.clear()


def _near(value: Tensor | None, like: Tensor) -> Tensor | None:
    return None if value is None else value.to(like.device, non_blocking=True)
