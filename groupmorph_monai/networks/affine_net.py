"""AVSM's first stage: affine maps, found in several looks by one network."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..space.grid import voxel_grid
from ..space.lattice import coarsen
from .layers import check_timepoints, keep_signal

__all__ = ["AffineNet"]


def _half_sides(size: Sequence[int], step: int, lattice: Sequence[int], like: Tensor) -> Tensor:
    """Where every ``step``-th voxel of a volume of ``size`` lies, about its centre, in halves of its longest side:
    ``(D, *lattice)``."""
    centre = (torch.tensor(size, dtype=like.dtype, device=like.device) - 1) / 2
    return (step * voxel_grid(lattice, like) - centre.view(3, 1, 1, 1)) / (max(size) / 2)


class AffineNet(nn.Module):
    """The affine network of AVSM (Shen et al. 2019, Section 2.1 and Fig. 2), whose steps are the passes of the inferer:
    each sees the images warped by what was found so far, and its weights are the same.

    The paper leaves open what is inside. Here shared filters describe every 4th voxel of each timepoint, the
    descriptions are matched with the mean of the other timepoints', each voxel with all, and the affine velocity is the
    weighted least squares fit to where they match: 1300 iterations brought phantoms to a fifth of the error at which
    fully connected layers after the filters stayed.

    The paper multiplies matrices and adds translations (Eq. 1). Here z is the logarithm of a map, twelve numbers a
    timepoint, and the steps' logarithms add up, which is that to first order; what it neglects the next step sees.
    So a map and its inverse agree without the paper's symmetry loss, and K maps with their mean removed are group-wise.
    It is a point estimate: the log variance is minus infinity.

    Args:
        channels: filters at every 2nd and 4th voxel.
        descriptors: numbers that describe a voxel.
        most_voxels: along any axis of what it sees; a larger volume is thinned before.
    """

    def __init__(self, channels: Sequence[int] = (16, 32), descriptors: int = 32, most_voxels: int = 40):
        super().__init__()
        self.multiple = self.stride = 1
        self.most_voxels = most_voxels
        self.encoder, width = nn.ModuleList(), 1
        for channel in channels:
            self.encoder.append(nn.Conv3d(width, channel, 3, stride=2, padding=1))
            width = channel
        self.encoder.append(nn.Conv3d(width, width, 3, padding=1))
        self.describe = nn.Conv3d(width, descriptors, 3, padding=1)
        self.trust = nn.Linear(2 * descriptors, 1)
        self.log_sharpness = nn.Parameter(torch.tensor(2.3))
        keep_signal((*self.encoder, self.describe))
        nn.init.zeros_(self.trust.weight)
        nn.init.zeros_(self.trust.bias)

    def forward(self, images: Tensor) -> Tensor:
        """``(B, K, *S)`` in [0, 1] to ``(B, 2*K*12, 1, 1, 1)``: logarithms, then log variances of minus infinity."""
        timepoints, size = check_timepoints(images), images.shape[2:]
        factor = -(-max(size) // self.most_voxels)
        x = coarsen(images, factor).flatten(0, 1).unsqueeze(1)
        for layer in self.encoder:
            x = F.leaky_relu(layer(x), 0.2)
        x = self.describe(x)
        places = _half_sides(size, factor * 2 ** (len(self.encoder) - 1), x.shape[2:], x).flatten(1)
        own = x.flatten(2)
        own = F.normalize(own - own.mean(dim=2, keepdim=True), dim=1)
        series = own.unflatten(0, (-1, timepoints))
        others = F.normalize(series.sum(dim=1, keepdim=True) - series, dim=2).flatten(0, 1)
        logarithms = self._fit(others, own, places)
        # Mean 0 over K: what separates a timepoint from the mean of the others is K / (K - 1) of its own velocity.
        logarithms = (logarithms * (1 - 1 / timepoints)).view(-1, timepoints * 12, 1, 1, 1)
        return torch.cat([logarithms, torch.full_like(logarithms, -math.inf)], dim=1)

    def _fit(self, target: Tensor, source: Tensor, places: Tensor) -> Tensor:
        """Affine velocities ``(N, 12)`` from ``target`` to the like in ``source``, descriptions ``(N, C, P)`` of P
        ``places`` ``(D, P)``."""
        share = torch.softmax(self.log_sharpness.exp() * (target.mT @ source), dim=2)
        velocity = (share @ places.T).mT - places
        trust = self.trust(torch.cat([target.mT, share @ source.mT], dim=2)).squeeze(2).softmax(dim=1)
        affine = torch.cat([places, torch.ones_like(places[:1])])
        # A thousandth holds the solution where all trust is in one place.
        square = torch.einsum("np,ip,jp->nij", trust, affine, affine) + 1e-3 * torch.eye(4).to(affine)
        right = torch.einsum("np,ip,ndp->nid", trust, affine, velocity)
        solution = torch.linalg.solve(square, right)  # (N, 4, 3)
        return torch.cat([solution[:, :3].mT.flatten(1), solution[:, 3]], dim=1)

    @torch.jit.ignore
    def decode(self, z: Tensor, images: Tensor) -> Tensor:
        """Velocities ``(B, K, 3, *S)`` of logarithms ``(B, K, 12, 1, 1, 1)``: a matrix, row by row, then a translation,
        of coordinates about the images' centre in halves of their longest side."""
        size = images.shape[2:]
        parameters = z.flatten(2)
        matrix, translation = parameters[..., :9].unflatten(2, (3, 3)), parameters[..., 9:]
        velocity = torch.einsum("bkde,exyz->bkdxyz", matrix, _half_sides(size, 1, size, z))
        return (velocity + translation[..., None, None, None]) * (max(size) / 2)
