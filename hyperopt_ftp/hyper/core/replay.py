"""What a recomputed step needs: the random numbers, the autocast and the modes of modules of the first run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from ...dtensors import local
from ...hparams import concrete
from .torch_private import values_of

T = TypeVar("T")


#: The states of torch's default generators at some point, first of the CPU's.
RngState: TypeAlias = list[Tensor]


class Replay:
    """A moment: the state of the default generators of the CPU and of every accelerator, and the autocast.

    ``began``: another random state, of an earlier moment.
    """

    def __init__(self, began: RngState | None = None) -> None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        module = None if accelerator is None else torch.get_device_module(accelerator)
        # An accelerator that nobody has used holds no random state yet; asking would start it.
        self._module: Any = module if module is not None and getattr(module, "is_initialized", lambda: True)() else None
        self._count = torch.accelerator.device_count() if self._module is not None else 0
        kinds = ["cpu"] + ([] if accelerator is None else [accelerator.type])
        self._autocast = [(k, torch.get_autocast_dtype(k), torch.is_autocast_enabled(k)) for k in kinds]
        self._began = began or self.now()

    @property
    def autocasts(self) -> bool:
        return any(enabled for _, _, enabled in self._autocast)

    def now(self) -> RngState:
        return [torch.get_rng_state(), *(self._module.get_rng_state(i) for i in range(self._count))]

    @contextmanager
    def autocast(self, on: bool = True) -> Iterator[None]:
        """That of the moment, or none: for a backward pass, whose dtypes are those of the forward pass."""
        with ExitStack() as stack:
            for kind, dtype, enabled in self._autocast:
                enabled = enabled and on
                if enabled or torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled))
            yield

    def again(self, function: Callable[[], T]) -> T:
        """``function()`` as at that moment; the present state is restored afterwards."""
        return self.run(self._began, function)

    def run(self, rng: RngState, function: Callable[[], T]) -> T:
        """``function()`` with the saved random state and autocast; both are restored afterwards."""
        before = self.now()
        try:
            self.rewind(rng)
            with self.autocast():
                return function()
        finally:
            self.rewind(before)

    def rewind(self, rng: RngState) -> None:
        cpu, *devices = rng
        torch.set_rng_state(cpu)
        for i, state in enumerate(devices):
            self._module.set_rng_state(state, i)


def modes_of(net: nn.Module) -> list[tuple[nn.Module, bool]]:
    """Which of its modules are in ``train()``."""
    return [(m, m.training) for m in net.modules()]


@contextmanager
def in_modes(modes: Sequence[tuple[nn.Module, bool]]) -> Iterator[None]:
    """With modules as they were when :func:`modes_of` was asked."""
    other = [m for m, mode in modes if m.training != mode]
    for m in other:
        m.training = not m.training
    try:
        yield
    finally:
        for m in other:
            m.training = not m.training


def fingerprint(loss: Tensor, grads: Sequence[Tensor]) -> Tensor:
    """The loss and the norm of each gradient of a step, as float64 if one is: compared when the step is recomputed.

    For sharded gradients this process's part, so nothing is sent. Results of the update are left out: a gradient that
    is 0 up to rounding may change its sign, and with it the results of some optimizers.
    """
    some = [local(g.detach()) for g in grads if g.numel()]
    some = [g.coalesce().values() if g.is_sparse else g for g in some]
    rows = [loss.detach(), *(torch._foreach_norm(some) if some else [])]
    dtypes = {x.dtype for x in rows}
    if len(dtypes) > 1 or dtypes & {torch.float16, torch.bfloat16} or loss.device.type != "cpu":
        wide = torch.float64 if torch.float64 in dtypes else torch.float32
        rows = [x.to(device=loss.device, dtype=wide) for x in rows]
    return torch.stack(rows)


def refuse_other_steps(pairs: Sequence[tuple[int, Tensor, Tensor]], dtype: torch.dtype) -> None:
    """Raise unless each recomputed step has the fingerprint of its first run.

    Args:
        pairs: the number of a step, its fingerprint, and that of the recomputed step.
        dtype: the narrowest that they are made of.
    """
    before, after = torch.stack([x[1] for x in pairs]), torch.stack([x[2] for x in pairs])
    eps = torch.finfo(dtype).eps
    # On a GPU sums may have another order, and a gradient with a graph may come from other kernels.
    slack = torch.full_like(before, eps**0.75)
    # On a CPU a loss is the same to a few units in the last place, not to the last bit: LAPACK (lstsq) was seen to give
    # others on equal numbers, by up to 2.7 eps of the loss, and more only where the loss is a small difference of large
    # numbers. It has no 16-bit floats: losses in these, or over params in these, are compared as in float32.
    if before.device.type == "cpu":
        slack[:, 0] = 8 * min(eps, torch.finfo(torch.float32).eps)
    size = before.abs().nan_to_num(0.0, 0.0, 0.0)
    if size.shape[1] > 1:  # some gradients are 0 but for rounding
        size[:, 1:] = size[:, 1:].amax(1, keepdim=True)
    _refuse_other(before, after, slack * size, [x[0] for x in pairs])


def refuse_other_updates(first: Sequence[Tensor], again: Sequence[Tensor]) -> None:
    same: list[Tensor] = []
    for x, y in zip(map(local, first), map(local, again), strict=True):
        if not concrete(x):  # fake tensors
            return
        slack = torch.finfo(x.dtype).eps ** 0.75 if x.device.type != "cpu" else 0.0  # where sums have no fixed order
        same.append(torch.isclose(x.detach(), y.detach(), rtol=slack, atol=0.0, equal_nan=True).all())
    if same and not bool(torch.stack([x.to(same[0].device) for x in same]).all()):  # read once for all
        raise RuntimeError(
            "optimizer.update gives another result when a step is computed again, as this strategy does, so its "
            "derivative would be wrong. It must be the same function of its arguments each time: torch's default "
            "random generators are restored, but not one of its own, NumPy's or Python's, nor a counter. Keep such "
            "things in the state, or use hft.Unroll(checkpoint=False), without compile"
        )


def refuse_other_losses(first: Tensor, again: Tensor, power: float = 0.75, steps: Sequence[int] | None = None) -> None:
    """Raise unless the steps have the training losses of their first run, up to ``eps ** power``.

    ``steps`` are their numbers; ``None``: all. Under vmap nothing is checked.
    """
    before, after = values_of(first), values_of(again)
    if before.shape != after.shape or isinstance(before, FakeTensor):
        return
    before, after = before.double().reshape(-1, 1), after.double().reshape(-1, 1)
    slack = torch.finfo(first.dtype).eps ** power * before.abs()
    _refuse_other(before, after, slack, steps or range(first.shape[-1]))


def _refuse_other(before: Tensor, after: Tensor, slack: Tensor, steps: Sequence[int]) -> None:
    """Raise unless rows are those of the first run; each begins with the loss of a step."""
    other = (~((before - after).abs() <= slack) & (before.isfinite() | after.isfinite())).any(1)
    if bool(other.any()):
        row = int(other.nonzero()[0])
        was, now = before[row, 0].item(), after[row, 0].item()
        raise RuntimeError(
            f"the training loss of step {steps[row % len(steps)]} was {was:.9g} and is {now:.9g} when the step is "
            "computed again, or its gradient is another, so its derivative would be wrong. train_loss must be the same "
            "function of its arguments each time: torch's default random generators are restored, but not a "
            "torch.Generator of its own, NumPy's or Python's, nor what is changed outside (a counter; train() or "
            "eval() of a module between train and backward; BatchNorm's statistics: "
            "torch.func.replace_all_batch_norm_modules_(net)). Draw such numbers beforehand and pass them in the "
            "batch, or use hft.Unroll(checkpoint=False), without compile, which computes each step once. The default "
            "generators are the process's: two threads that train take each other's numbers"
        )
