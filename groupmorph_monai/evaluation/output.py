"""What a run leaves behind: a registered series with its report, or a table over many."""

import csv
import logging
import math
import time
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.transforms import Transform

from ..data.readers import Frame, Series
from ..data.writers import all_or_nothing, check_output_dir, write_registration
from ..errors import InputError
from ..space.geometry import Transform as SpatialTransform
from ..workflow.affine_alignment import LEAST_CONFIDENCE
from ..workflow.memory import peak_memory_gb
from .metrics import similarity
from .report import draw_report, format_table, versions, write_json

__all__ = ["MetricsTable", "SeriesWriter", "ShowMeand"]

logger = logging.getLogger(__name__)
# What fits a terminal's width of a table that holds more.
SHOWN = (
    "series",
    "landmark_before_mm_mean",
    "landmark_after_mm_mean",
    "landmark_after_mm_median",
    "landmark_after_mm_sd",
    "dice",
    "surface_distance_mm",
    "rmse_before",
    "rmse_after",
    "nmi_before",
    "nmi_after",
    "folding_percent",
    "seconds",
)


class ShowMeand(Transform):
    """Make an evaluated item's ``pred`` one 3D image, the mean of the aligned timepoints, which servers such as MONAI
    Label can show; the whole result moves to ``registration``, its numbers to ``result``."""

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        registration = data["pred"]
        mean = registration["warped"].mean(dim=0, keepdim=True)
        return {**data, "registration": registration, "pred": mean, "result": {"metrics": data["metrics"]}}


class SeriesWriter:
    """Write the registered series, its fields, ``report.json`` and ``report.png``.

    Args:
        series: the native volumes, which are interpolated once.
        output_dir: made if missing; files of the same names are replaced when all new ones are complete.
        home: index of the scan whose grid the aligned series lies on.
        outside: what the aligned series holds where a scan has not seen a voxel: "zero", "nan" or "border".
        jacobian: write ``jacobian_*.nii.gz`` too.
        settings: stated in the report; ``model`` names the picture too.
    Raises: InputError where ``output_dir`` cannot be written.
    """

    def __init__(
        self,
        series: Series,
        output_dir: str,
        home: int = 0,
        outside: str = "zero",
        jacobian: bool = False,
        settings: Mapping[str, object] | None = None,
    ):
        if outside not in ("zero", "nan", "border"):
            raise InputError(f"outside: expected zero, nan or border, got {outside!r}")
        check_output_dir(output_dir)
        self.series, self.output_dir, self.home = series, Path(output_dir), home
        self.outside, self.jacobian = outside, jacobian
        self.settings = dict(settings or {})

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def _start(self, engine: Engine) -> None:
        self.started = time.perf_counter()

    def __call__(self, engine: Engine) -> None:
        registered = time.perf_counter()
        output = engine.state.output[0]
        registration, metrics = output["registration"], dict(output["metrics"])
        affine = torch.as_tensor(engine.state.batch[0]["affine"]).cpu().numpy()
        std = registration.get("std_mm")
        written = write_registration(
            self.series,
            registration["transforms"],
            self.output_dir,
            home=self.home,
            std_mm=None if std is None else [Frame(x.cpu().numpy(), affine, "std") for x in std],
            jacobian=self.jacobian,
            outside=self.outside,
        )
        # Intensities are compared where the researcher reads them: in the native units, on the written grid.
        images = (torch.from_numpy(written[name]) for name in ("native", "warped"))
        metrics |= similarity(*images, torch.from_numpy(written["seen"]))
        lengths = self._lengths_mm(registration["transforms"])
        seconds = {"register": registered - self.started, "write": time.perf_counter() - registered}
        self._report(metrics, written, lengths, self._initial(engine.state.batch[0]), seconds)

    def _initial(self, item: Mapping) -> dict[str, list]:
        """What the initial alignment says of each timepoint; a warning names those that it did not find."""
        if "initial_confidence" not in item:
            return {}
        confidence = torch.as_tensor(item["initial_confidence"]).tolist()
        lost = [k for k, value in enumerate(confidence) if value < LEAST_CONFIDENCE]
        for k in lost:
            logger.warning(
                "%s (timepoint %d): no initial alignment was found with confidence (%.2f, expected %g or more); check "
                "it in report.png before you use it",
                self.series.frames[k].path,
                k,
                confidence[k],
                LEAST_CONFIDENCE,
            )
        return {"confidence": confidence, "not_found": lost}

    def _lengths_mm(self, transforms: Sequence[SpatialTransform]) -> np.ndarray:
        """Displacements' lengths at some 20,000 voxels of each timepoint, ``(K, P)``."""
        grid = self.series.frames[self.home].grid
        points = grid.points(every=max(1, round((math.prod(grid.shape) / 20000) ** (1 / 3))))
        return torch.stack([(t(points) - points).norm(dim=-1).flatten() for t in transforms]).numpy()

    def _report(
        self, metrics: dict, written: Mapping, lengths: np.ndarray, initial: Mapping, seconds: Mapping[str, float]
    ) -> None:
        spacing = self.series.frames[self.home].grid.spacing_mm.tolist()
        with all_or_nothing(self.output_dir) as folder:
            draw_report(
                folder / "report.png",
                written["native"],
                written["warped"],
                written["jacobian"],
                lengths,
                spacing,
                title=": ".join(
                    filter(None, [self.settings.get("model"), Path(self.series.frames[self.home].path).name])
                ),
            )
        report = {
            "metrics": metrics,
            "initial_alignment": initial,
            "series": [frame.path for frame in self.series.frames],
            "series_description": self.series.description,
            "times_s": self.series.times_s,
            "files": written["files"],
            "settings": {name: _describe(value) for name, value in self.settings.items()},
            "versions": versions(),
            "seconds": seconds,
            "peak_memory_gb": peak_memory_gb(),
        }
        write_json(report, self.output_dir / "report.json")
        logger.info("Wrote %d files, report.json and report.png to %s", len(written["files"]), self.output_dir)


def _describe(setting: object) -> object:
    """A part such as an alignment as its name and arguments, and its parts likewise."""
    state = getattr(setting, "__dict__", None)
    if state is None:
        return setting
    return {"name": type(setting).__name__, **{name: _describe(value) for name, value in state.items()}}


class MetricsTable:
    """Print the metrics of every series as a table, with their mean, and write them to ``metrics.csv`` and
    ``metrics.json``."""

    def __init__(self, output_dir: str):
        check_output_dir(output_dir)
        self.output_dir = Path(output_dir)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_STARTED, self._clock)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        self.rows: list[dict] = []

    def _clock(self, engine: Engine) -> None:
        self.started = time.perf_counter()

    def __call__(self, engine: Engine) -> None:
        batch, output = engine.state.batch, engine.state.output[0]
        name = batch[0].get("name") if isinstance(batch, list) else None
        seconds = {"seconds": time.perf_counter() - self.started}
        self.rows.append({"series": name or f"series {len(self.rows)}", **output["metrics"], **seconds})

    def _finish(self, engine: Engine) -> None:
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        means = {}
        for name in columns[1:]:
            values = [row[name] for row in self.rows if name in row]
            means[name] = sum(values) / len(values)
        rows = [*self.rows, {"series": "mean", **means}]
        with all_or_nothing(self.output_dir) as folder, open(folder / "metrics.csv", "w", newline="") as file:
            table = csv.DictWriter(file, columns)
            table.writeheader()
            table.writerows(rows)
        write_json({"series": self.rows, "mean": means, "versions": versions()}, self.output_dir / "metrics.json")
        print(format_table(rows, [name for name in columns if name in SHOWN]))
        print(f"All metrics: {self.output_dir / 'metrics.csv'}")
