"""Locate the bundle's config files."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError

_BASES = {"evaluate": ("inference",)}


def bundle_root() -> Path:
    """Locate the bundle: inside an installed package, next to it in a checkout, or around it in a release.

    Raises:
        InputError: If it is in none of these places, as in a package that is imported from a zip archive.
    """
    package = Path(__file__).resolve().parents[1]
    candidates = (package / "bundle", package.parent / "bundle", package.parent)
    for folder in candidates:
        if (folder / "configs" / "inference.yaml").is_file():
            return folder
    raise InputError(
        f"{package.parent}: expected the bundle's config files beside the package, got none; unpack the archive, or "
        "install the package by pip"
    )


def overlay_names() -> list[str]:
    """List the overlays that the bundle ships, such as ``data/lung_ct``."""
    configs = bundle_root() / "configs"
    return sorted(file.relative_to(configs).with_suffix("").as_posix() for file in configs.glob("*/*.yaml"))


def overlays_table() -> list[str]:
    """List the overlays that the bundle ships, one per line, each with the first line of its file as a summary."""
    names = overlay_names()
    width = max(map(len, names))
    return [f"{name:{width}}  {_summary(name)}" for name in names]


def _summary(overlay: str) -> str:
    with open(bundle_root() / "configs" / f"{overlay}.yaml", encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()


def config_files(config: str, overlays: Sequence[str]) -> list[str]:
    """List the files of a config in order: its base, the config itself, and the ``overlays``.

    Raises:
        InputError: If the bundle does not ship one of the overlays.
    """
    configs, shipped = bundle_root() / "configs", overlay_names()
    for name in overlays:
        if name not in shipped:
            nearest = [each for each in shipped if each.endswith(f"/{name}")] or get_close_matches(
                name, shipped, 1, 0.75
            )
            cure = f"did you mean {' or '.join(nearest)}?" if nearest else "see 'groupmorph overlays'"
            raise InputError(
                f"--overlay: expected an overlay or a YAML file of your own settings, got {name!r}; {cure}"
            )
    return [str(configs / f"{name}.yaml") for name in (*_BASES.get(config, ()), config, *overlays)]


def read_configs(files: Sequence[str | Path]) -> dict[str, Any]:
    """Read configs as plain data; keys of later files replace those of earlier ones."""
    content = {}
    for file in files:
        content.update(yaml.load(Path(file).read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    return content
