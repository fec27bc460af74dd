"""Command-line options and scratch folders shared by the experiments."""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from groupmorph_monai.apps.kinds import Number
from groupmorph_monai.apps.option_types import number
from groupmorph_monai.apps.progress import progress_log
from groupmorph_monai.apps.suites.suite import add_seeds

from .trained_alike import Trainings


def add_minutes(p: argparse.ArgumentParser) -> None:
    """Add ``--minutes``."""
    p.add_argument(
        "--minutes",
        type=number(Number(0, 1e5, above=True)),
        default=10.0,
        metavar="N",
        help="minutes of training per model (default: 10)",
    )


def add_seeds_and_minutes(p: argparse.ArgumentParser) -> None:
    """Add ``--seeds`` and ``--minutes``."""
    add_seeds(p)
    add_minutes(p)


@contextmanager
def trainings(args: argparse.Namespace) -> Iterator[Trainings]:
    """Yield trainings in a scratch folder, whose progress is printed and logged to ``NAME.log``."""
    log = Path(args.output) / f"{args.suite.name}.log"
    with tempfile.TemporaryDirectory() as scratch, progress_log(log) as progress:
        yield Trainings(Path(scratch), args.minutes, progress)
