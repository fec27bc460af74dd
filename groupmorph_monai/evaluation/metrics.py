"""Metrics of one registered series, from its warped images, displacement fields and landmarks.

Images are ``(K, *S)``, without batch axis, and values of fields ``(1, K, 3, *C)``; ``affine`` is ``(4, 4)`` from voxels
to mm. Fields are processed timepoint by timepoint or slab by slab, so that a whole series fits in memory. Image
similarity does not measure accuracy, as a flexible enough field makes any two volumes similar: report millimetres as
well.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product

import numpy as np
import torch
from monai.metrics import compute_average_surface_distance, compute_dice
from torch import Tensor

from ..space.chunks import Chunks, all_at_once
from ..space.field import DisplacementField
from ..space.grid import vector_lengths
from ..space.lattice import Lattice
from ..space.sampling import sample, voxel_grid
from ..space.transforms import Transform, jacobian_determinant, triple_product
from ..space.warping import warp

_MOST_CELLS = 2**18  # number of cells processed at a time, to bound memory
_MEAN_VOXELS = 2**20  # samples sufficient for a mean; a full-size series has 25 times as many voxels
_NMI_PERCENTILES = (0.1, 99.9)


def _check(name: str, field: DisplacementField) -> None:
    shape, size = tuple(field.values.shape), field.lattice.size
    if len(shape) != 6 or shape[0] != 1 or shape[2] != 3 or min(size) < 2:
        raise ValueError(
            f"{name}: expected 3D fields (1, K, 3, *C) of an image with at least 2 voxels along each axis, got {shape} "
            f"of an image with {size} voxels"
        )


def _each(field: DisplacementField, chunks: Chunks) -> Iterator[DisplacementField]:
    """Yield the field of one timepoint at a time."""
    timepoints = field.timepoint_count
    for chunk in chunks(timepoints):
        yield from (field.timepoints(slice(k, k + 1)) for k in range(timepoints)[chunk])


def _voxels(images: Tensor, mask: Tensor | None) -> Tensor:
    """Select the voxels of ``images`` ``(K, *S)`` inside ``mask`` ``(*S)``, ``(K, N)``, floating point."""
    if images.dim() != 4 or images.shape[0] < 2:
        raise ValueError(f"images: expected (K, i, j, k) with K > 1, no batch axis, got {tuple(images.shape)}")
    images = images if images.is_floating_point() else images.double()
    if mask is None:
        return images.flatten(1)
    if mask.shape != images.shape[1:] or not mask.any():
        raise ValueError(f"mask: expected shape {tuple(images.shape[1:])} with voxels inside, got {tuple(mask.shape)}")
    return images[:, mask.bool()]


def rmse(images: Tensor, mask: Tensor | None = None) -> float:
    """Compute the root mean square difference over all pairs of timepoints and all voxels, in the images' unit.

    The pairs' squared differences sum to ``K sum_i (x_i - mean)^2``, so their mean is twice the unbiased variance over
    K: linear in K, and without the cancellation of ``K sum x^2 - (sum x)^2``.
    """
    values = _voxels(images, mask)
    mean = values.mean(dim=0)
    squares = sum(float((volume - mean).square_().sum(dtype=torch.float64)) for volume in values)
    return (2 * squares / (len(values) - 1) / mean.numel()) ** 0.5


def _entropy(counts: Tensor) -> Tensor:
    p = counts.double() / counts.sum()
    return -torch.xlogy(p, p).sum()


def _bin_indices(values: Tensor, bins: int) -> Tensor:
    """Assign values to bins between two of their percentiles, or their extremes if most of the values are equal."""
    low, high = map(float, np.percentile(values.cpu().numpy(), _NMI_PERCENTILES))
    if low == high:
        low, high = map(float, values.aminmax())
    width = (high - low) / bins if high > low else 1.0
    return ((values.double() - low) / width).clamp_(0, bins - 1).int()


def nmi(images: Tensor, bins: int = 64, mask: Tensor | None = None) -> float:
    """Compute the mean over all pairs of ``2 I(i, j) / (H_i + H_j)``, in [0, 1], from hard histograms.

    Each timepoint has ``bins`` bins of equal width between two of its percentiles (inside ``mask``), as scans may have
    different scales of intensity. A pair of constant volumes has no mutual information and counts as 0.

    Raises:
        ValueError: If an intensity is not finite.
    """
    values = _voxels(images, mask)
    if not all(map(torch.isfinite, values.aminmax())):
        raise ValueError("images: expected finite intensities, got NaN or infinity")
    indices = [_bin_indices(volume, bins) for volume in values]
    entropies = [_entropy(torch.bincount(i, minlength=bins)) for i in indices]
    total, pairs = 0.0, list(combinations(range(len(indices)), 2))
    for i, j in pairs:
        joint = _entropy(torch.bincount(indices[i] * bins + indices[j], minlength=bins * bins))
        both = entropies[i] + entropies[j]
        total += float(2 * (both - joint) / both) if both > 0 else 0.0
    return total / len(pairs)


def _thinning(size: Sequence[int]) -> int:
    """Choose n so that every n-th voxel along each axis gives about as many samples as a mean needs."""
    return max(1, round((math.prod(size) / _MEAN_VOXELS) ** (1 / 3)))


def _length_mm(vectors: Tensor, affine: Tensor) -> Tensor:
    """Compute the lengths in mm, ``(*S)``, of vectors in voxels, ``(3, *S)``."""
    matrix = torch.as_tensor(affine).to(vectors)[:3, :3]
    x, y, z = vectors
    return sum((row[0] * x + row[1] * y + row[2] * z).square() for row in matrix).sqrt()


def landmark_distances_mm(landmarks_mm: Tensor, transforms: Sequence[Transform]) -> Tensor:
    """Compute the distance between each landmark mapped from one timepoint to another and its true position there.

    Landmark p_i of timepoint i is mapped to the common space by the inverse of ``transforms[i]`` and on to timepoint j
    by ``transforms[j]``. The distance to p_j is measured in the patient's own millimetres: unlike the spread of
    landmarks in the common space, it cannot be improved by contracting that space.

    Args:
        landmarks_mm: ``(K, P, 3)``, the same P points in every timepoint, RAS.
        transforms: K, from the common space to each timepoint.

    Returns:
        ``(K * (K - 1), P)`` mm, the ordered pairs i != j with i slowest.

    Raises:
        ValueError: If the landmarks do not match the transforms.
    """
    number = len(transforms)
    if landmarks_mm.dim() != 3 or landmarks_mm.shape[0] != number or landmarks_mm.shape[2] != 3:
        shape = tuple(landmarks_mm.shape)
        raise ValueError(f"landmarks_mm: expected ({number}, P, 3) to match the transforms, got {shape}")
    landmarks_mm = landmarks_mm.detach().cpu().double()
    common = torch.stack([t.inverse(p) for p, t in zip(landmarks_mm, transforms)])
    carried = torch.stack([t(common) for t in transforms], dim=1)
    return _between(carried - landmarks_mm[None])


def _between(differences: Tensor) -> Tensor:
    """Compute the lengths of the off-diagonal differences of ``(K, K, P, 3)``: ``(K * (K - 1), P)``."""
    off_diagonal = ~torch.eye(len(differences), dtype=torch.bool)
    return differences[off_diagonal].norm(dim=2)


def landmark_errors_mm(landmarks_mm: Tensor, transforms: Sequence[Transform]) -> dict[str, float]:
    """Summarise landmark distances, without and with registration, over all ordered pairs of timepoints and all
    landmarks.

    Args:
        landmarks_mm, transforms: as for `landmark_distances_mm`.

    Returns:
        ``landmark_{before,after}_mm_{mean,median,sd,95}``, where 95 is the 95th percentile.
    """
    after = landmark_distances_mm(landmarks_mm, transforms)
    points = landmarks_mm.detach().cpu().double()
    before = _between(points[:, None] - points[None])
    errors = {}
    for name, distances in (("before", before), ("after", after)):
        errors[f"landmark_{name}_mm_mean"] = float(distances.mean())
        errors[f"landmark_{name}_mm_median"] = float(distances.quantile(0.5))
        errors[f"landmark_{name}_mm_sd"] = float(distances.std(correction=0))
        errors[f"landmark_{name}_mm_95"] = float(distances.quantile(0.95))
    return errors


def _steep_cells(u: DisplacementField) -> Tensor:
    """Mark the cells between the voxels of the image that one timepoint's field u may fold, ``(*S - 1)``: those where
    a component changes by at least 1/5 voxel along an edge. Inside a tetrahedron the map is linear, I + G; below 1/5
    the absolute values of each row of G sum to less than 1, even if a diagonal is an edge, so the orientation cannot
    flip. As u is linear between the voxels of its lattice, no edge is steeper than those of the lattice around it.
    """
    if min(u.lattice.shape) < 2:
        u = DisplacementField.on_voxels(u.on_image())
    nodes = u.values[0, 0]
    largest = nodes.new_zeros([n - 1 for n in nodes.shape[1:]])
    for axis in range(3):
        edges = nodes.diff(dim=axis + 1).abs_().amax(dim=0)
        for other in (d for d in range(3) if d != axis):
            n = edges.shape[other] - 1
            edges = torch.maximum(edges.narrow(other, 0, n), edges.narrow(other, 1, n))
        largest = torch.maximum(largest, edges)
    steep = largest >= 0.2  # voxels of the lattice per voxel of the lattice
    for axis, (n, last) in enumerate(zip(u.lattice.size, nodes.shape[1:])):
        # Voxels beyond the last node have its value, so their cells are as steep as its last cell.
        cells = torch.arange(n - 1, device=nodes.device) // u.lattice.step
        steep = steep.index_select(axis, cells.clamp_max(last - 2))
    return steep


def _possible_folds(field: DisplacementField, chunks: Chunks) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the displacements ``(3, *S)`` of each timepoint that may fold, and its `_steep_cells`."""
    for u in _each(field, chunks):
        steep = _steep_cells(u)
        if steep.any():
            yield u.on_image()[0, 0], steep


def folding_percent(ddf: DisplacementField, chunks: Chunks = all_at_once) -> float:
    """Compute the percentage of voxels, over all K, whose Jacobian determinant by central differences is 0 or less. It
    takes less time for fields on a lattice."""
    _check("ddf", ddf)
    folded = 0
    for u, steep in _possible_folds(ddf, chunks):
        # A central difference is the mean of two steps, so only corners of steep cells can be folded. All lie in this
        # box, with the neighbours that their differences need.
        box = [slice(max(0, int(i.min()) - 1), int(i.max()) + 3) for i in steep.nonzero().T]
        folded += int((jacobian_determinant(u[(None, slice(None), *box)]) <= 0).sum())
    return 100 * folded / (ddf.timepoint_count * math.prod(ddf.lattice.size))


def _tetrahedra(corners: Mapping[tuple[int, ...], Tensor]) -> Iterator[Tensor]:
    """Yield six times the signed volumes of ten tetrahedra in every cell, from the positions ``(3, P)`` of its eight
    corners. For the identity: 1 for the eight tetrahedra at the corners, 2 for the two in the middle."""

    def edge(axis: int, corner: tuple[int, ...]) -> Tensor:
        """Compute the edge of the cell along ``axis`` at ``corner``, in the direction of the axis."""
        low, high = (tuple(end if d == axis else c for d, c in enumerate(corner)) for end in (0, 1))
        return corners[high] - corners[low]

    # Edges point along the axes, not away from the corner, so every tetrahedron is positively oriented at the identity.
    for corner in corners:
        yield triple_product(*[edge(axis, corner) for axis in range(3)])
    for corner in ((0, 0, 0), (1, 1, 1)):
        # To the far corners of the three faces that meet here: along one edge, then along the next.
        steps = []
        for first, second in ((1, 2), (2, 0), (0, 1)):
            turn = tuple(1 - c if d == first else c for d, c in enumerate(corner))
            steps.append(edge(first, corner) + edge(second, turn))
        yield triple_product(*steps)


def non_diffeomorphic_volume_percent(ddf: DisplacementField, chunks: Chunks = all_at_once) -> float:
    """Compute the non-diffeomorphic volume in percent of the volume of all K grids (Liu et al. 2022, arXiv:2212.06060).

    A cell between eight voxels can be split into five tetrahedra, four at its corners and one in the middle, in two
    mirrored ways. The corner tetrahedra of both splits correspond to the eight combinations of forward and backward
    differences, the two in the middle to J1* and J2* in the paper. The metric sums ``-det / 6`` over the inverted
    tetrahedra and halves it, which averages both splits. All n - 1 cells per axis count, whereas the authors' code
    omits the outermost voxels. A value of 0 means that no tetrahedron is inverted; central differences miss flips
    between neighbouring voxels. It takes less time for fields on a lattice.
    """
    _check("ddf", ddf)
    folded = 0.0
    for u, steep in _possible_folds(ddf, chunks):
        for cells in steep.nonzero().T.split(_MOST_CELLS, dim=1):
            corners = {}
            for corner in product((0, 1), repeat=3):
                i, j, k = cells + torch.tensor(corner, device=cells.device)[:, None]
                corners[corner] = u[:, i, j, k] + torch.stack([i, j, k]).to(u)
            for volumes in _tetrahedra(corners):
                folded += float((-volumes).clamp_min_(0).sum(dtype=torch.float64))
    number = ddf.timepoint_count * math.prod(n - 1 for n in ddf.lattice.size)
    return 100 * 0.5 * folded / 6 / number


def inverse_consistency_mm(
    ddf: DisplacementField, inverse_ddf: DisplacementField, affine: Tensor, chunks: Chunks = all_at_once
) -> float:
    """Compute the mean inverse consistency error ``|phi^-1(phi(x)) - x|`` in mm, with ``phi = id + ddf``, over all K
    and all voxels x whose phi(x) is inside the grid, as the inverse is undefined beyond it. NaN if there are no such
    voxels. Large grids are subsampled to about one million voxels.

    Raises:
        ValueError: If the fields differ in grid or number of timepoints.
    """
    _check("ddf", ddf)
    _check("inverse_ddf", inverse_ddf)
    grids = [(field.timepoint_count, *field.lattice.size) for field in (ddf, inverse_ddf)]
    if grids[0] != grids[1]:
        raise ValueError(f"inverse_ddf: expected (K, i, j, k) of ddf {grids[0]}, got {grids[1]}")
    like, size = ddf.values, ddf.lattice.size
    every = _thinning(size)
    grid = every * voxel_grid(Lattice(size, every).shape, like)
    last = torch.tensor(size, dtype=like.dtype, device=like.device).view(3, 1, 1, 1) - 1
    total, number = 0.0, 0
    for forward, backward in zip(_each(ddf, chunks), _each(inverse_ddf, chunks)):
        u = forward.on_image(every)[0, 0]
        points = grid + u
        inside_mask = ((points >= 0) & (points <= last)).all(dim=0)
        step = backward.lattice.step
        inverse = step * sample(backward.values[0], points[None] / step)[0]
        error = _length_mm(u + inverse, affine)
        total += float(error[inside_mask].sum(dtype=torch.float64))
        number += int(inside_mask.sum())
    return total / number if number else float("nan")


@torch.no_grad()
def similarity(before: Tensor, after: Tensor, covered: Tensor | None = None) -> dict[str, float]:
    """Compute ``rmse_before``, ``rmse_after``, ``nmi_before`` and ``nmi_after`` of native and warped images ``(K, *S)``
    over the mask ``covered`` ``(*S)`` of voxels that every scan covers before and after; NaN if there are none. Large
    volumes are compared at about a million voxels or more, on a regular lattice."""
    step = max(1, int((before[0].numel() / _MEAN_VOXELS) ** (1 / 3)))
    before, after = before[:, ::step, ::step, ::step], after[:, ::step, ::step, ::step]
    covered = None if covered is None else covered[::step, ::step, ::step]
    any_covered = covered is None or bool(covered.any())
    return {
        f"{measure.__name__}_{when}": measure(images, mask=covered) if any_covered else math.nan
        for measure in (rmse, nmi)
        for when, images in (("before", before), ("after", after))
    }


def warp_labels(labels: Tensor, ddf: Tensor) -> Tensor:
    """Warp label maps ``(K, *S)`` by ``ddf`` ``(K, 3, *S)``, voxels, with nearest-neighbour interpolation."""
    field = DisplacementField.on_voxels(ddf[None])
    maps = (warp(x[None, None].to(ddf), u, mode="nearest")[0, 0] for x, u in zip(labels, _each(field, all_at_once)))
    return torch.stack([warped.to(labels.dtype) for warped in maps])


@torch.no_grad()
def overlap(labels: Tensor, affine: Tensor) -> dict[str, float]:
    """Compute ``dice`` and ``surface_distance_mm`` (symmetric mean surface distance) of label maps ``(K, *S)`` on one
    grid by MONAI: means over all labels above 0 and all pairs of timepoints. NaN if there are none.

    Args:
        affine: ``(4, 4)`` of the grid.
    """
    labels = torch.as_tensor(labels).cpu()
    masks = torch.stack([labels == number for number in labels.unique() if number > 0], dim=1).float()
    first, second = torch.triu_indices(len(labels), len(labels), 1)
    spacing = torch.as_tensor(affine)[:3, :3].double().norm(dim=0).tolist()
    pair = masks[first], masks[second]
    distance = compute_average_surface_distance(*pair, include_background=True, symmetric=True, spacing=spacing)
    return {
        "dice": float(compute_dice(*pair).nanmean()),
        "surface_distance_mm": float(distance[distance.isfinite()].mean()),
    }


@torch.no_grad()
def accuracy(
    ddf: DisplacementField,
    inverse_ddf: DisplacementField,
    affine: Tensor,
    transforms: Sequence[Transform],
    landmarks_mm: Tensor | None = None,
    chunks: Chunks = all_at_once,
) -> dict[str, float]:
    """Compute all metrics of one registration, as numbers whose names end with the unit.

    Args:
        ddf, inverse_ddf: displacements, without the initial affine alignment, which neither folds nor fails to invert.
        affine: affine of the images, ``(4, 4)``.
        transforms: K complete transforms from the common space to each timepoint, from which ``displacement_*`` is
            computed at about a million voxels.
        landmarks_mm: ``(K, P, 3)``, RAS.
        chunks: splits the timepoints into chunks that are in memory together.
    """
    size, affine = ddf.lattice.size, torch.as_tensor(affine).double().cpu()
    thinned = Lattice(size, _thinning(size)).grid(affine)
    means, longest = [], []
    for chunk in chunks(len(transforms)):
        for transform in transforms[chunk]:
            lengths = vector_lengths(transform.displacement(thinned).movedim(0, -1))
            means.append(float(lengths.mean()))
            longest.append(float(lengths.max()))
    result = {
        "folding_percent": folding_percent(ddf, chunks),
        "non_diffeomorphic_volume_percent": non_diffeomorphic_volume_percent(ddf, chunks),
        "inverse_consistency_mm": inverse_consistency_mm(ddf, inverse_ddf, affine, chunks),
        "displacement_mean_mm": sum(means) / len(means),
        "displacement_max_mm": max(longest),
    }
    if landmarks_mm is not None:
        result |= landmark_errors_mm(landmarks_mm, transforms)
    return result
