"""GroupMorph: align all K scans of one patient in a common space, with smooth invertible deformations and a verdict."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .apps.api import Registration, register

__version__ = "0.2.0"

__all__ = ["Registration", "__version__", "register"]


def __getattr__(name: str) -> object:
    """Import the Python interface on first use, so that importing the package does not load PyTorch and MONAI."""
    if name in ("Registration", "register"):
        from .apps import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
