"""Training and registration: inferers, handlers for MONAI's engines, and estimates of memory and time."""

from .affine_alignment import AffineSchedule
from .affine_refinement import AffineRefinement
from .batches import prepare_series
from .checkpoints import BestWeights, Checkpoints
from .codes import CodeInferer, DonorCodes, PriorCodes
from .cost import RegistrationCost
from .handlers import EpochSeed, GradientClip, ListedOutput, LossTerms, StopAfter, Validation, warmup_and_cosine
from .inferers import RegistrationInferer, native_bf16
from .initial import AlignInitiald
from .literal import literal
from .many_scans import storage_for
from .memory import keep_freed_memory
from .network_affine import NetworkAffine
from .network_passes import NetworkPasses
from .precision import LikeliestWeights
from .refinement import Refinement
from .registration import ComposeTransformsd, timepoint_transforms
from .sampling import RandomDraws
from .schedule import Schedule
from .static_regions import StaticRegions
from .training import BackwardComparison, ExchangedPairs, InverseFields, StepwiseTrainingInferer, TrainingInferer
from .training_folder import claim_for_training
from .weights import WeightsLoader, read_weights

__all__ = [
    "AffineRefinement",
    "AffineSchedule",
    "AlignInitiald",
    "BackwardComparison",
    "BestWeights",
    "Checkpoints",
    "CodeInferer",
    "DonorCodes",
    "ComposeTransformsd",
    "EpochSeed",
    "ExchangedPairs",
    "GradientClip",
    "InverseFields",
    "LikeliestWeights",
    "ListedOutput",
    "LossTerms",
    "NetworkAffine",
    "NetworkPasses",
    "PriorCodes",
    "RandomDraws",
    "Refinement",
    "RegistrationCost",
    "RegistrationInferer",
    "Schedule",
    "StaticRegions",
    "StepwiseTrainingInferer",
    "StopAfter",
    "TrainingInferer",
    "Validation",
    "WeightsLoader",
    "claim_for_training",
    "keep_freed_memory",
    "literal",
    "native_bf16",
    "prepare_series",
    "read_weights",
    "storage_for",
    "timepoint_transforms",
    "warmup_and_cosine",
]
