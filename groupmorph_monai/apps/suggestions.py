"""Suggest the name that a misspelt one may stand for."""

from collections.abc import Iterable
from difflib import get_close_matches


def suggestion(name: str, names: Iterable[str], otherwise: str, prefix: str = "") -> str:
    """Return the cure of a message about an unknown name.

    Args:
        name: unknown name.
        names: valid names.
        otherwise: cure if no valid name is similar.
        prefix: written before the suggested name, as the hyphens of an option.
    """
    nearest = get_close_matches(name, list(names), 1)
    return f"did you mean {prefix}{nearest[0]}?" if nearest else otherwise
