"""The bundle's registration as a method of a suite."""

from ...benchmarks.compare import BundleMethod
from ..configs import bundle_root, config_files

__all__ = ["bundle_method"]


def bundle_method(weights: str | None, *overlays: str) -> BundleMethod:
    """Make the method of inference.yaml and ``overlays``, with the shipped weights by default."""
    return BundleMethod(config_files("inference", overlays), weights or str(bundle_root() / "models" / "model.pt"))
