"""All likelihoods on the same series."""

import argparse
from functools import partial
from pathlib import Path

from ...errors import InputError
from .suite import Row, bundle_method, table_suite
from .warped import add_series, warped_series


def likelihoods(args: argparse.Namespace) -> list[Row]:
    from ...benchmarks.cases import synthetic_cases
    from ...benchmarks.compare import compare
    from ..configs import overlay_names

    if not args.series and (args.spacing_mm or args.mask):
        raise InputError("--series: required with --spacing-mm and --mask, got none; specify aligned scans")
    methods = {"local correlation": bundle_method(args.weights, "effort/best")}
    for overlay in overlay_names():
        if overlay.startswith("likelihoods/"):
            name = Path(overlay).name.replace("_", " ")
            methods[name] = bundle_method(args.weights, overlay, "effort/best")
    return compare(warped_series(args) if args.series else synthetic_cases(args.seeds), methods)


LIKELIHOODS = table_suite(
    "likelihoods", "all likelihoods on the same series", partial(add_series, required=False), likelihoods
)
