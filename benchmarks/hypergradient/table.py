"""A problem's figures as a Markdown table."""

from __future__ import annotations

from typing import Any


def table(record: dict[str, Any]) -> str:
    threads = f"{record['threads']} thread" + ("s" if record["threads"] > 1 else "")
    kept = any("heap_kept" in row for row in record["contenders"].values())
    head = ["", "time", "of Unroll()", *(["of Unroll(), heap kept"] if kept else []), "first call", "peak", "error"]
    lines = [
        f"**{record['what']}** ({threads}, medians of {record['rounds']}, other processes "
        f"{100 * record['share_of_other_processes']:.0f} % of the machine)",
        "",
        "| " + " | ".join(head) + " |",
        "|---" + "|--:" * (len(head) - 1) + "|",
    ]
    for name, row in record["contenders"].items():
        cells = [name, _time(row["median_seconds"]), _ratio(row["time_over_unroll"])]
        if kept:
            cells.append(_ratio(row.get("heap_kept", {}).get("time_over_unroll")))
        cells += [_time(row["first_call_seconds"]), _mib(row.get("peak_mib")), f"{row['error']:.1e}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(
        [*lines, "", f"Error: relative, of the hypergradient in float64; allowed {record['tolerance']:.1e}."]
    )


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.1f} ms"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _mib(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} MiB"
