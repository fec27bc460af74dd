import re

import pytest

from experiments import tables
from experiments.tables import MEASURED, PAGES, page_with_tables

TEXTS = {page.name: page.read_text(encoding="utf-8") for page in PAGES.glob("*.md")}


@pytest.mark.parametrize("page", TEXTS)
def test_pages_show_the_measured_results(page):
    assert page_with_tables(TEXTS[page]) == TEXTS[page], "run python -m experiments.tables"


def test_every_result_is_on_one_page():
    shown = [name for text in TEXTS.values() for name in re.findall(r"<!-- table: (\w+) -->", text)]
    assert sorted(shown) == sorted(file.stem for file in MEASURED.glob("*.csv"))


def test_numbers_are_rounded_and_texts_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MEASURED", tmp_path)
    (tmp_path / "a.csv").write_text('method,"folds, %",K\n"a, b",0.12345,1024\nc,,2\n', encoding="utf-8")
    page = "before\n\n<!-- table: a -->\n\n| earlier |\n|---|\n\nafter\n"
    table = "| method | folds, % | K |\n| --- | --- | --- |\n| a, b | 0.123 | 1024 |\n| c | - | 2 |\n"
    assert page_with_tables(page) == f"before\n\n<!-- table: a -->\n\n{table}\nafter\n"
