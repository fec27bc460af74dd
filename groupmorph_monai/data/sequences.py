"""Series as 3D Slicer stores its volume sequences: one NRRD file whose first axis is a list.

Source: https://slicer.readthedocs.io/en/5.8/developer_guide/modules/sequences.html; every version reads a list that
comes first, only the newest ones read one that comes last.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from isal import igzip_threaded

from ..space.geometry import Grid
from .nifti import FASTEST
from .readers import LPS_TO_RAS

__all__ = ["write_sequence"]


def write_sequence(volumes: np.ndarray, grid: Grid, path: Path, times_s: Sequence[float] | None = None) -> None:
    """Write ``volumes`` ``(K, *S)`` float32 on ``grid`` as ``.seq.nrrd``; their times, or their numbers where these are
    not known, are the index of the sequence."""
    affine = LPS_TO_RAS @ grid.affine.numpy()
    label, index = ("frame", range(len(volumes))) if times_s is None else ("time", times_s)
    header = [
        "NRRD0005",
        "type: float",
        "dimension: 4",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, volumes.shape))}",
        f"space directions: none {' '.join(_vector(axis) for axis in affine[:3, :3].T)}",
        f"space origin: {_vector(affine[:3, 3])}",
        "kinds: list domain domain domain",
        f'labels: "{label}" "" "" ""',
        "endian: little",
        "encoding: gzip",
        "axis 0 index type:=numeric",
        f"axis 0 index values:={' '.join(f'{value:.10g}' for value in index)}",
    ]
    with open(path, "wb") as file:
        file.write(("\n".join(header) + "\n\n").encode())
        with igzip_threaded.open(file, "wb", compresslevel=FASTEST, threads=torch.get_num_threads()) as stream:
            for piece in volumes.T:  # a slice, its timepoints beside each other
                stream.write(np.ascontiguousarray(piece, "<f4").data)


def _vector(values: np.ndarray) -> str:
    return "(" + ",".join(f"{value:.12g}" for value in values) + ")"
