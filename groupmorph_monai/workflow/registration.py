"""Transforms in patient space from displacement fields on the working grid."""

from collections.abc import Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

from ..data.storage import IN_MEMORY, Storage
from ..space.grid import Grid
from ..space.transforms import AffineTransform, ComposedTransform, DenseTransform

__all__ = ["ComposeTransformsd", "timepoint_transforms"]


def timepoint_transforms(
    ddf: Tensor,
    inverse_ddf: Tensor,
    affine: Tensor,
    initial: Tensor | None = None,
    step: int = 1,
    storage: Storage = IN_MEMORY,
) -> list[ComposedTransform]:
    """Compose each timepoint's deformation with its initial affine transform.

    Args:
        ddf, inverse_ddf: displacements from the common space to each timepoint after its initial alignment, and back,
            ``(K, 3, *S)``, voxels.
        affine: affine of their grid, voxels to RAS mm, ``(4, 4)``.
        initial: affine transforms from each aligned timepoint to its file's coordinates, RAS mm, ``(K, 4, 4)``; None is
            the identity.
        step: the fields are linear between every ``step``-th voxel, starting at the first; only these voxels are kept.
        storage: where the fields are kept.

    Returns:
        K transforms from the common space to each timepoint, RAS mm.
    """
    ddf, inverse_ddf = (
        storage.map(lambda part: _on_lattice(part.detach().cpu(), step), field, dim=0) for field in (ddf, inverse_ddf)
    )
    steps = torch.tensor([step, step, step, 1], dtype=torch.float64)
    grid = Grid(ddf.shape[2:], torch.as_tensor(affine).double().cpu() * steps)
    dense = [DenseTransform(u, w, grid) for u, w in zip(ddf, inverse_ddf)]
    affines = [] if initial is None else [AffineTransform(matrix) for matrix in torch.as_tensor(initial)]
    return [ComposedTransform(*chain) for chain in (zip(dense, affines) if affines else zip(dense))]


def _on_lattice(field: Tensor, step: int) -> Tensor:
    """Subsample displacements ``(K, 3, *S)`` to every ``step``-th voxel, in voxels of this lattice. It is padded by one
    voxel where the last voxel of the grid is not on it."""
    if step == 1:
        return field
    for axis in range(2, 5):
        n = field.shape[axis]
        nodes = torch.arange(0, n - 1 + step, step, device=field.device).clamp_max(n - 1)
        field = field.index_select(axis, nodes)
    return field / step


class ComposeTransformsd(MapTransform):
    """Add ``transforms``, the K transforms from the common space to each timepoint in RAS mm, to a registration.

    The fields are unchanged; writers and metrics evaluate the transforms on their own grids or points. If the
    registration has ``ddf_std``, ``std_mm`` ``(K, *S)`` is added: the root of the trace of the displacement's
    covariance.

    Args:
        keys: key of the registration, ``"pred"``.
        storage: where the fields are kept.
    """

    def __init__(self, keys: KeysCollection = "pred", storage: Storage = IN_MEMORY):
        super().__init__(keys)
        self.storage = storage

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        item = dict(data)
        affine = torch.as_tensor(item["affine"]).double().cpu()
        initial = item.get("initial")
        for key in self.key_iterator(item):
            fields = dict(item[key])
            fields["transforms"] = timepoint_transforms(
                fields["ddf"], fields["inverse_ddf"], affine, initial, fields.get("step", 1), self.storage
            )
            if "ddf_std" in fields:
                fields["std_mm"] = _std_mm(fields["ddf_std"], affine, initial)
            item[key] = fields
        return item


def _std_mm(std: Tensor, affine: Tensor, initial: Tensor | None) -> Tensor:
    """Compute the root of the trace of ``A L diag(std^2) L^T A^T``, where L and A are the linear parts of the grid's
    affine and of the initial transform: ``(K, 3, *S)`` voxels to ``(K, *S)`` mm."""
    linear = affine[:3, :3] if initial is None else torch.as_tensor(initial).double().cpu()[:, :3, :3] @ affine[:3, :3]
    scale = linear.norm(dim=-2).expand(len(std), 3).to(std)
    return (std * scale.view(-1, 3, *[1] * (std.dim() - 2))).norm(dim=1)
