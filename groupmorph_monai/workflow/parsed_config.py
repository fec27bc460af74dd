"""Parse a config without running it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from monai.bundle import ConfigParser


def parsed_config(files: Sequence[str | Path], values: Mapping[str, object]) -> ConfigParser:
    """Parse a config to get single parts of it. Its ``initialize`` expressions, which change the process, are removed.

    Args:
        files: the config and its overlays, in order.
        values: settings by name, which replace those of the files.
    """
    parser = ConfigParser()
    parser.read_config([str(file) for file in files])
    for name, value in {**values, "initialize": []}.items():
        parser[name] = value
    parser.parse()
    return parser
