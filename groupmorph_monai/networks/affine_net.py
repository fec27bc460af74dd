"""AVSM's first stage: affine maps, predicted in several steps by one network."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..space.affine import affine_logarithms
from ..space.filters import gradient, window_normalise
from ..space.lattice import coarsen
from ..space.sampling import full_precision, voxel_grid
from .layers import check_timepoints, init_leaky_relu_layers, leaky_relu

_WINDOW_VOXELS, _LEAST_CONTRAST = 2, 0.05  # radius of windows; standard deviation added in them, intensities in [0, 1]


def half_side_frame(size: Sequence[int]) -> Tensor:
    """Return the matrix ``(4, 4)``, float64, from voxels to the coordinates of `AffineNet`'s maps: origin at the centre
    of a volume of ``size``, in units of half its longest side."""
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] *= 2 / max(size)
    matrix[:3, 3] = (1 - torch.tensor(size).double()) / max(size)
    return matrix


def normalised_coordinates(size: Sequence[int], step: int, lattice: Sequence[int], like: Tensor) -> Tensor:
    """Return the coordinates ``(D, *lattice)`` of every ``step``-th voxel of a volume of ``size``: origin at its
    centre, in units of half its longest side."""
    axes = zip(voxel_grid(lattice, like), size)
    return torch.stack([step * voxels - (n - 1) / 2 for voxels, n in axes]) / (max(size) / 2)


def _own_and_target(descriptors: Tensor, timepoints: int) -> tuple[Tensor, Tensor]:
    """Normalise descriptors ``(B * K, C, *L)`` to zero mean over each volume and unit length at each voxel, and compute
    their targets, the normalised mean of the other timepoints, of the same shape."""
    own = F.normalize(descriptors - descriptors.mean(dim=(2, 3, 4), keepdim=True), dim=1)
    series = own.unflatten(0, (-1, timepoints))
    return own, F.normalize(series.sum(dim=1, keepdim=True) - series, dim=2).flatten(0, 1)


@full_precision
def gradient_equations(own: Tensor, target: Tensor, spacing: float) -> tuple[Tensor, Tensor]:
    """Set up the normal equations ``A v = b`` of the velocity v at each of P voxels that warps ``own`` to ``target``,
    by the mean of their gradients (Lucas and Kanade 1981).

    Args:
        own, target: descriptors, ``(N, C, *L)``.
        spacing: distance of neighbouring voxels.

    Returns:
        A ``(N, P, 3, 3)`` and b ``(N, P, 3)``.
    """
    mean = (own + target) / 2
    slopes = gradient(mean).flatten(3) / spacing
    matrix = torch.einsum("ncdp,ncep->npde", slopes, slopes)
    return matrix, torch.einsum("ncdp,ncp->npd", slopes, (target - own).flatten(2))


@full_precision
def soft_match(own: Tensor, target: Tensor, points: Tensor, sharpness: Tensor) -> tuple[Tensor, Tensor]:
    """Match each target descriptor with all descriptors of ``own`` by a softmax over their correlations.

    Args:
        own, target: descriptors at P points, ``(N, C, P)``.
        points: their coordinates, ``(3, P)``.
        sharpness: factor of the correlations.

    Returns:
        Velocities ``(N, P, 3)`` from each point to its match, and the matched descriptors ``(N, C, P)``.
    """
    weights = torch.softmax(sharpness * (target.mT @ own), dim=2)
    return weights @ points.mT - points.mT, own @ weights.mT


@full_precision
def affine_fit(matrix: Tensor, right: Tensor, points: Tensor) -> Tensor:
    """Fit an affine velocity to velocities v at P points by least squares, given their normal equations.

    Args:
        matrix, right: A ``(N, P, 3, 3)`` and b ``(N, P, 3)`` of the equations ``A v = b``.
        points: coordinates, ``(3, P)``.

    Returns:
        ``(N, 12)``: a 3 x 3 matrix, row by row, then a translation.
    """
    affine = torch.cat([points, torch.ones_like(points[:1])])
    left = torch.einsum("npde,ip,jp->ndiej", matrix, affine, affine).flatten(3).flatten(1, 2)
    # Damping keeps the system regular if all weight is at one point.
    scale = left.diagonal(dim1=1, dim2=2).mean(dim=1).view(-1, 1, 1)
    left = left + (1e-4 * scale + 1e-6) * torch.eye(12, dtype=left.dtype, device=left.device)
    solution = torch.linalg.solve(left, torch.einsum("npd,ip->ndi", right, affine).flatten(1)).unflatten(1, (3, 4))
    return torch.cat([solution[:, :, :3].flatten(1), solution[:, :, 3]], dim=1)


class _Trust(nn.Module):
    """Confidence of each match of two descriptors, as a logit: a perceptron of both descriptors and their products.

    Args:
        channels: length of a descriptor.
        initial_logit: the logit before training.
    """

    def __init__(self, channels: int, initial_logit: float):
        super().__init__()
        self.hidden, self.last = nn.Linear(4 * channels, 16), nn.Linear(16, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.constant_(self.last.bias, initial_logit)

    def forward(self, own: Tensor, target: Tensor, matched: Tensor) -> Tensor:
        """Compute logits ``(N, P, 1)`` from descriptors ``(N, C, P)``. The product of target and own is an input
        because gradients are most informative where the two already agree."""
        x = torch.cat([target, matched, target * matched, target * own], dim=1).mT
        return self.last(leaky_relu(self.hidden(x)))


class AffineNet(nn.Module):
    """Affine network of AVSM (Shen et al. 2019, Section 2.1 and Fig. 2). Its steps are the passes of the inferer, with
    shared weights; the input of each is the images warped by the previous steps.

    The paper does not specify the layers. Here local contrast is normalised, and shared filters compute descriptors of
    every 2nd and every 4th voxel of each timepoint. Coarse descriptors are matched with the mean of the other
    timepoints, each voxel with all voxels; fine descriptors yield velocities by their gradients (Lucas and Kanade
    1981). The affine velocity is the least-squares fit to both, weighted by confidences that the network predicts. The
    matches bring the images close together, and the gradients refine the map to a fraction of a voxel: the error was
    0.6 voxels with matches alone, and 3.6 with fully connected layers after the filters.

    The paper multiplies matrices and adds translations (Eq. 1). Here z is the logarithm of a map, twelve numbers per
    timepoint, and the logarithms of all steps are added, which agrees to first order; the next step corrects the
    rest. The sum is the logarithm of the composed map, to which the prior applies, as in Eq. 4. With their mean
    removed, the two logarithms of a pair are opposite: the paper's symmetry loss (Eq. 5) is 0 for any weights, and K
    maps are group-wise. It is a point estimate: the log variance is minus infinity.

    Args:
        channels: filters, and length of the descriptors, at every 2nd and 4th voxel.
    """

    most_voxels = 40  # maximum size of the input along any axis; larger volumes are subsampled first

    def __init__(self, channels: Sequence[int] = (16, 32)):
        super().__init__()
        self.multiple = self.stride = 1
        fine, coarse = channels
        self.first = nn.Conv3d(1, fine, 3, stride=2, padding=1)
        self.second = nn.Conv3d(fine, coarse, 3, stride=2, padding=1)
        self.third = nn.Conv3d(coarse, coarse, 3, padding=1)
        self.describe_fine = nn.Conv3d(fine, fine, 3, padding=1)
        self.describe_coarse = nn.Conv3d(coarse, coarse, 3, padding=1)
        init_leaky_relu_layers((self.first, self.second, self.third, self.describe_fine, self.describe_coarse))
        self.log_sharpness = nn.Parameter(torch.tensor(2.3))
        # Gradients are meaningless until matches have brought the images close together.
        self.trust_fine = _Trust(fine, initial_logit=-5.0)
        self.trust_coarse = _Trust(coarse, initial_logit=0.0)

    def forward(self, images: Tensor) -> Tensor:
        """Predict one step.

        Args:
            images: ``(B, K, *S)``, intensities in [0, 1].

        Returns:
            ``(B, 2*K*12, 1, 1, 1)``: logarithms, then log variances of minus infinity.
        """
        timepoints, size = check_timepoints(images), images.shape[2:]
        factor = -(-max(size) // self.most_voxels)
        # Without normalisation, tissue that takes up contrast agent would seem to grow.
        x = window_normalise(coarsen(images, factor), _WINDOW_VOXELS, _LEAST_CONTRAST**2).flatten(0, 1).unsqueeze(1)
        fine = leaky_relu(self.first(x))
        coarse = leaky_relu(self.third(leaky_relu(self.second(fine))))

        own, target = _own_and_target(self.describe_fine(fine), timepoints)
        points = normalised_coordinates(size, 2 * factor, own.shape[2:], images).flatten(1)
        matrix, right = gradient_equations(own, target, 4 * factor / max(size))
        own, target = own.flatten(2), target.flatten(2)
        trust = self.trust_fine(own, target, own)

        own, target = _own_and_target(self.describe_coarse(coarse), timepoints)
        coarse_points = normalised_coordinates(size, 4 * factor, own.shape[2:], images).flatten(1)
        own, target = own.flatten(2), target.flatten(2)
        velocity, matched = soft_match(own, target, coarse_points, self.log_sharpness.exp())
        coarse_trust = self.trust_coarse(own, target, matched)

        trust = torch.cat([trust, coarse_trust], dim=1).softmax(dim=1)
        identity = torch.eye(3, dtype=matrix.dtype, device=matrix.device)
        matrix = torch.cat([matrix, identity.expand(velocity.shape[0], velocity.shape[1], 3, 3)], dim=1)
        right = torch.cat([right, velocity], dim=1)
        points = torch.cat([points, coarse_points], dim=1)
        logarithms = affine_fit(trust.unsqueeze(3) * matrix, trust * right, points)
        # Velocities with mean 0 over K are (K - 1) / K of those to the mean of the other timepoints.
        logarithms = (logarithms * (1 - 1 / timepoints)).view(-1, timepoints * 12, 1, 1, 1)
        return torch.cat([logarithms, torch.full_like(logarithms, -math.inf)], dim=1)

    @torch.jit.ignore
    @full_precision
    def decode(self, z: Tensor, images: Tensor) -> Tensor:
        """Compute the velocities of affine maps.

        Args:
            z: logarithms of the maps, ``(B, K, 12, 1, 1, 1)``, see `affine_logarithms`, in coordinates with the origin
                at the centre of the images, in units of half their longest side.
            images: ``(B, K, *S)``.

        Returns:
            ``(B, K, 3, *S)``, voxels.
        """
        size = images.shape[2:]
        logarithms = affine_logarithms(z.flatten(2))
        points = normalised_coordinates(size, 1, size, z)
        velocity = torch.einsum("bkde,exyz->bkdxyz", logarithms[..., :3, :3], points)
        return (velocity + logarithms[..., :3, 3, None, None, None]) * (max(size) / 2)
