"""Warn of files that cannot be read but may be timepoints of the chosen series."""

import math
import warnings
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress

from ..reading.names import matches
from .attributes import Attributes
from .find import Unread
from .stack import Stack

_OTHER_KINDS = {"DERIVED", "SECONDARY", "DIFFUSION", "LOCALIZER"}  # image types of files that are no timepoints
_SAME_ECHO = 0.05  # maximum relative difference of echo times
_UNREADABLE = "a header that cannot be read"


def unread_timepoints(
    chosen: Sequence[Stack], unread: Sequence[Unread], pattern: str | None, earlier: Sequence[str]
) -> list[str]:
    """Describe the files that may be timepoints of the chosen series but cannot be read, one line per series.

    Args:
        chosen: stacks to be aligned.
        unread: files without a readable slice.
        pattern: pattern of the descriptions of the series to read; None if it was chosen automatically.
        earlier: warnings that already name some of the files; those of the same series are not repeated.
    """
    groups: defaultdict[str, list[Unread]] = defaultdict(list)
    for file in unread:
        if file.image and _may_be_timepoint(file, chosen, pattern):
            groups[file.series].append(file)
    return [
        f"{first.path}{f' and {len(more)} more' * bool(more)}: not read, because of {first.reason}; if this is a "
        "timepoint, copy or export it again"
        for first, *more in groups.values()
        if not any(str(file.path) in line for file in (first, *more) for line in earlier)
    ]


def _may_be_timepoint(file: Unread, chosen: Sequence[Stack], pattern: str | None) -> bool:
    """Check whether as much of the header as can be read is that of a scan like the chosen ones: their study, modality,
    matrix and echo time, and neither derived nor a screenshot. Colour palettes are those of maps."""
    header, source = Attributes(file.header, 0), chosen[0].source
    with suppress(Exception), warnings.catch_warnings(action="ignore"):  # damaged values
        kind = header.get("SOPClassUID")
        if not kind or (kind.is_private and header.get("Rows") is None):  # such as spectra and protocols of the scanner
            return not kind and file.reason.startswith(_UNREADABLE)
        study, modality, description = map(header.text, ("StudyInstanceUID", "Modality", "SeriesDescription"))
        shape = header.get("Rows"), header.get("Columns")
        echo_ms = header.number("EffectiveEchoTime", "EchoTime")
        kinds = {kind.upper() for kind in header.texts("FrameType", "ImageType")}
        return (
            study in {"", *(stack.source.examination.study for stack in chosen)}
            and modality in ("", source.examination.modality)
            and not kinds & _OTHER_KINDS
            and header.text("PhotometricInterpretation") != "PALETTE COLOR"
            and "SecondaryCapture" not in getattr(header.get("SOPClassUID"), "keyword", "")
            and (None in shape or shape in {stack.source.raster.shape for stack in chosen})
            and (echo_ms is None or math.isclose(echo_ms, source.echo_time_ms, rel_tol=_SAME_ECHO))
            and (not pattern or not description or matches(description, pattern))
        )
    return True
