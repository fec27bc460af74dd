import numpy as np
import pytest
import torch

from groupmorph_monai.data import make_phantom
from groupmorph_monai.data.contrast.pharmacokinetics import concentration, spgr_signal
from groupmorph_monai.data.phantoms.phantom import LESION_KINETICS, signal_curve
from groupmorph_monai.evaluation.metrics import folding_percent
from groupmorph_monai.space import DisplacementField
from groupmorph_monai.space.transforms import interpolate

SIZE = (40, 36, 32)


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(3, SIZE, timepoints=4, spacing_mm=(1.0, 1.5, 2.0), landmarks=100)


def test_a_seed_decides_everything(phantom):
    again = make_phantom(3, SIZE, timepoints=4, spacing_mm=(1.0, 1.5, 2.0), landmarks=100)
    other = make_phantom(4, SIZE, timepoints=4, landmarks=100)
    for key, value in phantom.items():
        assert torch.equal(value, again[key]), key
    assert (phantom["image"] - other["image"]).abs().mean() > 10
    assert (phantom["motion"] - other["motion"]).abs().mean() > 0.1


def test_landmarks_lie_at_one_place_of_the_template(phantom):
    places = [p + interpolate(u, p) for p, u in zip(phantom["landmarks"], phantom["motion"])]
    for place in places[1:]:
        torch.testing.assert_close(place, places[0], atol=1e-3, rtol=0)
    assert (phantom["landmarks"][1] - phantom["landmarks"][0]).norm(dim=1).mean() > 0.5


def test_the_same_tissue_lies_at_a_landmark_in_every_timepoint():
    clean = make_phantom(5, SIZE, timepoints=2, landmarks=300, noise=0.0, lesions=0)
    points = clean["landmarks"]
    values = [interpolate(clean["image"][k : k + 1], points[k])[:, 0] for k in range(2)]
    unmoved = interpolate(clean["image"][1:2], points[0])[:, 0]
    assert np.corrcoef(values[0], values[1])[0, 1] > np.corrcoef(values[0], unmoved)[0, 1] + 0.05


def test_motion_is_diffeomorphic_and_within_its_bound(phantom):
    assert folding_percent(DisplacementField.on_voxels(phantom["motion"][None])) == 0
    lengths = phantom["motion"].norm(dim=1)
    assert 0.5 < lengths.max() < 5.5


def test_lesions_are_marked_and_enhance():
    series = make_phantom(6, SIZE, timepoints=6, lesions=len(LESION_KINETICS), noise=0.0)
    for number in (1, 2, 3):
        before, after = (series["image"][k][series["lesion_mask"][k] == number] for k in (0, 1))
        assert before.numel() > 10
        assert after.mean() > 1.2 * before.mean()


def test_noise_is_rician_and_air_is_not_negative(phantom):
    air = phantom["image"][:, :2, :2, :2]
    assert (phantom["image"] >= 0).all()
    assert air.mean() > 0


def test_spacing_stands_in_the_affine(phantom):
    np.testing.assert_allclose(phantom["affine"], np.diag([1.0, 1.5, 2.0, 1.0]))


def test_a_signal_curve_is_that_of_the_tissue_varied_by_chance():
    times, (t10, density, ktrans, ve, vp) = np.array([-10.0, 30.0, 90.0]), (1.4, 0.8, 0.1, 0.3, 0.02)
    rng = torch.Generator().manual_seed(0)
    exact = spgr_signal(concentration(times, ktrans, ve, vp), t10, density)
    np.testing.assert_allclose(signal_curve(rng, times, (t10, density, ktrans, ve, vp), 0.0), exact, rtol=1e-6)
    varied = [signal_curve(rng, times, (t10, density, ktrans, ve, vp), 0.5) / exact for _ in range(20)]
    assert np.std(varied) > 0.05 and 0.4 < np.min(varied) and np.max(varied) < 2.5
