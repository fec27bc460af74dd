"""How it is trained and used: inferers and what hangs on the engines."""

from .handlers import EpochSeed, GradientClip, LossTerms, resume
from .inferers import RegistrationInferer
from .refinement import Refinement

__all__ = ["EpochSeed", "GradientClip", "LossTerms", "Refinement", "RegistrationInferer", "resume"]
