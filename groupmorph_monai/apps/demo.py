"""The demo: register a series with known motion, and measure the error of the written files."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel
import numpy as np
import torch
from torch import Tensor

from ..data.phantoms.phantom import make_phantom
from ..data.writing.earlier_result import check_result_folder
from ..data.writing.fields import read_field
from ..data.writing.output_folder import atomic_file, claim
from ..errors import InputError
from ..evaluation.report import format_table
from ..space.grid import transform_points
from ..space.transforms import ComposedTransform, Transform

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
    points_mm = transform_points(phantom["affine"], phantom["landmarks"].double())
    unmoved = [ComposedTransform()] * len(files)
    fields = (_read_fields(folder, name, len(files)) for name in ("inverse_ddf", "ddf"))
    errors = {"before": _errors_mm(points_mm, unmoved, unmoved), "after": _errors_mm(points_mm, *fields)}
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


def _read_fields(folder: Path, name: str, number: int) -> list[Transform]:
    return [read_field(folder / f"{name}_{k:02d}.nii.gz") for k in range(number)]


def _errors_mm(points_mm: Tensor, inverses: Sequence[Transform], transforms: Sequence[Transform]) -> np.ndarray:
    """Compute the errors of points ``(K, P, 3)``, RAS, mapped from timepoint i to timepoint j, for all i != j."""
    common = torch.stack([inverse(points) for inverse, points in zip(inverses, points_mm)])
    mapped = torch.stack([transform(common) for transform in transforms], dim=1)
    off_diagonal = ~torch.eye(len(points_mm), dtype=torch.bool)
    return (mapped - points_mm)[off_diagonal].norm(dim=-1).flatten().numpy()
