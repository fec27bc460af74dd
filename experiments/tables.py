"""Write the measured results in ``experiments/measured`` as tables into the pages of the documentation.

``python -m experiments.tables`` (``make tables``) updates all of them. A page marks the place of the table of
``NAME.csv`` by ``<!-- table: NAME -->``. To update one, copy the CSV that the benchmark or experiment wrote, and
run the command.
"""

import csv
import re
from pathlib import Path

from groupmorph_monai.benchmarks.tables import markdown_table

MEASURED = Path(__file__).parent / "measured"
PAGES = Path(__file__).parents[1] / "bundle" / "docs"

_MARKER = re.compile(r"(<!-- table: (\w+) -->\n\n)(?:\|.*\n)*")


def _cell(text: str) -> str | float | None:
    """Parse a cell; integers stay texts, as counts keep all their digits."""
    try:
        return text if re.fullmatch(r"\d+", text) else float(text)
    except ValueError:
        return text or None


def _table(name: str) -> str:
    with open(MEASURED / f"{name}.csv", encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    return markdown_table(head, [[_cell(text) for text in row] for row in rows])


def page_with_tables(text: str) -> str:
    """Replace every marked table of a page with the one in ``measured``."""
    return _MARKER.sub(lambda match: f"{match[1]}{_table(match[2])}\n", text)


if __name__ == "__main__":
    for page in PAGES.glob("*.md"):
        page.write_text(page_with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
