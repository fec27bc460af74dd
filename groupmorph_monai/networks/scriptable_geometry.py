"""Integration and resampling of fields as in `space`, restricted to what TorchScript supports."""

from torch import Tensor
from torch.nn import functional as F

from ..space.filters import gradient
from ..space.sampling import displace


def exponential(z: Tensor, squarings: int) -> Tensor:
    """Integrate velocities ``(N, 3, *S)`` by scaling and squaring."""
    u = z / 2.0**squarings
    for _ in range(squarings):
        u = u + displace(u, u)
    return u


def continued_gradient(x: Tensor) -> Tensor:
    """Compute the `gradient` of ``x`` continued by its border values, whose slopes at the border are half as steep."""
    return gradient(F.pad(x, [1] * 6, mode="replicate"))[:, :, :, 1:-1, 1:-1, 1:-1]


def upsampled(z: Tensor, factor: int = 2) -> Tensor:
    """Interpolate a field from a lattice, in voxels of it, to the lattice of ``factor`` times the resolution."""
    size = [factor * (z.shape[axis] - 1) + 1 for axis in (2, 3, 4)]
    fine = F.interpolate(factor * z, size=size, mode="trilinear", align_corners=True)
    return F.pad(fine, [0, factor - 1] * 3, mode="replicate")


def half_as_fine(x: Tensor) -> Tensor:
    """Average ``x`` to the lattice of every second voxel."""
    return F.avg_pool3d(x, 3, stride=2, padding=1, count_include_pad=False)
