"""Residual of the kinetic fit on series with and without planted failures."""

import argparse
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from .suite import Row, add_seeds_and_weights, bundle_method, table_suite

_ADDED_VOXELS = (0.5, 1.0, 2.0, 4.0)  # maximum displacements of motion that is added to a result


def kinetics(args: argparse.Namespace) -> list[Row]:
    """Register the planted cases with contrast agent of all seeds and tabulate the residual of the kinetic fit."""
    from ...benchmarks.planted import contrast_cases
    from ...benchmarks.planted_results import measure_added_motion, measure_cases, measure_contrast_case

    file = Path(args.output) / "residuals.jsonl"
    added = chain.from_iterable(measure_added_motion(args.seeds, voxels) for voxels in _ADDED_VOXELS)
    planted = measure_cases(bundle_method(args.weights), file, contrast_cases(args.seeds), measure_contrast_case)
    return tabulate_residuals([*planted, *added])


def tabulate_residuals(results: Iterable[tuple[str | None, Mapping[str, Any]]]) -> list[Row]:
    """Tabulate the residual of the kinetic fit, after over before, in the results of `measure_cases`.

    Returns:
        A row for each failure: the number of series with a fit; the least, median and greatest ratio; and the number of
        series that this check alone, and all other checks together, call LOOK or FAIL.
    """
    import numpy as np

    from ...benchmarks.planted_results import RESIDUAL, group_results
    from ...evaluation.verdict import LEVELS, judge

    rows: list[Row] = []
    for name, cases in group_results(results).items():
        ratios = [values[RESIDUAL] for values in cases if values[RESIDUAL] is not None]
        alone = Counter(judge({RESIDUAL: ratio})["verdict"] for ratio in ratios)
        without = Counter(judge({**values, RESIDUAL: None})["verdict"] for values in cases)
        quantiles = np.quantile(ratios, (0, 0.5, 1)) if ratios else (math.nan,) * 3
        rows.append(
            {
                "planted failure": name,
                "series": len(cases),
                "with a fit": len(ratios),
                **dict(zip(("least", "median", "greatest"), quantiles)),
                **{f"{level} by this check": alone[level] for level in LEVELS[1:]},
                "LOOK or FAIL by the other checks": without["LOOK"] + without["FAIL"],
            }
        )
    return rows


KINETICS = table_suite(
    "kinetics",
    "residual of the kinetic fit on good DCE-MRI series and on planted failures",
    add_seeds_and_weights,
    kinetics,
)
