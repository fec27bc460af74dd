"""The settings of the configs: what each may be, declared here once, and what a user gives for it."""

import difflib
import math
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from ..errors import InputError
from .configs import config_files, overlay_names, read_configs
from .kinds import Choice, Flag, Kind, List, Number, OrNone, Whole

__all__ = ["SETTINGS", "check_settings", "parse_settings", "read_settings", "settings_table"]

_SIZE = List(Whole(2, 4096), 3)
_WEIGHT = Number(0, 1e9)
_SHARE = Number(0, 1)
_POSITIVE = Number(0, 1e9, above=True)
_COUNT = Whole(1, 10**9)

SETTINGS: dict[str, Kind] = {
    # series
    "timepoints": OrNone(Whole(2, 10000)),
    "timepoints_least": Whole(2, 10000),
    "timepoints_most": Whole(2, 10000),
    "timepoints_in_order": Flag(),
    "spacing_mm": Choice("auto", other=OrNone(Number(0.1, 1000), List(Number(0.1, 1000), 3))),
    "reference": OrNone(Whole(0, 10000)),
    "initial_alignment": Choice("affine", "rigid", "none"),
    "intensity_least": OrNone(Number(-1e15, 1e15)),
    "percentile_lower": Number(0, 100),
    "percentile_upper": Number(0, 100),
    "percentiles_per_timepoint": Flag(),
    "split": OrNone(Choice("training", "validation")),
    "validation_fraction": _SHARE,
    # phantoms
    "phantoms": Whole(1, 100000),
    "phantoms_training": Whole(1, 100000),
    "phantoms_validation": Whole(1, 100000),
    "phantom_size_voxels": List(Whole(16, 1024), 3),
    "phantom_timepoints": Whole(2, 1000),
    "phantom_max_motion_voxels": Number(0, 1000, above=True),
    "phantom_margin_voxels": Whole(0, 500),
    "phantom_share": Number(0, 0.99),
    "heart_size_voxels": List(Whole(16, 1024), 3),
    "hearts_training": Whole(1, 100000),
    "hearts_validation": Whole(1, 100000),
    # model
    "max_velocity_voxels": Number(0, 1000, above=True),
    "integration_steps": Whole(1, 1000),
    "solver_tolerance_voxels": Number(1e-9, 1),
    "pieces": Whole(1, 100),
    "posterior_smoothing_voxels": Number(0, 100),
    "passes": Whole(1, 100),
    "network_bf16": Flag(),
    "window_size_voxels": OrNone(List(Whole(4, 100000), 3)),
    "window_overlap": Number(0, 0.9),
    "alignment#remove_mean": Flag(),
    "code_size": Whole(1, 10000),
    "velocity_smoothing_voxels": Number(0, 100, above=True),
    "velocity_kernel_voxels": Whole(1, 255),
    "smoothing_widths": List(Number(0, 1, above=True)),
    "smoothing_weights": List(_SHARE),
    "affine_refinement_voxels": List(Whole(8, 1024)),
    "affine_refinement_iterations": Whole(1, 10000),
    # likelihood
    "window_radii_voxels": List(Whole(1, 50)),
    "noise": Number(1e-4, 10),
    "image_noise": Number(1e-4, 10),
    "edge": Number(1e-6, 10),
    "nmi_bins": Whole(4, 1024),
    "nmi_window_bins": Number(0.1, 10),
    "nmi_voxel_fraction": Number(0, 1, above=True),
    "nmi_kind": Choice("uncertainty", "studholme"),
    "correlation_smoothing_voxels": Number(0, 100, above=True),
    "correlation_kernel_voxels": Whole(1, 255),
    "window_extents": List(Number(0, 1, above=True)),
    "window_weights": List(_SHARE),
    "window_step": Number(0, 1, above=True),
    "window_dilation": Whole(1, 100),
    "surface_structure": OrNone(Whole(1, 10**6)),
    "surface_points": Whole(1, 10**6),
    "surface_noise_voxels": Number(0, 1000, above=True),
    "surface_weight": _WEIGHT,
    # prior
    "lambda_u": _WEIGHT,
    "lambda_v": _WEIGHT,
    "lambda_b": _WEIGHT,
    "lambda_c": _WEIGHT,
    "lambda_t": _WEIGHT,
    "momentum_weight": _WEIGHT,
    "adapt_prior": Flag(),
    "independent_share": Number(0, 1, above=True),
    # refinement
    "refinement_levels_voxels": List(Whole(1, 256)),
    "refinement_iterations": List(Whole(0, 10000)),
    "refinement_tolerance": Number(0, 1),
    "refinement_conjugate_steps": Whole(1, 10000),
    "refinement_lattice_voxels": Whole(1, 64),
    "stationary_parts": Flag(),
    # output
    "std_draws": Whole(0, 10000),
    "sample_seed": Whole(0, 2**31 - 1),
    "outside": Choice("zero", "nan", "border"),
    "write_jacobian": Flag(),
    # training
    "patch_size_voxels": List(Whole(4, 1024), 3),
    "bidirectional": Flag(),
    "symmetry_weight": _WEIGHT,
    "kl_weight": _WEIGHT,
    "kl_weight_arguments#gamma": Number(0, 1000),
    "affine_pull": _WEIGHT,
    "affine_pull_decay": _POSITIVE,
    "motion_probability": _SHARE,
    "motion_voxels": Number(0, 1000),
    "motion_zoom": Number(1, 10),
    "affine_motion_probability": _SHARE,
    "affine_probability": _SHARE,
    "affine_rotation_radians": Number(0, math.pi),
    "affine_shift_voxels": Number(0, 1000),
    "affine_scale": Number(0, 0.9),
    "flip_probability": _SHARE,
    "contrast_probability": _SHARE,
    "contrast_curve_probability": _SHARE,
    "contrast_bias": Number(0, 10),
    "contrast_noise": Number(0, 10),
    "max_iterations": _COUNT,
    "max_minutes": OrNone(Number(0, 1e6, above=True)),
    "iterations_per_epoch": _COUNT,
    "warmup_iterations": Whole(0, 10**9),
    "batch_size": Whole(1, 1024),
    "learning_rate": Number(0, 1, above=True),
    "adam_betas": List(Number(0, 0.999999), 2),
    "gradient_clip_norm": _POSITIVE,
    "val_interval": _COUNT,
    "log_interval": _COUNT,
    "amp": Flag(),
    "seed": Whole(0, 2**31 - 1),
    "workers": Whole(0, 1024),
}

_HINT = "'groupmorph settings' lists them"


def parse_settings(given: Sequence[str], config: str, files: Sequence[str]) -> dict[str, object]:
    """Read ``--set NAME=VALUE`` as literals and check each against its declaration.

    Args:
        given: as typed; VALUE is a YAML literal.
        config: the config's name.
        files: the config and its overlays, whose top holds the names.
    Raises: InputError for a name that is none, or a value that is not of its kind.
    """
    known, values = read_configs(files), {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set: expected NAME=VALUE, got {text!r}; {_HINT}")
        _check_name(name, known, f"{config}.yaml", "--set")
        try:
            values[name] = _numbers(yaml.safe_load(value))
        except (yaml.YAMLError, ValueError, RecursionError):
            raise InputError(f"--set {name}: expected {SETTINGS[name]}, got {value!r}") from None
        _check_value(name, values[name], value, "--set ")
    return values


def read_settings(file: Path, config: str, files: Sequence[str]) -> dict[str, object]:
    """Read a user's own overlay, a YAML file of ``NAME: VALUE``, by the rules of ``--set``."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"--overlay {file}: expected YAML of NAME: VALUE, got {reason}; mend the file") from None
    if not isinstance(content, dict):
        raise InputError(f"--overlay {file}: expected YAML of NAME: VALUE, got {reprlib.repr(content)}; {_HINT}")
    known, where = read_configs(files), f"--overlay {file}"
    for name, value in content.items():
        _check_name(str(name), known, f"{config}.yaml", where)
        _check_value(name, _numbers(value), value, f"{where}: ")
    return {name: _numbers(value) for name, value in content.items()}


def check_settings(values: Mapping[str, object]) -> None:
    """Check what settings say together. ``values``: every setting of a run by its name."""

    def value(name: str) -> object:
        found = values.get(name)
        return value(found[1:]) if isinstance(found, str) and found.startswith("@") else found

    for low, high, strict in (
        ("percentile_lower", "percentile_upper", True),
        ("timepoints_least", "timepoints_most", False),
    ):
        a, b = value(low), value(high)
        if a is not None and b is not None and (a > b or strict and a == b):
            raise InputError(f"--set {low}: expected {'less than' if strict else 'at most'} {high}, {b:g}, got {a:g}")
    levels, iterations = value("refinement_levels_voxels"), value("refinement_iterations")
    if levels and iterations and len(levels) != len(iterations):
        raise InputError(
            f"--set refinement_iterations: expected one number for each of the {len(levels)} levels "
            f"{list(levels)}, got {list(iterations)}"
        )
    if levels and sorted(set(levels), reverse=True) != list(levels):
        raise InputError(f"--set refinement_levels_voxels: expected levels from coarse to fine, got {list(levels)}")
    weights = [value(f"lambda_{order}") for order in "uvbc"]
    if None not in weights and not any(weights):
        raise InputError("--set lambda_u, lambda_v, lambda_b, lambda_c: expected one above 0, got 0 for all")
    if (value("batch_size") or 1) > 1 and value("timepoints_least") != value("timepoints_most"):
        raise InputError(
            f"--set batch_size: expected 1 where the number of timepoints is drawn, got {value('batch_size')}; set "
            "timepoints_least and timepoints_most to one number"
        )


def settings_table() -> list[str]:
    """List every setting in a line: name, unit, range, and default in each base config, or else in its overlays."""
    bases = {name: read_configs(config_files(name, ())) for name in ("inference", "train", "evaluate")}
    overlays = {name: read_configs(config_files("train", [name])[-1:]) for name in overlay_names()}
    lines = []
    for name, kind in SETTINGS.items():
        defaults = _defaults(name, bases) or _defaults(name, overlays)
        if defaults.get("evaluate", ()) == defaults.get("inference"):
            defaults.pop("evaluate", None)
        shown = ", ".join(f"{_yaml(value)} ({source})" for source, value in defaults.items())
        unit = next((unit for unit in ("voxels", "mm", "radians", "minutes") if name.endswith(f"_{unit}")), "-")
        lines.append(f"{name:28} {unit:8} {kind!s:58} default: {shown}")
    return lines


def _defaults(name: str, configs: Mapping[str, dict]) -> dict[str, object]:
    """What each config says itself; what it takes from another setting is no default."""
    found = {}
    for source, content in configs.items():
        value = content
        for key in name.split("#"):
            value = value.get(key, "@") if isinstance(value, dict) else "@"
        if not (isinstance(value, str) and value[:1] in ("@", "$")):
            found[source] = value
    return found


def _yaml(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


def _check_name(name: str, known: Mapping, config: str, where: str) -> None:
    if name in SETTINGS and name.split("#")[0] in known:
        return
    names = [setting for setting in SETTINGS if setting.split("#")[0] in known]
    nearest = difflib.get_close_matches(name, names, 1)
    cure = f"did you mean {nearest[0]}?" if nearest else _HINT
    raise InputError(f"{where}: expected a setting of {config}, got {name!r}; {cure}")


def _check_value(name: str, value: object, typed: object, where: str) -> None:
    if not SETTINGS[name].accepts(value):
        raise InputError(f"{where}{name}: expected {SETTINGS[name]}, got {reprlib.repr(typed)}")


def _numbers(value: object) -> object:
    """Numbers such as 1e-3, which YAML takes for text, also in a list."""
    return [_number(v) for v in value] if isinstance(value, list) else _number(value)


def _number(value: object) -> object:
    try:
        return float(value) if isinstance(value, str) and value[-1:].isdigit() else value
    except ValueError:
        return value
