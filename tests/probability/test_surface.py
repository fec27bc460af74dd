import pytest
import torch

from groupmorph_monai.data import RandSurfaced
from groupmorph_monai.probability import SurfaceDistance
from groupmorph_monai.space import voxel_grid

SIZE = (32, 30, 28)


def sphere(centre, radius):
    grid = voxel_grid(SIZE, torch.empty(0))
    return ((grid - torch.tensor(centre).view(3, 1, 1, 1)).norm(dim=0) < radius).int()


def surfaces(*labels):
    item = RandSurfaced(points=2000).set_random_state(0)({"labels": torch.stack(labels)})
    return {"points": item["surface_points"][None], "distance": item["surface_distance"][None]}


def shift(*vectors):
    return torch.tensor(vectors).view(1, -1, 3, 1, 1, 1).expand(-1, -1, -1, *SIZE).contiguous()


def test_points_lie_on_the_surface_and_the_distance_is_that_to_it():
    centre, radius = (15.3, 14.1, 13.2), 8.0
    target = surfaces(sphere(centre, radius), sphere(centre, 5.0))
    to_centre = (target["points"] - torch.tensor(centre)).norm(dim=-1)
    assert (to_centre[0, 0] - 8).abs().max() < 1 and (to_centre[0, 1] - 5).abs().max() < 1
    assert abs((to_centre[0, 0] - 8).mean()) < 0.15
    to_centre_mm = (voxel_grid(SIZE, torch.empty(0)) - torch.tensor(centre).view(3, 1, 1, 1)).norm(dim=0)
    assert (target["distance"][0, 0] - (to_centre_mm - 8)).abs().max() < 1.2
    assert (target["distance"][0, 0] - (to_centre_mm - 8)).abs().mean() < 0.3


def test_the_right_motion_is_the_most_likely_in_both_directions():
    """Sphere 1 is shifted by 4 voxels relative to sphere 0."""
    target = surfaces(sphere((12.0, 14.0, 13.0), 7.0), sphere((16.0, 14.0, 13.0), 7.0))
    likelihood = SurfaceDistance(noise_voxels=1.0)

    def at(step):
        ddf = shift([-step / 2, 0.0, 0.0], [step / 2, 0.0, 0.0])
        return likelihood(ddf, -ddf, target).item()

    values = {step: at(step) for step in (0.0, 3.0, 4.0, 5.0, 8.0)}
    assert max(values, key=values.get) == 4.0
    assert values[4.0] > -0.05
    # Concentric shells 1 voxel apart along the motion: half a squared cosine's mean, and symmetric about the optimum.
    assert values[3.0] == pytest.approx(values[5.0], rel=0.15)


def test_it_does_not_change_with_the_order_of_timepoints_or_the_number_of_points():
    target = surfaces(sphere((12.0, 14.0, 13.0), 7.0), sphere((15.0, 14.0, 13.0), 7.0), sphere((15.0, 15.0, 12.0), 6.0))
    ddf = shift([-1.0, 0.0, 0.0], [1.0, 0.0, 0.5], [0.0, 0.5, 0.0])
    likelihood = SurfaceDistance()
    value = likelihood(ddf, -ddf, target)
    order = [2, 0, 1]
    torch.testing.assert_close(
        likelihood(ddf[:, order], -ddf[:, order], {key: part[:, order] for key, part in target.items()}), value
    )
    half = {"points": target["points"][:, :, ::2], "distance": target["distance"]}
    assert likelihood(ddf, -ddf, half).item() == pytest.approx(value.item(), rel=0.1)


def test_its_gradient_leads_to_the_right_motion():
    target = surfaces(sphere((12.0, 14.0, 13.0), 7.0), sphere((16.0, 14.0, 13.0), 7.0))
    step = torch.zeros(3, requires_grad=True)
    optimiser = torch.optim.Adam([step], lr=0.3)
    for _ in range(60):
        half = 0.5 * step.view(1, 1, 3, 1, 1, 1).expand(1, 1, 3, *SIZE)
        ddf = torch.cat([-half, half], dim=1)
        optimiser.zero_grad()
        (-SurfaceDistance(1.0)(ddf, -ddf, target)).backward()
        optimiser.step()
    torch.testing.assert_close(step.detach(), torch.tensor([4.0, 0.0, 0.0]), atol=0.15, rtol=0)
