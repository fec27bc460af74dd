"""Hashes of everything that a result depends on, to reuse a result if and only if nothing has changed."""

import hashlib
import json
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ...errors import InputError
from ..reading.signature import files_below


def fingerprint(*parts: object) -> str:
    """Hash values, objects by class and attributes, and files by path, size and modification time.

    Strings that name a file or folder are hashed as such. Parameters of networks are hashed by shape alone, as their
    values are random until weights are loaded.
    """
    return hashlib.sha256(json.dumps([_plain(part, ()) for part in parts]).encode()).hexdigest()


def _plain(value: object, above: tuple[int, ...]) -> object:
    """Convert ``value`` to JSON types. ``above``: identities of the objects that contain it."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (str, Path)):
        return _path(value)
    if id(value) in above:
        return "itself"
    above = (*above, id(value))
    if isinstance(value, Mapping):
        return sorted(((str(k), _plain(v, above)) for k, v in value.items()), key=lambda entry: entry[0])
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if isinstance(value, (list, tuple, range)):
        return [_plain(v, above) for v in value]
    if isinstance(value, torch.nn.Parameter):
        return [str(value.dtype), list(value.shape)]
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        array = np.ascontiguousarray(torch.as_tensor(value).detach().cpu().numpy())
        return [str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
    if isinstance(value, partial):
        return _plain([value.func, value.args, value.keywords], above)
    if isinstance(value, logging.Logger):
        return value.name
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    if not hasattr(value, "__dict__"):
        return repr(value).partition(" at 0x")[0]
    return [f"{type(value).__module__}.{type(value).__qualname__}", _plain(vars(value), above)]


def _path(value: str | Path) -> object:
    try:
        path = Path(value).resolve()
        if not value or not path.exists():
            return str(value)
        files = [p for p in sorted(files_below(path)) if p.is_file()] if path.is_dir() else [path]
        return [str(path), *([str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files)]
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError):  # not a valid path
        return str(value)
