"""Sampling, warping, composition and upsampling on voxel grids.

Conventions of the whole package: images are ``(B, K, *S)`` with time on the channel axis and ``S`` in NIfTI index order
(i, j, k). Fields are ``(B, K, D, *S)``; component d displaces along spatial axis d, in voxels of the field's grid.
Fields pull back, ``warped(x) = image(x + ddf(x))``: point x of the common grid lies at ``x + ddf(x)`` in the timepoint.
Interpolation uses ``align_corners=True`` and border padding.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

Result = TypeVar("Result")


@contextmanager
def _exact_products() -> Iterator[None]:
    """Compute float32 matrix products in float32, even where TF32 or bfloat16 is enabled for speed."""
    products = (getattr(backend, "matmul", None) for backend in (torch.backends.cuda, torch.backends.mkldnn))
    # PyTorch 2.8 has no fp32_precision.
    backends = [matmul for matmul in products if matmul is not None and hasattr(matmul, "fp32_precision")]
    backend_precisions = [backend.fp32_precision for backend in backends]
    if backends and set(backend_precisions) <= {"ieee", "none"}:
        yield
        return
    try:
        global_precision = torch.get_float32_matmul_precision()
    except RuntimeError:  # PyTorch refuses to read the global setting if that of a single backend was changed
        global_precision = None
    try:
        if global_precision is not None:
            torch.set_float32_matmul_precision("highest")
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        if global_precision is not None:
            torch.set_float32_matmul_precision(global_precision)
        for backend, precision in zip(backends, backend_precisions):
            backend.fp32_precision = precision


def full_precision(function: Callable[..., Result]) -> Callable[..., Result]:
    """Decorate ``function`` to run without autocast and TF32, with positional half-precision tensors cast to float32:
    the error of a coordinate on a 320-voxel axis exceeds a voxel in bfloat16 and is a tenth of one in TF32."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Result:
        widened = [_widened(value) for value in args]
        named = {name: _widened(value) for name, value in kwargs.items()}
        with ExitStack() as stack:
            stack.enter_context(_exact_products())
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            return function(*widened, **named)

    return run


def _widened(value: Any) -> Any:
    is_half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if is_half else value


def voxel_grid(size: Sequence[int], like: Tensor) -> Tensor:
    """Return the coordinates of every voxel, ``(D, *size)``, with the dtype and device of ``like``."""
    axes = [torch.arange(n, dtype=like.dtype, device=like.device) for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def _normalise(components: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Convert voxel coordinates, one tensor per axis, to grid_sample's format: ``(..., D)`` in [-1, 1], last axis
    first."""
    return torch.stack([c * (2 / max(n - 1, 1)) - 1 for c, n in zip(reversed(components), reversed(size))], dim=-1)


def _interpolate(image: Tensor, grid: Tensor, mode: str) -> Tensor:
    dtype = torch.promote_types(image.dtype, torch.float32)
    image, grid = image.to(dtype), grid.to(dtype)
    single = (
        len(image) == len(grid) == 1 and image.device.type == "cpu" and not (image.requires_grad or grid.requires_grad)
    )
    if not torch.jit.is_scripting() and single:  # type: ignore[attr-defined]
        return _interpolate_in_parts(image, grid, mode)
    return F.grid_sample(image, grid, mode=mode, padding_mode="border", align_corners=True)


def _interpolate_in_parts(image: Tensor, grid: Tensor, mode: str) -> Tensor:
    """Interpolate a single image in parallel: the CPU's 3D kernel parallelises over the batch only, so the image is
    expanded to a batch and the points are split, if they split evenly."""
    size, axes = grid.shape[1:-1], [1] * (grid.dim() - 3)
    points, threads = math.prod(size), torch.get_num_threads()
    parts = next((n for n in range(threads, 4 * threads, threads) if points % n == 0), 1)
    grid, image = grid.reshape(parts, -1, *axes, len(size)), image.expand(parts, *image.shape[1:])
    values = F.grid_sample(image, grid, mode=mode, padding_mode="border", align_corners=True)
    return values.transpose(0, 1).reshape(1, -1, *size)


@full_precision
def sample(image: Tensor, points: Tensor, mode: str = "bilinear") -> Tensor:
    """Sample ``image`` at ``points``.

    Args:
        image: ``(N, C, *S)``.
        points: voxel coordinates of ``image``, ``(N, D, *P)``, where P has D axes, as S has.
        mode: ``"bilinear"`` for linear interpolation, or ``"nearest"`` for labels.

    Returns:
        Values ``(N, C, *P)``.
    """
    return _interpolate(image, _normalise(points.unbind(1), image.shape[2:]), mode)


def displace(image: Tensor, ddf: Tensor, mode: str = "bilinear") -> Tensor:
    """Sample ``image(x + ddf(x))`` without storing the identity grid, in float32 or better, also under autocast.

    Networks that are exported call this function, so it is restricted to what TorchScript supports. It does not use
    `torch.nn.functional.affine_grid`, a matrix product, which autocast and TF32 round.

    Args:
        image: ``(N, C, *S)``, on a grid of any size.
        ddf: ``(N, D, *P)``, voxels of ``image``.
        mode: as in `sample`.

    Returns:
        Values ``(N, C, *P)``.
    """
    dimensions, dtype = ddf.dim() - 2, torch.promote_types(ddf.dtype, torch.float32)
    components: list[Tensor] = []
    for axis in range(dimensions - 1, -1, -1):  # grid_sample expects the last axis first
        # The identity broadcasts along the other axes, so that each component takes one pass.
        n, scale = ddf.shape[axis + 2], 2.0 / max(image.shape[axis + 2] - 1, 1)
        identity = torch.arange(n, dtype=dtype, device=ddf.device) * scale - 1.0
        identity = identity.view([-1 if a == axis else 1 for a in range(dimensions)])
        components.append(torch.add(identity, ddf[:, axis].to(dtype), alpha=scale))
    return _interpolate(image, torch.stack(components, dim=-1), mode)


@full_precision
def _depth(ddf: Tensor) -> Tensor:
    """Compute how far ``x + ddf(x)`` lies inside the outer faces of the volume's voxels, voxels; negative outside."""
    result = torch.full_like(ddf[:, 0], torch.inf)
    for axis, (u, n) in enumerate(zip(ddf.unbind(1), ddf.shape[2:])):
        coordinate = u + torch.arange(n, dtype=ddf.dtype, device=ddf.device).view(-1, *[1] * (ddf.dim() - 3 - axis))
        result = torch.minimum(result, torch.minimum(coordinate, n - 1 - coordinate))
    return result + 0.5


def inside_volume(ddf: Tensor) -> Tensor:
    """Test whether ``x + ddf(x)`` lies within the outer faces of the volume's voxels: ``(N, D, *S)``, voxels, to ``(N,
    *S)`` bool."""
    return _depth(ddf) >= 0


def displace_observed(image: Tensor, observed: Tensor | None, ddf: Tensor) -> tuple[Tensor, Tensor]:
    """Sample an image as `displace` does and find how far the result was measured, sharing the interpolation weights.

    The measured weight is continuous, so that rounding at the border of a field of view changes it by rounding: it is 1
    where all voxels that contribute were observed, and falls to 0 at the outer faces of the volume's voxels and where
    half of what contributes was not observed. It has no gradient: nothing is gained by moving voxels out of view.

    Args:
        image: ``(N, 1, *S)``.
        observed: ``(N, 1, *S)``, 1 where the image was observed and 0 elsewhere; None for everywhere.
        ddf: ``(N, D, *S)``, voxels.

    Returns:
        Values, and their measured weights in [0, 1], each ``(N, 1, *S)``.
    """
    within = (2 * _depth(ddf.detach())).clamp(0, 1).unsqueeze(1)
    if observed is None:
        return displace(image, ddf), within
    values, share = displace(torch.cat([image, observed.to(image)], dim=1), ddf).split(1, dim=1)
    return values, within * (2 * share.detach() - 1).clamp(0, 1)


def warp(images: Tensor, ddf: Tensor, mode: str = "bilinear") -> Tensor:
    """Pull every timepoint back to the common grid: ``warped_k(x) = images_k(x + ddf_k(x))``.

    Args:
        images: ``(B, K, *S)``.
        ddf: ``(B, K, D, *S)``, voxels.
        mode: as in `sample`.

    Returns:
        Warped images ``(B, K, *S)``.
    """
    _check_shapes(images, ddf)
    volumes, fields = images.flatten(0, 1).unsqueeze(1), ddf.flatten(0, 1)
    if volumes.requires_grad or fields.requires_grad:
        warped = displace(volumes, fields, mode)
    else:  # one at a time: the coordinates of a large series would fill the memory
        warped = torch.cat([displace(x, u, mode) for x, u in zip(volumes.split(1), fields.split(1))])
    return warped.squeeze(1).unflatten(0, images.shape[:2])


def warp_observed(images: Tensor, observed: Tensor | None, ddf: Tensor) -> tuple[Tensor, Tensor]:
    """Warp images as `warp` does and mark where the result was measured.

    Args:
        images: ``(B, K, *S)``.
        observed: ``(B, K, *S)``, 1 where the images were observed and 0 elsewhere; None for everywhere.
        ddf: ``(B, K, D, *S)``, voxels.

    Returns:
        Values, and bool, True where their measured weight in `displace_observed` is above 0, each ``(B, K, *S)``.
    """
    _check_shapes(images, ddf)
    volumes = images.flatten(0, 1).unsqueeze(1).split(1)
    masks = [None] * len(volumes) if observed is None else observed.flatten(0, 1).unsqueeze(1).split(1)
    parts = [displace_observed(*part) for part in zip(volumes, masks, ddf.flatten(0, 1).split(1))]
    warped, weight = (torch.cat(part).squeeze(1).unflatten(0, images.shape[:2]) for part in zip(*parts))
    return warped, weight > 0


def _check_shapes(images: Tensor, ddf: Tensor) -> None:
    if images.shape[:2] != ddf.shape[:2] or images.shape[2:] != ddf.shape[3:] or ddf.shape[2] != images.dim() - 2:
        raise ValueError(
            f"ddf: expected shape (B, K, D, *S) to match images {tuple(images.shape)}, got {tuple(ddf.shape)}"
        )


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """Compute the displacement of ``(id + outer) o (id + inner)``: first ``inner``, then ``outer``.

    Args:
        outer: ``(B, K, D, *S)``, voxels; broadcast over timepoints if its K is 1.
        inner: ``(B, K, D, *S)``, voxels; broadcast likewise.
    """
    outer, inner = torch.broadcast_tensors(outer, inner)
    outer_at_inner = displace(outer.flatten(0, 1), inner.flatten(0, 1)).unflatten(0, inner.shape[:2])
    return inner + outer_at_inner


@full_precision
def upsample_field(field: Tensor, factor: int, size: Sequence[int], every: int = 1) -> Tensor:
    """Upsample a field whose voxel i lies on voxel ``factor * i`` of a finer grid, as the outputs of a strided
    convolution do. Fine voxels beyond the last coarse one take its value.

    Args:
        field: ``(B, K, D, *C)`` with ``C = ceil(size / factor)``, in coarse voxels.
        factor: fine voxels per coarse voxel.
        size: size of the fine grid.
        every: compute only every ``every``-th fine voxel along each axis.

    Returns:
        ``(B, K, D, *ceil(size / every))``, in fine voxels.

    Raises:
        ValueError: If the size of the field does not match ``factor`` and ``size``.
    """
    expected = tuple(-(-n // factor) for n in size)
    if tuple(field.shape[3:]) != expected:
        raise ValueError(
            f"field: expected spatial shape {expected} for size {tuple(size)}, got {tuple(field.shape[3:])}"
        )
    if factor == 1:
        thinned = [slice(None)] * 3 + [slice(None, None, every)] * len(size)
        return field[tuple(thinned)]
    # Products with narrow matrices are several times as fast on a CPU as F.interpolate.
    matrices = [placed_once(_interpolation, n, c, factor, like=field)[::every] for n, c in zip(size, expected)]
    return multiply_axes(factor * field, matrices)


def multiply_axes(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Multiply each of the last axes of ``x`` ``(..., *S)`` by one of the ``matrices`` ``(m, n)``: ``(..., *M)``. From
    the last axis to the first, to avoid transposing large tensors."""
    *leading, last = matrices
    x = x @ last.T
    for axis, matrix in reversed(list(enumerate(leading, start=x.dim() - len(matrices)))):
        x = (matrix @ x.flatten(axis + 1)).unflatten(-1, x.shape[axis + 1 :])
    return x


@lru_cache(maxsize=128)
def _placed(
    make: Callable[..., Tensor], arguments: tuple[object, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    return make(*arguments).to(dtype=dtype, device=device)


def placed_once(make: Callable[..., Tensor], *arguments: object, like: Tensor) -> Tensor:
    """Return the constant ``make(*arguments)``, computed on the CPU, with the dtype and device of ``like``, cached: in
    a loop on a GPU, copying it takes longer than the product that it is used in."""
    return _placed(make, arguments, like.dtype, like.device)


def _interpolation(size: int, coarse: int, factor: int) -> Tensor:
    """Return the matrix of linear interpolation along an axis, ``(size, coarse)`` float64; coarse voxel i lies on voxel
    ``factor * i``."""
    position = (torch.arange(size, dtype=torch.float64) / factor).clamp_max(coarse - 1)
    return (1 - (position[:, None] - torch.arange(coarse)).abs()).clamp_min(0)
