"""Every peer recovers known motion on an oblique anisotropic grid, and its field follows the conventions of this
package."""

import importlib.util

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from groupmorph_monai.benchmarks.peers import PEERS, MissingError

SIZE, SPACING = (56, 48, 40), (1.0, 1.3, 1.9)


def oblique_affine():
    axes, _ = np.linalg.qr(np.array([[0.9, 0.3, -0.2], [-0.25, 0.95, 0.3], [0.3, -0.2, 0.9]]))
    affine = np.eye(4)
    affine[:3, :3] = axes * np.sign(np.diag(axes)) * SPACING
    affine[:3, 3] = -40, 25, 60
    return torch.from_numpy(affine)


def body():
    """Render a textured ellipsoid in air."""
    rng = np.random.default_rng(0)
    texture = sum(gaussian_filter(rng.standard_normal(SIZE), s) * s**1.5 for s in (2, 4))
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SIZE], indexing="ij"))
    inside = gaussian_filter((np.square(grid / 0.72).sum(0) < 1).astype(float), 1)
    return (500 + 300 * texture / texture.std()).clip(50, 1000) * inside, inside


def smooth_motion():
    """Make a field of at most about 3 voxels from waves as long as the grid."""
    x, y, z = (np.pi * np.arange(n).reshape([-1 if a == d else 1 for a in range(3)]) / n for d, n in enumerate(SIZE))
    ones = np.ones(SIZE)
    return np.stack(
        [2.5 * np.sin(y) * np.cos(z) * ones, -2 * np.cos(x) * np.sin(z) * ones, 1.5 * np.sin(x) * np.cos(y) * ones]
    )


MOTIONS = {
    "translation": np.array([2.0, -1.5, 1.2]).reshape(3, 1, 1, 1) * np.ones((3, *SIZE)),
    "smooth": smooth_motion(),
}


def series_warped_by(u):
    """Make a pair whose second volume, pulled back by ``u``, is the first: ``first(x) = second(x + u(x))``."""
    second, _ = body()
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in SIZE], indexing="ij"))
    first = map_coordinates(second, grid + u, order=3, mode="nearest")
    return torch.from_numpy(np.stack([first, second])).float()


@pytest.fixture(params=PEERS)
def register(request):
    try:
        return PEERS[request.param].prepare()
    except MissingError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.parametrize("motion", MOTIONS)
def test_known_motion_is_recovered_within_a_fraction_of_a_voxel(register, motion):
    u = MOTIONS[motion]
    images = series_warped_by(u)
    try:
        result = register(images, oblique_affine())
    except MissingError as error:
        pytest.skip(str(error))
    ddf, inverse = result if isinstance(result, tuple) else (result, None)
    _, inside = body()
    covered = map_coordinates(inside, np.indices(SIZE) + u, order=1) > 0.9
    # Group-wise peers differ in their common space: compare the transform from the first scan to the second.
    field = from_first_to_second(ddf)
    error = np.linalg.norm(field - u, axis=0)[covered]
    assert error.mean() < 0.5, f"{error.mean():.2f} of {np.linalg.norm(u, axis=0)[covered].mean():.2f} voxels are left"
    if inverse is not None:
        mapped = np.indices(SIZE) + ddf[1].numpy()
        back = np.stack([map_coordinates(v, mapped, order=1, mode="nearest") for v in inverse[1].numpy()])
        assert np.linalg.norm(ddf[1].numpy() + back, axis=0)[covered].mean() < 0.1


def from_first_to_second(ddf):
    """``T_1 o T_0^-1 - id`` of two fields ``(2, 3, *S)``, voxels."""
    first, second = ddf.numpy()
    y = np.indices(SIZE).astype(float)
    for _ in range(40):
        y = np.indices(SIZE) - np.stack([map_coordinates(v, y, order=1, mode="nearest") for v in first])
    displacement = np.stack([map_coordinates(v, y, order=1, mode="nearest") for v in second])
    return y + displacement - np.indices(SIZE)


def test_an_itk_transform_becomes_a_field_in_voxels():
    if importlib.util.find_spec("unigradicon") is None:
        pytest.skip("unigradicon is not installed")
    import itk

    from groupmorph_monai.benchmarks.peers.uni_gradicon import field_of

    grid = itk.image_from_array(np.zeros((4, 5, 6), dtype=np.float32))
    grid.SetSpacing(SPACING)
    shift = itk.TranslationTransform[itk.D, 3].New()
    shift.SetOffset([2.0, 2.6, -3.8])
    chain = itk.CompositeTransform[itk.D, 3].New()
    chain.AddTransform(shift)
    field = field_of(chain, grid, list(SPACING))
    assert field.shape == (3, 6, 5, 4)
    torch.testing.assert_close(field[:, 2, 3, 1], torch.tensor([2.0, 2.0, -2.0]))
