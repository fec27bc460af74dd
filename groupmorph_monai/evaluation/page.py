"""`report.html`: one self-contained file with the images before and after registration, the motion and all numbers.

Images are embedded as 16-bit volumes over their full range, overlays as 8-bit volumes, compressed and base64-encoded,
and are drawn by plain JavaScript. To keep the file below `LARGEST_BYTES`, large scans are averaged over larger voxels;
the page states the voxel size.
"""

import base64
import json
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool3d

from ..data.preprocessing.resampling import resample
from ..data.series import Frame
from ..space.grid import Grid, vector_lengths
from ..space.sampling import full_precision
from ..space.transforms import Transform
from .axial import AxialView
from .report import plain

LARGEST_BYTES = 15_000_000  # upper bound of the page's size, for any size of the series
_RAW_BYTES = 11_000_000  # base64 takes 4/3 of this; the rest is for the page and its numbers
_OVERLAY_FACTOR = 2  # overlays are smooth, so every second voxel along each axis is enough
_LARGEST_JACOBIAN = 3.0  # volume ratio at which the display saturates
_LEVELS = 65534  # number of steps between the 16-bit values 1 and 65535; 0 marks unknown voxels
_VERDICTS = {
    "PASS": "No known sign of a failed registration was detected. This is no proof: check the subtraction images.",
    "LOOK": "Something is unusual. Check the images for the reasons below before you use the result.",
    "FAIL": "Do not use this result as it is, for the reasons below.",
}
_METRICS = {
    "folding_percent": "voxels at which the deformation folds, percent",
    "non_diffeomorphic_volume_percent": "non-diffeomorphic volume, percent (Liu et al. 2022)",
    "inverse_consistency_mm": "mean inverse consistency error, mm",
    "displacement_mean_mm": "mean displacement, mm",
    "displacement_max_mm": "maximum displacement, mm",
    "rmse_before": "root mean square difference over all pairs of timepoints before registration, in the scans' unit",
    "rmse_after": "the same after registration; above 0 even for perfect alignment if contrast agent is present",
    "nmi_before": "normalised mutual information over all pairs before registration, 0 to 1",
    "nmi_after": "the same after registration; higher similarity does not prove better alignment",
}
_KINETICS = {
    "ktrans_per_min": "Ktrans, 1/min",
    "kinetic_r2": "R2: share of a curve's variance that the model explains, 0 to 1",
    "kinetic_residual_percent": "residual of the fit, percent of the concentration",
}


def page_grid(grid: Grid, timepoints: int) -> Grid:
    """Choose the grid of the page's images: the scan's field of view in RAS+ orientation, with voxels no smaller than
    the scan's and large enough to keep the file below `LARGEST_BYTES`."""
    grid = grid.canonical()
    most = _RAW_BYTES / timepoints / (2 * 2 + 5 / _OVERLAY_FACTOR**3)
    extent, spacing_mm = grid.extent_mm, float(grid.spacing_mm.min())
    while True:
        shape = (extent / grid.spacing_mm.clamp_min(spacing_mm) + 1e-6).int().clamp_min(1)
        if shape.prod() <= most:
            return _in_box(grid, shape)
        spacing_mm *= 1.02


def _in_box(grid: Grid, shape: torch.Tensor) -> Grid:
    """Make a grid with ``shape`` voxels over the field of view of ``grid``."""
    return grid.of_blocks(torch.tensor(grid.shape).double() / shape, shape.tolist())


def _pack(values: np.ndarray, **properties: object) -> dict[str, Any]:
    """Encode ``(N, *S)`` values of 8 or 16 bits, little-endian, for the page."""
    data = base64.b64encode(zlib.compress(np.ascontiguousarray(values).tobytes(), 6)).decode("ascii")
    return {"shape": list(values.shape[1:]), "data": data, **properties}


def _bytes(values: np.ndarray, low: float, high: float) -> np.ndarray:
    scaled = (values - low) * (255 / max(high - low, 1e-30))
    return np.clip(np.nan_to_num(scaled).round(), 0, 255).astype(np.uint8)


def _words(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map ``low`` to ``high`` to 1 to 65535, and NaN and infinity to 0."""
    scaled = (values - low) * (_LEVELS / max(high - low, 1e-30)) + 1
    return np.where(np.isfinite(values), scaled.round(), 0).astype("<u2")


def _window(values: np.ndarray) -> list[float]:
    """Choose the initial display window, robust to a few bright voxels."""
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, (0.1, 99.9)).tolist() if finite.size else (0.0, 1.0)
    return [low, high] if high > low else [float(finite.min(initial=low)), float(finite.max(initial=high))]


def _reach(values: np.ndarray, percent: float, least: float) -> float:
    """Compute a percentile of the finite values, at least ``least``."""
    finite = values[np.isfinite(values)]
    return max(float(np.percentile(finite, percent)), least) if finite.size else least


class _Page:
    """The volumes of the page, on grids that cover the field of view of the home scan.

    Args:
        grid: grid of the home scan and of the written volumes.
        timepoints: K.
    """

    def __init__(self, grid: Grid, timepoints: int):
        self.source, self.images = grid, page_grid(grid, timepoints)
        self.overlays = _in_box(self.images, (torch.tensor(self.images.shape) // _OVERLAY_FACTOR).clamp_min(1))
        self.turned = AxialView(grid).turned

    def means(self, volumes: np.ndarray, grid: Grid) -> np.ndarray:
        """Average volumes ``(K, *S)`` on the grid of the home scan over the voxels of another grid."""
        copies = (torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32)) for volume in self.turned(volumes))
        i, j, k = grid.shape
        return np.stack([adaptive_avg_pool3d(volume[None], (i, j, k))[0].numpy() for volume in copies])

    def series(self, written: Mapping[str, np.ndarray]) -> tuple[dict[str, dict[str, Any]], np.ndarray]:
        """Encode both series with one intensity scale, and return the aligned one, NaN outside the field of view."""
        before, after = (
            self._covered_means(written[name], written[f"{name}_covered"]) for name in ("native", "warped")
        )
        finite = [volumes[np.isfinite(volumes)] for volumes in (before, after)]
        low = float(min((values.min() for values in finite if values.size), default=0))
        high = float(max((values.max() for values in finite if values.size), default=1))
        window = _window(before)
        packed = {
            name: _pack(_words(volumes, low, high), low=low, high=high, window=window)
            for name, volumes in (("before", before), ("after", after))
        }
        return packed, after

    def _covered_means(self, volumes: np.ndarray, masks: np.ndarray) -> np.ndarray:
        masked = (np.where(mask, volume, np.nan)[None] for volume, mask in zip(volumes, masks))
        return np.concatenate([self.means(volume, self.images) for volume in masked])

    def region(self, masks: np.ndarray) -> np.ndarray:
        """Average masks ``(2, *S)`` on the grid of the home scan. A voxel is inside if at least half of it is; if there
        is no such voxel, those with the largest share are."""
        shares = self.means(masks, self.images)
        return shares >= np.clip(shares.max(axis=(1, 2, 3), keepdims=True), 1e-6, 0.5)

    @full_precision
    def displacement(self, transforms: Sequence[Transform]) -> dict[str, Any]:
        """Encode displacement components along the page's axes; in mm they are ``(value - 128) * scale``."""
        cosines = (self.overlays.affine[:3, :3] / self.overlays.spacing_mm).float()
        fields = [torch.einsum("ij,i...->j...", cosines, t.displacement(self.overlays)) for t in transforms]
        field = torch.cat(fields).numpy()
        scale = _reach(np.abs(field), 100, 1e-6) / 127
        lengths = np.stack([vector_lengths(f.movedim(0, -1)).numpy() for f in fields])
        values = (np.nan_to_num(field / scale) + 128).round().clip(1, 255).astype(np.uint8)
        return _pack(values, scale=scale, reach=_reach(lengths, 99, 1e-3))

    def jacobian(self, transforms: Sequence[Transform]) -> dict[str, Any]:
        """Encode volume ratios from 0 to 3. Colours saturate at the 99th percentile of ``|log2(ratio)|``."""
        grid, (i, j, k) = self.images, self.overlays.shape
        determinants = (t.jacobian_determinant(grid)[None] for t in transforms)
        values = torch.cat([adaptive_avg_pool3d(d, (i, j, k)) for d in determinants]).numpy()
        octaves = np.abs(np.log2(np.clip(values, 1e-3, None)))
        reach = _reach(octaves, 99, 0.1)
        return _pack(_bytes(values, 0, _LARGEST_JACOBIAN), low=0, high=_LARGEST_JACOBIAN, reach=reach)

    def std(self, frames: Sequence[Frame]) -> dict[str, Any]:
        values = np.stack([resample(frame, self.overlays)[0] for frame in frames])
        high = _reach(values, 100, 1e-6)
        return _pack(_bytes(values, 0, high), low=0, high=high, reach=high)


class Motion(NamedTuple):
    """Motion of K scans.

    Args:
        transforms: K, from the common space to each timepoint.
        lengths_mm: ``(K, P)``, sampled displacement magnitudes.
        std_mm: K frames, standard deviation of each displacement; None without draws.
    """

    transforms: Sequence[Transform]
    lengths_mm: np.ndarray
    std_mm: Sequence[Frame] | None = None


def write_page(
    path: str | os.PathLike[str],
    report: Mapping[str, Any],
    written: Mapping[str, np.ndarray],
    grid: Grid,
    motion: Motion,
    kinetics_png: bytes | None = None,
    timepoints: Sequence[int] | None = None,
) -> None:
    """Write the page.

    Args:
        report: contents of ``report.json``.
        written: ``native`` and ``warped``, ``(K, *S)``, on ``grid``; ``native_covered`` and ``warped_covered``, bool
            masks of their fields of view; and optionally ``region`` of `region_masks`, whose curves are in
            ``report["region"]``.
        grid: grid of the home scan.
        motion: motion of the K scans.
        kinetics_png: figure of the kinetic maps that ``report["kinetics"]`` summarises.
        timepoints: indices of the K timepoints in the series; None for the first K.
    """
    report = plain(report)
    page, transforms = _Page(grid, len(motion.transforms)), motion.transforms
    volumes, after = page.series(written)
    volumes |= {"jacobian": page.jacobian(transforms), "displacement": page.displacement(transforms)}
    if motion.std_mm is not None:
        volumes["std"] = page.std(motion.std_mm)
    change = np.nan_to_num(np.abs(after - after[:1]))
    start = [n // 2 for n in page.images.shape[:2]] + [int(change.sum(axis=(0, 1, 2)).argmax())]
    if "region" in written:
        region = page.region(written["region"])
        volumes["region"], start = _pack(region.astype(np.uint8)), _middle(region[1] if region[1].any() else region[0])
    timepoints = range(len(transforms)) if timepoints is None else timepoints
    contents = {
        "volumes": volumes,
        "spacing_mm": page.images.spacing_mm.tolist(),
        **_shown_timepoints(report, timepoints),
        "motion_mm": [_percentiles(lengths) for lengths in motion.lengths_mm],
        "start": start,
        "late": int(change.sum(axis=(1, 2, 3)).argmax()),
    }
    Path(path).write_text(_html(report, plain(contents), page, kinetics_png), encoding="utf-8", errors="replace")


def _middle(mask: np.ndarray) -> list[int]:
    """Return the voxel of a mask nearest to its centre of mass."""
    places = np.argwhere(mask)
    return places[np.linalg.norm(places - places.mean(axis=0), axis=1).argmin()].tolist()


def _shown_timepoints(report: Mapping[str, Any], timepoints: Sequence[int]) -> dict[str, Any]:
    """Select the names, times and region signals of timepoints."""
    times_s = [report["times_s"][k] for k in timepoints] if report["times_s"] else None
    times = [f", {time:.0f} s" for time in times_s] if times_s else [""] * len(timepoints)
    signal = report["region"]["signal"] if report.get("region") else {}
    return {
        "timepoints": [f"{k}: {report['timepoints'][k]}{time}" for k, time in zip(timepoints, times)],
        "times_s": times_s,
        "region_signal": {when: [values[k] for k in timepoints] for when, values in signal.items()},
    }


def _percentiles(lengths: np.ndarray) -> list[float]:
    """Compute the 5th, 25th, 50th, 75th and 95th percentiles, ignoring NaN; NaN if no values remain."""
    values = lengths[~np.isnan(lengths)]
    with np.errstate(invalid="ignore"):  # interpolation between infinite values
        return np.percentile(values, (5, 25, 50, 75, 95)).tolist() if values.size else [math.nan] * 5


def _html(report: Mapping[str, Any], packed: Mapping[str, Any], page: _Page, kinetics_png: bytes | None) -> str:
    folder = files(__package__) / "html"
    css, template, *scripts = (
        (folder / name).read_text(encoding="utf-8")
        for name in ("report.css", "report.html", "volumes.js", "charts.js", "report.js")
    )
    verdict = report["verdict"]
    home = " x ".join(f"{s:.3g}" for s in page.source.spacing_mm)
    shown = " x ".join(f"{s:.3g}" for s in page.images.spacing_mm)
    title = " ".join(filter(None, [report["settings"].get("model"), report.get("series_description")]))
    return Template(template).substitute(
        css=css,
        js="\n".join(scripts),
        verdict=verdict["verdict"],
        verdict_meaning=_VERDICTS[verdict["verdict"]],
        title=escape(f"{title}: {len(packed['timepoints'])} scans".strip(": ")),
        reasons="".join(f"<li>{escape(reason)}</li>" for reason in verdict["reasons"]),
        resolution=f"Shown in voxels of {shown} mm; the files have {home} mm.",
        motion=_motion_table(packed),
        kinetics="" if kinetics_png is None else _kinetics_section(report["kinetics"], kinetics_png),
        checks=_checks_table(verdict["checks"]),
        metrics=_table(("number", "value", "meaning"), _metric_rows(report)),
        report_text=escape(json.dumps(report, indent=1)),
        report_json=_script(report),
        volumes_json=_script(packed),
    )


def _script(value: object) -> str:
    """Serialise ``value`` as JSON that cannot close the enclosing script element."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def _number(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_number, value))
    return "-" if value is None else f"{value:.4g}" if isinstance(value, (int, float)) else str(value)


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]], levels: bool = False) -> str:
    """Build an HTML table with numbers right-aligned; with ``levels`` the last column is coloured by its level."""
    lines = ["<tr>" + "".join(f'<th scope="col">{escape(c)}</th>' for c in columns) + "</tr>"]
    for row in rows:
        classes = ["number" if isinstance(cell, (int, float, list)) else "" for cell in row]
        if levels:
            classes[-1] = str(row[-1])
        cells = (f'<td class="{c}">{escape(_number(cell))}</td>' for c, cell in zip(classes, row))
        lines.append("<tr>" + "".join(cells) + "</tr>")
    return "<table>" + "\n".join(lines) + "</table>"


def _motion_table(packed: Mapping[str, Any]) -> str:
    rows = [[name, *row] for name, row in zip(packed["timepoints"], packed["motion_mm"])]
    return _table(("timepoint, displacement in mm", "5 %", "25 %", "median", "75 %", "95 %"), rows)


def _kinetics_section(kinetics: Mapping[str, Any], png: bytes) -> str:
    rows = [
        [meaning, *(kinetics[f"{name}_{when}"] for when in ("before", "after"))] for name, meaning in _KINETICS.items()
    ]
    settings = ", ".join(
        f"{name} {_number(value)}" + (f" ({kinetics['sources'][name]})" if name in kinetics["sources"] else "")
        for name, value in kinetics["settings"].items()
        if value is not None
    )
    picture = base64.b64encode(png).decode("ascii")
    return (
        '<section aria-label="Kinetics"><h2>Contrast kinetics</h2>'
        f'<img src="data:image/png;base64,{picture}" alt="Maps of R2 and Ktrans before and after registration" '
        'style="max-width: 100%">'
        + _table((f"median of {kinetics['enhancing_voxels']} enhancing voxels", "before", "after"), rows)
        + f'<p class="small">Voxel-by-voxel fit with {escape(settings)}. Ktrans depends on all of these settings: '
        "compare before and after rather than with another program.</p></section>"
    )


def _checks_table(checks: Mapping[str, Mapping[str, Any]]) -> str:
    columns = ("check", "meaning", "value, one for all or one per timepoint", "LOOK", "FAIL", "source", "")
    rows = [
        [name, c["meaning"], c["value"], c["look"], c["fail"], c["source"], c["level"]] for name, c in checks.items()
    ]
    return _table(columns, rows, levels=True)


def _metric_rows(report: Mapping[str, Any]) -> list[list[object]]:
    rows = [[name, value, _METRICS.get(name, "")] for name, value in report["metrics"].items()]
    rows += [[f"seconds to {name}", value, "time of this run, s"] for name, value in report["seconds"].items()]
    return [*rows, ["peak_memory_gb", report["peak_memory_gb"], "peak memory of this process, GB (1e9 bytes)"]]
