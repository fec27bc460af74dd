"""Values that MONAI's ConfigParser takes as they are."""

import os
from pathlib import Path

__all__ = ["literal"]


def literal(value: object) -> object:
    """Write ``value`` so that a config that holds it means just that value.

    In a config ConfigParser runs text after ``$`` as code, resolves ``@`` and ``%`` as references and replaces ``#``
    wherever it stands. It does not look into bytes: text is handed over as bytes, which `os.fsdecode` turns back when
    the config is instantiated. Everything that a user types, or a file is called, goes this way. Dictionaries, whose
    names ConfigParser would split, are none of a user's values.
    """
    if isinstance(value, (str, Path)):
        return {"_target_": "os.fsdecode", "filename": os.fsencode(value)}
    return [literal(part) for part in value] if isinstance(value, (list, tuple)) else value
