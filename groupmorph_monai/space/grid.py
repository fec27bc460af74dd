"""Where things are: sampling, warping, composing and upsampling on voxel grids.

Conventions (the whole package keeps them): an image is ``(B, K, *S)`` with time on the channel axis and ``S`` in NIfTI
index order (i, j, k); a field is ``(B, K, D, *S)``, its component d moving along spatial axis d in voxels of the grid
on which it lies; fields pull back, ``warped(x) = image(x + ddf(x))``, so point x of the common grid lies at ``x +
ddf(x)`` in the timepoint. Corners are aligned and values outside are those of the border.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "compose",
    "displace",
    "displace_observed",
    "full_precision",
    "inside",
    "placed_once",
    "sample",
    "upsample_field",
    "voxel_grid",
    "warp",
]

Result = TypeVar("Result")


@contextmanager
def _exact_products() -> Iterator[None]:
    """Multiply matrices of float32 in float32, also where TF32 or bfloat16 is allowed for speed."""
    products = (getattr(backend, "matmul", None) for backend in (torch.backends.cuda, torch.backends.mkldnn))
    # PyTorch 2.8 has none.
    backends = [matmul for matmul in products if matmul is not None and hasattr(matmul, "fp32_precision")]
    before = [backend.fp32_precision for backend in backends]
    if backends and set(before) <= {"ieee", "none"}:
        yield
        return
    try:
        for_all = torch.get_float32_matmul_precision()
    except RuntimeError:  # set for one backend: PyTorch then refuses to read this
        for_all = None
    try:
        if for_all is not None:
            torch.set_float32_matmul_precision("highest")
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        if for_all is not None:
            torch.set_float32_matmul_precision(for_all)
        for backend, precision in zip(backends, before):
            backend.fp32_precision = precision


def full_precision(function: Callable[..., Result]) -> Callable[..., Result]:
    """Run ``function`` with autocast and TF32 off and half-precision tensors as float32: in bfloat16 a coordinate on a
    320-voxel axis is off by more than a voxel, in TF32 by a tenth of one."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Result:
        half = (torch.float16, torch.bfloat16)
        widened = [a.float() if isinstance(a, Tensor) and a.dtype in half else a for a in args]
        with ExitStack() as stack:
            stack.enter_context(_exact_products())
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            return function(*widened, **kwargs)

    return run


def voxel_grid(size: Sequence[int], like: Tensor) -> Tensor:
    """Coordinates of every voxel: ``(D, *size)``, with the dtype and device of ``like``."""
    axes = [torch.arange(n, dtype=like.dtype, device=like.device) for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def _normalise(components: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Voxel coordinates, one tensor an axis, as the ``(..., D)`` in [-1, 1], last axis first, that grid_sample
    takes."""
    return torch.stack([c * (2 / max(n - 1, 1)) - 1 for c, n in zip(reversed(components), reversed(size))], dim=-1)


def _interpolate(image: Tensor, grid: Tensor, mode: str) -> Tensor:
    grid = grid.to(image.dtype)
    size, axes = grid.shape[1:-1], [1] * (grid.dim() - 3)
    points, threads = math.prod(size), torch.get_num_threads()
    if len(image) == 1 and image.device.type == "cpu" and not (image.requires_grad or grid.requires_grad):
        # The CPU's 3D kernel gives each thread whole items of a batch: one image becomes several, with a share of the
        # points each, where these can be shared evenly.
        shares = next((n for n in range(threads, 4 * threads, threads) if points % n == 0), 1)
        grid = grid.reshape(shares, -1, *axes, len(size))
        image = image.expand(shares, *image.shape[1:])
        values = F.grid_sample(image, grid, mode=mode, padding_mode="border", align_corners=True)
        return values.transpose(0, 1).reshape(1, -1, *size)
    return F.grid_sample(image, grid, mode=mode, padding_mode="border", align_corners=True)


@full_precision
def sample(image: Tensor, points: Tensor, mode: str = "bilinear") -> Tensor:
    """Values of ``image`` at ``points``, linearly interpolated (``mode="nearest"`` for labels).

    Args:
        image: ``(N, C, *S)``.
        points: ``(N, D, *P)`` with D = len(S) and as many point axes P as S; voxel coordinates of ``image``.
    Returns: ``(N, C, *P)``.
    """
    return _interpolate(image, _normalise(points.unbind(1), image.shape[2:]), mode)


@full_precision
def displace(image: Tensor, ddf: Tensor, mode: str = "bilinear") -> Tensor:
    """``image(x + ddf(x))`` for ``image`` ``(N, C, *S)`` and ``ddf`` ``(N, D, *S)``; the identity grid is never
    stored."""
    size, components = ddf.shape[2:], []
    for axis, (u, n, extent) in enumerate(zip(ddf.unbind(1), size, image.shape[2:])):
        # One pass over u: the identity in [-1, 1] is a line along the axis.
        scale = 2 / max(extent - 1, 1)
        line = torch.arange(n, dtype=ddf.dtype, device=ddf.device) * scale - 1
        components.append(torch.add(line.view([-1 if a == axis else 1 for a in range(len(size))]), u, alpha=scale))
    return _interpolate(image, torch.stack(components[::-1], dim=-1), mode)


@full_precision
def inside(ddf: Tensor) -> Tensor:
    """Whether ``x + ddf(x)`` lies within the volume, outer halves of its voxels included: ``(N, D, *S)`` voxels to
    ``(N, *S)`` bool."""
    result = torch.ones_like(ddf[:, 0], dtype=torch.bool)
    for axis, (u, n) in enumerate(zip(ddf.unbind(1), ddf.shape[2:])):
        place = u + torch.arange(n, dtype=ddf.dtype, device=ddf.device).view(-1, *[1] * (ddf.dim() - 3 - axis))
        result &= (place >= -0.5) & (place <= n - 0.5)
    return result


def displace_observed(image: Tensor, observed: Tensor | None, ddf: Tensor) -> tuple[Tensor, Tensor]:
    """`displace` an image and find where the result is known. Both share the weights of the interpolation.

    Args:
        image: ``(N, 1, *S)``.
        observed: ``(N, 1, *S)``, 1 where the image was observed and 0 elsewhere; None for everywhere.
        ddf: ``(N, D, *S)``, voxels.
    Returns: values ``(N, 1, *S)``, and ``(N, 1, *S)`` bool, True inside the volume and where most of the voxels that
        contribute were observed.
    """
    within = inside(ddf).unsqueeze(1)
    if observed is None:
        return displace(image, ddf), within
    values, share = displace(torch.cat([image, observed.to(image)], dim=1), ddf).split(1, dim=1)
    return values, within & (share > 0.5)


def warp(images: Tensor, ddf: Tensor, mode: str = "bilinear") -> Tensor:
    """Pull every timepoint back to the common grid: ``warped_k(x) = images_k(x + ddf_k(x))``.

    Args:
        images: ``(B, K, *S)``.
        ddf: ``(B, K, D, *S)``, voxels.
    Returns: ``(B, K, *S)``.
    """
    if images.shape[:2] != ddf.shape[:2] or images.shape[2:] != ddf.shape[3:] or ddf.shape[2] != images.dim() - 2:
        raise ValueError(
            f"ddf: expected shape (B, K, D, *S) to match images {tuple(images.shape)}, got {tuple(ddf.shape)}"
        )
    volumes, fields = images.flatten(0, 1).unsqueeze(1), ddf.flatten(0, 1)
    if volumes.requires_grad or fields.requires_grad:
        warped = displace(volumes, fields, mode)
    else:  # one after the other: the coordinates of a large series would fill the memory
        warped = torch.cat([displace(x, u, mode) for x, u in zip(volumes.split(1), fields.split(1))])
    return warped.squeeze(1).unflatten(0, images.shape[:2])


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """Displacement of ``(id + outer) o (id + inner)``: first ``inner``, then ``outer``. Both ``(B, K, D, *S)``, voxels;
    one of them may have K = 1 and is then used for every timepoint."""
    outer, inner = torch.broadcast_tensors(outer, inner)
    carried = displace(outer.flatten(0, 1), inner.flatten(0, 1)).unflatten(0, inner.shape[:2])
    return inner + carried


@full_precision
def upsample_field(field: Tensor, factor: int, size: Sequence[int]) -> Tensor:
    """Bring a field whose voxel i lies on voxel ``factor * i`` of a finer grid of ``size`` to that grid.

    This is where a strided convolution puts its outputs. The field has ``ceil(size / factor)`` voxels an axis; fine
    voxels beyond its last one take that one's value. ``(B, K, D, *S)`` to ``(B, K, D, *size)``.
    """
    expected = tuple(-(-n // factor) for n in size)
    if tuple(field.shape[3:]) != expected:
        raise ValueError(
            f"field: expected spatial shape {expected} for size {tuple(size)}, got {tuple(field.shape[3:])}"
        )
    if factor == 1:
        return field
    # A product with a narrow matrix an axis: several times as fast on a CPU as interpolate. From the last axis to the
    # first, so that nothing large is transposed.
    *matrices, last = (placed_once(_interpolation, n, c, factor, like=field) for n, c in zip(size, expected))
    fine = factor * field @ last.T
    for axis, matrix in reversed(list(enumerate(matrices, start=3))):
        fine = (matrix @ fine.flatten(axis + 1)).unflatten(-1, fine.shape[axis + 1 :])
    return fine


@lru_cache(maxsize=128)
def _placed(
    make: Callable[..., Tensor], arguments: tuple[object, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    return make(*arguments).to(dtype=dtype, device=device)


def placed_once(make: Callable[..., Tensor], *arguments: object, like: Tensor) -> Tensor:
    """``make(*arguments)``, a constant computed on the CPU, with the dtype and device of ``like``. It is remembered: in
    a loop on a GPU every copy takes longer than the product that it is for."""
    return _placed(make, arguments, like.dtype, like.device)


def _interpolation(size: int, coarse: int, factor: int) -> Tensor:
    """Linear interpolation of a line, ``(size, coarse)``: coarse voxel i lies on voxel ``factor * i``."""
    position = (torch.arange(size, dtype=torch.float64) / factor).clamp_max(coarse - 1)
    return (1 - (position[:, None] - torch.arange(coarse)).abs()).clamp_min(0)
