import torch

from groupmorph_monai.probability import FluidPrior, GroupNMI, NegativeELBO, Posterior, TemporalPrior


def registration_of(timepoints=3, lattice=(3, 3, 3), batch=1):
    generator, parameters = torch.Generator().manual_seed(0), (batch, timepoints, 3, *lattice)
    return {
        "warped": torch.rand(batch, timepoints, 6, 6, 6, generator=generator),
        "z_mean": torch.randn(parameters, generator=generator),
        "z_log_variance": torch.randn(parameters, generator=generator),
    }


def test_it_is_the_weighted_kl_less_the_likelihood():
    registration, generator = registration_of(), torch.Generator().manual_seed(1)
    likelihood, prior = GroupNMI(bins=8), FluidPrior(0.5, 0.1)
    expected = 0.25 * prior(registration["z_mean"], registration["z_log_variance"]) - likelihood(registration["warped"])
    torch.testing.assert_close(NegativeELBO(likelihood, prior, 0.25)(registration, None), expected)
    pairs, covered = torch.rand(3, 2, 6, 6, 6, generator=generator), torch.ones(3, 2, 6, 6, 6, dtype=torch.bool)
    covered[:, 1, :2] = False
    registration |= {"backward_pairs": pairs, "backward_covered": covered}
    both = 0.5 * (likelihood(registration["warped"]) + likelihood(pairs, covered))
    assert likelihood(pairs, covered) != likelihood(pairs)
    expected = expected + likelihood(registration["warped"]) - both
    torch.testing.assert_close(NegativeELBO(likelihood, prior, 0.25)(registration, None), expected)


def test_asymmetry_is_the_squared_distance_from_where_one_began():
    registration = registration_of(timepoints=2, batch=2)
    registration["round_trip_ddf"] = torch.tensor([1.0, -2, 0]).view(1, 3, 1, 1, 1).expand(1, 3, 6, 6, 6)
    without, loss = (NegativeELBO(GroupNMI(bins=8), FluidPrior(0.5, 0.1), 0.25, symmetry_weight=w) for w in (0, 3.0))
    assert loss.terms(registration)["asymmetry"].item() == 5
    torch.testing.assert_close(loss(registration), without(registration) + 15)


def test_the_prior_knows_the_acquisition_times():
    registration, prior = registration_of(), TemporalPrior(2.0, lambda_u=0.5)
    evenly, unevenly = (
        NegativeELBO(GroupNMI(bins=8), prior).terms({**registration, "times": torch.tensor([times])})["kl"]
        for times in ([0.0, 60, 120], [0.0, 90, 120])
    )
    parameters = registration["z_mean"], registration["z_log_variance"]
    torch.testing.assert_close(evenly, prior(*parameters))
    torch.testing.assert_close(unevenly, prior(*parameters, times=torch.tensor([[0.0, 90, 120]])))
    assert abs(unevenly - evenly) > 0.01 * abs(evenly)


def test_the_prior_depends_on_the_smoothing_of_draws():
    registration = registration_of(timepoints=2, lattice=(6, 5, 4))
    prior, posterior = FluidPrior(0.5, 0.1), Posterior(0.7)
    kl = NegativeELBO(GroupNMI(bins=8), prior, posterior=posterior).terms(registration)["kl"]
    smoothed, white = (prior(registration["z_mean"], registration["z_log_variance"], q) for q in (posterior, None))
    torch.testing.assert_close(kl, smoothed)
    assert abs(smoothed - white) > 0.1 * abs(smoothed)
