"""The table in the terminal, and report.md."""

from rich.console import Console

from experiments.common import checkpoint
from experiments.common.record import RunRecord
from experiments.common.tables import in_terminal, markdown, provenance
from experiments.recipes import published
from experiments.recipes.published import PUBLISHED, Published


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


def _errors(content: dict) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Tables of what is measured besides the metric, by title."""
    results = content["results"]
    tables = {}
    for error, columns in next(iter(results.values())).get("errors", {}).items():
        rows = [
            [method, *(f"{result['errors'][error][name]:.1f}" for name in columns)]
            for method, result in results.items()
        ]
        tables[f"{error.capitalize()}; lower is better"] = (["method", *columns], rows)
    return tables


def _setting(content: dict) -> list[str]:
    config, pictures = content["config"], content["pictures"]
    held_out = f", {pictures['validation']:,} to choose the epoch by" if pictures["validation"] else ""
    return [
        f"{content['metric']} in %, one seed ({config['seed']}); weights from {config['checkpoint']}.",
        f"{pictures['train']:,} pictures to train on{held_out}.",
        f"Recipe {config['name']}: {config['source']}.",
        f"Stated by no source that was read, so chosen here: {', '.join(config['chosen'])}.",
    ]


def _published(content: dict) -> Published | None:
    """All of them are of all training pictures."""
    config = content["config"]
    return PUBLISHED.get(config["name"]) if config["percent"] == 100 else None


def show(record: RunRecord, console: Console) -> None:
    in_terminal(console, record.content["config"]["title"], *_table(record.content))
    for title, table in _errors(record.content).items():
        in_terminal(console, title, *table)
    if (others := _published(record.content)) is not None:
        in_terminal(console, f"Published ({others.source})", *published.table(others))
    for line in _setting(record.content):
        console.print(line)
    console.print(f"Report and numbers: {record.folder}")


def write_report(record: RunRecord) -> None:
    content = record.content
    lines = [f"# {content['config']['title']}", ""]
    for line in _setting(content):
        lines += [line, ""]
    lines += [*markdown(*_table(content)), ""]
    for title, table in _errors(content).items():
        lines += [f"{title}:", "", *markdown(*table), ""]
    if (others := _published(content)) is not None:
        lines += [f"Published ({others.source}), by other code on other machines:", ""]
        lines += [*markdown(*published.table(others)), ""]
    lines += provenance(content)
    checkpoint.write_text(record.folder / "report.md", "\n".join(lines) + "\n")
