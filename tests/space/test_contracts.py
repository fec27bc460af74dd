"""Contracts of linear operators."""

import numpy as np
import torch
from contracts import LinearOperatorContract
from scipy import ndimage
from scipy.fft import dctn

from groupmorph_monai.probability import FluidPrior
from groupmorph_monai.space.cosine_transform import CosineTransform
from groupmorph_monai.space.filters import gaussian_filter, gradient, window_mean
from groupmorph_monai.space.lattice import restrict
from groupmorph_monai.space.smoothing import MultiGaussian
from groupmorph_monai.workflow.precision import FreeLinearPrecision


class _TransposedByAutograd(LinearOperatorContract):
    def transposed(self, y):
        x = torch.zeros(1, 1, *self.domain, dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad((self.apply(x) * y).sum(), x)[0]


class _Symmetric(LinearOperatorContract):
    def transposed(self, y):
        return self.apply(y)


class TestCosineTransform(LinearOperatorContract):
    def apply(self, x):
        return CosineTransform(self.domain, x)(x)

    def transposed(self, y):
        return CosineTransform(self.domain, y).inverse(y)

    def oracle(self, x):
        return dctn(x, norm="ortho")


class TestRestriction(LinearOperatorContract):
    """Its adjoint is linear interpolation from the lattice."""

    factor = 3

    def apply(self, x):
        return restrict(x, self.factor)

    def matrices(self):
        for n in self.domain:
            places, lattice = np.arange(n) / self.factor, np.arange(-(-n // self.factor))
            yield np.maximum(0, 1 - np.abs(places[:, None] - lattice[None]))

    def transposed(self, y):
        a, b, c = (torch.from_numpy(m) for m in self.matrices())
        return torch.einsum("ia,jb,kc,nmabc->nmijk", a, b, c, y)

    def oracle(self, x):
        return np.einsum("ia,jb,kc,ijk->abc", *self.matrices(), x)


class TestWindowMean(_TransposedByAutograd):
    def apply(self, x):
        return window_mean(x, 1)

    def oracle(self, x):
        return ndimage.uniform_filter(x, 3, mode="nearest")


class TestGaussianFilter(_TransposedByAutograd):
    def apply(self, x):
        return gaussian_filter(x, 0.8)

    def oracle(self, x):
        return ndimage.gaussian_filter(x, 0.8, mode="nearest", radius=3)


class TestGradient(_TransposedByAutograd):
    def apply(self, x):
        return gradient(x)[:, :, 1]

    def oracle(self, x):
        return np.gradient(x, axis=1)


class TestMultiGaussian(_Symmetric):
    def apply(self, x):
        return MultiGaussian()(x)

    def oracle(self, x):
        return dctn(MultiGaussian().spectrum(self.domain).numpy() * dctn(x, norm="ortho"), norm="ortho", type=3)


class TestFreeLinearPrecision(_Symmetric):
    """Linear fields are integrated out by dense matrices in NumPy."""

    prior, weights = FluidPrior(0, 0, 0.5, 2.0), (1.0, 3.0)

    def apply(self, x):
        return FreeLinearPrecision(self.prior.terms(self.domain), self.weights).product(x)

    def oracle(self, x):
        spectrum = sum(w * t.numpy() for w, t in zip(self.weights, self.prior.terms(self.domain))).ravel()
        axes = np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in self.domain], indexing="ij")
        linear = np.stack([dctn(axis, norm="ortho").ravel() for axis in axes], axis=1)
        across = spectrum[:, None] * linear
        dense = np.diag(spectrum) - across @ np.linalg.solve(linear.T @ across, across.T)
        return (dense @ x.ravel()).reshape(x.shape)
