"""A study in, a series out."""

import logging
from collections.abc import Sequence
from pathlib import Path

from ...errors import InputError
from ..series import Frame, Series
from ..sidecars import even_step
from .choose import Stack, choose, make_stacks
from .find import find_stacks
from .geometry import volume_affine
from .order import in_order, times_s
from .pixels import read_voxels

__all__ = ["list_dicom", "read_dicom"]

logger = logging.getLogger(__name__)


def _stacks(paths: Sequence[Path]) -> list[Stack]:
    stacks = make_stacks(find_stacks(paths))
    if not stacks:
        raise InputError(
            f"{paths[0]}: expected DICOM images with a position and an orientation, found none; give the folder of the "
            "study"
        )
    return stacks


def read_dicom(paths: Sequence[Path], description: str | None = None) -> Series:
    """Read the series to align from folders or DICOM files.

    Args:
        paths: folders, whose sub-folders are looked through too, files or a DICOMDIR.
        description: pattern of the descriptions of the series to take, as for `choose`; None lets the program choose.
    Raises: InputError, in one line, for whatever the user can mend.
    """
    chosen, aside = choose(_stacks(paths), description)
    for stack, reason in aside.items():
        logger.info("Left aside (%s): %s, %d x %d slices", reason, stack.name, stack.timepoints, stack.slices)
    if len({stack.source.space for stack in chosen}) > 1:
        logger.warning(
            "The scans have different frames of reference, so that their coordinates may not agree; the initial "
            "alignment has to find how they lie"
        )
    if len(chosen) == 1:
        volumes, key = chosen[0].volumes
    else:
        volumes, key = in_order([volume for stack in chosen for volume in stack.volumes[0]])
    times, clock = times_s(volumes)
    affines = [volume_affine(volume) for volume in volumes]
    frames = [
        Frame(data, affine, volume[0].path) for data, affine, volume in zip(read_voxels(volumes), affines, volumes)
    ]
    names = dict.fromkeys(volume[0].source.description for volume in volumes)
    for stack in chosen:
        logger.info("Chosen: %s, %d x %d slices", stack.name, stack.timepoints, stack.slices)
    logger.info("Ordered by %s; times in s%s: %s", key, f" ({clock})" if clock else "", times or "unknown")
    return Series(tuple(frames), even_step(times), times and tuple(times), ", ".join(names), tuple(volumes))


def list_dicom(paths: Sequence[Path], description: str | None = None) -> str:
    """Describe every stack of a study in a line: what it is and whether it would be aligned."""
    stacks = _stacks(paths)
    try:
        chosen, aside = choose(stacks, description)
        end = []
    except InputError as error:
        chosen, aside, end = [], {}, [str(error)]
    lines = []
    for stack in stacks:
        rows, columns = stack.source.shape
        state = "to be aligned" if stack in chosen else aside.get(stack) or stack.unsuited or "not chosen"
        lines.append(f"{state:>18}  {stack.name}  {stack.timepoints} x {stack.slices} slices of {columns} x {rows}")
    return "\n".join([*lines, *end])
