"""Read the series to align from a DICOM study."""

import logging
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np

from ...errors import InputError
from ..reading.sidecars import even_step
from ..series import Frame, Series
from .choose import (
    SEE_LIST,
    aborted_timepoints,
    choose,
    dissimilar_timepoints,
    possible_timepoints,
    turned_timepoints,
)
from .clock_changes import clock_changes
from .find import Unread, find_planes, unread_of
from .geometry import volume_affine
from .order import Volume, contradicted_order, in_order, repeated_runs, start_s, times_s
from .persons import check_person, different_names
from .pixels import read_voxels
from .plane import Plane
from .scales import incomparable_scales
from .stack import Stack, make_stacks
from .unread_scans import unread_timepoints

logger = logging.getLogger(__name__)


def _stacks(paths: Sequence[Path]) -> tuple[list[Stack], list[Unread]]:
    planes, unread = find_planes(paths)
    stacks = make_stacks(planes)
    if not stacks:
        reasons = Counter(file.reason for file in unread).most_common(1)
        got = "".join(f", got {reason} in {number} of {len(unread)} files" for reason, number in reasons)
        raise InputError(
            f"{paths[0]}: expected DICOM images of grey values with a position, an orientation and a pixel spacing"
            f"{got or ', found none'}; use the folder of the study"
        )
    return stacks, unread


def _check_complete(stack: Stack, unread: Sequence[Unread]) -> None:
    """Check that no unreadable file may be a timepoint of a stack whose files hold several slices each.

    A lost file of a single slice leaves a gap, which is detected elsewhere; whole lost timepoints are a warning.

    Raises:
        InputError: If there is such a file.
    """
    paths = {plane.file.path for plane in stack.planes}
    if len(paths) == len(stack.planes):
        return
    for file in unread_of(stack.planes, unread):
        raise InputError(
            f"{file.path}: expected an image, as it may be a timepoint of {stack.source.description!r}, got "
            f"{file.reason}; copy or export it again, or remove it from the folder"
        )


def read_dicom(paths: Sequence[Path], description: str | None = None) -> Series:
    """Read the series to align from folders or DICOM files.

    Args:
        paths: folders, which are searched recursively, files, or a DICOMDIR.
        description: pattern of the descriptions of the series to read, as for `choose`; None chooses automatically.

    Raises:
        InputError: If the input is invalid; with a one-line message.
    """
    stacks, unread = _stacks(paths)
    chosen, rejected = choose(stacks, description)
    for stack in chosen:
        _check_complete(stack, unread)
        for repeat in stack.repeats:
            logger.warning(
                "%s: not used, as a later series repeats its slice; remove the later one from the folder to use it",
                repeat.name,
            )
    for stack, reason in rejected.items():
        logger.info("Ignored (%s): %s, %d x %d slices", reason, stack.name, stack.timepoints, stack.slices)
    volumes, key, affines = _volumes(chosen)
    times, clock = times_s(volumes)
    warnings = possible_timepoints(rejected, chosen, description, unread) + aborted_timepoints(chosen, unread)
    warnings += dissimilar_timepoints(chosen) + turned_timepoints(chosen)
    warnings += contradicted_order(volumes, key) + clock_changes(volumes, key)
    warnings += repeated_runs(volumes, times) + incomparable_scales(volumes) + different_names(volumes)
    warnings += unread_timepoints(chosen, unread, description, warnings)
    for warning in warnings:
        logger.warning("%s", warning)
    frames = [
        Frame(data, affine, volume[0].file.path) for data, affine, volume in zip(read_voxels(volumes), affines, volumes)
    ]
    _check_no_copies(frames, volumes)
    names = dict.fromkeys(volume[0].source.description for volume in volumes)
    for stack in chosen:
        logger.info("Chosen: %s, %d x %d slices", stack.name, stack.timepoints, stack.slices)
    logger.info("Ordered by %s; times in s%s: %s", key, f" ({clock})" if clock else "", times or "unknown")
    seconds = None if times is None else tuple(times)
    return Series(tuple(frames), even_step(times), seconds, ", ".join(names), tuple(volumes), tuple(warnings), clock)


def _volumes(chosen: Sequence[Stack]) -> tuple[list[Volume], str, list[np.ndarray]]:
    """Return the volumes of the chosen stacks in temporal order, the attribute that defines it, and their affines.

    Raises:
        InputError: If slices are missing or not evenly spaced, or if volumes cannot be distinguished, or are of several
            kinds or persons.
    """
    if len(chosen) == 1:
        volumes, key = chosen[0].volumes
    else:
        volumes, key = in_order([volume for stack in chosen for volume in stack.volumes[0]])
    check_person(volumes)
    return volumes, key, [volume_affine(volume) for volume in volumes]


def _check_no_copies(frames: Sequence[Frame], volumes: Sequence[Volume]) -> None:
    """Check that no two volumes of one acquisition time, or without one, have the same voxels, whatever else their
    headers say: a second export may renumber its images.

    Where all volumes are equal, as where an anonymiser replaced their pixels, none is a copy of a timepoint.

    Raises:
        InputError: If two volumes do.
    """
    starts = [start_s(volume) for volume in volumes]
    contents = [frame.content if starts.count(start) > 1 else None for frame, start in zip(frames, starts)]
    if len({*contents}) == 1:
        return
    first: dict[Hashable, Plane] = {}
    for content, (plane, *_), start in zip(contents, volumes, starts):
        if content and (twin := first.setdefault((start, content), plane)) is not plane:
            raise InputError(
                f"{plane.file.path}: expected other voxels than in {twin.file.path}, got the same in "
                f"{twin.source.number} {twin.source.description!r} and {plane.source.number} "
                f"{plane.source.description!r} at one acquisition time; remove the files of the copy, or choose the "
                "series to align with --series-description PATTERN"
            )


def list_dicom(paths: Sequence[Path], description: str | None = None) -> tuple[str, InputError | None]:
    """Describe the stacks of a study, one per line, and whether each would be aligned.

    Returns:
        The description, and why no stacks can be aligned; None if some can.
    """
    stacks, unread = _stacks(paths)
    reason, chosen, rejected = None, list[Stack](), dict[Stack, str]()
    try:
        chosen, rejected = choose(stacks, description)
        for stack in chosen:
            _check_complete(stack, unread)
        _volumes(chosen)
    except InputError as error:
        reason = InputError(str(error).removesuffix(SEE_LIST))
    lines, state_of_chosen = [], "cannot be aligned" if reason else "to be aligned"
    for stack in stacks:
        rows, columns = stack.source.raster.shape
        state = state_of_chosen if stack in chosen else rejected.get(stack) or stack.rejection or "not chosen"
        lines.append(f"{state:>18}  {stack.name}  {stack.timepoints} x {stack.slices} slices of {columns} x {rows}")
    return "\n".join(lines), reason
