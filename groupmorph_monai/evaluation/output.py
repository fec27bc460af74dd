"""Write a registered series with its report."""

import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.transforms import Transform

from ..data.reading.signature import check_itk_path
from ..data.series import Frame, Series
from ..data.storage import IN_MEMORY, Storage
from ..data.writing.output_folder import atomic_folder, claim, release
from ..data.writing.writers import (
    VOLUMES,
    Products,
    check_result_folder,
    earlier_result,
    write_registration,
)
from ..space.transforms import Transform as SpatialTransform
from ..workflow.affine_alignment import LEAST_CONFIDENCE
from ..workflow.memory import peak_memory_gb
from .kinetics import draw_kinetics, summarise_kinetics
from .metrics import similarity
from .page import Motion, write_page
from .quality import measure_quality
from .region import region_masks, region_report
from .report import draw_report, versions, write_json
from .verdict import LEAST_FALL, judge

__all__ = ["SeriesWriter", "ShowMeand"]

logger = logging.getLogger(__name__)
_MOST_SHOWN = 32  # maximum number of timepoints in figures and pairwise comparisons, evenly spread over the series
_POINTS, _POINTS_OF_ALL = 20_000, 4_000_000  # number of sampled displacements per timepoint, and maximum in total
_ONE_IMAGE = 1 - 1e-3  # minimum NMI before registration of K copies of one image, for which it is 1 up to rounding
_DEFORMING_ONE_IMAGE = {"modes/sample", "modes/transport"}  # overlays for K copies of one image
# Checks of the transforms alone, which remain valid if images are deformed on purpose.
_TRANSFORM_CHECKS = ("folding_percent", "implausible_volume_percent", "bending_mm", "inverse_consistency_mm")


class ShowMeand(Transform):
    """Replace ``pred`` by a single 3D image, the mean of the aligned timepoints, for display in servers such as MONAI
    Label. The registration moves to ``registration``, its metrics to ``result``.

    Args:
        storage: where the timepoints are kept.
    """

    def __init__(self, storage: Storage = IN_MEMORY):
        self.storage = storage

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        registration = data["pred"]
        mean = self.storage.mean(registration["warped"], dim=0)
        return {**data, "registration": registration, "pred": mean, "result": {"metrics": data["metrics"]}}


class SeriesWriter:
    """Write the registered series, its fields, ``report.json``, ``report.png`` and ``report.html``. All files replace
    an earlier result at once when they are complete. No other run may write to the folder in the meantime.

    Args:
        series: the native volumes, which are interpolated once.
        output_dir: created if it does not exist; it may contain other files, but none of the inputs.
        home: index of the scan that defines the output grid.
        products: what to write; None for the defaults.
        settings: included in the report; ``model`` is also part of the figure's title.
        inputs: other files that the run reads: names, lists of names, or None.
        storage: where to keep the volumes of all timepoints.

    Raises:
        InputError: If ``output_dir`` is not writable, contains an input, or belongs to another run.
    """

    def __init__(
        self,
        series: Series,
        output_dir: str,
        home: int = 0,
        products: Products | None = None,
        inputs: Sequence[str | Sequence[str] | None] = (),
        settings: Mapping[str, Any] | None = None,
        storage: Storage = IN_MEMORY,
    ):
        products = products or Products()
        products.check(series, home)
        if products.itk_transforms:
            check_itk_path(Path(output_dir).resolve())
        lists = [[names] if isinstance(names, str) else names or [] for names in inputs]
        read = [*(frame.path for frame in series.frames), *chain.from_iterable(lists)]
        check_result_folder(Path(output_dir), read)
        claim(output_dir)
        self.series, self.output_dir, self.home, self.products = series, Path(output_dir), home, products
        self.settings, self.storage = dict(settings or {}), storage
        most = min(_MOST_SHOWN, max(4, 2 * (storage.scans_at_once or _MOST_SHOWN)))
        last = len(series.frames) - 1
        self.shown = sorted({round(n * last / (most - 1)) for n in range(most)})  # evenly spread

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, lambda _: release(self.output_dir))

    def _start(self, engine: Engine) -> None:
        self.started = time.perf_counter()

    def __call__(self, engine: Engine) -> None:
        with atomic_folder(self.output_dir, earlier_result(self.output_dir)) as folder:
            number = self._write(engine, folder)
        logger.info("Wrote %d files, report.json, report.png and report.html to %s", number, self.output_dir)

    def _write(self, engine: Engine, folder: Path) -> int:
        registered = time.perf_counter()
        output, item = engine.state.output[0], engine.state.batch[0]  # type: ignore[index]
        registration, metrics = output["registration"], dict(output["metrics"])
        affine = torch.as_tensor(item["affine"]).cpu().numpy()
        std = registration.get("std_mm")
        if std is not None:
            std = [Frame(x.cpu().numpy(), affine, "std") for x in std]
        written = write_registration(
            self.series,
            registration["transforms"],
            folder,
            home=self.home,
            std_mm=std,
            products=self.products,
            storage=self.storage,
        )
        covered = torch.from_numpy(written["covered"])
        # Compare intensities as the user sees them: in native units, on the output grid.
        everything = len(self.shown) == len(self.series.frames)  # then nothing is copied
        volumes: dict[str, np.ndarray] = {n: written[n] if everything else written[n][self.shown] for n in VOLUMES}
        native, warped = (torch.from_numpy(volumes[name]) for name in ("native", "warped"))
        metrics |= similarity(native, warped, covered)
        region = self.products.region
        if region:
            volumes["region"] = region_masks(region, self.series, self.home, registration["transforms"][self.home])
        lengths = self._lengths_mm(registration["transforms"])
        self._draw(folder, volumes, lengths)
        self.storage.release()
        initial = self._initial(item)
        quality = measure_quality(self.series, registration["transforms"], self.home, self.storage)
        if std is not None:
            quality["uncertainty_mm"] = [float(np.median(frame.data)) for frame in std]
        grid, fits = self.series.frames[self.home].grid, written["kinetics"]
        kinetics = fits and summarise_kinetics(fits)
        picture = fits and draw_kinetics(fits, grid)
        seconds = {"register": registered - self.started, "write": time.perf_counter() - registered}
        report = self._report(metrics, quality, written["files"], initial, seconds, kinetics)
        report["region"] = region and region_report(region, self.home, {**written, "region": volumes["region"]})
        transforms, std = [registration["transforms"][k] for k in self.shown], std and [std[k] for k in self.shown]
        motion = Motion(transforms, lengths[self.shown], std)
        write_page(folder / "report.html", report, volumes, grid, motion, picture, self.shown)
        write_json(report, folder / "report.json")
        return len(written["files"])

    def _initial(self, item: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Report the confidence of the initial alignment per timepoint, and warn of timepoints for which it failed."""
        if "initial_confidence" not in item:
            return {}
        confidence = torch.as_tensor(item["initial_confidence"]).tolist()
        failed = [k for k, value in enumerate(confidence) if value < LEAST_CONFIDENCE]
        for k in failed:
            logger.warning(
                "%s (timepoint %d): the initial alignment failed (confidence %.2f, below %g); check report.html before "
                "you use the result",
                self.series.frames[k].path,
                k,
                confidence[k],
                LEAST_CONFIDENCE,
            )
        return {"confidence": confidence, "not_found": failed}

    def _lengths_mm(self, transforms: Sequence[SpatialTransform]) -> np.ndarray:
        """Compute displacement magnitudes at about 20,000 voxels per timepoint, or fewer for long series, ``(K,
        P)``."""
        grid, number = self.series.frames[self.home].grid, min(_POINTS, _POINTS_OF_ALL // len(transforms))
        points = grid.points(every=max(1, round((math.prod(grid.shape) / number) ** (1 / 3))))
        return torch.stack([(t(points) - points).norm(dim=-1).flatten().float() for t in transforms]).numpy()

    def _draw(self, folder: Path, volumes: Mapping[str, np.ndarray], lengths: np.ndarray) -> None:
        name = self.series.names[self.home]
        draw_report(
            folder / "report.png",
            volumes,
            lengths,
            self.series.frames[self.home].grid,
            title=": ".join(filter(None, [self.settings.get("model"), name])),
            timepoints=self.shown,
        )

    def _report(
        self,
        metrics: dict[str, Any],
        quality: dict[str, Any],
        files: Sequence[str],
        initial: Mapping[str, Any],
        seconds: Mapping[str, float],
        kinetics: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        values = {**metrics, **quality, **(kinetics or {}), "initial_confidence": initial.get("confidence")}
        if _is_one_image(metrics):
            values = {name: values[name] for name in _TRANSFORM_CHECKS if name in values}
        warnings = [*self.series.warnings, *_warn_if_less_similar(metrics)]
        if not _DEFORMING_ONE_IMAGE & set(self.settings.get("overlays") or ()):
            warnings += _warn_of_duplicates(self.series.frames, self.storage)
        return {
            "verdict": judge(values, warnings=warnings),
            "metrics": metrics,
            "kinetics": kinetics,
            "warnings": warnings,
            "scans_at_once": self.storage.scans_at_once,
            "initial_alignment": initial,
            "series": [frame.path for frame in self.series.frames],
            "series_description": self.series.description,
            "timepoints": self.series.names,
            "times_s": self.series.times_s,
            "files": files,
            "settings": {name: _describe(value) for name, value in self.settings.items()},
            "versions": versions(),
            "seconds": seconds,
            "peak_memory_gb": peak_memory_gb(),
        }


def _is_one_image(metrics: Mapping[str, float]) -> bool:
    """Test whether the K inputs are copies of one image that is to be deformed."""
    return metrics["nmi_before"] > _ONE_IMAGE


def _warn_if_less_similar(metrics: Mapping[str, float]) -> list[str]:
    """Warn if registration made the scans less similar."""
    before, after = metrics["nmi_before"], metrics["nmi_after"]
    if _is_one_image(metrics) or after >= before - LEAST_FALL:
        return []
    warning = f"the scans are less similar than before registration: NMI {before:.4f} before, {after:.4f} after"
    logger.warning("%s; check report.html before you use the result", warning)
    return [warning]


def _warn_of_duplicates(frames: Sequence[Frame], storage: Storage = IN_MEMORY) -> list[str]:
    """Warn of scans with the same voxels, such as a scan that is listed twice."""
    first: dict[tuple[object, ...], int] = {}
    warnings = []
    for k, frame in enumerate(frames):
        key = frame.data.shape, frame.affine.tobytes(), blake2b(np.ascontiguousarray(frame.data).data).digest()
        same = first.setdefault(key, k)
        if same != k:
            warnings.append(f"timepoints {same} and {k} have the same voxels: is a scan listed twice?")
            logger.warning("%s (%s)", warnings[-1], frame.path)
        storage.release()
    return warnings


def _describe(setting: object) -> object:
    """Describe a component, such as an alignment, by its name and arguments, recursively; without PyTorch's internal
    module state and the values of tensors."""
    if isinstance(setting, Mapping):
        return {str(name): _describe(value) for name, value in setting.items()}
    if isinstance(setting, (list, tuple)):
        return [_describe(value) for value in setting]
    if isinstance(setting, torch.Tensor):
        return f"tensor {tuple(setting.shape)}"
    if isinstance(setting, (bool, int, float, str, os.PathLike, type(None))):
        return setting
    state = {**getattr(setting, "__dict__", {}), **getattr(setting, "_modules", {})}
    shown = {name: _describe(value) for name, value in state.items() if name[0] != "_" and name != "training"}
    return {"name": getattr(setting, "__name__", type(setting).__name__), **shown}
