"""Inferers that turn the network's posterior into a registration."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from monai.inferers import Inferer, sliding_window_inference
from scipy.linalg import logm
from torch import Tensor, nn

from ..data.storage import IN_MEMORY, Storage
from ..errors import InputError
from ..probability.likelihood import impute
from ..probability.posterior import Posterior, split_parameters
from ..space.alignment import MeanAlignment, ReferenceAlignment, Transformation, affine_in_voxels, affine_velocity
from ..space.field import Field
from ..space.grid import full_precision, warp, warp_observed
from ..space.spread import standard_deviation
from .affine_refinement import AffineRefinement
from .evidence import Evidence
from .refinement import Refinement
from .streamed_network import streamed_imputation, streamed_mean, streams

__all__ = ["FieldInferer", "Prediction", "RegistrationInferer", "as_images", "native_bf16", "prepare_series"]

logger = logging.getLogger(__name__)


def native_bf16(device: torch.device | str) -> bool:
    """Return whether ``device`` is a GPU that supports bfloat16. On a CPU it would save a sixth of the network's time,
    but rounding, such as that of the affine in a file, would change fields by hundredths of a millimetre."""
    return torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def prepare_series(
    batch: Mapping, device: torch.device | None = None, non_blocking: bool = False, **kwargs
) -> tuple[Tensor, dict[str, Tensor] | None, tuple, dict[str, Tensor]]:
    """Prepare a batch for MONAI's engines, which pass the parts of the result to the inferer and the loss.

    Returns:
        The images; ``points`` and ``distance`` of the surfaces, or None; positional arguments, none; and keyword
        arguments of `RegistrationInferer`: ``one_header`` and, if the batch has them, ``coverage``, ``mask`` and
        ``initial``, the logarithms of the initial transforms in voxels.
    """
    tensors = {
        key: as_images(batch[key]).to(device=device, non_blocking=non_blocking, **kwargs)
        for key in ("image", "coverage", "mask", "surface_points", "surface_distance")
        if key in batch
    }
    surfaces = {key: tensors[f"surface_{key}"] for key in ("points", "distance") if f"surface_{key}" in tensors}
    options = {key: tensors[key] for key in ("coverage", "mask") if key in tensors}
    options["one_header"] = bool(torch.as_tensor(batch.get("one_header", True)).all())
    if "initial" in batch:
        maps = affine_in_voxels(batch["initial"], batch["affine"].unsqueeze(1))
        logarithms = [torch.from_numpy(np.real(logm(m.numpy()))) for m in maps.flatten(0, 1)]
        options["initial"] = torch.stack(logarithms).view(maps.shape)
    return tensors["image"], surfaces or None, (), options


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
    """

    def __init__(
        self,
        alignment: MeanAlignment | ReferenceAlignment,
        transformation: Transformation,
        storage: Storage = IN_MEMORY,
    ):
        super().__init__()
        self.alignment, self.transformation, self.storage = alignment, transformation, storage

    def warped(self, images: Tensor, prediction: Prediction) -> dict[str, Tensor]:
        """Return ``warped`` ``(B, K, *S)``; ``ddf`` ``(B, K, D, *S)``, common space to timepoint, voxels; ``dvf``,
        ``z_mean`` and ``z_log_variance`` of the prediction."""
        dvf = prediction.dvf
        ddf = dvf.like(self.alignment(dvf.values, self.transformation)).on_image()
        return {
            "warped": warp(images, ddf),
            "ddf": ddf,
            "dvf": dvf.values,
            "z_mean": prediction.z_mean,
            "z_log_variance": prediction.z_log_variance,
        }

    def inverse_ddf(self, dvf: Field) -> Tensor:
        """Compute displacements from each timepoint to the common space, ``(B, K, D, *S)``, voxels of the images."""
        return dvf.like(self.alignment.inverse(dvf.values, self.transformation)).on_image()

    def registered(self, images: Tensor, prediction: Prediction, coverage: Tensor | None) -> dict[str, Tensor]:
        """Return the entries of `warped`; ``inverse_ddf``; ``seen`` ``(B, K, *S)`` bool, where ``warped`` was measured
        and not extrapolated; and ``step``: both fields are linear between every ``step``-th voxel."""
        dvf, timepoints = prediction.dvf, images.shape[1]

        def parts() -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
            for c, part in self.alignment.displacements(dvf.values, self.transformation, self.storage.chunks):
                ddf = dvf.like(part).on_image()
                yield c, (*warp_observed(images[:, c], None if coverage is None else coverage[:, c], ddf), ddf)

        warped, covered, ddf = self.storage.collect(parts(), timepoints)
        inverses = self.alignment.inverses(dvf.values, self.transformation, self.storage.chunks)
        (inverse,) = self.storage.collect(((c, (dvf.like(part).on_image(),)) for c, part in inverses), timepoints)
        fields = {"ddf": ddf, "inverse_ddf": inverse, "dvf": dvf.values, "step": dvf.step}
        posterior = {"z_mean": prediction.z_mean, "z_log_variance": prediction.z_log_variance}
        return {"warped": warped, "seen": covered, **fields, **posterior}


def as_images(inputs: Tensor) -> Tensor:
    """Convert MONAI's tensors with metadata to plain tensors."""
    return inputs.as_tensor() if hasattr(inputs, "as_tensor") else inputs


def _mean(mean: Tensor, log_variance: Tensor) -> Tensor:
    return mean


class RegistrationInferer(FieldInferer):
    """Inferer that registers series by the mean of the network's posterior.

    Large volumes are processed in windows, whose posterior parameters are blended; the result is integrated and warped
    once on the whole grid.

    Additional passes of the network correct the residual motion: each encodes the images warped by the current velocity
    and combines this velocity with the new one by the transformation's ``joined``. If that adds velocities, the next
    pass corrects the error of the sum. The images are interpolated once, whatever the number of passes.

    Args:
        alignment: alignment to the mean or to a reference.
        transformation: maps a field to displacements.
        passes: number of passes of the network.
        refinement: refinement of the velocity for each series after the last pass; None for no refinement.
        window_size_voxels: maximum window size of the network along each axis; None for no limit.
        overlap: overlap of neighbouring windows, as a fraction of their size.
        draws: number of draws of z for ``ddf_std``; with 0, it is not computed.
        seed: random seed of the draws.
        posterior: distribution that the network parametrises; None for one without smoothing.
        network_bf16: compute the network's convolutions in bfloat16. Fields are always float32.
        storage: where tensors of all K timepoints are kept. With a few timepoints at a time, a network for which
            `streams` is true predicts in one pass without windows; with any other network, the refinement starts from
            the identity.
    """

    def __init__(
        self,
        alignment: MeanAlignment | ReferenceAlignment,
        transformation: Transformation,
        passes: int = 1,
        refinement: Refinement | AffineRefinement | None = None,
        window_size_voxels: Sequence[int] | None = None,
        overlap: float = 0.5,
        draws: int = 0,
        seed: int = 0,
        posterior: Posterior | None = None,
        network_bf16: bool = False,
        storage: Storage = IN_MEMORY,
    ):
        super().__init__(alignment, transformation, storage)
        if passes < 1:
            raise InputError(f"passes: expected 1 or more, got {passes}; use 1, except with models/avsm_affine")
        if draws < 0:
            raise InputError(f"std_draws: expected 0 or more, got {draws}; 20 are sufficient")
        if draws and refinement is not None:
            refinement.check_draws(draws)
        self._check_storage(storage, draws, passes, refinement)
        self.passes, self.refinement = passes, refinement
        self.window_size_voxels, self.overlap = window_size_voxels, overlap
        self.draws, self.seed, self.posterior = draws, seed, posterior or Posterior()
        self.network_bf16 = network_bf16

    @staticmethod
    def _check_storage(storage: Storage, draws: int, passes: int, refinement: object) -> None:
        needs = {
            "draws (--std)": draws > 0,
            "more than one pass": passes > 1,
            "affine refinement": isinstance(refinement, AffineRefinement),
        }
        for name in (name for name, needed in needs.items() if storage.scans_at_once and needed):
            raise InputError(
                f"scans_at_once: expected null with {name}, for which all scans are needed at once, got "
                f"{storage.scans_at_once}; leave one of the two out, or give fewer scans"
            )

    def __call__(
        self,
        inputs: Tensor,
        network: nn.Module,
        *args,
        coverage: Tensor | None = None,
        mask: Tensor | None = None,
        initial: Tensor | None = None,
        one_header: bool = True,
        **kwargs,
    ) -> dict[str, Tensor]:
        """Register a series.

        Args:
            inputs: ``(B, K, *S)``, intensities in [0, 1].
            network: network that returns the parameters of the posterior.
            coverage, mask: voxels of the inputs that count in the refinement, see `Evidence`.
            initial: logarithms of the affine transforms by which the inputs were resampled, in voxels, ``(B, K, 4,
                4)``.
            one_header: all timepoints were acquired on the same grid, in which tissue may be static.

        Returns:
            ``warped`` ``(B, K, *S)``; ``ddf`` and ``inverse_ddf`` ``(B, K, D, *S)``, common space to timepoint and
            back, voxels; ``dvf`` ``(B, K, D, *C)``, the velocity on a lattice of the images, in voxels of the lattice;
            ``z_mean`` and ``z_log_variance``, the network's posterior of all passes; ``seen`` ``(B, K, *S)`` bool,
            where ``warped`` was measured and not extrapolated; ``step``, an int: ``ddf`` and ``inverse_ddf`` are linear
            between every ``step``-th voxel; and, with draws, ``ddf_std``, the standard deviation of ``ddf``.

        Raises:
            InputError: If the images are not finite, or the network and the storage are incompatible.
        """
        images = as_images(inputs)
        if not torch.isfinite(self.storage.sum(lambda part: part.sum(dtype=torch.float32), images)):
            raise InputError("images: expected finite intensities in [0, 1], got NaN or infinite ones; replace them")
        # Values outside the coverage are imputed from the other timepoints, with which they then agree.
        if self.storage.scans_at_once:
            prediction = self._predict_streamed(images, coverage, network)
        else:
            prediction = self.predict(images if coverage is None else impute(images, coverage > 0.5), network)
        dvf = prediction.dvf
        evidence = Evidence(coverage, mask, getattr(self.alignment, "reference", 0))
        if self.refinement is not None:
            dvf = self._refined(dvf, images, evidence, initial, one_header)
        result = self.registered(images, replace(prediction, dvf=dvf), coverage)
        if self.draws:
            draws = (
                self._refined_draws(dvf, images, evidence)
                if self.refinement is not None
                else self._network_draws(prediction, network)
            )
            result["ddf_std"] = self._spread(draws)
        return result

    def _predict_streamed(self, images: Tensor, coverage: Tensor | None, network: nn.Module) -> Prediction:
        """Predict in one pass, a few timepoints at a time, or no motion if the network needs all at once. The posterior
        has variance 0, stored as a single number."""
        model, size = getattr(network, "module", network), images.shape[2:]
        if streams(model):
            imputed = images if coverage is None else streamed_imputation(images, coverage, self.storage)
            with self._autocast(images):
                z = streamed_mean(model, imputed, self.storage)
        elif self.refinement is None:
            raise InputError(
                f"scans_at_once: expected null with {type(model).__name__} and without a refinement, got "
                f"{self.storage.scans_at_once}; leave out --no-refine, take the default model, or give fewer scans"
            )
        else:
            logger.warning("The network needs all scans at once, which do not fit: the refinement starts without it.")
            components = len(size) * getattr(self.transformation, "pieces", 1)
            z = torch.zeros(()).expand(*images.shape[:2], components, *[-(-n // model.stride) for n in size])
        shared = self.alignment.shared(z, self.storage.chunks)
        dvf = Field(self.storage.map(lambda part: part - shared, z), size, model.stride)
        no_variance = torch.full((), -torch.inf).expand(z.shape)
        return Prediction(dvf, z, no_variance, (z, no_variance), images)

    def predict(
        self, images: Tensor, network: nn.Module, choose: Callable[[Tensor, Tensor], Tensor] = _mean
    ) -> Prediction:
        """Predict by all ``passes``; arguments as for `steps`."""
        *_, prediction = self.steps(images, network, choose)
        return prediction

    def steps(
        self, images: Tensor, network: nn.Module, choose: Callable[[Tensor, Tensor], Tensor] = _mean
    ) -> Iterator[Prediction]:
        """Yield the prediction after each of ``passes``, each continuing from the previous one.

        Args:
            images: ``(B, K, *S)``.
            network: network that returns the parameters of the posterior.
            choose: maps the mean and log variance of a pass's posterior to z, such as the mean or a draw.
        """
        model = getattr(network, "module", network)
        dvf, warped, size = None, images, images.shape[2:]
        draws, parameters = [], []
        for number in range(self.passes):
            if number:
                warped = warp(images, Field(self._displacement(dvf), size, model.stride).on_image())
            parameters.append(self._posterior(warped, network))
            draws.append(choose(*parameters[-1]))
            before = dvf
            dvf = self.alignment.constrain(self.transformation.joined(before, model.decode(draws[-1], warped)))
            posterior = self.posterior.of_passes(draws, *zip(*parameters))
            yield Prediction(Field(dvf, size, model.stride), *posterior, parameters[-1], warped, before)

    @full_precision
    def _refined(
        self, dvf: Field, images: Tensor, evidence: Evidence, initial: Tensor | None, one_header: bool
    ) -> Field:
        alignment = self.alignment
        centred = dvf.like(alignment.centred(dvf.values))
        shape = centred.values[:, :, : images.dim() - 2].shape
        undeformed = centred.like(centred.values.new_zeros(()).expand(shape))
        hypotheses = [undeformed]
        if one_header and initial is not None:
            # The motion of static tissue in an aligned timepoint is the inverse of the initial transform.
            static = self.storage.map(
                lambda part: -torch.cat([affine_velocity(logarithms, dvf).values for logarithms in part]), initial
            )
            hypotheses.append(dvf.like(alignment.centred(alignment.constrain(static))))
        refined = self.refinement(centred, images, self._displacement_of_centred, evidence, hypotheses)
        shared = alignment.shared(refined.values, self.storage.chunks)
        return refined.like(self.storage.map(lambda z: z - shared, refined.values))

    def _refined_draws(self, dvf: Field, images: Tensor, evidence: Evidence) -> Iterator[Field]:
        centred = dvf.like(self.alignment.centred(dvf.values))
        draws = self.refinement.draws(centred, images, self._displacement_of_centred, evidence, self.draws, self.seed)
        return (draw.like(self.alignment.anchored(draw.values)) for draw in draws)

    def _displacement(self, z: Tensor) -> Tensor:
        return self.transformation(self.alignment.constrain(z))

    def _displacement_of_centred(self, z: Tensor) -> Tensor:
        shared = self.alignment.shared(z, self.storage.chunks)
        return self.storage.map(lambda part: self.transformation(part - shared), z)

    def _autocast(self, images: Tensor) -> AbstractContextManager:
        return torch.autocast(images.device.type, torch.bfloat16) if self.network_bf16 else nullcontext()

    def _posterior(self, images: Tensor, network: nn.Module) -> tuple[Tensor, Tensor]:
        with self._autocast(images):
            parameters = self._parameters(images, network)
        return split_parameters(parameters.float(), images.shape[1])

    def _parameters(self, images: Tensor, network: nn.Module) -> Tensor:
        size = images.shape[2:]
        if not self.window_size_voxels:
            return network(images)
        window = [min(w, n) for w, n in zip(self.window_size_voxels, size)]
        if list(window) == list(size):
            return network(images)
        # The borders of windows must lie on voxels of the grid of z.
        multiple = getattr(network, "module", network).multiple
        window = [-(-w // multiple) * multiple for w in window]
        padding = [p for w, n in zip(reversed(window), reversed(size)) for p in (0, max(w - n, -n % multiple))]
        padded = nn.functional.pad(images, padding, mode="replicate")
        blended = sliding_window_inference(padded, window, 1, network, overlap=self.overlap, mode="gaussian")
        stride = getattr(network, "module", network).stride
        return blended[(..., *[slice(-(-n // stride)) for n in size])]

    def _network_draws(self, prediction: Prediction, network: nn.Module) -> Iterator[Field]:
        decode = getattr(network, "module", network).decode
        device = prediction.images.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            for _ in range(self.draws):
                drawn = decode(self.posterior.draw(*prediction.last), prediction.images)
                joined = self.transformation.joined(prediction.before, drawn)
                yield prediction.dvf.like(self.alignment.constrain(joined))

    @full_precision
    def _spread(self, draws: Iterable[Field]) -> Tensor:
        draws = iter(draws)
        first = next(draws)
        fields = chain([first], draws)
        std = standard_deviation(self.alignment(dvf.values, self.transformation) for dvf in fields)
        return first.like(std).on_image()
