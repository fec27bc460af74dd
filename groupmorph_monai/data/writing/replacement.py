"""Replace an earlier result with a new one, so that a kill at any moment leaves one of them complete.

The new result is complete in a staging folder before the replacement starts. A single file replaces its predecessor by
a rename. Several files do so by one system call, which exchanges the output folder for the staging folder; files of the
output folder that belong to no result are kept as hard links.

Folders cannot always be exchanged: not across mount points, not on some network file systems, and not if the output
folder is the current folder or has sub-folders that other programs may be using. In these cases the staging folder
becomes a journal inside the output folder, from which files are moved one by one, ``report.json`` and ``status.json``
last. If the run is killed, the next run completes the journal; until then the folder contains neither of the two.
"""

import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ...errors import InputError

PARTIAL = ".partial-"
REPORT = "report.json"
_LAST = (REPORT, "status.json")  # they tell that a result is complete, in the order of moving
_JOURNAL = ".commit-"
_STALE = ".stale.json"  # in a journal: files of the earlier result that the new one lacks
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # Linux constants


def make_staging(folder: Path) -> Path:
    """Create an empty folder on the same file system: next to ``folder`` if the two can be exchanged, else inside."""
    parent = folder.parent
    beside = parent != folder and os.access(parent, os.W_OK) and parent.stat().st_dev == folder.stat().st_dev
    prefix = _prefix_beside(folder) if beside else PARTIAL
    return Path(tempfile.mkdtemp(prefix=prefix, dir=parent if beside else folder))


def _prefix_beside(folder: Path) -> str:
    """Return the prefix of the staging folders next to ``folder``; for a long name a hash, as names are limited."""
    name = os.fsencode(folder.name)
    return f".{folder.name if len(name) <= 200 else hashlib.sha256(name).hexdigest()}{PARTIAL}"


def clean(folder: Path) -> None:
    """Remove leftovers of killed runs in and next to ``folder``, and complete a result that one was moving."""
    for journal in journals(folder):
        _move_in(journal, folder)
    leftovers = _entries(folder, PARTIAL)
    if os.access(folder.parent, os.W_OK):
        leftovers += _entries(folder.parent, _prefix_beside(folder))
    for leftover in leftovers:
        shutil.rmtree(leftover, ignore_errors=True)


def journals(folder: Path) -> list[Path]:
    """List the journals of results that killed runs were moving."""
    return _entries(folder, _JOURNAL)


def check_whole(folder: Path) -> None:
    """Check that a registration in ``folder`` is not partly replaced by another one.

    Raises:
        InputError: If a run was stopped while it moved its result to the folder.
    """
    with suppress(OSError):  # a folder whose files may be read, but not listed
        if any((journal / REPORT).exists() for journal in journals(folder)):
            raise InputError(f"{folder}: a stopped run was replacing this result; run register again")


def to_be_replaced(folder: Path) -> set[str]:
    """List the names of files and folders that `clean` would remove or replace."""
    names: set[str] = set()
    for journal in journals(folder):
        with suppress(FileNotFoundError):  # a journal without a list is discarded
            names.update(_stale_names(journal), (path.name for path in journal.iterdir()))
    return names


def _stale_names(journal: Path) -> list[str]:
    """Read the list of a journal, which must not name anything outside the output folder."""
    file = journal / _STALE
    try:
        names = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(
        isinstance(name, str) and name == Path(name).name and name not in ("", "..") for name in names
    ):
        raise InputError(
            f"{file}: expected a list of files that a stopped run was replacing, got a damaged one; remove {journal}"
        )
    return names


def _entries(folder: Path, prefix: str) -> list[Path]:
    """List folders that `tempfile.mkdtemp` created with this prefix."""
    name = re.compile(re.escape(prefix) + "[a-z0-9_]{8}")
    return [path for path in folder.iterdir() if name.fullmatch(path.name) and path.is_dir()]


def put_in_place(staging: Path, folder: Path, stale: Iterable[str] = ()) -> None:
    """Replace the result in ``folder`` with that in ``staging``, after flushing its files to the disk.

    Args:
        stale: names of files and folders of the earlier result; those that are not replaced are removed.
    """
    names, stale = {path.name for path in staging.iterdir()}, set(stale)
    check_names(folder, names - {name for name in stale if (staging / name).is_dir()})
    check_ownership(folder, names | stale)
    sync(*staging.rglob("*"), staging)
    stale = {name for name in stale - names if os.path.lexists(folder / name)}
    if len(names) == 1 and not stale:
        (name,) = names
        os.replace(staging / name, folder / name)
        sync(folder)
    elif not _exchanged(staging, folder, names | stale):
        _journal(staging, folder, stale)


def move_in_place(staging: Path, folder: Path, stale: Iterable[str] = ()) -> None:
    """Move ``staging`` to ``folder``, after flushing its files to the disk, or replace an earlier result there.

    Args:
        stale: as for `put_in_place`.
    """
    if folder.is_dir():
        put_in_place(staging, folder, stale)
        return
    sync(*staging.rglob("*"), staging)
    folder.parent.mkdir(exist_ok=True)
    os.rename(staging, folder)
    sync(folder.parent)


def check_names(folder: Path, names: Iterable[str]) -> None:
    """Check that no file of a result has the name of a folder in ``folder``.

    Raises:
        InputError: If one has.
    """
    for name in sorted(names):
        if (folder / name).is_dir():
            raise InputError(f"{folder / name}: expected a file or none, got a folder; choose another output folder")


def check_ownership(folder: Path, names: Iterable[str]) -> None:
    """Check that this user may replace files in ``folder``: in one with the sticky bit, such as ``/tmp``, only their
    owner may, that of the folder, and root.

    Raises:
        InputError: If one is of another user.
    """
    status = folder.stat()
    if not status.st_mode & stat.S_ISVTX or not hasattr(os, "geteuid") or os.geteuid() in (0, status.st_uid):
        return
    for name in sorted(names):
        with suppress(FileNotFoundError):
            if (folder / name).lstat().st_uid != os.geteuid():
                raise InputError(
                    f"{folder / name}: expected a file of your own, or none, got one of another user, which {folder} "
                    "protects (sticky bit); choose another output folder"
                )


def sync(*paths: Path) -> None:
    """Flush files and folders to the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:  # raised by file systems that cannot flush a folder
                raise
        finally:
            os.close(descriptor)


def _exchanged(staging: Path, folder: Path, replaced: set[str]) -> bool:
    """Exchange the two folders if possible; ``staging`` then contains the earlier result."""
    unrelated = [entry for entry in os.scandir(folder) if entry.name not in replaced]
    if staging.parent == folder or _is_current(folder) or any(e.is_dir(follow_symlinks=False) for e in unrelated):
        return False
    try:
        for entry in unrelated:
            os.link(entry.path, staging / entry.name, follow_symlinks=False)
        _take_permissions(staging, folder)
        sync(staging)
        _exchange(staging, folder)
    except OSError:
        for entry in unrelated:
            (staging / entry.name).unlink(missing_ok=True)
        return False
    sync(folder.parent)
    for late in set(os.listdir(staging)) - replaced - {entry.name for entry in unrelated}:
        os.rename(staging / late, folder / late)  # written by another program in the meantime
    return True


def _is_current(folder: Path) -> bool:
    """Check whether ``folder`` is, or contains, the current folder, which would otherwise be the removed one."""
    with suppress(FileNotFoundError):
        current = Path.cwd()
        return folder in (current, *current.parents)
    return False


def _take_permissions(staging: Path, folder: Path) -> None:
    with suppress(PermissionError):
        os.chown(staging, -1, folder.stat().st_gid)
    shutil.copystat(folder, staging)


def _exchange(one: Path, other: Path) -> None:
    """Exchange the names of two folders atomically.

    Raises:
        OSError: If the system does not support this.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _journal(staging: Path, folder: Path, stale: set[str]) -> None:
    (staging / _STALE).write_text(json.dumps(sorted(stale)), encoding="utf-8")
    sync(staging / _STALE, staging)
    journal = Path(tempfile.mkdtemp(prefix=_JOURNAL, dir=folder))
    os.rename(staging, journal)
    sync(folder)
    _move_in(journal, folder)


def _move_in(journal: Path, folder: Path) -> None:
    """Move the files of a journal to ``folder``. This can be interrupted at any point and repeated."""
    if not (journal / _STALE).exists():  # the run was killed before the journal was complete, or after all moves
        shutil.rmtree(journal)
        return
    stale = _stale_names(journal)
    for name in reversed(_LAST):
        if (journal / name).exists():
            (folder / name).unlink(missing_ok=True)
    for name in stale:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    files = [path for path in sorted(journal.iterdir()) if path.name != _STALE]
    for file in sorted(files, key=lambda path: path.name in _LAST):
        if (folder / file.name).is_dir():
            shutil.rmtree(folder / file.name)
        os.replace(file, folder / file.name)
    sync(folder)
    shutil.rmtree(journal)
