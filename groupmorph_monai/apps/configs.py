"""Where the bundle's configs lie."""

from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError

__all__ = ["bundle_root", "config_files"]

_BASES = {"evaluate": ("inference",)}


def bundle_root() -> Path:
    """The bundle's folder: inside the package where it is installed, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "bundle"
    return inside if (inside / "configs").is_dir() else package.parent / "bundle"


def config_files(config: str, overlays: Sequence[str]) -> list[str]:
    """The files of a config: what it is laid over, itself, and then the ``overlays``."""
    configs = bundle_root() / "configs"
    for name in overlays:
        if not (configs / f"{name}.yaml").is_file():
            known = ", ".join(sorted(str(f.relative_to(configs).with_suffix("")) for f in configs.glob("*/*.yaml")))
            raise InputError(f"--overlay: expected one of {known}; got {name!r}")
    return [str(configs / f"{name}.yaml") for name in (*_BASES.get(config, ()), config, *overlays)]
