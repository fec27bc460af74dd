"""Warping by displacement fields, and their composition.

Conventions of the whole package: images are ``(B, K, *S)`` with time on the channel axis and ``S`` in NIfTI index order
(i, j, k). Fields are ``(B, K, D, *C)``; component d displaces along spatial axis d, in voxels of the field's lattice.
Fields pull back, ``warped(x) = image(x + ddf(x))``: point x of the common grid lies at ``x + ddf(x)`` in the timepoint.
"""

import torch
from torch import Tensor

from .field import AnyField, DisplacementField
from .sampling import displace, full_precision


def warp(images: Tensor, ddf: DisplacementField, mode: str = "bilinear") -> Tensor:
    """Pull every timepoint back to the common grid: ``warped_k(x) = images_k(x + ddf_k(x))``.

    Args:
        images: ``(B, K, *S)``, on the lattice of ``ddf``.
        ddf: displacements of K timepoints.
        mode: as in `sample`.

    Returns:
        Warped images ``(B, K, *S)``.
    """
    _check_shapes(images, ddf)
    volumes, fields = images.flatten(0, 1).unsqueeze(1), ddf.values.flatten(0, 1)
    if volumes.requires_grad or fields.requires_grad:
        warped = displace(volumes, fields, mode)
    else:  # one at a time: the coordinates of a large series would fill the memory
        warped = torch.cat([displace(x, u, mode) for x, u in zip(volumes.split(1), fields.split(1))])
    return warped.squeeze(1).unflatten(0, images.shape[:2])


def warp_observed(images: Tensor, observed: Tensor | None, ddf: DisplacementField) -> tuple[Tensor, Tensor]:
    """Warp images as `warp` does and find how far the result was measured, sharing the interpolation weights.

    The measured weight is continuous, so that rounding at the border of a field of view changes it by rounding: it is 1
    where all voxels that contribute were observed, and falls to 0 at the outer faces of the volume's voxels and where
    half of what contributes was not observed. It has no gradient: nothing is gained by moving voxels out of view.

    Args:
        images: ``(B, K, *S)``, on the lattice of ``ddf``.
        observed: ``(B, K, *S)``, 1 where the images were observed and 0 elsewhere; None for everywhere.
        ddf: displacements of K timepoints.

    Returns:
        Values, and their measured weights in [0, 1], each ``(B, K, *S)``.
    """
    _check_shapes(images, ddf)
    volumes = images.flatten(0, 1).unsqueeze(1).split(1)
    masks = [None] * len(volumes) if observed is None else observed.flatten(0, 1).unsqueeze(1).split(1)
    parts = [_displace_observed(*part) for part in zip(volumes, masks, ddf.values.flatten(0, 1).split(1))]
    warped, weight = (torch.cat(part).squeeze(1).unflatten(0, images.shape[:2]) for part in zip(*parts))
    return warped, weight


def _displace_observed(image: Tensor, observed: Tensor | None, ddf: Tensor) -> tuple[Tensor, Tensor]:
    """Do the same for one image ``(1, 1, *S)`` by displacements ``(1, D, *S)``."""
    within = (2 * _depth(ddf.detach())).clamp(0, 1).unsqueeze(1)
    if observed is None:
        return displace(image, ddf), within
    values, share = displace(torch.cat([image, observed.to(image)], dim=1), ddf).split(1, dim=1)
    return values, within * (2 * share.detach() - 1).clamp(0, 1)


@full_precision
def _depth(ddf: Tensor) -> Tensor:
    """Compute how far ``x + ddf(x)`` lies inside the outer faces of the volume's voxels, voxels; negative outside:
    ``(N, D, *S)`` to ``(N, *S)``."""
    result = torch.full_like(ddf[:, 0], torch.inf)
    for axis, (u, n) in enumerate(zip(ddf.unbind(1), ddf.shape[2:])):
        coordinate = u + torch.arange(n, dtype=ddf.dtype, device=ddf.device).view(-1, *[1] * (ddf.dim() - 3 - axis))
        result = torch.minimum(result, torch.minimum(coordinate, n - 1 - coordinate))
    return result + 0.5


def inside_volume(ddf: DisplacementField) -> Tensor:
    """Test whether ``x + ddf(x)`` lies within the outer faces of the volume's voxels, ``(B, K, *S)`` bool, for an image
    on the field's lattice."""
    return (_depth(ddf.values.flatten(0, 1)) >= 0).unflatten(0, ddf.values.shape[:2])


def _check_shapes(images: Tensor, ddf: DisplacementField) -> None:
    fields = ddf.values
    if images.shape[:2] != fields.shape[:2] or images.shape[2:] != fields.shape[3:]:
        raise ValueError(
            f"ddf: expected shape (B, K, D, *S) to match images {tuple(images.shape)}, got {tuple(fields.shape)}"
        )


def pull_back(field: AnyField, ddf: DisplacementField) -> AnyField:
    """Sample ``field(x + ddf(x))``. Both are on one lattice; either is broadcast over timepoints if its K is 1.

    Raises:
        ValueError: If the lattices differ.
    """
    if field.lattice != ddf.lattice:
        raise ValueError(f"ddf: expected the lattice of the field, {field.lattice}, got {ddf.lattice}")
    shape = torch.broadcast_shapes(field.values.shape[:2], ddf.values.shape[:2])
    values, displacements = (x.expand(*shape, *x.shape[2:]).flatten(0, 1) for x in (field.values, ddf.values))
    return field.with_values(displace(values, displacements).unflatten(0, shape))


def compose(outer: DisplacementField, inner: DisplacementField) -> DisplacementField:
    """Compute the displacement of ``(id + outer) o (id + inner)``: first ``inner``, then ``outer``. Both are on one
    lattice; either is broadcast over timepoints if its K is 1.

    Raises:
        ValueError: If the lattices differ.
    """
    return inner + pull_back(outer, inner)


def invert(ddf: DisplacementField, iterations: int) -> DisplacementField:
    """Compute the displacement of the inverse map by fixed-point iterations ``w(x) = -ddf(x + w(x))`` (Chen et al.
    2008, Med Phys 35:81), which converge if the displacement's Lipschitz constant is below 1."""
    inverse = -ddf
    for _ in range(iterations):
        inverse = -pull_back(ddf, inverse)
    return inverse
