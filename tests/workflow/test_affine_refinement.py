import pytest
import torch

from experiments.affine import affine_cases
from groupmorph_monai.errors import InputError
from groupmorph_monai.evaluation.metrics import landmark_distances_mm
from groupmorph_monai.probability import WindowCorrelation
from groupmorph_monai.space import AffineFlow, GeodesicMeanAlignment, Lattice, VelocityField, affine_velocity
from groupmorph_monai.workflow import AffineRefinement, RegistrationInferer, timepoint_transforms
from groupmorph_monai.workflow.evidence import Evidence

FLOW, ALIGNMENT = AffineFlow(), GeodesicMeanAlignment()


def displacement(z):
    return FLOW(ALIGNMENT.constrain(z))


@pytest.fixture(scope="module")
def case():
    (case,) = affine_cases([2])
    image = case["image"]
    return (image / image.quantile(0.99)).clamp(0, 1)[None], case["landmarks"]


def error(z, landmarks):
    fields = (f(VelocityField.on_voxels(z), FLOW) for f in (ALIGNMENT, ALIGNMENT.inverse))
    return landmark_distances_mm(landmarks, timepoint_transforms(*fields, torch.eye(4))).mean().item()


def climbed(climb, z, x, flow=displacement):
    """Refine z on the lattice of every voxel."""
    return climb(VelocityField.on_voxels(z), x, flow).values


def is_affine(z):
    """Check whether differences between neighbours are constant."""
    return max(z.diff(dim=axis).diff(dim=axis).abs().max() for axis in (3, 4, 5)) < 1e-4


def test_it_finds_a_known_affine_motion_and_stays_affine(case):
    x, landmarks = case
    z = torch.zeros(1, 3, 3, *x.shape[2:])
    before = error(z, landmarks)
    with torch.no_grad():  # as engines evaluate
        refined = climbed(AffineRefinement(WindowCorrelation()), z, x)
    assert before > 5 and error(refined, landmarks) < 0.2
    assert is_affine(refined) and not refined.requires_grad


def test_it_goes_on_from_what_it_is_given(case):
    x, landmarks = case
    climb = AffineRefinement(WindowCorrelation(), voxels=(36,))
    refined = climbed(climb, torch.zeros(1, 3, 3, *x.shape[2:]), x)
    again = climbed(climb, refined, x)
    likelihood = WindowCorrelation()
    warped = [climbed(AffineRefinement(likelihood, voxels=(36,), iterations=0), z, x) for z in (refined, again)]
    torch.testing.assert_close(warped[0], refined)  # no iterations, no change
    assert error(again, landmarks) < 0.25
    assert (again - refined).abs().max() < 1


def test_every_level_begins_from_the_same_map(case):
    """Each level begins from the velocity of known maps in its own voxels."""
    x, begun = case[0], {}
    logarithms = 0.01 * torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    logarithms[:, :, 3], logarithms[:, 3] = 200 * logarithms[:, :, 3], 0
    logarithms = logarithms - logarithms.mean(dim=0)

    def on_every(step):
        lattice = Lattice(x.shape[2:], step)
        return affine_velocity(logarithms, VelocityField(torch.zeros(1, 3, 3, *lattice.shape), lattice))

    def first_covered(z):
        begun.setdefault(z.lattice.step, z.values.detach().clone())
        return displacement(z)

    climb = AffineRefinement(WindowCorrelation(), voxels=(9, 12, 18, 36), iterations=0)
    refined = climbed(climb, on_every(1).values, x, first_covered)
    assert sorted(begun) == [1, 2, 3, 4]
    for step, z in begun.items():
        torch.testing.assert_close(z, on_every(step).values, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(refined, on_every(1).values, atol=1e-4, rtol=1e-4)


def test_a_batch_equals_its_items(case):
    x, _ = case
    climb, z = AffineRefinement(WindowCorrelation(), iterations=4), torch.zeros(1, 3, 3, *x.shape[2:])
    together = climbed(climb, z.repeat(2, 1, 1, 1, 1, 1), torch.cat([x, x.flip(1)]))
    assert torch.equal(together[:1], climbed(climb, z, x))
    torch.testing.assert_close(together[1:], climbed(climb, z, x.flip(1)))


def test_a_motion_of_all_timepoints_together_is_left_as_it_is(case):
    x, _ = case
    z = torch.zeros(1, 3, 3, *x.shape[2:])
    z[:, :, 1] = 0.5
    # If the mean were free, the likelihood would favour a common shift and scaling that fill more windows.
    refined = climbed(AffineRefinement(WindowCorrelation()), z, x, FLOW)
    assert (refined - z).abs().max() > 1
    torch.testing.assert_close(refined.mean(dim=1), z.mean(dim=1), atol=1e-4, rtol=0)


def test_the_network_it_goes_on_from_gets_no_gradient(case):
    x, _ = case
    z = torch.zeros(1, 3, 3, *x.shape[2:], requires_grad=True)
    for _ in range(2):
        refined = climbed(AffineRefinement(WindowCorrelation(), iterations=2), 2 * z, x)
    assert z.grad is None and not refined.requires_grad


def test_a_flat_volume_is_not_thinned_away(case):
    x = case[0][..., 14:22].contiguous().repeat_interleave(3, dim=2)
    refined = climbed(AffineRefinement(WindowCorrelation(), iterations=2), torch.zeros(1, 3, 3, *x.shape[2:]), x)
    assert refined.isfinite().all() and refined.abs().max() > 0.01


def test_a_mask_and_draws_are_refused(case):
    x, _ = case
    climb = AffineRefinement(WindowCorrelation())
    with pytest.raises(InputError, match="mask: expected none where affine maps"):
        z = VelocityField.on_voxels(torch.zeros(1, 3, 3, *x.shape[2:]))
        climb(z, x, displacement, Evidence(mask=torch.ones_like(x)))
    with pytest.raises(InputError, match="std_draws .--std.: expected 0 where affine maps.*got 5"):
        RegistrationInferer(ALIGNMENT, FLOW, refinement=climb, draws=5)
