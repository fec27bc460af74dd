"""Private attributes of vendors, as documented in their DICOM conformance statements."""

import re
from collections.abc import Sequence

from pydicom.dataset import Dataset

from .attributes import Attributes

_PHILIPS, _PHILIPS_IMAGE = "Philips Imaging DD 001", "Philips MR Imaging DD 001"
_PHILIPS_LABEL, _LABEL_TYPE = "Philips MR Imaging DD 005", (0x2005, 0x1029)
_SPIN_LABELS = ("CONTROL", "LABEL", "M_ZERO_SCAN")  # in the order of acquisition
_B_VALUE_PHILIPS, _SCALE_PHILIPS, _DYNAMIC_BEGIN = (0x2001, 0x1003), (0x2005, 0x100E), (0x2005, 0x10A0)
_B_VALUE_SIEMENS, _B_VALUE_GE = (0x0019, 0x100C), (0x0043, 0x1039)
_UNITED_IMAGING, _B_VALUE_UNITED_IMAGING, _SLICES = "Image Private Header", (0x0065, 0x1009), (0x0065, 0x1051)
_GE = "GEMS_PARM_01"
_RAW_DATA_TYPE, _COLLAPSE_FLAG, _GROUP_DELAY = (0x0043, 0x102F), (0x0043, 0x1030), (0x0043, 0x107C)
_GE_ACQUISITION, _PULSE_SEQUENCE, _USER_12 = "GEMS_ACQU_01", (0x0019, 0x109C), (0x0019, 0x10B3)
_REVERSED_POLARITIES = {0: (), 1: (0, 1), 2: (1,), 3: (0,)}  # temporal positions modulo 2, by the user variable
_SEPARATED = re.compile("(WATER|FAT|INPHASE|OUTPHASE):", re.IGNORECASE)  # starts the description of a Dixon series
_RAW_DATA_TYPES = {1: "PHASE", 2: "REAL", 3: "IMAGINARY"}
# Magnitude, which is flagged only next to field maps and velocities, and the three velocities.
_COLLAPSE_FLAGS = {2: "MAGNITUDE", 3: "VELOCITY_RL", 4: "VELOCITY_AP", 5: "VELOCITY_SI"}


def b_value(attributes: Attributes) -> float:
    """Return the diffusion weighting in s/mm^2; 0 without diffusion weighting."""
    private = ((_B_VALUE_PHILIPS, _PHILIPS), (_B_VALUE_UNITED_IMAGING, _UNITED_IMAGING))
    values = (attributes.number("DiffusionBValue", _B_VALUE_SIEMENS), *(attributes.private(*tag) for tag in private))
    return next((value for value in values if value is not None), 0.0)


def b_value_ge(attributes: Attributes) -> float:
    """Return GE's b-value, which is also set without diffusion weighting, so that only changes are meaningful."""
    return attributes.number(_B_VALUE_GE, default=0.0)


def display_scale(attributes: Attributes) -> float | None:
    """Return Philips' scale slope, which makes displayed values of different scans comparable."""
    return attributes.private(_SCALE_PHILIPS, _PHILIPS_IMAGE) or None


def dynamic_begin_s(attributes: Attributes) -> float | None:
    """Return the time of Philips' dynamic scan since the first one, in seconds."""
    return attributes.private(_DYNAMIC_BEGIN, _PHILIPS_IMAGE)


def image_kinds(attributes: Attributes) -> tuple[str, ...]:
    """Return the kinds (magnitude, phase, field map, polarity, water and fat) that tell GE images with one image type
    apart."""
    separated = _SEPARATED.match(attributes.text("SeriesDescription"))
    kinds = (
        _RAW_DATA_TYPES.get(int(attributes.private(_RAW_DATA_TYPE, _GE) or 0)),
        _COLLAPSE_FLAGS.get(int(attributes.private(_COLLAPSE_FLAG, _GE) or 0)),
        "REVERSED" if rows_are_reversed(attributes) else None,
        separated and separated[1].upper(),
    )
    return tuple(kind for kind in kinds if kind)


def mosaic_slices(dataset: Dataset) -> Sequence[Dataset]:
    """Return position and time of the slices of a United Imaging mosaic, row by row; empty for other images."""
    return Attributes(dataset, 0).get(_SLICES, default=[]) if "VFRAME" in dataset.get("ImageType", "") else []


def repetition_of_volumes_s(attributes: Attributes) -> float | None:
    """Return the time between volumes of single-shot echo-planar 2D sequences, in seconds; None for other sequences.

    It is the repetition time and, for GE, the group delay after each volume. In other sequences a volume takes several
    repetitions.
    """
    single_shot = "EP" in attributes.texts("ScanningSequence") and "SK" not in attributes.texts("SequenceVariant")
    if attributes.get("EchoPlanarPulseSequence") == "YES":  # enhanced images
        single_shot = attributes.number("NumberOfKSpaceTrajectories") == 1
    repetition_ms = attributes.number("RepetitionTime", default=0.0)
    if not single_shot or attributes.get("MRAcquisitionType") != "2D" or repetition_ms <= 0:
        return None
    return repetition_ms / 1000 + (attributes.private(_GROUP_DELAY, _GE) or 0.0)


def rows_are_reversed(attributes: Attributes) -> bool:
    """Check for volumes of reversed phase-encoding polarity of GE's sequence epi_pepolar, which stores their rows in
    reversed order. Other volumes of the series are not reversed, as for field maps."""
    if not attributes.private_text(_PULSE_SEQUENCE, _GE_ACQUISITION).endswith("epi_pepolar"):
        return False
    number = attributes.number("TemporalPositionIdentifier", default=1)
    return number % 2 in _REVERSED_POLARITIES.get(int(attributes.private(_USER_12, _GE_ACQUISITION) or 0), ())


def spin_label(attributes: Attributes) -> float | None:
    """Return whether the blood was labelled in an image of arterial spin labelling, 0 for control and 1 for label; 2
    for the calibration scan, None for other images."""
    context = attributes.text("ASLContext") or attributes.private_text(_LABEL_TYPE, _PHILIPS_LABEL)
    return float(_SPIN_LABELS.index(context)) if context in _SPIN_LABELS else None
