"""Select the stacks of a study whose volumes are to be aligned."""

import logging
import math
import re
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from ...errors import InputError
from ..reading.names import matches
from .geometry import SAME_PLACE_MM, depth, evenly_spaced
from .order import Volume, split_volumes
from .plane import PROTOCOL, Plane, Source
from .prospective_motion import largest_tilt_degrees, may_show_same_anatomy, slices_at_a_place

__all__ = ["SEE_LIST", "Stack", "choose", "make_stacks", "possible_timepoints", "turned_timepoints"]

logger = logging.getLogger(__name__)
_LOCALISERS = ("LOCALIZER", "SCOUT", "SURVEY", "TOPOGRAM")
_COMPUTED = ("SUB", "MIP", "MINIP", "MPR", "ADC", "TRACEW", "FA", "PROJECTION IMAGE", "PARAMETRIC", "SECONDARY")
# Image types that a scanner separates from the echoes of one acquisition, such as water and fat, and may call derived.
_SEPARATED = ("DIXON", "WATER", "FAT", "IN_PHASE", "OUT_PHASE", "OPP_PHASE", "W", "F", "IP", "OP")
# Words in descriptions that mark computed series, whose image types may equal those of the scans.
_COMPUTED_WORDS = {"SUB", "SUBS", "SUBTRACTION", "MIP", "MINIP", "MAXIP", "AIP", "AVEIP", "AVG", "AVE", "AVERAGE"}
_USUAL_TILT_DEGREES = 5  # as far as patients usually turn their heads during a scan
_FEWEST_JOINED = 3  # minimum number of single-slice series that form a stack; two may be parallel by chance
_HEARTBEAT_S = 0.2, 2.5  # shortest and longest range of trigger times over a heartbeat; those of T1 maps vary by less
_NEARLY = 0.05  # maximum relative difference of echo, repetition time and slice distance of nearly equal scans
_ADAPTED = ("RepetitionTime", "ScanOptions")  # parameters of the protocol that may differ between nearly equal scans
_CLEARLY_LONGER = 2  # ratio of timepoints to the next candidate
SEE_LIST = ", or see --list"  # the end of a message that the listing itself omits
_CHOOSE = "choose one with --series-description PATTERN"


@dataclass(frozen=True, eq=False)
class Stack:
    """Parallel slices of one image type: a single volume, or several timepoints. They belong to one series, that of
    their source, unless each slice position has its own series. They are tilted if the scanner followed the patient."""

    source: Source
    planes: Sequence[Plane] = field(repr=False)
    repeats: Sequence["Stack"] = ()  # earlier acquisitions of some of its slices, if it is joined

    @cached_property
    def volumes(self) -> tuple[list[Volume], str]:
        """Volumes in temporal order, and the attribute that defines the order."""
        return split_volumes(self.planes)

    @cached_property
    def timepoints(self) -> int:
        """Number of volumes; if they cannot be distinguished, the number of images at a slice position."""
        try:
            return len(self.volumes[0])
        except InputError:
            depths: defaultdict[tuple[float, ...], int] = defaultdict(int)
            for plane in self.planes:
                depths[tuple(plane.place.position.round(2))] += 1
            return max(*depths.values(), slices_at_a_place(self.planes))

    @property
    def slices(self) -> int:
        return round(len(self.planes) / self.timepoints)

    @property
    def name(self) -> str:
        """Description that distinguishes the stack from others of the same series."""
        image_type, echo_time = "\\".join(self.source.image_type), self.source.echo_time_ms
        echo = f", TE {echo_time:g} ms" if echo_time else ""
        return f"{self.source.number} {self.source.description!r} ({image_type}{echo})"

    @property
    def likeness(self) -> Hashable:
        """Properties shared by the series of one examination: study, frame of reference, geometry, contrast."""
        source = self.source
        kind = source.image_type, source.echo_time_ms
        return source.examination, kind, source.raster, self.slices, self.planes[0].protocol

    def nearly_like(self, other: "Stack") -> bool:
        """Check whether the stack shows the same anatomy by the same sequence: it may lack slices, have another matrix,
        other scan options, as a scan before the contrast agent may have, or times that the scanner adapted. Other
        fields of view of a CT are reconstructions."""
        source, reference = self.source, other.source
        protocols = [
            [values for names, values in zip(PROTOCOL, stack.planes[0].protocol) if names[0] not in _ADAPTED]
            for stack in (self, other)
        ]
        numbers = zip(self._adapted, other._adapted)
        return (
            (source.examination, self._contents) == (reference.examination, other._contents)
            and protocols[0] == protocols[1]
            and (None in self.phases) == (None in other.phases)
            and (source.examination.modality != "CT" or source.raster == reference.raster)
            and all(math.isclose(a, b, rel_tol=_NEARLY) for a, b in numbers)
            and may_show_same_anatomy(self.planes, other.planes)
        )

    @property
    def _contents(self) -> set[str]:
        """Image type in any order, with or without a correction of the coils' sensitivity."""
        return {*self.source.image_type} - {"NORM"}

    @property
    def _adapted(self) -> tuple[float, float, float]:
        """Echo time and repetition time, ms, and slice distance, mm."""
        depths = [depth(plane) for plane in self.planes]
        step_mm = (max(depths) - min(depths)) / max(self.slices - 1, 1)
        return self.source.echo_time_ms, self.planes[0].number("RepetitionTime") or 0.0, step_mm

    @property
    def rejection(self) -> str:
        """Reason why the stack cannot be aligned; empty if there is none."""
        kinds = [kind.upper() for kind in self.source.image_type]
        description = self.source.description.upper()
        if any(word in kind for kind in kinds for word in _LOCALISERS) or any(w in description for w in _LOCALISERS):
            return "localiser"
        diffusion = [plane.diffusion for plane in self.planes]
        weighted = any(d.b_value > 0 for d in diffusion) or len({d.b_value_ge for d in diffusion}) > 1
        if weighted or "DIFFUSION" in kinds:
            return "diffusion"
        if self.slices < 2:
            return "single slice"
        return ""

    @property
    def joined(self) -> bool:
        """Whether each slice position has its own series."""
        return len({plane.source.series for plane in self.planes}) > 1

    @property
    def words(self) -> set[str]:
        """Words of the description, without numbers."""
        return set(re.findall("[A-Z]+", self.source.description.upper()))

    def is_named_as_computed(self, stacks: Sequence["Stack"]) -> bool:
        """Check whether the description is that of another stack plus a word such as MIP or SUB, or nothing but such
        words."""
        scans = self.words - _COMPUTED_WORDS
        if not scans:
            return bool(self.words) and any(not stack.words & _COMPUTED_WORDS for stack in stacks)
        return scans < self.words and any(stack.words and stack.words <= scans for stack in stacks)

    @property
    def phases(self) -> set[float | None]:
        """Phases of the respiratory or cardiac cycle; None for slices without one."""
        return {plane.keys.get("phase") for plane in self.planes}

    @property
    def derived(self) -> bool:
        """Whether the stack was computed from other images, such as a subtraction or projection."""
        kinds = [kind.upper() for kind in self.source.image_type]
        if any(kind.startswith("SUBTR") or kind in _COMPUTED for kind in kinds):
            return True
        return "DERIVED" in kinds[:1] and not any(kind in _SEPARATED for kind in kinds[2:])


def make_stacks(planes: Mapping[Source, Sequence[Plane]]) -> list[Stack]:
    """Make stacks, in the order of their series numbers."""
    stacks = _join_slices(_join_tilted([Stack(source, members) for source, members in planes.items()]))
    return sorted(stacks, key=lambda stack: (stack.source.number, stack.source.description, stack.source.image_type))


def _join_tilted(stacks: Sequence[Stack]) -> list[Stack]:
    """Join stacks of one series that differ only in orientation, by no more than a patient moves: the scanner followed
    the patient."""
    groups: defaultdict[Source, list[list[Stack]]] = defaultdict(list)
    for stack in stacks:
        alike = groups[replace(stack.source, raster=replace(stack.source.raster, orientation=()))]
        group = next((group for group in alike if may_show_same_anatomy(stack.planes, group[0].planes)), None)
        if group is None:
            alike.append([stack])
        else:
            group.append(stack)
    return [
        Stack(group[0].source, [plane for stack in group for plane in stack.planes])
        for alike in groups.values()
        for group in alike
    ]


def _join_slices(stacks: Sequence[Stack]) -> list[Stack]:
    """Join series of one slice each to a stack of parallel slices, as many scanners export a cardiac cine: each shows a
    heartbeat."""
    groups: defaultdict[Hashable, list[Stack]] = defaultdict(list)
    for stack in sorted(stacks, key=lambda stack: stack.source.number):
        source, number = stack.source, stack.timepoints
        # The repetition time may follow the heart rate.
        protocol = tuple(
            values for names, values in zip(PROTOCOL, stack.planes[0].protocol) if "RepetitionTime" not in names
        )
        alike = source.examination, source.image_type, source.echo_time_ms, source.raster, protocol, number
        groups[alike if number == len(stack.planes) and _shows_a_heartbeat(stack) else stack].append(stack)
    joined: list[Stack] = []
    for group in groups.values():
        kept = _newest_of_each_slice(group)
        repeats = [stack for stack in group if stack not in kept]
        if len(kept) >= _FEWEST_JOINED and evenly_spaced([stack.planes[0] for stack in kept]):
            first = min(kept, key=group.index)
            joined.append(Stack(first.source, [plane for stack in kept for plane in stack.planes], tuple(repeats)))
            joined += repeats
        else:
            joined += group
    return joined


def _newest_of_each_slice(stacks: Sequence[Stack]) -> list[Stack]:
    """Drop breath-holds that were repeated, if fewer than half of the slices were: repeats of all slices are separate
    examinations.

    Returns:
        Stacks sorted by depth, or all stacks unchanged.
    """
    newest: list[Stack] = []
    for stack in sorted(stacks, key=lambda stack: (depth(stack.planes[0]), _moment(stack))):
        if newest and depth(stack.planes[0]) - depth(newest[-1].planes[0]) < SAME_PLACE_MM:
            if _moment(stack) == _moment(newest[-1]):
                return list(stacks)
            newest[-1] = max(stack, newest[-1], key=_moment)
        else:
            newest.append(stack)
    return newest if 2 * (len(stacks) - len(newest)) < len(newest) else list(stacks)


def _moment(stack: Stack) -> tuple[float, int]:
    return min(plane.keys.get("acquisition time", 0.0) for plane in stack.planes), stack.source.number


def _shows_a_heartbeat(stack: Stack) -> bool:
    times = {plane.keys.get("trigger time", math.nan) for plane in stack.planes}
    shortest, longest = _HEARTBEAT_S
    return len(times) == len(stack.planes) and shortest < max(times) - min(times) < longest


def choose(stacks: Sequence[Stack], pattern: str | None = None) -> tuple[list[Stack], dict[Stack, str]]:
    """Choose the stacks that form one series of scans.

    Stacks with the same properties form a group: one stack with many timepoints, or one stack per timepoint. The group
    with the most timepoints is chosen if it has at least twice as many as the next one. Stacks joined from single-slice
    series, and those computed from other images, are considered only if there are no others.

    Args:
        stacks: all stacks of the study.
        pattern: pattern of series descriptions, with ``*`` and ``?``, ignoring case; a part of a description is enough.
            Matching stacks form a group even if their properties differ.

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


def possible_timepoints(rejected: Mapping[Stack, str], chosen: Sequence[Stack]) -> list[str]:
    """Describe the stacks that may be timepoints of the chosen series, such as an incomplete one, one per line."""
    lines = []
    for stack in (stack for stack, reason in rejected.items() if reason == "other series"):
        like = next((one for one in chosen if stack.nearly_like(one)), None)
        if like:
            difference = "its image type, matrix, voxels, scan options, repetition time or echo time differ"
            if stack.slices != like.slices:
                difference = f"it has {stack.slices} slices instead of {like.slices}"
            lines.append(
                f"{stack.name} is not aligned, as {difference}; if it is a timepoint, export it again, or select it "
                "and the others with --series-description PATTERN"
            )
    return lines


def turned_timepoints(chosen: Sequence[Stack]) -> list[str]:
    """Describe the chosen stacks whose timepoints are turned by more than patients usually turn, one per line."""
    return [
        f"{stack.name}: the slices of its timepoints are turned by up to {angle:.0f} degrees; if they are stacks of "
        "other parts of the body rather than timepoints of one, use a folder with the files of each"
        for stack in chosen
        if (angle := largest_tilt_degrees(stack.planes)) > _USUAL_TILT_DEGREES
    ]


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
    """Find the group of similar stacks with clearly the most timepoints; empty if none has two."""
    alike = defaultdict(list)
    for stack in stacks:
        alike[stack.likeness].append(stack)
    groups = (
        _joined(list(alike.values())) if pattern else [_without_computed(_gated(group)) for group in alike.values()]
    )
    order = sorted((group for group in groups if _count(group) > 1), key=_count, reverse=True)
    if not order:
        together = list(stacks) if pattern and len(stacks) > 1 else []
        if together:
            logger.warning("Aligning dissimilar series, as selected by their descriptions: %s", _list(together))
        return together
    unclear = order if len(order) > 1 and _count(order[0]) < _CLEARLY_LONGER * _count(order[1]) else []
    if not pattern and sum(stack.timepoints > 1 for stack in order[0]) > 1:
        unclear = order  # runs of one protocol
    if unclear:
        several = [stack for group in unclear for stack in group]
        same_name = len({stack.name for stack in several}) < len(several)
        cure = "some have the same name: use the folder or the files of one of them alone" if same_name else _CHOOSE
        raise InputError(
            f"{several[0].planes[0].file.path}: expected one series to align, got {_list(several)}; {cure}"
        )
    return list(order[0])


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
    logger.warning(
        "Not aligned, as they have no phase of the cycle, unlike others: %s",
        _list([stack for stack in group if stack not in gated]),
    )
    return gated


def _without_computed(group: Sequence[Stack]) -> Sequence[Stack]:
    """Leave out series that only their descriptions mark as computed, unless fewer than two timepoints remain."""
    scans = [stack for stack in group if not stack.is_named_as_computed(group)]
    if len(scans) == len(group) or _count(scans) < 2:
        return group
    logger.warning(
        "Not aligned, as computed from other series by their descriptions: %s",
        _list([stack for stack in group if stack not in scans]),
    )
    return scans


def _count(group: Sequence[Stack]) -> int:
    return sum(stack.timepoints for stack in group)
