import torch

from groupmorph_monai.probability import LowRank, NormalisedGradient


def volumes(timepoints=4, size=(7, 6, 8), seed=0):
    return torch.rand(1, timepoints, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_one_image_in_k_contrasts_has_rank_one():
    one = volumes(1)
    factors = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64).view(1, 3, 1, 1, 1)
    torch.testing.assert_close(LowRank()(factors * one + factors).item(), -1.0)


def test_an_inverted_contrast_has_the_same_edges():
    x = volumes(2)
    torch.testing.assert_close(
        NormalisedGradient()(torch.cat([x[:, :1], 1 - x[:, 1:]], dim=1)), NormalisedGradient()(x)
    )
