"""Put a finished result in the place of an earlier one, so that a kill at any moment leaves one of them whole.

The result is complete in a folder of its own, the staging folder, before any of this begins. One file replaces its
predecessor by a rename. Several files replace theirs by one system call, which exchanges the output folder for the
staging folder; files of the output folder that belong to no result come along as hard links.

Two folders cannot be exchanged everywhere: not across a mount point, on some network file systems, or where the output
folder has sub-folders, in which other programs may be at work, or is the current folder. There the staging folder
becomes a journal inside the output folder, out of which files are moved one by one, ``report.json`` last. A run that is
killed meanwhile leaves the journal, and the next run completes it: until then the folder holds no ``report.json``.
"""

import ctypes
import errno
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ..errors import InputError

__all__ = ["PARTIAL", "REPORT", "clean", "journals", "make_staging", "put_in_place", "sync", "to_be_replaced"]

PARTIAL = ".partial-"
REPORT = "report.json"
_JOURNAL = ".commit-"
_STALE = ".stale.json"  # in a journal: files of the earlier result that the new one does not have
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux


def make_staging(folder: Path) -> Path:
    """Make an empty folder on the same file system: beside ``folder`` where the two can be exchanged, else inside."""
    parent = folder.parent
    beside = parent != folder and os.access(parent, os.W_OK) and parent.stat().st_dev == folder.stat().st_dev
    prefix = f".{folder.name}{PARTIAL}" if beside else PARTIAL
    return Path(tempfile.mkdtemp(prefix=prefix, dir=parent if beside else folder))


def clean(folder: Path) -> None:
    """Remove what killed runs have left in or beside ``folder``, and complete a result that one was moving in."""
    for journal in journals(folder):
        _move_in(journal, folder)
    leftovers = _entries(folder, PARTIAL)
    if os.access(folder.parent, os.W_OK):
        leftovers += _entries(folder.parent, f".{folder.name}{PARTIAL}")
    for leftover in leftovers:
        shutil.rmtree(leftover, ignore_errors=True)


def journals(folder: Path) -> list[Path]:
    """Folders with what is left of results that killed runs were moving in."""
    return _entries(folder, _JOURNAL)


def to_be_replaced(folder: Path) -> set[str]:
    """Names of the files and folders that `clean` would remove or replace."""
    names = set()
    for journal in journals(folder):
        with suppress(OSError, ValueError):  # without a list it is not completed
            stale = json.loads((journal / _STALE).read_text())
            names.update(stale, (path.name for path in journal.iterdir()))
    return names


def _entries(folder: Path, prefix: str) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith(prefix) and path.is_dir()]


def put_in_place(staging: Path, folder: Path, stale: Iterable[str] = ()) -> None:
    """Replace the result in ``folder`` by that in ``staging``, whose files are flushed to the disk first.

    Args:
        stale: names of files and folders of the earlier result. Those that are not replaced are removed.
    """
    names, stale = {path.name for path in staging.iterdir()}, set(stale)
    for name in sorted(names):
        if (folder / name).is_dir() and not ((staging / name).is_dir() and name in stale):
            raise InputError(f"{folder / name}: expected a file or none, got a folder; choose another output folder")
    sync(*staging.rglob("*"), staging)
    stale = {name for name in stale - names if os.path.lexists(folder / name)}
    if len(names) == 1 and not stale:
        (name,) = names
        os.replace(staging / name, folder / name)
        sync(folder)
    elif not _exchanged(staging, folder, names | stale):
        _journal(staging, folder, stale)


def sync(*paths: Path) -> None:
    """Flush files and folders to the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:  # which file systems say that cannot flush a folder
                raise
        finally:
            os.close(descriptor)


def _exchanged(staging: Path, folder: Path, replaced: set[str]) -> bool:
    """Exchange the two folders, where that is possible; ``staging`` is then the earlier result."""
    others = [entry for entry in os.scandir(folder) if entry.name not in replaced]
    if staging.parent == folder or _is_current(folder) or any(e.is_dir(follow_symlinks=False) for e in others):
        return False
    try:
        for entry in others:
            os.link(entry.path, staging / entry.name, follow_symlinks=False)
        _take_permissions(staging, folder)
        sync(staging)
        _exchange(staging, folder)
    except OSError:
        for entry in others:
            (staging / entry.name).unlink(missing_ok=True)
        return False
    sync(folder.parent)
    for late in set(os.listdir(staging)) - replaced - {entry.name for entry in others}:
        os.rename(staging / late, folder / late)  # written by another program since they were listed
    return True


def _is_current(folder: Path) -> bool:
    """Whether this process, and so a shell, stands in ``folder``: it would be left in the one that is removed."""
    with suppress(FileNotFoundError):
        current = Path.cwd()
        return folder in (current, *current.parents)
    return False


def _take_permissions(staging: Path, folder: Path) -> None:
    with suppress(PermissionError):
        os.chown(staging, -1, folder.stat().st_gid)
    shutil.copystat(folder, staging)


def _exchange(one: Path, other: Path) -> None:
    """Give each folder the name of the other at once. Raises OSError where the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _journal(staging: Path, folder: Path, stale: set[str]) -> None:
    (staging / _STALE).write_text(json.dumps(sorted(stale)))
    sync(staging / _STALE, staging)
    journal = Path(tempfile.mkdtemp(prefix=_JOURNAL, dir=folder))
    os.rename(staging, journal)
    sync(folder)
    try:
        _move_in(journal, folder)
    except KeyboardInterrupt:
        _move_in(journal, folder)
        raise


def _move_in(journal: Path, folder: Path) -> None:
    """Move the files of a journal to ``folder``. It may be interrupted anywhere and done again."""
    if not (journal / _STALE).exists():  # of a run that was killed before the journal was one, or after it was done
        shutil.rmtree(journal)
        return
    if (journal / REPORT).exists():
        (folder / REPORT).unlink(missing_ok=True)
    for name in json.loads((journal / _STALE).read_text()):
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    files = [path for path in sorted(journal.iterdir()) if path.name != _STALE]
    for file in sorted(files, key=lambda path: path.name == REPORT):
        if (folder / file.name).is_dir():
            shutil.rmtree(folder / file.name)
        os.replace(file, folder / file.name)
    sync(folder)
    shutil.rmtree(journal)
