"""p(surfaces given z): how far a structure's surface, carried to another timepoint, lies from its surface there."""

from collections.abc import Mapping

from torch import Tensor, nn

from ..space.grid import sample

__all__ = ["SurfaceDistance"]


def _carried(points: Tensor, ddf: Tensor) -> Tensor:
    """``p + ddf(p)`` of points ``(N, P, 3)`` by fields ``(N, 3, *S)``."""
    return points + sample(ddf, points.mT[..., None, None])[..., 0, 0].mT


class SurfaceDistance(nn.Module):
    """Log likelihood of the K surfaces of one structure, ``-mean(distance^2) / (2 noise^2)`` (VoxelMorph-diff, Eqs. 8
    to 11): the generative model's corresponding points are not known, so that the distance is that to the nearest point
    of the other surface.

    Points on the surface of timepoint i go to the common space and on to timepoint j, where the distance transform of
    j's surface is read. All ordered pairs count; for two timepoints they are the two directions of Eq. 11, which prints
    the distance where Eqs. 8 and 10 have its square. The mean over points stands where the paper sums over 100,000, so
    that the weight does not change with their number.

    Args:
        noise_voxels: standard deviation sigma_s of the surfaces.
    """

    def __init__(self, noise_voxels: float = 2.0):
        super().__init__()
        if noise_voxels <= 0:
            raise ValueError(f"noise_voxels: expected more than 0, got {noise_voxels}")
        self.variance = noise_voxels**2

    def forward(self, ddf: Tensor, inverse_ddf: Tensor, surfaces: Mapping[str, Tensor]) -> Tensor:
        """Scalar.

        Args:
            ddf, inverse_ddf: ``(B, K, 3, *S)``, common space to timepoint and back, voxels.
            surfaces: ``points`` ``(B, K, P, 3)``, voxel coordinates in their timepoint, and ``distance`` ``(B, K,
                *S)``, from every voxel to that timepoint's surface, voxels, of either sign.
        """
        points, distance = surfaces["points"], surfaces["distance"].flatten(0, 1).unsqueeze(1)
        timepoints = points.shape[1]
        common = _carried(points.flatten(0, 1), inverse_ddf.flatten(0, 1)).unflatten(0, points.shape[:2])
        total = distance.new_zeros(())
        for shift in range(1, timepoints):  # surface i in timepoint i + shift
            carried = _carried(common.roll(shift, dims=1).flatten(0, 1), ddf.flatten(0, 1))
            total = total + sample(distance, carried.mT[..., None, None]).square().mean()
        return -total / (timepoints - 1) / (2 * self.variance)
