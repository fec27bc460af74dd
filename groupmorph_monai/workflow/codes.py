"""Deformations by codes that do not come from the series itself, but from another patient or from the prior (Krebs et
al. 2018, Fig. 1b)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..probability.posterior import split_parameters
from ..space.alignment import MeanAlignment, ReferenceAlignment, Transformation
from ..space.field import Field
from .inferers import FieldInferer, Prediction, as_images

__all__ = ["CodeInferer", "CodesOf", "PriorCodes"]


class CodeInferer(FieldInferer):
    """Deform series by codes, decoded for their images.

    Args:
        alignment: what the timepoints are aligned to.
        transformation: from a velocity to a displacement.
        codes: gives z ``(B, K, C, 1, 1, 1)`` for the images and the network.
    """

    def __init__(
        self,
        alignment: MeanAlignment | ReferenceAlignment,
        transformation: Transformation,
        codes: Callable[[Tensor, nn.Module], Tensor],
    ):
        super().__init__(alignment, transformation)
        self.codes = codes

    def __call__(
        self, inputs: Tensor, network: nn.Module, *args, coverage: Tensor | None = None, **kwargs
    ) -> dict[str, Tensor]:
        """Deform ``inputs`` ``(B, K, *S)``, intensities in [0, 1], of which ``coverage`` ``(B, K, *S)`` is 1 where they
        were seen. Returns what a `RegistrationInferer` does."""
        images, model = as_images(inputs), getattr(network, "module", network)
        z = self.codes(images, network)
        dvf = Field(self.alignment.constrain(model.decode(z, images)), images.shape[2:], model.stride)
        no_variance = torch.full_like(z, -torch.inf)
        prediction = Prediction(dvf, z, no_variance, (z, no_variance), images)
        return self.registered(images, prediction, coverage)


def _check_codes(network: nn.Module) -> None:
    if not hasattr(network, "code_size"):
        raise InputError(
            f"overlay: expected a model whose z is a code, such as models/krebs_cvae, got {type(network).__name__}"
        )


class CodesOf:
    """The means of the codes of another series: its deformations, carried over.

    Args:
        images: ``(1, K, *S)`` in [0, 1], K as of the series they are carried to.
    """

    def __init__(self, images: Tensor):
        self.images = images.as_tensor() if hasattr(images, "as_tensor") else images

    def __call__(self, images: Tensor, network: nn.Module) -> Tensor:
        _check_codes(network)
        if images.shape[1] != self.images.shape[1]:
            raise InputError(
                f"series: expected as many scans as the donor has, {self.images.shape[1]}, got {images.shape[1]}; one "
                "scan may stand for all"
            )
        return split_parameters(network(self.images.to(images)), self.images.shape[1])[0]


class PriorCodes:
    """Draws from the unit Gaussian prior, one a timepoint: new deformations.

    Args:
        seed: of the draws.
    """

    def __init__(self, seed: int = 0):
        self.seed = seed

    def __call__(self, images: Tensor, network: nn.Module) -> Tensor:
        _check_codes(network)
        generator = torch.Generator().manual_seed(self.seed)
        draws = torch.randn(*images.shape[:2], network.code_size, generator=generator)
        return draws.to(images)[..., None, None, None]
