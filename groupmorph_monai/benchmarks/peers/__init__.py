"""Other registration programs with a common interface, each with settings published by its authors.

Every peer is a function ``register(images, affine)``: from a series ``(K, *S)`` in its own units on the grid with
``affine`` ``(4, 4)`` to its fields ``(K, 3, *S)``, common space to timepoint, in voxels, and the fields of the inverse
transforms if the program returns them. For pairwise peers the first timepoint is the common space. `Peer` imports its
module, and thereby the program, only when it is prepared.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from torch import Tensor

__all__ = ["MissingError", "PEERS", "Peer"]


class MissingError(Exception):
    """A package or weights that a method needs are missing. The message describes how to get them."""


@dataclass(frozen=True)
class Peer:
    """A registration program of other authors.

    Args:
        module: module in this folder.
        function: function in the module.
        packages: required packages, by their pip names.
        install: command that installs them.
    """

    module: str
    function: str
    packages: tuple[str, ...]
    install: str = "pip install 'groupmorph-monai[peers]'"

    def prepare(self) -> Callable[[Tensor, Tensor], Tensor | tuple[Tensor, Tensor]]:
        """Import the program.

        Raises:
            MissingError: If it is not installed.
        """
        try:
            module = import_module(f".{self.module}", __package__)
        except ModuleNotFoundError as error:
            raise MissingError(f"not installed: {error.name}; {self.install}") from error
        return getattr(module, self.function)

    def settings(self) -> dict[str, object]:
        """Return everything that determines the result apart from the series: the adapter's code and the versions."""
        source = (Path(__file__).parent / f"{self.module}.py").read_bytes()
        adapter = hashlib.sha256(source).hexdigest()[:16]
        return {"adapter": adapter, "function": self.function, "versions": {p: _version(p) for p in self.packages}}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


PEERS = {
    "elastix-breast": Peer("elastix", "elastix_breast", ("itk-elastix",)),
    "elastix-default": Peer("elastix", "elastix_default", ("itk-elastix",)),
    "elastix-groupwise": Peer("elastix", "elastix_pca", ("itk-elastix",)),
    "ants-mi": Peer("ants_syn", "syn_mi", ("antspyx",)),
    "ants-cc": Peer("ants_syn", "syn_cc", ("antspyx",)),
    "greedy": Peer("greedy", "greedy", ("picsl_greedy", "SimpleITK")),
    "demons": Peer("demons", "demons", ("SimpleITK",)),
    "convexadam": Peer("convex_adam", "convex_adam", ("convexAdam", "torch")),
    # FireANTs pins SimpleITK 2.2.1, which conflicts with the other programs' requirements.
    "fireants": Peer(
        "fire_ants",
        "fire_ants",
        ("fireants", "torch"),
        "pip install hydra-core pandas && pip install --no-deps fireants",
    ),
    "unigradicon": Peer("uni_gradicon", "uni_gradicon", ("unigradicon", "torch")),
}
