"""Write a registered series with its report."""

import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
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
from ..data.writing.earlier_result import check_result_folder, earlier_result
from ..data.writing.output_folder import atomic_folder, claim, release
from ..data.writing.products import Products
from ..data.writing.registration import VOLUMES, Written, write_registration
from ..space.grid import vector_lengths
from ..space.transforms import Transform as SpatialTransform
from ..workflow.memory import peak_memory_gb
from .assessment import Assessment, Assessor
from .kinetics import draw_kinetics, summarise_kinetics
from .page import Motion, write_page
from .region import region_masks, region_report
from .report import draw_report, versions, write_json

logger = logging.getLogger(__name__)
_POINTS, _POINTS_OF_ALL = 20_000, 4_000_000  # number of sampled displacements per timepoint, and maximum in total


class ShowMeand(Transform):
    """Replace ``pred`` with a single 3D image, the mean of the aligned timepoints, for display in servers such as MONAI
    Label, and add ``result`` with its metrics. A registration without ``warped`` images does not change.

    Args:
        storage: where the timepoints are kept.
    """

    def __init__(self, storage: Storage = IN_MEMORY):
        self.storage = storage

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        if "warped" not in data["pred"]:
            return dict(data)
        mean = self.storage.mean(data["pred"]["warped"], dim=0)
        return {**data, "pred": mean, "result": {"metrics": data["metrics"]}}


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
        if products.exports.itk_transforms:
            check_itk_path(Path(output_dir).resolve())
        lists = [[names] if isinstance(names, str) else names or [] for names in inputs]
        read = [*(frame.path for frame in series.frames), *chain.from_iterable(lists)]
        std = bool((settings or {}).get("std_draws"))
        check_result_folder(Path(output_dir), read, products.files(len(series.frames), std))
        claim(output_dir)
        self.series, self.output_dir, self.home, self.products = series, Path(output_dir), home, products
        self.settings, self.storage = dict(settings or {}), storage
        self.assessor = Assessor(series, home, self.settings.get("overlays") or (), storage)
        self.shown = self.assessor.compared

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, lambda _: release(self.output_dir))

    def _start(self, engine: Engine) -> None:
        self.started = time.perf_counter()

    def __call__(self, engine: Engine) -> None:
        earlier = earlier_result(self.output_dir)
        with atomic_folder(self.output_dir, earlier) as folder:
            report = self._write(engine, folder)
        if removed := sorted(name for name in earlier if not (self.output_dir / name).exists()):
            logger.info("Removed of the earlier result in %s: %s", self.output_dir, ", ".join(removed))
        logger.info(
            "Wrote %d files, report.json, report.png and report.html to %s; verdict: %s",
            len(report["files"]),
            self.output_dir,
            report["verdict"]["verdict"],
        )

    def _write(self, engine: Engine, folder: Path) -> dict[str, Any]:
        registered = time.perf_counter()
        output, item = engine.state.output[0], engine.state.batch[0]  # type: ignore[index]
        transforms, std = output["pred"]["transforms"], _std_frames(output, item)
        written = write_registration(
            self.series,
            transforms,
            folder,
            home=self.home,
            std_mm=std,
            products=self.products,
            storage=self.storage,
        )
        volumes, grid, fits = self._shown_volumes(written), self._home.grid, written["kinetics"]
        region = self.products.region
        if region:
            volumes["region"] = region_masks(region, self.series, self.home, transforms[self.home])
        lengths = self._lengths_mm(transforms)
        title = ": ".join(filter(None, [self.settings.get("model"), self.series.names[self.home]]))
        shown = [transforms[k] for k in self.shown]
        draw_report(folder / "report.png", volumes, shown, lengths, grid, title, self.shown)
        kinetics, picture = (fits and summarise_kinetics(fits)), (fits and draw_kinetics(fits, grid))
        # Intensities are compared as the user sees them: in native units, on the output grid.
        assessment = self.assessor.assess(
            output, item, volumes["native"], volumes["warped"], written["covered"], kinetics
        )
        seconds = {"register": registered - self.started, "write": time.perf_counter() - registered}
        report = self._report(assessment, written["files"], seconds, kinetics)
        report["region"] = region and region_report(region, self.home, {**written, "region": volumes["region"]})
        motion = Motion(shown, lengths[self.shown], std and [std[k] for k in self.shown])
        write_page(folder / "report.html", report, volumes, grid, motion, picture, self.shown)
        write_json(report, folder / "report.json")
        return report

    @property
    def _home(self) -> Frame:
        return self.series.frames[self.home]

    def _shown_volumes(self, written: Written) -> dict[str, np.ndarray]:
        """Select the timepoints in figures; nothing is copied if these are all timepoints."""
        everything = len(self.shown) == len(self.series.frames)
        return {name: written[name] if everything else written[name][self.shown] for name in VOLUMES}

    def _lengths_mm(self, transforms: Sequence[SpatialTransform]) -> np.ndarray:
        """Compute displacement magnitudes at about 20,000 voxels per timepoint, or fewer for long series, ``(K,
        P)``."""
        grid, number = self._home.grid, min(_POINTS, _POINTS_OF_ALL // len(transforms))
        points = grid.points(every=max(1, round((math.prod(grid.shape) / number) ** (1 / 3))))
        return torch.stack([vector_lengths(t(points) - points).flatten().float() for t in transforms]).numpy()

    def _report(
        self,
        assessment: Assessment,
        files: Sequence[str],
        seconds: Mapping[str, float],
        kinetics: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        return {
            "verdict": assessment.verdict,
            "metrics": assessment.metrics,
            "kinetics": kinetics,
            "warnings": assessment.warnings,
            "scans_at_once": self.storage.scans_at_once,
            "initial_alignment": assessment.initial_alignment,
            "series": [frame.path for frame in self.series.frames],
            "series_description": self.series.description,
            "timepoints": self.series.names,
            "times_s": self.series.times_s,
            "times_from": self.series.clock or None,
            "files": files,
            "settings": {name: _describe(value) for name, value in self.settings.items()},
            "versions": versions(),
            "seconds": seconds,
            "peak_memory_gb": peak_memory_gb(),
        }


def _std_frames(output: Mapping[str, Any], item: Mapping[str, Any]) -> list[Frame] | None:
    """Return the standard deviation of each displacement on the working grid; None without draws."""
    std = output["pred"].get("std_mm")
    affine = torch.as_tensor(item["affine"]).cpu().numpy()
    return None if std is None else [Frame(volume.cpu().numpy(), affine, "std") for volume in std]


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
