"""A problem's figures as a Markdown table."""

from __future__ import annotations

from typing import Any

from experiments.common.report_kit import markdown


def table(record: dict[str, Any]) -> str:
    threads = f"{record['threads']} thread" + ("s" if record["threads"] > 1 else "")
    rows = []
    for name, row in record["contenders"].items():
        ratio = "" if row["time_over_unroll"] is None else f"{row['time_over_unroll']:.2f}"
        cells = [_time(row["median_seconds"]), ratio, _time(row["first_call_seconds"])]
        rows.append([name, *cells, f"{row['peak_mib']:.1f} MiB", f"{row['error']:.1e}"])
    lines = [
        f"**{record['what']}** ({threads}, medians of {record['rounds']}, other processes "
        f"{100 * record['share_of_other_processes']:.0f} % of the machine)",
        "",
        *markdown(["", "time", "of Unroll()", "first call", "peak", "error"], rows),
        "",
        f"Error: relative, of the hypergradient in float64; allowed {record['tolerance']:.1e}.",
    ]
    return "\n".join(lines)


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.1f} ms"
