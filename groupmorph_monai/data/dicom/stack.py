"""Stacks of parallel slices: what they show, and how the series of a study form them."""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from ...errors import InputError
from .geometry import SAME_PLACE_MM, depth, evenly_spaced
from .order import Volume, start_s
from .plane import PROTOCOL, Plane, Source
from .prospective_motion import gaps_mm, may_show_same_anatomy, slices_at_a_place
from .split import separate_aborted, split_volumes

_LOCALISERS = ("LOCALIZER", "SCOUT", "SURVEY", "TOPOGRAM")
_DIFFUSION_WORDS = {"DWI", "DTI", "DIFFUSION"}  # in descriptions of echo-planar series
_WEIGHTED_SEQUENCE = re.compile(r"ep_b0*[1-9]")  # name of Siemens' sequence with a b-value, such as *ep_b800#3
_COMPUTED = ("SUB", "MIP", "MINIP", "MPR", "ADC", "TRACEW", "FA", "PROJECTION IMAGE", "PARAMETRIC", "SECONDARY")
# Image types that a scanner separates from the echoes of one acquisition, such as water and fat, and may call derived.
_SEPARATED = ("DIXON", "WATER", "FAT", "IN_PHASE", "OUT_PHASE", "OPP_PHASE", "W", "F", "IP", "OP")
# Words in descriptions that mark computed series, whose image types may equal those of the scans.
COMPUTED_WORDS = {"SUB", "SUBS", "SUBTRACTION", "MIP", "MINIP", "MAXIP", "AIP", "AVEIP", "AVG", "AVE", "AVERAGE"}
_FEWEST_JOINED = 3  # minimum number of single-slice series that form a stack; two may be parallel by chance
_HEARTBEAT_S = 0.2, 2.5  # shortest and longest range of trigger times over a heartbeat; those of T1 maps vary by less
_NEARLY = 0.05  # maximum relative difference of echo, repetition time and slice distance of nearly equal scans
# Parts of image types that a correction adds, and those that say whether the image was derived from others.
_CORRECTIONS = {"ND", "DIS2D", "DIS3D", "NORM", "FIL", "ORIGINAL", "DERIVED"}
_FLIP_ANGLES = 0.1  # maximum relative difference of flip angles; those of T1 maps differ by more
_SLIGHT_DIFFUSION = 50  # s/mm^2, below the b-values of diffusion imaging, as of spoilers
_ADAPTED = ("RepetitionTime", "ScanOptions")  # parameters of the protocol that may differ between nearly equal scans


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
        """Properties shared by the timepoints of one examination: study, frame of reference, matrix, voxels, contrast;
        but not the orientation, as the scanner may have followed the patient."""
        source = self.source.unoriented
        kind = source.image_type, source.echo_time_ms
        return source.examination, kind, source.raster, self.slices, self.planes[0].protocol

    def nearly_like(self, other: "Stack") -> bool:
        """Check whether the stack shows the same anatomy by the same sequence in one session. It may lack slices, and
        differ in frame of reference, as after repositioning, in scan options, as before the contrast agent, in times
        that the scanner adapted, and in matrix, which in CT marks another reconstruction. Stacks of one source are a
        scan and its aborted volume."""
        source, reference = self.source, other.source
        protocols = [stack.planes[0].protocol_without(_ADAPTED) for stack in (self, other)]
        numbers = zip(self._adapted, other._adapted)
        return (
            source.of_one_session(reference)
            and self._contents == other._contents
            and protocols[0] == protocols[1]
            and (None in self.phases) == (None in other.phases)
            and (source.examination.modality != "CT" or source.unoriented.raster == reference.unoriented.raster)
            and (source == reference or all(math.isclose(a, b, rel_tol=_NEARLY) for a, b in numbers))
            and may_show_same_anatomy(self.planes, other.planes)
        )

    def may_be_lost_timepoint(self, other: "Stack") -> bool:
        """Check whether a stack that was not chosen may still be a timepoint of another one, although a part of its
        header is missing or differs: a reason for a warning, not for an alignment.

        It shows the same anatomy on the same matrix by the same sequence, as far as both headers say. Localisers,
        diffusion imaging and computed images have another protocol, description or image type.
        """
        source, reference = self.source, other.source
        modality = source.examination.modality or reference.examination.modality
        same = replace(source, examination=replace(source.examination, modality=modality))
        kinds = [{kind.upper() for kind in one.image_type} - _CORRECTIONS for one in (source, reference)]
        return (
            same.of_one_session(reference)
            and (kinds[0] == kinds[1] or min(kinds, key=len) <= {"PRIMARY"})
            and not self.computed
            and (not self.derived or self.words == other.words)
            and all(plane.diffusion.b_value < _SLIGHT_DIFFUSION for plane in self.planes)
            and self.slices == other.slices
            and source.unoriented.raster == reference.unoriented.raster
            and _stated_alike(self, other)
            and may_show_same_anatomy(self.planes, other.planes)
        )

    @property
    def _contents(self) -> set[str]:
        """Image type in any order, with or without a correction of the coils' sensitivity."""
        return {*self.source.image_type} - {"NORM"}

    @property
    def _adapted(self) -> tuple[float, float, float]:
        """Echo time and repetition time, ms, and slice distance, mm."""
        try:
            planes: Sequence[Plane] = self.volumes[0][0]
        except InputError:
            planes = self.planes
        step_mm = float(np.median(gaps_mm(planes)))
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
        if weighted or "DIFFUSION" in kinds or self._is_diffusion_sequence:
            return "diffusion"
        if self.slices < 2:
            return "single slice"
        return ""

    @property
    def _is_diffusion_sequence(self) -> bool:
        """Whether name and kind of the sequence are those of diffusion imaging, whose b-values an export may lack."""
        names = [name for name, *_ in PROTOCOL]
        protocols = [dict(zip(names, protocol)) for protocol in {plane.protocol for plane in self.planes}]
        if any(_WEIGHTED_SEQUENCE.search(name) for protocol in protocols for name in protocol["SequenceName"]):
            return True
        echo_planar = any("EP" in protocol["ScanningSequence"] for protocol in protocols)
        return echo_planar and bool(self.words & _DIFFUSION_WORDS)

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
        scans = self.words - COMPUTED_WORDS
        if not scans:
            return bool(self.words) and any(not stack.words & COMPUTED_WORDS for stack in stacks)
        return scans < self.words and any(stack.words and stack.words <= scans for stack in stacks)

    @property
    def phases(self) -> set[float | None]:
        """Phases of the respiratory or cardiac cycle; None for slices without one."""
        return {plane.keys.get("phase") for plane in self.planes}

    @property
    def derived(self) -> bool:
        """Whether the stack was computed from other images, such as a subtraction or projection."""
        kinds = [kind.upper() for kind in self.source.image_type]
        return self.computed or ("DERIVED" in kinds[:1] and not any(kind in _SEPARATED for kind in kinds[2:]))

    @property
    def computed(self) -> bool:
        """Whether the image type names a computation, such as a subtraction or projection."""
        kinds = [kind.upper() for kind in self.source.image_type]
        return any(kind.startswith("SUBTR") or kind in _COMPUTED for kind in kinds)


def make_stacks(planes: Mapping[Source, Sequence[Plane]]) -> list[Stack]:
    """Make stacks, sorted by series number. An aborted last volume is a stack of its own."""
    stacks = _join_tilted([Stack(source, members) for source, members in planes.items()])
    stacks = _join_slices([Stack(stack.source, part) for stack in stacks for part in separate_aborted(stack.planes)])
    return sorted(stacks, key=lambda stack: (stack.source.number, stack.source.description, stack.source.image_type))


def alike(stacks: Sequence[Stack], key: Callable[[Stack], Hashable]) -> list[list[Stack]]:
    """Group stacks that have the same key and are parallel, or tilted by no more than a patient moves, as where the
    scanner followed the patient.

    Returns:
        The groups, each in the order of time.
    """
    groups: defaultdict[Hashable, list[list[Stack]]] = defaultdict(list)
    for stack in sorted(stacks, key=_moment):
        candidates = groups[key(stack)]
        # Motion accumulates, so each is compared with all before it.
        group = next((g for g in candidates if any(_may_be_timepoints(stack, earlier) for earlier in g)), None)
        if group is None:
            candidates.append([stack])
        else:
            group.append(stack)
    return [group for candidates in groups.values() for group in candidates]


def _stated_alike(stack: Stack, reference: Stack) -> bool:
    """Check that the protocols agree in all parameters that both headers state, up to small changes of numbers. The
    phase-encoding direction and scan options may differ."""
    names = [name for name, *_ in PROTOCOL]
    for name, one, two in zip(names, stack.planes[0].protocol, reference.planes[0].protocol, strict=True):
        if not one or not two or name in ("ScanOptions", "InPlanePhaseEncodingDirection"):
            continue
        number, other = stack.planes[0].number(name), reference.planes[0].number(name)
        if number is not None and other is not None:
            if not math.isclose(number, other, rel_tol=_FLIP_ANGLES if name == "FlipAngle" else _NEARLY):
                return False
        elif not ({*one} <= {*two} or {*two} <= {*one}):
            return False
    echoes_ms = stack.source.echo_time_ms, reference.source.echo_time_ms
    return 0 in echoes_ms or math.isclose(*echoes_ms, rel_tol=_NEARLY)


def _may_be_timepoints(stack: Stack, reference: Stack) -> bool:
    parallel = stack.source.raster.orientation == reference.source.raster.orientation
    return parallel or may_show_same_anatomy(stack.planes, reference.planes)


def _join_tilted(stacks: Sequence[Stack]) -> list[Stack]:
    """Join stacks of one series that differ only in orientation."""
    return [
        Stack(group[0].source, [plane for stack in group for plane in stack.planes])
        for group in alike(stacks, lambda stack: stack.source.unoriented)
    ]


def _join_slices(stacks: Sequence[Stack]) -> list[Stack]:
    """Join series of one slice each to a stack of parallel slices, as many scanners export a cardiac cine: each shows a
    heartbeat."""
    groups: defaultdict[Hashable, list[Stack]] = defaultdict(list)
    for stack in sorted(stacks, key=lambda stack: stack.source.number):
        source, number = stack.source, stack.timepoints
        # The repetition time may follow the heart rate.
        protocol = stack.planes[0].protocol_without(["RepetitionTime"])
        key = source.examination, source.image_type, source.echo_time_ms, source.raster, protocol, number
        groups[key if number == len(stack.planes) and _shows_a_heartbeat(stack) else stack].append(stack)
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
    return start_s(stack.planes), stack.source.number


def _shows_a_heartbeat(stack: Stack) -> bool:
    times = {plane.keys.get("trigger time", math.nan) for plane in stack.planes}
    shortest, longest = _HEARTBEAT_S
    return len(times) == len(stack.planes) and shortest < max(times) - min(times) < longest
