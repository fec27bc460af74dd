"""Write tables as CSV and as Markdown with three significant digits."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.writing.output_folder import atomic_file, atomic_folder


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """List the columns of all rows, in the order in which they first appear."""
    return list(dict.fromkeys(column for row in rows for column in row))


def mean_row(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Average each column over rows of the same columns."""
    return {column: float(np.mean([row[column] for row in rows])) for column in rows[0]}


def three_digits(value: object) -> str:
    """Format a cell: texts and integers as they are, other numbers with three significant digits, a dash for unknown
    values."""
    if value is None or isinstance(value, float) and math.isnan(value):
        return "-"
    if isinstance(value, (str, int)):
        return str(value)
    text = f"{value:.3g}"
    return f"{float(text):.0f}" if "e+" in text else text


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Format rows of cells by `three_digits`."""
    lines = [head, ["---"] * len(head), *([three_digits(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)


def write_csv(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Write rows with all their digits, atomically."""
    with atomic_file(file) as partial, open(partial, "w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, columns_of(rows))
        table.writeheader()
        table.writerows(rows)


def write_table(rows: Sequence[Mapping[str, Any]], folder: str | Path, name: str) -> Path:
    """Write ``name.csv`` and ``name.md`` to ``folder`` atomically, and return the Markdown file."""
    folder, columns = Path(folder), columns_of(rows)
    with atomic_folder(folder) as partial:
        table = markdown_table(columns, [[row.get(column) for column in columns] for row in rows])
        (partial / f"{name}.md").write_text(table + "\n", encoding="utf-8")
        write_csv(rows, partial / f"{name}.csv")
    return folder / f"{name}.md"
