"""Deformations from codes of another series or of the prior (Krebs et al. 2018, Fig. 1b)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..networks.contract import unwrapped
from ..probability.posterior import split_parameters
from ..space.alignment import Alignment
from ..space.field import VelocityField
from ..space.integrate import Transformation
from ..space.lattice import Lattice
from .batches import as_images
from .field_inferer import FieldInferer, FieldOutput, Prediction


class CodeInferer(FieldInferer):
    """Inferer that decodes prescribed codes for the images of a series, instead of encoding the images.

    Args:
        alignment: alignment of the timepoints.
        transformation: maps velocities to displacements.
        codes: function of the images and the network that returns z ``(B, K, C, 1, 1, 1)``.
    """

    def __init__(
        self,
        alignment: Alignment,
        transformation: Transformation,
        codes: Callable[[Tensor, nn.Module], Tensor],
    ):
        super().__init__(alignment, transformation)
        self.codes = codes

    def fields(
        self, inputs: Tensor, network: nn.Module, *args: Any, coverage: Tensor | None = None, **kwargs: Any
    ) -> FieldOutput:
        """Decode the codes for a series.

        Args:
            inputs: ``(B, K, *S)``, intensities in [0, 1].
            network: network with a ``code_size``.
            coverage: ignored, as the codes are prescribed.

        Returns:
            As for `RegistrationInferer`.
        """
        images, model = as_images(inputs), unwrapped(network)
        z = self.codes(images, network)
        lattice = Lattice(images.shape[2:], model.stride)
        dvf = self.alignment.constrain(VelocityField(model.decode(z, images), lattice))
        no_variance = torch.full_like(z, -torch.inf)
        prediction = Prediction(dvf, z, no_variance, (z, no_variance), images)
        return self.integrated(prediction)


def _code_size(network: nn.Module) -> int:
    """Return the length of the network's codes.

    Raises:
        InputError: If its z is not a code.
    """
    code_size: int | None = getattr(network, "code_size", None)
    if code_size is None:
        raise InputError(
            f"overlay: expected a model whose z is a code, such as models/krebs_cvae, got {type(network).__name__}"
        )
    return code_size


class DonorCodes:
    """Mean codes of a donor series, which transport its deformations.

    Args:
        images: the donor series, ``(1, K, *S)``, intensities in [0, 1], with as many timepoints as the target.
    """

    def __init__(self, images: Tensor):
        self.images = as_images(images)

    def __call__(self, images: Tensor, network: nn.Module) -> Tensor:
        _code_size(network)
        if images.shape[1] != self.images.shape[1]:
            raise InputError(
                f"series: expected as many scans as the donor has, {self.images.shape[1]}, got {images.shape[1]}; a "
                "single scan may be repeated"
            )
        return split_parameters(network(self.images.to(images)), self.images.shape[1])[0]


class PriorCodes:
    """Draws from the prior N(0, I), one per timepoint, which yield new deformations.

    Args:
        seed: random seed.
    """

    def __init__(self, seed: int = 0):
        self.seed = seed

    def __call__(self, images: Tensor, network: nn.Module) -> Tensor:
        code_size = _code_size(network)
        generator = torch.Generator().manual_seed(self.seed)
        draws = torch.randn(*images.shape[:2], code_size, generator=generator)
        return draws.to(images)[..., None, None, None]
