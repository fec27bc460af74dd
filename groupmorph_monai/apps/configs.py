"""Locate the bundle's config files."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from ..errors import InputError

__all__ = ["bundle_root", "config_files", "overlay_names", "overlays_table", "read_configs"]

_BASES = {"evaluate": ("inference",)}


def bundle_root() -> Path:
    """The bundle's folder: inside the package where it is installed, beside it in a checkout, around it in a release of
    the bundle."""
    package = Path(__file__).resolve().parents[1]
    places = (package / "bundle", package.parent / "bundle", package.parent)
    return next(place for place in places if (place / "configs" / "inference.yaml").is_file())


def overlay_names() -> list[str]:
    """The overlays that the bundle ships, such as ``data/lung_ct``."""
    configs = bundle_root() / "configs"
    return sorted(file.relative_to(configs).with_suffix("").as_posix() for file in configs.glob("*/*.yaml"))


def overlays_table() -> list[str]:
    """List the overlays that the bundle ships, one per line, each with the sentence that its file begins with."""
    names = overlay_names()
    width = max(map(len, names))
    return [f"{name:{width}}  {_summary(name)}" for name in names]


def _summary(overlay: str) -> str:
    with open(bundle_root() / "configs" / f"{overlay}.yaml", encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()


def config_files(config: str, overlays: Sequence[str]) -> list[str]:
    """List the files of a config: what it is laid over, itself, and then the ``overlays``.

    Raises: InputError for an overlay that the bundle does not ship.
    """
    configs, known = bundle_root() / "configs", overlay_names()
    for name in overlays:
        if name not in known:
            raise InputError(
                f"--overlay: expected one of {', '.join(known)}, or a YAML file of your own settings; got {name!r}"
            )
    return [str(configs / f"{name}.yaml") for name in (*_BASES.get(config, ()), config, *overlays)]


def read_configs(files: Sequence[str | Path]) -> dict[str, object]:
    """Read configs as plain data; what a later one holds replaces what an earlier one does."""
    content = {}
    for file in files:
        content.update(yaml.load(Path(file).read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    return content
