"""Slices of DICOM images: source, position, and conversion of pixel values.

Positions and directions are in DICOM's LPS mm, and are converted to RAS in `geometry`.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

# Parameters shared by the series of one examination, under their names in classic and enhanced files.
PROTOCOL = (
    ("ScanningSequence", "EchoPulseSequence"),
    ("SequenceName", "PulseSequenceName"),
    ("ScanOptions",),
    ("RepetitionTime",),
    ("FlipAngle",),
    ("MagneticFieldStrength",),
    ("ConvolutionKernel",),
    ("KVP",),
    ("InPlanePhaseEncodingDirection",),
)


@dataclass(frozen=True)
class Examination:
    """Patient, study, frame of reference (``space``) and modality of a slice."""

    patient: str
    study: str
    space: str
    modality: str


@dataclass(frozen=True)
class Person:
    """What tells patients with one ID apart; each is empty if the header does not state it."""

    name: str
    birth_date: str
    sex: str


@dataclass(frozen=True)
class Raster:
    """Rows and columns of a stack; its spacing (mm) and orientation are each that of the first slice from which they
    differ only by rounding."""

    shape: tuple[int, int]
    spacing_mm: tuple[float, float]
    orientation: tuple[float, ...]


@dataclass(frozen=True)
class Source:
    """Origin of a slice: examination, series, kind of image and raster. Slices with equal sources form one stack."""

    examination: Examination
    series: str
    number: int
    description: str
    image_type: tuple[str, ...]
    echo_time_ms: float
    raster: Raster

    @property
    def unoriented(self) -> "Source":
        """The source without the orientation of its slices."""
        return replace(self, raster=replace(self.raster, orientation=()))

    def of_one_session(self, other: "Source") -> bool:
        """Check whether the patient was scanned in one session: the study agrees, or else the series or the frame of
        reference does."""
        one, two = self.examination, other.examination
        uids = (self.series, other.series), (one.space, two.space)
        shared = one.study == two.study or any(a == b != "" for a, b in uids)
        return shared and (one.patient, one.modality) == (two.patient, two.modality)

    def with_shape(self, rows: int, columns: int) -> "Source":
        return replace(self, raster=replace(self.raster, shape=(rows, columns)))


@dataclass(frozen=True)
class Place:
    """Position and orientation of a slice in the patient.

    Args:
        position: ``(3,)``, centre of the first pixel, LPS mm.
        axes: ``(2, 3)``, directions of increasing column index and of increasing row index; LPS.
        spacing_mm: distance between rows, then between columns.
    """

    position: np.ndarray
    axes: np.ndarray
    spacing_mm: tuple[float, float]


@dataclass(frozen=True)
class Diffusion:
    """Diffusion weighting, s/mm^2.

    Args:
        b_value: 0 without diffusion weighting.
        b_value_ge: as written by GE, also for scans without diffusion weighting; only changes are meaningful.
    """

    b_value: float
    b_value_ge: float


@dataclass(frozen=True)
class Scaling:
    """Conversion of stored to displayed values.

    Args:
        slope, intercept: rescale slope and intercept.
        display: Philips' scale slope, which makes displayed values of different scans comparable; None for others.
        real_world: slope of the first Real World Value Mapping; None if there is none. It is only checked.
        of_philips: whether the slice is an MR image of Philips, which should state ``display``.
    """

    slope: float
    intercept: float
    display: float | None
    real_world: float | None
    of_philips: bool

    def factor(self, reference: "Scaling") -> float:
        """Return the factor of displayed values that converts them to the scale of a reference slice; 1 except for
        Philips."""
        if reference.display is None or self.display is None:
            return 1.0
        factor = reference.slope * reference.display / (self.slope * self.display)
        return 1.0 if abs(factor - 1) < 1e-6 else factor

    def apply(self, stored: np.ndarray, reference: "Scaling") -> np.ndarray:
        """Convert stored values to displayed ones, for Philips on the scale of a reference slice."""
        return (stored * self.slope + self.intercept) * self.factor(reference)


@dataclass(frozen=True)
class ImageFile:
    """A slice's pixels in a file.

    Args:
        path: the file.
        uid: SOP instance UID, which copies of the file share; the path if it is missing.
        frame: index in a multi-frame file.
        scaling: conversion of stored to displayed values.
        corner: first row and column in a mosaic; ``(0, 0)`` otherwise.
    """

    path: str
    uid: str
    frame: int
    scaling: Scaling
    corner: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Plane:
    """One slice.

    Args:
        source: slices with equal sources form one stack.
        file: its pixels.
        place: position and orientation in the patient.
        keys: numbers that may define the temporal order or the times, named as in `order`; times in seconds.
        zones: offset from UTC of each key that is a clock, in seconds; None if the header does not specify it.
        protocol: values of the parameters in `PROTOCOL`.
        diffusion: diffusion weighting.
        person: name, birth date and sex of the patient.
        copies: files of the same image.
    """

    source: Source
    file: ImageFile
    place: Place
    keys: Mapping[str, float]
    zones: Mapping[str, float | None]
    protocol: tuple[tuple[str, ...], ...]
    diffusion: Diffusion
    person: Person
    copies: tuple[ImageFile, ...] = ()

    def protocol_without(self, names: Collection[str]) -> tuple[tuple[str, ...], ...]:
        """Return the protocol without the parameters of these classic names."""
        return tuple(values for (name, *_), values in zip(PROTOCOL, self.protocol) if name not in names)

    def number(self, name: str) -> float | None:
        """Read a number of the protocol by its classic name, such as RepetitionTime; None if it is missing."""
        texts = dict(zip((names[0] for names in PROTOCOL), self.protocol))[name]
        try:
            return float(texts[0])
        except (IndexError, ValueError):
            return None
