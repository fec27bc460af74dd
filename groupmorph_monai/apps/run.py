"""Run a config of the bundle with overlays and settings, after checking them."""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow

from ..data.reading.checks import check_dataset
from ..errors import InputError
from ..workflow.free_memory import available_memory_gb
from ..workflow.literal import literal
from ..workflow.memory import keep_freed_memory
from ..workflow.weights import read_weights
from .configs import bundle_root, config_files, overlay_names, read_configs
from .overlays import check_overlays, check_used
from .setting_values import check_settings, named_settings, parse_settings, read_settings, setting_value

# Peak memory of generating a phantom, per voxel (measured at 96 x 96 x 96 voxels).
_PHANTOM_BYTES, _PHANTOM_BYTES_PER_TIMEPOINT = 100, 70
_PATCH_BYTES = 16  # per voxel and timepoint: image and displacements, a part of what training needs
_LEAST_BODY_VOXELS = 8  # minimum size of a phantom's body, between its margins and beyond its motion on both sides

logger = logging.getLogger(__name__)
logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)  # it warns about the way it is called here


def checked_run(
    config: str,
    overlays: Sequence[str] = (),
    settings: Sequence[str] | Mapping[str, object] = (),
    device: str | torch.device | None = None,
    **overrides: object,
) -> tuple[list[str], dict[str, object]]:
    """Collect and check the config files and values of a run.

    Args:
        config: name of the base config.
        overlays: names of shipped overlays, or YAML files of the user's own settings.
        settings: ``NAME=VALUE`` as typed, or values by name.
        device: PyTorch device; None for the GPU, or the CPU if there is none.
        overrides: values that replace those of the config; None keeps the config's value.

    Returns:
        The config files, and the values that replace theirs, marked as data for ConfigParser.

    Raises:
        InputError: If the input is invalid; with a one-line message.
    """
    shipped, own = split_overlays(overlays)
    files = config_files(config, shipped)
    check_overlays(config, shipped)
    of_files = {file: read_settings(file, config, files) for file in own}
    if isinstance(settings, Mapping):
        chosen = named_settings(settings, config, files)
    else:
        chosen = parse_settings(settings, config, files)
        _check_contradictions(chosen, overrides)
    values: dict[str, Any] = {name: value for content in of_files.values() for name, value in content.items()}
    values |= {name: value for name, value in overrides.items() if value is not None} | chosen
    all_values = {**read_configs(files), **values}
    for file, content in of_files.items():
        check_used(content, config, files, f"--overlay {file}: ", all_values)
    check_used(chosen, config, files, "settings: " if isinstance(settings, Mapping) else "--set ", all_values)
    check_settings(all_values)
    _check_held_out(chosen, all_values)
    _check_inputs(config, values, all_values)
    if device is not None:
        values["device"] = checked_device(device)
    if config == "inference":
        values["overlays"] = [*shipped, *map(str, own)]  # for the report
    values["bundle_root"] = str(bundle_root())
    return files, {name: literal(value) for name, value in values.items()}


def _check_inputs(config: str, values: Mapping[str, Any], all_values: Mapping[str, object]) -> None:
    """Check the weights, the data set or the phantoms of a run, and whether training patches fit into memory.

    Args:
        values: values that replace those of the config.
        all_values: these and those of the config.
    """
    if "weights" in values:
        read_weights(values["weights"])
    if config == "train":
        _check_patches(all_values)
    if "dataset_dir" not in values:
        _check_phantoms(all_values)
        return
    names = ("timepoints_least", "series_description", "reference", "surface_structure")
    least, pattern, reference, structure = (setting_value(all_values, name) for name in names)
    check_dataset(values["dataset_dir"], least or 2, pattern, reference, "loss#surfaces" in all_values, structure)


def _check_held_out(chosen: Mapping[str, object], values: Mapping[str, object]) -> None:
    """Refuse a validation series where all series are measured, as `evaluate` does by default."""
    if chosen.get("held_out") is not None and "split" in values and setting_value(values, "split") is None:
        raise InputError(
            f"--set held_out: expected a choice of split, got {chosen['held_out']!r} and all series; add --set "
            "split=validation to measure this series alone"
        )


def _check_patches(values: Mapping[str, object]) -> None:
    """Refuse training patches that do not fit into memory, to whose size smaller scans are padded."""
    size, timepoints = setting_value(values, "patch_size_voxels"), setting_value(values, "timepoints_least") or 2
    needed_gb = math.prod(size or ()) * _PATCH_BYTES * timepoints / 1e9
    if needed_gb > (available_gb := available_memory_gb()):
        raise InputError(
            f"--set patch_size_voxels: expected patches that fit into {available_gb:.1f} GB of memory, got {size}, "
            f"which need more than {needed_gb:.1f} GB; choose a smaller size"
        )


def _check_phantoms(values: Mapping[str, object]) -> None:
    """Refuse phantoms with too few timepoints, that do not fit into memory, or are too small for their motion."""
    names = ("phantom_size_voxels", "phantom_timepoints", "phantom_max_motion_voxels", "phantom_margin_voxels")
    size, timepoints, motion, margin = (setting_value(values, name) for name in names)
    least = setting_value(values, "timepoints_least")
    if timepoints is not None and least is not None and timepoints < least:
        raise InputError(
            f"--set timepoints_least: expected at most phantom_timepoints, {timepoints}, got {least}; choose a smaller "
            "number"
        )
    if size is None:
        return
    needed_gb = math.prod(size) * (_PHANTOM_BYTES + _PHANTOM_BYTES_PER_TIMEPOINT * (timepoints or 2)) / 1e9
    if needed_gb > (available_gb := available_memory_gb()):
        raise InputError(
            f"--set phantom_size_voxels: expected phantoms that fit into {available_gb:.1f} GB of memory, got {size} "
            f"with {timepoints} timepoints, which need {needed_gb:.1f} GB; choose a smaller size"
        )
    if motion is not None and min(size) < 2 * motion + _LEAST_BODY_VOXELS:
        raise InputError(
            f"--set phantom_max_motion_voxels: expected less than half the size of the phantoms, {size}, got {motion:g}"
        )
    if margin is not None and min(size) < 2 * margin + _LEAST_BODY_VOXELS:
        raise InputError(
            f"--set phantom_margin_voxels: expected margins that leave {_LEAST_BODY_VOXELS} voxels of the phantoms, "
            f"{size}, got {margin}; choose a smaller margin"
        )


def _check_contradictions(typed: Mapping[str, object], overrides: Mapping[str, object]) -> None:
    for name, value in typed.items():
        if overrides.get(name) not in (None, value):
            raise InputError(
                f"--set {name}: conflicts with the option for the same setting: {value!r} and {overrides[name]!r}; "
                "omit one"
            )


def run_bundle(
    run_id: str,
    config: str,
    overlays: Sequence[str] = (),
    settings: Sequence[str] | Mapping[str, object] = (),
    device: str | torch.device | None = None,
    **overrides: object,
) -> None:
    """Run a config of the bundle.

    Args:
        run_id: MONAI's name of the run. The other arguments are those of `checked_run`.
    """
    files, values = checked_run(config, overlays, settings, device, **overrides)
    logger.debug("Running %s with %s", files, values)
    workflow = ConfigWorkflow(config_file=files, run_id=run_id, logging_file=False, **values)
    keep_freed_memory()
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def split_overlays(overlays: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Separate the names of shipped overlays, also those given as paths, from the user's own files."""
    names, shipped, own = overlay_names(), [], []
    for name in overlays:
        file = next((f for f in (Path(name), Path(f"{name}.yaml")) if name and f.is_file()), None)
        if file is None or name in names:
            shipped.append(name)
        elif same := _shipped_name(file):
            shipped.append(same)
        else:
            own.append(file)
    return shipped, own


def _shipped_name(file: Path) -> str | None:
    """Name the shipped overlay of which ``file`` is an unchanged copy, or return None."""
    name = "/".join(file.resolve().with_suffix("").parts[-2:])
    shipped = bundle_root() / "configs" / f"{name}.yaml"
    return name if shipped.is_file() and shipped.read_bytes() == file.read_bytes() else None


def checked_device(name: str | torch.device) -> torch.device:
    """Return a device by its name.

    Raises:
        InputError: If PyTorch has no such device.
    """
    try:
        device = torch.device(name)
        count = torch.get_device_module(device).device_count()
    except (RuntimeError, TypeError, ValueError, OverflowError):
        count = 0
    if not count or (device.index or 0) >= count:
        raise InputError(f"--device: expected a device available to PyTorch, got {name}; use cpu")
    return torch.device("cpu") if device.type == "cpu" else device
