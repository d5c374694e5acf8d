"""What the reports of studies share: numbers with their errors, tables, paired differences, and report.md."""

from collections.abc import Iterable, Sequence

from rich.table import Table as RichTable

from experiments.common import checkpoint
from experiments.common.estimate import Estimate, estimate
from experiments.common.record import RunRecord

Table = tuple[list[str], list[list[str]]]  # header, rows


def fixed(value: Estimate | None, digits: int = 1, signed: bool = False) -> str:
    """Mean and error with so many digits after the point; None stands for a training that diverged.

    >>> fixed((1.25, 0.5), 2), fixed((1.0, None), signed=True), fixed(None)
    ('1.25 ± 0.50', '+1.0', 'diverged')
    """
    if value is None:
        return "diverged"
    mean, error = value
    number = f"{mean:{'+' if signed else ''}.{digits}f}"
    return number if error is None else f"{number} ± {error:.{digits}f}"


def significant(value: Estimate) -> str:
    """Three digits of the mean that matter, whatever its size, and one of its error."""
    mean, error = value
    return f"{mean:.3g}" if error is None else f"{mean:.3g} ± {error:.1g}"


def paired(own: Iterable[float], other: Iterable[float]) -> Estimate:
    """The difference, seed by seed."""
    return estimate([a - b for a, b in zip(own, other, strict=True)])


def over(seeds: Sequence[int]) -> str:
    """What a number is the mean of."""
    return f"{'mean ± standard error over seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}"


def bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    return [
        "| " + " | ".join(header) + " |",
        "|---" + "|--:" * (len(header) - 1) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def in_terminal(title: str, header: list[str], rows: list[list[str]]) -> RichTable:
    """A table whose first column are words."""
    table = RichTable(title=title)
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    return table


def where(record: RunRecord) -> str:
    return f"Report, figures and numbers: {record.folder} (in all {record.content['wall_seconds']:.0f} s)"


def provenance(content: dict) -> list[str]:
    """Config, versions, commit; those of later sessions too, where they are others."""
    first, *later = (_made_with(about) for about in (content["environment"], *content.get("resumed_with", [])))
    return [
        "Config: " + ", ".join(f"{name} {value}" for name, value in content["config"].items()) + ".",
        "",
        first,
        *(f"Gone on with: {made}" for made in later),
    ]


def _made_with(about: dict) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in about["packages"].items() if number)
    changes = " with uncommitted changes" if about["git_changes"] else ""
    return (
        f"{about['processor']}, {about['threads']} threads; Python {about['python']}, {packages}; commit "
        f"{about['git_commit'] or 'unknown'}{changes}."
    )


def write(record: RunRecord, title: str, *blocks: str | Table | None) -> None:
    """report.md: paragraphs and tables, with an empty line between them, and then what it was made with."""
    parts = [block if isinstance(block, str) else "\n".join(markdown(*block)) for block in blocks if block]
    text = "\n\n".join([f"# {title}", *parts, "\n".join(provenance(record.content))])
    checkpoint.write_text(record.folder / "report.md", text + "\n")
