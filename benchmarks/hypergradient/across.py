"""All problems beside each other: the table of docs/performance.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.common.report_kit import markdown

HEAD = {
    "mlp": "MLP",
    "transformer": "transformer",
    "conv16": "conv net",
    "conv64": "the same, 64 steps",
    "maml": "MAML",
    "l2": "L2",
}
UNROLL, COMPILED = "Unroll()", "Unroll(compile=True)"
MEASURED = {  # the quickest of these forms
    "`Unroll()`": [UNROLL],
    "`Unroll(compile=True)`": [COMPILED],
    "`Forward()`": ["Forward()"],
    "`Forward(compile=True)`": ["Forward(compile=True)"],
    "TorchOpt": ["torchopt", "torchopt, vmap"],
    "higher": ["higher"],
    "a loop by hand": ["by hand", "by hand, vmap"],
    "JAX + optax": ["jax"],
    "JAX with `checkpoint`": ["jax, checkpoint"],
    "JAX, forward mode": ["jax, forward"],
}
JAX = [form for row, forms in MEASURED.items() if row.startswith("JAX") for form in forms]
RATIOS = {
    "`Unroll()`, of TorchOpt's time": (UNROLL, MEASURED["TorchOpt"], "median_seconds"),
    "the same, of its memory": (UNROLL, MEASURED["TorchOpt"], "peak_mib"),
    "`Unroll(compile=True)`, of TorchOpt's time": (COMPILED, MEASURED["TorchOpt"], "median_seconds"),
    "`Unroll()`, of the quickest JAX's time": (UNROLL, JAX, "median_seconds"),
    "`Unroll(compile=True)`, of the quickest JAX's time": (COMPILED, JAX, "median_seconds"),
}


def table(problems: Mapping[str, Any]) -> str:
    """Of the records that bench_hypergradient writes, by name. Cells of what was not measured are empty."""
    head = [name for name in HEAD if name in problems]
    contenders = [problems[name]["contenders"] for name in head]
    rows = [[row, *(_cell(quickest(of, forms)) for of in contenders)] for row, forms in MEASURED.items()]
    for row, (ours, forms, what) in RATIOS.items():
        rows.append([row, *(_ratio(of.get(ours), quickest(of, forms), what) for of in contenders)])
    rows.append(["first call of `Unroll(compile=True)`", *(_first(of.get(COMPILED)) for of in contenders)])
    rows.append(["calls after which it pays", *(_pays(of.get(UNROLL), of.get(COMPILED)) for of in contenders)])
    return "\n".join(markdown(["", *(HEAD[name] for name in head)], rows))


def quickest(contenders: Mapping[str, Any], forms: list[str]) -> dict[str, Any] | None:
    there = [contenders[form] for form in forms if form in contenders]
    return min(there, key=lambda row: row["median_seconds"], default=None)


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    seconds, peak = row["median_seconds"], row["peak_mib"]
    time = f"{seconds:.2f} s" if seconds >= 1 else f"{_short(1e3 * seconds)} ms"
    return f"{time}, {_short(peak)} MiB"


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 10 else f"{number:.1f}"


def _ratio(ours: Mapping[str, Any] | None, theirs: Mapping[str, Any] | None, what: str) -> str:
    return f"{ours[what] / theirs[what]:.2f}" if ours and theirs else ""


def _first(compiled: Mapping[str, Any] | None) -> str:
    return f"{compiled['first_call_seconds']:.0f} s" if compiled else ""


def _pays(eager: Mapping[str, Any] | None, compiled: Mapping[str, Any] | None) -> str:
    if eager is None or compiled is None:
        return ""
    saved = eager["median_seconds"] - compiled["median_seconds"]
    return f"{compiled['first_call_seconds'] / saved:,.0f}" if saved > 0 else "never"
