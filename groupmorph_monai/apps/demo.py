"""The demo: register a series with known motion, and measure the error of the written files."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
from torch import Tensor

from ..data.phantoms.phantom import make_phantom
from ..data.writing.earlier_result import check_result_folder
from ..data.writing.fields import read_field
from ..data.writing.output_folder import atomic_file, claim
from ..errors import InputError
from ..evaluation.metrics import landmark_errors_mm
from ..evaluation.report import format_table
from ..space.grid import transform_points
from ..space.transforms import Transform

SEED = 7  # not used to train or validate the shipped weights


def run_demo(output: str, register: Callable[[list[str], str], None]) -> None:
    """Write a phantom series to ``output``/series, register it, and print a table of errors before and after.

    Args:
        output: folder, created if it does not exist.
        register: called with the files of the series and the folder for the results.

    Raises:
        InputError: If ``output``/series has other scans of the same names.
    """
    folder, phantom = Path(output), make_phantom(SEED)
    images = {
        str(folder / "series" / f"t{k:02d}.nii.gz"): nibabel.Nifti1Image(volume, phantom["affine"].numpy())
        for k, volume in enumerate(phantom["image"].numpy())
    }
    for file, image in images.items():
        if os.path.lexists(file) and not _holds(file, image):
            raise InputError(f"--output: expected a folder without other scans, got one with {file}; choose another")
    check_result_folder(folder, images)
    claim(folder)
    (folder / "series").mkdir(exist_ok=True)
    for file, image in images.items():
        with atomic_file(file) as partial:
            nibabel.save(image, partial)
    files = list(images)
    register(files, str(folder))

    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    points_mm = transform_points(phantom["affine"], phantom["landmarks"].double())
    errors = landmark_errors_mm(points_mm, [_read_written(folder, k) for k in range(len(files))])
    metrics, seconds = report["metrics"], report["seconds"]["register"]
    rows = [
        {
            "": when,
            "error mm": errors[f"landmark_{when}_mm_mean"],
            "95 % mm": errors[f"landmark_{when}_mm_95"],
            "RMSE": metrics[f"rmse_{when}"],
            "NMI": metrics[f"nmi_{when}"],
            "folds %": folds,
            "seconds": seconds,
        }
        for when, folds, seconds in (("before", None, None), ("after", metrics["folding_percent"], seconds))
    ]
    print(
        "\nError: distance between the true position of a tissue point and its position according to the fields, over "
        "all pairs of timepoints."
    )
    print(format_table(rows, list(rows[0])))
    print_verdict(folder)
    print(f"Images, curves and all numbers: {folder / 'report.html'}")


def _holds(file: str, image: nibabel.Nifti1Image) -> bool:
    """Check whether a file contains this image, as after an earlier demo."""
    try:
        return np.array_equal(nibabel.Nifti1Image.from_filename(file).get_fdata(), image.get_fdata())
    except Exception:  # unreadable, so not of a demo
        return False


def print_verdict(folder: str | Path, quiet: bool = False) -> None:
    """Print the verdict of a written registration with its reasons; with ``quiet``, to standard error unless PASS."""
    verdict = json.loads((Path(folder) / "report.json").read_text(encoding="utf-8"))["verdict"]
    if not quiet or verdict["verdict"] != "PASS":
        lines = [f"Verdict: {verdict['verdict']}", *verdict["reasons"]]
        print(*lines, sep="\n  ", file=sys.stderr if quiet else sys.stdout)


class _Written(Transform):
    """A field as written, with the field of its inverse."""

    def __init__(self, field: Transform, inverse_field: Transform):
        self.field, self.inverse_field = field, inverse_field

    def __call__(self, points: Tensor) -> Tensor:
        return self.field(points)

    @property
    def inverse(self) -> Transform:
        return _Written(self.inverse_field, self.field)


def _read_written(folder: Path, k: int) -> _Written:
    """Read the transform of timepoint k."""
    return _Written(*(read_field(folder / f"{name}_{k:02d}.nii.gz") for name in ("ddf", "inverse_ddf")))
