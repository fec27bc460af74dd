"""How a posterior becomes a registration."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from monai.inferers import Inferer, sliding_window_inference
from torch import Tensor, nn

from ..probability.posterior import draw, split_parameters
from ..space.alignment import MeanAlignment, ReferenceAlignment
from ..space.grid import upsample_field, warp
from ..space.integrate import Displacement, ScalingAndSquaring
from .refinement import Refinement, stride_of

__all__ = ["RegistrationInferer", "prepare_series"]


def prepare_series(
    batch: Mapping, device: torch.device | None = None, non_blocking: bool = False, **kwargs
) -> tuple[Tensor, None, tuple, dict[str, Tensor]]:
    """What MONAI's evaluator hands to the inferer: the series, and its mask where it has one."""
    images, *mask = (
        batch[key].to(device=device, non_blocking=non_blocking, **kwargs) for key in ("image", "mask") if key in batch
    )
    return images, None, (), {"mask": mask[0]} if mask else {}


class RegistrationInferer(Inferer):
    """One draw of z while training, its mean while evaluating; windows where the volume is large; many draws on
    request.

    Windows are blended in the parameters of z, then integrated and warped once on the whole grid.

    While evaluating, the network may look again at what its last answer left: each further pass encodes the images
    warped by the z so far and adds the mean of that posterior. ``exp(z) o exp(d) = exp(z + d)`` to first order
    (Baker-Campbell-Hausdorff), and what that neglects the next pass sees. Images are interpolated once whatever the
    number of passes.

    Args:
        alignment: what the timepoints are aligned to.
        transformation: from a field to a displacement.
        passes: times that the network sees the series while evaluating.
        refinement: of z for the series at hand, after the last pass; none leaves the network's answer. What the
            posterior's variance is then brought to is the lattice of the refined z.
        window_size_voxels: largest extent that passes through the network in one piece, an axis each; none for no
            limit.
        overlap: of neighbouring windows, as a share of their size.
        draws: number of draws of z for ``ddf_std``; 0 leaves it out.
        seed: of those draws, so that the same series gives the same map.
    """

    def __init__(
        self,
        alignment: MeanAlignment | ReferenceAlignment,
        transformation: ScalingAndSquaring | Displacement,
        passes: int = 1,
        refinement: Refinement | None = None,
        window_size_voxels: Sequence[int] | None = None,
        overlap: float = 0.5,
        draws: int = 0,
        seed: int = 0,
    ):
        super().__init__()
        if passes < 1:
            raise ValueError(f"passes: expected 1 or more, got {passes}")
        self.alignment, self.transformation, self.passes = alignment, transformation, passes
        self.refinement = refinement
        self.window_size_voxels, self.overlap = window_size_voxels, overlap
        self.draws, self.seed = draws, seed

    def __call__(
        self, inputs: Tensor, network: nn.Module, *args, mask: Tensor | None = None, **kwargs
    ) -> dict[str, Tensor]:
        """Register ``inputs`` ``(B, K, *S)``, intensities in [0, 1]; ``mask`` restricts the refinement, as there.

        Returns: ``warped`` ``(B, K, *S)``; ``ddf`` ``(B, K, D, *S)``, common space to timepoint, voxels; ``z_mean``,
            ``dvf`` ``(B, K, D, *S_z)`` on the grid of z in its voxels, ``z_log_variance`` where z is not refined; while
            evaluating also ``inverse_ddf`` ``(B, K, D, *S)``, timepoint to common space, and with draws ``ddf_std``,
            like ``ddf``.
        """
        model = getattr(network, "module", network)
        images = inputs.as_tensor() if hasattr(inputs, "as_tensor") else inputs
        mean, log_variance = split_parameters(self._parameters(images, network), images.shape[1])

        def displacement(z: Tensor) -> Tensor:
            return self.transformation(self.alignment.constrain(model.decode(z, images)))

        if not network.training:
            mean = self.alignment.constrain(mean)
            for _ in range(self.passes - 1):
                moved = warp(images, self._on_image_grid(displacement(mean), images))
                residual, log_variance = split_parameters(self._parameters(moved, network), images.shape[1])
                mean = self.alignment.constrain(mean + residual)
            if self.refinement is not None:
                mean = self.alignment.constrain(self.refinement(mean, images, displacement, mask))
        z = draw(mean, log_variance) if network.training else mean
        dvf = model.decode(z, images)
        ddf = self._on_image_grid(self.alignment(dvf, self.transformation), images)
        result = {"warped": warp(images, ddf), "ddf": ddf, "dvf": dvf, "z_mean": mean}
        refined = not network.training and self.refinement is not None
        if not refined:
            result["z_log_variance"] = log_variance
        if not network.training:
            result["inverse_ddf"] = self._on_image_grid(self.alignment.inverse(dvf, self.transformation), images)
            if self.draws:
                draws = (
                    self.refinement.draws(mean, images, displacement, mask, self.draws, self.seed)
                    if refined
                    else self._network_draws(mean, log_variance)
                )
                result["ddf_std"] = self._spread(draws, model, images)
        return result

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

    def _network_draws(self, mean: Tensor, log_variance: Tensor) -> Iterator[Tensor]:
        with torch.random.fork_rng(devices=[mean.device] if mean.is_cuda else []):
            torch.manual_seed(self.seed)
            for _ in range(self.draws):
                yield draw(mean, log_variance)

    def _spread(self, draws: Iterable[Tensor], model: nn.Module, images: Tensor) -> Tensor:
        total, squares = 0, 0
        for z in draws:
            ddf = self.alignment(model.decode(z, images), self.transformation)
            total, squares = total + ddf, squares + ddf.square()
        variance = (squares - total.square() / self.draws) / max(self.draws - 1, 1)
        return self._on_image_grid(variance.clamp_min(0).sqrt(), images)
