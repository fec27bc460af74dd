"""Base class of inferers, and their data: a network's prediction and a registration."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NotRequired, TypedDict

from monai.inferers import Inferer
from torch import Tensor

from ..data.storage import IN_MEMORY, Storage
from ..space.alignment import Alignment
from ..space.field import Field
from ..space.integrate import Transformation
from ..space.warping import inside_volume, warp, warp_observed
from .affine_refinement import AffineRefinement
from .network_passes import NetworkPasses
from .refinement import Refinement

__all__ = ["FieldInferer", "Prediction", "RegistrationOutput"]


class RegistrationOutput(TypedDict):
    """Result of an inferer.

    Args:
        warped: aligned images, ``(B, K, *S)``.
        covered: ``(B, K, *S)`` bool, where ``warped`` was measured and not extrapolated.
        ddf, inverse_ddf: displacements from the common space to each timepoint, and back, ``(B, K, D, *S)``, voxels.
        dvf: velocity on a lattice of the images, ``(B, K, D, *C)``, in voxels of the lattice.
        step: ``ddf`` and ``inverse_ddf`` are linear between every ``step``-th voxel.
        z_mean, z_log_variance: the network's posterior of all passes, ``(B, K, C, *S_z)``.
        ddf_std: with draws, the standard deviation of ``ddf``, ``(B, K, D, *S)``, voxels.
    """

    warped: Tensor
    covered: Tensor
    ddf: Tensor
    inverse_ddf: Tensor
    dvf: Tensor
    step: int
    z_mean: Tensor
    z_log_variance: Tensor
    ddf_std: NotRequired[Tensor]


@dataclass(frozen=True)
class Prediction:
    """A network's prediction for a series.

    Args:
        dvf: velocity of all passes, ``(B, K, D, *C)``.
        z_mean, z_log_variance: posterior of z of all passes, ``(B, K, C, *S_z)``, for the prior.
        last: mean and log variance of the last pass, for the network's ``decode``.
        images: input of the last pass, ``(B, K, *S)``.
        before: velocity of the passes before the last, ``(B, K, D, *C)``; None if there is only one.
    """

    dvf: Field
    z_mean: Tensor
    z_log_variance: Tensor
    last: tuple[Tensor, Tensor]
    images: Tensor
    before: Tensor | None = None


class FieldInferer(Inferer):
    """Base class of inferers that integrate velocities and warp the images once.

    Args:
        alignment: alignment to the mean or to a reference.
        transformation: maps a field to displacements.
        storage: where tensors of all K timepoints are kept.

    Attributes:
        passes: passes of the network.
        refinement: refinement for each series; None for no refinement.
        draws: number of draws of z for ``ddf_std``.
    """

    passes: NetworkPasses = NetworkPasses()
    refinement: Refinement | AffineRefinement | None = None
    draws: int = 0

    def __init__(self, alignment: Alignment, transformation: Transformation, storage: Storage = IN_MEMORY):
        super().__init__()
        self.alignment, self.transformation, self.storage = alignment, transformation, storage

    def warped(self, images: Tensor, prediction: Prediction) -> dict[str, Tensor]:
        """Return ``warped`` ``(B, K, *S)``; ``covered``, True inside the image; ``ddf`` ``(B, K, D, *S)``,
        common space to timepoint, voxels; ``dvf``, ``z_mean`` and ``z_log_variance`` of the prediction."""
        dvf = prediction.dvf
        ddf = dvf.with_values(self.alignment(dvf.values, self.transformation)).on_image()
        return {
            "warped": warp(images, ddf),
            "covered": inside_volume(ddf.flatten(0, 1)).unflatten(0, ddf.shape[:2]),
            "ddf": ddf,
            "dvf": dvf.values,
            "z_mean": prediction.z_mean,
            "z_log_variance": prediction.z_log_variance,
        }

    def inverse_ddf(self, dvf: Field) -> Tensor:
        """Compute displacements from each timepoint to the common space, ``(B, K, D, *S)``, voxels of the images."""
        return dvf.with_values(self.alignment.inverse(dvf.values, self.transformation)).on_image()

    def registered(self, images: Tensor, prediction: Prediction, coverage: Tensor | None) -> RegistrationOutput:
        """Warp the images, ``(B, K, *S)``, by a prediction, and compute the displacements in both directions."""
        dvf, timepoints = prediction.dvf, images.shape[1]

        def parts() -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
            for c, part in self.alignment.displacements(dvf.values, self.transformation, self.storage.chunks):
                ddf = dvf.with_values(part).on_image()
                yield c, (*warp_observed(images[:, c], None if coverage is None else coverage[:, c], ddf), ddf)

        warped, covered, ddf = self.storage.collect(parts(), timepoints)
        inverses = self.alignment.inverses(dvf.values, self.transformation, self.storage.chunks)
        (inverse,) = self.storage.collect(
            ((c, (dvf.with_values(part).on_image(),)) for c, part in inverses), timepoints
        )
        return {
            "warped": warped,
            "covered": covered,
            "ddf": ddf,
            "inverse_ddf": inverse,
            "dvf": dvf.values,
            "step": dvf.step,
            "z_mean": prediction.z_mean,
            "z_log_variance": prediction.z_log_variance,
        }
