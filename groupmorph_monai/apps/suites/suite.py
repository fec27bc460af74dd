"""Benchmark suites, each a subcommand that answers one question."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..option_types import path, seed
from ..places import check_place
from ..run_options import add_output, add_run_options

if TYPE_CHECKING:
    from ...benchmarks.compare import BundleMethod

Row = dict[str, Any]  # a row of a suite's table: numbers and text by column


@dataclass(frozen=True)
class Suite:
    """A benchmark with its own subcommand.

    Args:
        name: name of the subcommand and of the page that it writes.
        question: what the suite measures, in one line.
        add_options: adds the suite's options to its parser.
        run: runs the suite and returns the Markdown page that it wrote to ``args.output``.
        description: further help text.
    """

    name: str
    question: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Path]
    description: str = ""


def table_suite(
    name: str,
    question: str,
    add_options: Callable[[argparse.ArgumentParser], None],
    measure: Callable[[argparse.Namespace], list[Row]],
) -> Suite:
    """Make a suite whose page is one table with the rows that ``measure`` returns."""

    def run(args: argparse.Namespace) -> Path:
        from ...benchmarks.tables import write_table
        from ...data.writing.output_folder import claim
        from ...workflow.weights import read_weights

        if weights := getattr(args, "weights", None):
            read_weights(weights)  # fail early, before minutes of work
        check_place(args.output, getattr(args, "series", None) or getattr(args, "patients", None) or ())
        claim(args.output)
        return write_table(measure(args), args.output, name)

    return Suite(name, question, add_options, run)


def add_suites(parser: argparse.ArgumentParser, suites: Sequence[Suite]) -> None:
    """Add a subcommand per suite. ``args.suite`` is the selected suite or None, and ``args.suites`` lists all of them
    and their questions, one per line."""
    width = max(len(suite.name) for suite in suites)
    table = "\n".join(f"{suite.name:{width}}  {suite.question}" for suite in suites)
    parser.set_defaults(suite=None, suites=table, quiet=False, verbose=False, threads=None)
    commands = parser.add_subparsers(metavar="NAME", title="suites")
    for suite in suites:
        description = f"{suite.question[:1].upper()}{suite.question[1:]}. {suite.description}"
        # With "resolve", a suite's own option replaces a shared option of the same name.
        p = commands.add_parser(suite.name, help=suite.question, description=description, conflict_handler="resolve")
        add_run_options(p)
        add_output(p, "benchmarks", "the page")
        suite.add_options(p)
        p.set_defaults(suite=suite)


SEEDS = (3001, 3002, 3003)  # random seeds of the results in the docs


def add_seeds(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--seeds",
        type=seed,
        nargs="+",
        default=list(SEEDS),
        metavar="N",
        help="random seeds of the series, or of their motion (default: 3001 3002 3003)",
    )


def add_weights(p: argparse.ArgumentParser) -> None:
    p.add_argument("--weights", type=path, metavar="FILE", help="trained weights (default: the shipped weights)")


def add_seeds_and_weights(p: argparse.ArgumentParser) -> None:
    add_seeds(p)
    add_weights(p)


def bundle_method(weights: str | None, *overlays: str, **settings: Any) -> "BundleMethod":
    """Make the method of inference.yaml, ``overlays`` and ``settings``, with the shipped weights by default."""
    from ...benchmarks.compare import BundleMethod
    from ..configs import bundle_root, config_files

    weights = weights or str(bundle_root() / "models" / "model.pt")
    return BundleMethod(config_files("inference", overlays), weights, settings)
