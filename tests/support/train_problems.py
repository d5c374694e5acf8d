"""Tiny trainings with losses of many kinds, and their derivatives by a loop written out by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import CheckpointError, checkpoint

import hyperopt_ftp as hft
from hyperopt_ftp import Optimizer, tree

from .problems import central_differences

STEPS = 3
ADAM = hft.adam(lr=0.1, betas=(0.8, 0.9), eps=1e-2)
SGD = hft.sgd(lr=0.2, momentum=0.7)


class Bump(torch.autograd.Function):
    """``exp(-x^2)``, with a backward that can be differentiated, for every transform."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return torch.exp(-x * x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, *grads):
        return Bump.jvp(ctx, *grads)

    @staticmethod
    def jvp(ctx, *tangents):
        (x,) = ctx.saved_tensors
        return tangents[0] * -2 * x * torch.exp(-x * x)


class Net(nn.Module):
    """Modules by name, and how an input goes through them."""

    def __init__(self, through: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.through = through
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.through(self, x)


def mlp(*between: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), *between, nn.Linear(3, 2))


def bump() -> nn.Module:
    return Net(lambda net, x: net.b(Bump.apply(net.a(x))), a=nn.Linear(2, 3), b=nn.Linear(3, 2))


def tied() -> nn.Module:
    net = Net(lambda net, x: net.out(net.table(x)), table=nn.Embedding(3, 2), out=nn.Linear(2, 3))
    net.out.weight = net.table.weight
    return net


def attend(net: Any, x: Tensor) -> Tensor:
    q, k, v = net.qkv(x).unsqueeze(1).chunk(3, -1)  # one head: in four dimensions a fused kernel would take it
    return F.scaled_dot_product_attention(q, k, v)[:, 0, -1]


def attention() -> nn.Module:
    return Net(attend, qkv=nn.Linear(2, 6))


def lstm() -> nn.Module:
    return Net(lambda net, x: net.cell(x)[0][:, -1], cell=nn.LSTM(2, 2, batch_first=True))


def batch_norm() -> nn.Module:
    norm = nn.BatchNorm1d(3)
    with torch.no_grad():
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    return mlp(norm, nn.Tanh()).eval()


class LayerNormFormula(nn.LayerNorm):
    """``F.layer_norm`` has a third derivative that is wrong, in torch 2.13."""

    def forward(self, x: Tensor) -> Tensor:
        away = x - x.mean(-1, keepdim=True)
        return away / (away.square().mean(-1, keepdim=True) + self.eps).sqrt() * self.weight + self.bias


def floats_in(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(2, *shape)


PAIRS = floats_in(2)


def labels(count: int, *shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(count, (2, *shape))


def squares(out: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(out, y, reduction="none").mean(1)


def entropies(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out, y, reduction="none")


@dataclass(frozen=True)
class Problem:
    """A training of three steps, and what of it is impossible.

    Attributes:
        autocast: bfloat16, ``"inside"`` the loss or ``"around"`` train, and no longer where it is differentiated.
        formula: in place of the net where derivatives are taken by hand: for functions whose own, in torch, are wrong.
        fails: by mode (``test_train.py``): exception and message. A cell that begins to work is a failure of the test:
            the table is to say what is so.
    """

    name: str
    net: Callable[[], nn.Module]
    x: Callable[[], Tensor] = PAIRS
    y: Callable[[], Tensor] = PAIRS
    distance: Callable[[Tensor, Tensor], Tensor] = squares
    opt: Optimizer = ADAM
    compiled: bool = False
    autocast: str = ""
    checkpointed: bool = False
    formula: nn.Module | None = None
    fails: dict[str, tuple[type[Exception], str]] = field(default_factory=dict)

    @cached_property
    def start(self) -> tuple[Any, ...]:
        """(hparams, params, state, batches), all of it with derivatives that are not zero."""
        with torch.random.fork_rng():
            torch.manual_seed(1)
            params = {name: p.detach() for name, p in self.net().named_parameters()}
            data = [{"x": self.x(), "y": self.y(), "weight": 0.5 + torch.rand(2)} for _ in range(STEPS)]
            state = tree.map_tree(
                lambda s: 0.2 + 0.1 * torch.rand(s.shape) if s.is_floating_point() else s + 2, self.opt.init(params)
            )
        hparams = {**self.opt.hparams, "loss": torch.tensor([0.3, 0.02])}
        return tree.map_tree(self._cast, (hparams, params, state, data))

    def _cast(self, x: Tensor) -> Tensor:
        # Autocast leaves float64 alone.
        return x.to(torch.float32 if self.autocast else torch.float64) if x.is_floating_point() else x

    @cached_property
    def module(self) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return self.net().to(torch.float32 if self.autocast else torch.float64)

    def cast(self, where: str) -> Any:
        return torch.autocast("cpu", torch.bfloat16) if self.autocast and self.autocast == where else nullcontext()

    def plain_loss(self, params: Any, batch: Any, h: Tensor, by_hand: bool = False) -> Tensor:
        with self.cast(self.autocast if by_hand else "inside"):
            out = self.through(params, batch["x"], by_hand)
            fit = (batch["weight"] * self.distance(out, batch["y"])).mean()
        return torch.exp(h[0]) * fit + h[1] * sum(p.square().sum() for p in params.values())

    def through(self, params: Any, x: Tensor, by_hand: bool) -> Tensor:
        if by_hand or not self.checkpointed:
            return functional_call(self.formula if by_hand and self.formula else self.module, params, (x,))
        # What is computed again has to see these params: functional_call inside, not around.
        return checkpoint(functional_call, self.module, params, (x,), use_reentrant=False)

    @cached_property
    def loss(self) -> Callable[..., Tensor]:
        return torch.compile(self.plain_loss, backend="aot_eager") if self.compiled else self.plain_loss

    # The inputs that derivatives are taken in are a list: all floating-point tensors of the start.

    @cached_property
    def inputs(self) -> list[Tensor]:
        assert self.module is not None  # made here: not for the first time under a transform
        return [x for x in tree.leaves(self.start) if x.is_floating_point()]

    @cached_property
    def small(self) -> list[int]:
        """Places of inputs, some of each part, that forward mode takes one after the other."""
        return [i for i, x in enumerate(self.inputs) if x.numel() <= 2]

    def at(self, inputs: Sequence[Tensor]) -> tuple[Any, ...]:
        rows, rebuild = tree.flatten(self.start)
        new = iter(inputs)
        return rebuild([next(new) if x.is_floating_point() else x for x in rows])

    def outer(self, params: Any, state: Any) -> Tensor:
        """A smooth function of all that came out."""
        ends = [x for x in tree.leaves((params, state)) if x.is_floating_point()]
        return sum(((1 + i % 3) * torch.sin(x + i)).sum() for i, x in enumerate(ends))

    def value(self, inputs: Sequence[Tensor], strategy: Any) -> Tensor:
        hparams, params, state, data = self.at(inputs)
        torch.manual_seed(7)
        with self.cast("around"):
            run = hft.train(self.opt, self.loss, params, data, hparams=hparams, state=state, strategy=strategy)
        return self.outer(run.params, run.state)

    # The truth.

    def walked_by_hand(self, inputs: Sequence[Tensor], graph: bool) -> Iterator[tuple[Any, Any]]:
        """Params and state after each step."""
        hparams, params, state, data = self.at(inputs)
        own = {name: x for name, x in hparams.items() if name != "loss"}
        torch.manual_seed(7)
        for batch in data:
            if not graph:
                params = {name: p.detach().requires_grad_() for name, p in params.items()}
            with sdpa_kernel(SDPBackend.MATH):
                loss = self.plain_loss(params, batch, hparams["loss"], by_hand=True)
                grads = torch.autograd.grad(loss, list(params.values()), create_graph=graph)
            params, state = self.opt.update(dict(zip(params, grads, strict=True)), state, params, own)
            yield params, state

    def by_hand(self, inputs: Sequence[Tensor], graph: bool) -> Tensor:
        *_, end = self.walked_by_hand(inputs, graph)
        return self.outer(*end)

    def slope_by_hand(self, inputs: Sequence[Tensor], along: Sequence[Tensor] | None = None) -> list[Tensor]:
        """First derivatives; with ``along``, the derivatives of theirs in that direction."""
        leaves = [x.detach().requires_grad_() for x in inputs]
        found = torch.autograd.grad(self.by_hand(leaves, True), leaves, create_graph=along is not None)
        if along is not None:
            pairs = zip(found, along, strict=True)
            found = torch.autograd.grad(sum((g * v).sum() for g, v in pairs), leaves)
        return list(found)

    @cached_property
    def direction(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(3)
        return [torch.randn(x.shape, generator=generator, dtype=x.dtype) / 4 for x in self.inputs]

    @cached_property
    def other(self) -> list[Tensor]:
        """Inputs beside the others, for vmap."""
        return [x + 0.1 * v for x, v in zip(self.inputs, self.direction, strict=True)]

    @cached_property
    def slope(self) -> list[Tensor]:
        return self.slope_by_hand(self.inputs)

    @cached_property
    def curvature(self) -> list[Tensor]:
        """The second derivative along the direction."""
        return self.slope_by_hand(self.inputs, self.direction)

    def differences(self, of: Callable[[list[Tensor]], Tensor]) -> Tensor:
        """The derivative along the direction."""

        def moved(t: Tensor) -> Tensor:
            return of([x + t * v for x, v in zip(self.inputs, self.direction, strict=True)]).detach()

        return central_differences(moved, torch.zeros((), dtype=torch.float64))[0]

    def __str__(self) -> str:
        return self.name


# What torch cannot do. Cells marked SILENT are wrong numbers, no error.
HOOKS = (RuntimeError, "don't yet support saved tensor hooks|does not have vmap support")  # the second: torch 2.10
SILENT = (AssertionError, "not close")
RECOMPUTED = (CheckpointError, "have different metadata than during the forward pass")

TRANSFORMS = ("grad", "jvp", "vmap", "grad of grad", "jvp of grad")

PROBLEMS = [
    Problem("mlp", lambda: mlp(nn.Tanh())),
    Problem("dropout", lambda: mlp(nn.Tanh(), nn.Dropout(0.5)), opt=SGD),
    Problem("attention", attention, x=floats_in(3, 2)),
    Problem("embedding", lambda: nn.Sequential(nn.Embedding(3, 2), nn.Tanh(), nn.Linear(2, 2)), x=labels(3)),
    Problem("lstm", lstm, x=floats_in(2, 2), opt=SGD),
    Problem("tied", tied, x=labels(3), y=labels(3), distance=entropies),
    Problem(
        "checkpoint", lambda: mlp(nn.Tanh(), nn.Dropout(0.5)), checkpointed=True, fails=dict.fromkeys(TRANSFORMS, HOOKS)
    ),
    Problem(
        "checkpointed attention",
        attention,
        x=floats_in(3, 2),
        checkpointed=True,
        fails={"create_graph": RECOMPUTED, **dict.fromkeys(TRANSFORMS, HOOKS)},
    ),
    Problem("autocast", lambda: mlp(nn.Tanh()), autocast="inside"),
    Problem("autocast around", lambda: mlp(nn.Tanh()), opt=SGD, autocast="around"),
    Problem("compiled", lambda: mlp(nn.Tanh()), opt=SGD, compiled=True),
    Problem("own function", bump),
    Problem("batch norm", batch_norm, opt=SGD),
    Problem(
        "layer norm",
        lambda: mlp(nn.LayerNorm(3)),
        y=labels(2),
        distance=entropies,
        formula=mlp(LayerNormFormula(3)),
        fails=dict.fromkeys(("create_graph", "grad of grad", "jvp of grad"), SILENT),
    ),
]
