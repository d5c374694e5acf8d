"""Whether a pure optimizer keeps what the rest of the package relies on: for a test of one's own optimizer."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from .. import tree
from ..calls import check_choice, explained
from ..types import Optimizer
from ..types import check_optimizer as check_is_optimizer

#: Rounding of a dozen operations a step, over ten steps on values of order 1, in float64.
CLOSE = 1e-13


@explained("check_optimizer(optimizer)")
def check_optimizer(optimizer: Optimizer, *, without: Collection[str] = ()) -> None:
    """Check on a small problem what ``train``, ``hyper``, the combinators and ``PureOptimizer`` rely on.

    - ``pure``: ``update`` changes no argument, returns the same for the same arguments, and moves the params.
    - ``kept``: shapes, dtypes and structures of params and state stay, in float64, float32 and both 16 bits.
    - ``derivatives``: the derivative of four steps in each hparam is that of central differences.
    - ``zeros``: that derivative is finite where an entry's gradient is always 0, as of a dead unit.
    - ``vmap``: ``torch.func.vmap`` over the hparams gives what a loop over them gives.
    - ``resume``: a state that was saved and loaded continues to the last bit.
    - ``gaps``: a parameter whose gradient is ``None`` does not change.
    - ``apart``: the step of a tensor does not depend on the gradients of others.

    Args:
        optimizer: with hparams at which its rule is smooth; one that is steep (an ``eps`` of 1e-16) may fail
            ``derivatives``, for which differences are too coarse there.
        without: checks to leave out: ``derivatives`` if a rule jumps (a sign, a threshold), ``gaps`` and ``apart`` if
            it refuses a gradient that is ``None``, ``apart`` if it needs all gradients (their norm).

    Raises:
        AssertionError: the first check that fails, and what differs, or what an update raised.
        ValueError: an unknown check.
        TypeError: not a pure optimizer.

    >>> import hyperopt_ftp as hft
    >>> from hyperopt_ftp.testing import check_optimizer
    >>> check_optimizer(hft.adam(lr=0.1))
    """
    check_is_optimizer("optimizer", optimizer)
    left_out = (without,) if isinstance(without, str) else tuple(without)
    for name in left_out:
        check_choice("without", name, tuple(CHECKS))
    _check_leaves("hparams", optimizer.hparams, floating=True)
    # Float64, in which differences are exact enough, and leaves of nobody's graph.
    numbers = tree.map_tree(lambda x: x.detach().double(), optimizer.hparams)
    opt = optimizer._replace(hparams=numbers)
    for name, check in CHECKS.items():
        if name not in left_out:
            try:
                check(opt)
            except AssertionError:
                raise
            except Exception as error:
                raise AssertionError(f"{name}: init or update raised {type(error).__name__}: {error}") from error


def _check_leaves(what: str, values: Any, floating: bool = False) -> None:
    for path, x in tree.named(values):
        kind = "floating-point tensors" if floating else "tensors"
        right = isinstance(x, Tensor) and (x.is_floating_point() or not floating)
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        assert right, f"{what} must be a tree of {kind}, and {path!r} is {got}"


def check_pure(opt: Optimizer) -> None:
    params = small_params()
    state, first = opt.init(params, opt.hparams), params
    _check_leaves("the state", state)
    for k, x in enumerate(small_batches(20)):
        grads = torch.func.grad(small_loss)(params, x)
        new = pure_update(opt, grads, state, params)
        again = opt.update(grads, state, params, opt.hparams)
        assert same(new, again), (
            "pure: a second update of the same inputs gives something else; is there a counter or a generator outside "
            "of the state?"
        )
        params, state = new
        if k and not same(params, first):
            return
    raise AssertionError("pure: 20 updates have not moved the params")


def pure_update(opt: Optimizer, grads: Any, state: Any, params: Any) -> Any:
    given = {"grads": grads, "state": state, "params": params, "hparams": opt.hparams}
    # Not deepcopy, which refuses what has a graph: hparams may be differentiated.
    before = tree.map_tree(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, given)
    new = opt.update(grads, state, params, opt.hparams)
    is_pair = isinstance(new, tuple) and len(new) == 2
    assert is_pair, "pure: update must return (params, state)"
    for name, value in given.items():
        assert same(value, before[name]), f"pure: update has changed its {name}; return new ones"
    return new


def check_kept(opt: Optimizer) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        params = small_params(dtype)
        state = opt.init(params, opt.hparams)
        for x in small_batches(3):
            wide = {k: v.double() for k, v in params.items()}
            grads = {k: v.to(dtype) for k, v in torch.func.grad(small_loss)(wide, x).items()}
            new = opt.update(grads, state, params, opt.hparams)
            for what, now, then in zip(("params", "state"), new, (params, state), strict=True):
                same = tree.structure(now) == tree.structure(then)
                assert same, f"kept: update returns {what} of another structure ({dtype})"
                for (path, a), b in zip(tree.named(now), tree.leaves(then), strict=True):
                    forms = [(tuple(y.shape), y.dtype, y.device.type) for y in (a, b)]
                    assert forms[0] == forms[1], f"kept: {path!r} of the {what} was {forms[1]} and is {forms[0]}"
            params, state = new
        assert all(x.isfinite().all() for x in params.values()), f"kept: params are not finite in {dtype}"


def check_derivatives(opt: Optimizer, steps: int = 4) -> Any:
    """Returns the derivatives."""
    params, data = small_params(), small_batches(steps)

    def outer(hparams: Any) -> Tensor:
        return small_loss(small_training(opt, hparams, params, data)[0], data[0] + 0.3)

    found = torch.func.grad(outer)(opt.hparams)
    names, leaves = [path for path, _ in tree.named(found)], [x.reshape(-1) for x in tree.leaves(found)]
    if not leaves:
        return found
    x, y = torch.cat(leaves), torch.full((), torch.nan)
    # Differences are off by (h / d)^4, d being how far the rule is from where it is singular: |g|, at eps = -|g|. So
    # shorter ones are taken where they do not fit, until their rounding, 1e-16 / h of the loss, is what is allowed.
    for h in (1e-4, 1e-5, 1e-6, 1e-7):
        new = torch.stack(central_differences(outer, opt.hparams, h))
        y = torch.where(new.isfinite() & ~((y - x).abs() <= (new - x).abs()), new, y)
        scale = y.abs().max().item()
        right = (x - y).abs() <= 1e-6 * y.abs() + 1e-8 * max(scale, 1.0)  # not so for NaN
        if right.all():
            break
    sizes = [leaf.numel() for leaf in leaves]
    for path, mine, theirs, fits in zip(names, *(z.split(sizes) for z in (x, y, right)), strict=True):
        cut = "detach(), .item(), float() and torch.no_grad() cut a derivative off"
        blurred = (
            "a state in 16 bits rounds it; where the rule jumps or is steep, give other hparams (a larger eps), or "
            "leave this check out: without=['derivatives']"
        )
        assert fits.all(), (
            f"derivatives: in {path!r} {mine.tolist()}, by differences {theirs.tolist()}; "
            f"{blurred if mine.any() else cut}"
        )
    assert scale > 1e-4, "derivatives: no hparam has an effect after the first steps; are they detached?"
    return found


def check_zeros(opt: Optimizer) -> None:
    params, data = small_params(), [torch.cat([x[:, :2], 0 * x[:, 2:]], 1) for x in small_batches(3)]
    found = torch.func.grad(lambda h: small_loss(small_training(opt, h, params, data)[0], data[0]))(opt.hparams)
    for path, x in tree.named(found):
        assert x.isfinite().all(), (
            f"zeros: the derivative in {path!r} is {x.tolist()} where an entry's gradient is always 0; torch.sqrt has "
            "no derivative at 0: take hyperopt_ftp.optimizers.safe_sqrt, and torch.linalg.vector_norm for a norm"
        )


def check_vmap(opt: Optimizer) -> None:
    params, data = small_params(), small_batches(3)
    factors = torch.tensor([0.5, 0.8, 1.0, 1.1], dtype=torch.float64)
    values, rebuild = tree.flatten(opt.hparams)
    if not values:
        return
    scaled = [torch.stack([v * f for f in factors]) for v in values]
    limited = [
        x.clamp(max=0.99) if (v <= 1).all() else v.expand_as(x).clone() for v, x in zip(values, scaled, strict=True)
    ]
    try:
        together = torch.func.vmap(lambda h: small_training(opt, h, params, data)[0])(rebuild(limited))
    except RuntimeError as error:
        raise AssertionError(
            "vmap over hparams: write torch.where for an if on a tensor, new tensors for an operation in place, and no "
            f".item(); torch says: {error}"
        ) from error
    for i in range(len(factors)):
        alone, _ = small_training(opt, rebuild([x[i] for x in limited]), params, data)
        for name, x in alone.items():
            torch.testing.assert_close(
                together[name][i], x, rtol=CLOSE, atol=CLOSE, msg=lambda text: f"vmap over hparams: {text}"
            )


def check_resume(opt: Optimizer) -> None:
    params, data = small_params(), small_batches(6)
    state, ends = opt.init(params, opt.hparams), []
    for x in data[:3]:
        params, state = opt.update(torch.func.grad(small_loss)(params, x), state, params, opt.hparams)
    file = io.BytesIO()
    torch.save(tree.leaves((params, state)), file)
    file.seek(0)
    rebuild = tree.flatten((params, state))[1]
    for begun in ((params, state), rebuild(torch.load(file, weights_only=True))):
        p, s = begun
        for x in data[3:]:
            p, s = opt.update(torch.func.grad(small_loss)(p, x), s, p, opt.hparams)
        ends.append((p, s))
    assert same(*ends), "resume: a saved state goes on otherwise; is something kept outside of it?"


def check_gaps(opt: Optimizer) -> None:
    params = small_params()
    state = opt.init(params, opt.hparams)
    for t, x in enumerate(small_batches(4)):
        grads: dict[str, Tensor | None] = torch.func.grad(small_loss)(params, x)
        if t % 2:
            grads["b"] = None
        # With one gradient by_rule hands the rule these very tensors; of several it makes one, where no write is seen.
        new, state = pure_update(opt, grads, state, params)
        stays = t % 2 == 0 or torch.equal(new["b"], params["b"])
        assert stays, "gaps: a parameter moves without a gradient (None); leave such a leaf as it is"
        params = new


def check_apart(opt: Optimizer) -> None:
    params = small_params()
    state = opt.init(params, opt.hparams)
    for x in small_batches(3):
        grads = torch.func.grad(small_loss)(params, x)
        together = opt.update(grads, state, params, opt.hparams)
        for name in params:
            alone, _ = opt.update({n: g if n == name else None for n, g in grads.items()}, state, params, opt.hparams)
            torch.testing.assert_close(
                alone[name],
                together[0][name],
                rtol=CLOSE,
                atol=CLOSE,
                msg=lambda text, name=name: (
                    f"apart: {name!r} moves otherwise where no other parameter has a gradient; a rule that looks at a "
                    "whole tensor (its norm, its shape) is not entrywise: leave by_rule(entrywise=True) out; tensors "
                    f"that are to act on each other need without=['apart']. {text}"
                ),
            )
        params, state = together


CHECKS: Mapping[str, Callable[[Optimizer], Any]] = {
    "pure": check_pure,
    "kept": check_kept,
    "derivatives": check_derivatives,
    "zeros": check_zeros,
    "vmap": check_vmap,
    "resume": check_resume,
    "gaps": check_gaps,
    "apart": check_apart,
}


# -- the small problem, and what is true of it ------------------------------------------------------------------------


def small_params(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {"w": (3, 4), "b": (4,)}
    return {k: torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for k, s in shapes.items()}


def small_batches(steps: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(steps)]


def small_loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
    return torch.tanh(x.to(params["w"].dtype) @ params["w"] + params["b"]).square().mean() * 3


def small_training(opt: Optimizer, hparams: Any, params: Any, data: list[Tensor]) -> tuple[Any, Any]:
    """A plain loop; params and state at its end."""
    state = opt.init(params, hparams)
    for x in data:
        grads = torch.func.grad(small_loss)(params, x)
        params, state = opt.update(grads, state, params, hparams)
    return params, state


def central_differences(f: Callable[[Any], Tensor], values: Any, h: float = 1e-4) -> list[Tensor]:
    """The derivative of ``f(values) -> scalar`` in each entry of each leaf, by differences with ``h`` and ``h / 2``.

    The extrapolated error is about h^4 + 1e-16 / h.

    >>> import torch
    >>> from hyperopt_ftp.testing import central_differences
    >>> [round(x.item(), 6) for x in central_differences(torch.sin, torch.zeros(1, dtype=torch.float64))]
    [1.0]
    """
    leaves, rebuild = tree.flatten(values)
    result = []
    for i, value in enumerate(leaves):
        for unit in torch.eye(value.numel(), dtype=value.dtype):
            step = h * unit.reshape(value.shape)
            at = [f(rebuild([*leaves[:i], value + s * step, *leaves[i + 1 :]])) for s in (1, -1, 0.5, -0.5)]
            result.append((4 * (at[2] - at[3]) / h - (at[0] - at[1]) / (2 * h)) / 3)
    return result


def same(a: Any, b: Any) -> bool:
    """To the last bit; a NaN equals itself."""
    if tree.structure(a) != tree.structure(b):
        return False
    pairs = zip(tree.leaves(a), tree.leaves(b), strict=True)
    return all(
        x is y  # None, where there is no gradient
        or (x.shape == y.shape and x.dtype == y.dtype and torch.allclose(x, y, rtol=0.0, atol=0.0, equal_nan=True))
        for x, y in pairs
    )


def largest_difference(a: Any, b: Any) -> float:
    pairs = zip(tree.leaves(a), tree.leaves(b), strict=True)
    return max(((x.double() - y.double()).abs().max().item() for x, y in pairs if x.numel()), default=0.0)
