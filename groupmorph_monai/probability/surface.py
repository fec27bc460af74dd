"""p(surfaces given z): distances between the surfaces of a structure, transformed to another timepoint."""

from collections.abc import Mapping

from torch import Tensor, nn

from ..space.sampling import sample


def _transform_points(points: Tensor, ddf: Tensor) -> Tensor:
    """Compute ``p + ddf(p)`` for points ``(N, P, 3)`` and fields ``(N, 3, *S)``."""
    return points + sample(ddf, points.mT[..., None, None])[..., 0, 0].mT


class SurfaceDistance(nn.Module):
    """Log likelihood of the K surfaces of one structure, ``-mean(distance^2) / (2 noise^2)`` (VoxelMorph-diff, Eqs. 8
    to 11). Point correspondences are unknown: distances are measured to the nearest point of the other surface.

    Points on the surface of timepoint i are transformed to the common space and on to timepoint j, where the distance
    transform of j's surface is sampled. The mean is over all ordered pairs, for K = 2 the two directions of Eq. 11,
    which prints the distance where Eqs. 8 and 10 have its square. It is a mean over points, where the paper sums over
    100,000, so that the weight does not depend on their number.

    Args:
        noise_voxels: standard deviation sigma_s of the surfaces.
    """

    def __init__(self, noise_voxels: float = 2.0):
        super().__init__()
        if noise_voxels <= 0:
            raise ValueError(f"noise_voxels: expected more than 0, got {noise_voxels}")
        self.variance = noise_voxels**2

    def forward(self, ddf: Tensor, inverse_ddf: Tensor, surfaces: Mapping[str, Tensor]) -> Tensor:
        """Compute the log likelihood, a scalar.

        Args:
            ddf: displacements from the common space to the timepoints, ``(B, K, 3, *S)``, voxels.
            inverse_ddf: displacements from the timepoints to the common space, ``(B, K, 3, *S)``, voxels.
            surfaces: ``points`` ``(B, K, P, 3)``, voxel coordinates in their timepoint, and ``distance`` ``(B, K,
                *S)``, distance of every voxel to that timepoint's surface, voxels, signed or not.
        """
        points, distance = surfaces["points"], surfaces["distance"].flatten(0, 1).unsqueeze(1)
        timepoints = points.shape[1]
        common = _transform_points(points.flatten(0, 1), inverse_ddf.flatten(0, 1)).unflatten(0, points.shape[:2])
        total = distance.new_zeros(())
        for shift in range(1, timepoints):  # surface i in timepoint i + shift
            transformed = _transform_points(common.roll(shift, dims=1).flatten(0, 1), ddf.flatten(0, 1))
            total = total + sample(distance, transformed.mT[..., None, None]).square().mean()
        return -total / (timepoints - 1) / (2 * self.variance)
