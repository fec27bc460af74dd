"""What a user gives for the settings: literals, checked against what each may be."""

import difflib
import functools
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from ..errors import InputError
from .configs import config_files, overlay_names, read_configs
from .settings import SETTINGS

__all__ = ["check_settings", "named_settings", "parse_settings", "read_settings", "setting_value", "settings_table"]

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
    return named_settings(content, config, files, f"--overlay {file}")


def named_settings(
    content: Mapping[str, object], config: str, files: Sequence[str], where: str = "settings"
) -> dict[str, object]:
    """Check values by name as `parse_settings` does. ``where`` begins the message of an InputError."""
    known, values = read_configs(files), {}
    for name, value in content.items():
        _check_name(str(name), known, f"{config}.yaml", where)
        values[name] = _numbers(value)
        _check_value(name, values[name], value, f"{where}: ")
    return values


def setting_value(values: Mapping[str, object], name: str) -> object:
    """The value of a setting, which may be that of another one (``@name``); None where there is none."""
    found = values.get(name)
    return setting_value(values, found[1:]) if isinstance(found, str) and found.startswith("@") else found


def check_settings(values: Mapping[str, object]) -> None:
    """Check what settings say together. ``values``: every setting of a run by its name."""
    value = functools.partial(setting_value, values)
    for low, high, strict in (
        ("percentile_lower", "percentile_upper", True),
        ("timepoints_least", "timepoints_most", False),
    ):
        a, b = value(low), value(high)
        if a is not None and b is not None and (a > b or strict and a == b):
            raise InputError(f"--set {low}: expected {'less than' if strict else 'at most'} {high}, {b:g}, got {a:g}")
    _check_levels(value("refinement_levels_voxels"), value("refinement_iterations"))
    weights = [value(f"lambda_{order}") for order in "uvbc"]
    if None not in weights and not any(weights):
        raise InputError("--set lambda_u, lambda_v, lambda_b, lambda_c: expected one above 0, got 0 for all")
    if (value("batch_size") or 1) > 1 and value("timepoints_least") != value("timepoints_most"):
        raise InputError(
            f"--set batch_size: expected 1 where the number of timepoints is drawn, got {value('batch_size')}; set "
            "timepoints_least and timepoints_most to one number"
        )


def _check_levels(levels: Sequence[int] | None, iterations: Sequence[int] | None) -> None:
    if levels and iterations and len(levels) != len(iterations):
        raise InputError(
            f"--set refinement_iterations: expected one number for each of the {len(levels)} levels "
            f"{list(levels)}, got {list(iterations)}"
        )
    if levels and sorted(set(levels), reverse=True) != list(levels):
        raise InputError(f"--set refinement_levels_voxels: expected levels from coarse to fine, got {list(levels)}")


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
    """What each config says itself; what it takes from another setting or computes is no default."""
    found = {}
    for source, content in configs.items():
        value = content
        for key in name.split("#"):
            value = value.get(key, "@") if isinstance(value, dict) else "@"
        if not (isinstance(value, dict) or isinstance(value, str) and value[:1] in ("@", "$")):
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
