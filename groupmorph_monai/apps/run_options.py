"""Options that commands share."""

import argparse

from .kinds import Whole
from .option_types import folder, number


def add_run_options(p: argparse.ArgumentParser) -> None:
    """Add ``--quiet``, ``--verbose`` and ``--threads``."""
    group = p.add_argument_group("execution")
    verbosity = group.add_mutually_exclusive_group()
    verbosity.add_argument("--quiet", action="store_true", help="print only warnings and errors")
    verbosity.add_argument(
        "--verbose", action="store_true", help="also print messages of the libraries and the settings used"
    )
    group.add_argument(
        "--threads",
        type=number(Whole(1, 1024)),
        metavar="N",
        help="number of threads (default: the cores available to the process)",
    )


def add_output(p: argparse.ArgumentParser, default: str | None = None, content: str = "the results") -> None:
    """Add ``--output``, a folder for ``content``, which is required without a default."""
    text = f"folder for {content}" + (f" (default: {default})" if default else "")
    p.add_argument("--output", default=default, required=not default, type=folder, metavar="DIR", help=text)
