"""The inferer of a training: draws of z, and what losses compare beside the warped volumes."""

from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from ..errors import InputError
from ..space.alignment import MeanAlignment, ReferenceAlignment
from ..space.grid import compose, warp
from .inferers import Prediction, RegistrationInferer, as_images

__all__ = [
    "CarriedBack",
    "Comparison",
    "ExchangedPairs",
    "InverseFields",
    "StepwiseTrainingInferer",
    "TrainingInferer",
]


class Comparison:
    """Something that a loss compares beside the warped volumes."""

    def batch(self, images: Tensor) -> Tensor:
        """The series ``(B, K, *S)`` that are registered, of those that the loader gave."""
        return images

    def __call__(
        self, images: Tensor, registration: Mapping[str, Tensor], inverse_ddf: Callable[[], Tensor]
    ) -> dict[str, Tensor]:
        """Entries to add to a registration.

        Args:
            images: ``(B, K, *S)``, as they were registered.
            registration: what `RegistrationInferer.warped` gives.
            inverse_ddf: computes the displacements from each timepoint to the common space, ``(B, K, D, *S)``.
        """
        raise NotImplementedError


class InverseFields(Comparison):
    """``inverse_ddf``, for a loss of surfaces."""

    def __call__(
        self, images: Tensor, registration: Mapping[str, Tensor], inverse_ddf: Callable[[], Tensor]
    ) -> dict[str, Tensor]:
        return {"inverse_ddf": inverse_ddf()}


class CarriedBack(Comparison):
    """``returned`` ``(B * K, 2, *S)``: every timepoint's volume, beside it the mean of the aligned volumes carried back
    to it, for a likelihood in the timepoint's own space."""

    def __call__(
        self, images: Tensor, registration: Mapping[str, Tensor], inverse_ddf: Callable[[], Tensor]
    ) -> dict[str, Tensor]:
        common = registration["warped"].mean(dim=1, keepdim=True).expand_as(images)
        return {"returned": torch.stack([images, warp(common, inverse_ddf())], dim=2).flatten(0, 1)}


class ExchangedPairs(Comparison):
    """Every pair in the other order too, as a batch of twice the size (AVSM, Eqs. 6 and 11), and ``there_and_back``
    ``(B, 3, *S)``, the displacement of one map after the other, voxels.

    Args:
        alignment: of the registration, onto the first timepoint.
    """

    def __init__(self, alignment: MeanAlignment | ReferenceAlignment):
        if getattr(alignment, "reference", None) != 0:
            raise InputError(
                "symmetry_weight: expected maps onto the first timepoint, got another alignment; add --overlay "
                "modes/symmetric"
            )

    def batch(self, images: Tensor) -> Tensor:
        if images.shape[1] != 2:
            raise InputError(
                f"symmetry_weight: expected pairs, got {images.shape[1]} timepoints; add --overlay modes/symmetric"
            )
        return torch.cat([images, images.flip(1)])

    def __call__(
        self, images: Tensor, registration: Mapping[str, Tensor], inverse_ddf: Callable[[], Tensor]
    ) -> dict[str, Tensor]:
        there, back = registration["ddf"][:, 1:].chunk(2)
        return {"there_and_back": compose(there, back)[:, 0]}


class TrainingInferer(Inferer):
    """Register by one draw of z a pass, and add what the loss compares. The loss is that of the last pass.

    Args:
        registration: whose alignment, transformation, passes, posterior and precision hold; it is not refined.
        comparisons: by names that overlays change them by.
    """

    def __init__(self, registration: RegistrationInferer, comparisons: Mapping[str, Comparison] | None = None):
        super().__init__()
        self.registration, self.comparisons = registration, dict(comparisons or {})

    def __call__(self, inputs: Tensor, network: nn.Module, *args, **kwargs) -> dict[str, Tensor]:
        """Register ``inputs`` ``(B, K, *S)``, intensities in [0, 1].

        Returns: what `RegistrationInferer.warped` gives, and what each comparison adds.
        """
        *_, last = self._steps(inputs, network)
        return last()

    def _steps(self, inputs: Tensor, network: nn.Module) -> Iterator[Callable[[], dict[str, Tensor]]]:
        """What computes the registration after each pass."""
        images = as_images(inputs)
        for comparison in self.comparisons.values():
            images = comparison.batch(images)
        for prediction in self.registration.steps(images, network, self.registration.posterior.draw):
            yield partial(self._compared, images, prediction)

    def _compared(self, images: Tensor, prediction: Prediction) -> dict[str, Tensor]:
        result = self.registration.warped(images, prediction)
        inverse_ddf = cache(lambda: self.registration.inverse_ddf(prediction.dvf))
        for comparison in self.comparisons.values():
            result |= comparison(images, result, inverse_ddf)
        return result


class StepwiseTrainingInferer(TrainingInferer):
    """Register as a `TrainingInferer` does, and give ``steps`` too, the registrations after each pass but the last: the
    loss is then the sum over passes (AVSM, Eq. 12)."""

    def __call__(self, inputs: Tensor, network: nn.Module, *args, **kwargs) -> dict[str, Tensor | list]:
        *steps, last = (step() for step in self._steps(inputs, network))
        return {**last, "steps": steps}
