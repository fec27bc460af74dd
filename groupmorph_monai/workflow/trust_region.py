"""Trust region of Gauss-Newton steps: steps of limited length, taken back and damped where the bound falls."""

import torch
from torch import Tensor

from ..data.storage import Storage
from ..space.cosine_transform import CosineTransform
from ..space.field import VelocityField
from .evidence import Quadratic
from .precision import Precision

# Factor on Gauss-Newton steps, which noise in the guide's gradients shortens, as it adds to the curvature: near the
# optimum, steps on phantoms shrink to 0.75 of the one before.
_OVERRELAXATION = 1.4
_LONGEST_VOXELS = 0.5  # mean length of a step on the lattice, beyond which the second-order model does not hold
_DAMPING = 8  # factor by which the damping falls after an accepted step and rises after a rejected one
# A smaller decrease is tolerated: the gradient neglects how a displacement changes the likelihood's windows, and the
# linear system is solved approximately.
_TOLERATED_DECREASE = 0.01


class TrustRegion:
    """Levenberg-Marquardt damping on one level. Everything is decided on the GPU, without waiting for it.

    Args:
        z: initial z of the level.
    """

    def __init__(self, z: VelocityField):
        self.z, self.damping = z, z.values.new_zeros(())
        self._model: Quadratic | None = None

    def accept(self, z: VelocityField, model: Quadratic, precision: Precision) -> Quadratic:
        """Accept z, or keep the previous z and take shorter steps if the bound fell.

        Args:
            z: z after a step.
            model: the likelihood's model at z.
            precision: precision of the prior.

        Returns:
            The model at the accepted z.
        """
        if self._model is not None:
            worse = _bound_fell(model, z.values, self._model, self.z.values, precision)
            kept = model.storage.map(lambda old, new: torch.where(worse, old, new), self.z.values, z.values)
            model, z = model.unless(worse, self._model), z.with_values(kept)
            self.damping = torch.where(worse, _DAMPING * self.damping + _DAMPING, self.damping / _DAMPING)
        self.z, self._model = z, model
        return model


def take_step(z: VelocityField, dz: Tensor, storage: Storage) -> tuple[VelocityField, Tensor]:
    """Add the over-relaxed step ``(K, D, *S)`` to z.

    Only the mean length is limited. Single steps may be longer, as in air, where the images show nothing and a long
    step does no harm.

    Returns:
        The new z, and the mean length of the step, in voxels of the image.
    """
    total = storage.sum(lambda part: part.square().sum(dim=1).sqrt().sum(), dz, dim=0)
    mean = total / (dz.numel() / dz.shape[1])
    factor = _OVERRELAXATION / (_OVERRELAXATION * mean / _LONGEST_VOXELS).clamp_min(1)
    return z.with_values(storage.map(lambda v, d: v + factor * d, z.values, dz[None])), z.lattice.step * mean * factor


def _bound_fell(model: Quadratic, z: Tensor, old_model: Quadratic, old_z: Tensor, precision: Precision) -> Tensor:
    """Return, as a scalar bool tensor, whether the bound fell by more than is tolerated from ``old_z`` to ``z``."""
    cosine, storage = CosineTransform(z.shape[3:], z), model.storage
    energy, old_energy = (0.5 * storage.sum(lambda part: precision.energy(cosine(part)), v) for v in (z, old_z))
    old_bound = old_model.value.sum() - old_energy
    return model.gain_over(old_model) - energy + old_energy < -_TOLERATED_DECREASE * old_bound.abs()
