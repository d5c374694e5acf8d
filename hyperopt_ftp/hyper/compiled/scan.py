"""Torch's ``scan``, not public yet: loops inside a program, whose random numbers can be repeated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ... import tree
from ...types import Compile

try:
    from torch._higher_order_ops.scan import scan
except ImportError:
    scan: Any = None

#: In 2.10 and 2.12 inductor's loops fail in the C++ wrapper; 2.11 was not tried.
FIRST = (2, 13)


def why_not(compile: Compile, device: torch.device) -> str | None:
    """Why no program can be made here; ``None`` if nothing is known against it."""
    version = torch.__version__
    if scan is None or tuple(int(x) for x in version.split(".")[:2]) < FIRST:
        return f"torch {version} cannot compile a loop of steps; {FIRST[0]}.{FIRST[1]} can"
    if compile is True and device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            return "there is no C++ compiler (install g++ or clang, or name one in the environment variable CXX)"
    return None


def loop(
    body: Callable[[list[Tensor], Tensor], tuple[Sequence[Tensor], Sequence[Tensor]]],
    carry: Sequence[Tensor],
    rows: tuple[Tensor, Tensor],
    reverse: bool = False,
) -> tuple[list[Tensor], list[Tensor]]:
    """``carry, out = body(carry, k)`` for each k of the first row; the last carry, and all that came out, stacked.

    ``reverse``: from the last k to the first; what came out is stacked in the order of the row.
    The second row holds an int64 seed for each k: where the program of :func:`compiled` has random numbers, they are
    functions of it.
    """

    def one(carry: list[Tensor], row: tuple[Tensor, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        new, out = body(carry, row[0])
        return [_own(x) for x in new], [_own(x) for x in out]

    # Of what comes out in reverse, inductor declares a buffer twice where there is one row (2.13).
    return scan(one, [_own(x) for x in carry], rows, reverse=reverse and len(rows[0]) > 1)


def row_of(values: Any, k: Tensor) -> Any:
    """Row k of each tensor of a tree, in a body; not copied if all rows are the same."""

    def one(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if x.stride(0) == 0:
            return x[0]
        return x.index_select(0, k.reshape(1).to(x.device)).squeeze(0)  # counts of steps are on the CPU

    return tree.map_tree(one, values)


def rows(count: int, seeds: Tensor | None, place: torch.device) -> tuple[Tensor, Tensor]:
    """Positions of the steps in stacked tensors, and their seeds."""
    seeds = torch.zeros(count, dtype=torch.int64) if seeds is None else seeds
    return stacked((torch.arange(count, device=place), seeds.to(place)))


def stacked(values: Any) -> Any:
    """A tree of tensors, not the caller's, whose first dimension may be another next time, if it is not 1 now."""

    def one(x: Any) -> Any:
        if isinstance(x, Tensor):
            x = x.detach()
            if len(x) > 1:
                torch._dynamo.mark_dynamic(x, 0)  # pyright: ignore[reportPrivateImportUsage]
        return x

    return tree.map_tree(one, values)


def compiled(function: Callable[..., Any], backend: Compile, begins: Callable[[], None]) -> tuple[Any, list[int]]:
    """A function with loops as one program, and the numbers of random draws in each that was compiled.

    Args:
        function: has no derivative taken, and shapes that are constants but for those of :func:`stacked`.
        backend: ``True`` for inductor with its C++ wrapper, or the name of one of torch.compile's backends.
        begins: is called where something is compiled.
    """
    draws: list[int] = []

    def compiler(graph: Any, inputs: list[Tensor]) -> Any:
        begins()
        if isinstance(backend, str):
            return torch._dynamo.lookup_backend(backend)(graph, inputs)
        return _by_inductor(graph, inputs, draws)

    return torch.compile(function, fullgraph=True, dynamic=False, backend=compiler), draws


def _own(x: Tensor) -> Tensor:
    """A contiguous copy: a body may not return its inputs, and strides must match."""
    return x.clone(memory_format=torch.contiguous_format)


def _by_inductor(graph: Any, inputs: list[Tensor], draws: list[int]) -> Any:
    from torch._functorch import config as autograd_config
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner  # takes a second to import
    from torch._inductor.decomposition import select_decomp_table

    def inner(graph: Any, inputs: Any, **options: Any) -> Any:
        draws.append(_prepared(graph))
        return compile_fx_inner(graph, inputs, **options)

    # Its cache would not see what `inner` does.
    with autograd_config.patch(enable_autograd_cache=False):
        return compile_fx(
            graph, inputs, inner_compile=inner, decompositions={**select_decomp_table(), **_OURS},
            config_patches=_CONFIG,
        )  # fmt: skip


#: The wrapper in C++, and apart from the kernels: together g++ was not done with a transformer after six minutes.
_CONFIG = {"cpp_wrapper": True, "cpp_wrapper_build_separate": True, "fallback_random": False}


def _bernoulli(x: Tensor, p: Tensor | float, generator: torch.Generator | None) -> Tensor:
    if generator is not None:
        raise RuntimeError("a generator of the loss's own cannot be compiled")
    return (torch.rand_like(x, dtype=torch.float32) < p).to(x.dtype)


#: In place of inductor's: zero tangents, which have no memory (2.13 crashed), random numbers that it makes of a seed,
#: and products with a vector by BLAS, where its own loops are several times slower.
_OURS = {
    torch.ops.aten._efficientzerotensor.default: torch.zeros,
    torch.ops.aten.mv.default: lambda x, v: torch.mm(x, v.unsqueeze(1)).squeeze(1),
    torch.ops.aten.bernoulli.p: lambda x, p=0.5, *, generator=None: _bernoulli(x, p, generator),
    torch.ops.aten.bernoulli.default: lambda x, *, generator=None: _bernoulli(x, x, generator),
}


def _prepared(graph: torch.fx.GraphModule) -> int:
    """Make random numbers of the loops' bodies functions of the step's seed, and count them.

    Inductor has made each a function of a seed that it would draw anew, ``inductor_random(size, seed, kind)``; this one
    is the body's last argument of those that are rows, plus the number of the draw.
    """
    count = 0
    for node in graph.graph.find_nodes(op="call_function", target=torch.ops.higher_order.scan):
        function, carry, rows = node.args[:3]
        body = getattr(graph, function.target)
        seed = body.graph.find_nodes(op="placeholder")[len(carry) + len(rows) - 1]
        for draw in body.graph.find_nodes(op="call_function", target=torch.ops.prims.inductor_lookup_seed.default):
            with body.graph.inserting_before(draw):
                new = body.graph.call_function(torch.ops.aten.add.Tensor, (seed, draw.args[1]))
            new.meta.update(draw.meta)
            draw.replace_all_uses_with(new)
            body.graph.erase_node(draw)
            count += 1
        for seeds in body.graph.find_nodes(op="call_function", target=torch.ops.prims.inductor_seeds.default):
            body.graph.erase_node(seeds)
        for other in body.graph.nodes:
            draws = torch.Tag.nondeterministic_seeded in getattr(other.target, "tags", ())
            if draws and other.target.namespace == "aten":
                raise RuntimeError(f"{other.target} draws random numbers that cannot be drawn again on the way back")
        _split_outputs(body)
        body.recompile()
    return count


def _split_outputs(body: torch.fx.GraphModule) -> None:
    """No value twice among a body's outputs.

    The C++ wrapper moves each out of its variable, and crashes at the second. Inductor takes away both copies of a
    value where both are outputs; one whose source is an output too it keeps, told by their storages.
    """
    last, seen = body.graph.output_node(), set[torch.fx.Node]()
    out: Any = list(last.args[0])  # pyright: ignore[reportArgumentType]
    for i, x in enumerate(out):
        if x in seen:
            with body.graph.inserting_before(last):
                out[i] = body.graph.call_function(torch.ops.aten.clone.default, (x,))
            out[i].meta.update(x.meta, val=x.meta["val"].clone())
        seen.add(x)
    last.args = (tuple(out),)
