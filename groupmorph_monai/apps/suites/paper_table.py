"""Compute GroupMorph's Table 1, with alternative programs for comparison."""

import argparse
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...benchmarks.paper.cases import SOURCES, Case, cases
from ...benchmarks.paper.cells import NONE, TRUTH, CellStore, fill
from ...benchmarks.paper.figures import draw_scaling
from ...benchmarks.paper.methods import METHODS
from ...benchmarks.paper.page import MethodDescription, write_page
from ...benchmarks.paper.worker import Method
from ...benchmarks.peers import PEERS
from ...benchmarks.program import PairwiseProgram, Program
from ...data.writing.output_folder import claim
from ...errors import InputError
from ..configs import bundle_root
from ..overlays import check_overlays
from ..places import check_place_of_study
from ..progress import progress_log
from ..registration_options import check_modes
from .methods import bundle_method
from .suite import SEEDS

__all__ = ["run_paper", "table_method"]

_TIMEPOINTS = 6
_OURS = ("voxelmorph", "groupmorph", "set")
_GROUP_WISE = ("elastix-groupwise", "groupmorph", "set")
ROWS = {
    name: MethodDescription(title, group_wise=name.startswith(_GROUP_WISE), ours=name.startswith(_OURS))
    for name, title in METHODS.items()
}
# Overlays of the published networks (a model and its modes), which have no affine stage and no refinement.
_PUBLISHED = {
    "voxelmorph": ("models/voxelmorph", "modes/displacement"),
    "voxelmorph-diff": ("models/voxelmorph",),
    "groupmorph-one": ("models/groupmorph", "modes/all_to_one", "modes/displacement"),
    "groupmorph-one-diff": ("models/groupmorph", "modes/all_to_one"),
    "groupmorph-all": ("models/groupmorph", "modes/displacement"),
    "groupmorph-all-diff": ("models/groupmorph",),
}


def run_paper(args: argparse.Namespace) -> Path:
    """Compute the table and return its page."""
    check_modes(args.overlay or (), "registration")
    check_overlays("inference", args.overlay or ())
    against = args.against or ("set-refined" if "set-refined" in args.methods else args.methods[-1])
    if against not in args.methods:
        raise InputError(f"--against: expected one of --methods, got {against}; add it to --methods, or choose another")
    if args.data not in SOURCES:
        check_place_of_study(args.output, args.data)
        unused = [f"--{name}" for name in ("seeds", "size", "timepoints") if getattr(args, name)]
        if unused and not args.scaling:  # which measures synthetic series
            raise InputError(
                f"{unused[0]}: expected an option with an effect, got one for synthetic series with the folder "
                f"{args.data}; omit it"
            )
    args.seeds, args.timepoints = args.seeds or list(SEEDS), args.timepoints or _TIMEPOINTS
    series = cases(args.data, args.seeds, args.size, args.timepoints)
    claim(args.output)
    output = Path(args.output)
    overlays = args.overlay or (SOURCES[args.data].overlays if args.data in SOURCES else ())
    methods = {name: table_method(name, overlays) for name in ROWS if name in args.methods}
    store = CellStore(output / "cells", args.threads)
    with progress_log(output / "paper.log", "a") as log:
        cells = fill(series, methods, store, args.time_limit, log)
        scaling = _scaling(args, methods, store, log) if args.scaling else []
    titles = {name: row.title for name, row in ROWS.items()}
    if scaling:
        draw_scaling(scaling, titles, output / "paper_scaling.png")
    settings = {"data": args.data, "threads": args.threads, "time limit, s": args.time_limit}
    if args.data in SOURCES:
        settings |= {"seeds": args.seeds, "voxels": args.size or SOURCES[args.data].size, "timepoints": args.timepoints}
    return write_page(cells, ROWS, output, against, settings, scaling)


def table_method(name: str, overlays: Sequence[str] = ()) -> Method:
    """Make the method of a row of the table, with ``overlays`` for GroupMorph-set."""
    if name in PEERS:
        return PEERS[name]
    if name in _PUBLISHED:
        overlays = _PUBLISHED[name]
        weights = bundle_root() / "models" / f"{Path(overlays[0]).name}.pt"  # the same for all modes of a model
        method = bundle_method(str(weights), *overlays, "effort/no_refine")
        method = replace(method, settings={"initial_alignment": "none"})
        return (Program if ROWS[name].group_wise else PairwiseProgram)(method)
    overlays = (*overlays, "effort/no_refine") if name == "set-one-pass" else overlays
    return Program(bundle_method(None, *overlays))


def _scaling(
    args: argparse.Namespace, methods: Mapping[str, Method], store: CellStore, log: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Time each method on phantoms with 1/8, 1/4 and all of the voxels, and with 2, 4 and 6 timepoints."""
    return [
        {"method": cell.method, "axis": axis, "at": at, "seconds": cell.numbers["seconds"]}
        for axis, at, case in _growing_cases(args.size or SOURCES["phantom"].size, args.seeds[:1])
        for cell in fill([case], methods, store, args.time_limit, log)
        if cell.status == "ok" and cell.method not in (NONE, TRUTH)
    ]


def _growing_cases(size: Sequence[int], seeds: Sequence[int]) -> Iterator[tuple[str, int, Case]]:
    """Yield phantoms of growing size: the axis, the number of voxels or timepoints on it, and the case."""
    for factor in (8, 4, 1):
        shape = [max(16, round(n / factor ** (1 / 3))) for n in size]
        yield "voxels", math.prod(shape), cases("phantom", seeds, shape)[0]
    for timepoints in (2, 4, 6):
        yield "timepoints", timepoints, cases("phantom", seeds, size, timepoints)[0]
