"""Write the table as a Markdown page with statistics and figures."""

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...data.writing.output_folder import atomic_file
from ...evaluation.report import versions
from ..tables import markdown_table, three_digits, write_csv
from . import published
from .cells import NONE, TRUTH, Cell
from .figures import draw_landmarks, draw_scaling, draw_slices
from .methods import MethodDescription
from .statistics import means, paired_differences

# Column of the cells, title.
_COLUMNS = {
    "seconds": "wall s",
    "processor_seconds": "CPU s",
    "peak_memory_gb": "peak GB",
    "rmse": "RMSE",
    "nmi": "NMI",
    "landmarks_mm_mean": "landmarks mm",
    "true_error_mm": "true error mm",
    "folding_percent": "% J ≤ 0",
    "non_diffeomorphic_volume_percent": "% folded volume",
    "inverse_consistency_mm": "inverse mm",
    "lesion_volume_error_percent": "lesion volume error %",
    "curve_roughness_percent": "curve roughness %",
}
_DIFFERENCE_HEAD = ("method", "column", "series", "difference", "from", "to", "p")
_LEGEND = """\
Means over the series. Times are from the volumes in memory to the fields; peak memory is that of the whole process,
including libraries. RMSE is in the scans' units, NMI is 2 I / (H + H) with 64 bins, both over all pairs of timepoints.
Landmarks are mapped from each timepoint to every other one through the common space: mean ± standard deviation of the
distances. The true error is the same for points spread over all tissue, for phantoms with known motion; the row
"Truth" shows the error of the measurement. "% J ≤ 0" uses central differences; "% folded volume" is the stricter
measure of Liu et al. 2022, from all ten tetrahedra of each cell. "Inverse" is the inverse consistency error, for
programs that return both directions. The lesion volume error compares lesions mapped from each timepoint to every
other one with the true ones. Curve roughness is the difference of a voxel's intensities from linear interpolation
between its neighbours in time, as a percentage of the intensity range."""
_DIFFERENCES = """\
Mean over the series, 95 % bootstrap interval, p of the Wilcoxon signed-rank test (never below 0.05 for fewer than six
series)."""


def write_page(
    cells: Sequence[Cell],
    rows: Mapping[str, MethodDescription],
    output: Path,
    against: str,
    settings: Mapping[str, object],
    scaling: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write ``paper.md``, ``paper.csv`` (one line per series and method), ``paper_differences.csv`` and the figures.

    Args:
        rows: descriptions of the methods, by name.
        against: method to which the others are compared.
        settings: settings of the run, stated on the page.
        scaling: data of `draw_scaling`.
    """
    titles = {NONE: "No registration", TRUTH: "Truth", **{name: row.title for name, row in rows.items()}}
    table, differences = means(cells), paired_differences(cells, against)
    rows_of_cells = [{"series": c.case, "method": c.method, "status": c.status, **c.numbers} for c in cells]
    write_csv(rows_of_cells, output / "paper.csv")
    write_csv(differences, output / "paper_differences.csv")
    draw_slices(cells, titles, output / "paper_slices.png")
    boxes = draw_landmarks(cells, titles, output / "paper_landmarks.png")
    if scaling:
        draw_scaling(scaling, titles, output / "paper_scaling.png")
    parts = [
        "# Table 1",
        "; ".join(f"{name}: {value}" for name, value in settings.items()) + ".",
        markdown_table(["method", *_COLUMNS.values()], [_measured(titles[name], row) for name, row in table.items()]),
        _LEGEND,
        "## Expectations",
        "\n".join(f"- {line}" for line in expectations(table, rows)),
        f"## Differences from {titles.get(against, against)}",
        _DIFFERENCES,
        markdown_table(_DIFFERENCE_HEAD, [_line(row, titles) for row in differences]),
        "## Figures",
        "![Mean of the timepoints minus the first one, and Jacobian determinant](paper_slices.png)",
        *(["![Landmark distances](paper_landmarks.png)"] if boxes else []),
        *(["![Seconds against voxels and timepoints](paper_scaling.png)"] if scaling else []),
        "## Numbers of the paper",
        markdown_table(published.COLUMNS, published.TABLE_1),
        published.COMPARABLE,
        "## Versions",
        f"{platform.machine()}, {platform.system()}; " + ", ".join(f"{k} {v}" for k, v in versions().items()),
    ]
    with atomic_file(output / "paper.md") as partial:
        partial.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return output / "paper.md"


def expectations(table: Mapping[str, Mapping[str, Any]], rows: Mapping[str, MethodDescription]) -> list[str]:
    """List expectations from the paper and this project, and whether each holds here."""
    done = {name: table[name] for name in rows if table.get(name, {}).get("series")}
    networks = {n: done[n] for n in done if rows[n].ours and not n.startswith("set-")}
    groups = [n for n in networks if rows[n].group_wise]
    pairs = [n for n in networks if not rows[n].group_wise]
    lines = []
    for column, sign in (("rmse", 1), ("nmi", -1)):
        if groups and pairs:
            worst, best = max(sign * done[n][column] for n in groups), min(sign * done[n][column] for n in pairs)
            lines.append(
                f"{_holds(worst < best)}: group-wise networks have a better {column.upper()} than pair-wise ones"
            )
    folds = [done[n]["folding_percent"] for n in networks if n.endswith("-diff")]
    if folds:
        lines.append(
            f"{_holds(max(folds) < 1e-3)}: diffeomorphic rows fold less than 0.001 % (at most {max(folds):.2g} %)"
        )
    peers, ours = [n for n in done if not rows[n].ours], done.get("set-refined", {})
    near = {n: done[n]["landmarks_mm_mean"] for n in peers if "landmarks_mm_mean" in done[n]}
    if near and "landmarks_mm_mean" in ours:
        best = min(near, key=lambda name: near[name])
        ahead = ours["landmarks_mm_mean"] < near[best]
        lines.append(
            f"{_holds(ahead)}: GroupMorph-set, refined, is more accurate than every peer (best: {rows[best].title})"
        )
    if ours and "elastix-breast" in done:
        ratio = done["elastix-breast"]["seconds"] / ours["seconds"]
        lines.append(f"{_holds(ratio >= 10)}: it takes at most a tenth of Elastix' time (1 / {ratio:.1f} of Par0032's)")
    return lines or ["Too few rows have results"]


def _holds(true: bool) -> str:
    return "Holds" if true else "Does not hold"


def _measured(title: str, row: Mapping[str, Any]) -> list[str]:
    if not row["series"]:
        return [title, str(row["status"]), *[""] * (len(_COLUMNS) - 1)]
    cells = [three_digits(row.get(column)) for column in _COLUMNS]
    spread = row.get("landmarks_mm_sd")
    if spread is not None:
        cells[list(_COLUMNS).index("landmarks_mm_mean")] += f" ± {three_digits(spread)}"
    missing = "" if row["status"] == "ok" else f" ({row['series']} series; {row['status']})"
    return [title + missing, *cells]


def _line(row: Mapping[str, Any], titles: Mapping[str, str]) -> list[str]:
    values = (three_digits(row[name]) for name in ("difference", "low", "high", "p"))
    return [titles[row["method"]], _COLUMNS[row["column"]], str(row["series"]), *values]
