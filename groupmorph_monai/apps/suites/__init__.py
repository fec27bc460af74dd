"""The suites of ``groupmorph benchmark``, one per file.

Imports that take seconds are inside the functions that need them, as all suites are imported to parse any command.
"""

from .breathing import BREATHING
from .cohort import COHORT
from .contention import CONTENTION
from .full_size import FULL_SIZE
from .kinetics import KINETICS
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
    SYNTHETIC, WARPED, PAPER, LIKELIHOODS, BREATHING, RELIABILITY, VERDICTS, KINETICS, SCALING, FULL_SIZE, MEMORY,
    CONTENTION, COHORT,
)  # fmt: skip
