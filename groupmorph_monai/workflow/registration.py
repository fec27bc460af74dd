"""Transforms in patient space from displacement fields on the working grid."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from monai.transforms import Transform
from torch import Tensor
from torch.nn.functional import pad

from ..data.storage import IN_MEMORY, Storage
from ..space.field import DisplacementField
from ..space.lattice import Lattice
from ..space.transforms import AffineTransform, ComposedTransform, DenseTransform


def timepoint_transforms(
    ddf: DisplacementField,
    inverse_ddf: DisplacementField,
    affine: Tensor,
    initial: Tensor | None = None,
    storage: Storage = IN_MEMORY,
) -> list[ComposedTransform]:
    """Compose each timepoint's deformation with its initial affine transform.

    Args:
        ddf, inverse_ddf: displacements from the common space to each timepoint after its initial alignment, and back,
            ``(1, K, 3, *C)``.
        affine: affine of the images' grid, voxels to RAS mm, ``(4, 4)``.
        initial: affine transforms from each aligned timepoint to its file's coordinates, RAS mm, ``(K, 4, 4)``; None is
            the identity.
        storage: where the fields are kept.

    Returns:
        K transforms from the common space to each timepoint, RAS mm.

    Raises:
        ValueError: If the fields differ in lattice or number of timepoints, or belong to more than one series.
    """
    if ddf.lattice != inverse_ddf.lattice or ddf.values.shape != inverse_ddf.values.shape or len(ddf.values) != 1:
        shapes = [(*field.values.shape, field.lattice) for field in (ddf, inverse_ddf)]
        raise ValueError(f"ddf, inverse_ddf: expected fields of one series on one lattice, got {shapes}")
    displacements, inverses = (storage.map(partial(_covering, field), field.values)[0] for field in (ddf, inverse_ddf))
    grid = ddf.lattice.covering().grid(affine)
    dense = [DenseTransform(u, w, grid) for u, w in zip(displacements, inverses)]
    affines = [] if initial is None else [AffineTransform(matrix) for matrix in torch.as_tensor(initial)]
    return [ComposedTransform(*chain) for chain in (zip(dense, affines) if affines else zip(dense))]


def _covering(field: DisplacementField, values: Tensor) -> Tensor:
    """Pad values ``(1, K, 3, *C)`` on the field's lattice to `Lattice.covering`, on the CPU."""
    shapes = zip(reversed(field.lattice.covering().shape), reversed(field.lattice.shape))
    padding = [p for covering, n in shapes for p in (0, covering - n)]
    return pad(values.detach().cpu()[0], padding, mode="replicate")[None]


def lattice_fields(registration: Mapping[str, Any], size: Sequence[int]) -> tuple[DisplacementField, DisplacementField]:
    """Return the displacements ``(1, K, D, *C)`` from the common space to the timepoints of one series, and back.

    Args:
        registration: output of an inferer, without batch axis.
        size: size of the images, in voxels.
    """
    lattice = Lattice(tuple(size), registration["step"])
    ddf, inverse_ddf = (registration[name][None] for name in ("lattice_ddf", "lattice_inverse_ddf"))
    return DisplacementField(ddf, lattice), DisplacementField(inverse_ddf, lattice)


class ComposeTransformsd(Transform):
    """Add ``transforms``, the K transforms from the common space to each timepoint in RAS mm, to ``pred``, the
    registration of the item's ``image`` ``(K, *S)``.

    The fields are unchanged; writers and metrics evaluate the transforms on their own grids or points. If the
    registration has ``ddf_std``, ``std_mm`` ``(K, *S)`` is added: the root of the trace of the displacement's
    covariance.

    Args:
        storage: where the fields are kept.
    """

    def __init__(self, storage: Storage = IN_MEMORY):
        self.storage = storage

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        affine = torch.as_tensor(data["affine"]).double().cpu()
        fields, initial = dict(data["pred"]), data.get("initial")
        both = lattice_fields(fields, data["image"].shape[1:])
        fields["transforms"] = timepoint_transforms(*both, affine, initial, self.storage)
        if "ddf_std" in fields:
            fields["std_mm"] = _std_mm(fields["ddf_std"], affine, initial)
        return {**data, "pred": fields}


def _std_mm(std: Tensor, affine: Tensor, initial: Tensor | None) -> Tensor:
    """Compute the root of the trace of ``A L diag(std^2) L^T A^T``, where L and A are the linear parts of the grid's
    affine and of the initial transform: ``(K, 3, *S)`` voxels to ``(K, *S)`` mm."""
    linear = affine[:3, :3] if initial is None else torch.as_tensor(initial).double().cpu()[:, :3, :3] @ affine[:3, :3]
    scale = linear.norm(dim=-2).expand(len(std), 3).to(std)
    return (std * scale.view(-1, 3, *[1] * (std.dim() - 2))).norm(dim=1)
