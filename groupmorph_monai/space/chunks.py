"""K timepoints, so many at a time."""

from collections.abc import Callable, Iterable

__all__ = ["Chunks", "all_at_once"]

Chunks = Callable[[int], Iterable[slice]]  # from K to slices that together cover the K timepoints, in order


def all_at_once(number: int) -> list[slice]:
    """Take all timepoints in one chunk."""
    return [slice(0, number)]
