"""Capture range for organs that slide along a static wall."""

from collections.abc import Sequence

from ..data.phantoms.breathing import make_breathing_series
from ..data.series import Frame, Series
from . import Row
from .compare import BundleMethod, before_and_after_mm
from .tables import mean_row

__all__ = ["breathing"]

SUCCESS_MM = {"inside": 1.5, "outside": 2.0}  # mean landmark distance inside and outside the sliding border


def breathing(
    method: BundleMethod,
    seeds: Sequence[int],
    motions_mm: Sequence[float] = (10.0, 20.0, 30.0),
) -> list[Row]:
    """Measure the capture range: one row per amplitude of breathing motion, over all seeds.

    A series is a success if the mean landmark distance over all pairs of timepoints is at most 1.5 mm inside the
    sliding border and 2.0 mm outside.
    """
    register, rows = method.prepare_whole(), []
    for motion in motions_mm:
        results = []
        for seed in seeds:
            case = make_breathing_series(seed, motion)
            affine = case["affine"].numpy()
            frames = tuple(Frame(volume.numpy(), affine, f"breathing {seed}") for volume in case["image"])
            before, after = before_and_after_mm(case["landmarks_mm"], register(Series(frames)))
            inside = case["inside"]
            row = {
                "before, inside, mm": float(before[:, inside].mean()),
                "inside, mm": float(after[:, inside].mean()),
                "outside, mm": float(after[:, ~inside].mean()),
            }
            row["success, %"] = 100.0 * all(row[f"{where}, mm"] <= limit for where, limit in SUCCESS_MM.items())
            results.append(row)
            print(f"{motion:g} mm, seed {seed}: {row['inside, mm']:.2f} mm inside, {row['outside, mm']:.2f} outside")
        worst = {f"worst {where}, mm": max(row[f"{where}, mm"] for row in results) for where in SUCCESS_MM}
        rows.append({"motion, mm": motion, "series": len(results), **mean_row(results), **worst})
    return rows
