"""`groupmorph benchmark likelihoods`: all likelihoods with the same effort on the same series."""

import argparse
from pathlib import Path
from typing import Any

from ...benchmarks import Row
from ...errors import InputError
from ..configs import overlay_names
from .suite import add_seeds_and_weights, add_series, table_suite

__all__ = ["LIKELIHOODS"]


def _add_options(p: argparse.ArgumentParser) -> None:
    add_series(p, required=False)
    add_seeds_and_weights(p)


def _cases(args: argparse.Namespace) -> list[dict[str, Any]]:
    from ...benchmarks.cases import synthetic_cases, warped_cases

    if args.series:
        return warped_cases(args.series, args.seeds, spacing_mm=args.spacing_mm, mask=args.mask)
    if args.spacing_mm or args.mask:
        raise InputError("--series: expected with --spacing-mm and --mask, got none; specify aligned scans")
    return synthetic_cases(args.seeds)


def _measure(args: argparse.Namespace) -> list[Row]:
    from ...benchmarks.compare import compare
    from .methods import bundle_method

    methods = {"local correlation": bundle_method(args.weights, "effort/best")}
    for overlay in overlay_names():
        if overlay.startswith("likelihoods/"):
            name = Path(overlay).name.replace("_", " ")
            methods[name] = bundle_method(args.weights, overlay, "effort/best")
    return compare(_cases(args), methods)


LIKELIHOODS = table_suite("likelihoods", "all likelihoods on the same series", _add_options, _measure)
