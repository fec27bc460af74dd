"""The overlays of the papers train by the papers' objectives."""

import numpy as np
import pytest
import torch
from contracts import dense_laplacian
from monai.bundle import ConfigParser

from groupmorph_monai.apps.configs import config_files
from groupmorph_monai.probability import UnitGaussian
from groupmorph_monai.space import MultiGaussian, VelocityField

LATTICE = (4, 3, 5)  # of z, on every second voxel
SIZE = tuple(2 * n for n in LATTICE)


def parser_of(*overlays, **settings):
    parser = ConfigParser()
    parser.read_config(config_files("train", overlays))
    for name, value in settings.items():
        parser[name] = value
    return parser


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_voxelmorph_diff_descends_its_equation_6():
    """The gradient for the velocity of the second scan is that of Eq. 6, divided by the number of voxels."""
    laplacian = dense_laplacian(LATTICE)
    degree = laplacian.diagonal()
    mean, log_variance = random(1, 2, 3, *LATTICE).requires_grad_(), random(1, 2, 3, *LATTICE, seed=1).requires_grad_()
    warped = random(1, 2, *SIZE, seed=2).requires_grad_()

    loss = parser_of("models/voxelmorph_diff").get_parsed_content("loss")
    ours = loss({"warped": warped, "z_mean": mean, "z_log_variance": log_variance})
    mu, sigma = mean[0, 1].flatten(1), log_variance[0, 1].flatten(1).exp()
    paper = (warped[:, 0] - warped[:, 1]).square().sum() / (2 * 0.02)
    paper = paper + 0.5 * ((20 * degree * sigma - sigma.log()).sum() + 20 * (mu @ laplacian * mu).sum())
    parts = (warped, mean, log_variance)
    for actual, expected in zip(torch.autograd.grad(ours, parts), torch.autograd.grad(paper / np.prod(SIZE), parts)):
        moving = slice(None) if actual.shape == warped.shape else slice(1, None)
        torch.testing.assert_close(actual[:, moving], expected[:, moving], rtol=1e-3, atol=1e-9)


def test_one_velocity_moves_a_pair_of_voxelmorph_diff():
    alignment, flow = (parser_of("models/voxelmorph_diff").get_parsed_content(k) for k in ("alignment", "flow"))
    z = torch.zeros(1, 2, 3, 12, 12, 12)
    z[:, 0, 0], z[:, 1, 1] = 5.0, 1.5  # the prediction for the fixed scan has no effect
    ddf = alignment(VelocityField.on_voxels(z), flow).values
    assert not ddf[:, 0].any()
    expected = torch.tensor([0.0, 1.5, 0.0]).view(3, 1, 1, 1)
    torch.testing.assert_close(ddf[0, 1], expected.expand(3, 12, 12, 12), atol=1e-5, rtol=0)


def test_krebs_loss_and_its_weight_decay_are_the_papers_divided_by_lambda():
    parser = parser_of("models/krebs_cvae", device="cpu")
    loss, optimizer = (parser.get_parsed_content(name) for name in ("loss", "optimizer"))
    mean, log_variance = random(1, 2, 16, 1, 1, 1), random(1, 2, 16, 1, 1, 1, seed=1)
    warped = random(1, 2, *SIZE, seed=2).abs()
    codes = UnitGaussian().kl(mean, log_variance).mean()
    paper = -5000 * loss.likelihood(warped) + codes
    ours = loss({"warped": warped, "z_mean": mean, "z_log_variance": log_variance})
    assert (5000 * ours).item() == pytest.approx(paper.item(), rel=1e-6)
    assert 5000 * optimizer.defaults["weight_decay"] == pytest.approx(1e-4)
    # Translations, rotations, scalings and reflections only.
    names = [type(t).__name__ for t in parser.get_parsed_content("train#random_transforms")]
    amounts = {
        name: parser.get_parsed_content(f"{name}_probability") for name in ("motion", "affine_motion", "contrast")
    }
    assert set(amounts.values()) == {0.0} and {"RandAffined", "RandFlipd"} <= set(names)
    assert parser.get_parsed_content("affine_probability") == 1 and parser.get_parsed_content("flip_probability") == 0.5


def test_avsms_loss_is_half_of_equation_11_with_the_papers_weights():
    """Evaluate one step on a cube of the patch size for which the weight of the symmetry term was chosen."""
    side = 96
    loss = parser_of("models/avsm").get_parsed_content("loss")
    momenta = 0.1 * random(2, 2, 3, 24, 24, 24).float()  # a batch of both orders, of which the second scan moves
    momenta[:, 0] = 0
    warped = random(2, 2, 24, 24, 24, seed=1).float().sigmoid()
    left = random(1, 3, side, side, side, seed=2).float()
    registration = {
        "warped": warped,
        "z_mean": momenta,
        "z_log_variance": torch.full_like(momenta, -torch.inf),
        "round_trip_ddf": left,
    }
    velocities = MultiGaussian()(momenta)
    integral = (momenta / 24 * velocities / 24).sum(dim=(1, 2)).mean(dim=(1, 2, 3)).sum()  # over the unit cube
    similarity = sum(-loss.likelihood(pair[None]) for pair in warped)
    paper = similarity + 10 * integral + 1e-4 * (left / side).square().sum()
    assert loss(registration).item() == pytest.approx(0.5 * paper.item(), rel=1e-4)
    parts = similarity.abs(), 10 * integral, 1e-4 * (left / side).square().sum()
    assert min(part.item() for part in parts) > 1e-4 * abs(paper.item())  # all count


def dense_nmi(first, second, bins=32, window_bins=0.5):
    """Compute the NMI of two images by a loop over voxels, with Gaussian Parzen windows that sum to 1 at each voxel."""
    joint = torch.zeros(bins, bins, dtype=torch.float64)
    for a, b in zip(first.flatten(), second.flatten()):
        windows = []
        for value in (a, b):
            weights = torch.exp(-0.5 * ((value * (bins - 1) - torch.arange(bins)) / window_bins) ** 2)
            windows.append(weights / weights.sum())
        joint += windows[0].outer(windows[1]) / first.numel()
    h_first, h_second, h_joint = (-(p * (p + 1e-300).log()).sum() for p in (joint.sum(1), joint.sum(0), joint))
    return 2 * (h_first + h_second - h_joint) / (h_first + h_second)


def test_groupmorph_descends_equation_7():
    """The loss is minus the NMI of Eq. 2, plus the KL of Eq. 7 under Lambda = 0.01 I + L, averaged over z."""
    timepoints = 3
    precision = 0.01 * torch.eye(int(np.prod(LATTICE)), dtype=torch.float64) + dense_laplacian(LATTICE)
    mean, log_variance = (random(1, timepoints, 3, *LATTICE, seed=s).requires_grad_() for s in (0, 1))
    warped = random(1, timepoints, 4, 3, 3, seed=2).sigmoid()

    settings = {"timepoints": timepoints, "nmi_voxel_fraction": 1.0}
    loss = parser_of("models/groupmorph", **settings).get_parsed_content("loss")
    ours = loss({"warped": warped, "z_mean": mean, "z_log_variance": log_variance})
    mu, sigma = mean.flatten(3), log_variance.flatten(3).exp()
    kl = 0.5 * ((precision.diagonal() * sigma - sigma.log()).sum() + (mu @ precision * mu).sum())
    pairs = [(i, j) for i in range(timepoints) for j in range(timepoints) if i != j]
    nmi = sum(dense_nmi(warped[0, i], warped[0, j]) for i, j in pairs) / len(pairs)
    constant = 0.5 * (1 + torch.linalg.slogdet(precision).logabsdet / len(precision)) * 3  # of a Gaussian's KL
    assert ours.item() == pytest.approx((-nmi + kl / (timepoints * len(precision)) - constant).item(), rel=1e-5)
    for actual, expected in zip(
        torch.autograd.grad(ours, (mean, log_variance)), torch.autograd.grad(kl, (mean, log_variance))
    ):
        torch.testing.assert_close(actual * timepoints * len(precision), expected, rtol=1e-4, atol=1e-7)
