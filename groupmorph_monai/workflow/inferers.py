"""How a posterior becomes a registration."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from monai.inferers import Inferer, sliding_window_inference
from scipy.linalg import logm
from torch import Tensor, nn

from ..errors import InputError
from ..probability.posterior import Posterior, split_parameters
from ..space.alignment import MeanAlignment, ReferenceAlignment, Transformation, affine_in_voxels, affine_velocity
from ..space.grid import compose, upsample_field, warp
from ..space.spread import standard_deviation
from .affine_refinement import AffineRefinement
from .refinement import Refinement, stride_of

__all__ = ["RegistrationInferer", "native_bf16", "prepare_series"]


def native_bf16(device: torch.device | str) -> bool:
    """Whether ``device`` multiplies bfloat16 numbers itself: elsewhere they take longer than float32."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(kind == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False))


def prepare_series(
    batch: Mapping, device: torch.device | None = None, non_blocking: bool = False, **kwargs
) -> tuple[Tensor, dict[str, Tensor] | None, tuple, dict[str, Tensor]]:
    """What MONAI's engines hand to the inferer and the loss: the series; ``points`` and ``distance`` of its surfaces
    where it has them; its mask, and the logarithms of its initial maps, in voxels, where it
    has any."""
    found = {
        key: batch[key].to(device=device, non_blocking=non_blocking, **kwargs)
        for key in ("image", "mask", "surface_points", "surface_distance")
        if key in batch
    }
    surfaces = {key: found[f"surface_{key}"] for key in ("points", "distance") if f"surface_{key}" in found}
    others = {"mask": found["mask"]} if "mask" in found else {}
    if "initial" in batch:
        maps = affine_in_voxels(batch["initial"], batch["affine"].unsqueeze(1))
        logarithms = [torch.from_numpy(np.real(logm(m.numpy()))) for m in maps.flatten(0, 1)]
        others["initial"] = torch.stack(logarithms).view(maps.shape)
    return found["image"], surfaces or None, (), others


def _both_orders(pairs: Tensor) -> Tensor:
    """``(B, 2, *S)`` to ``(2 * B, 2, *S)``: as they are, then exchanged."""
    if pairs.shape[1] != 2:
        raise InputError(
            f"symmetry_weight: expected pairs, got {pairs.shape[1]} timepoints; add --overlay modes/symmetric"
        )
    return torch.cat([pairs, pairs.flip(1)])


class RegistrationInferer(Inferer):
    """One draw of z while training, its mean while evaluating; windows where the volume is large; many draws on
    request.

    Windows are blended in the posterior's parameters, then integrated and warped once on the whole grid.

    The network may look again at what its last answer left: each further pass encodes the images warped by the velocity
    so far and adds that of the new posterior. ``exp(v) o exp(d) = exp(v + d)`` to first order (Baker-Campbell-
    Hausdorff), and what that neglects the next pass sees. Images are interpolated once whatever the number of passes.

    Args:
        alignment: what the timepoints are aligned to.
        transformation: from a field to a displacement.
        passes: times that the network sees the series.
        refinement: of the velocity for the series at hand, after the last pass; none leaves the network's answer.
        window_size_voxels: largest extent that passes through the network in one piece, an axis each; none for no
            limit.
        overlap: of neighbouring windows, as a share of their size.
        draws: number of draws of z for ``ddf_std``; 0 leaves it out.
        seed: of those draws and of the refinement, so that the same series gives the same result.
        posterior: what the network's parameters are of; none is one that does not smooth.
        bidirectional: while training, give ``returned`` too: the mean of the aligned volumes carried back to every
            timepoint, beside that timepoint's own volume, ``(B * K, 2, *S)``, for the loss to compare.
        invert: give ``inverse_ddf`` while training too, as a loss of surfaces needs it.
        exchange: while training, register every pair in the other order too, as a batch of twice the size (AVSM, Eq. 6
            and 11), and give ``there_and_back`` ``(B, 3, *S)``, the displacement of one map after the other, voxels.
            The first timepoint is the reference.
        codes: gives z ``(B, K, C, *S_z)`` for the images and the network, in place of the posterior's mean.
        network_bf16: the network's convolutions in bfloat16. What follows it, fields above all, is float32 whatever
            this says.
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
        bidirectional: bool = False,
        invert: bool = False,
        codes: Callable[[Tensor, nn.Module], Tensor] | None = None,
        network_bf16: bool = False,
        exchange: bool = False,
    ):
        super().__init__()
        if passes < 1:
            raise InputError(f"passes: expected 1 or more, got {passes}; one is enough but for models/avsm_affine")
        if draws < 0:
            raise InputError(f"std_draws: expected 0 or more, got {draws}; 20 are enough")
        if exchange and getattr(alignment, "reference", None) != 0:
            raise InputError(
                "symmetry_weight: expected maps onto the first timepoint, got another alignment; add --overlay "
                "modes/symmetric"
            )
        if draws and refinement is not None:
            refinement.check_draws(draws)
        self.alignment, self.transformation, self.passes = alignment, transformation, passes
        self.refinement = refinement
        self.window_size_voxels, self.overlap = window_size_voxels, overlap
        self.draws, self.seed, self.posterior = draws, seed, posterior or Posterior()
        self.bidirectional, self.invert, self.codes = bidirectional, invert, codes
        self.network_bf16, self.exchange = network_bf16, exchange

    def __call__(
        self,
        inputs: Tensor,
        network: nn.Module,
        *args,
        mask: Tensor | None = None,
        initial: Tensor | None = None,
        **kwargs,
    ) -> dict[str, Tensor]:
        """Register ``inputs`` ``(B, K, *S)``, intensities in [0, 1]; ``mask`` restricts the refinement, as there;
        ``initial`` ``(B, K, 4, 4)`` are the logarithms of the maps, in voxels, that have moved them already.

        Returns: ``warped`` ``(B, K, *S)``; ``ddf`` ``(B, K, D, *S)``, common space to timepoint, voxels; ``dvf`` ``(B,
            K, D, *C)``, the velocity on a lattice of the images, in its voxels; ``z_mean``, ``z_log_variance``, the
            network's posterior in its last pass; while evaluating also ``inverse_ddf`` ``(B, K, D, *S)``, timepoint to
            common space, and with draws ``ddf_std``, like ``ddf``.
        """
        model = getattr(network, "module", network)
        images = inputs.as_tensor() if hasattr(inputs, "as_tensor") else inputs
        constrain = self.alignment.constrain
        if network.training and self.exchange:
            images = _both_orders(images)

        dvf, seen = 0, images
        for number in range(self.passes):
            if number:
                seen = warp(images, self._on_image_grid(self._displacement(dvf), images))
            mean, log_variance = self._posterior(seen, network)
            z = self.posterior.draw(mean, log_variance) if network.training else mean
            dvf = constrain(dvf + model.decode(z, seen))
        if self.refinement is not None and not network.training:
            dvf = constrain(self._refined(dvf, images, mask, initial))
        ddf = self._on_image_grid(self.alignment(dvf, self.transformation), images)
        result = {"warped": warp(images, ddf), "ddf": ddf, "dvf": dvf, "z_mean": mean, "z_log_variance": log_variance}
        if not network.training or self.invert or self.bidirectional:
            result["inverse_ddf"] = self._on_image_grid(self.alignment.inverse(dvf, self.transformation), images)
        if network.training:
            self._add_comparisons(result, images)
        if not network.training and self.draws:
            draws = (
                self._refined_draws(dvf, images, mask)
                if self.refinement is not None
                else self._network_draws(dvf, mean, log_variance, model, seen)
            )
            result["ddf_std"] = self._spread(draws, images)
        return result

    def _refined(self, dvf: Tensor, images: Tensor, mask: Tensor | None, initial: Tensor | None) -> Tensor:
        centred, still = self.alignment.centred, None
        if initial is not None:
            stride = stride_of(dvf, images)
            still = -torch.stack([affine_velocity(logs, dvf, stride) for logs in initial])
            still = centred(self.alignment.constrain(still))
        with self._seeded(images):  # a likelihood may look at voxels drawn at random
            found = self.refinement(centred(dvf), images, self._displacement_of_centred, mask, still)
        return self.alignment.anchored(found)

    def _refined_draws(self, dvf: Tensor, images: Tensor, mask: Tensor | None) -> Iterator[Tensor]:
        centred = self.alignment.centred(dvf)
        draws = self.refinement.draws(centred, images, self._displacement_of_centred, mask, self.draws, self.seed)
        return map(self.alignment.anchored, draws)

    def _displacement(self, z: Tensor) -> Tensor:
        return self.transformation(self.alignment.constrain(z))

    def _displacement_of_centred(self, z: Tensor) -> Tensor:
        return self._displacement(self.alignment.anchored(z))

    def _add_comparisons(self, result: dict[str, Tensor], images: Tensor) -> None:
        """What a loss compares beside ``warped``, where it is asked for."""
        if self.bidirectional:
            common = result["warped"].mean(dim=1, keepdim=True).expand_as(images)
            result["returned"] = torch.stack([images, warp(common, result["inverse_ddf"])], dim=2).flatten(0, 1)
        if self.exchange:
            there, back = result["ddf"][:, 1:].chunk(2)
            result["there_and_back"] = compose(there, back)[:, 0]

    def _posterior(self, images: Tensor, network: nn.Module) -> tuple[Tensor, Tensor]:
        if self.codes is not None:
            mean = self.codes(images, network)
            return mean, torch.full_like(mean, -torch.inf)
        autocast = torch.autocast(images.device.type, torch.bfloat16) if self.network_bf16 else nullcontext()
        with autocast:
            parameters = self._parameters(images, network)
        return split_parameters(parameters.float(), images.shape[1])

    def _parameters(self, images: Tensor, network: nn.Module) -> Tensor:
        size = images.shape[2:]
        if network.training or not self.window_size_voxels:
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

    def _on_image_grid(self, ddf: Tensor, images: Tensor) -> Tensor:
        size = images.shape[2:]
        return upsample_field(ddf, stride_of(ddf, images), size)

    @contextmanager
    def _seeded(self, like: Tensor) -> Iterator[None]:
        with torch.random.fork_rng(devices=[like.device] if like.is_cuda else []):
            torch.manual_seed(self.seed)
            yield

    def _network_draws(
        self, dvf: Tensor, mean: Tensor, log_variance: Tensor, model: nn.Module, seen: Tensor
    ) -> Iterator[Tensor]:
        found = model.decode(mean, seen)
        with self._seeded(mean):
            for _ in range(self.draws):
                yield dvf + model.decode(self.posterior.draw(mean, log_variance), seen) - found

    def _spread(self, draws: Iterable[Tensor], images: Tensor) -> Tensor:
        std = standard_deviation(self.alignment(dvf, self.transformation) for dvf in draws)
        return self._on_image_grid(std, images)
