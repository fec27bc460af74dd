"""Axial slices as radiologists view them, however the axes of an array are stored."""

from typing import Any

import nibabel as nib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from ..space.grid import Grid

_LETTERS = {"R": (0.02, 0.5), "L": (0.98, 0.5), "A": (0.5, 0.97), "P": (0.5, 0.03)}  # places in a picture, as shares
_BOX = {"facecolor": "black", "edgecolor": "none", "alpha": 0.6, "pad": 1}
_STYLE: dict[str, Any] = {"ha": "center", "va": "center", "color": "white", "fontsize": 7, "bbox": _BOX}


class AxialView:
    """Turn the volumes of a grid so that their axes point to the right, anterior and superior, and draw axial slices.

    Args:
        grid: grid of the volumes. The axes of the turned volumes are those closest to the patient's.
    """

    def __init__(self, grid: Grid):
        self.grid = grid.canonical()
        # From voxels to voxels this is a signed permutation; for oblique axes, that of the affine alone may differ.
        self.orientation = nib.orientations.io_orientation((torch.linalg.inv(self.grid.affine) @ grid.affine).numpy())

    def turned(self, volumes: np.ndarray) -> np.ndarray:
        """Turn volumes ``(K, i, j, k)``. Returns a view ``(K, right, anterior, superior)``."""
        turned = nib.orientations.apply_orientation(np.moveaxis(volumes, 0, -1), self.orientation)
        return np.moveaxis(turned, -1, 0)

    def name(self, k: int) -> str:
        """Name the k-th axial slice of turned volumes, counting from 1 as `report.html` does."""
        return f"axial slice {k + 1} of {self.grid.shape[2]}"

    @property
    def ratio(self) -> float:
        """Height of an axial slice in mm, relative to its width."""
        width, height = (n * float(s) for n, s in zip(self.grid.shape[:2], self.grid.spacing_mm))
        return height / width

    def show(self, axes: Axes, values: np.ndarray, title: str, **options: Any) -> AxesImage:
        """Draw a slice ``(right, anterior)`` of turned volumes, with the patient's right on the left and anterior up.

        Args:
            options: as for `imshow`.
        """
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
        right, anterior, _ = self.grid.spacing_mm.tolist()
        image = axes.imshow(values[::-1].T, origin="lower", aspect=anterior / right, **options)
        for letter, (x, y) in _LETTERS.items():
            axes.text(x, y, letter, transform=axes.transAxes, **_STYLE)
        return image
