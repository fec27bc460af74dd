"""AVSM's first stage: affine maps, found in several looks by one network."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..space.grid import full_precision, voxel_grid
from ..space.lattice import coarsen, gradient, window_normalise
from .layers import check_timepoints, keep_signal

__all__ = ["AffineNet", "half_side_frame"]

_WINDOW_VOXELS, _LEAST_CONTRAST = 2, 0.05  # radius; standard deviation, intensities in [0, 1]


def half_side_frame(size: Sequence[int]) -> Tensor:
    """``(4, 4)``, float64: from voxels of a volume of ``size`` to coordinates about its centre in halves of its longest
    side, those of `AffineNet`'s maps."""
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] *= 2 / max(size)
    matrix[:3, 3] = (1 - torch.tensor(size).double()) / max(size)
    return matrix


def _half_sides(size: Sequence[int], step: int, lattice: Sequence[int], like: Tensor) -> Tensor:
    """Where every ``step``-th voxel of a volume of ``size`` lies, about its centre, in halves of its longest side:
    ``(D, *lattice)``."""
    axes = zip(voxel_grid(lattice, like), size)
    return torch.stack([step * places - (n - 1) / 2 for places, n in axes]) / (max(size) / 2)


def _own_and_target(descriptions: Tensor, timepoints: int) -> tuple[Tensor, Tensor]:
    """Descriptions ``(B * K, C, *L)`` of unit length, and as their target the mean of the other timepoints', too."""
    own = F.normalize(descriptions - descriptions.mean(dim=(2, 3, 4), keepdim=True), dim=1)
    series = own.unflatten(0, (-1, timepoints))
    return own, F.normalize(series.sum(dim=1, keepdim=True) - series, dim=2).flatten(0, 1)


@full_precision
def _slopes(own: Tensor, target: Tensor, spacing: float) -> tuple[Tensor, Tensor]:
    """Normal equations ``(N, P, 3, 3)`` and ``(N, P, 3)`` of the velocity that makes ``own`` ``(N, C, *L)`` of P places
    the ``target``, by the mean of both slopes."""
    mean = (own + target) / 2
    slope = gradient(mean).flatten(3) / spacing
    square = torch.einsum("ncdp,ncep->npde", slope, slope)
    return square, torch.einsum("ncdp,ncp->npd", slope, (target - own).flatten(2))


@full_precision
def _matches(own: Tensor, target: Tensor, places: Tensor, sharpness: Tensor) -> tuple[Tensor, Tensor]:
    """Velocities ``(N, P, 3)`` from P ``places`` ``(3, P)`` to where ``own`` ``(N, C, P)`` is like the ``target``, and
    what it is there ``(N, C, P)``."""
    share = torch.softmax(sharpness * (target.mT @ own), dim=2)
    return share @ places.mT - places.mT, own @ share.mT


@full_precision
def _affine_fit(square: Tensor, right: Tensor, places: Tensor) -> Tensor:
    """Affine velocities ``(N, 12)`` that solve the normal equations ``(N, P, 3, 3)`` and ``(N, P, 3)`` of velocities at
    P ``places`` ``(3, P)`` best."""
    affine = torch.cat([places, torch.ones_like(places[:1])])
    left = torch.einsum("npde,ip,jp->ndiej", square, affine, affine).flatten(3).flatten(1, 2)
    # A little holds the solution where all trust is in one place.
    scale = left.diagonal(dim1=1, dim2=2).mean(dim=1).view(-1, 1, 1)
    left = left + (1e-4 * scale + 1e-6) * torch.eye(12, dtype=left.dtype, device=left.device)
    solution = torch.linalg.solve(left, torch.einsum("npd,ip->ndi", right, affine).flatten(1)).unflatten(1, (3, 4))
    return torch.cat([solution[:, :, :3].flatten(1), solution[:, :, 3]], dim=1)


class _Trust(nn.Module):
    """How much each match of two descriptions counts, as a logit, from both and from what they have in common.

    Args:
        descriptors: numbers that describe a voxel.
        at_first: the logit before any training.
    """

    def __init__(self, descriptors: int, at_first: float):
        super().__init__()
        self.hidden, self.last = nn.Linear(4 * descriptors, 16), nn.Linear(16, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.constant_(self.last.bias, at_first)

    def forward(self, own: Tensor, target: Tensor, matched: Tensor) -> Tensor:
        """``(N, P, 1)`` from descriptions ``(N, C, P)``: where both are alike in place, slopes tell more."""
        x = torch.cat([target, matched, target * matched, target * own], dim=1).mT
        return self.last(F.leaky_relu(self.hidden(x), 0.2))


class AffineNet(nn.Module):
    """The affine network of AVSM (Shen et al. 2019, Section 2.1 and Fig. 2), whose steps are the passes of the inferer:
    each sees the images warped by what was found so far, and its weights are the same.

    The paper leaves open what is inside. Here contrast is evened out, and shared filters describe every 2nd and every
    4th voxel of each timepoint. Coarse descriptions are matched with the mean of the other timepoints', each voxel with
    all; fine ones tell by their slopes where to go (Lucas and Kanade 1981). The affine velocity is the least squares
    fit to both, each weighted by how much the network trusts it. The matches bring the images near, and the slopes then
    decide to a fraction of a voxel: matches alone stayed at 0.6 voxels, fully connected layers after the filters at
    3.6.

    The paper multiplies matrices and adds translations (Eq. 1). Here z is the logarithm of a map, twelve numbers a
    timepoint, and the steps' logarithms add up, which is that to first order; what it neglects the next step sees.
    The sum is the logarithm of the composed map, which the prior takes, as Eq. 4 does. With their mean removed the
    logarithms of a pair are each other's negative: the paper's symmetry loss (Eq. 5) is 0 for any weights, and K maps
    are group-wise.
    It is a point estimate: the log variance is minus infinity.

    Args:
        channels: filters, and numbers that describe a voxel, at every 2nd and 4th voxel.
        most_voxels: along any axis of what it sees; a larger volume is thinned before.
    """

    def __init__(self, channels: Sequence[int] = (16, 32), most_voxels: int = 40):
        super().__init__()
        self.multiple = self.stride = 1
        self.most_voxels = most_voxels
        fine, coarse = channels
        self.first = nn.Conv3d(1, fine, 3, stride=2, padding=1)
        self.second = nn.Conv3d(fine, coarse, 3, stride=2, padding=1)
        self.third = nn.Conv3d(coarse, coarse, 3, padding=1)
        self.describe_fine = nn.Conv3d(fine, fine, 3, padding=1)
        self.describe_coarse = nn.Conv3d(coarse, coarse, 3, padding=1)
        keep_signal((self.first, self.second, self.third, self.describe_fine, self.describe_coarse))
        self.log_sharpness = nn.Parameter(torch.tensor(2.3))
        self.trust_fine = _Trust(fine, at_first=-5.0)  # slopes mean nothing until matches have brought images near
        self.trust_coarse = _Trust(coarse, at_first=0.0)

    def forward(self, images: Tensor) -> Tensor:
        """``(B, K, *S)`` in [0, 1] to ``(B, 2*K*12, 1, 1, 1)``: logarithms, then log variances of minus infinity."""
        timepoints, size = check_timepoints(images), images.shape[2:]
        factor = -(-max(size) // self.most_voxels)
        # What takes up contrast agent would else seem to grow.
        x = window_normalise(coarsen(images, factor), _WINDOW_VOXELS, _LEAST_CONTRAST**2).flatten(0, 1).unsqueeze(1)
        fine = F.leaky_relu(self.first(x), 0.2)
        coarse = F.leaky_relu(self.third(F.leaky_relu(self.second(fine), 0.2)), 0.2)

        own, target = _own_and_target(self.describe_fine(fine), timepoints)
        places = _half_sides(size, 2 * factor, own.shape[2:], images).flatten(1)
        square, right = _slopes(own, target, 4 * factor / max(size))
        own, target = own.flatten(2), target.flatten(2)
        trust = self.trust_fine(own, target, own)

        own, target = _own_and_target(self.describe_coarse(coarse), timepoints)
        coarse_places = _half_sides(size, 4 * factor, own.shape[2:], images).flatten(1)
        own, target = own.flatten(2), target.flatten(2)
        velocity, matched = _matches(own, target, coarse_places, self.log_sharpness.exp())
        coarse_trust = self.trust_coarse(own, target, matched)

        trust = torch.cat([trust, coarse_trust], dim=1).softmax(dim=1)
        identity = torch.eye(3, dtype=square.dtype, device=square.device)
        square = torch.cat([square, identity.expand(velocity.shape[0], velocity.shape[1], 3, 3)], dim=1)
        right = torch.cat([right, velocity], dim=1)
        places = torch.cat([places, coarse_places], dim=1)
        logarithms = _affine_fit(trust.unsqueeze(3) * square, trust * right, places)
        # Mean 0 over K: what separates a timepoint from the mean of the others is K / (K - 1) of its own velocity.
        logarithms = (logarithms * (1 - 1 / timepoints)).view(-1, timepoints * 12, 1, 1, 1)
        return torch.cat([logarithms, torch.full_like(logarithms, -math.inf)], dim=1)

    @torch.jit.ignore
    @full_precision
    def decode(self, z: Tensor, images: Tensor) -> Tensor:
        """Velocities ``(B, K, 3, *S)`` of logarithms ``(B, K, 12, 1, 1, 1)``: a matrix, row by row, then a translation,
        of coordinates about the images' centre in halves of their longest side."""
        size = images.shape[2:]
        parameters = z.flatten(2)
        matrix, translation = parameters[..., :9].unflatten(2, (3, 3)), parameters[..., 9:]
        velocity = torch.einsum("bkde,exyz->bkdxyz", matrix, _half_sides(size, 1, size, z))
        return (velocity + translation[..., None, None, None]) * (max(size) / 2)
