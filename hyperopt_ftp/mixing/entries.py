"""Two or more state_dicts, entry by entry: what is mixed, what stays, and the mixture of two tensors."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from ..hparams import is_wrapped
from ..tree import working

Weights: TypeAlias = Mapping[str, Tensor]
Found = TypeVar("Found", list[str], dict[str, Tensor])

#: LoRA's two factors, by the names of peft and loralib, torchtune, diffusers. A weight gets their product, B A.
_FACTOR = re.compile(r"(?:\b|_)lora(?:_embedding)?[_.](A|a|down|B|b|up)\b")
_SECOND = {"A": "B", "a": "b", "down": "up"}

#: Parts of adapters that are no product of two, by the names of peft 0.21: DoRA, AdaLoRA, LoHa, OFT, HiRA and others.
_OTHER = re.compile(
    r"(?:^|\.)(?:lora_(?:magnitude_vector|E|mid)\b|(?:hada|lokr|b?oft|p?vera|vblora|randlora|hra|osf_svd|unilora)_"
    r"|(?:adamss|deft|delora|glora|gralora|hira|lily|peanut|psoft|road)_(?:[A-Z]|lambda|newB|router|theta|alpha)\b)"
)

MERGE = "mix whole weights instead, as of peft's merge_and_unload()"


def lerped(w: Tensor, w0: Tensor, share: Any) -> Tensor:
    """``(1 - share) w + share w0``, both ends exact; equal infinite entries stay."""
    wide, far = working(w), w0.to(working(w))
    share = share if isinstance(share, Tensor) else torch.tensor(share, dtype=torch.float64, device="cpu")
    same = (wide == far) & wide.isinf()  # whose difference is NaN
    mixed = torch.lerp(torch.where(same, 0.0, wide), torch.where(same, 0.0, far), share.to(wide))
    return torch.where(same, wide, mixed).to(w.dtype)


def copied(x: Any) -> Any:
    """A copy, also of a module's extra state that is not a tensor."""
    return x.detach().clone() if isinstance(x, Tensor) else copy.deepcopy(x)


def as_state_dict(found: dict[str, Any], weights: Weights) -> dict[str, Any]:
    """With the versions of modules that a state_dict has, by which ``load_state_dict`` reads it."""
    versions = getattr(weights, "_metadata", None)
    if versions is None:
        return found
    new: Any = OrderedDict(found)
    new._metadata = versions
    return new


def detached(weights: Weights) -> dict[str, Any]:
    return {name: w.detach() if isinstance(w, Tensor) else w for name, w in weights.items()}


def shared(weights: Weights, anchor: Weights) -> list[str]:
    """Names of what is mixed: floating-point tensors in both, which are not all the same ones."""
    for given in (weights, anchor):
        if not isinstance(given, Mapping):
            raise TypeError(f"weights and anchor must be dicts of tensors by name, got {type(given).__name__}")
    extra = sorted(anchor.keys() - weights.keys())
    if extra:
        raise ValueError(f"anchor has entries {extra[:5]} that are not in weights; are they of one model?")
    found = []
    for name, w0 in anchor.items():
        w = weights[name]
        if isinstance(w, Mapping) and any(isinstance(x, Tensor) for x in w.values()) and "_extra_state" not in name:
            raise ValueError(
                f"{name!r} is a dict of tensors, as in a checkpoint: give weights[{name!r}] and its anchor"
            )
        if not isinstance(w, Tensor) or not isinstance(w0, Tensor):
            continue
        if w0.shape != w.shape:
            raise ValueError(
                f"anchor entry {name!r} has shape {tuple(w0.shape)}, its weights {tuple(w.shape)}; leave out a head "
                "that is new"
            )
        if (w.is_complex() or w0.is_complex()) and not torch.equal(w, w0):  # equal ones may be tables of rotations
            raise ValueError(f"{name!r} is complex, give torch.view_as_real of it, and view_as_complex of the mixture")
        if w.is_floating_point() and w0.is_floating_point():
            found.append(name)
        else:
            check_same(name, w, w0)
    if found and not torch.compiler.is_compiling() and all(_same_memory(weights[name], anchor[name]) for name in found):
        raise ValueError(
            f"weights and anchor are the same tensors ({found[0]!r} and all others), so nothing would be mixed: "
            "state_dict() has the model's own weights, which training changes; before training copy them: "
            "copy.deepcopy(model.state_dict())"
        )
    return found


def check_same(name: str, w: Tensor, other: Tensor) -> None:
    """``ValueError`` where integers differ, as quantised weights do; a single one may be a count."""
    if w.numel() > 1 and not torch.compiler.is_compiling() and _differ(w, other.to(w.device)):
        raise ValueError(
            f"{name!r} is {w.dtype} and has other values here and there ({other.dtype}), so it would stay while others "
            "are mixed: dequantize weights, or leave it out"
        )


def tied(weights: Weights) -> dict[str, str]:
    """Further names of a tensor, and its first one: of tied weights."""
    if torch.compiler.is_compiling():
        return {}
    plain = {n: w for n, w in weights.items() if type(w) in (Tensor, torch.nn.Parameter) and not is_wrapped(w)}
    first: dict[Any, str] = {}
    names = {n: first.setdefault((w.data_ptr(), w.shape, w.stride()), n) for n, w in plain.items() if w.data_ptr()}
    return {name: other for name, other in names.items() if name != other}


def check_tied(weights: Weights, shares: Mapping[str, Any], far: Weights) -> None:
    """``ValueError`` for one tensor under two names with two mixtures, as a module would load the last one."""
    for name, other in tied(weights).items():
        if name in far and other in far and _differ(far[other], far[name]):
            raise ValueError(
                f"{other!r} and {name!r} are one tensor (tied weights), and their entries in anchor differ: leave both "
                "out of anchor, or tie them there too"
            )
        a, b = shares.get(other, 0.0), shares.get(name, 0.0)
        if _differ(a, b):
            raise ValueError(
                f"{other!r} and {name!r} are one tensor (tied weights), with {float(a)} and {float(b)} of the anchor, "
                "and loading keeps the last one: give both the same, and an anchor with both, such as a state_dict()"
            )


def _differ(a: Any, b: Any) -> bool:
    """Whether two tensors or numbers are known to: of what is under a transform, nothing is."""
    if a is b or any(isinstance(x, Tensor) and is_wrapped(x) for x in (a, b)):
        return False
    return bool(torch.as_tensor(a != b).any())


def _same_memory(x: Tensor, y: Tensor) -> bool:
    # Tensors of other types, as DTensors, and those under a transform may have no address.
    plain = all(type(t) in (Tensor, torch.nn.Parameter) and not is_wrapped(t) for t in (x, y))
    return x is y or (plain and 0 != x.data_ptr() == y.data_ptr())


def ends(weights: Weights, anchor: Weights | str) -> dict[str, Tensor]:
    """What each entry that is mixed is mixed with; of LoRA's factors B with 0, and A stays: their product is mixed.

    Raises:
        TypeError, ValueError: as :func:`shared`; an anchor whose product is not 0; ``"zero"`` without LoRA's factors.
    """
    if isinstance(anchor, str):
        shared(weights, {})
        factors(weights, weights)
        seconds = [name for name in weights if (is_b := _FACTOR.search(name)) and is_b[1] not in _SECOND]
        if anchor != "zero" or not seconds:
            raise ValueError(
                "anchor must be a dict of tensors by name, or 'zero' for LoRA's factors (names with lora_A and lora_B) "
                f"among weights, got {anchor!r}{' without any' if anchor == 'zero' else ''}"
            )
        return {name: torch.zeros_like(weights[name]) for name in seconds}
    found = {name: anchor[name] for name in shared(weights, anchor)}
    for a, b in factors(weights, found).items():
        if a not in found or b not in found or any(torch.equal(weights[n], found[n].to(weights[n])) for n in (a, b)):
            continue  # one factor stays as it is, so the product is mixed as the other one
        if found[a].any() and found[b].any():
            raise not_zero(a)
        del found[a]
        found[b] = torch.zeros_like(found[b])
    return found


def some(found: Found) -> Found:
    """What is mixed; ``ValueError`` if it is nothing."""
    if not found:
        raise ValueError("anchor has no floating-point tensor, so nothing would be mixed: give a state_dict()")
    return found


def not_zero(name: str) -> ValueError:
    return ValueError(f"LoRA's product of {name!r} and its other factor must be 0 in anchor; {MERGE}")


def factors(names: Iterable[str], mixed: Iterable[str]) -> dict[str, str]:
    """LoRA's second factors, B, by the first ones.

    Raises:
        ValueError: one that is mixed lacks the other, or a part of an adapter that is no product of two is mixed.
    """
    found = {name: match for name in names if (match := _FACTOR.search(name))}
    pairs = {a: a[: m.start(1)] + _SECOND[m[1]] + a[m.end(1) :] for a, m in found.items() if m[1] in _SECOND}
    whole = {name for a, b in pairs.items() if b in found for name in (a, b)}
    alone = {name for name in found.keys() - whole if not name.endswith("bias")}  # B's own, which is no factor
    if wrong := [name for name in mixed if name in alone or _OTHER.search(name)]:
        raise ValueError(f"{wrong[:5]} are of adapters that are not LoRA's product of two factors; {MERGE}")
    return {a: b for a, b in pairs.items() if b in found}
