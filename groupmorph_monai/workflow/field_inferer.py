"""Base class of inferers, and their data: a network's prediction and a registration."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict, cast

from monai.inferers import Inferer
from torch import Tensor, nn

from ..data.storage import IN_MEMORY, Storage
from ..space.alignment import Alignment
from ..space.field import DisplacementField, VelocityField
from ..space.integrate import Transformation
from ..space.lattice import Lattice
from ..space.warping import inside_volume, warp, warp_observed
from .affine_refinement import AffineRefinement
from .batches import as_images
from .evidence import unless_one
from .network_passes import NetworkPasses
from .refinement import Refinement


class FieldOutput(TypedDict):
    """Fields of a registration, on the lattice of every ``step``-th voxel of the images, in voxels of the lattice.

    Args:
        lattice_ddf, lattice_inverse_ddf: displacements from the common space to each timepoint, and back, which are
            linear between the voxels of the lattice, ``(B, K, D, *C)``.
        dvf: velocity, ``(B, K, D, *C)``.
        step: voxels of the images between voxels of the lattice.
        z_mean, z_log_variance: the network's posterior of all passes, ``(B, K, C, *S_z)``.
        ddf_std: with draws, the standard deviation of the displacements from the common space, on every voxel of the
            images, ``(B, K, D, *S)``, voxels.
    """

    lattice_ddf: Tensor
    lattice_inverse_ddf: Tensor
    dvf: Tensor
    step: int
    z_mean: Tensor
    z_log_variance: Tensor
    ddf_std: NotRequired[Tensor]


class RegistrationOutput(FieldOutput):
    """Result of an inferer.

    Args:
        warped: aligned images, ``(B, K, *S)``.
        covered: ``(B, K, *S)`` bool, where ``warped`` was measured and not extrapolated.
        ddf, inverse_ddf: displacements from the common space to each timepoint, and back, ``(B, K, D, *S)``, voxels.
    """

    warped: Tensor
    covered: Tensor
    ddf: Tensor
    inverse_ddf: Tensor


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

    dvf: VelocityField
    z_mean: Tensor
    z_log_variance: Tensor
    last: tuple[Tensor, Tensor]
    images: Tensor
    before: VelocityField | None = None


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
        ddf = self.alignment(prediction.dvf, self.transformation).at(1)
        return {
            "warped": warp(images, ddf),
            "covered": inside_volume(ddf),
            "ddf": ddf.values,
            "dvf": prediction.dvf.values,
            "z_mean": prediction.z_mean,
            "z_log_variance": prediction.z_log_variance,
        }

    def inverse_ddf(self, dvf: VelocityField) -> DisplacementField:
        """Compute displacements from each timepoint to the common space on every voxel of the images."""
        return self.alignment.inverse(dvf, self.transformation).at(1)

    @abstractmethod
    def fields(
        self, inputs: Tensor, network: nn.Module, *args: Any, coverage: Tensor | None = None, **kwargs: Any
    ) -> FieldOutput:
        """Register a series without warping its images."""

    def __call__(
        self, inputs: Tensor, network: nn.Module, *args: Any, coverage: Tensor | None = None, **kwargs: Any
    ) -> RegistrationOutput:
        """Register a series by `fields`, and warp its images."""
        images, coverage = as_images(inputs), unless_one(coverage, self.storage)
        fields = self.fields(images, network, *args, coverage=coverage, **kwargs)
        lattice = Lattice(images.shape[2:], fields["step"])
        ddf, inverse_ddf = (
            DisplacementField(values, lattice) for values in (fields["lattice_ddf"], fields["lattice_inverse_ddf"])
        )

        def parts() -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
            for c in self.storage.chunks(images.shape[1]):
                part, inverse = (field.timepoints(c).at(1) for field in (ddf, inverse_ddf))
                warped, weight = warp_observed(images[:, c], None if coverage is None else coverage[:, c], part)
                yield c, (warped, weight > 0, part.values, inverse.values)

        names = "warped", "covered", "ddf", "inverse_ddf"
        on_image = dict(zip(names, self.storage.collect(parts(), images.shape[1])))
        return cast(RegistrationOutput, {**fields, **on_image})

    def integrated(self, prediction: Prediction) -> FieldOutput:
        """Integrate a prediction to displacements in both directions."""
        dvf, chunks = prediction.dvf, self.storage.chunks
        (ddf,), (inverse_ddf,) = (
            self.storage.collect(((c, (part.values,)) for c, part in displacements), dvf.timepoint_count)
            for displacements in (
                self.alignment.displacements(dvf, self.transformation, chunks),
                self.alignment.inverses(dvf, self.transformation, chunks),
            )
        )
        return {
            "lattice_ddf": ddf,
            "lattice_inverse_ddf": inverse_ddf,
            "dvf": dvf.values,
            "step": dvf.lattice.step,
            "z_mean": prediction.z_mean,
            "z_log_variance": prediction.z_log_variance,
        }
