"""Inferers that turn the network's posterior into a registration."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..data.storage import IN_MEMORY, Storage
from ..errors import InputError
from ..networks.contract import unwrapped
from ..probability.likelihood import impute
from ..probability.posterior import Posterior
from ..space.affine import affine_velocity
from ..space.alignment import Alignment
from ..space.field import DisplacementField, VelocityField
from ..space.integrate import Transformation
from ..space.lattice import Lattice
from ..space.sampling import full_precision
from ..space.spread import standard_deviation
from ..space.warping import warp
from .affine_refinement import AffineRefinement
from .batches import as_images
from .evidence import Evidence, unless_one
from .field_inferer import FieldInferer, FieldOutput, Prediction
from .network_passes import NetworkPasses
from .refinement import Refinement
from .streamed_network import streamed_imputation, streamed_mean, streams

logger = logging.getLogger(__name__)
_SEED = 0  # random seed of the draws for `ddf_std`


def native_bf16(device: torch.device | str) -> bool:
    """Check whether ``device`` is a GPU that supports bfloat16. On a CPU it would save a sixth of the network's time,
    but rounding, such as that of the affine in a file, would change fields by hundredths of a millimetre."""
    return torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


Choose = Callable[[Tensor, Tensor], Tensor]  # maps the mean and log variance of a posterior to z


def _mean(mean: Tensor, log_variance: Tensor) -> Tensor:
    return mean


class RegistrationInferer(FieldInferer):
    """Inferer that registers series by the mean of the network's posterior.

    The network may see a large volume in windows; the result is integrated and warped once on the whole grid.

    Additional passes of the network correct the residual motion: each encodes the images warped by the current velocity
    and combines this velocity with the new one by the transformation's ``joined``. If that adds velocities, the next
    pass corrects the error of the sum. The images are interpolated only once, for any number of passes.

    Args:
        alignment: alignment to the mean or to a reference.
        transformation: maps a field to displacements.
        passes: passes of the network; None for one, in one window.
        refinement: refinement of the velocity for each series after the last pass; None for no refinement.
        draws: number of draws of z for ``ddf_std``; with 0, it is not computed.
        posterior: distribution that the network parametrises; None for one without smoothing.
        storage: where tensors of all K timepoints are kept. With a few timepoints at a time, a network for which
            `streams` is true predicts in one pass without windows; with any other network, the refinement starts from
            the identity.
    """

    def __init__(
        self,
        alignment: Alignment,
        transformation: Transformation,
        passes: NetworkPasses | None = None,
        refinement: Refinement | AffineRefinement | None = None,
        draws: int = 0,
        posterior: Posterior | None = None,
        storage: Storage = IN_MEMORY,
    ):
        super().__init__(alignment, transformation, storage)
        if draws < 0:
            raise InputError(f"std_draws: expected 0 or more, got {draws}; 20 are sufficient")
        self.passes, self.refinement = passes or NetworkPasses(), refinement
        self.draws, self.posterior = draws, posterior or Posterior()
        if draws:
            (self.posterior if refinement is None else refinement).check_draws(draws)
        self._check_storage()

    def _check_storage(self) -> None:
        needs = {
            "draws (--std)": self.draws > 0,
            "more than one pass": self.passes.number > 1,
            "affine refinement": isinstance(self.refinement, AffineRefinement),
        }
        for name in (name for name, needed in needs.items() if self.storage.scans_at_once and needed):
            raise InputError(
                f"scans_at_once: expected null with {name}, for which all scans are needed at once, got "
                f"{self.storage.scans_at_once}; omit one of the two, or use fewer scans"
            )

    def fields(
        self,
        inputs: Tensor,
        network: nn.Module,
        *args: Any,
        coverage: Tensor | None = None,
        mask: Tensor | None = None,
        initial: Tensor | None = None,
        one_header: bool = True,
        **kwargs: Any,
    ) -> FieldOutput:
        """Register a series without warping its images.

        Args:
            inputs: ``(B, K, *S)``, intensities in [0, 1].
            network: network that returns the parameters of the posterior.
            coverage, mask: voxels of the inputs that count in the refinement, see `Evidence`.
            initial: logarithms of the affine transforms by which the inputs were resampled, in voxels, ``(B, K, 4,
                4)``.
            one_header: all timepoints were acquired on the same grid, in which tissue may be static.

        Returns:
            The fields, a dictionary; see `FieldOutput`.

        Raises:
            InputError: If the images are not finite, or the network and the storage are incompatible.
        """
        images = as_images(inputs)
        if not torch.isfinite(self.storage.sum(lambda part: part.sum(dtype=torch.float32), images)):
            raise InputError("images: expected finite intensities in [0, 1], got NaN or infinite ones; replace them")
        coverage = unless_one(coverage, self.storage)
        # Values outside the coverage are imputed from the other timepoints, with which they then agree.
        if self.storage.scans_at_once:
            prediction = self._predict_streamed(images, coverage, network)
        else:
            prediction = self.predict(images if coverage is None else impute(images, coverage > 0.5), network)
        dvf = prediction.dvf
        evidence = Evidence(coverage, mask, self.alignment.reference or 0)
        if self.refinement is not None:
            dvf = self._refined(self.refinement, dvf, images, evidence, initial, one_header)
        result = self.integrated(replace(prediction, dvf=dvf))
        if self.draws:
            draws = (
                self._refined_draws(self.refinement, dvf, images, evidence)
                if isinstance(self.refinement, Refinement)
                else self._network_draws(prediction, network)
            )
            result["ddf_std"] = self._spread(draws)
        return result

    def _predict_streamed(self, images: Tensor, coverage: Tensor | None, network: nn.Module) -> Prediction:
        """Predict in one pass, a few timepoints at a time, or no motion if the network needs all at once. The posterior
        has variance 0, stored as a single number."""
        model = unwrapped(network)
        lattice = Lattice(images.shape[2:], model.stride)
        if streams(model):
            imputed = images if coverage is None else streamed_imputation(images, coverage, self.storage)
            with self.passes.autocast(images.device):
                z = streamed_mean(model, imputed, self.storage)
        elif self.refinement is None:
            raise InputError(
                f"scans_at_once: expected null with {type(model).__name__} and without a refinement, got "
                f"{self.storage.scans_at_once}; omit --no-refine, use the default model, or use fewer scans"
            )
        else:
            logger.warning("The network needs all scans at once, which do not fit: the refinement starts without it.")
            components = len(lattice.size) * self.transformation.pieces
            z = torch.zeros(()).expand(*images.shape[:2], components, *lattice.shape)
        dvf = self._without_shared(VelocityField(z, lattice))
        no_variance = torch.full((), -torch.inf).expand(z.shape)
        return Prediction(dvf, z, no_variance, (z, no_variance), images)

    def predict(self, images: Tensor, network: nn.Module) -> Prediction:
        """Predict by all ``passes``, with the mean of each posterior; arguments as for `steps`."""
        *_, prediction = self.steps(images, network)
        return prediction

    def steps(self, images: Tensor, network: nn.Module, choose: Choose = _mean) -> Iterator[Prediction]:
        """Yield the prediction after each of ``passes``, each continuing from the previous one.

        Args:
            images: ``(B, K, *S)``.
            network: network that returns the parameters of the posterior.
            choose: maps the mean and log variance of a pass's posterior to z, such as the mean or a draw.
        """
        model = unwrapped(network)
        warped, lattice = images, Lattice(images.shape[2:], model.stride)
        before: VelocityField | None = None  # no pass
        draws, parameters = [], []
        for _ in range(self.passes.number):
            if before is not None:
                warped = warp(images, self.transformation(self.alignment.constrain(before)).at(1))
            parameters.append(self.passes.posterior(warped, network))
            draws.append(choose(*parameters[-1]))
            step = VelocityField(model.decode(draws[-1], warped), lattice)
            dvf = self.alignment.constrain(self.transformation.joined(before, step))
            posterior = self.posterior.of_passes(draws, *zip(*parameters))
            yield Prediction(dvf, *posterior, parameters[-1], warped, before)
            before = dvf

    @full_precision
    def _refined(
        self,
        refinement: Refinement | AffineRefinement,
        dvf: VelocityField,
        images: Tensor,
        evidence: Evidence,
        initial: Tensor | None,
        one_header: bool,
    ) -> VelocityField:
        alignment = self.alignment
        centred = alignment.centred(dvf)
        shape = centred.values[:, :, : images.dim() - 2].shape
        undeformed = centred.with_values(centred.values.new_zeros(()).expand(shape))
        hypotheses = [undeformed]
        if one_header and initial is not None:
            # The motion of static tissue in an aligned timepoint is the inverse of the initial transform.
            static = self.storage.map(
                lambda part: -torch.cat([affine_velocity(logarithms, dvf).values for logarithms in part]), initial
            )
            hypotheses.append(alignment.centred(alignment.constrain(dvf.with_values(static))))
        refined = refinement(centred, images, self._displacement_of_centred, evidence, hypotheses)
        return self._without_shared(refined)

    def _refined_draws(
        self, refinement: Refinement, dvf: VelocityField, images: Tensor, evidence: Evidence
    ) -> Iterator[VelocityField]:
        draws = refinement.draws(
            self.alignment.centred(dvf), images, self._displacement_of_centred, evidence, self.draws, _SEED
        )
        return map(self.alignment.anchored, draws)

    def _without_shared(self, z: VelocityField) -> VelocityField:
        shared = self.alignment.shared(z, self.storage.chunks).values
        return z.with_values(self.storage.map(lambda part: part - shared, z.values))

    def _displacement_of_centred(self, z: VelocityField) -> DisplacementField:
        shared = self.alignment.shared(z, self.storage.chunks)
        values = self.storage.map(lambda part: self.transformation(z.with_values(part) - shared).values, z.values)
        return DisplacementField(values, z.lattice)

    def _network_draws(self, prediction: Prediction, network: nn.Module) -> Iterator[VelocityField]:
        decode = unwrapped(network).decode
        device = prediction.images.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(_SEED)
            for _ in range(self.draws):
                drawn = decode(self.posterior.draw(*prediction.last), prediction.images)
                step = VelocityField(drawn, prediction.dvf.lattice)
                yield self.alignment.constrain(self.transformation.joined(prediction.before, step))

    @full_precision
    def _spread(self, draws: Iterable[VelocityField]) -> Tensor:
        return standard_deviation(self.alignment(dvf, self.transformation) for dvf in draws).on_image()
