"""DIR-Lab 4D CT as distributed by its owners: raw volumes without a header, and landmarks in voxels.

Layout of case N: ``CaseNPack`` (case 8: ``Case8Deploy``) with ``Images/caseN_T00*.img`` to ``T90``, signed 16-bit
little-endian with the first axis fastest; ``Sampled4D/caseN_4D-75_T00.txt`` to ``T50``, 75 points tracked through six
phases; ``ExtremePhases/CaseN_300_T00_xyz.txt`` and ``T50``, 300 points in the two extreme phases. Letter case, the
suffix after the phase (``_s``, ``-ssm``) and ``_300_`` (``_dirLab300_``) vary between cases. Sizes and voxel sizes come
from the data set's page,
https://med.emory.edu/departments/radiation-oncology/research-laboratories/deformable-image-registration/downloads-and-reference-data/4dct.html
(formerly www.dir-lab.com); the data are those of Castillo et al. 2009 (Phys Med Biol 54:1849) and Castillo et al. 2010
(Phys Med Biol 55:305).

Landmarks: each line is ``x y z``, voxels counted from 1, in the order of the volume's axes; (1, 1, 1) is the centre of
the voxel in the right, anterior, superior corner. Nothing is flipped: images and landmarks share their axes, which
according to the affine point to the left, the back and the feet. Distances are measured without rounding; published
"snap-to-voxel" values round points to voxel centres first and are not comparable.
"""

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ...errors import InputError
from ...space.grid import transform_points
from ..series import Frame
from .signature import read_text

DIRLAB_PHASES = ("T00", "T10", "T20", "T30", "T40", "T50")  # end of inspiration to end of expiration
# Voxels, voxel size in mm, and mean distance of the 300 points between T00 and T50 in mm, to check the reader against.
DIRLAB_CASES = {
    1: ((256, 256, 94), (0.97, 0.97, 2.5), 3.89),
    2: ((256, 256, 112), (1.16, 1.16, 2.5), 4.34),
    3: ((256, 256, 104), (1.15, 1.15, 2.5), 6.94),
    4: ((256, 256, 99), (1.13, 1.13, 2.5), 9.83),
    5: ((256, 256, 106), (1.10, 1.10, 2.5), 7.48),
    6: ((512, 512, 128), (0.97, 0.97, 2.5), 10.89),
    7: ((512, 512, 136), (0.97, 0.97, 2.5), 11.03),
    8: ((512, 512, 128), (0.97, 0.97, 2.5), 14.99),
    9: ((512, 512, 128), (0.97, 0.97, 2.5), 7.92),
    10: ((512, 512, 120), (0.97, 0.97, 2.5), 7.30),
}
_IN_PLANE_VOXELS = 256  # size of the crop, which contains all landmarks (GroupMorph, Section 3)
_HU_OFFSET = 1024  # stored values are HU + 1024
_POINTS = {75: (r"4D-?75_{phase}", DIRLAB_PHASES), 300: (r"300_{phase}_xyz", ("T00", "T50"))}


def is_dirlab(folder: str | Path) -> bool:
    """Check whether a folder is named like a DIR-Lab case and contains raw volumes."""
    return _case(folder) is not None and bool(_files(folder, r"case\d+_T\d\d.*\.img"))


def read_dirlab(folder: str | Path) -> list[Frame]:
    """Read the six phases of one case, ``CaseNPack``.

    Volumes of 512 x 512 voxels are cropped in plane to 256 x 256, around the centre of the 75 landmarks of all phases.

    Returns:
        The phases in HU; the origin of their affines is the first voxel of the uncropped volume.

    Raises:
        InputError: If a phase is missing or a file has the wrong size.
    """
    case = _checked_case(folder)
    size, spacing, _ = DIRLAB_CASES[case]
    files = [_one_file(folder, rf"case{case}_{phase}(?!\d).*\.img", phase) for phase in DIRLAB_PHASES]
    expected = 2 * int(np.prod(size))
    for file in files:
        if file.stat().st_size != expected:
            raise InputError(
                f"{file}: expected {expected} bytes, {' x '.join(map(str, size))} voxels of 16 bits, got "
                f"{file.stat().st_size}; copy it again, or check the case number in the name of the folder"
            )
    corner = _crop(folder, case)
    rows = tuple(slice(c, c + _IN_PLANE_VOXELS) for c in corner)
    affine = _affine(spacing)
    affine[:2, 3] = affine[[0, 1], [0, 1]] * corner
    volumes = [np.fromfile(file, dtype="<i2").reshape(size, order="F")[rows] for file in files]
    return [
        Frame(np.ascontiguousarray(v.astype(np.float32) - _HU_OFFSET), affine, str(file))
        for v, file in zip(volumes, files)
    ]


def read_dirlab_landmarks(folder: str | Path, number: int = 75) -> np.ndarray:
    """Read the landmarks of one case, ``(K, P, 3)`` RAS mm in the space of `read_dirlab`.

    Args:
        folder: ``CaseNPack``.
        number: 75, in all six phases, or 300, in the first and the last phase.

    Raises:
        InputError: If a file is missing, or has the wrong number of points or points outside the volume.
    """
    case = _checked_case(folder)
    affine, voxels = _affine(DIRLAB_CASES[case][1]), _landmark_voxels(folder, case, number)
    return transform_points(torch.from_numpy(affine), torch.from_numpy(voxels)).numpy()


def _landmark_voxels(folder: str | Path, case: int, number: int) -> np.ndarray:
    """Read landmarks in voxels, counted from 0, ``(K, P, 3)``."""
    pattern, phases = _POINTS[number]
    return np.stack(
        [
            _read_points(_one_file(folder, ".*" + pattern.format(phase=phase) + r".*\.txt", phase), case, number)
            for phase in phases
        ]
    )


def _read_points(file: Path, case: int, number: int) -> np.ndarray:
    size = DIRLAB_CASES[case][0]
    try:
        points = np.loadtxt(io.StringIO(read_text(file)), ndmin=2)
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: expected three numbers per line, got {error}; copy it again") from error
    if points.shape != (number, 3):
        raise InputError(f"{file}: expected {number} points of x, y, z, got shape {points.shape}; copy it again")
    outside = ~((points >= 1) & (points <= size)).all(axis=1)
    if outside.any():
        at = int(outside.argmax())
        raise InputError(
            f"{file}: expected landmarks in voxels from 1 to {' x '.join(map(str, size))} of case {case}, got "
            f"{points[at].tolist()} in line {at + 1}; check the case number, and that x comes first"
        )
    return points - 1


def _crop(folder: str | Path, case: int) -> np.ndarray:
    """Choose the first in-plane voxel of the cropped volume, ``(2,)``."""
    size = np.array(DIRLAB_CASES[case][0][:2])
    if (size <= _IN_PLANE_VOXELS).all():
        return np.zeros(2, dtype=int)
    points = _landmark_voxels(folder, case, 75)[..., :2]
    middle = (points.min(axis=(0, 1)) + points.max(axis=(0, 1))) / 2
    corner = np.round(middle - (_IN_PLANE_VOXELS - 1) / 2).astype(int).clip(0, size - _IN_PLANE_VOXELS)
    if (points < corner).any() or (points > corner + _IN_PLANE_VOXELS - 1).any():
        raise InputError(f"{folder}: expected landmarks within {_IN_PLANE_VOXELS} voxels in plane; check their files")
    return corner


def _affine(spacing_mm: Sequence[float]) -> np.ndarray:
    return np.diag([*(-s for s in spacing_mm), 1.0])


def _case(folder: str | Path) -> int | None:
    named = re.fullmatch(r"case(\d+)(pack|deploy)?", Path(folder).name, re.IGNORECASE)
    case = int(named[1]) if named else None
    return case if case in DIRLAB_CASES and Path(folder).is_dir() else None


def _checked_case(folder: str | Path) -> int:
    case = _case(folder)
    if case is None:
        raise InputError(f"{folder}: expected a DIR-Lab folder, Case1Pack to Case10Pack; check the path")
    return case


def _files(folder: str | Path, pattern: str) -> list[Path]:
    """Find files at any depth whose name matches, ignoring case and hidden files."""
    visible = (p for p in Path(folder).rglob("*") if not p.name.startswith("."))
    return sorted(p for p in visible if re.fullmatch(pattern, p.name, re.IGNORECASE))


def _one_file(folder: str | Path, pattern: str, phase: str) -> Path:
    files = _files(folder, pattern)
    if len(files) != 1:
        named = pattern.replace(r"(?!\d)", "").replace("\\", "").replace(".*", "*").replace("-?", "-")
        got = f"{len(files)}: {', '.join(p.name for p in files)}" if files else "none"
        raise InputError(
            f"{folder}: expected one file of phase {phase} named {named}, got {got}; unpack the case again"
        )
    return files[0]
