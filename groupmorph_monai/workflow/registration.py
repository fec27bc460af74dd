"""From the fields of a registration, on the working grid, to transforms of the patient's space."""

from collections.abc import Hashable, Mapping

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

from ..data.storage import IN_MEMORY, Storage
from ..space.geometry import AffineTransform, ComposedTransform, DenseTransform, Grid

__all__ = ["ComposeTransformsd", "timepoint_transforms"]


def timepoint_transforms(
    ddf: Tensor,
    inverse_ddf: Tensor,
    affine: Tensor,
    initial: Tensor | None = None,
    step: int = 1,
    storage: Storage = IN_MEMORY,
) -> list[ComposedTransform]:
    """Compose each timepoint's deformation with its initial affine map.

    Args:
        ddf, inverse_ddf: ``(K, 3, *S)``, common space to the affinely moved timepoint and back, voxels.
        affine: ``(4, 4)`` of their grid, voxels to RAS mm.
        initial: ``(K, 4, 4)``, moved timepoint to the timepoint as it lies in its file, RAS mm; None is the identity.
        step: the fields are linear between every ``step``-th voxel, from the first one on, and are kept on these alone.
        storage: of the fields.
    Returns: K transforms, from the common space to each timepoint, RAS mm.
    """
    ddf, inverse_ddf = (
        storage.map(lambda part: _on_lattice(part.detach().cpu(), step), field, dim=0) for field in (ddf, inverse_ddf)
    )
    steps = torch.tensor([step, step, step, 1], dtype=torch.float64)
    grid = Grid(ddf.shape[2:], torch.as_tensor(affine).double().cpu() * steps)
    dense = [DenseTransform(u, w, grid) for u, w in zip(ddf, inverse_ddf)]
    affines = [] if initial is None else [AffineTransform(matrix) for matrix in torch.as_tensor(initial)]
    return [ComposedTransform(*parts) for parts in (zip(dense, affines) if affines else zip(dense))]


def _on_lattice(field: Tensor, step: int) -> Tensor:
    """``(K, 3, *S)`` voxels on every ``step``-th voxel and one beyond the last, where that is not on one, in voxels of
    this lattice."""
    if step == 1:
        return field
    for axis in range(2, 5):
        n = field.shape[axis]
        nodes = torch.arange(0, n - 1 + step, step, device=field.device).clamp_max(n - 1)
        field = field.index_select(axis, nodes)
    return field / step


class ComposeTransformsd(MapTransform):
    """Add ``transforms``, K maps from the common space to each timepoint in RAS mm, to a registration. Its fields stay
    as they are; what is written or measured evaluates the transforms on its own grid or at its own points. ``ddf_std``,
    where there is one, gives ``std_mm`` ``(K, *S)``: the root of the trace of the displacement's covariance.

    Args:
        keys: of the registration, ``"pred"``.
        storage: of the fields.
    """

    def __init__(self, keys: KeysCollection = "pred", storage: Storage = IN_MEMORY):
        super().__init__(keys)
        self.storage = storage

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        item = dict(data)
        affine = torch.as_tensor(item["affine"]).double().cpu()
        initial = item.get("initial")
        for key in self.key_iterator(item):
            fields = dict(item[key])
            fields["transforms"] = timepoint_transforms(
                fields["ddf"], fields["inverse_ddf"], affine, initial, fields.get("step", 1), self.storage
            )
            if "ddf_std" in fields:
                fields["std_mm"] = _length_mm(fields["ddf_std"], affine, initial)
            item[key] = fields
        return item


def _length_mm(std: Tensor, affine: Tensor, initial: Tensor | None) -> Tensor:
    """Root of the trace of ``A L diag(std^2) L^T A^T``, with L the grid's and A the initial map's linear part: ``(K, 3,
    *S)`` voxels to ``(K, *S)`` mm."""
    linear = affine[:3, :3] if initial is None else torch.as_tensor(initial).double().cpu()[:, :3, :3] @ affine[:3, :3]
    scale = linear.norm(dim=-2).expand(len(std), 3).to(std)
    return (std * scale.view(-1, 3, *[1] * (std.dim() - 2))).norm(dim=1)
