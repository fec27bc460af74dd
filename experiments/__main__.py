"""Command line of the experiments."""

import sys
from collections.abc import Sequence

from groupmorph_monai.apps.command_line import run_command
from groupmorph_monai.apps.option_parser import OptionParser
from groupmorph_monai.apps.suites.suite import add_suites

from .affine import AFFINE
from .codes import CODES
from .covariance import COVARIANCE
from .integrators import INTEGRATORS
from .models import MODELS
from .shapes import SHAPES
from .start import START
from .surfaces import SURFACES
from .symmetry import SYMMETRY

EXPERIMENTS = (MODELS, SHAPES, INTEGRATORS, CODES, SURFACES, AFFINE, SYMMETRY, COVARIANCE, START)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run an experiment, or list all experiments.

    Args:
        arguments: command-line arguments; None for the arguments of the process.

    Returns:
        The exit code of `run_command`.
    """
    parser = OptionParser(
        prog="python -m experiments", description="Experiments on the models. Without a name, lists them."
    )
    parser.set_defaults(command="benchmark")
    add_suites(parser, EXPERIMENTS)
    arguments = sys.argv[1:] if arguments is None else arguments
    return run_command(parser.parse_args(arguments), arguments)


if __name__ == "__main__":
    sys.exit(main())
