"""The output folder of a training: checks before it starts, and what remains if it fails early."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import ignite.distributed as idist

from ..data.writing.output_folder import check_contains_no_input, claim, release
from ..data.writing.replacement import check_names, clean
from ..errors import InputError
from .checkpoints import BEST, saved_checkpoints
from .weights import load_tensors


def claim_for_training(output_dir: str, weights: str | None = None, dataset_dir: str | None = None) -> None:
    """Lock ``output_dir`` against other runs and clean up after killed runs. In distributed training, only the process
    of rank 0 does this.

    Args:
        output_dir: folder for the checkpoints.
        weights, dataset_dir: inputs of the run, which must not be in ``output_dir``; None if there are none.

    Raises:
        InputError: If another run writes to the folder, or if it contains an input or weights that no run can continue.
    """
    if idist.get_rank() != 0:
        return
    folder = Path(output_dir)
    check_contains_no_input(folder, [path for path in (weights, dataset_dir) if path])
    _check_contents(folder)
    claim(folder)
    if (folder / "cache").is_dir():
        clean(folder / "cache")


def _check_contents(folder: Path) -> None:
    """Refuse files that the run would replace although they are not those of a training."""
    checkpoints = [path for _, path in saved_checkpoints(folder)]
    if (folder / BEST).exists() and not checkpoints:
        raise InputError(
            f"{folder / BEST}: expected checkpoints of the same run, got none: training would replace these weights; "
            "choose another folder, or remove the file"
        )
    check_names(folder, [path.name for path in checkpoints])
    for path in checkpoints:
        _check_checkpoint(path)
    for path in (folder / "cache", folder / "tensorboard"):
        if os.path.lexists(path) and not path.is_dir():
            raise InputError(f"{path}: expected a folder or none, got a file; choose another output folder")


def _check_checkpoint(path: Path) -> None:
    """Refuse a file with the name of a checkpoint but other content, which the run would replace; a damaged one may be
    a checkpoint."""
    try:
        content = load_tensors(path)
    except ValueError:
        return
    trainer = content.get("trainer") if isinstance(content, Mapping) else None
    if not isinstance(trainer, Mapping) or "epoch_length" not in trainer:
        raise InputError(
            f"{path}: expected a checkpoint of a training run, got other content; move the file, or choose "
            "another folder"
        )


@contextmanager
def logs_discarded_on_failure(output_dir: str) -> Iterator[None]:
    """Remove what a training has added to ``output_dir`` if it fails before it saves anything: TensorBoard's logs."""
    folder = Path(output_dir)
    earlier = _contents(folder)
    try:
        yield
    except BaseException:
        release(output_dir)
        _remove_logs(sorted(_contents(folder) - earlier, reverse=True))  # files before their folders
        raise


def _contents(folder: Path) -> set[Path]:
    return {folder, *folder.rglob("*")} if folder.exists() else set()


def _remove_logs(paths: Sequence[Path]) -> None:
    """Remove files and folders, unless a file is not a log of this process."""
    own = f".{os.getpid()}."  # in the names of TensorBoard's files
    if not all(path.is_dir() or (path.parent.name == "tensorboard" and own in path.name) for path in paths):
        return
    with suppress(OSError):  # as on NFS, where an open file is renamed instead of removed
        for path in paths:
            path.rmdir() if path.is_dir() else path.unlink()
