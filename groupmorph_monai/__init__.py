"""GroupMorph: all K scans of one patient in one space, with smooth invertible deformations and a measure of trust."""

__version__ = "0.2.0"

__all__ = ["Registration", "__version__", "register"]  # noqa: F822 - imported when first used


def __getattr__(name: str) -> object:
    """Import PyTorch and MONAI only for those who register from Python."""
    if name in ("Registration", "register"):
        from .apps import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
