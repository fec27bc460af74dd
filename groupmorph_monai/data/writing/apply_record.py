"""Record of the files that `apply_field_to_files` wrote to a folder, which it may therefore replace."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from ...errors import InputError
from ..reading.signature import read_text

RECORD = ".groupmorph_apply.json"


def check_replaceable(
    record: Mapping[str, Mapping[str, str]], field: str | Path, files: Iterable[str | Path], targets: Iterable[Path]
) -> None:
    """Check that results replace only those of the same field and input that have not been changed since.

    Args:
        record: what was applied to each result, by its name.
        field: the field.
        files: the input of each target.
        targets: the files to write.

    Raises:
        InputError: If one would replace another file.
    """
    for file, target in zip(files, targets):
        written = record.get(target.name, {})
        if not os.path.lexists(target):
            continue
        if not target.is_file() or _digest(target) != written.get("sha256"):
            raise InputError(
                f"--output: {target} would replace a file that 'apply' did not write, or that was changed since; "
                "move it, or choose another folder"
            )
        if any(written.get(key) != name for key, name in _sources(field, file, target.parent).items()):
            raise InputError(
                f"--output: {target} would replace the result of {written.get('field')} for {written.get('input')}; "
                "choose another folder"
            )


def read_record(folder: Path) -> dict[str, dict[str, str]]:
    """Read what was applied to each result, by its name; empty if there is no record.

    Raises:
        InputError: If the file is not a record.
    """
    path = folder / RECORD
    try:
        record = json.loads(read_text(path))
    except FileNotFoundError:
        return {}
    except PermissionError:
        raise InputError(f"{path}: expected a record that you may read, got none; choose another folder") from None
    except (OSError, ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or not all(isinstance(entry, dict) for entry in record.values()):
        raise InputError(f"{path}: expected the record of an earlier 'apply', got another file; choose another folder")
    return record


def record_entry(field: str | Path, file: str | Path, result: Path, folder: Path) -> dict[str, str]:
    """Describe a ``result`` for ``folder``: the field, the file that it was applied to, and a hash of what was
    written."""
    return {**_sources(field, file, folder), "sha256": _digest(result)}


def _sources(field: str | Path, file: str | Path, folder: Path) -> dict[str, str]:
    """Return the paths relative to the folder of the results, as a study may be moved."""
    paths = {"field": field, "input": file}
    return {name: os.path.relpath(Path(path).resolve(), folder.resolve()) for name, path in paths.items()}


def write_record(record: Mapping[str, Mapping[str, str]], folder: Path) -> None:
    """Write what was applied to each result, by its name."""
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
