"""Edge features and their correlation over shifts, by which scans far apart are found."""

import numpy as np
import pytest
import torch

from groupmorph_monai.workflow.affine_search import ShiftCorrelation, cropped, edge_features


def test_correlation_over_shifts_equals_that_of_the_overlap():
    rng = torch.Generator().manual_seed(0)
    one, other = torch.rand(2, 7, 6, 5, generator=rng), torch.rand(2, 6, 7, 6, generator=rng)
    covered, covered_too = torch.ones(7, 6, 5), torch.ones(6, 7, 6)
    covered[:2], covered_too[..., 4:] = 0, 0
    correlation = ShiftCorrelation(one * covered, covered, other.shape[1:])
    scores = correlation(other * covered_too, covered_too)
    for shift in ((0, 0, 0), (1, 0, -1), (-2, 1, 0)):
        voxels = [
            ((i, j, k), (i + shift[0], j + shift[1], k + shift[2]))
            for i, j, k in np.ndindex(*covered.shape)
            if covered[i, j, k]
        ]
        voxels = [(p, q) for p, q in voxels if all(0 <= x < n for x, n in zip(q, covered_too.shape)) and covered_too[q]]
        a, b = (torch.stack([x[(slice(None), *pair[n])] for pair in voxels]) for n, x in enumerate((one, other)))
        a, b = a - a.mean(dim=0), b - b.mean(dim=0)
        whole = [
            ((x - x[:, w > 0].mean(dim=1).view(2, 1, 1, 1)).square() * w).sum()
            for x, w in ((one, covered), (other, covered_too))
        ]
        smaller = min(covered.sum(), covered_too.sum())
        floors = [smaller / w.sum() * total / 10 for total, w in zip(whole, (covered, covered_too))]
        parts = [torch.maximum(x.square().sum(), floor) for x, floor in zip((a, b), floors)]
        place = tuple(int((t == s).nonzero()[0]) for t, s in zip(correlation.shifts, shift))
        torch.testing.assert_close(scores[place], (a * b).sum() / (parts[0] * parts[1]).sqrt(), atol=1e-4, rtol=1e-4)
    assert scores[tuple(int((t == 5).nonzero()[0]) if (t == 5).any() else 0 for t in correlation.shifts)] == -1


@pytest.mark.parametrize(
    ("first", "size", "middle", "expected"),
    [
        ((-5, 0, 7), (60, 60, 240), (12, 12, 12), ((-5, 0, 7), (60, 60, 240))),
        ((0, 0, 0), (96, 96, 1000), (10, 10, 500), ((0, 0, 452), (96, 96, 96))),
        ((0, 0, 0), (96, 96, 1000), (10, 10, -9), ((0, 0, 0), (96, 96, 96))),
        ((0, 0, 0), (96, 96, 1000), (10, 10, 2000), ((0, 0, 904), (96, 96, 96))),
    ],
)
def test_the_box_of_a_search_is_cropped_around_a_point(first, size, middle, expected):
    box = cropped(*(torch.tensor(v, dtype=torch.float64) for v in (first, size, middle)))
    for part, wanted in zip(box, expected):
        assert (part - torch.tensor(wanted)).abs().max() <= 3  # sides are shortened by 5 % at a time


def test_edges_do_not_tell_bright_from_dark():
    values, measured = torch.rand(1, 8, 8, 8), torch.ones(1, 8, 8, 8)
    features, valid = edge_features(values, measured)
    torch.testing.assert_close(edge_features(5 - 3 * values, measured)[0], features, atol=1e-4, rtol=1e-3)
    other = edge_features(torch.rand(1, 8, 8, 8), measured)[0]
    normal = torch.stack(torch.gradient(values[0]))
    normal = normal / (normal.square().sum(dim=0) + normal.norm(dim=0).mean() ** 2).sqrt()
    torch.testing.assert_close(features[0].square().sum(dim=0), normal.square().sum(dim=0).square())
    assert valid.all() and (features * other).sum(dim=1).min() > -1e-6  # squares of cosines
