"""Escape values for MONAI's ConfigParser."""

import json
import os
from collections.abc import Mapping
from pathlib import Path


def literal(value: object) -> object:
    """Escape ``value`` so that a config in which it is inserted evaluates to exactly this value.

    ConfigParser executes text after ``$``, resolves ``@`` and ``%`` as references and replaces ``#`` anywhere in a
    text, but does not look into bytes. Text is therefore stored as bytes, which `os.fsdecode` decodes when the config
    is instantiated. All user input and file names must be escaped. Dictionaries, whose keys ConfigParser would split,
    are stored as the bytes of their JSON.

    Args:
        value: text, path, number, boolean or None, or a list of these; or a dictionary that JSON can represent.

    Returns:
        Value for a config.
    """
    if isinstance(value, (str, Path)):
        return {"_target_": "os.fsdecode", "filename": os.fsencode(value)}
    if isinstance(value, Mapping):
        return {"_target_": "json.loads", "s": json.dumps(value).encode()}
    return [literal(part) for part in value] if isinstance(value, (list, tuple)) else value
