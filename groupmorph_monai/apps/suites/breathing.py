"""Capture range for organs that slide along a static wall."""

import argparse
from collections.abc import Sequence

from .suite import Row, add_seeds_and_weights, bundle_method, table_suite

# Greatest mean landmark distance, over all pairs of timepoints, of a success, inside and outside the sliding border.
SUCCESS_MM = {"inside": 1.5, "outside": 2.0}


def breathing(args: argparse.Namespace, motions_mm: Sequence[float] = (10.0, 20.0, 30.0)) -> list[Row]:
    """Measure the capture range: one row per amplitude of breathing motion, over all seeds."""
    from ...benchmarks.cases import make_series
    from ...benchmarks.compare import before_and_after_mm
    from ...benchmarks.tables import mean_row
    from ...data.phantoms.breathing import make_breathing_series

    register, rows = bundle_method(args.weights).prepare_whole(), []
    for motion in motions_mm:
        results = []
        for seed in args.seeds:
            case = make_breathing_series(seed, motion)
            series = make_series(case["image"], case["affine"], f"breathing {seed}")
            before, after = before_and_after_mm(case["landmarks_mm"], register(series))
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


BREATHING = table_suite("breathing", "capture range for organs sliding along a wall", add_seeds_and_weights, breathing)
