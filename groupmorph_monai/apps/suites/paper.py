"""`groupmorph benchmark paper`: GroupMorph's Table 1, with other programs for comparison."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...benchmarks.paper.methods import METHODS
from ...errors import InputError
from ..kinds import Number, Whole
from ..option_types import number, path, positive
from .suite import SEEDS, Suite, add_seeds, bundle_method

if TYPE_CHECKING:
    from ...benchmarks.paper.worker import Method

_TIMEPOINTS = 6
# Overlays of the published networks (a model and its modes), which have no affine stage and no refinement.
_PUBLISHED = {
    "voxelmorph": ("models/voxelmorph", "modes/displacement"),
    "voxelmorph-diff": ("models/voxelmorph",),
    "groupmorph-one": ("models/groupmorph", "modes/all_to_one", "modes/displacement"),
    "groupmorph-one-diff": ("models/groupmorph", "modes/all_to_one"),
    "groupmorph-all": ("models/groupmorph", "modes/displacement"),
    "groupmorph-all-diff": ("models/groupmorph",),
}


def _add_options(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--data",
        default="phantom",
        metavar="NAME|DIR",
        type=path,
        help="phantom, breast, thorax, or a folder of series, such as DIR-Lab's cases (default: phantom)",
    )
    add_seeds(p)
    p.set_defaults(seeds=None)  # refused with a folder
    p.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        default=list(METHODS),
        metavar="NAME",
        help=f"methods to run, out of {', '.join(METHODS)}",
    )
    p.add_argument(
        "--size",
        type=number(Whole(16, 1024)),
        nargs=3,
        metavar="N",
        help="size of the phantoms in voxels along each axis (default: full size)",
    )
    p.add_argument(
        "--overlay",
        action="append",
        metavar="NAME",
        help="overlay for GroupMorph-set, such as data/lung_ct; may be repeated (default: chosen by --data)",
    )
    p.add_argument(
        "--timepoints",
        type=number(Whole(2, 1000)),
        metavar="K",
        help="number of timepoints of the phantoms (default: 6)",
    )
    p.add_argument(
        "--time-limit",
        type=number(Number(0, 1e7, above=True)),
        default=3600.0,
        metavar="S",
        help="time limit per registration in seconds (default: 3600)",
    )
    p.add_argument("--threads", type=positive, default=1, metavar="N", help="threads per method (default: 1)")
    p.add_argument(
        "--against",
        choices=METHODS,
        metavar="NAME",
        help="method to which the others are compared (default: set-refined, or the last of --methods)",
    )
    p.add_argument(
        "--scaling", action="store_true", help="also measure time against the number of voxels and of timepoints"
    )


def _run(args: argparse.Namespace) -> Path:
    """Compute the table and return its page."""
    from ...benchmarks.paper.cases import SOURCES, cases, growing_cases
    from ...benchmarks.paper.cells import NONE, TRUTH, CellStore, fill
    from ...benchmarks.paper.page import write_page
    from ...data.writing.output_folder import claim
    from ..overlays import check_overlays
    from ..places import check_place_of_study
    from ..progress import progress_log
    from ..registration_options import check_modes

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
    methods = {name: table_method(name, overlays) for name in METHODS if name in args.methods}
    store, scaling = CellStore(output / "cells", args.threads), []
    with progress_log(output / "paper.log", "a") as log:
        cells = fill(series, methods, store, args.time_limit, log)
        for axis, at, case in growing_cases(args.seeds[0], args.size) if args.scaling else ():
            for cell in fill([case], methods, store, args.time_limit, log):
                if cell.status == "ok" and cell.method not in (NONE, TRUTH):
                    scaling.append({"method": cell.method, "axis": axis, "at": at, "seconds": cell.numbers["seconds"]})
    settings = {"data": args.data, "threads": args.threads, "time limit, s": args.time_limit}
    if args.data in SOURCES:
        settings |= {"seeds": args.seeds, "voxels": args.size or SOURCES[args.data].size, "timepoints": args.timepoints}
    return write_page(cells, METHODS, output, against, settings, scaling)


def table_method(name: str, overlays: Sequence[str] = ()) -> "Method":
    """Make the method of a row of the table, with ``overlays`` for GroupMorph-set."""
    from ...benchmarks.peers import PEERS
    from ...benchmarks.program import PairwiseProgram, Program
    from ..configs import bundle_root

    if name in PEERS:
        return PEERS[name]
    if name in _PUBLISHED:
        overlays = _PUBLISHED[name]
        weights = bundle_root() / "models" / f"{Path(overlays[0]).name}.pt"  # the same for all modes of a model
        method = bundle_method(str(weights), *overlays, "effort/no_refine", initial_alignment="none")
        return (Program if METHODS[name].group_wise else PairwiseProgram)(method)
    overlays = (*overlays, "effort/no_refine") if name == "set-one-pass" else overlays
    return Program(bundle_method(None, *overlays))


PAPER = Suite(
    "paper",
    "the published models, this package and other programs on the same series: GroupMorph's Table 1",
    _add_options,
    _run,
    "Every method runs in its own process. The page contains errors, similarity, folding, time, memory, differences "
    "with confidence intervals, figures, and the numbers of the paper. Run the same command again to resume an "
    "interrupted run. Other programs need: pip install 'groupmorph-monai[peers]'.",
)
