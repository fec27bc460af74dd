import pytest
import torch
from contracts import dense_laplacian, random
from torch.nn import functional as F

from groupmorph_monai.space import Lattice, VelocityField
from groupmorph_monai.space.cosine_transform import CosineTransform
from groupmorph_monai.space.filters import gradient, window_mean
from groupmorph_monai.space.lattice import coarsen, restrict

SIZE = (9, 7, 5)


@pytest.mark.parametrize("radius", [1, 2, 3])
def test_the_window_mean_is_avg_pools(radius):
    x = random(2, 3, *SIZE)
    padded = F.pad(x, [radius] * 6, mode="replicate")
    torch.testing.assert_close(window_mean(x, radius), F.avg_pool3d(padded, 2 * radius + 1, stride=1))


def test_coarse_voxels_lie_on_every_factor_th_fine_one():
    ramp = torch.arange(16.0).view(1, 1, 16, 1, 1).expand(1, 1, 16, 8, 8)
    inside = coarsen(ramp, 2)[0, 0, 2:-2, 0, 0]
    torch.testing.assert_close(inside, torch.arange(4.0, 12.0, 2.0))
    assert coarsen(ramp, 3).shape == (1, 1, 6, 3, 3)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_restricting_is_the_adjoint_of_interpolating(factor):
    coarse = random(1, 1, 3, 4, 3, 2)
    size = [factor * (n - 1) + 1 for n in coarse.shape[3:]]
    fine = random(1, 3, *size, seed=1)
    interpolated = VelocityField(coarse, Lattice(size, factor)).at(1).values[0] / factor
    left, right = (restrict(fine, factor) * coarse[0]).sum(), (fine * interpolated).sum()
    torch.testing.assert_close(left, right)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("factor", [2, 4, 8, 16])
def test_lattices_of_every_size_lie_where_they_say(factor, axis):
    """Resampling between lattices is exact on a ramp, for any size of the image."""
    for n in range(4, 261):
        size = [3, 3, 3]
        size[axis] = n
        line = torch.arange(n, dtype=torch.float64).view([-1 if a == axis else 1 for a in range(3)])
        fine = (0.1 * line + 1).expand(1, 1, 3, *size)
        thinned = fine[(..., *[slice(None, None, factor)] * 3)] / factor
        reached = factor * ((n - 1) // factor) + 1
        back = VelocityField(thinned, Lattice(size, factor)).at(1).values
        assert back.shape == fine.shape
        error = (back - fine).narrow(3 + axis, 0, reached).abs().max()
        assert error < 1e-9, f"{n} voxels"


def test_nothing_is_lost_in_restricting_an_even_grid():
    x = random(1, 1, 8, 6, 10)
    inside = F.pad(x[..., 1:-2, 1:-2, 1:-2], [1, 2, 1, 2, 1, 2])
    torch.testing.assert_close(restrict(inside, 2).sum(), inside.sum())


def test_the_gradient_along_an_axis_of_one_voxel_is_zero():
    x = torch.arange(6.0).view(1, 1, 2, 3, 1)
    torch.testing.assert_close(gradient(x)[0, 0, :, 0, 0, 0], torch.tensor([3.0, 1.0, 0.0]))


def test_the_gradient_of_a_ramp_is_its_slope():
    slopes = torch.tensor([0.5, -2.0, 3.0])
    grid = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in SIZE], indexing="ij"))
    ramp = (slopes.view(3, 1, 1, 1) * grid).sum(0)[None, None]
    torch.testing.assert_close(gradient(ramp)[0, 0], slopes.view(3, 1, 1, 1).expand(3, *SIZE))


def test_the_laplacian_is_diagonal_in_cosine_coordinates():
    size = (4, 3, 5)
    x = random(2, *size)
    cosine = CosineTransform(size, x)
    torch.testing.assert_close(cosine.inverse(cosine(x)), x)
    torch.testing.assert_close(cosine(x).square().sum(), x.square().sum())
    applied = cosine.inverse(CosineTransform.laplacian(size) * cosine(x))
    torch.testing.assert_close(applied.flatten(1), x.flatten(1) @ dense_laplacian(size))


def test_the_diagonal_of_a_polynomial_of_the_laplacian_is_exact():
    size = (4, 3, 5)
    dense = dense_laplacian(size)
    expected = (dense @ dense @ dense + 0.3 * dense).diagonal()
    spectrum = CosineTransform.laplacian(size)
    torch.testing.assert_close(CosineTransform.diagonal(spectrum**3 + 0.3 * spectrum).flatten(), expected)
