import pytest
import torch

from groupmorph_monai.errors import InputError
from groupmorph_monai.networks import GroupSetVAE, KrebsCVAE
from groupmorph_monai.probability import split_parameters
from groupmorph_monai.space import MeanAlignment, ScalingAndSquaring
from groupmorph_monai.workflow import CodeInferer, DonorCodes, PriorCodes, RegistrationInferer


def images(seed, timepoints=2):
    return torch.rand(1, timepoints, 16, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = KrebsCVAE(lattice_voxels=(3, 3, 3))
    torch.nn.init.normal_(network.last[1].weight, std=0.3)
    return network.eval()


def test_a_donors_codes_are_decoded_for_the_images_given(network):
    donor, x = images(0), images(1)
    with torch.no_grad():
        result = CodeInferer(MeanAlignment(), ScalingAndSquaring(4), DonorCodes(donor))(x, network)
        mean, _ = split_parameters(network(donor), 2)
        torch.testing.assert_close(result["z_mean"], mean)
        torch.testing.assert_close(result["dvf"], network.decode(mean, x))
        own = RegistrationInferer(MeanAlignment(), ScalingAndSquaring(4))(x, network)
    assert result["dvf"].abs().max() > 0.05 and not torch.allclose(result["dvf"], own["dvf"], atol=1e-3)


def test_draws_are_the_priors_and_repeat(network):
    x = images(1, timepoints=200)
    with torch.no_grad():
        z = PriorCodes(3)(x, network)
    assert z.shape == (1, 200, 16, 1, 1, 1)
    assert z.mean().abs() < 0.06 and z.std().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(z, PriorCodes(3)(x, network)) and not torch.equal(z, PriorCodes(4)(x, network))


def test_a_model_without_codes_and_another_number_of_scans_are_refused(network):
    for codes in (DonorCodes(images(0)), PriorCodes()):
        with pytest.raises(InputError, match="overlay: expected a model whose z is a code"):
            codes(images(1), GroupSetVAE())
    with pytest.raises(InputError, match="series: expected as many scans as the donor has, 2, got 3"):
        DonorCodes(images(0))(images(1, timepoints=3), network)
