"""The suites of ``groupmorph benchmark``, each with its question, options and run.

Heavy imports are deferred until a suite runs.
"""

from .accuracy import BREATHING, LIKELIHOODS, SYNTHETIC, WARPED
from .confidence import KINETICS, RELIABILITY, VERDICTS
from .cost import COHORT, CONTENTION, FULL_SIZE, MEMORY, SCALING
from .paper import PAPER

__all__ = ["SUITES"]

SUITES = (
    SYNTHETIC,
    WARPED,
    PAPER,
    LIKELIHOODS,
    BREATHING,
    RELIABILITY,
    VERDICTS,
    KINETICS,
    SCALING,
    FULL_SIZE,
    MEMORY,
    CONTENTION,
    COHORT,
)
