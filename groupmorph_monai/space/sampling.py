"""Interpolation in tensors, and its precision. Positions are in voxels; interpolation uses ``align_corners=True`` and
border padding."""

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
    grid, image = grid.reshape(parts, points // parts, *axes, len(size)), image.expand(parts, *image.shape[1:])
    values = F.grid_sample(image, grid, mode=mode, padding_mode="border", align_corners=True)
    return values.transpose(0, 1).reshape(1, image.shape[1], *size)


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
