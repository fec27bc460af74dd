"""The Gauss-Newton step of a refinement: one linear system for the fields of K timepoints."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..space.lattice import CosineTransform
from .evidence import Quadratic
from .precision import Band, Precision

__all__ = ["ascent", "solve"]


def ascent(model: Quadratic, precision: Precision, z: Tensor) -> Tensor:
    """The bound's gradient ``g - Lambda z`` in cosine coordinates, ``(K, D, *S)``."""
    cosine = CosineTransform(z.shape[2:], z)
    return model.storage.map(lambda g, v: cosine(g) - precision.product(cosine(v)), model.force, z, dim=0)


def solve(
    model: Quadratic, precision: Precision, right: Tensor, steps: int, kept: Sequence[float] | None = None
) -> Tensor:
    """Solve ``(H + Lambda) d = right`` among K fields of mean 0 over K by conjugate gradients. Timepoints meet in sums
    alone, so that they are taken chunk by chunk.

    Args:
        model: second-order model with the curvature H.
        precision: Lambda.
        right: right side in cosine coordinates, ``(K, D, *S)``.
        steps: maximum number of steps.
        kept: number of the lowest frequencies along each axis that H acts on (`Precision.band_limits`); beyond them
            Lambda stands alone. None for all.
    Returns: d, ``(K, D, *S)``, on the lattice.
    """
    size, storage, number = right.shape[2:], model.storage, len(right)
    band = Band(size, kept or size)
    cosine, low, prior = CosineTransform(size, right), CosineTransform(size, right, band.kept), precision.within(band)
    # Where H counts little the coordinates are white under the prior; a fifth of its mean keeps the others in bounds.
    scale = (prior.spectrum + 0.2 * model.mean_curvature).clamp_min(1e-30).rsqrt()
    mean_right = storage.mean(right, dim=0)

    r = storage.map(lambda part: scale * band.pack(part - mean_right), right, dim=0)
    p, y = (storage.map(copy, r, dim=0) for copy in (torch.clone, torch.zeros_like))
    product = storage.empty_like(r)
    rr = first = storage.sum(_squares, r, dim=0)
    running = torch.ones_like(rr)
    for _ in range(steps):
        mean = along = 0.0
        for c in storage.chunks(number):
            x = scale * p[c]
            q = prior.product(x)
            block = band.of_block(q)
            block += low(model.product(low.inverse(band.of_block(x)), c))
            product[c] = scale * q
            mean = mean + product[c].sum(dim=0, keepdim=True) / number
            along = along + (p[c] * product[c]).sum()  # p has mean 0: that of the product does not count
        length = running * rr / along.clamp_min(1e-30)
        previous, rr = rr, 0.0
        for c in storage.chunks(number):
            y[c] += length * p[c]
            r[c] -= length * (product[c] - mean)
            rr = rr + _squares(r[c])
        # A GPU goes on with steps of length 0: to ask it whether it is done takes longer.
        running = running * ~(rr < 1e-4 * first)
        if rr.device.type == "cpu" and not running:
            break
        for c in storage.chunks(number):
            p[c] = r[c] + rr / previous.clamp_min(1e-30) * p[c]

    def field(part: Tensor, y: Tensor) -> Tensor:
        beyond = (part - mean_right) / precision.spectrum.clamp_min(1e-30)
        return cosine.inverse(band.unpack(scale * y, into=beyond))

    return storage.map(field, right, y, dim=0)


def _squares(x: Tensor) -> Tensor:
    return x.square().sum()
