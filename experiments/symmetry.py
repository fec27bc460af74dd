"""Inverse consistency under exchange of a pair's images (AVSM, Eq. 10 and Fig. 6)."""

import argparse
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from groupmorph_monai.apps.suites.suite import table_suite
from groupmorph_monai.benchmarks.compare import BundleMethod, compare
from groupmorph_monai.evaluation.metrics import inverse_consistency_mm
from groupmorph_monai.space.field import DisplacementField

from .covariance import heart_cases
from .suite import add_seeds_and_minutes, trainings


def asymmetry(cases: Sequence[Mapping], methods: Mapping[str, BundleMethod]) -> list[dict]:
    """Measure the inverse consistency of each pair's map with that of the exchanged pair.

    Returns:
        A row per method: mean displacement of the two maps composed, in voxels.
    """
    rows = []
    for name, method in methods.items():
        register = method.prepare()
        errors = []
        for case in cases:
            orders = (register(pair)[0][None, 1:] for pair in (case["image"], case["image"].flip(0)))
            errors.append(inverse_consistency_mm(*map(DisplacementField.on_voxels, orders), torch.eye(4)))
        rows.append({"method": name, "composition of both orders, voxels": float(np.mean(errors))})
    return rows


def _measure(args: argparse.Namespace) -> list[dict]:
    base = "models/avsm"
    kinds = {f"symmetry weight {weight:g}": ([base], weight) for weight in (0, 0.1, 1)}
    kinds["symmetric by construction"] = ([base, "modes/pair_wise"], 0)
    methods = {}
    with trainings(args) as training:
        for name, (overlays, weight) in kinds.items():
            methods[name] = training.train(name, overlays, (*overlays, "data/hearts"), 2, symmetry_weight=weight)
        cases = heart_cases(args.seeds)
        consistency = {row["method"]: row for row in asymmetry(cases, methods)}
        return [{**row, **consistency.get(row["method"], {})} for row in compare(cases, methods, training.progress)]


SYMMETRY = table_suite(
    "symmetry", "models/avsm trained with and without its symmetry loss", add_seeds_and_minutes, _measure
)
