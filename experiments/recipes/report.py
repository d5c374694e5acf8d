"""The table in the terminal, and report.md."""

from rich.console import Console
from rich.table import Table

from experiments.common import checkpoint
from experiments.common.record import RunRecord
from experiments.common.tables import markdown, provenance


def _table(content: dict) -> tuple[list[str], list[list[str]]]:
    results = content["results"]
    columns = list(next(iter(results.values()))["columns"])
    rows = [
        [
            method + (" (diverged)" if result["diverged"] else ""),
            *(f"{result['columns'][name]:.1f}" for name in columns),
            f"{result['seconds']:.0f}",
        ]
        for method, result in results.items()
    ]
    return ["method", *columns, "seconds"], rows


def _setting(content: dict) -> list[str]:
    config = content["config"]
    return [
        f"{content['metric']} in %, one seed ({config['seed']}); weights from {config['checkpoint']}.",
        f"Recipe {config['name']}: {config['source']}.",
        f"Stated by no source that was read, so chosen here: {', '.join(config['chosen'])}.",
    ]


def show(record: RunRecord, console: Console) -> None:
    header, rows = _table(record.content)
    table = Table(title=record.content["config"]["title"])
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for line in _setting(record.content):
        console.print(line)
    console.print(f"Report and numbers: {record.folder}")


def write_report(record: RunRecord) -> None:
    content = record.content
    lines = [f"# {content['config']['title']}", ""]
    for line in _setting(content):
        lines += [line, ""]
    lines += [*markdown(*_table(content)), "", *provenance(content)]
    checkpoint.write_text(record.folder / "report.md", "\n".join(lines) + "\n")
