"""How it is trained and used: inferers and what hangs on the engines."""

from .affine_refinement import AffineRefinement
from .codes import CodesOf, PriorCodes
from .handlers import EpochOfPrior, EpochSeed, GradientClip, LossTerms, resume
from .inferers import RegistrationInferer, native_bf16, prepare_series
from .initial import AlignInitiald
from .memory import keep_freed_memory
from .refinement import Refinement
from .registration import ComposeTransformsd, timepoint_transforms

__all__ = [
    "AffineRefinement",
    "AlignInitiald",
    "CodesOf",
    "ComposeTransformsd",
    "EpochOfPrior",
    "EpochSeed",
    "GradientClip",
    "LossTerms",
    "PriorCodes",
    "Refinement",
    "RegistrationInferer",
    "keep_freed_memory",
    "native_bf16",
    "prepare_series",
    "resume",
    "timepoint_transforms",
]
