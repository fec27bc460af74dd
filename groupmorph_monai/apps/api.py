"""Register a series from Python."""

import tempfile
import time
from argparse import ArgumentTypeError
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from numpy.typing import ArrayLike

from ..data.arrays import series_of_arrays, unmasked
from ..data.preprocessing.resampling import resample
from ..data.series import Frame, Series
from ..data.series_checks import check_affine, checked_series, complete_array, real_array
from ..data.writing.applying import warp_frame
from ..data.writing.output_folder import release
from ..errors import InputError
from ..evaluation import SeriesWriter
from ..evaluation.assessment import Assessor
from ..space.grid import Grid
from ..space.transforms import Transform
from ..workflow.parsed_config import parsed_config
from . import option_types
from .input_errors import find_input_error
from .places import absolute_paths
from .run import checked_run


@dataclass(frozen=True, eq=False)
class Registration:
    """K scans of one patient in one space.

    Args:
        series: the K native scans.
        transforms: K transforms, each from points of the common space to points of one scan, RAS mm, with an
            ``inverse``. Images pull back, points push forward.
        metrics: folding in percent, inverse consistency in mm, and displacement in mm.
        home: index of the scan that defines the grid of the results.
    """

    series: Series = field(repr=False)
    transforms: tuple[Transform, ...] = field(repr=False)
    metrics: Mapping[str, float]
    home: int
    _evaluator: Engine = field(repr=False)
    _writing: Mapping[str, Any] = field(repr=False)

    @property
    def grid(self) -> Grid:
        """Grid of the results, which is the grid of scan ``home``."""
        return self.series.frames[self.home].grid

    @cached_property
    def warped(self) -> np.ndarray:
        """Aligned series, ``(K, *S)`` float32, each scan interpolated once; NaN outside a scan's field of view."""
        scans = zip(self.series.frames, self.transforms)
        return np.stack([self._pulled(*resample(frame, self.grid, transform)) for frame, transform in scans])

    @cached_property
    def fields(self) -> np.ndarray:
        """Displacements from the common space to each scan, ``(K, 3, *S)`` float32, RAS mm."""
        return np.stack([transform.displacement(self.grid).numpy() for transform in self.transforms])

    @cached_property
    def verdict(self) -> Mapping[str, Any]:
        """Whether the result can be used: ``verdict``, "PASS", "LOOK" or "FAIL"; ``reasons``, sentences; and
        ``checks``, each measure with its thresholds and their source. Kinetic fits are judged by `to_folder`
        alone."""
        overlays, storage = self._writing["settings"]["overlays"] or (), self._writing["storage"]
        assessor = Assessor(self.series, self.home, overlays, storage)
        warped = self.warped[assessor.compared]
        before = [resample(self.series.frames[k], self.grid) for k in assessor.compared]
        native, inside = (np.stack(part) for part in zip(*before))
        covered = inside.all(axis=0) & ~np.isnan(warped).any(axis=0)
        state = self._evaluator.state
        output, item = state.output[0], state.batch[0]  # type: ignore[index]  # ignite declares a number
        return assessor.assess(output, item, native, np.nan_to_num(warped), covered).verdict

    def apply(
        self, image: ArrayLike, timepoint: int, affine: ArrayLike | None = None, label: bool = False
    ) -> np.ndarray:
        """Warp another image of one timepoint to the common space.

        Args:
            image: ``(*S)`` in the space of scan ``timepoint``.
            affine: ``(4, 4)`` of the image, RAS mm; None for the affine of the scan.
            label: use nearest-neighbour interpolation, for label maps.

        Returns:
            ``(*S)`` on `grid`, NaN (0 for labels) outside the image's field of view.

        Raises:
            InputError: If there is no such timepoint, or the image is not 3D or not on the grid of its scan.
        """
        if _index(timepoint, "timepoint", "the index of a timepoint") not in range(len(self.transforms)):
            raise InputError(
                f"timepoint: expected 0 to {len(self.transforms) - 1}, got {timepoint}; choose one of these"
            )
        scan, values = self.series.frames[timepoint], real_array(image, "image")
        if affine is None and values.shape != scan.data.shape:
            raise InputError(
                f"image: expected shape {scan.data.shape}, that of scan {timepoint}, got {values.shape}; pass the "
                "affine of an image on another grid"
            )
        matrix = scan.affine if affine is None else complete_array(affine, "affine")
        check_affine(matrix, "affine")
        if values.ndim != 3 or not values.size:
            raise InputError(f"image: expected three axes with voxels, got shape {values.shape}; pass a 3D volume")
        frame = Frame(values, matrix, "image", unmasked(image))
        return self._pulled(
            *warp_frame(frame, self.grid, self.transforms[timepoint], f"timepoint {timepoint}", label), label
        )

    @staticmethod
    def _pulled(values: np.ndarray, covered: np.ndarray, label: bool = False) -> np.ndarray:
        return np.where(covered, values, values.dtype.type(0 if label else np.nan))

    def to_folder(self, folder: str | Path) -> None:
        """Write the same files as ``groupmorph register --output``: images, fields, and the report.

        Raises:
            InputError: If the files cannot be written there.
        """
        try:
            writer = SeriesWriter(**self._writing, output_dir=_results_folder(folder))
            writer.started = time.perf_counter() - (self._evaluator.state.times[Events.COMPLETED.name] or 0.0)
            writer(self._evaluator)
            release(folder)
        except Exception as error:
            raise find_input_error(error) or error from None


def register(
    series: str | Path | Sequence[str | Path] | Series | ArrayLike,
    affine: ArrayLike | None = None,
    times_s: Sequence[float] | None = None,
    reference: str | int = "mean",
    overlays: Sequence[str] = (),
    device: str | torch.device | None = None,
    mask: str | Path | Sequence[str | Path] | None = None,
    **settings: object,
) -> Registration:
    """Align K scans of one patient, as ``groupmorph register`` does.

    Args:
        series: files or a folder, as for `read_series`; volumes ``(K, *S)`` in memory, with their ``affine``; or a
            `Series`, such as the output of your own reader.
        affine: ``(4, 4)``, or K of them, voxel indices to RAS mm; for volumes in memory.
        times_s: acquisition times in seconds; for volumes in memory.
        reference: ``"mean"`` to align all scans to their mean, or the index of the scan to align all others to.
        overlays: names of overlays or YAML files, in order; see ``groupmorph overlays``.
        device: None for the GPU, or the CPU if there is none.
        mask: evaluate the similarity only where this mask is above 0: one file drawn on the reference (without one, on
            the first scan), or one per scan.
        settings: values by name; see ``groupmorph settings``.

    Returns:
        The registration, on the CPU.

    Raises:
        InputError: If the input is invalid; with a one-line message.

    Example::

        import groupmorph_monai as gm

        result = gm.register(["t0.nii.gz", "t1.nii.gz", "t2.nii.gz"], reference="mean")
        result.to_folder("aligned")
    """
    series = _series(series, affine, times_s)
    overlays, home = list(map(str, _names(overlays, "overlays"))), 0
    if not isinstance(reference, str) or reference != "mean":
        home = _index(reference, "reference", "'mean' or the index of a timepoint")
        overlays, settings = [*overlays, "modes/all_to_one"], {**settings, "reference": home}
    if mask is not None:
        mask = absolute_paths(_names(mask, "mask"))
    folder = tempfile.gettempdir()  # folder for data that does not fit into memory
    run = checked_run("inference", overlays, settings, device, series=series, mask=mask, output_dir=folder)
    parser = parsed_config(*run)
    parser["evaluator#val_handlers"] = ["@handlers#0"]  # without the writer: only `to_folder` writes files
    native, evaluator = _run(parser, home)
    output = evaluator.state.output[0]  # type: ignore[index]  # ignite declares a number
    writing = set(parser["handlers"][1]) - {"_target_", "output_dir"}
    return Registration(
        series=native,
        transforms=tuple(output["pred"]["transforms"]),
        metrics=output["metrics"],
        home=home,
        _evaluator=evaluator,
        _writing={name: parser.get_parsed_content(f"handlers#1#{name}") for name in writing},
    )


def _run(parser: ConfigParser, home: int) -> tuple[Series, Engine]:
    """Check and run a registration.

    Returns:
        The native scans, and the evaluator that holds the result.
    """
    try:
        parser.get_parsed_content("cost_by_headers").check()
        parser.get_parsed_content("cost").check()
        native = parser.get_parsed_content("native")
        parser.get_parsed_content("handlers#1#products").check(native, home)
        evaluator = parser.get_parsed_content("evaluator")
        evaluator.run()
    except Exception as error:
        raise find_input_error(error) or error from None
    return native, evaluator


def _series(series: object, affine: ArrayLike | None, times_s: Sequence[float] | None) -> Series | list[str]:
    """Check volumes in memory; files are read later."""
    series = _listed(series)
    if affine is not None:
        return series_of_arrays(_volumes(series), affine, times_s)
    if times_s is not None:
        raise InputError("times_s: not allowed with files or a Series, which have their own; omit it")
    return checked_series(series, None) if isinstance(series, Series) else _paths(series)


def _index(value: object, name: str, wanted: str) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputError(f"{name}: expected {wanted}, from 0, got {value!r}")
    return int(value)


def _volumes(series: object) -> Sequence[ArrayLike]:
    """Check that an affine is passed only with volumes in memory; files and a `Series` have their own."""
    parts = series if isinstance(series, (list, tuple)) else [series]
    if any(isinstance(part, (str, Path, Series)) for part in parts):
        raise InputError("affine: not allowed with files or a Series, which have their own; omit it")
    if not isinstance(series, Iterable):
        raise InputError(f"series: expected K volumes in memory with an affine, got {series!r}; pass them in a list")
    return list(series.unbind() if isinstance(series, torch.Tensor) and series.is_nested else series)


def _paths(series: object) -> list[str]:
    parts = series if isinstance(series, (list, tuple)) else [series]
    others = [part for part in parts if not isinstance(part, (str, Path))]
    if others and all(isinstance(part, (np.ndarray, torch.Tensor)) for part in parts):
        raise InputError("affine: expected voxel indices to RAS mm for volumes in memory, got none; pass (4, 4)")
    if others:
        raise InputError(
            f"series: expected paths, or arrays with their affine, got {others[0]!r:.60}; pass a list of paths, or of "
            "volumes such as image.get_fdata() with affine=image.affine"
        )
    return absolute_paths(_names(series, "series"))


def _listed(value: object) -> object:
    """Convert an array of names to a list."""
    if isinstance(value, np.ndarray) and value.ndim < 2 and value.dtype.kind in "UTO":
        return value.tolist()
    return value


def _names(value: object, argument: str) -> list[str | Path]:
    """Check one name or path, or several."""
    names = [value] if isinstance(value, (str, Path)) else _listed(value)
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, (str, Path)) for name in names):
        raise InputError(f"{argument}: expected a list of names or paths, got {value!r:.60}; pass a list")
    return [_path(name, argument) for name in names]


def _results_folder(value: object) -> str:
    """Check the folder of results as the command line does."""
    try:
        return option_types.folder(str(_path(value, "folder")))
    except ArgumentTypeError as error:
        raise InputError(f"folder: {error}") from None


def _path(value: object, argument: str) -> str | Path:
    if not isinstance(value, (str, Path)) or not str(value).strip() or "\0" in str(value):
        raise InputError(f"{argument}: expected a name or path, got {value!r:.60}; is a variable empty?")
    return value
