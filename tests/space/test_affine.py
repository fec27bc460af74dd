import torch
from scipy.linalg import logm

from groupmorph_monai.space import Lattice, ScalingAndSquaring, VelocityField
from groupmorph_monai.space.affine import affine_in_voxels, affine_logarithms, affine_velocity

SIZE = (17, 17, 17)
LINEAR = torch.tensor([[0, -0.15, 0.15], [0.15, 0.1, 0], [0, 0, 0]], dtype=torch.float64)


def test_an_affine_map_is_the_flow_of_its_velocity_on_any_lattice():
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] += LINEAR
    matrix[:3, 3] = torch.tensor([-1.0, 0.5, 2.0])
    logarithms = torch.stack([torch.zeros(4, 4), torch.from_numpy(logm(matrix.numpy()))])
    for stride in (1, 2):
        size = [-(-n // stride) for n in SIZE]
        like = VelocityField(torch.zeros(1, 2, 3, *size, dtype=torch.float64), Lattice(SIZE, stride))
        velocity = affine_velocity(logarithms, like)
        assert velocity.lattice == Lattice(SIZE, stride)
        ddf = ScalingAndSquaring(9)(velocity).values[0]
        assert ddf[0].abs().max() == 0
        centre = [n // 2 for n in size]
        point = stride * torch.tensor(centre, dtype=torch.float64)
        expected = matrix[:3, :3] @ point + matrix[:3, 3] - point
        torch.testing.assert_close(stride * ddf[1][:, *centre], expected, atol=0.02, rtol=0)


def test_a_map_in_mm_moves_voxels_as_it_moves_the_points_on_which_they_lie():
    grid = torch.tensor([[-2.0, 0, 0, 50], [0, 0, 3, -20], [0, 1, 0, 7], [0, 0, 0, 1]], dtype=torch.float64)
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3] += 0.1 * torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    voxel = torch.tensor([3.0, 4, 5, 1], dtype=torch.float64)
    actual = affine_in_voxels(torch.stack([matrix, torch.eye(4, dtype=torch.float64)]), grid)
    torch.testing.assert_close(grid @ (actual[0] @ voxel), matrix @ (grid @ voxel))
    assert torch.equal(actual[1], torch.eye(4, dtype=torch.float64))


def test_twelve_components_are_a_matrix_row_by_row_then_a_translation():
    expected = torch.tensor([[1.0, 2, 3, 10], [4, 5, 6, 11], [7, 8, 9, 12], [0, 0, 0, 0]])
    components = torch.arange(1.0, 13).expand(2, 3, 12)
    assert torch.equal(affine_logarithms(components), expected.expand(2, 3, 4, 4))
