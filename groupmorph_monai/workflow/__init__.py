"""How it is trained and used: inferers and what hangs on the engines."""

from .handlers import EpochSeed, GradientClip, LossTerms, resume
from .inferers import RegistrationInferer

__all__ = ["EpochSeed", "GradientClip", "LossTerms", "RegistrationInferer", "resume"]
