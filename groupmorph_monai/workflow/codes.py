"""Where codes come from when not from the series itself: another patient, or the prior (Krebs et al. 2018, Fig. 1b)."""

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..probability.posterior import split_parameters

__all__ = ["CodesOf", "PriorCodes"]


def _check_codes(network: nn.Module) -> None:
    if not hasattr(network, "code_size"):
        raise InputError(
            f"overlay: expected a model whose z is a code, such as models/krebs_cvae, got {type(network).__name__}"
        )


class CodesOf:
    """The means of the codes of another series, for a `RegistrationInferer`: its deformations, carried over.

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
    """Draws from the unit Gaussian prior, one a timepoint, for a `RegistrationInferer`: new deformations.

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
