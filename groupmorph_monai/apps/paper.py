"""`groupmorph benchmark paper`: GroupMorph's Table 1 beside the programs that people would use instead."""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..benchmarks.compare import BundleMethod
from ..benchmarks.paper.cases import SOURCES, Case, cases
from ..benchmarks.paper.cells import NONE, TRUTH, CellStore, fill
from ..benchmarks.paper.figures import draw_scaling
from ..benchmarks.paper.page import Row, write_page
from ..benchmarks.paper.worker import Method
from ..benchmarks.peers import PEERS
from ..benchmarks.program import PairwiseProgram, Program
from ..data.writers import check_output_dir
from ..errors import InputError
from .configs import bundle_root, config_files

__all__ = ["add_paper", "run_paper"]

ROWS = {
    "elastix-breast": Row("Elastix, breast (Par0032)"),
    "elastix-default": Row("Elastix, default"),
    "elastix-groupwise": Row("Elastix, group-wise PCA (Par0047)", group_wise=True),
    "ants-mi": Row("ANTs SyN, MI"),
    "ants-cc": Row("ANTs SyN, CC"),
    "greedy": Row("Greedy, WNCC"),
    "demons": Row("Diffeomorphic demons"),
    "convexadam": Row("ConvexAdam"),
    "fireants": Row("FireANTs"),
    "unigradicon": Row("uniGradICON"),
    "voxelmorph": Row("VoxelMorph", ours=True),
    "voxelmorph-diff": Row("VoxelMorph-diff", ours=True),
    "groupmorph-one": Row("All-to-one GroupMorph", group_wise=True, ours=True),
    "groupmorph-one-diff": Row("All-to-one GroupMorph-diff", group_wise=True, ours=True),
    "groupmorph-all": Row("All-moving GroupMorph", group_wise=True, ours=True),
    "groupmorph-all-diff": Row("All-moving GroupMorph-diff", group_wise=True, ours=True),
    "set-one-pass": Row("GroupMorph-set, one pass", group_wise=True, ours=True),
    "set-refined": Row("GroupMorph-set, refined", group_wise=True, ours=True),
}
# The published networks, which have no affine stage and no refinement: a model and its modes. Weights that are named
# after all of them are taken where they exist, such as groupmorph_all_to_one.pt, and the model's own otherwise.
_PUBLISHED = {
    "voxelmorph": ("models/voxelmorph", "modes/displacement"),
    "voxelmorph-diff": ("models/voxelmorph",),
    "groupmorph-one": ("models/groupmorph", "modes/all_to_one", "modes/displacement"),
    "groupmorph-one-diff": ("models/groupmorph", "modes/all_to_one"),
    "groupmorph-all": ("models/groupmorph", "modes/displacement"),
    "groupmorph-all-diff": ("models/groupmorph",),
}


def add_paper(tables: argparse._SubParsersAction) -> None:
    """Add the subcommand and its options."""
    p = tables.add_parser(
        "paper",
        help="GroupMorph's Table 1: published models and other programs on the same series",
        description="Register series by every method, each in a process of its own, and write one page: errors, "
        "similarity, folds, seconds, memory, differences with intervals, figures, and the paper's own numbers. A "
        "stopped run goes on when the same command is given again. Programs of others need: pip install "
        "'groupmorph-monai[peers]'.",
    )
    p.add_argument(
        "--data",
        default="phantom",
        metavar="NAME|DIR",
        help=f"{', '.join(SOURCES)}, or a folder of series, such as DIR-Lab's cases (default: phantom)",
    )
    p.add_argument(
        "--seeds", type=int, nargs="+", default=[3001, 3002, 3003], metavar="N", help="random seeds of phantoms"
    )
    p.add_argument(
        "--methods", nargs="+", choices=ROWS, default=list(ROWS), metavar="NAME", help=f"of {', '.join(ROWS)}"
    )
    p.add_argument(
        "--size", type=int, nargs=3, metavar="N", help="of phantoms, voxels along each axis (default: full size)"
    )
    p.add_argument(
        "--overlay",
        action="append",
        metavar="NAME",
        help="a config laid over GroupMorph-set's, such as data/lung_ct; may be repeated (default: what --data needs)",
    )
    p.add_argument("--timepoints", type=int, default=6, metavar="K", help="of phantoms (default: 6)")
    p.add_argument(
        "--time-limit", type=float, default=3600.0, metavar="S", help="seconds per registration (default: 3600)"
    )
    p.add_argument("--threads", type=int, default=1, metavar="N", help="threads of each method (default: 1)")
    p.add_argument(
        "--against",
        choices=ROWS,
        default="set-refined",
        metavar="NAME",
        help="method from which the others' differences are taken (default: set-refined)",
    )
    p.add_argument(
        "--scaling", action="store_true", help="also measure seconds against the number of voxels and of timepoints"
    )
    p.add_argument("--output", default="benchmarks", metavar="DIR", help="folder for the page (default: benchmarks)")


def run_paper(args: argparse.Namespace) -> None:
    """Fill the table and write its page."""
    output = check_output_dir(args.output)
    if args.size and min(args.size) < 16:
        raise InputError(f"--size: expected 16 voxels or more along each axis, got {args.size}")
    if args.timepoints < 2:
        raise InputError(f"--timepoints: expected 2 or more, got {args.timepoints}")
    if args.threads < 1:
        raise InputError(f"--threads: expected 1 or more, got {args.threads}")
    overlays = args.overlay or (SOURCES[args.data].overlays if args.data in SOURCES else ())
    methods = {name: _method(name, overlays) for name in ROWS if name in args.methods}
    store = CellStore(output / "cells", args.threads)
    with _log(output / "paper.log") as tell:
        cells = fill(cases(args.data, args.seeds, args.size, args.timepoints), methods, store, args.time_limit, tell)
        scaling = _scaling(args, methods, store, tell) if args.scaling else []
    titles = {name: row.title for name, row in ROWS.items()}
    if scaling:
        draw_scaling(scaling, titles, output / "paper_scaling.png")
    settings = {"data": args.data, "threads": args.threads, "time limit, s": args.time_limit}
    if args.data in SOURCES:
        settings |= {"seeds": args.seeds, "voxels": args.size or SOURCES[args.data].size, "timepoints": args.timepoints}
    page = write_page(cells, ROWS, output, args.against, settings, scaling)
    print(page.read_text(encoding="utf-8"))
    print(f"Page: {page}")


def _method(name: str, overlays: Sequence[str] = ()) -> Method:
    if name in PEERS:
        return PEERS[name]
    models = bundle_root() / "models"
    if name in _PUBLISHED:
        overlays, parts = _PUBLISHED[name], [Path(overlay).name for overlay in _PUBLISHED[name]]
        own = models / f"{'_'.join(parts)}.pt"
        weights = own if own.is_file() else models / f"{parts[0]}.pt"
        files = config_files("inference", (*overlays, "effort/no_refine"))
        method = BundleMethod(files, str(weights), {"initial_alignment": "none"})
        return (Program if ROWS[name].group_wise else PairwiseProgram)(method)
    overlays = (*overlays, "effort/no_refine") if name == "set-one-pass" else overlays
    return Program(BundleMethod(config_files("inference", overlays), str(models / "model.pt")))


def _scaling(
    args: argparse.Namespace, methods: Mapping[str, Method], store: CellStore, tell: Callable[[str], None]
) -> list[dict]:
    """Seconds of each method on phantoms of 1/8, 1/4 and all voxels of the size, and of 2, 4 and 6 timepoints."""
    size = args.size or SOURCES["phantom"].size
    rows = []
    for axis, series in _series_of_growing(size, args.seeds[:1]).items():
        for at, case in series:
            for cell in fill([case], methods, store, args.time_limit, tell):
                if cell.status == "ok" and cell.method not in (NONE, TRUTH):
                    rows.append({"method": cell.method, "axis": axis, "at": at, "seconds": cell.numbers["seconds"]})
    return rows


def _series_of_growing(size: Sequence[int], seeds: Sequence[int]) -> dict[str, list[tuple[int, Case]]]:
    shapes = [[max(16, round(n / f ** (1 / 3))) for n in size] for f in (8, 4, 1)]
    by_voxels = [(n[0] * n[1] * n[2], cases("phantom", seeds, n)[0]) for n in shapes]
    return {"voxels": by_voxels, "timepoints": [(k, cases("phantom", seeds, size, k)[0]) for k in (2, 4, 6)]}


@contextmanager
def _log(file: Path) -> Iterator[Callable[[str], None]]:
    """What tells the run's progress and adds it to a file."""
    with open(file, "a") as stream:

        def tell(line: str) -> None:
            for target in (sys.stdout, stream):
                print(line, file=target, flush=True)

        yield tell
