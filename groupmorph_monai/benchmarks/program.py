"""This package's registrations, as run by the command line, with the interface of the peers."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from torch import Tensor

from ..space.grid import Grid
from ..space.transforms import Transform
from .cases import make_series
from .compare import BundleMethod
from .peers import MissingError
from .peers.images import each_onto_first

_PACKAGE = Path(__file__).resolve().parents[1]
_COMPUTING = ("space", "probability", "networks", "data", "workflow")


@dataclass(frozen=True)
class Program:
    """The complete registration: initial alignment, working grid, network, refinement."""

    method: BundleMethod

    def prepare(self) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Load the network.

        Raises:
            MissingError: If its weights are missing.
        """
        if not Path(self.method.weights).is_file():
            raise MissingError(f"no weights: {Path(self.method.weights).name}; train them, see the bundle's README")
        register = self.method.prepare_whole()
        return lambda images, affine: _fields(
            register(make_series(images, affine, "timepoint")), images.shape[1:], affine
        )

    def settings(self) -> dict[str, object]:
        """Return everything that determines the result apart from the series: configs, weights and code."""
        config = ConfigParser.load_config_files([str(file) for file in self.method.config_files])
        weights = Path(self.method.weights)
        return {
            "kind": type(self).__name__,
            "config": _digest(json.dumps(config, sort_keys=True, default=str).encode()),
            "settings": {name: str(value) for name, value in self.method.settings.items()},
            "weights": _digest(weights.read_bytes()) if weights.is_file() else None,
            "code": _digest(b"".join(f.read_bytes() for d in _COMPUTING for f in sorted((_PACKAGE / d).rglob("*.py")))),
        }


@dataclass(frozen=True)
class PairwiseProgram(Program):
    """A network for pairs: every timepoint is registered to the first one."""

    def prepare(self) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        register = super().prepare()

        def pair(fixed: Tensor, moving: Tensor, affine: Tensor) -> tuple[Tensor, Tensor]:
            forward, inverse = register(torch.stack([fixed, moving]), affine)
            return forward[1], inverse[1]

        return lambda images, affine: each_onto_first(images, lambda fixed, moving: pair(fixed, moving, affine))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _fields(transforms: Sequence[Transform], size: Sequence[int], affine: Tensor) -> tuple[Tensor, Tensor]:
    """Convert transforms in mm to fields ``(K, 3, *S)`` in voxels, and their inverses."""
    grid = Grid(tuple(size), affine)
    to_voxels = torch.linalg.inv(grid.affine[:3, :3]).float()

    def voxels(transform: Transform) -> Tensor:
        return torch.einsum("ij,j...->i...", to_voxels, transform.displacement(grid))

    return torch.stack([voxels(t) for t in transforms]), torch.stack([voxels(t.inverse) for t in transforms])
