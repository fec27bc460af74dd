"""The options that every command has."""

import argparse

from .kinds import Whole
from .option_types import number

__all__ = ["add_run_options"]


def add_run_options(p: argparse.ArgumentParser) -> None:
    """Add ``--quiet``, ``--verbose`` and ``--threads``."""
    group = p.add_argument_group("how it runs")
    words = group.add_mutually_exclusive_group()
    words.add_argument("--quiet", action="store_true", help="print nothing but warnings and errors")
    words.add_argument(
        "--verbose", action="store_true", help="also print the libraries' messages and the settings used"
    )
    group.add_argument(
        "--threads",
        type=number(Whole(1, 1024), whole=True),
        metavar="N",
        help="threads to run (default: the cores that the process may use)",
    )
