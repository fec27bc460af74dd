"""Inferers for training, which draw z, and additional outputs for the loss."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from ..errors import InputError
from ..probability.likelihood import mean_of_valid
from ..space.alignment import Alignment
from ..space.field import DisplacementField
from ..space.warping import compose, warp_observed
from .batches import as_images
from .field_inferer import Prediction
from .inferers import RegistrationInferer

Terms = dict[str, Tensor]
Deferred = Callable[[], DisplacementField]
Steps = list[dict[str, Tensor]]  # outputs of a registration after each pass


class Comparison(ABC):
    """Base class of what the loss compares besides the warped volumes."""

    def batch(self, images: Tensor) -> Tensor:
        """Make the batch to register from the batch of the data loader, both ``(B, K, *S)``."""
        return images

    @abstractmethod
    def __call__(self, images: Tensor, registration: Mapping[str, Tensor], inverse_ddf: Deferred) -> Terms:
        """Compute entries to add to the output of a registration.

        Args:
            images: registered batch, ``(B, K, *S)``.
            registration: output of `RegistrationInferer.warped`.
            inverse_ddf: function that computes the displacements from each timepoint to the common space, on every
                voxel.

        Returns:
            Tensors by name.
        """


class InverseFields(Comparison):
    """Add ``inverse_ddf`` ``(B, K, D, *S)``, for a loss on surfaces."""

    def __call__(self, images: Tensor, registration: Mapping[str, Tensor], inverse_ddf: Deferred) -> Terms:
        return {"inverse_ddf": inverse_ddf().values}


class BackwardComparison(Comparison):
    """Add ``backward_pairs`` ``(B * K, 2, *S)``, for a likelihood in the space of each timepoint: its volume, and the
    mean of the aligned volumes, warped to it; and ``backward_covered``, True where they were measured and not
    extrapolated."""

    def __call__(self, images: Tensor, registration: Mapping[str, Tensor], inverse_ddf: Deferred) -> Terms:
        warped, covered = registration["warped"], registration["covered"]
        mean, observed = mean_of_valid(warped, covered), covered.any(dim=1, keepdim=True)
        warped_mean, weight = warp_observed(mean.expand_as(images), observed.expand_as(images), inverse_ddf())
        valid = weight > 0
        pairs = {"backward_pairs": (images, warped_mean), "backward_covered": (torch.ones_like(valid), valid)}
        return {name: torch.stack(pair, dim=2).flatten(0, 1) for name, pair in pairs.items()}


class ExchangedPairs(Comparison):
    """Register every pair in both orders, as a batch of twice the size, and add ``round_trip_ddf`` ``(B, 3, *S)``, the
    displacement of the composition of both maps, in voxels (AVSM, Eqs. 6 and 11).

    Args:
        alignment: alignment of the registration, to the first timepoint.

    Raises:
        InputError: If the alignment is another one, or if a series has more than two timepoints.
    """

    def __init__(self, alignment: Alignment):
        if alignment.reference != 0:
            raise InputError(
                "symmetry_weight: expected alignment to the first timepoint, got another one; add --overlay "
                "modes/symmetric"
            )

    def batch(self, images: Tensor) -> Tensor:
        if images.shape[1] != 2:
            raise InputError(
                f"symmetry_weight: expected pairs, got {images.shape[1]} timepoints; add --overlay modes/symmetric"
            )
        return torch.cat([images, images.flip(1)])

    def __call__(self, images: Tensor, registration: Mapping[str, Tensor], inverse_ddf: Deferred) -> Terms:
        forward, backward = map(DisplacementField.on_voxels, registration["ddf"][:, 1:].chunk(2))
        return {"round_trip_ddf": compose(forward, backward).values[:, 0]}


class TrainingInferer(Inferer):
    """Inferer for training: register with one draw of z per pass, and add the outputs that the loss compares. The loss
    is evaluated after the last pass.

    Args:
        registration: inferer whose alignment, transformation, passes, posterior and precision are used, without its
            refinement.
        comparisons: additional comparisons in the loss; their names allow overlays to change them.
    """

    def __init__(self, registration: RegistrationInferer, comparisons: Mapping[str, Comparison] | None = None):
        super().__init__()
        self.registration, self.comparisons = registration, dict(comparisons or {})

    def __call__(
        self, inputs: Tensor, network: nn.Module, *args: Any, times: Tensor | None = None, **kwargs: Any
    ) -> Mapping[str, Tensor | Steps]:
        """Register a batch.

        Args:
            inputs: ``(B, K, *S)``, intensities in [0, 1].
            network: network to train.
            times: acquisition times, ``(B, K)``, for temporal priors.

        Returns:
            The output of `RegistrationInferer.warped`, the entries that the comparisons add, and ``times``.
        """
        *_, last = self._steps(inputs, network, times)
        return last()

    def _steps(
        self, inputs: Tensor, network: nn.Module, times: Tensor | None
    ) -> Iterator[Callable[[], dict[str, Tensor]]]:
        """Yield, for each pass, a function that computes the output of the registration after it."""
        images = as_images(inputs)
        for comparison in self.comparisons.values():
            images = comparison.batch(images)
        constants = {} if times is None else {"times": times.repeat(len(images) // len(times), 1)}
        for prediction in self.registration.steps(images, network, self.registration.posterior.draw):
            yield partial(self._compared, images, prediction, constants)

    def _compared(self, images: Tensor, prediction: Prediction, constants: Terms) -> dict[str, Tensor]:
        result = constants | self.registration.warped(images, prediction)
        inverse_ddf = cache(lambda: self.registration.inverse_ddf(prediction.dvf))
        for comparison in self.comparisons.values():
            result |= comparison(images, result, inverse_ddf)
        return result


class StepwiseTrainingInferer(TrainingInferer):
    """`TrainingInferer` whose output also has ``steps``, the outputs after all passes but the last, so that the loss is
    the sum over all passes (AVSM, Eq. 12)."""

    def __call__(
        self, inputs: Tensor, network: nn.Module, *args: Any, times: Tensor | None = None, **kwargs: Any
    ) -> Mapping[str, Tensor | Steps]:
        *steps, last = (step() for step in self._steps(inputs, network, times))
        return {**last, "steps": steps}
