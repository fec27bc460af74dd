"""Select the stacks of a study whose volumes are to be aligned."""

import logging
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence

from ...errors import InputError
from ..reading.names import matches
from .find import Unread, unread_of
from .prospective_motion import largest_tilt_degrees
from .stack import COMPUTED_WORDS, Stack, alike

logger = logging.getLogger(__name__)
_USUAL_TILT_DEGREES = 5  # as far as patients usually turn their heads during a scan
_CLEARLY_LONGER = 2  # ratio of timepoints to the next candidate
SEE_LIST = ", or see --list"  # the end of a message that the listing itself omits
_CHOOSE = "choose one, or those that belong together, with --series-description PATTERN"


def choose(stacks: Sequence[Stack], pattern: str | None = None) -> tuple[list[Stack], dict[Stack, str]]:
    """Choose the stacks that form one series of scans.

    Stacks with the same properties form a group: one stack with many timepoints, or one stack per timepoint. The group
    with the most timepoints is chosen if it has at least twice as many as the next one. Stacks joined from single-slice
    series, and those computed from other images, are considered only if there are no others.

    Args:
        stacks: all stacks of the study.
        pattern: pattern of series descriptions, with ``*`` and ``?``, ignoring case; a part of a description is enough.
            Matching stacks form a group even if their properties differ, except for the kinds of image of a series.

    Returns:
        The chosen stacks, and for each other stack the reason why it was not chosen.

    Raises:
        InputError: If there is no candidate, if the choice is ambiguous, or if there are several patients.
    """
    named = [stack for stack in stacks if _matches(stack, pattern)]
    if not named:
        raise InputError(
            f"--series-description: expected a pattern of one of {_list(stacks)}, got {pattern!r}; correct it{SEE_LIST}"
        )
    rejected = {stack: "other description" for stack in stacks if stack not in named}
    rejected |= {stack: stack.rejection for stack in named if stack.rejection and (not pattern or stack.slices < 2)}
    candidates = [stack for stack in named if stack not in rejected]
    _check_patient(candidates)
    originals = [stack for stack in candidates if not stack.derived]
    for members in ([stack for stack in originals if not stack.joined], originals, candidates):
        chosen = _longest(members, pattern)
        if chosen:
            if not pattern:
                _check_no_longer_derived(chosen, candidates)
            rest = [stack for stack in candidates if stack not in chosen]
            derived = [stack for stack in rest if stack.derived or stack.is_named_as_computed(chosen)]
            return chosen, rejected | {stack: "derived" if stack in derived else "other series" for stack in rest}
    if pattern:
        missing, members = ("timepoint", candidates) if candidates else ("slice", named)
        raise InputError(
            f"--series-description: expected at least two {missing}s, but the series that match {pattern!r} have one "
            f"{missing}: {'; '.join(stack.name for stack in members)}; use another pattern{SEE_LIST}"
        )
    raise InputError(
        f"{stacks[0].planes[0].file.path}: expected a series with at least two timepoints, or several similar series, "
        f"got {_list(stacks)}; select those that belong together with --series-description PATTERN{SEE_LIST}"
    )


def possible_timepoints(
    rejected: Mapping[Stack, str], chosen: Sequence[Stack], pattern: str | None, unread: Sequence[Unread]
) -> list[str]:
    """Describe the stacks that may be timepoints of the chosen series, such as an incomplete one, and those that were
    not chosen although they match the pattern of descriptions, one per line."""
    lines, sources = [], {stack.source for stack in chosen}
    for stack, reason in rejected.items():
        near = reason == "other series" or stack.source in sources
        like = next((one for one in chosen if near and (stack.source == one.source or stack.nearly_like(one))), None)
        computed = stack.is_named_as_computed(chosen) or _is_average_of_phases(stack, chosen)
        if not (like or computed or reason == "other description" or _is_copy(stack, chosen)):
            like = next((one for one in chosen if stack.may_be_lost_timepoint(one)), None)
        if like:
            lines.append(
                f"{stack.name} is not aligned, as {_difference(stack, like, reason, unread)}; if it is a timepoint, "
                "export it again, or select it and the others with --series-description PATTERN"
            )
        elif pattern and near:
            lines.append(
                f"{stack.name} is not aligned, although its description matches {pattern!r} "
                f"({stack.rejection or 'another kind of image'}); use a pattern that does not match it"
            )
    return lines


def _difference(stack: Stack, like: Stack, reason: str, unread: Sequence[Unread]) -> str:
    """Describe what distinguishes a stack from a chosen one that it is like."""
    examination, reference = stack.source.examination, like.source.examination
    if None in stack.phases and None not in like.phases:
        return "it has no phase of the cycle, unlike the others"
    if stack.slices != like.slices:
        number = f"{stack.slices} slice{'s' * (stack.slices > 1)}"
        return f"it has {number} instead of {like.slices}{_unreadable(stack, unread)}"
    if reason != "other series":
        return f"its header calls it {reason}"
    if examination != reference:
        names = ("study", "modality", "space")
        name = next((name for name in names if getattr(examination, name) != getattr(reference, name)), "patient")
        return f"its {'frame of reference' if name == 'space' else name} differs"
    return (
        "its image type, matrix, voxels, position, orientation, scan options, sequence, flip angle, repetition time or "
        "echo time differ"
    )


def _is_average_of_phases(stack: Stack, chosen: Sequence[Stack]) -> bool:
    """Check whether a stack without a phase, whose description has a word such as AVE, lies beside phases."""
    gated = all(None not in one.phases for one in chosen)
    return gated and None in stack.phases and bool(stack.words & COMPUTED_WORDS)


def _is_copy(stack: Stack, chosen: Sequence[Stack]) -> bool:
    """Check whether a stack may be a filtered copy of the chosen ones: it has as many timepoints, or begins with one of
    their volumes, where these begin one by one."""
    if 1 < stack.timepoints == _count(chosen):
        return True
    planes = [plane for one in chosen for plane in one.planes]
    moments = {plane.keys.get("acquisition time") for plane in planes}
    own = {plane.keys.get("acquisition time") for plane in stack.planes} - {None}
    return len(moments) > 1 and bool(own & moments)


def _unreadable(stack: Stack, unread: Sequence[Unread]) -> str:
    """Name the first unreadable file that may be a slice of a stack, in parentheses; empty if there is none."""
    return "".join(f" ({file.path} cannot be read: {file.reason})" for file in unread_of(stack.planes, unread)[:1])


def aborted_timepoints(chosen: Sequence[Stack], unread: Sequence[Unread]) -> list[str]:
    """Describe the chosen stacks that are the aborted last volume of another chosen one, one per line."""
    most = {stack.source: max(other.slices for other in chosen if other.source == stack.source) for stack in chosen}
    return [
        f"{stack.name}: the last timepoint has {stack.slices} slices instead of {most[stack.source]}"
        f"{_unreadable(stack, unread) or ', so its scan was aborted'}; to leave it out, remove its files from the "
        "folder"
        for stack in chosen
        if stack.slices < most[stack.source]
    ]


def turned_timepoints(chosen: Sequence[Stack]) -> list[str]:
    """Describe the chosen stacks whose timepoints are turned by more than patients usually turn, one line per group."""
    return [
        f"{' and '.join(dict.fromkeys(stack.name for stack in group))}: the slices of the timepoints are turned by up "
        f"to {angle:.0f} degrees; if they are stacks of other parts of the body rather than timepoints of one, use a "
        "folder with the files of each"
        for group in alike(chosen, lambda stack: None)
        if (angle := largest_tilt_degrees([plane for stack in group for plane in stack.planes])) > _USUAL_TILT_DEGREES
    ]


def dissimilar_timepoints(chosen: Sequence[Stack]) -> list[str]:
    """Describe the chosen stacks that only their descriptions select, and those in other frames of reference, one line
    each."""
    longest = max(chosen, key=lambda stack: stack.timepoints)
    others = [
        stack
        for stack in chosen
        if stack.likeness != longest.likeness and not (stack.timepoints == 1 and stack.nearly_like(longest))
    ]
    lines = []
    if others:
        lines.append(
            f"Aligning dissimilar series, as selected by their descriptions: {_list([longest, *others])}; if these are "
            "not timepoints of one kind, use another pattern"
        )
    if len({stack.source.examination.space for stack in chosen}) > 1:
        lines.append(
            "The scans have different frames of reference, so their coordinates may not agree; the initial alignment "
            "has to compensate for this"
        )
    return lines


def _matches(stack: Stack, pattern: str | None) -> bool:
    descriptions = {plane.source.description for plane in stack.planes}
    return pattern is None or any(matches(text, pattern) for text in (*descriptions, stack.name))


def _list(stacks: Sequence[Stack]) -> str:
    items = []
    for stack in stacks[:8]:
        reason = f", {stack.rejection}" if stack.rejection else ""
        items.append(f"{stack.name}: {stack.timepoints} x {stack.slices} slices{reason}")
    return "; ".join(items) + (f" and {len(stacks) - 8} more" if len(stacks) > 8 else "")


def _check_patient(stacks: Sequence[Stack]) -> None:
    patients = {stack.source.examination.patient: stack.planes[0].file.path for stack in stacks}
    if len(patients) > 1:
        first, second, *_ = patients.values()
        raise InputError(
            f"{first}: expected the scans of one patient, got {len(patients)} patients (one more in {second}); use "
            "the folder of one patient"
        )


def _longest(stacks: Sequence[Stack], pattern: str | None) -> list[Stack]:
    """Find the group with clearly the most timepoints and, with a pattern, dissimilar matches; empty if none has two.

    Raises:
        InputError: If the choice is ambiguous.
    """
    parallel = _parallel(stacks)
    groups = _joined(parallel) if pattern else [_without_computed(_gated(g)) for g in _planned_again(parallel)]
    order = sorted((group for group in groups if _count(group) > 1), key=_count, reverse=True)
    if not order:
        return list(stacks) if pattern and len(stacks) > 1 else []
    series = {stack.source.series for stack in order[0]}
    rivals = [
        group
        for group in order[1:]
        if (any(stack.source.series in series for stack in group) if pattern else _is_parallel(group))
    ]
    unclear = [order[0], *rivals] if rivals and _count(order[0]) < _CLEARLY_LONGER * _count(rivals[0]) else []
    if not pattern and sum(stack.timepoints > 1 for stack in order[0]) > 1:
        unclear = order  # runs of one protocol
    if unclear:
        several = [stack for group in unclear for stack in group]
        same_name = len({stack.name for stack in several}) < len(several)
        cure = "some have the same name: use the folder or the files of one of them alone" if same_name else _CHOOSE
        raise InputError(
            f"{several[0].planes[0].file.path}: expected one series to align, got {_list(several)}; {cure}"
        )
    dissimilar = [stack for stack in stacks if pattern and stack.source.series not in series and not stack.rejection]
    return [*order[0], *dissimilar]


def _check_no_longer_derived(chosen: Sequence[Stack], candidates: Sequence[Stack]) -> None:
    """Check that no series that is derived, but not computed such as subtractions, has clearly more timepoints: it may
    be the dynamic series, whose filter or correction made it derived, and the chosen one a repeated scan.

    Raises:
        InputError: If there is one.
    """
    derived = [stack for stack in candidates if stack.derived and not stack.computed and stack not in chosen]
    scans = [stack for stack in derived if stack.timepoints > 1 and not stack.is_named_as_computed(candidates)]
    longest = max(scans, key=lambda stack: stack.timepoints, default=None)
    if longest and longest.timepoints >= _CLEARLY_LONGER * _count(chosen):
        raise InputError(
            f"{chosen[0].planes[0].file.path}: expected one series to align, got {_list([*chosen, longest])}, of "
            f"which the longer one is derived; {_CHOOSE}"
        )


def _parallel(stacks: Sequence[Stack]) -> list[list[Stack]]:
    groups: defaultdict[Hashable, list[Stack]] = defaultdict(list)
    for stack in stacks:
        groups[stack.likeness, stack.source.raster.orientation].append(stack)
    return list(groups.values())


def _planned_again(groups: Sequence[list[Stack]]) -> list[list[Stack]]:
    """Join groups of single volumes that differ only in orientation and in numbers of their descriptions, as where each
    timepoint was planned again."""
    singles = {group[0]: group for group in groups if all(stack.timepoints == 1 for stack in group)}
    joined = alike([*singles], lambda stack: (stack.likeness, frozenset(stack.words)))
    several = [group for group in groups if group[0] not in singles]
    return [*several, *([stack for first in firsts for stack in singles[first]] for firsts in joined)]


def _is_parallel(group: Sequence[Stack]) -> bool:
    """Check whether a group has two parallel volumes, unlike separate scans of as many orientations."""
    return _count(group) > len({stack.source.raster.orientation for stack in group})


def _joined(groups: Sequence[Sequence[Stack]]) -> list[Sequence[Stack]]:
    """Add single volumes to the group that they are nearly like, such as one that lacks a slice."""
    joined: list[list[Stack]] = []
    for group in sorted(groups, key=_count, reverse=True):
        single = all(stack.timepoints == 1 for stack in group)
        like = next((other for other in joined if single and group[0].nearly_like(other[0])), None)
        if like is None:
            joined.append(list(group))
        else:
            logger.warning("Aligning a dissimilar series, too, as selected by its description: %s", _list(group))
            like.extend(group)
    return list(joined)


def _gated(group: Sequence[Stack]) -> Sequence[Stack]:
    """Leave out what has no phase beside the phases of a gated scan, such as an average or a scan in free breathing."""
    gated = [stack for stack in group if None not in stack.phases]
    if len(gated) == len(group) or not 1 < _count(gated) == len(set().union(*(stack.phases for stack in gated))):
        return group
    return _kept(gated, group, "they have no phase of the cycle, unlike others")


def _without_computed(group: Sequence[Stack]) -> Sequence[Stack]:
    """Leave out series that only their descriptions mark as computed, unless fewer than two timepoints remain."""
    scans = [stack for stack in group if not stack.is_named_as_computed(group)]
    if len(scans) == len(group) or _count(scans) < 2:
        return group
    return _kept(scans, group, "computed from other series by their descriptions")


def _kept(kept: Sequence[Stack], group: Sequence[Stack], reason: str) -> Sequence[Stack]:
    """Return ``kept``, and warn of the rest of a group, which is left out for a ``reason``."""
    logger.warning("Not aligned, as %s: %s", reason, _list([stack for stack in group if stack not in kept]))
    return kept


def _count(group: Sequence[Stack]) -> int:
    return sum(stack.timepoints for stack in group)
