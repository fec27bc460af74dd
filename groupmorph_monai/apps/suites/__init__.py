"""The suites of ``groupmorph benchmark``, one file each with its question, options and run.

Heavy imports are deferred until a suite runs.
"""

from .breathing import BREATHING
from .cohort import COHORT
from .contention import CONTENTION
from .full_size import FULL_SIZE
from .likelihoods import LIKELIHOODS
from .memory import MEMORY
from .paper import PAPER
from .reliability import RELIABILITY
from .scaling import SCALING
from .synthetic import SYNTHETIC
from .verdicts import VERDICTS
from .warped import WARPED

__all__ = ["SUITES"]

SUITES = (
    SYNTHETIC,
    WARPED,
    PAPER,
    LIKELIHOODS,
    BREATHING,
    RELIABILITY,
    VERDICTS,
    SCALING,
    FULL_SIZE,
    MEMORY,
    CONTENTION,
    COHORT,
)
