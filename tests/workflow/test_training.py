import pytest
import torch

from groupmorph_monai.errors import InputError
from groupmorph_monai.networks import AffineNet, GroupSetVAE, KrebsCVAE, MomentumNet
from groupmorph_monai.probability import (
    AffineNorm,
    CodePosterior,
    FluidPrior,
    LocalCorrelation,
    MomentumNorm,
    NegativeELBO,
    Posterior,
    StepPosterior,
    UnitGaussian,
)
from groupmorph_monai.space import (
    AffineFlow,
    Displacement,
    DisplacementField,
    GeodesicMeanAlignment,
    Lattice,
    MeanAlignment,
    OneWayAlignment,
    ScalingAndSquaring,
    StepSequence,
    VelocityField,
    warp,
)
from groupmorph_monai.workflow import (
    BackwardComparison,
    ExchangedPairs,
    InverseFields,
    NetworkPasses,
    RegistrationInferer,
    StepwiseTrainingInferer,
    TrainingInferer,
)

SIZE, LATTICE = (24, 20, 22), (12, 10, 11)


class StubNetwork(torch.nn.Module):
    """Network that predicts a velocity along the first axis for each timepoint by a function of the images, in voxels
    of its lattice of every second voxel, with a constant standard deviation."""

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
    ask, net = inferer(transformation=Displacement()), StubNetwork(lambda x: torch.tensor([0.5, -1]), std=0.1)
    draws = torch.stack([ask(images(), net)["dvf"] for _ in range(100)])
    torch.testing.assert_close(draws.std(dim=0).mean(), torch.tensor(0.1), atol=1e-3, rtol=0)
    torch.testing.assert_close(draws[:, 0, :, 0].mean(dim=(0, 2, 3, 4)), torch.tensor([0.5, -1]), atol=1e-3, rtol=0)


def test_the_output_of_training_has_the_acquisition_times_of_each_series():
    alignment, net = OneWayAlignment(0), StubNetwork(lambda x: torch.zeros(x.shape[:2]))
    times = torch.tensor([[0.0, 90]])
    assert "times" not in inferer()(images(), net)
    torch.testing.assert_close(inferer()(images(), net, times=times)["times"], times)
    exchanged = inferer(alignment, exchanged_pairs=ExchangedPairs(alignment))(images(), net, times=times)
    assert exchanged["times"].tolist() == [[0, 90], [0, 90]] and len(exchanged["z_mean"]) == 2


def test_surfaces_have_the_inverse_of_the_fields_that_were_drawn():
    net = StubNetwork(lambda x: torch.tensor([0.5, -1]), std=0.05)
    assert "inverse_ddf" not in inferer()(images(), net)
    result = inferer(surfaces=InverseFields())(images(), net)
    expected = ScalingAndSquaring(4)(-VelocityField(result["dvf"], Lattice(SIZE, 2))).on_image()
    torch.testing.assert_close(result["inverse_ddf"], expected)
    assert result["dvf"].std(dim=(3, 4, 5)).mean() > 0.04


def test_an_exchanged_pair_is_registered_too_and_both_maps_tell_where_they_lead_back_to():
    def by_order(x):  # the brighter one last, or first
        return torch.tensor([[0, 1.0] if s[1] > s[0] else [0, -0.25] for s in x.flatten(2).sum(2)])

    pair, alignment = images() * torch.tensor([1.0, 2.0]).view(1, 2, 1, 1, 1), OneWayAlignment(0)
    ask, net = inferer(alignment, exchanged_pairs=ExchangedPairs(alignment)), StubNetwork(by_order)
    result = ask(pair, net)
    torch.testing.assert_close(result["warped"][:, 0], torch.cat([pair[:, 0], pair[:, 1]]), atol=1e-5, rtol=0)
    # Two voxels of the images there, half a one back.
    round_trip_ddf = torch.tensor([1.5, 0, 0]).view(1, 3, 1, 1, 1).expand(1, 3, *SIZE)
    torch.testing.assert_close(result["round_trip_ddf"], round_trip_ddf)
    with pytest.raises(InputError, match="symmetry_weight.*pairs.*3"):
        ask(images(timepoints=3), net)
    with pytest.raises(InputError, match="symmetry_weight.*first timepoint"):
        ExchangedPairs(OneWayAlignment(1))


def test_the_mean_carried_back_meets_every_timepoint_where_it_is():
    static = images(timepoints=1)
    x = torch.cat([static.roll(2, dims=2), static.roll(-2, dims=2)], dim=1)
    net = StubNetwork(lambda x: torch.tensor([1.0, -1]))  # 2 voxels of the images either way
    result = inferer(backward=BackwardComparison())(x, net)
    own, other = result["backward_pairs"].unbind(dim=1)
    torch.testing.assert_close(own, x[0])
    torch.testing.assert_close(other[:, 6:-6], x[0, :, 6:-6], atol=1e-4, rtol=0)
    own_covered, backward_covered = result["backward_covered"].unbind(dim=1)
    # The common space ends two voxels inside of either end of the timepoint.
    assert own_covered.all() and backward_covered[:, 2:-2].all()
    assert not backward_covered[0, -2:].any() or not backward_covered[0, :2].any()


@pytest.mark.parametrize("passes", [1, 5])
def test_the_prior_of_velocities_sees_all_passes_and_the_variance_of_the_last(passes):
    ask = RegistrationInferer(MeanAlignment(), ScalingAndSquaring(4), NetworkPasses(passes))
    net, prior = StubNetwork(lambda x: torch.tensor([0.5, -0.25]), std=0.1), FluidPrior(1.0, 0.2)
    one, result = prior.energy(net.decode(ask.predict(images(), net).last[0], None)), ask(images(), net)
    torch.testing.assert_close(prior.energy(result["z_mean"]), passes**2 * one)
    torch.testing.assert_close(prior.energy(result["dvf"]), passes**2 * one)
    torch.manual_seed(0)
    drawn = TrainingInferer(ask)(images(), net)
    # ``z_mean`` contains the draws of all passes but the last, and the mean of the last one.
    variance = (drawn["dvf"] - drawn["z_mean"]).var()
    assert variance.sqrt() == pytest.approx(0.1, rel=0.05)
    torch.testing.assert_close(drawn["z_log_variance"], torch.full_like(drawn["z_mean"], 2 * torch.tensor(0.1).log()))


@pytest.mark.parametrize("passes", [1, 2, 3, 4, 5, 6, 7])
def test_the_pull_to_the_identity_is_that_of_the_composed_map(passes):
    """AVSM, Eq. 4, of the maps of a pair in both orders."""
    torch.manual_seed(0)
    net, alignment = AffineNet((4, 6)), GeodesicMeanAlignment()
    prior = AffineNorm(alignment)
    pair = torch.rand(1, 2, 16, 20, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        result = TrainingInferer(RegistrationInferer(alignment, AffineFlow(), NetworkPasses(passes)))(pair, net)
    ddf, half = result["ddf"].double(), 10.0
    # Read A and b of x -> A x + b off the displacement; x is relative to the centre, in halves of the longest side.
    origin = ddf[..., 0, 0, 0]
    slopes = torch.stack([ddf[..., 1, 0, 0], ddf[..., 0, 1, 0], ddf[..., 0, 0, 1]], dim=-1) - origin.unsqueeze(-1)
    centre = torch.tensor([7.5, 9.5, 5.5]).double()
    maps = torch.eye(4).double().repeat(1, 2, 1, 1)
    maps[..., :3, :3] += slopes
    maps[..., :3, 3] = (origin + (slopes @ centre)) / half
    forward, inverse = maps[0, 1] @ maps[0, 0].inverse(), maps[0, 0] @ maps[0, 1].inverse()
    expected = sum(0.5 * (m - torch.eye(4)).square().sum() for m in (forward, inverse))
    assert prior(result["z_mean"]).item() == pytest.approx(expected.item(), rel=1e-3) and expected > 1e-5
    # Eq. 5 holds for any weights.
    torch.testing.assert_close(forward @ inverse, torch.eye(4).double(), atol=1e-6, rtol=0)


def test_the_norm_of_momenta_is_that_of_the_whole_velocity():
    torch.manual_seed(0)
    net, x = MomentumNet((3, 4, 5, 6)), torch.rand(1, 2, 24, 24, 24, generator=torch.Generator().manual_seed(0))
    torch.nn.init.normal_(net.head.weight, std=0.3)
    with torch.no_grad():
        result = TrainingInferer(RegistrationInferer(MeanAlignment(), ScalingAndSquaring(4), passes=NetworkPasses(2)))(
            x, net
        )
    expected = (result["z_mean"] * result["dvf"]).sum(dim=2).mean() / 12**2  # voxels of z along a side
    assert MomentumNorm(1.0)(result["z_mean"]).item() == pytest.approx(expected.item(), rel=1e-5) and expected > 0


def test_codes_of_several_passes_cost_what_each_of_them_does():
    torch.manual_seed(0)
    net, x = KrebsCVAE(lattice_voxels=(3, 3, 3)), torch.rand(1, 2, 16, 16, 16)
    torch.nn.init.normal_(net.last[1].weight, std=0.3)
    asked = []
    net.register_forward_hook(lambda layer, inputs, parameters: asked.append(parameters.unflatten(1, (2, 2, -1))))
    ask = RegistrationInferer(
        MeanAlignment(), ScalingAndSquaring(4), passes=NetworkPasses(2), posterior=CodePosterior(), draws=2
    )
    with torch.no_grad():
        result = TrainingInferer(ask)(x, net)
        expected = sum(UnitGaussian()(*parameters.unbind(1)) for parameters in asked)
        torch.testing.assert_close(UnitGaussian()(result["z_mean"], result["z_log_variance"]), expected)
        assert (asked[0] - asked[1]).abs().max() > 1e-4
        assert ask(x, net)["ddf_std"].mean() > 0


@pytest.mark.parametrize(
    "flow, posterior",
    [(ScalingAndSquaring(4), Posterior()), (StepSequence(ScalingAndSquaring(4)), StepPosterior())],
    ids=["velocities add up", "maps are composed"],
)
def test_the_loss_of_a_stepwise_training_is_the_sum_over_steps(flow, posterior):
    """AVSM, Eq. 12: each step starts from the map of the one before, and all of them count. The prior weighs what adds
    up so far, or each step by itself."""
    net, alignment = StubNetwork(lambda x: x.flatten(2).mean(2) - 0.5), OneWayAlignment(0)
    likelihood, prior = LocalCorrelation((1,)), MomentumNorm(0.5)
    loss = NegativeELBO(likelihood, prior, symmetry_weight=2.0)
    registration = RegistrationInferer(alignment, flow, passes=NetworkPasses(2), posterior=posterior)
    x, velocities = images(), []
    net.register_forward_hook(lambda layer, inputs, output: velocities.append(output[:, :6].view(2, 2, 3, *LATTICE)))
    result = StepwiseTrainingInferer(registration, {"exchanged_pairs": ExchangedPairs(alignment)})(x, net)
    both, expected = torch.cat([x, x.flip(1)]), 0
    weighed = velocities if isinstance(posterior, StepPosterior) else (velocities[0], velocities[0] + velocities[1])
    for velocity, step in zip((velocities[0], velocities[0] + velocities[1]), weighed):
        shift = 2 * velocity[:, 1, 0].mean(dim=(1, 2, 3))
        ddf = torch.zeros(2, 2, 3, *SIZE)
        ddf[:, 1, 0] = shift.view(2, 1, 1, 1)
        expected += prior(step) - likelihood(warp(both, DisplacementField.on_voxels(ddf))) + 2.0 * shift.sum() ** 2
    assert velocities[1].abs().max() > 1e-3
    torch.testing.assert_close(loss(result), expected, rtol=1e-4, atol=1e-5)


def test_a_trainers_mixed_precision_leaves_geometry_and_loss_in_float32():
    torch.manual_seed(0)
    net, x, dtypes = GroupSetVAE(), torch.rand(1, 2, 32, 36, 40), set()
    net.variance_head.register_forward_hook(lambda layer, inputs, output: dtypes.add(output.dtype))
    registration = RegistrationInferer(MeanAlignment(), ScalingAndSquaring(3), passes=NetworkPasses(2))
    loss, ask = NegativeELBO(LocalCorrelation((1,)), FluidPrior(1.0, 0.2)), TrainingInferer(registration)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            result = ask(x, net)
            value = loss(result)
        assert dtypes == {torch.bfloat16} and {p.dtype for p in result.values()} == {torch.float32, torch.bool}
        assert torch.equal(value, loss(result)) and torch.equal(
            result["warped"], warp(x, DisplacementField.on_voxels(result["ddf"]))
        )
        ddf = ScalingAndSquaring(3)(VelocityField(result["dvf"], Lattice((32, 36, 40), 4))).on_image()
        assert torch.equal(result["ddf"], ddf) and result["ddf"].std() > 0.05


@pytest.mark.parametrize("wrap", [lambda registration: registration, TrainingInferer])
def test_z_is_decoded_for_the_images_that_the_network_saw(wrap):
    class Decoded(StubNetwork):
        def forward(self, images):
            self.received.append(images)
            return super().forward(images)

        def decode(self, z, images):
            self.shown.append(images)
            return z + images[..., ::2, ::2, ::2].unsqueeze(2)

    net = Decoded(lambda x: torch.tensor([1.0, -1.0]), std=0.1)
    net.received, net.shown = [], []
    x = images()
    result = wrap(RegistrationInferer(MeanAlignment(), Displacement(), passes=NetworkPasses(2)))(x, net)
    assert len(net.received) == len(net.shown) == 2
    for received, shown in zip(net.received, net.shown):
        assert torch.equal(received, shown)
    assert (net.shown[1] - x).abs().max() > 0.1
    assert net.received[0] is x and not torch.equal(result["warped"], net.received[1])


def test_draws_of_the_network_are_about_its_prediction():
    class Square(Displacement):
        """Displacement z^2, whose spread depends on the mean of the draws of z."""

        def __call__(self, z):
            return super().__call__(z.with_values(z.values.square()))

        inverse = __call__

    std, last = 0.1, []

    class Images(StubNetwork):
        def decode(self, z, images):
            last.append(images)
            return z + images.mean()

    net, x = Images(lambda x: torch.tensor([0.5, -1.0]), std=std), images()
    result = RegistrationInferer(MeanAlignment(), Square(), passes=NetworkPasses(2), draws=200)(x, net)
    centre = result["dvf"]
    torch.testing.assert_close(centre[0, :, 0, 0, 0, 0], 2 * torch.tensor([0.5, -1.0]) + x.mean() + last[1].mean())
    # The deviation of (c + s e)^2 for white e, in voxels of the images.
    expected = 2 * (4 * centre.square() * std**2 + 2 * std**4).sqrt()
    spread = result["ddf_std"][..., ::2, ::2, ::2]
    for k in range(2):
        for d in range(3):
            assert (spread[0, k, d].mean() / expected[0, k, d].mean()).item() == pytest.approx(1, abs=0.02)
    assert all(torch.equal(weights, last[1]) for weights in last[2:]) and len(last) == 2 + 200
