"""Split the slices of a stack into volumes."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import product

from ...errors import InputError
from .geometry import SAME_PLACE_MM, depth, evenly_spaced
from .order import EARLY, IN_FILE, LATE, ORDER, Volume, at_the_same_time, in_order
from .plane import ImageFile, Plane
from .prospective_motion import follows_patient, is_tilted, stacks_apart, volumes_by_shared_attribute

_GATED = ("phase", "trigger time", "temporal position")
_CHANCE = 1e-3  # highest probability of cycles at all positions by chance at which a series is called gated


def separate_aborted(planes: Sequence[Plane]) -> list[Sequence[Plane]]:
    """Separate the last volume of a series from the others if it lacks slices, as it does where a scan was aborted.

    Returns:
        The slices of the complete volumes and those of the last one; all slices unless an attribute shows that these
        and no others are missing. A single slice may be a second export, so its attribute must be of the acquisition.
    """
    positions = _by_position(planes)
    number = max(len(images) for images in positions)
    full = [images for images in positions if len(images) == number]
    if len(full) == len(positions) or is_tilted(planes):
        return [planes]
    for key in ORDER if len(full) > 1 else EARLY:
        last = max(plane.keys.get(key, -math.inf) for plane in full[0])
        aborted = [plane for plane in planes if plane.keys.get(key) == last]
        earlier = [{plane.keys.get(key) for plane in images} - {last} for images in positions]
        alike = all(values == earlier[0] and len(values) == number - 1 for values in earlier)
        if alike and len(aborted) == len(full) and len(planes) == len(full) + (number - 1) * len(positions):
            return [[plane for plane in planes if plane.keys.get(key) != last], aborted]
    return [planes]


def split_volumes(planes: Sequence[Plane]) -> tuple[list[Volume], str]:
    """Split the slices of a stack into timepoints: the k-th images at all slice positions form volume k.

    As the slices of a volume may be acquired one after the other, only images at the same position are compared: by the
    first attribute in ``ORDER`` that differs between them at every position. In a gated scan, whose positions are
    acquired one after the other, each over whole cycles, acquisition times start anywhere in a cycle, and an attribute
    in ``_GATED`` comes first.

    If the slices follow the patient, so that positions differ between volumes, an attribute must identify the volumes.

    Returns:
        The volumes in temporal order, and the attribute.

    Raises:
        InputError: If slices are missing or form stacks of different parts of the body, or if images at a position
            cannot be distinguished or are of several kinds.
    """
    positions = _by_position(planes)
    number = max(len(images) for images in positions)
    short = [images for images in positions if len(images) < number]
    if short or is_tilted(planes) or not evenly_spaced([plane for plane, *_ in positions]):
        if volumes := volumes_by_shared_attribute(planes, ORDER):
            return in_order(volumes)
        if follows_patient(planes):
            raise InputError(_inseparable_volumes(planes))
        if stacks := stacks_apart(planes, EARLY):
            raise InputError(_several_stacks(stacks))
    if short:
        raise InputError(_missing_slices(positions, short, number))
    if number == 1:
        return [tuple(plane for (plane,) in positions)], "its one timepoint"
    return _split_by_key(positions, number)


def _split_by_key(positions: Sequence[Sequence[Plane]], number: int) -> tuple[list[Volume], str]:
    """Sort the ``number`` images at each position by the attribute that distinguishes them.

    Returns:
        The volumes in temporal order, and the attribute.

    Raises:
        InputError: If no attribute does, or if the images are of several kinds.
    """
    keys = [key for key in ORDER if all(len({p.keys.get(key) for p in at} - {None}) == number for at in positions)]
    if (not keys or keys[0] in IN_FILE) and (names := _repetition_attributes(positions, number)):
        return _sorted_by(names, positions), " and ".join(names)
    if not keys:
        raise InputError(_indistinguishable(positions, number))
    if keys[0] in LATE:
        _check_one_kind(positions)
    if keys[0] == "trigger time" and (label := _label_of_volumes(keys, positions)):
        return _sorted_by([label], positions), label
    key = _acquisition_time_or_other(keys, positions) if keys[0] == "acquisition time" else keys[0]
    key = _number_of_volumes(key, keys, positions) or key
    return _sorted_by([key], positions), key


def _repetition_attributes(positions: Sequence[Sequence[Plane]], number: int) -> tuple[str, str] | None:
    """Find the two attributes that together distinguish the images of a repeated scan: one the repetitions, the other
    the images of each, such as temporal positions that start again in every file."""
    for outer, inner in product(("acquisition time", "acquisition number"), EARLY):
        pairs = [{(plane.keys.get(outer), plane.keys.get(inner)) for plane in images} for images in positions]
        complete = not any(None in pair for at_position in pairs for pair in at_position)
        if complete and all(len(at_position) == number for at_position in pairs):
            return outer, inner
    return None


def _indistinguishable(positions: Sequence[Sequence[Plane]], number: int) -> str:
    """Describe images at one position that no attribute of the acquisition tells apart: of several kinds if their
    headers differ otherwise, or copies."""
    label = _shared_label(positions)
    if label and all(len({tuple(map(p.keys.get, ORDER)) for p in images}) == number for images in positions):
        return _several_kinds(positions[0], label)
    first, second = (plane.file for plane in positions[0][:2])
    other, cure = second.path, "remove one of them if the slice was exported twice"
    if first.path == second.path:
        other, cure = "other frames", "convert the series to a NIfTI file for each timepoint"
    return (
        f"{first.path}: expected an acquisition, trigger or content time that differs from {other} at the same "
        f"position, got none; {cure}"
    )


def _acquisition_time_or_other(keys: Sequence[str], positions: Sequence[Sequence[Plane]]) -> str:
    """Choose another attribute than the acquisition time if the scanner's clock was set during the scan, or if the scan
    is gated."""
    volumes = _sorted_by(["acquisition time"], positions)
    if {"trigger time", "temporal position"} <= {*keys}:
        triggered = _sorted_by(["trigger time"], positions)
        confirmed = triggered == _sorted_by(["temporal position"], positions)
        if confirmed and triggered != volumes and _partition(triggered) == _partition(volumes):
            return "trigger time"  # only the order of the volumes differs: the clock was set
    if not at_the_same_time(volumes):
        return "acquisition time"
    return next((key for key in _GATED if key in keys and _in_cycles(volumes, key)), "acquisition time")


def _partition(volumes: Sequence[Volume]) -> set[frozenset[ImageFile]]:
    """Return the images of each volume, regardless of the order of the volumes."""
    return {frozenset(plane.file for plane in volume) for volume in volumes}


def _check_one_kind(positions: Sequence[Sequence[Plane]]) -> None:
    """Check that the images at each position, which no attribute of the acquisition tells apart, are of one kind.

    Raises:
        InputError: If they are of several kinds, such as echoes.
    """
    if label := _shared_label(positions):
        raise InputError(_several_kinds(positions[0], label))


def _shared_label(positions: Sequence[Sequence[Plane]]) -> str:
    """Find an attribute of the acquisition that several images share at every position, the same number for each of its
    values, such as the velocities of one phase.

    Images of a repeated scan share attributes, too, but not all of them: a phase or a time in the cycle, and the time
    or number of the repetition. CT images of one acquisition are those of a continuous scan.

    Returns:
        The name of the attribute; an empty string if there is none, or if the images are of a repeated or CT scan.
    """
    of_ct = positions[0][0].source.examination.modality == "CT"
    if of_ct or all(
        len({tuple(map(plane.keys.get, EARLY)) for plane in images}) == len(images) for images in positions
    ):
        return ""
    for label in EARLY:
        counts = [Counter(plane.keys.get(label) for plane in images) for images in positions]
        values = {value for count in counts for value in count}
        rounded = label == "acquisition time" and None not in values and all(v == int(v) for v in values if v)
        if None not in values and not rounded and all(len(c) > 1 and len(set(c.values())) == 1 for c in counts):
            return label
    return ""


def _several_kinds(images: Sequence[Plane], label: str) -> str:
    first = images[0]
    number = len(images) // len({plane.keys[label] for plane in images})
    return (
        f"{first.file.path}: expected one image for each {label} at a slice position of {first.source.description!r}, "
        f"got {number} that may be echoes, contrasts or velocities, as the header does not distinguish them; choose "
        "another series with --series-description, use a folder with the files of one kind, or convert the series to "
        "NIfTI if all are timepoints"
    )


def _label_of_volumes(keys: Sequence[str], positions: Sequence[Sequence[Plane]]) -> str:
    """Find what orders the images where trigger times would mix volumes, because they vary by chance: as in triggered
    perfusion, where they are the delays of the images after their heartbeats.

    Args:
        keys: attributes that differ between all images at every position, of which trigger time is the first.

    Returns:
        The name of a number that all slices of a volume share, or else the next of the keys if the trigger times of
        different volumes overlap; an empty string if trigger times divide the slices in the same way, or run in cycles.
    """
    triggered = _sorted_by(["trigger time"], positions)
    for label in ("temporal position", "acquisition number", *keys[1:2]):
        volumes = _sorted_by([label], positions) if label in keys else []
        shared = all(len({plane.keys[label] for plane in volume}) == 1 for volume in volumes)
        by_chance = shared or (label == keys[1] and _overlap(triggered, "trigger time"))
        mixed = _partition(volumes) != _partition(triggered)
        if volumes and by_chance and mixed and not _in_cycles(volumes, "trigger time"):
            return label
    return ""


def _number_of_volumes(clock: str, keys: Sequence[str], positions: Sequence[Sequence[Plane]]) -> str:
    """Find what counts whole volumes, one after the other, where a time would mix their slices, because it varies by
    chance: as the content time of images that were reconstructed or exported in parallel.

    Args:
        clock: attribute that would order the images.
        keys: attributes that differ between all images at every position.

    Returns:
        The name of the number; an empty string if ``clock`` is no time, or divides the slices in the same way, or runs
        in cycles, or if there is no such number.
    """
    if clock not in ("acquisition time", "trigger time", "content time"):
        return ""
    timed = _partition(_sorted_by([clock], positions))
    for label in ("temporal position", "acquisition number", "instance number"):
        volumes = _sorted_by([label], positions) if label in keys else []
        values = [[plane.keys[label] for plane in volume] for volume in volumes]
        counted = volumes and all(max(earlier) < min(later) for earlier, later in zip(values, values[1:]))
        if counted and _partition(volumes) != timed and not _in_cycles(volumes, clock):
            return label
    return ""


def _overlap(volumes: Sequence[Volume], key: str) -> bool:
    """Check whether the values of each volume overlap those of the next: all of them, as the late phases of cycles of
    different lengths do, too."""
    values = [[plane.keys[key] for plane in volume] for volume in volumes]
    return all(max(earlier) >= min(later) for earlier, later in zip(values, values[1:]))


def _in_cycles(volumes: Sequence[Volume], key: str) -> bool:
    """Check whether an attribute runs through one cycle at every position, in the order of acquisition. In other
    triggered scans, such as T1 maps, it differs by chance."""
    # Of the (n - 1)! circular orders of n values one is ascending; lgamma(n) is the logarithm of their number.
    if len(volumes[0]) * math.lgamma(len(volumes)) < -math.log(_CHANCE):
        return False
    cycles = ([plane.keys[key] for plane in images] for images in zip(*volumes))
    return all(sum(a > b for a, b in zip(values, values[1:] + values[:1])) == 1 for values in cycles)


def _sorted_by(names: Sequence[str], positions: Sequence[Sequence[Plane]]) -> list[Volume]:
    """Sort the images at each position by the first of some attributes, and where it is equal by the next."""
    return list(zip(*(sorted(images, key=lambda plane: [plane.keys[name] for name in names]) for images in positions)))


def _by_position(planes: Sequence[Plane]) -> list[list[Plane]]:
    positions: list[list[Plane]] = []
    for plane in sorted(planes, key=depth):
        if positions and depth(plane) - depth(positions[-1][0]) < SAME_PLACE_MM:
            positions[-1].append(plane)
        else:
            positions.append([plane])
    return positions


def _inseparable_volumes(planes: Sequence[Plane]) -> str:
    first = planes[0]
    return (
        f"{first.file.path}: expected a temporal position, acquisition number or time that the slices of each volume "
        f"share, as the slices of {first.source.description!r} lie at different positions in every volume, got none "
        f"that divides its {len(planes)} slices into complete volumes; export the whole series again, or convert it "
        "to a NIfTI file for each volume"
    )


def _several_stacks(stacks: Sequence[Sequence[Plane]]) -> str:
    first = stacks[0][0]
    (number, low, high), (other, other_low, other_high) = (
        (len({round(depth(p) / SAME_PLACE_MM) for p in stack}), depth(stack[0]), depth(stack[-1])) for stack in stacks
    )
    return (
        f"{first.file.path}: expected one stack of slices in {first.source.description!r}, got several, such as "
        f"{number} slices at {low:.4g} to {high:.4g} mm and {other} at {other_low:.4g} to {other_high:.4g} mm; use a "
        "folder with the files of one stack"
    )


def _missing_slices(positions: Sequence[Sequence[Plane]], short: Sequence[Sequence[Plane]], number: int) -> str:
    """Describe which slices are missing, and of which timepoint if this is known, or where there are too many."""
    usual = {len(images) for images in short}
    if len(usual) == 1 and 2 * len(short) > len(positions):
        extra = next(images[-1] for images in positions if len(images) == number)
        return (
            f"{extra.file.path}: expected {usual.pop()} images at each of the {len(positions)} slice positions of "
            f"{extra.source.description!r}, as at most of them, got {number} at {depth(extra):.4g} mm; remove the "
            "image that was exported twice, or the incomplete timepoint, from the folder"
        )
    first, full = short[0][0], next(images for images in positions if len(images) == number)
    lacking = ""
    for key in ORDER:
        numbers, rest = ({p.keys[key] for p in images if key in p.keys} for images in (full, short[0]))
        if len(numbers) == number and rest < numbers:
            timepoint = sorted(numbers).index(min(numbers - rest))
            lacking = f" (timepoint {timepoint} by its {key})"
            break
    return (
        f"{first.file.path}: expected {number} images at each of the {len(positions)} slice positions of "
        f"{first.source.description!r}, got {len(short[0])} at {depth(first):.4g} mm{lacking}, and {len(short)} such "
        "positions; export the series again, or remove the incomplete timepoint from the folder"
    )
