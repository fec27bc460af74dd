"""The manifest of a study: a table of its series, checked completely before registration starts."""

import argparse
import csv
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from ...data.reading.signature import read_text
from ...errors import InputError
from ..option_types import reference, spacing_mm
from .checks import check_apart, check_exist, check_folder_name, check_not_overwritten, check_scans

_REQUIRED = ("name", "scans")
_OPTIONS = ("reference", "mask", "spacing_mm", "series_description")


@dataclass(frozen=True)
class ManifestRow:
    """A line of the manifest.

    Args:
        name: unique name of the series and of its folder.
        files: the scans, or a folder of scans; absolute paths.
        options: options of ``groupmorph register`` for this series alone, by name.
        count: number of scans; 0 if it is unknown.
    """

    name: str
    files: list[str]
    options: dict[str, object] = field(default_factory=dict)
    count: int = 0


def read_manifest(manifest: str | Path, output: str | Path, common_reference: str = "mean") -> list[ManifestRow]:
    """Read a table of tab-separated values with a header line.

    ``name`` and ``scans`` are required; ``reference``, ``mask``, ``spacing_mm`` and ``series_description`` are
    optional. Files in one cell are separated by ``;``. Relative paths are relative to the manifest's folder.

    Args:
        output: folder for the results, which must not contain any of the scans.
        common_reference: reference of the lines without one.

    Raises:
        InputError: If any line is invalid. Several mistakes are first printed to standard error, one per line.
    """
    rows = _rows(Path(manifest))
    number, header = rows[0] if rows else (1, [])
    if mistake := _header_mistake(header):
        raise InputError(f"{manifest}: line {number}: {mistake}")
    series, mistakes = [], []
    first_lines: dict[object, int] = {}  # number of the first line with a name, or with the same scans and options
    for number, cells in rows[1:]:
        try:
            values = _named(header, cells)
            if (first := first_lines.setdefault(values["name"].casefold(), number)) != number:
                raise InputError(f"name: expected a unique name, got {values['name']!r} as on line {first}")
            row = _series(values, Path(manifest).resolve().parent, output, common_reference)
            content = tuple(map(os.path.realpath, row.files)), repr(row.options)
            if (first := first_lines.setdefault(content, number)) != number:
                raise InputError(f"scans: expected every series once, got the scans and options of line {first}")
            series.append(row)
        except (InputError, argparse.ArgumentTypeError) as error:
            mistakes.append(f"{manifest}: line {number}: {error}")
    if len(mistakes) == 1:
        raise InputError(f"{mistakes[0]}; correct the line, nothing was registered")
    if mistakes:
        print(*(f"groupmorph: {mistake}" for mistake in mistakes), sep="\n", file=sys.stderr)
        raise InputError(
            f"{manifest}: expected valid lines, got {len(mistakes)} invalid; correct them, nothing was registered"
        )
    if not series:
        raise InputError(f"{manifest}: expected one line per series after the header, got none; add your series")
    return series


def _rows(manifest: Path) -> list[tuple[int, list[str]]]:
    """Read line numbers and cells, without empty lines and comments (``#``)."""
    try:
        text = read_text(manifest)
        with _cells_of_any_length(text):
            reader = csv.reader(io.StringIO(text), delimiter="\t", strict=True)
            rows = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except FileNotFoundError:
        raise InputError(f"{manifest}: expected a tab-separated table, found none; check the path") from None
    except OSError as error:
        raise InputError(
            f"{manifest}: expected a tab-separated table, got {error.strerror or error}; use a file that can be read"
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{manifest}: expected a tab-separated table in UTF-8, got {error}; convert it") from error
    return [(number, cells) for number, cells in rows if any(cells) and not cells[0].startswith("#")]


@contextmanager
def _cells_of_any_length(text: str) -> Iterator[None]:
    """Raise the limit of `csv`, which a list of a thousand scans exceeds, for this text only: it holds for the whole
    process."""
    limit = csv.field_size_limit()
    csv.field_size_limit(max(limit, len(text)))
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _header_mistake(header: Sequence[str]) -> str | None:
    unknown = [name for name in header if name not in (*_REQUIRED, *_OPTIONS)]
    if len(set(header)) == len(header) and not unknown and set(_REQUIRED) <= set(header):
        return None
    return (
        f"expected the columns {' and '.join(_REQUIRED)}, optionally {', '.join(_OPTIONS)}, separated by tabs, got "
        f"{', '.join(map(repr, header)) or 'none'}"
    )


def _named(header: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    """Return the cells of a line with a valid name by column."""
    if len(cells) != len(header):
        raise InputError(f"expected {len(header)} cells separated by tabs, got {len(cells)}")
    row = dict(zip(header, cells, strict=True))
    check_folder_name(row["name"])
    return row


def _series(row: Mapping[str, str], folder: Path, output: str | Path, common_reference: str) -> ManifestRow:
    read: Mapping[str, Callable[[str], object]] = {
        "reference": reference,
        "mask": lambda text: _files("mask", text, folder),
        "spacing_mm": spacing_mm,
        "series_description": str,
    }
    options = {}
    for column in _OPTIONS:
        if row.get(column):
            try:
                options[column] = read[column](row[column])
            except argparse.ArgumentTypeError as error:
                raise InputError(f"{column}: {error}") from None
    files = _files("scans", row["scans"], folder)
    check_apart(files, output)
    number = str(options.get("reference", common_reference))
    description = cast(str | None, options.get("series_description"))
    count = check_scans(files, description, int(number) if number.isdecimal() else None)
    masks = cast(list[str], options.get("mask", []))
    check_not_overwritten("mask", masks, output)
    _check_masks(masks, count)
    return ManifestRow(row["name"], files, options, count)


def _check_masks(masks: Sequence[str], count: int) -> None:
    """Refuse folders as masks, and masks for some of ``count`` scans; 0 if their number is unknown."""
    for file in masks:
        if os.path.isdir(file):
            raise InputError(f"mask: expected a file, got the folder {file}")
    if count and len(masks) not in (0, 1, count):
        raise InputError(f"mask: expected one file, or one for each of the {count} scans, got {len(masks)}")


def _files(column: str, text: str, folder: Path) -> list[str]:
    names = [name.strip() for name in text.split(";")]
    if not all(names):
        raise InputError(f"{column}: expected paths separated by ';', got {text!r}")
    files = [os.path.abspath(folder / name) for name in names]
    check_exist(column, files)
    return files
