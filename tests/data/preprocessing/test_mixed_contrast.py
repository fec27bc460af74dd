"""Scans of partly inverted contrast are mapped to the contrast of the other scans; ordinary series are unchanged."""

import pytest
import torch

from groupmorph_monai.data import MatchContrastd, make_phantom
from groupmorph_monai.data.preprocessing.mixed_contrast import intensity_curves
from groupmorph_monai.space.filters import gaussian_filter

SIZE = (40, 38, 36)


def tissue_and_air(timepoints, seed=0):
    """Make smooth tissue between 0.2 and 1 in a box of air, with independent noise: ``(K, *SIZE)``."""
    rng = torch.Generator().manual_seed(seed)
    texture = gaussian_filter(torch.rand(1, 1, *SIZE, generator=rng), 1.0)[0, 0]
    tissue = 0.2 + 0.8 * (texture - texture.min()) / (texture.max() - texture.min())
    inside = torch.zeros(SIZE)
    inside[4:-4, 4:-4, 4:-4] = 1
    noise = 0.01 * torch.randn(timepoints, *SIZE, generator=rng)
    return inside * tissue + noise.abs(), inside > 0


def with_inverted_tissue(images, inside, timepoints):
    images = images.clone()
    for k in timepoints:
        images[k] = torch.where(inside, 1.2 - images[k], images[k])
    return images


def curves_of(images, coverage):
    return intensity_curves(lambda k: (images[None, k, None], coverage[None, k, None]), len(images))


@pytest.mark.parametrize("inverted", [[1], [0, 3]])
def test_the_contrast_of_the_majority_is_restored(inverted):
    images, inside = tissue_and_air(5)
    mixed = with_inverted_tissue(images, inside, inverted)
    matched = MatchContrastd()({"image": mixed})["image"]
    for k in range(5):
        if k in inverted:
            inner = inside & (images[k] > 0.3) & (images[k] < 0.9)
            assert torch.corrcoef(torch.stack([mixed[k][inner], images[k][inner]]))[0, 1] < -0.9
            assert torch.corrcoef(torch.stack([matched[k][inner], images[k][inner]]))[0, 1] > 0.9
            assert matched[k][~inside].mean() < 0.1  # air stays dark
        else:
            assert torch.equal(matched[k], mixed[k])


def test_one_scan_of_a_pair_is_mapped_and_what_nobody_measured_does_not_count():
    images, inside = tissue_and_air(2)
    mixed, coverage = with_inverted_tissue(images, inside, [1]), torch.ones(2, *SIZE)
    coverage[1, :6] = 0
    mixed[1, :6] = 0.7
    ((k, curve),) = curves_of(mixed, coverage).items()
    other = images[0] if k == 1 else mixed[1]
    measured = coverage[1] > 0
    position = torch.linspace(0, 1, len(curve))
    own = mixed[k][inside & measured]
    expected = torch.corrcoef(torch.stack([curve[torch.bucketize(own, position)], other[inside & measured]]))[0, 1]
    assert expected > 0.9


@pytest.mark.parametrize("change", ["none", "inverted as a whole", "enhancement", "another body"])
def test_other_series_are_unchanged(change):
    images, inside = tissue_and_air(3)
    if change == "enhancement":
        images = make_phantom(3, (40, 36, 30), 3, (1.5, 1.5, 2.0))["image"]
        images = images / images.amax()
    if change == "another body":
        images[2] = tissue_and_air(1, seed=9)[0][0].flip(0)
    if change == "inverted as a whole":
        images = torch.stack([images[0], images[1] ** 2, images[2] ** 0.5])
    assert curves_of(images, torch.ones_like(images)) == {}


def test_a_slab_with_fewer_slices_than_a_block_is_compared():
    images, inside = tissue_and_air(3)
    slab = with_inverted_tissue(images, inside, [2])[..., 16:20].repeat(1, 8, 1, 1)
    assert MatchContrastd()({"image": slab})["image"].shape == slab.shape
