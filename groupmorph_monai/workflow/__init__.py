"""How it is trained and used: inferers and what hangs on the engines."""

from .handlers import EpochSeed, GradientClip, LossTerms, resume
from .inferers import RegistrationInferer, prepare_series
from .initial import AlignInitiald, ComposeInitiald
from .memory import keep_freed_memory
from .refinement import Refinement

__all__ = [
    "AlignInitiald",
    "ComposeInitiald",
    "EpochSeed",
    "GradientClip",
    "LossTerms",
    "Refinement",
    "RegistrationInferer",
    "keep_freed_memory",
    "prepare_series",
    "resume",
]
