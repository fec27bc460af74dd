"""Names of image files and series: formats, natural order, patterns, and BIDS names."""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

NIFTI_ENDINGS = (".nii", ".nii.gz", ".hdr", ".hdr.gz", ".img", ".img.gz")
IMAGE_ENDINGS = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr")  # images in a folder
_BIDS_IMAGES = {"warped.nii.gz": "aligned", "mean.nii.gz": "mean", "coverage.nii.gz": "coverage"}
_TRANSFORM = re.compile(r"(inverse_)?(?:ddf|transform)_(\d+)(\.nii\.gz|\.h5)")
_OWN_ENTITIES = ("desc-", "from-", "to-", "mode-")
_BIDS = re.compile(
    r"(sub-.+_)?(desc-(aligned|mean|coverage)_[^_]+\.nii\.gz"
    r"|from-(scan\d+_to-common|common_to-scan\d+)_mode-image_xfm\.(nii\.gz|h5))"
)


def natural_order(path: Path) -> list[tuple[int, int, str]]:
    """Make a sort key that puts scan2 before scan10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", path.name.lower())]


def matches(text: str, pattern: str) -> bool:
    """Check whether part of a text matches a pattern with ``*`` and ``?``, ignoring case."""
    return fnmatchcase(text.lower(), f"*{pattern.lower().replace('[', '[[]')}*")


def image_stem(name: str) -> str:
    """Remove the format's ending from the name of an image file; other dots stay, as in scan.t1.nii.gz."""
    ending = max((e for e in (*IMAGE_ENDINGS, *NIFTI_ENDINGS) if name.lower().endswith(e)), key=len, default="")
    return name.removesuffix(name[len(name) - len(ending) :]) if ending else name


def bids_name(name: str, scans: Sequence[str]) -> str | None:
    """Make the BIDS name of a file of a registration, in fMRIPrep's style; None if there is none.

    ``ddf_02.nii.gz``, which maps images of scan 2 to the common space, is ``from-scan02_to-common_mode-image_xfm``;
    ``warped.nii.gz`` is ``desc-aligned_T1w``.

    Args:
        name: file name such as ``ddf_02.nii.gz``.
        scans: paths of the scans, whose shared BIDS entities and suffix become part of the name.
    """
    entities, suffix = _shared_entities(scans)
    if name in _BIDS_IMAGES:
        return "_".join([*entities, f"desc-{_BIDS_IMAGES[name]}", f"{suffix}.nii.gz"])
    if match := _TRANSFORM.fullmatch(name):
        inverse, number, ending = match.groups()
        spaces = [f"scan{number}", "common"]
        origin, target = spaces[::-1] if inverse else spaces
        return "_".join([*entities, f"from-{origin}", f"to-{target}", "mode-image", f"xfm{ending}"])
    return None


def is_bids_name(name: str) -> bool:
    """Check whether `bids_name` could have made this name."""
    return _BIDS.fullmatch(name) is not None


def _shared_entities(scans: Sequence[str]) -> tuple[list[str], str]:
    """Collect the entities (sub-01, ses-02, ...) shared by the names of all scans, except those that results define
    themselves, and their suffix. The suffix is "image" if they differ; names outside of BIDS have no entities."""
    names = [image_stem(Path(scan).name).split("_") for scan in scans]
    if not all(name[0].startswith("sub-") and len(name) > 1 for name in names):
        return [], "image"
    shared = [part for part in names[0][:-1] if all(part in name for name in names)]
    suffix = names[0][-1] if len({name[-1] for name in names}) == 1 else "image"
    return [part for part in shared if not part.startswith(_OWN_ENTITIES)], suffix
