"""Recovery of known affine motion by one or more passes of an affine network (AVSM, Section 2.1)."""

import argparse
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from groupmorph_monai.apps.suites.suite import table_suite
from groupmorph_monai.benchmarks.compare import compare
from groupmorph_monai.data.phantoms.affine_phantom import make_affine_phantom
from groupmorph_monai.data.series import Frame
from groupmorph_monai.space.affine import apply_affine
from groupmorph_monai.space.sampling import voxel_grid
from groupmorph_monai.workflow.affine_alignment import GroupAffine

from .suite import add_seeds_and_minutes, trainings
from .trained_alike import refined


def affine_cases(seeds: Iterable[int], **options: object) -> list[dict]:
    """Make cases for `compare`: a phantom per seed.

    Args:
        seeds: random seeds of the phantoms.
        options: options of `make_affine_phantom`.
    """
    return [{"name": f"affine {seed}", **make_affine_phantom(seed, **options)} for seed in seeds]


def align_by_steps(images: Tensor) -> Tensor:
    """Align images by `GroupAffine`, the counterpart of the network by optimisation.

    Args:
        images: ``(K, *S)``.

    Returns:
        Displacements ``(K, 3, *S)``, voxels.
    """
    maps = GroupAffine("affine")([Frame(volume.numpy(), np.eye(4), "phantom") for volume in images]).maps
    grid = voxel_grid(images.shape[1:], images)
    return torch.stack([apply_affine(m, grid) for m in maps.to(images)]) - grid


def _measure(args: argparse.Namespace) -> list[dict]:
    base, data = "models/avsm_affine", "data/affine_phantoms"
    options = {"learning_rate": 2e-3, "phantoms_training": 100}
    with trainings(args) as training:
        # As in the paper, train with one pass, then with three.
        for passes, time_share in ((1, 0.15), (3, 0.85)):
            part = replace(training, minutes=time_share * training.minutes)
            trained = part.train("affine", [base], (base, data), 3, passes=passes, **options)
        steps = {
            f"{n} step{'s' * (n > 1)}": replace(trained, settings={**trained.settings, "passes": n})
            for n in (1, 2, 3, 5, 7)
        }
        steps["7 steps, refined"] = refined(steps["7 steps"], [base, data])
        return compare(affine_cases(args.seeds), {**steps, "initial alignment": align_by_steps}, training.progress)


AFFINE = table_suite(
    "affine",
    "errors of affine motion after 1 to 7 passes of models/avsm_affine, and after the default initial alignment",
    add_seeds_and_minutes,
    _measure,
)
