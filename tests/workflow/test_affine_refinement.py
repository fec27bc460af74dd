import pytest
import torch

from groupmorph_monai.benchmarks.affine import affine_cases
from groupmorph_monai.errors import InputError
from groupmorph_monai.evaluation.metrics import landmark_distances_mm
from groupmorph_monai.probability import WindowCorrelation
from groupmorph_monai.space import AffineFlow, MeanAlignment
from groupmorph_monai.workflow import AffineRefinement

FLOW, ALIGNMENT = AffineFlow(), MeanAlignment(remove_mean=True)


def displacement(z):
    return FLOW(ALIGNMENT.constrain(z))


@pytest.fixture(scope="module")
def case():
    (found,) = affine_cases([2])
    image = found["image"]
    return (image / image.quantile(0.99)).clamp(0, 1)[None], found["landmarks"]


def error(z, landmarks):
    fields = (f(z, FLOW)[0] for f in (ALIGNMENT, ALIGNMENT.inverse))
    return landmark_distances_mm(landmarks, *fields, torch.eye(4)).mean().item()


def is_affine(z):
    """Whether differences of neighbours are the same everywhere."""
    return max(z.diff(dim=axis).diff(dim=axis).abs().max() for axis in (3, 4, 5)) < 1e-4


def test_it_finds_a_known_affine_motion_and_stays_affine(case):
    x, landmarks = case
    z = torch.zeros(1, 3, 3, *x.shape[2:])
    before = error(z, landmarks)
    with torch.no_grad():  # as engines evaluate
        found = AffineRefinement(WindowCorrelation())(z, x, displacement)
    assert before > 5 and error(found, landmarks) < 0.2
    assert is_affine(found) and not found.requires_grad


def test_it_goes_on_from_what_it_is_given(case):
    x, landmarks = case
    climb = AffineRefinement(WindowCorrelation(), voxels=(36,))
    found = climb(torch.zeros(1, 3, 3, *x.shape[2:]), x, displacement)
    again = climb(found, x, displacement)
    likelihood = WindowCorrelation()
    warped = [AffineRefinement(likelihood, voxels=(36,), iterations=0)(z, x, displacement) for z in (found, again)]
    torch.testing.assert_close(warped[0], found)  # no iterations, no change
    assert error(again, landmarks) < 0.25
    assert (again - found).abs().max() < 1


def test_a_batch_equals_its_items(case):
    x, _ = case
    climb, z = AffineRefinement(WindowCorrelation(), iterations=4), torch.zeros(1, 3, 3, *x.shape[2:])
    together = climb(z.repeat(2, 1, 1, 1, 1, 1), torch.cat([x, x.flip(1)]), displacement)
    assert torch.equal(together[:1], climb(z, x, displacement))
    torch.testing.assert_close(together[1:], climb(z, x.flip(1), displacement))


def test_what_lies_outside_of_the_mask_does_not_count(case):
    x, landmarks = case[0].clone(), case[1]
    disturbed, mask = x.clone(), torch.ones_like(x)
    # A bright block at the same place in each timepoint asks that nothing move.
    disturbed[..., 12:24, 12:24, 12:24] = 1
    disturbed[..., 15:21, 15:21, 15:21] = 0
    mask[..., 12:24, 12:24, 12:24] = 0
    climb, z = AffineRefinement(WindowCorrelation()), torch.zeros(1, 3, 3, *x.shape[2:])
    without, within = (error(climb(z, disturbed, displacement, m), landmarks) for m in (None, mask))
    assert without > 2 and within < 0.5
    # Of the first timepoint alone: where its block is after the registration, nobody counts.
    x[:, :1] = disturbed[:, :1]
    assert error(climb(z, x, displacement, mask[:, :1]), landmarks) < 0.5


def test_it_has_no_draws():
    with pytest.raises(InputError, match="std_draws"):
        AffineRefinement(WindowCorrelation()).draws()
