"""The demo: register a series with known motion, and measure the error of the written files."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np

from ..data.phantoms.phantom import make_phantom
from ..data.writing.applying import apply_field_to_points
from ..data.writing.output_folder import atomic_file, claim
from ..data.writing.writers import check_result_folder
from ..errors import InputError
from ..evaluation.report import format_table
from ..space.grid import transform_points

__all__ = ["print_verdict", "run_demo"]

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
    points_mm = transform_points(phantom["affine"], phantom["landmarks"].double()).numpy()
    errors = {"before": _errors_mm(points_mm, None), "after": _errors_mm(points_mm, folder)}
    metrics = report["metrics"]
    rows = [
        {
            "": when,
            "error mm": float(error.mean()),
            "95 % mm": float(np.percentile(error, 95)),
            "RMSE": metrics[f"rmse_{when}"],
            "NMI": metrics[f"nmi_{when}"],
            "folds %": metrics["folding_percent"] if when == "after" else None,
            "seconds": report["seconds"]["register"] if when == "after" else None,
        }
        for when, error in errors.items()
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


def print_verdict(folder: str | Path) -> None:
    """Print the verdict of a written registration with its reasons."""
    verdict = json.loads((Path(folder) / "report.json").read_text(encoding="utf-8"))["verdict"]
    print(f"Verdict: {verdict['verdict']}", *verdict["reasons"], sep="\n  ")


def _errors_mm(points_mm: np.ndarray, folder: Path | None) -> np.ndarray:
    """Compute the errors of points ``(K, P, 3)``, RAS, mapped from timepoint i to timepoint j, for all i != j."""
    timepoints = range(len(points_mm))
    common = list(points_mm)
    if folder:
        common = [apply_field_to_points(folder / f"inverse_ddf_{i:02d}.nii.gz", points_mm[i]) for i in timepoints]
    errors = []
    for j in timepoints:
        for i in timepoints:
            if i != j:
                mapped = apply_field_to_points(folder / f"ddf_{j:02d}.nii.gz", common[i]) if folder else common[i]
                errors.append(np.linalg.norm(mapped - points_mm[j], axis=-1))
    return np.concatenate(errors)
