"""Contracts that every linear operator, likelihood, prior, transformation and alignment must fulfil.

A test class inherits the tests of its contract. It supplies the object to be tested, ``subject``, a dense or
closed-form ``oracle``, and tolerances if its own differ from those of the contract:
``tolerances = {**LikelihoodContract.tolerances, "gradient": (1e-3, 0.0)}``.
"""

from .base import TIMEPOINTS, SeriesContract, another_order, dense_laplacian, missing_contracts, random
from .likelihood import CalibratedContract, LikelihoodContract, along, noisy_series
from .prior import PriorContract, VelocityPriorContract
from .space import AlignmentContract, LinearOperatorContract, TransformationContract

__all__ = [
    "TIMEPOINTS",
    "AlignmentContract",
    "CalibratedContract",
    "LikelihoodContract",
    "LinearOperatorContract",
    "PriorContract",
    "SeriesContract",
    "TransformationContract",
    "VelocityPriorContract",
    "along",
    "another_order",
    "dense_laplacian",
    "missing_contracts",
    "noisy_series",
    "random",
]
