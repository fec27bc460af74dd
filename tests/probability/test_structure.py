import numpy as np
import torch

from groupmorph_monai.probability import LowRank, NormalisedGradient


def volumes(timepoints=4, size=(7, 6, 8), seed=0):
    return torch.rand(1, timepoints, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_low_rank_is_numpys_eigenvalues_weighted_by_their_rank():
    x = volumes()
    eigenvalues = np.sort(np.linalg.eigvalsh(np.corrcoef(x[0].flatten(1).numpy())))[::-1]
    expected = -(np.arange(1, 5) * eigenvalues).sum() / 4
    np.testing.assert_allclose(LowRank()(x).item(), expected, rtol=1e-9)


def test_one_image_in_k_contrasts_has_rank_one():
    one = volumes(1)
    factors = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64).view(1, 3, 1, 1, 1)
    torch.testing.assert_close(LowRank()(factors * one + factors).item(), -1.0)


def test_normalised_gradients_are_compared_pair_by_pair():
    x, total = volumes(3), 0.0
    normals = []
    for volume in x[0]:
        slope = np.stack(np.gradient(volume.numpy()))
        normals.append(slope / np.sqrt((slope**2).sum(0) + 0.1**2))
    for a in normals:
        for b in normals:
            total += ((a * b).sum(0) ** 2).mean() / 9
    np.testing.assert_allclose(NormalisedGradient(edge=0.1)(x).item(), total, rtol=1e-9)


def test_an_inverted_contrast_has_the_same_edges():
    x = volumes(2)
    torch.testing.assert_close(
        NormalisedGradient()(torch.cat([x[:, :1], 1 - x[:, 1:]], dim=1)), NormalisedGradient()(x)
    )
