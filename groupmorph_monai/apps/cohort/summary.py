"""Summary of a cohort: a table and an HTML page with the status of each series."""

import csv
import html
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data.writing.output_folder import atomic_file
from .folders import PAGE, PAGE_START, TABLE, CohortFolder, Job

Row = dict[str, Any]  # values of one series, by column

_STATUS = ("seconds", "memory_gb", "attempt", "host", "error")
_STATES = ("failed", "waiting", "finished")  # worst first
_VERDICTS = ("FAIL", "LOOK", None, "PASS")  # worst first
_STYLE = """body { font: 14px sans-serif; margin: 2em } table { border-collapse: collapse }
td, th { padding: 3px 10px; text-align: left; border-bottom: 1px solid #ddd } td.number { text-align: right }
.failed, .FAIL { background: #fbd9d9 } .LOOK, .waiting { background: #fdf3cf }"""


@dataclass(frozen=True)
class Results:
    """Columns of the table and of the page for the results of a command.

    Args:
        columns: names of the values.
        read: function that reads the values from the folder of a finished series.
        page: file in that folder to which the page links.
    """

    columns: Sequence[str]
    read: Callable[[Path], Row]
    page: str


def summarise(cohort: CohortFolder, jobs: Sequence[Job], results: Results) -> dict[str, int]:
    """Write ``cohort.tsv``, in the order of the jobs, and ``cohort.html``, worst series first.

    Returns:
        Number of series by state.
    """
    rows = [_row(cohort, job, results) for job in jobs]
    columns = ("name", "state", *results.columns, *_STATUS, "folder")
    with (
        atomic_file(cohort.root / TABLE) as path,
        open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        table = csv.DictWriter(file, columns, delimiter="\t", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    states = {state: sum(row["state"] == state for row in rows) for state in _STATES}
    with atomic_file(cohort.root / PAGE) as path:
        path.write_text(
            "\n".join(_page(sorted(rows, key=_worst_first), columns, states, results.page)),
            encoding="utf-8",
            errors="replace",
        )
    return states


def _row(cohort: CohortFolder, job: Job, results: Results) -> Row:
    row: Row = {"name": job["name"], "state": "waiting"}
    if status := cohort.finished(job):
        folder = cohort.series(job["name"])
        with suppress(OSError, ValueError):  # removed, or broken
            row |= results.read(folder)
    elif status := cohort.failure(job):
        folder = cohort.failed(job["name"])
    else:
        return row
    row |= {name: status.get(name) for name in ("state", *_STATUS)}
    return {**row, "folder": folder.relative_to(cohort.root).as_posix()}


def _worst_first(row: Row) -> tuple[int, int, float, float]:
    """Compute a sort key: by state, then by verdict, then by landmark distance, then by similarity."""
    verdict = row.get("verdict")
    similarity = row.get("nmi_after")
    return (
        _STATES.index(row["state"]),
        _VERDICTS.index(verdict if verdict in _VERDICTS else None),
        -row.get("landmark_after_mm_mean", 0.0),
        -math.inf if similarity is None else similarity,
    )


def _page(rows: Sequence[Row], columns: Sequence[str], states: Mapping[str, int], page: str) -> Iterator[str]:
    yield f"{PAGE_START}<style>{_STYLE}</style>"
    hours = sum(row.get("seconds") or 0 for row in rows) / 3600
    counts = ", ".join(f"{number} {state}" for state, number in states.items())
    yield f"<h1>{len(rows)} series: {counts}</h1>\n<p>{hours:.2f} hours of processing. Worst series first.</p>"
    columns = [name for name in columns if name != "folder" and any(row.get(name) not in (None, "") for row in rows)]
    yield f"<table>\n<tr>{''.join(f'<th>{name}</th>' for name in columns)}</tr>"
    for row in rows:
        kind = row["state"] if row["state"] != "finished" else row.get("verdict") or "finished"
        yield f'<tr class="{html.escape(kind)}">{"".join(_cell(row, name, page) for name in columns)}</tr>'
    yield "</table>\n</html>\n"


def _cell(row: Row, column: str, page: str) -> str:
    value = row.get(column)
    if isinstance(value, (int, float)):
        return f'<td class="number">{value:.4g}</td>'
    text = html.escape("" if value is None else str(value))
    if column == "name" and row.get("folder"):
        shown = page if row["state"] == "finished" else "log.txt"
        text = f'<a href="{html.escape(row["folder"])}/{shown}">{text}</a>'
    return f"<td>{text}</td>"
