"""The architecture page of the documentation, drawn from the imports of the package."""

import ast
import io
from collections import defaultdict
from functools import cache
from pathlib import Path

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

PACKAGE = Path(__file__).parents[1] / "groupmorph_monai"
INTRODUCTION = """# Architecture

An arrow points from a package to one that it imports. Imports that follow from others are left out, and
`tests/test_architecture.py` refuses those in the other direction. Data flows from the reader to the report:
`reader or phantom -> preprocessing -> network -> posterior -> alignment -> integration -> transform -> likelihood,
metrics, writers -> report`.

![Packages and their imports](architecture.svg)
"""


def packages() -> list[str]:
    return sorted(folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").exists())


def imports() -> dict[str, set[str]]:
    """Return the packages that each package imports, anywhere in its files."""
    names, result = packages(), defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = parts[: len(parts) - node.level]
                target = (*base, *(node.module or "").split("."))[0]
                if target in names and parts[0] in names and target != parts[0]:
                    result[parts[0]].add(target)
    return result


def direct(edges: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Drop edges that follow from a path through other packages."""

    @cache
    def reachable(start: str) -> frozenset[str]:
        return frozenset().union(*({target} | reachable(target) for target in edges.get(start, ())))

    return [
        (one, other)
        for one, targets in sorted(edges.items())
        for other in sorted(targets)
        if not any(other in reachable(between) for between in targets - {other})
    ]


def drawing() -> str:
    """Draw the packages, each above all that it imports, as SVG."""
    edges = imports()

    @cache
    def height(package: str) -> int:
        return 1 + max((height(target) for target in edges.get(package, ())), default=0)

    rows = defaultdict(list)
    for package in packages():
        rows[height(package)].append(package)
    places = {
        package: (column - (len(row) - 1) / 2, level)
        for level, row in rows.items()
        for column, package in enumerate(row)
    }
    figure = Figure(figsize=(6, 0.9 * len(rows)), layout="constrained")
    axes = figure.subplots()
    box = {"boxstyle": "round,pad=0.5", "facecolor": "#e8eef7", "edgecolor": "#44546a"}
    for name, place in places.items():
        axes.text(*place, name, ha="center", va="center", bbox=box, zorder=2)
    for one, other in direct(edges):
        gap = 14 if places[one][0] == places[other][0] else 36  # points between the ends of an arrow and the names
        style = {"arrowstyle": "-|>", "mutation_scale": 12, "color": "#44546a", "shrinkA": gap, "shrinkB": gap}
        axes.add_patch(FancyArrowPatch(places[one], places[other], zorder=1, **style))
    axes.set(xlim=(-1.6, 1.6), ylim=(0.4, len(rows) + 0.6))
    axes.set_axis_off()
    file = io.StringIO()
    FigureCanvasSVG(figure).print_svg(file)
    return file.getvalue()


def _summary(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.split("\n\n")[0].split()).replace("|", " ")


def page() -> str:
    """List the modules of each package by the first lines of their docstrings."""
    lines = [INTRODUCTION]
    for package in packages():
        lines += [f"## {package}", "", "| module | content |", "|---|---|"]
        for path in sorted((PACKAGE / package).rglob("*.py")):
            if path.name != "__init__.py":
                lines.append(f"| `{path.relative_to(PACKAGE / package)}` | {_summary(path)} |")
        lines.append("")
    return "\n".join(lines)
