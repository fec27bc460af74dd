"""Write sequences of volumes and transforms for 3D Slicer: one NRRD file with a list axis.

Source: https://slicer.readthedocs.io/en/latest/developer_guide/modules/sequences.html and .../transforms.html, and
Slicer's vtkITKImageSequenceReader. For volumes, the list is the first axis, as only the newest versions read it as the
last one. Transform sequences need a version after 5.8 (August 2025).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from isal import igzip_threaded

from ...space.grid import Grid
from ...space.transforms import Transform
from ..series import LPS_TO_RAS
from .nifti import COMPRESSION

_RAS_TO_LPS = np.diag(LPS_TO_RAS)[:3].astype(np.float32)[:, None, None, None]


def write_sequence(volumes: np.ndarray, grid: Grid, path: Path, times_s: Sequence[float] | None = None) -> None:
    """Write ``volumes`` ``(K, *S)`` float32 as ``.seq.nrrd``, indexed by their times if known, or by numbers."""
    label, unit, values = _index(len(volumes), times_s)
    header = [
        "dimension: 4",
        f"sizes: {' '.join(map(str, volumes.shape))}",
        f"space directions: none {_axes(grid)}",
        "kinds: list domain domain domain",
        f'labels: "{label}" "" "" ""',
        f'units: "{unit}" "" "" ""',
        "axis 0 index type:=numeric",
        f"axis 0 index values:={values}",
    ]
    _write(path, header, grid, volumes.T)  # slice by slice, with timepoints fastest


def write_transform_sequence(
    transforms: Sequence[Transform], grid: Grid, path: Path, times_s: Sequence[float] | None = None
) -> None:
    """Write transforms as ``.seq.nrrd``, which Slicer opens as a sequence. Applying transform k to scan k moves it to
    the common space.

    Args:
        transforms: from the common space to each scan.
        grid: grid of the written displacements.
        times_s: as in `write_sequence`.
    """
    label, unit, values = _index(len(transforms), times_s)
    header = [
        "dimension: 5",
        f"sizes: 3 {' '.join(map(str, grid.shape))} {len(transforms)}",
        f"space directions: none {_axes(grid)} none",
        "kinds: vector domain domain domain list",
        f'labels: "" "" "" "" "{label}"',
        f'units: "" "" "" "" "{unit}"',
        "measurement frame: (1,0,0) (0,1,0) (0,0,1)",  # vectors are in the coordinates of space: LPS
        "axis 3 index type:=numeric",  # counted without the vector axis
        f"axis 3 index values:={values}",
        "displacement field type:=resampling",
        "intent_code:=1006",  # NIfTI's code for displacement vectors, without which Slicer reads the file as images
    ]
    # In the file, vector components are fastest and scans slowest.
    fields = (t.displacement(grid).numpy() * _RAS_TO_LPS for t in transforms)
    _write(path, header, grid, (piece for field in fields for piece in field.T))


def _index(count: int, times_s: Sequence[float] | None) -> tuple[str, str, str]:
    """Return the name, unit and values of the index of a sequence."""
    name, unit, values = ("frame", "", range(count)) if times_s is None else ("time", "s", times_s)
    return name, unit, " ".join(f"{value:.10g}" for value in values)


def _axes(grid: Grid) -> str:
    return " ".join(_vector(axis) for axis in (LPS_TO_RAS @ grid.affine.numpy())[:3, :3].T)


def _vector(values: np.ndarray) -> str:
    return "(" + ",".join(f"{value:.12g}" for value in values) + ")"


def _write(path: Path, header: Sequence[str], grid: Grid, pieces: Iterable[np.ndarray]) -> None:
    """Write a NRRD file from the header lines that depend on its axes, and its values in file order."""
    shared = [
        "type: float",
        "endian: little",
        "encoding: gzip",
        "space: left-posterior-superior",
        f"space origin: {_vector((LPS_TO_RAS @ grid.affine.numpy())[:3, 3])}",
    ]
    with open(path, "wb") as file:
        file.write(("\n".join(["NRRD0005", *shared, *header]) + "\n\n").encode())
        with igzip_threaded.open(file, "wb", compresslevel=COMPRESSION, threads=torch.get_num_threads()) as stream:
            for piece in pieces:
                stream.write(np.ascontiguousarray(piece, "<f4").data)
