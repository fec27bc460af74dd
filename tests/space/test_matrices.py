import pytest
import torch

from groupmorph_monai.space.matrices import cholesky


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_the_root_is_lapacks(dimensions):
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(4, dimensions, dimensions + 1, 5, 3, 2, generator=generator, dtype=torch.float64)
    matrices = torch.einsum("kdr...,ker...->kde...", factors, factors)
    expected = torch.linalg.cholesky(matrices.movedim((1, 2), (-2, -1))).movedim((-2, -1), (1, 2))
    torch.testing.assert_close(cholesky(matrices), expected, rtol=1e-6, atol=1e-9)


def test_matrices_regularised_by_a_floor_have_finite_roots():
    edge = torch.tensor([1.0, 2.0, -1.0]).view(1, 3, 1, 1)
    matrices = edge.unsqueeze(1) * edge.unsqueeze(2) + 1e-4 * torch.eye(3).view(1, 3, 3, 1, 1)
    root = cholesky(matrices)
    torch.testing.assert_close(torch.einsum("kdr...,ker...->kde...", root, root), matrices, rtol=1e-5, atol=1e-5)
