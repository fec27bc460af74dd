import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from groupmorph_monai.networks.gauss_newton_update import GaussNewtonUpdate
from groupmorph_monai.networks.scriptable_geometry import continued_gradient


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def laplacian(size):
    """Return the dense graph Laplacian of a grid."""
    lines = [np.diag([2.0] * n) - np.eye(n, k=1) - np.eye(n, k=-1) for n in size]
    for line in lines:
        line[0, 0] = line[-1, -1] = 1
    i, j, k = (np.eye(n) for n in size)
    return np.kron(np.kron(lines[0], j), k) + np.kron(np.kron(i, lines[1]), k) + np.kron(np.kron(i, j), lines[2])


def test_the_step_solves_the_normal_equations():
    size, batch, timepoints = (4, 3, 5), 2, 3
    nodes = int(np.prod(size))
    factors = random(batch, 3, 3, *size)
    a = torch.einsum("bmcijk,bncijk->bmnijk", factors, factors) * torch.tensor([1.0, 30.0]).view(2, 1, 1, 1, 1, 1)
    b, z = random(batch, timepoints, 3, *size, seed=1), random(batch, timepoints, 3, *size, seed=2)
    update = GaussNewtonUpdate(4, prior_weight=2.0, conjugate_steps=200)
    step = update._solve(a, b, z)
    third = 2.0 * np.linalg.matrix_power(laplacian(size), 3) + update.least_weight * np.eye(nodes)
    for n in range(batch):
        blocks = [[np.diag(a[n, c, d].flatten().numpy()) for d in range(3)] for c in range(3)]
        precision = np.block(blocks) + np.kron(np.eye(3), third)
        for k in range(timepoints):
            right = b[n, k].flatten().numpy() + np.kron(np.eye(3), third) @ z[n, k].flatten().numpy()
            expected = np.linalg.solve(precision, -right).reshape(3, *size)
            assert np.linalg.matrix_rank(precision) == 3 * nodes
            np.testing.assert_allclose(step[n, k], expected, atol=1e-8)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_differing_ramps_are_shifted_onto_their_mean(axis):
    """A ramp of slope 0.1 that is higher by c is the mean shifted by 10 c voxels, 2.5 c voxels of the lattice."""
    line = 0.1 * torch.arange(40.0).view([-1 if d == axis else 1 for d in range(3)])
    offsets = torch.tensor([0.2, 0.1, -0.3])
    warped = (line.expand(40, 40, 40) + offsets.view(3, 1, 1, 1))[None, :, None].contiguous()
    mean = warped.mean(dim=1, keepdim=True)
    update = GaussNewtonUpdate(4, conjugate_steps=50)
    shared = update.normal_matrices(mean, torch.full((1, 1, 10, 10, 10), 0.01))
    z = update.updated(warped, mean, *shared, torch.zeros(3, 3, 10, 10, 10))
    expected = torch.zeros(3, 3)
    expected[:, axis] = -2.5 * offsets
    middle = z[:, :, 3:7, 3:7, 3:7]
    torch.testing.assert_close(middle, expected[:, :, None, None, None].expand_as(middle), atol=0.01, rtol=0)


def test_the_noise_is_the_unbiased_local_variance_of_the_residual():
    update, squared = GaussNewtonUpdate(4), torch.zeros(1, 1, 20, 20, 20)
    squared[..., :6, :, :] = 0.04  # beyond the window of 9 nodes around the others
    noise = update.noise(squared, 5)
    share = 0.1 * 0.05 * 0.3
    torch.testing.assert_close(noise[..., 0, :, :], torch.full((1, 1, 20, 20), 0.05 + share))
    torch.testing.assert_close(noise[..., 19, :, :], torch.full((1, 1, 20, 20), share))


def test_squared_residuals_are_averaged_around_each_node():
    warped = torch.rand(1, 2, 1, 16, 12, 20, generator=torch.Generator().manual_seed(0))
    mean = warped.mean(dim=1, keepdim=True)
    squared = GaussNewtonUpdate(4).squared_residual(warped, mean)
    assert squared.shape == (1, 2, 1, 4, 3, 5)
    block = (warped[0, 1, 0] - mean[0, 0, 0])[2:7, 6:11, 10:15]
    torch.testing.assert_close(squared[0, 1, 0, 1, 2, 3], block.square().mean())


def test_half_a_voxel_of_motion_is_found():
    rng = np.random.default_rng(0)
    fine = gaussian_filter(rng.standard_normal((136, 64, 64)), 5.0)
    # Every second voxel, the second volume from half a voxel further on.
    pair = torch.from_numpy(np.stack([fine[:128:2, ::2, ::2], fine[1:129:2, ::2, ::2]])).float()[:, None]
    pair = (pair - pair.min()) / (pair.max() - pair.min())
    update, z = GaussNewtonUpdate(4), torch.zeros(2, 3, 16, 8, 8)
    for _ in range(2):  # the first overshoots: central differences underestimate a gradient
        z = update(pair, z, 2)
    motion = 4 * (z[0] - z[1])[:, 3:-3, 2:-2, 2:-2]
    torch.testing.assert_close(motion.flatten(1).median(dim=1).values, torch.tensor([0.5, 0.0, 0.0]), atol=0.03, rtol=0)


def test_volumes_are_normalised_and_warped_by_the_integral_of_z():
    volume = torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    z = torch.zeros(1, 3, 4, 4, 4)
    z[:, 1] = 0.5  # two voxels of the image
    update = GaussNewtonUpdate(3)
    moved, unmoved = update.warped(volume, z), update.warped(5 * volume + 2, torch.zeros_like(z))
    window = volume[0, 0, 3:8, 6:11, 5:10]
    expected = (volume[0, 0, 5, 8, 7] - window.mean()) / (window.var(correction=0) + 1e-4).sqrt()
    torch.testing.assert_close(moved[0, 0, 5, 6, 7], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(unmoved[0, 0, 5, 8, 7], expected, atol=0.01, rtol=0)


def test_equal_volumes_stay_where_they_are():
    volume = F.interpolate(torch.rand(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0)), size=(32, 32, 32))
    z = GaussNewtonUpdate(4)(volume.expand(3, -1, -1, -1, -1), torch.zeros(3, 3, 8, 8, 8), 3)
    assert z.abs().max() < 1e-5


@pytest.mark.parametrize("volumes", [[0.0, 0.0], [0.3, 0.5, 0.3]])
def test_volumes_without_structure_are_not_moved(volumes):
    images = torch.tensor(volumes).view(-1, 1, 1, 1, 1).expand(-1, 1, 32, 32, 32)
    z = GaussNewtonUpdate(4)(images, torch.zeros(len(volumes), 3, 8, 8, 8), len(volumes))
    assert torch.equal(z, torch.zeros_like(z))


def test_a_mean_without_structure_moves_nothing():
    """Of a volume and its negative, nothing but rounding errors is left in the mean."""
    volume = F.interpolate(torch.rand(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0)), size=(32, 32, 32))
    z = GaussNewtonUpdate(4)(torch.cat([volume, 1 - volume]), torch.zeros(2, 3, 8, 8, 8), 2)
    assert z.abs().max() < 0.1


def test_each_series_of_a_batch_has_its_own_noise():
    generator = torch.Generator().manual_seed(0)
    images, z = torch.rand(4, 1, 32, 32, 32, generator=generator), torch.zeros(4, 3, 8, 8, 8)
    images[2:] = F.avg_pool3d(images[2:], 5, stride=1, padding=2)
    update = GaussNewtonUpdate(4)
    alone = torch.cat([update(images[:2], z[:2], 2), update(images[2:], z[2:], 2)])
    torch.testing.assert_close(update(images, z, 2), alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("script", [False, True])
def test_the_slope_of_an_image_is_halved_at_its_border(script):
    x = random(2, 3, 5, 4, 6)
    slope = (torch.jit.script(continued_gradient) if script else continued_gradient)(x)
    for axis, n in enumerate(x.shape[2:]):
        factor = torch.ones(n, dtype=torch.float64)
        factor[[0, -1]] = 0.5
        expected = np.gradient(x, axis=axis + 2) * factor.view([-1 if a == axis else 1 for a in range(3)]).numpy()
        torch.testing.assert_close(slope[:, :, axis], torch.from_numpy(expected))
