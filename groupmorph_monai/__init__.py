"""GroupMorph: all K scans of one patient in one space, with smooth invertible deformations and a measure of trust."""

import os

__version__ = "0.2.0"

# OpenMP reads this once, when torch is loaded. Threads that spin at barriers while another process holds their core
# make thousands of small parallel regions 20 times as slow.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__all__ = ["Registration", "__version__", "register"]


def __getattr__(name: str) -> object:
    """Import PyTorch and MONAI only for those who register from Python."""
    if name in ("Registration", "register"):
        from .apps import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
