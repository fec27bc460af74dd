"""Parse the settings that a user provides, as literals, and check them against their declarations."""

import functools
import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError
from .configs import config_files, overlay_names, read_configs
from .settings import SETTINGS
from .suggestions import suggestion

_HINT = "see 'groupmorph settings'"
# Entries of the configs that are chosen by options.
_OPTIONS = {
    "dataset_dir": "--dataset",
    "device": "--device",
    "mask": "--mask",
    "output_dir": "--output",
    "region": "--region",
    "series": "FILES",
    "weights": "--weights",
}
_ABSENT = object()
_PATTERN = re.compile(r"[*%@!`][^'\"]*|\[[^]'\"]+\][^'\"]+")  # text that is not YAML, such as *dyn* or [dD]yn*


class _Literals(yaml.SafeLoader):
    """Read decimal numbers only (in YAML 1.1, 010 is 8, 1:30 is 90, and 1_0 is 10); refuse repeated keys and tags."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        repeated = [name for name in names if names.count(name) > 1]
        if repeated:
            raise yaml.constructor.ConstructorError(None, None, f"{repeated[0]} twice", node.start_mark)
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node | None:
        event = self.peek_event()
        if getattr(event, "tag", None):
            raise yaml.composer.ComposerError(None, None, f"the tag {event.tag}", event.start_mark)
        return super().compose_node(parent, index)


_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_NUMBER_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("int", "float")}
_Literals.yaml_implicit_resolvers = {
    start: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBER_TAGS]
    for start, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Literals.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(?:0|[1-9][0-9]*)\Z"), list("-+0123456789"))
_Literals.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"(?:[-+]?[0-9]*\.[0-9]*(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"),
    list("-+0123456789."),
)


def parse_settings(assignments: Sequence[str], config: str, files: Sequence[str]) -> dict[str, object]:
    """Parse the arguments of ``--set`` and check each value against its declaration.

    Args:
        assignments: ``NAME=VALUE`` as typed; VALUE is a YAML literal, or text that is not YAML, such as ``*dyn*``.
        config: name of the config.
        files: the config and its overlays, whose top-level keys are the names.

    Raises:
        InputError: If a name is unknown or a value is invalid.
    """
    keys = read_configs(files)
    values: dict[str, object] = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set: expected NAME=VALUE, got {reprlib.repr(text)}; {_HINT}")
        _check_name(name, keys, f"{config}.yaml", "--set")
        if not value.strip():  # such as NAME=$VARIABLE with an unset variable; null must be spelled out
            raise InputError(f"--set {name}: expected {SETTINGS[name]}, got {value!r}")
        try:
            parsed = _numbers(yaml.load(value, _Literals))
            if parsed is None and value.strip().lower() not in ("null", "~"):
                raise ValueError  # such as &dyn, an anchor of YAML
        except (yaml.YAMLError, ValueError, RecursionError):
            if not _PATTERN.fullmatch(value):
                raise InputError(f"--set {name}: expected {SETTINGS[name]}, got {reprlib.repr(value)}") from None
            parsed = value
        _check_value(name, parsed, value, "--set ")
        if values.setdefault(name, parsed) != parsed:
            both = " and ".join(map(reprlib.repr, (values[name], value)))
            raise InputError(f"--set {name}: expected one value, got {both}; choose one")
    return values


def read_settings(file: Path, config: str, files: Sequence[str]) -> dict[str, object]:
    """Read a user's own overlay, a YAML file with lines ``NAME: VALUE``, by the same rules as ``--set``.

    Raises:
        InputError: If the file is not YAML of names and valid values.
    """
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _Literals)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:160]
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
            reason = f"{error.problem} in line {error.problem_mark.line + 1}"
        raise InputError(f"--overlay {file}: expected YAML with NAME: VALUE, got {reason}; correct the file") from None
    if not isinstance(content, dict):
        got = "no settings" if content is None else reprlib.repr(content)
        raise InputError(f"--overlay {file}: expected YAML with NAME: VALUE, got {got}; {_HINT}")
    return named_settings(content, config, files, f"--overlay {file}")


def named_settings(
    content: Mapping[str, object], config: str, files: Sequence[str], where: str = "settings"
) -> dict[str, object]:
    """Check values by name as `parse_settings` does.

    Args:
        content: values by name.
        config: name of the config.
        files: the config and its overlays.
        where: prefix of error messages.
    """
    keys, values = read_configs(files), {}
    for name, value in content.items():
        _check_name(str(name), keys, f"{config}.yaml", where)
        values[name] = _numbers(value)
        _check_value(name, values[name], value, f"{where}: ")
    return values


def setting_value(values: Mapping[str, Any], name: str) -> Any:
    """Look up the value of a setting, following references to other settings (``@name``); None if it is not set."""
    value = values.get(name)
    return setting_value(values, value[1:]) if isinstance(value, str) and value.startswith("@") else value


def check_settings(values: Mapping[str, object]) -> None:
    """Check that settings are consistent with each other.

    Args:
        values: all settings of a run, by name.

    Raises:
        InputError: If they are not.
    """
    value = functools.partial(setting_value, values)
    for low, high, strict in (
        ("percentile_lower", "percentile_upper", True),
        ("timepoints_least", "timepoints_most", False),
    ):
        a, b = value(low), value(high)
        if a is not None and b is not None and (a > b or strict and a == b):
            relation = "less than" if strict else "at most"
            raise InputError(f"--set {low}, {high}: expected the first {relation} the second, got {a:g} and {b:g}")
    _check_reference(value("reference"), values.get("alignment"))
    _check_levels(value("refinement_levels_voxels"), value("refinement_iterations"))
    _check_grids(value("initial_alignment_voxels"))
    for sizes, weights_name in (("window_extents", "window_weights"), ("smoothing_widths", "smoothing_weights")):
        _check_weights(sizes, value(sizes), weights_name, value(weights_name))
    weights = [value(f"lambda_{order}") for order in "uvbc"]
    if None not in weights and not any(weights):
        raise InputError("--set lambda_u, lambda_v, lambda_b, lambda_c: expected one above 0, got 0 for all")
    if (value("batch_size") or 1) > 1 and value("timepoints_least") != value("timepoints_most"):
        raise InputError(
            f"--set batch_size: expected 1 for a random number of timepoints, got {value('batch_size')}; set "
            "timepoints_least and timepoints_most to the same number"
        )


def _check_reference(reference: int | None, alignment: object) -> None:
    if reference is not None and isinstance(alignment, dict) and "reference" not in alignment:
        raise InputError(
            f"--set reference: expected null for an alignment to the mean of the scans, got {reference}; use "
            f"--reference {reference} to register, or --overlay modes/all_to_one"
        )


def _check_levels(levels: Sequence[int] | None, iterations: Sequence[int] | None) -> None:
    if levels and iterations and len(levels) != len(iterations):
        raise InputError(
            f"--set refinement_iterations: expected one number for each of the {len(levels)} levels "
            f"{list(levels)}, got {list(iterations)}"
        )
    if levels and sorted(set(levels), reverse=True) != list(levels):
        raise InputError(f"--set refinement_levels_voxels: expected levels from coarse to fine, got {list(levels)}")


def _check_grids(voxels: Sequence[int] | None) -> None:
    if voxels and sorted(voxels) != list(voxels):
        raise InputError(
            f"--set initial_alignment_voxels: expected the coarse grid before the fine one, got {list(voxels)}"
        )


def _check_weights(
    name: str, sizes: Sequence[float] | None, weights_name: str, weights: Sequence[float] | None
) -> None:
    if sizes and weights and (len(sizes) != len(weights) or not any(weights)):
        raise InputError(
            f"--set {weights_name}: expected one weight for each of the {len(sizes)} {name}, and one above 0, got "
            f"{list(weights)}"
        )


_UNITS = {"voxels": "voxels", "mm": "mm", "radians": "radians", "deg": "degrees", "minutes": "minutes", "s": "s"}


def settings_table() -> list[str]:
    """List all settings, one per line: name, unit, range, defaults in the base configs or else in the overlays, and the
    comment of the config."""
    return [
        f"{name:28} {unit:8} {values:58} default: {defaults}  # {purpose}"
        for name, unit, values, defaults, purpose in settings_rows()
    ]


def settings_rows() -> list[tuple[str, str, str, str, str]]:
    """Return the columns of `settings_table` as text."""
    bases, overlays = _bases(), _overlays()
    rows = []
    for name, kind in SETTINGS.items():
        defaults = _defaults(name, bases) or _defaults(name, overlays)
        if defaults.get("evaluate", ()) == defaults.get("inference"):
            defaults.pop("evaluate", None)
        shown = ", ".join(f"{_yaml(value)} ({source})" for source, value in defaults.items())
        unit = next((unit for ending, unit in _UNITS.items() if name.endswith(f"_{ending}")), "-")
        rows.append((name, unit, str(kind), shown, _comment(name)))
    return rows


def _bases() -> dict[str, dict[str, Any]]:
    return {name: read_configs(config_files(name, ())) for name in ("inference", "train", "evaluate")}


def _overlays() -> dict[str, dict[str, Any]]:
    """Read the overlays that the bundle ships, by name."""
    return {name: read_configs(config_files("train", [name])[-1:]) for name in overlay_names()}


@functools.cache
def _config_text() -> str:
    bases = [config_files(name, ())[-1] for name in ("inference", "train", "evaluate")]
    overlays = [config_files("train", [name])[-1] for name in overlay_names()]
    return "\n".join(Path(file).read_text(encoding="utf-8") for file in (*bases, *overlays))


def _comment(name: str) -> str:
    """Return the comment after the first value of a setting in the configs."""
    match = re.search(rf"^ *{re.escape(name)}:[^#\n]* # (.+)$", _config_text(), re.MULTILINE)
    return match[1] if match else ""


def _defaults(name: str, configs: Mapping[str, dict[str, object]]) -> dict[str, object]:
    """Collect the literal values of a setting by config; references and expressions are not defaults."""
    defaults: dict[str, object] = {}
    for source, content in configs.items():
        value = content.get(name, _ABSENT)
        if not (value is _ABSENT or isinstance(value, dict) or isinstance(value, str) and value[:1] in ("@", "$")):
            defaults[source] = value
    return defaults


def _yaml(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


def _check_name(name: str, keys: Mapping[str, object], config: str, where: str) -> None:
    names = [setting for setting in SETTINGS if setting in keys]
    if name in names:
        return
    if name in keys and name in _OPTIONS:
        cure = f"use {_OPTIONS[name]}" if where.startswith("--") else "see help(groupmorph_monai.register)"
    elif name not in SETTINGS and _is_component(keys.get(name.split("#")[0])):
        cure = f"it is a component, which only a config file of 'python -m monai.bundle run' replaces; {_HINT}"
    elif name in keys:
        cure = f"it has no entry in apps/settings.py; {_HINT}"
    elif name in SETTINGS and (bases := [base for base, content in _bases().items() if name in content]):
        cure = f"it is a setting of {' and '.join(f'{base}.yaml' for base in bases)}; omit it"
    elif name in SETTINGS and (overlays := list(_defaults(name, _overlays()))):
        cure = f"it is a setting of --overlay {' or '.join(overlays)}"
    else:
        cure = suggestion(name, names, _HINT)
    raise InputError(f"{where}: expected a setting of {config}, got {reprlib.repr(name)}; {cure}")


def _is_component(content: object) -> bool:
    return isinstance(content, (Mapping, list)) or isinstance(content, str) and content.startswith(("@", "$", "%"))


def _check_value(name: str, value: object, typed: object, where: str) -> None:
    if not SETTINGS[name].accepts(value):
        raise InputError(f"{where}{name}: expected {SETTINGS[name]}, got {reprlib.repr(typed)}")


def _numbers(value: object) -> object:
    """Convert numbers such as 1e-3, which YAML reads as text, and those of NumPy, also inside a list or an array."""
    value = _plain(value)
    return [_number(v) for v in value] if isinstance(value, (list, tuple)) else _number(value)


def _plain(value: object) -> object:
    """Convert a number or an array of NumPy, which is not imported here as it takes long."""
    return value.tolist() if hasattr(value, "tolist") else value


def _number(value: object) -> object:
    value = _plain(value)
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value
