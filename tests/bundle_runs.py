"""Runs of the bundle's configs by MONAI, small enough for tests, and what they write."""

from pathlib import Path

import numpy as np
import torch
from monai.bundle import run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from groupmorph_monai.benchmarks.cases import with_landmarks_mm
from groupmorph_monai.data.writing.applying import apply_field_to_points

BUNDLE = Path(__file__).parents[1] / "bundle"
# A training on phantoms that takes seconds, and the widths of a network for it.
TINY = {
    "phantom_size_voxels": [20, 20, 20],
    "patch_size_voxels": [16, 16, 16],
    "phantom_max_motion_voxels": 2.0,
    "phantoms_training": 2,
    "phantoms_validation": 1,
    "integration_steps": 2,
    "max_iterations": 4,
    "iterations_per_epoch": 2,
}
NARROW = {"encoder_channels": [3, 4, 5, 6], "features": [2, 3, 3, 3], "hidden_channels": 4, "updates": [1, 1, 1, 1, 0]}


def network_settings(arguments):
    """Make settings that replace arguments of the config's network."""
    return {f"network_def#{name}": value for name, value in arguments.items()}


def config_paths(*names):
    return [str(BUNDLE / "configs" / f"{name}.yaml") for name in names]


def run_config(run_id, *names, **options):
    """Run the configs of these names, as ``python -m monai.bundle run`` does."""
    run(run_id, config_file=config_paths(*names), bundle_root=str(BUNDLE), **options)


def read_scalars(folder, name):
    """Read the steps and values of a TensorBoard curve."""
    events = EventAccumulator(str(folder / "tensorboard")).Reload().Scalars(name)
    return [event.step for event in events], [event.value for event in events]


def last_weights(folder):
    """Load the weights of the last checkpoint of a training."""
    return torch.load(max(folder.glob("checkpoint_epoch=*.pt")), weights_only=True)["network"]


def distances_mm(phantom, folder, number=3):
    """Compute the mean distance of the landmarks of the other timepoints from those of the first, before and after
    mapping them there by the written fields."""
    points = list(with_landmarks_mm(phantom)["landmarks_mm"].numpy()[:number])
    common = [apply_field_to_points(folder / f"inverse_ddf_0{k}.nii.gz", p) for k, p in enumerate(points)]
    carried = apply_field_to_points(folder / "ddf_00.nii.gz", np.concatenate(common[1:]))
    fixed = np.tile(points[0], (number - 1, 1))
    return [np.linalg.norm(p - fixed, axis=1).mean() for p in (np.concatenate(points[1:]), carried)]
