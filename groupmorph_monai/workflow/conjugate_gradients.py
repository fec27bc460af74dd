"""Gauss-Newton step of a refinement: one linear system for the fields of all K timepoints."""

import torch
from torch import Tensor

from ..space.cosine_transform import CosineTransform
from .evidence import Quadratic
from .precision import Precision

_CURVATURE_SHARE = 0.2  # share of the mean curvature that bounds the preconditioner where the prior does not dominate
_CONVERGED = 1e-4  # squared residual over its initial value at which the iteration ends


def ascent(model: Quadratic, precision: Precision, z: Tensor) -> Tensor:
    """Compute the gradient of the evidence lower bound, ``g - Lambda z``, in cosine coordinates, ``(K, D, *S)``."""
    cosine = CosineTransform(z.shape[2:], z)
    return model.storage.map(lambda g, v: cosine(g) - precision.product(cosine(v)), model.force, z, dim=0)


def solve(model: Quadratic, precision: Precision, rhs: Tensor, steps: int) -> Tensor:
    """Solve ``(H + Lambda) d = rhs`` by conjugate gradients among K fields of mean 0 over K.

    Timepoints are coupled only by sums, so they are processed chunk by chunk. In float32, conjugate gradients amplify
    rounding to hundredths of a voxel where the images determine little; so they are computed in float64.

    Args:
        model: curvature H.
        precision: precision Lambda.
        rhs: right-hand side in cosine coordinates, ``(K, D, *S)``.
        steps: maximum number of steps; fewer if the squared residual falls by a factor of 1e4.

    Returns:
        d on the lattice, ``(K, D, *S)``.
    """
    storage, timepoints, precision = model.storage, len(rhs), precision.exact()
    cosine = CosineTransform(rhs.shape[2:], precision.spectrum)
    # The preconditioner whitens coordinates that the prior dominates.
    scale = (precision.spectrum + _CURVATURE_SHARE * model.mean_curvature).clamp_min(1e-30).rsqrt()
    r = storage.map(lambda part: scale * part, rhs, dim=0)
    mean = storage.mean(r, dim=0)
    for c in storage.chunks(timepoints):
        r[c] -= mean
    p, y = (storage.map(copy, r, dim=0) for copy in (torch.clone, torch.zeros_like))
    product = storage.empty_like(r)
    rr = initial_rr = storage.sum(_squares, r, dim=0)
    running = torch.ones_like(rr)
    for _ in range(steps):
        mean = pap = torch.zeros_like(rr)
        for c in storage.chunks(timepoints):
            x = scale * p[c]
            product[c] = scale * (cosine(model.product(cosine.inverse(x), c)) + precision.product(x))
            mean = mean + product[c].sum(dim=0, keepdim=True) / timepoints
            pap = pap + (p[c] * product[c]).sum()  # p has mean 0, so the mean of the product has no effect
        length = running * rr / pap.clamp_min(1e-30)
        previous_rr, rr = rr, torch.zeros_like(rr)
        for c in storage.chunks(timepoints):
            y[c] += length * p[c]
            r[c] -= length * (product[c] - mean)
            rr = rr + _squares(r[c])
        # On a GPU, further steps of length 0 are faster than a synchronisation to check for convergence.
        running = running * ~(rr < _CONVERGED * initial_rr)
        if rr.device.type == "cpu" and not running:
            break
        for c in storage.chunks(timepoints):
            p[c] = r[c] + rr / previous_rr.clamp_min(1e-30) * p[c]
    return storage.map(lambda part: cosine.inverse(scale * part).to(rhs.dtype), y, dim=0)


def _squares(x: Tensor) -> Tensor:
    return x.square().sum()
