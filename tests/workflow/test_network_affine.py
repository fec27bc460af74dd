import pytest
import torch
from scipy.spatial.transform import Rotation

from experiments.affine import affine_cases
from groupmorph_monai.data.series import Frame
from groupmorph_monai.errors import InputError
from groupmorph_monai.networks import AffineNet
from groupmorph_monai.space.grid import Grid
from groupmorph_monai.workflow import AlignInitiald, NetworkAffine


class StubNetwork(AffineNet):
    """Network with twelve constant parameters per timepoint."""

    def forward(self, images):
        return torch.cat([self.numbers, torch.full_like(self.numbers, -torch.inf)]).view(1, -1, 1, 1, 1)


@pytest.fixture
def oblique():
    """Make two scans on one rotated, anisotropic grid."""
    affine = torch.eye(4, dtype=torch.float64)
    turn = torch.from_numpy(Rotation.from_euler("xyz", [12, -8, 20], degrees=True).as_matrix())
    affine[:3, :3], affine[:3, 3] = (
        turn @ torch.diag(torch.tensor([2.0, 2.5, 4.0]).double()),
        torch.tensor([5.0, -9, 3]),
    )
    volumes = torch.rand(2, 40, 30, 16, generator=torch.Generator().manual_seed(0)).numpy()
    return (
        [Frame(volume, affine.numpy(), f"t{k}") for k, volume in enumerate(volumes)],
        Grid((40, 30, 16), affine),
        turn,
    )


@pytest.mark.parametrize("passes", [1, 3])
def test_predictions_in_voxels_become_maps_in_patient_coordinates(oblique, tmp_path, passes):
    frames, grid, turn = oblique
    network = StubNetwork()
    angle, shift = 0.1, 0.05
    network.numbers = torch.zeros(2, 12)
    network.numbers[1, 1], network.numbers[1, 3], network.numbers[1, 9] = -angle, angle, shift
    torch.save(network.state_dict(), tmp_path / "affine.pt")
    maps = NetworkAffine(network, tmp_path / "affine.pt", passes)(frames).maps
    torch.testing.assert_close(maps[0] @ maps[1], torch.eye(4).double(), atol=1e-6, rtol=0)  # halves of one motion
    relative = maps[1] @ maps[0].inverse()
    # A rotation about the third axis of the grid, whose centre is ``shift / angle`` away along the second axis.
    axes = torch.from_numpy(Rotation.from_rotvec(passes * angle * turn[:, 2].numpy()).as_matrix())
    torch.testing.assert_close(relative[:3, :3], axes, atol=1e-6, rtol=0)
    half_mm = 40.0  # of the longest side, 80 mm
    centre = grid.centre + half_mm * shift / angle * turn[:, 1]
    mapped = relative[:3, :3] @ centre + relative[:3, 3]
    assert (mapped - centre).norm() < 1.5  # the grid that the network sees may end a voxel farther


def test_a_network_that_nothing_was_taught_yet_brings_scans_nearer_whatever_their_headers(tmp_path):
    (case,) = affine_cases([4], timepoints=2)
    torch.manual_seed(0)
    network = AffineNet()
    torch.save(network.state_dict(), tmp_path / "affine.pt")
    affine = torch.diag(torch.tensor([-3.0, 2.0, 2.0, 1.0])).double()
    frames = [Frame(volume.numpy(), affine.numpy(), f"t{k}") for k, volume in enumerate(case["image"])]
    points = torch.cat([case["landmarks"].double(), torch.ones(*case["landmarks"].shape[:2], 1)], dim=2) @ affine.T
    alignment = NetworkAffine(network, tmp_path / "affine.pt")(frames)
    common = [p @ m.inverse().T for p, m in zip(points, alignment.maps)]
    before, after = ((a - b).norm(dim=1).mean() for a, b in (points, common))
    assert after < 0.4 * before and alignment.confidence.shape == alignment.polarity.shape == (2,)


def test_without_its_weights_it_aligns_nothing_and_an_unknown_kind_is_refused(oblique, tmp_path):
    absent = tmp_path / "absent.pt"
    with pytest.raises(InputError, match=f"{absent}: expected a file, found none"):
        NetworkAffine(AffineNet(), absent)(oblique[0])
    with pytest.raises(InputError, match="models/avsm"):
        AlignInitiald(kind="network")
