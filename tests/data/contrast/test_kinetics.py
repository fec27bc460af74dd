"""Tofts' model fitted voxel by voxel: known curves, SciPy's least squares, and dcmri's model."""

import logging
from functools import partial
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from scipy.optimize import curve_fit

from groupmorph_monai.data.contrast.kinetics import SpoiledGradientEcho, ToftsFit, kinetic_maps
from groupmorph_monai.data.contrast.pharmacokinetics import concentration, spgr_signal, uptake, weinmann_aif
from groupmorph_monai.data.series import Frame, Series
from groupmorph_monai.errors import InputError

ARRIVAL_S = 30.0
T10_S = 1.5
FIT = partial(ToftsFit, sequence=SpoiledGradientEcho(T10_S, 0.005, 12.0))
MINUTES = np.arange(7) * 60.0  # of breast DCE-MRI
SECONDS = np.arange(80) * 5.0
TISSUES = ((0.05, 0.4), (0.16, 0.5), (0.6, 0.3))


def signals(curves):
    """Convert concentrations ``(N, K)`` to the signal of a series ``(K, N, 1, 1)``, each voxel with its own gain."""
    gain = np.linspace(50, 300, len(curves))
    image = [g * spgr_signal(curve, T10_S) for g, curve in zip(gain, curves)]
    return np.stack(image, axis=1)[:, :, None, None].astype(np.float32)


def fit(curves, times, **settings):
    images = signals(curves)
    return FIT(**settings).fit(images, np.ones(images.shape[1:], bool), times, ARRIVAL_S)


@pytest.mark.parametrize("model, vp, times", [("tofts", 0.0, MINUTES), ("extended_tofts", 0.04, SECONDS)])
def test_the_ktrans_of_the_model_is_found(model, vp, times):
    curves = [concentration(times - ARRIVAL_S, ktrans, ve, vp) for ktrans, ve in TISSUES]
    maps = fit(curves, times, model=model)
    assert maps.ktrans_per_min.ravel() == pytest.approx([ktrans for ktrans, _ in TISSUES], rel=0.05)
    assert (maps.r2 > 0.999).all() and (maps.residual_percent < 2).all()


def test_noisy_curves_are_fitted_as_well_as_by_nonlinear_least_squares():
    rng, since = np.random.default_rng(0), MINUTES - ARRIVAL_S
    curves = np.stack([concentration(since, ktrans, ve, 0.0) for ktrans, ve in TISSUES])
    curves[:, 1:] += 0.02 * rng.normal(size=curves[:, 1:].shape)
    maps = fit(curves, MINUTES)
    for curve, ktrans, residual in zip(curves, maps.ktrans_per_min.ravel(), maps.residual_percent.ravel()):
        bounds = ((0.01, 0.01), (5, 1))
        (best, ve), _ = curve_fit(lambda _, k, v: k * uptake(since, k / v), since, curve, (0.2, 0.5), bounds=bounds)
        least = 100 * np.linalg.norm(curve - best * uptake(since, best / ve)) / np.linalg.norm(curve)
        assert 0.999 * least < residual < np.hypot(least, 1)  # the grid of kep leaves less than 1 % beside the noise
        assert ktrans == pytest.approx(best, rel=0.06)


def test_dcmris_curves_give_dcmris_ktrans():
    dcmri = pytest.importorskip("dcmri")
    fine = np.arange(0, 400, 0.5)
    plasma = dcmri.aif_parker(fine, ARRIVAL_S) / (1 - 0.42)
    curves = []
    for ktrans, ve in TISSUES:
        molar = dcmri.conc_tissue(plasma, t=fine, kinetics="WV", H=0.0, vi=ve, Ktrans=ktrans / 60)
        curves.append(1000 * np.interp(MINUTES, fine, np.atleast_2d(molar).sum(axis=0)))
    maps = fit(curves, MINUTES)
    assert maps.ktrans_per_min.ravel() == pytest.approx([ktrans for ktrans, _ in TISSUES], rel=0.06)
    assert (maps.r2 > 0.999).all()


def test_weinmanns_input_leaks_as_its_integral_says():
    minutes, kep, expected = np.array([0.5, 3.0, 10.0]), 0.7, 0
    for amplitude, rate in ((0.399, 0.144), (0.478, 0.0111)):
        expected = expected + amplitude * (np.exp(-rate * minutes) - np.exp(-kep * minutes)) / (kep - rate)
    assert uptake(60 * minutes, kep, weinmann_aif) == pytest.approx(expected, rel=1e-4)


def test_plasma_volume_and_ve_stay_possible():
    # Curves that fall below 0, and one that no tissue has: more agent than a ve of 1 holds.
    rise = uptake(MINUTES - ARRIVAL_S, 0.05)
    maps = fit([-0.1 * rise, 3 * rise], MINUTES)
    assert maps.ktrans_per_min.ravel()[0] == 0 and maps.r2.ravel()[0] == 0
    assert maps.ktrans_per_min.ravel()[1] < 3 and maps.r2.ravel()[1] < 0.99


def static_series():
    """Make a static block in air whose halves enhance differently."""
    images = np.full((7, 10, 8, 6), 0.01, np.float32)
    curve = signals([concentration(MINUTES - ARRIVAL_S, 0.16, 0.5, 0.0)])[:, 0, 0, 0]
    images[:, 2:8, 2:6, 1:5] = curve[0]
    images[:, 2:5, 2:6, 1:5] = curve[:, None, None, None]
    return images


def test_enhancing_tissue_and_arrival_of_the_agent_are_detected_without_air():
    images = static_series()
    shifted = images.copy()
    shifted[3] = np.roll(shifted[3], 2, axis=0)
    covered = np.ones(images.shape[1:], bool)
    covered[:, :3] = False
    fits = FIT().before_and_after(shifted, images, covered, MINUTES + 1000)
    expected = np.zeros(covered.shape, bool)
    expected[2:5, 3:6, 1:5] = True
    np.testing.assert_array_equal(fits["enhancing"], expected)
    assert fits["settings"]["arrival_s"] == 30
    after, before = fits["after"], fits["before"]
    assert after.ktrans_per_min[expected] == pytest.approx(0.16, rel=0.05)
    assert not after.ktrans_per_min[~covered].any() and not after.ktrans_per_min[:2].any()
    assert np.median(after.r2[expected]) > 0.999 and before.r2[2:4, 3:6, 1:5].max() < 0.9


def test_a_series_without_contrast_agent_is_not_fitted(caplog):
    images = np.repeat(static_series()[:1], 7, axis=0)
    with caplog.at_level(logging.WARNING):
        assert FIT().before_and_after(images, images, np.ones(images.shape[1:], bool), MINUTES) is None
    assert "no tissue takes up contrast agent" in caplog.text


def series_of(times=MINUTES, **slices):
    frames = tuple(Frame(np.zeros((2, 2, 2)), np.eye(4), f"no/scan{k}.nii.gz") for k in range(len(times)))
    return Series(frames, times_s=tuple(times), **slices)


def test_parameters_without_a_header_are_assumed_with_a_warning(caplog):
    sequence, sources = SpoiledGradientEcho().for_series(series_of())
    assert (sequence.repetition_time_s, sequence.flip_angle_deg, sequence.t10_s) == (0.005, 12, 1.5)
    assert all(source.startswith("assumed") for source in sources.values())
    ToftsFit().check(series_of())
    assert "typical ones are assumed" in caplog.text


@pytest.mark.parametrize("tesla, warned", [(1.5, True), (3.0, False)])
def test_the_native_t1_is_questioned_at_another_field_strength(tesla, warned, caplog):
    header = {"RepetitionTime": 4.1, "FlipAngle": 20.0, "MagneticFieldStrength": tesla}
    scans = series_of(slices=([SimpleNamespace(number=header.get)],) * 7)
    ToftsFit().check(scans)
    assert ("says 1.5 T" in caplog.text) == warned == bool(caplog.records)
    caplog.clear()
    ToftsFit(sequence=SpoiledGradientEcho(t10_s=1.2)).check(scans)
    assert not caplog.records


def test_parameters_of_the_user_override_the_header():
    scans = series_of(slices=([SimpleNamespace(number={"RepetitionTime": 4.1, "FlipAngle": 20.0}.get)],) * 7)
    sequence, sources = SpoiledGradientEcho(flip_angle_deg=8.0).for_series(scans)
    assert (sequence.repetition_time_s, sequence.flip_angle_deg) == (pytest.approx(0.0041), 8)
    assert sources["flip_angle_deg"] == "given" and sources["repetition_time_s"] == "DICOM header, RepetitionTime"


def test_a_mask_limits_what_is_fitted(tmp_path):
    images, covered = static_series(), np.ones((10, 8, 6), bool)
    mask = np.zeros(covered.shape, np.uint8)
    mask[4:8] = 1  # half of what enhances, and tissue that does not
    nib.save(nib.Nifti1Image(mask, np.eye(4)), tmp_path / "mask.nii.gz")
    frames = tuple(Frame(image, np.eye(4), "scan") for image in images)
    series = Series(frames, times_s=tuple(MINUTES))
    fits = FIT(mask=str(tmp_path / "mask.nii.gz")).fit_series(series, 0, images, images, covered)
    expected = np.zeros(covered.shape, bool)
    expected[4, 2:6, 1:5] = True
    np.testing.assert_array_equal(fits["enhancing"], expected)
    for name, values in kinetic_maps(fits).items():
        assert values[expected].all() and not values[mask == 0].any(), name


@pytest.mark.parametrize(
    "settings, timepoints, times, words",
    [
        ({}, 7, None, "acquisition times, got none with scan"),
        ({}, 3, MINUTES, "expected 4 scans or more for tofts, got 3"),
        ({"model": "extended_tofts"}, 4, MINUTES, "expected 5 scans or more"),
        ({"model": "patlak"}, 7, MINUTES, "kinetics_model: expected tofts or extended_tofts, got 'patlak'"),
        ({}, 4, (0, 240, 60, 120), "expected scans in temporal order, got scans at 0, 240, 60, 120 s after the first"),
        ({}, 4, (0, 0.01, 0.02, 0.03), "expected scans 0.1 s or more apart within 100000 s, got scans at 0.01 to 0.03"),
        ({}, 4, (0, 1e9, 2e9, 3e9), "expected scans 0.1 s or more apart within 100000 s, got scans at 1e[+]09 to"),
        ({"arrival_s": 360.0}, 7, [1000 + t for t in MINUTES], "before the last scan at 360 s, got 360"),
        ({"arrival_s": 360.0}, 7, MINUTES, "kinetics_arrival_s: expected a time before the last scan at 360 s"),
    ],
)
def test_series_that_cannot_be_fitted_are_refused(settings, timepoints, times, words):
    frames = tuple(Frame(np.zeros((2, 2, 2)), np.eye(4), "scan") for _ in range(timepoints))
    series = Series(frames, times_s=None if times is None else tuple(times[:timepoints]))
    with pytest.raises(InputError, match=words):
        ToftsFit(**settings).check(series)
