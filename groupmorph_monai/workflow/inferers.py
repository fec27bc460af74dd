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
from ..space.grid import displace_observed, full_precision, warp
from ..space.spread import standard_deviation
from .affine_refinement import AffineRefinement
from .evidence import Evidence
from .refinement import Refinement
from .streamed_network import streamed_imputation, streamed_mean, streams

__all__ = ["FieldInferer", "Prediction", "RegistrationInferer", "as_images", "native_bf16", "prepare_series"]

logger = logging.getLogger(__name__)


def native_bf16(device: torch.device | str) -> bool:
    """Whether ``device`` multiplies bfloat16 numbers itself: elsewhere they take longer than float32."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # PyTorch below 2.13 does not tell
    return bool(kind == "cpu" and capabilities.get("avx512_bf16", False))


def prepare_series(
    batch: Mapping, device: torch.device | None = None, non_blocking: bool = False, **kwargs
) -> tuple[Tensor, dict[str, Tensor] | None, tuple, dict[str, Tensor]]:
    """Prepare what MONAI's engines hand to the inferer and the loss: the series; ``points`` and ``distance`` of its
    surfaces where it has them; and of its ``coverage``, its ``mask`` and the logarithms of its ``initial`` maps, in
    voxels, those that it has; and ``one_header``."""
    tensors = {
        key: as_images(batch[key]).to(device=device, non_blocking=non_blocking, **kwargs)
        for key in ("image", "coverage", "mask", "surface_points", "surface_distance")
        if key in batch
    }
    surfaces = {key: tensors[f"surface_{key}"] for key in ("points", "distance") if f"surface_{key}" in tensors}
    others = {key: tensors[key] for key in ("coverage", "mask") if key in tensors}
    others["one_header"] = bool(torch.as_tensor(batch.get("one_header", True)).all())
    if "initial" in batch:
        maps = affine_in_voxels(batch["initial"], batch["affine"].unsqueeze(1))
        logarithms = [torch.from_numpy(np.real(logm(m.numpy()))) for m in maps.flatten(0, 1)]
        others["initial"] = torch.stack(logarithms).view(maps.shape)
    return tensors["image"], surfaces or None, (), others


@dataclass(frozen=True)
class Prediction:
    """What a network says of a series.

    Args:
        dvf: the velocity of all passes, ``(B, K, D, *C)``.
        z_mean, z_log_variance: posterior of z of all passes, ``(B, K, C, *S_z)``, which priors weigh.
        last: mean and log variance of the last pass alone, which `decode` takes.
        before: the velocity of the passes before it, ``(B, K, D, *C)``; none where it is the first.
        images: what the last pass saw, ``(B, K, *S)``.
    """

    dvf: Field
    z_mean: Tensor
    z_log_variance: Tensor
    last: tuple[Tensor, Tensor]
    images: Tensor
    before: Tensor | None = None


class FieldInferer(Inferer):
    """What every inferer here ends with: velocities become displacements, and these warp the images, once.

    Args:
        alignment: what the timepoints are aligned to.
        transformation: from a field to a displacement.
        storage: of what there is of all timepoints.
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
        """``warped`` ``(B, K, *S)``; ``ddf`` ``(B, K, D, *S)``, common space to timepoint, voxels; ``dvf``, ``z_mean``
        and ``z_log_variance`` as they were predicted."""
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
        """Displacements from each timepoint to the common space, ``(B, K, D, *S)``, voxels of the images."""
        return dvf.like(self.alignment.inverse(dvf.values, self.transformation)).on_image()

    def registered(self, images: Tensor, prediction: Prediction, coverage: Tensor | None) -> dict[str, Tensor]:
        """What `warped` gives, ``inverse_ddf``, ``seen`` ``(B, K, *S)`` bool, where ``warped`` holds values that
        the timepoint has seen, and ``step``: both fields are linear between every ``step``-th voxel."""
        dvf, number = prediction.dvf, images.shape[1]

        def parts() -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
            for c, part in self.alignment.displacements(dvf.values, self.transformation, self.storage.chunks):
                ddf = dvf.like(part).on_image()
                yield c, (*_warped(images[:, c], ddf, None if coverage is None else coverage[:, c]), ddf)

        warped, seen, ddf = self.storage.collect(parts(), number)
        inverses = self.alignment.inverses(dvf.values, self.transformation, self.storage.chunks)
        (inverse,) = self.storage.collect(((c, (dvf.like(part).on_image(),)) for c, part in inverses), number)
        fields = {"ddf": ddf, "inverse_ddf": inverse, "dvf": dvf.values, "step": dvf.step}
        posterior = {"z_mean": prediction.z_mean, "z_log_variance": prediction.z_log_variance}
        return {"warped": warped, "seen": seen, **fields, **posterior}


def as_images(inputs: Tensor) -> Tensor:
    """Convert MONAI's tensors with metadata to plain ones."""
    return inputs.as_tensor() if hasattr(inputs, "as_tensor") else inputs


def _mean(mean: Tensor, log_variance: Tensor) -> Tensor:
    return mean


class RegistrationInferer(FieldInferer):
    """Register series by the mean of the network's posterior; windows where the volume is large; many draws on request.

    Windows are blended in the posterior's parameters, then integrated and warped once on the whole grid.

    The network may take additional passes over what its last prediction left: each encodes the images warped by the
    velocity so far and joins that of the new posterior to it, as the transformation has it. Where velocities are added,
    what that neglects the next pass sees. Images are interpolated once whatever the number of passes.

    Args:
        alignment: what the timepoints are aligned to.
        transformation: from a field to a displacement.
        passes: times that the network sees the series.
        refinement: of the velocity for the series at hand, after the last pass; none leaves the network's prediction.
        window_size_voxels: largest extent that passes through the network in one piece, an axis each; none for no
            limit.
        overlap: of neighbouring windows, as a share of their size.
        draws: number of draws of z for ``ddf_std``; 0 leaves it out.
        seed: of those draws and of the refinement, so that the same series gives the same result.
        posterior: what the network's parameters are of; none is one that does not smooth.
        network_bf16: the network's convolutions in bfloat16. What follows it, fields above all, is float32 whatever
            this says.
        storage: of what there is of all timepoints. Where they are taken a few at a time, a network that `streams`
            predicts in one pass and without windows, and the refinement begins without a velocity where it does not.
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
            raise InputError(f"passes: expected 1 or more, got {passes}; one is enough but for models/avsm_affine")
        if draws < 0:
            raise InputError(f"std_draws: expected 0 or more, got {draws}; 20 are enough")
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
            "more passes than one": passes > 1,
            "affine refinement": isinstance(refinement, AffineRefinement),
        }
        for name in (name for name, needed in needs.items() if storage.scans_at_once and needed):
            raise InputError(
                f"scans_at_once: expected null with {name}, which all scans take part in at once, got "
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
            coverage, mask: which voxels of the inputs count in the refinement, as `Evidence` has it.
            initial: ``(B, K, 4, 4)``, logarithms of the maps, in voxels, that have moved the inputs already.
            one_header: whether all timepoints were scanned on one grid, so that tissue may be static in it.
        Returns: ``warped`` ``(B, K, *S)``; ``ddf`` and ``inverse_ddf`` ``(B, K, D, *S)``, common space to timepoint and
            back, voxels; ``dvf`` ``(B, K, D, *C)``, the velocity on a lattice of the images, in its voxels; ``z_mean``,
            ``z_log_variance``, the network's posterior, of all passes; ``seen`` ``(B, K, *S)`` bool, where ``warped``
            holds values that the timepoint has seen; ``step``, an int: ``ddf`` and ``inverse_ddf`` are linear between
            every ``step``-th voxel; and with draws ``ddf_std``, like ``ddf``.
        """
        images = as_images(inputs)
        if not torch.isfinite(self.storage.sum(lambda part: part.sum(dtype=torch.float32), images)):
            raise InputError("images: expected finite intensities in [0, 1], got NaN or infinite ones; replace them")
        # What was not seen agrees with what the other timepoints show there.
        if self.storage.scans_at_once:
            prediction = self._streamed(images, coverage, network)
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

    def _streamed(self, images: Tensor, coverage: Tensor | None, network: nn.Module) -> Prediction:
        """What is predicted in one pass, a few timepoints at a time; no motion by a network that takes all at once. The
        posterior is left without a variance, which takes no room."""
        model, size = getattr(network, "module", network), images.shape[2:]
        if streams(model):
            seen = images if coverage is None else streamed_imputation(images, coverage, self.storage)
            with self._autocast(images):
                z = streamed_mean(model, seen, self.storage)
        elif self.refinement is None:
            raise InputError(
                f"scans_at_once: expected null with {type(model).__name__} and without a refinement, got "
                f"{self.storage.scans_at_once}; leave out --no-refine, take the default model, or give fewer scans"
            )
        else:
            logger.warning("The network takes all scans at once, which do not fit: the refinement begins without it.")
            components = len(size) * getattr(self.transformation, "pieces", 1)
            z = torch.zeros(()).expand(*images.shape[:2], components, *[-(-n // model.stride) for n in size])
        shared = self.alignment.shared(z, self.storage.chunks)
        dvf = Field(self.storage.map(lambda part: part - shared, z), size, model.stride)
        no_variance = torch.full((), -torch.inf).expand(z.shape)
        return Prediction(dvf, z, no_variance, (z, no_variance), images)

    def predict(
        self, images: Tensor, network: nn.Module, choose: Callable[[Tensor, Tensor], Tensor] = _mean
    ) -> Prediction:
        """What is predicted after the last of ``passes``; arguments as in `steps`."""
        *_, prediction = self.steps(images, network, choose)
        return prediction

    def steps(
        self, images: Tensor, network: nn.Module, choose: Callable[[Tensor, Tensor], Tensor] = _mean
    ) -> Iterator[Prediction]:
        """What is predicted after each of ``passes``, which all go on from the one before.

        Args:
            images: ``(B, K, *S)``.
            choose: z from the mean and log variance of each pass' posterior.
        """
        model = getattr(network, "module", network)
        dvf, given, size = None, images, images.shape[2:]
        draws, parameters = [], []
        for number in range(self.passes):
            if number:
                given = warp(images, Field(self._displacement(dvf), size, model.stride).on_image())
            parameters.append(self._posterior(given, network))
            draws.append(choose(*parameters[-1]))
            before = dvf
            dvf = self.alignment.constrain(self.transformation.joined(before, model.decode(draws[-1], given)))
            posterior = self.posterior.of_passes(draws, *zip(*parameters))
            yield Prediction(Field(dvf, size, model.stride), *posterior, parameters[-1], given, before)

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
            # In a timepoint that an initial map moved, what is static has the inverse of that map.
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
        # Window borders must fall on voxels of the grid of z.
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


def _warped(images: Tensor, ddf: Tensor, coverage: Tensor | None) -> tuple[Tensor, Tensor]:
    """Warp ``(B, K, *S)`` by ``ddf`` ``(B, K, D, *S)``, and find where the result was covered, ``(B, K, *S)`` bool."""
    volumes = images.flatten(0, 1).unsqueeze(1).split(1)
    observed = [None] * len(volumes) if coverage is None else coverage.flatten(0, 1).unsqueeze(1).split(1)
    parts = [displace_observed(*part) for part in zip(volumes, observed, ddf.flatten(0, 1).split(1))]
    warped, covered = (torch.cat(part).squeeze(1).unflatten(0, images.shape[:2]) for part in zip(*parts))
    return warped, covered
