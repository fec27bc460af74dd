"""A folder for results: one run at a time, no input of its own in it, and every result whole or not there."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import InputError
from .replacement import PARTIAL, clean, make_staging, put_in_place, sync, to_be_replaced

__all__ = ["all_or_nothing", "check_output_dir", "claim", "keep_inputs", "release", "whole_file"]

_LOCK = ".groupmorph.lock"
_ENDING_S = 0.5  # for a run that is ending: its lock may be gone a moment after its result, or its end, is seen
_claims: dict[Path, tuple[FileLock, bool]] = {}  # this process's, each with whether it made the folder
_stagings: set[Path] = set()


def check_output_dir(path: str | Path) -> Path:
    """Make the folder where it is missing. Raises InputError where that, or writing in it, fails."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{folder}: expected a folder to write to, got {error.strerror}; choose another") from error
    return folder


def keep_inputs(output_dir: str | Path, inputs: Iterable[str | Path], stale: Iterable[str] = ()) -> None:
    """Refuse an output folder that holds one of the files that are read, also by a link or under another name, or that
    is a folder that is read.

    Args:
        stale: names of what the earlier result holds, as `all_or_nothing` takes them; a folder among them may hold no
            input at any depth, as it is removed.
    Raises: InputError.
    """
    folder = Path(output_dir)
    if not folder.is_dir():
        return
    removed = [folder / name for name in {*stale, *to_be_replaced(folder)} if (folder / name).is_dir()]
    here = {(status.st_dev, status.st_ino) for status in _statuses(folder)}
    for path in map(Path, inputs):
        with suppress(OSError):  # that it cannot be read is for its reader to say
            status = path.stat()
            real = path.resolve()
            holder = real if path.is_dir() else real.parent
            below = any(gone.samefile(above) for gone in removed for above in (holder, *holder.parents))
            if below or folder.samefile(holder) or (not path.is_dir() and (status.st_dev, status.st_ino) in here):
                raise InputError(
                    f"{folder}: expected an output folder that holds no input, got one that holds {path}; choose "
                    "another folder"
                )


def _statuses(folder: Path) -> Iterator[os.stat_result]:
    for entry in os.scandir(folder):
        with suppress(OSError):  # a link to nowhere
            yield entry.stat()


def claim(output_dir: str | Path) -> bool:
    """Keep other runs out of ``output_dir``, which is made where it is missing, until `release` or the end of the
    process, and remove what killed runs have left there.

    Returns: whether this process had not claimed it before.
    Raises: InputError where another run writes to the folder, or where it cannot be written.
    """
    made = not Path(output_dir).exists()
    folder = check_output_dir(output_dir).resolve()
    if folder in _claims:
        return False
    lock = FileLock(folder / _LOCK, timeout=_ENDING_S, thread_local=False)
    try:
        lock.acquire()
        _claims[folder] = lock, made
        clean(folder)
    except Timeout:
        raise InputError(
            f"{output_dir}: expected a folder that no other run writes to, another one does; wait for its end, or "
            "choose another folder"
        ) from None
    except OSError as error:
        release(folder)
        raise InputError(f"{output_dir}: expected a folder to write to, got {error}; choose another") from error
    return True


def release(output_dir: str | Path) -> None:
    """Let other runs have the folder; one that was made for nothing, without a file in it, is removed."""
    folder = Path(output_dir).resolve()
    lock, made = _claims.pop(folder, (None, False))
    if lock is not None:
        # While it is locked: another process that has opened it meanwhile sees that it is gone.
        with suppress(OSError):
            os.unlink(lock.lock_file)
        lock.release()
    if made and all(path.is_dir() for path in folder.rglob("*")):
        shutil.rmtree(folder, ignore_errors=True)


@atexit.register
def release_all() -> None:
    for folder in list(_claims):
        release(folder)


@contextmanager
def _in_one_line(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{folder}: expected to write the results, got {reason}; make room there") from error


@contextmanager
def all_or_nothing(output_dir: str | Path, stale: Iterable[str] = ()) -> Iterator[Path]:
    """Yield a folder to write in, whose files replace those of their names in ``output_dir`` at the end, all at once;
    after an error or a kill none does. Within such a folder it yields that folder: several writers make one result.

    Args:
        stale: names of what the earlier result holds, which is removed where nothing replaces it.
    Raises: InputError where the disk fails or another run writes to the folder.
    """
    if Path(output_dir) in _stagings:
        yield Path(output_dir)
        return
    claimed = claim(output_dir)
    folder = Path(output_dir).resolve()
    try:
        with _in_one_line(output_dir):
            staging = make_staging(folder)
            _stagings.add(staging)
            try:
                yield staging
                put_in_place(staging, folder, stale)
            finally:
                _stagings.remove(staging)
                shutil.rmtree(staging, ignore_errors=True)
    finally:
        if claimed:
            release(folder)


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a path to write to, whose file takes the name ``path`` at the end; after an error or a kill it does not.

    It is for files that a run writes one after the other in a folder that it has claimed.
    """
    path = Path(path)
    with _in_one_line(path.parent):
        folder = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=path.parent))
        try:
            yield folder / path.name
            sync(folder / path.name)
            os.replace(folder / path.name, path)
            sync(path.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
