"""Configs in memory, without a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from monai.bundle import ConfigParser

__all__ = ["parsed_config"]


def parsed_config(files: Sequence[str | Path], values: Mapping[str, object]) -> ConfigParser:
    """Parse configs whose parts are to be taken one by one, and leave the process as it is.

    Args:
        files: a config and its overlays.
        values: laid over them, by their names.
    """
    parser = ConfigParser()
    parser.read_config([str(file) for file in files])
    for name, value in {**values, "initialize": []}.items():
        parser[name] = value
    parser.parse()
    return parser
