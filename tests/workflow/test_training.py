import pytest
import torch

from groupmorph_monai.errors import InputError
from groupmorph_monai.space import Displacement, MeanAlignment, OneWayAlignment, ScalingAndSquaring, compose
from groupmorph_monai.workflow import CarriedBack, ExchangedPairs, InverseFields, RegistrationInferer, TrainingInferer

SIZE, LATTICE = (24, 20, 22), (12, 10, 11)


class Told(torch.nn.Module):
    """A velocity along the first axis for each timepoint, voxels of every second voxel, that a function of the images
    tells; one standard deviation everywhere."""

    multiple, stride = 4, 2

    def __init__(self, velocities, std=0.0):
        super().__init__()
        self.velocities, self.log_variance = velocities, 2 * torch.log(torch.tensor(std))

    def forward(self, images):
        mean = torch.zeros(*images.shape[:2], 3, *LATTICE)
        mean[:, :, 0] = self.velocities(images).view(*images.shape[:2], 1, 1, 1)
        return torch.cat([mean.flatten(1, 2), self.log_variance.expand_as(mean).flatten(1, 2)], dim=1)

    def decode(self, z, images):
        return z


def images(timepoints=2):
    coarse = torch.rand(1, timepoints, 5, 5, 5, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size=SIZE, mode="trilinear")


def inferer(alignment=None, transformation=None, **comparisons):
    registration = RegistrationInferer(alignment or MeanAlignment(), transformation or ScalingAndSquaring(4))
    return TrainingInferer(registration, comparisons)


def test_training_draws_z_from_the_posterior():
    torch.manual_seed(0)
    ask, net = inferer(transformation=Displacement()), Told(lambda x: torch.tensor([0.5, -1]), std=0.1)
    draws = torch.stack([ask(images(), net)["dvf"] for _ in range(100)])
    torch.testing.assert_close(draws.std(dim=0).mean(), torch.tensor(0.1), atol=1e-3, rtol=0)
    torch.testing.assert_close(draws[:, 0, :, 0].mean(dim=(0, 2, 3, 4)), torch.tensor([0.5, -1]), atol=1e-3, rtol=0)


def test_surfaces_have_the_inverse_of_the_fields_that_were_drawn():
    net = Told(lambda x: torch.tensor([0.5, -1]), std=0.05)
    assert "inverse_ddf" not in inferer()(images(), net)
    result = inferer(surfaces=InverseFields())(images(), net)
    left = compose(result["ddf"], result["inverse_ddf"])[..., 4:-4, 4:-4, 4:-4]
    torch.testing.assert_close(result["ddf"][0, :, 0].mean(dim=(1, 2, 3)), torch.tensor([1.0, -2]), atol=0.05, rtol=0)
    assert result["ddf"].std(dim=(3, 4, 5)).mean() > 0.05 > 5 * left.abs().mean()


def test_an_exchanged_pair_is_registered_too_and_both_maps_tell_where_they_lead_back_to():
    def by_order(x):  # the brighter one last, or first
        return torch.tensor([[0, 1.0] if s[1] > s[0] else [0, -0.25] for s in x.flatten(2).sum(2)])

    pair, alignment = images() * torch.tensor([1.0, 2.0]).view(1, 2, 1, 1, 1), OneWayAlignment(0)
    ask, net = inferer(alignment, exchanged_pairs=ExchangedPairs(alignment)), Told(by_order)
    result = ask(pair, net)
    torch.testing.assert_close(result["warped"][:, 0], torch.cat([pair[:, 0], pair[:, 1]]), atol=1e-5, rtol=0)
    # Two voxels of the images there, half a one back.
    there_and_back = torch.tensor([1.5, 0, 0]).view(1, 3, 1, 1, 1).expand(1, 3, *SIZE)
    torch.testing.assert_close(result["there_and_back"], there_and_back)
    with pytest.raises(InputError, match="symmetry_weight.*pairs.*3"):
        ask(images(timepoints=3), net)
    with pytest.raises(InputError, match="symmetry_weight.*first timepoint"):
        ExchangedPairs(OneWayAlignment(1))


def test_the_mean_carried_back_meets_every_timepoint_where_it_is():
    still = images(timepoints=1)
    x = torch.cat([still.roll(2, dims=2), still.roll(-2, dims=2)], dim=1)
    net = Told(lambda x: torch.tensor([1.0, -1]))  # 2 voxels of the images either way
    own, returned = inferer(carried_back=CarriedBack())(x, net)["returned"].unbind(dim=1)
    torch.testing.assert_close(own, x[0])
    torch.testing.assert_close(returned[:, 6:-6], x[0, :, 6:-6], atol=1e-4, rtol=0)
