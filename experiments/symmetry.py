"""Whether the map of an exchanged pair is the inverse (AVSM, Eq. 10 and Fig. 6)."""

import argparse
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from groupmorph_monai.apps.suites.suite import table_suite
from groupmorph_monai.benchmarks.compare import BundleMethod, compare
from groupmorph_monai.evaluation.metrics import inverse_consistency_mm

from .covariance import heart_cases
from .suite import add_seeds_and_minutes, trainings
from .trained_alike import train_model

__all__ = ["SYMMETRY", "asymmetry"]


def asymmetry(cases: Sequence[Mapping], methods: Mapping[str, BundleMethod]) -> list[dict]:
    """A row a method: the mean distance, in voxels, from where the map of each pair and then that of the exchanged pair
    lead to, to where one began."""
    rows = []
    for name, method in methods.items():
        register = method.prepare()
        left = []
        for case in cases:
            there, back = (register(pair)[0] for pair in (case["image"], case["image"].flip(0)))
            left.append(inverse_consistency_mm(there[1:], back[1:], torch.eye(4)))
        rows.append({"method": name, "there and back, voxels": float(np.mean(left))})
    return rows


def _measure(args: argparse.Namespace) -> list[dict]:
    base = "models/avsm"
    kinds = {f"symmetry weight {weight:g}": ([base], weight) for weight in (0, 0.1, 1)}
    kinds["symmetric by construction"] = ([base, "modes/pair_wise"], 0)
    methods = {}
    with trainings(args) as (scratch, tell):
        for name, (overlays, weight) in kinds.items():
            train_overlays = (*overlays, "data/hearts")
            methods[name] = train_model(
                scratch / name, args.minutes, overlays, train_overlays, 2, tell, symmetry_weight=weight
            )
        cases = heart_cases(args.seeds)
        consistency = {row["method"]: row for row in asymmetry(cases, methods)}
        return [{**row, **consistency.get(row["method"], {})} for row in compare(cases, methods, tell)]


SYMMETRY = table_suite(
    "symmetry", "models/avsm trained with its symmetry loss and without", add_seeds_and_minutes, _measure
)
