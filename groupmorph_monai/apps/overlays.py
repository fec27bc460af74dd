"""Check that the overlays of a run fit its config and each other."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.reference_resolver import ReferenceResolver

from ..errors import InputError
from .configs import config_files, read_configs
from .setting_values import setting_value
from .settings import SETTINGS

_SWITCH = re.compile(r"\$not @(\w+)")
_ALIGNMENT_SETTINGS = {"initial_alignment_voxels", "initial_alignment_iterations"}
_DRAW_SETTINGS = {"network_std_factor", "posterior_smoothing_voxels"}
# Folders of mutually exclusive overlays, with the options that select them.
_ALTERNATIVES = {
    "effort": " (--effort and --no-refine select from effort/)",
    "integrators": "",
    "likelihoods": "",
    "models": "",
    "modes": " (--reference K selects modes/all_to_one)",
}


def check_overlays(config: str, overlays: Sequence[str]) -> None:
    """Check shipped overlays.

    Args:
        config: name of the base config.
        overlays: names of the overlays, in order.

    Raises:
        InputError: If two overlays are mutually exclusive, or if one has no effect, as it changes only components that
            this config does not have, such as those of training, or settings that the run does not use.
    """
    base = read_configs(config_files(config, ()))
    contents = {name: read_configs(config_files(config, (name,))[-1:]) for name in overlays}
    chosen: dict[str, str] = {}
    for name, content in contents.items():
        kind = name.partition("/")[0]
        # Among the modes, only alignments are mutually exclusive.
        alternative = kind in _ALTERNATIVES and (kind != "modes" or "alignment" in content)
        if alternative and chosen.setdefault(kind, name) != name:
            wanted = "one alignment" if kind == "modes" else "one"
            raise InputError(
                f"--overlay: expected {wanted} of {kind}/, got {chosen[kind]} and {name}; omit one{_ALTERNATIVES[kind]}"
            )
        parts = {key: key.split("#")[0] for key in content}
        _check_unused(config, name, [part for key, part in parts.items() if part != key and part not in base | content])
    _check_priors(base, contents)
    used = used_names(config_files(config, overlays), {})
    for name, content in contents.items():
        unused = [key for key in content if key.split("#")[0] not in used]
        if all(key in unused or base.get(key, ...) == value for key, value in content.items()):
            _check_unused(config, name, unused)


def _check_unused(config: str, overlay: str, unused: Sequence[str]) -> None:
    if unused:
        raise InputError(
            f"--overlay {overlay}: expected an overlay for {config}.yaml, got one that changes {unused[0]}, which "
            f"{config}.yaml does not use; omit it"
        )


def _check_priors(base: Mapping[str, Any], contents: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse an overlay of priors/, which modifies the default prior, for a model with a prior of another kind."""
    default = base["prior"]["_target_"]
    chosen = [name for name in contents if name.startswith("priors/")]
    own = [
        name
        for name, content in contents.items()
        if name.startswith("models/")
        and {content[key]["_target_"] for key in ("prior", "training_prior") if key in content} - {default}
    ]
    if chosen and own:
        raise InputError(
            f"--overlay {chosen[0]}: expected a model with the default prior, got {own[0]}, which has its own; omit one"
        )


def check_used(
    settings: Iterable[str], config: str, files: Sequence[str], where: str, values: Mapping[str, object]
) -> None:
    """Refuse settings without effect, such as those of the default likelihood if an overlay replaces it.

    Args:
        settings: names that the user has set.
        config: name of the base config.
        files: the config and its overlays, in order.
        where: prefix of error messages.
        values: all settings of the run by name, some of which switch components off.

    Raises:
        InputError: If a setting has no effect.
    """
    used = used_names(files, values)
    if setting_value(values, "initial_alignment") not in ("affine", "rigid"):
        used -= _ALIGNMENT_SETTINGS
    if "refinement" in used or ("std_draws" in values and not setting_value(values, "std_draws")):
        used -= _DRAW_SETTINGS
    for name in settings:
        if name not in used:
            raise InputError(
                f"{where}{name}: expected a setting with an effect, got one that {config}.yaml does not use with these "
                "overlays and settings; omit it"
            )


def used_names(files: Sequence[str], values: Mapping[str, object]) -> set[str]:
    """List the names at the top level of a config that its run refers to, directly or by other names.

    Args:
        files: the config and its overlays, in order.
        values: settings by name; components that they disable are ignored.
    """
    parser = ConfigParser()
    parser.update(read_configs(files))
    content: Mapping[str, object] = parser.get()
    used: set[str] = set()
    pending = {"initialize", "run"}
    while pending:
        name = pending.pop()
        used.add(name)
        references = ReferenceResolver.find_refs_in_config(_without_disabled(content[name], values), name)
        pending |= {reference.split("::")[0] for reference in references} & content.keys() - used
    return used


def _without_disabled(part: object, values: Mapping[str, object]) -> object:
    """Remove the arguments of components that a setting disables, as ``_disabled_: $not @adapt_prior`` does."""
    if isinstance(part, list):
        return [_without_disabled(entry, values) for entry in part]
    if not isinstance(part, dict):
        return part
    switch = _SWITCH.fullmatch(str(part.get("_disabled_")))
    if switch and switch[1] in SETTINGS and switch[1] in values and not setting_value(values, switch[1]):
        return {"_disabled_": part["_disabled_"]}
    return {name: _without_disabled(entry, values) for name, entry in part.items()}
