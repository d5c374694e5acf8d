"""Figures of one number of steps as a Markdown table."""

from __future__ import annotations

from typing import Any

from experiments.common.report_kit import markdown

HEAD = ["", "peak", "of the plain loop's", "time", "of the plain loop's", "difference"]


def table(record: dict[str, Any]) -> str:
    rows, threads = record["contenders"], record["threads"]
    busy = max(row["share_of_other_processes"] for row in rows.values())
    lines = [
        f"**{record['steps']} steps** of {record['size']} x {record['length']} tokens ({threads} "
        f"thread{'s' if threads > 1 else ''}, at most {record['limit'] / 2**30:.1f} GiB, other processes at most "
        f"{100 * busy:.0f} % of the machine)",
        "",
        *markdown(HEAD, [[name, *_cells(row)] for name, row in rows.items()]),
    ]
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> list[str]:
    if "died" in row:
        return ["died: " + row["died"], "", "", "", ""]
    of_plain = [f"{row[key]:.2f}" if key in row else "" for key in ("peak_over_plain", "time_over_plain")]
    difference = f"{row['difference']:.1e}" if "difference" in row else ""
    return [
        f"{row['peak_bytes'] / 2**30:.2f} GiB",
        of_plain[0],
        f"{row['median_seconds']:.1f} s",
        of_plain[1],
        difference,
    ]
