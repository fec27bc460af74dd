"""Output folders: locked by one run at a time, free of inputs, with results written atomically."""

import atexit
import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from ...errors import InputError
from .replacement import PARTIAL, clean, make_staging, put_in_place, sync, to_be_replaced

_LOCK = ".groupmorph.lock"
_LONGEST_NAME = 255  # bytes; limit of all common file systems
_ENDING_S = 0.5  # time to wait for a run that is just ending: it releases its lock shortly after its result appears
_claims: dict[Path, tuple[FileLock, list[Path]]] = {}  # locks of this process, and the folders that it created
_stagings: set[Path] = set()  # temporary folders that `atomic_folder` has yielded
_leftovers: set[Path] = set()  # temporary folders that could not be removed when an error was raised
_CURES = {errno.ENOSPC: "free some space", errno.EDQUOT: "free some space", errno.EFBIG: "raise 'ulimit -f'"}


def check_output_dir(path: str | Path) -> Path:
    """Create the folder if it does not exist, and check that it can be written to.

    Raises:
        InputError: If it cannot be created or written to.
    """
    folder, missing = Path(path), _missing(path)
    if os.path.islink(folder) and missing:
        raise InputError(f"output folder: expected a folder, got the broken link {folder}; remove it or choose another")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        _remove_empty(missing)
        raise _unusable(folder, error) from error
    return folder


def _missing(folder: str | Path) -> list[Path]:
    """List the folder and those above it that do not exist, the deepest first."""
    return [path for path in (Path(folder), *Path(folder).parents) if not os.path.exists(path)]


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # never created, or in use
            folder.rmdir()


def _unusable(folder: str | Path, error: OSError) -> InputError:
    reason = error.strerror or error
    return InputError(
        f"output folder: expected one that can be created and written to, got {folder} ({reason}); choose another"
    )


def check_file_name(path: Path) -> None:
    """Check the length of a result's name.

    Raises:
        InputError: If it is too long for the file system.
    """
    if (length := len(os.fsencode(path.name))) > _LONGEST_NAME:
        raise InputError(
            f"{path}: expected a name of at most {_LONGEST_NAME} bytes, got {length}; choose a shorter one"
        )


def check_contains_no_input(output_dir: str | Path, inputs: Iterable[str | Path], stale: Iterable[str] = ()) -> None:
    """Check that the output folder neither contains an input file, also through links, nor is an input folder itself.

    Args:
        inputs: files and folders that the run reads.
        stale: names in the earlier result, as for `atomic_folder`; folders among them are removed and must not contain
            inputs at any depth.

    Raises:
        InputError: If an input could be overwritten or removed.
    """
    folder = Path(output_dir)
    if not folder.is_dir():
        return
    removed = [folder / name for name in {*stale, *to_be_replaced(folder)} if (folder / name).is_dir()]
    contents = {(status.st_dev, status.st_ino) for status in _statuses(folder)}
    for path in map(Path, inputs):
        with suppress(OSError):  # unreadable inputs are reported by their reader
            status = path.stat()
            real = path.resolve()
            parent = real if path.is_dir() else real.parent
            below = any(stale_dir.samefile(above) for stale_dir in removed for above in (parent, *parent.parents))
            if below or folder.samefile(parent) or (not path.is_dir() and (status.st_dev, status.st_ino) in contents):
                raise InputError(
                    f"{folder}: expected an output folder that holds no input, got one that holds {path}; choose "
                    "another folder"
                )


def _statuses(folder: Path) -> Iterator[os.stat_result]:
    for entry in os.scandir(folder):
        with suppress(OSError):  # a dangling link
            yield entry.stat()


def claim(output_dir: str | Path) -> bool:
    """Lock ``output_dir``, creating it if necessary, until `release` or the end of the process, and clean up after
    killed runs.

    Returns:
        Whether this process had not locked the folder before.

    Raises:
        InputError: If another run writes to the folder, or if it is not writable.
    """
    made = _missing(Path(output_dir).resolve())
    folder = check_output_dir(output_dir).resolve()
    if folder in _claims:
        return False
    lock = FileLock(folder / _LOCK, timeout=_ENDING_S, thread_local=False)
    _claims[folder] = lock, made
    try:
        with ExitStack() as on_failure:
            on_failure.callback(release, folder)
            lock.acquire()
            clean(folder)
            on_failure.pop_all()
    except Timeout:
        raise InputError(
            f"{output_dir}: expected a folder that no other run writes to, got one in use; wait for the other run, or "
            "choose another folder"
        ) from None
    except OSError as error:
        raise _unusable(output_dir, error) from error
    return True


def release(output_dir: str | Path) -> None:
    """Unlock the folder, and remove it and those above it that this process created if it left no file in them.

    This also completes an interrupted cleanup. It can itself be interrupted at any point, and repeated.
    """
    folder = Path(output_dir).resolve()
    lock, made = _claims.get(folder, (None, []))
    if lock is not None and lock.is_locked:
        with suppress(OSError, InputError):
            clean(folder)
        # Delete the file before unlocking, so that a process that is waiting for it notices.
        with suppress(OSError):
            os.unlink(lock.lock_file)
        lock.release()
    if made and all(path.is_dir() for path in folder.rglob("*")):
        shutil.rmtree(folder, ignore_errors=True)
        _remove_empty(made)
    _claims.pop(folder, None)


@atexit.register
def release_all() -> None:
    for folder in list(_claims):
        release(folder)
    for folder in list(_leftovers):
        shutil.rmtree(folder, ignore_errors=True)
        _leftovers.remove(folder)


def _remove(folder: Path) -> None:
    """Remove a temporary folder, at exit if not now: an error may hold all file handles, of which this needs some."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        _leftovers.add(folder)


@contextmanager
def _as_input_error(folder: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        cure = _CURES.get(error.errno or 0, "choose another folder")
        raise InputError(f"{folder}: could not write the results ({reason}); {cure}") from error


@contextmanager
def atomic_folder(output_dir: str | Path, stale: Iterable[str] = ()) -> Iterator[Path]:
    """Yield a temporary folder whose files replace those of the same name in ``output_dir`` at the end, all at once, or
    not at all after an error or a kill. Nested calls yield the same folder, so that several writers make one result.

    Args:
        stale: names in the earlier result; those that are not replaced are removed.

    Raises:
        InputError: If writing fails or another run writes to the folder.
    """
    if Path(output_dir) in _stagings:
        yield Path(output_dir)
        return
    claimed = claim(output_dir)
    folder = Path(output_dir).resolve()
    try:
        with _as_input_error(output_dir):
            staging = make_staging(folder)
            _stagings.add(staging)
            try:
                yield staging
                put_in_place(staging, folder, stale)
            finally:
                _stagings.remove(staging)
                _remove(staging)
    finally:
        if claimed:
            release(folder)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path whose file is renamed to ``path`` at the end, but not after an error or a kill.

    Use it for files that a run writes one by one to a folder that it has claimed, or to folders below it.
    """
    path = Path(path)
    with _as_input_error(path.parent):
        parent = next((above for above in path.resolve().parents if above in _claims), path.parent)
        folder = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=parent))
        try:
            yield folder / path.name
            sync(folder / path.name)
            os.replace(folder / path.name, path)
            sync(path.parent)
        finally:
            _remove(folder)


def write_tensors(content: object, path: Path) -> None:
    """Write tensors by `torch.save`.

    Raises:
        OSError: If the disk is full, for which PyTorch raises an error of its own.
    """
    with open(path, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
