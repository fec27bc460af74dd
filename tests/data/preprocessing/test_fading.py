"""In simulated scans, the gain at the ends of a slab is estimated, and registrations do not follow it."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

import groupmorph_monai as gm
from groupmorph_monai.data import CorrectFadingd, Frame, Series
from groupmorph_monai.data.preprocessing.fading import end_gains
from groupmorph_monai.data.storage import Storage

SHAPE = (36, 40, 24)
MARGIN = 4
AFFINE = np.diag([1.5, 1.5, 2.0, 1.0])
SHIFTS = np.array([[0, 0, 0], [1, -1, 2], [-1, 1, -2], [2, 0, -1], [-2, 1, 1], [0, -1, 3]])  # voxels
FADING = np.array([0.1, 0.25, 0.5, 0.75, 0.93])
GAIN = np.concatenate([FADING, np.ones(SHAPE[2] - 2 * len(FADING)), FADING[::-1]])


def _tissue(seed=0):
    noise = np.random.default_rng(seed).normal(size=[n + 2 * MARGIN for n in SHAPE])
    smooth = gaussian_filter(noise, 2)
    return 500 * np.exp(0.4 * smooth / smooth.std())


def _scans(count, gain=GAIN, tissue=None, shifts=SHIFTS):
    """Make scans that show voxel x of the common space at x + shift, and their transforms."""
    tissue = _tissue() if tissue is None else tissue
    frames, initial = [], torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    for k, shift in enumerate(shifts[:count]):
        window = tuple(slice(MARGIN - d, MARGIN - d + n) for d, n in zip(shift, SHAPE))
        noise = np.random.default_rng(k).normal(size=(2, *SHAPE), scale=10)
        frames.append(
            Frame(np.hypot(tissue[window] * gain + noise[0], noise[1]).astype(np.float32), AFFINE, f"scan {k}")
        )
        initial[k, :3, 3] = torch.from_numpy(AFFINE[:3, :3] @ shift)
    return frames, initial


@pytest.mark.parametrize("count", [2, 6])
@pytest.mark.parametrize("axis", [0, 2])
def test_the_gain_is_that_of_the_simulation(count, axis):
    gain = np.interp(np.linspace(0, 1, SHAPE[axis]), np.linspace(0, 1, SHAPE[2]), GAIN)
    shape = [-1 if a == axis else 1 for a in range(3)]
    frames, initial = _scans(count, gain.reshape(shape), shifts=np.roll(SHIFTS, axis - 2, axis=1))
    gains = end_gains(frames, initial)
    np.testing.assert_allclose(gains.pop(axis), gain, rtol=0.15, atol=0.05)
    assert all((other == 1).all() for other in gains)


def test_no_gain_if_any_scan_of_many_has_another_grid():
    """The gain is estimated from some of the scans, but all of them are divided by it."""
    frames, initial = _scans(6)
    frames, initial = frames * 4, initial.repeat(4, 1, 1)
    assert end_gains(frames, initial)[2].min() < 0.2
    for k in range(len(frames)):
        shorter = [*frames[:k], replace(frames[k], data=frames[k].data[..., :-2]), *frames[k + 1 :]]
        assert all((gain == 1).all() for gain in end_gains(shorter, initial))


def test_a_misaligned_edge_of_an_object_is_no_fading():
    """A masked head whose ends do not coincide, by an error of the alignment of 1.5 slices."""
    i, j, k = np.meshgrid(*[np.linspace(-1.2, 1.2, n + 2 * MARGIN) for n in SHAPE], indexing="ij")
    frames, initial = _scans(2, 1, _tissue() * (i**2 + j**2 + k**2 < 0.8))
    frames = [replace(frame, data=np.where(frame.data > 60, frame.data, 0)) for frame in frames]
    initial[1, 2, 3] += 3
    assert (end_gains(frames, initial)[2] < 0.7).sum() < 2


def test_a_common_error_of_the_alignment_or_contrast_agent_hardly_matters():
    frames, initial = _scans(6)
    initial[:, :3, 3] *= 0.8
    frames = [replace(frame, data=(1 + 0.2 * k) * frame.data) for k, frame in enumerate(frames)]
    np.testing.assert_allclose(end_gains(frames, initial)[2], GAIN, rtol=0.2, atol=0.08)


def _stored(frame):
    to_old = np.array([[0, 0, -1, SHAPE[0] - 1], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])  # voxels
    return replace(frame, data=frame.data[::-1].transpose(1, 2, 0), affine=frame.affine @ to_old)


def test_the_gain_does_not_depend_on_how_scans_are_stored():
    frames, initial = _scans(3)
    expected = end_gains(frames, initial)
    for gain, axis in zip(end_gains(list(map(_stored, frames)), initial), (1, 2, 0)):
        np.testing.assert_allclose(gain, expected[axis], atol=1e-5)


def test_scans_of_one_series_may_be_stored_along_other_axes():
    frames, initial = _scans(3)
    mixed = (frames[0], _stored(frames[1]), frames[2])
    series = (Series(tuple(frames)), Series(mixed))
    alike, others = (CorrectFadingd()({"image": each, "initial": initial})["image"] for each in series)
    assert not np.allclose(alike.frames[1].data, frames[1].data)
    expected = (alike.frames[0], _stored(alike.frames[1]), alike.frames[2])
    for frame, one in zip(others.frames, expected):
        np.testing.assert_allclose(frame.data, one.data, rtol=1e-4)


@pytest.mark.parametrize("change", ["no profile", "no motion", "end of the tissue", "another grid", "CT"])
def test_other_series_are_unchanged(change):
    tissue = _tissue()
    if change == "end of the tissue":
        tissue[..., : MARGIN + 5] = tissue[..., -MARGIN - 5 :] = 0
    one = change in ("no profile", "end of the tissue")
    shifts = np.zeros_like(SHIFTS) if change == "no motion" else SHIFTS
    frames, initial = _scans(3, np.ones(SHAPE[2]) if one else GAIN, tissue, shifts)
    if change == "another grid":
        frames[1] = replace(frames[1], affine=AFFINE + np.eye(4)[3] * 0.5)
    if change == "CT":
        frames = [replace(frame, data=frame.data - 1000) for frame in frames]
    item = {"image": Series(tuple(frames)), "initial": initial}
    assert CorrectFadingd()(item)["image"] is item["image"]


def test_scans_are_divided_and_slices_of_noise_are_not_measured(tmp_path, caplog):
    frames, initial = _scans(3)
    valid = np.ones(SHAPE, dtype=bool)
    valid[:4] = False
    frames[1] = replace(frames[1], valid=valid)
    item = {"image": Series(tuple(frames)), "initial": initial}
    with caplog.at_level(logging.INFO):
        corrected = CorrectFadingd()(item)["image"].frames
    assert "Axis 2: the signal fades to" in caplog.text
    flat, _ = _scans(3, np.ones(SHAPE[2]))
    full = GAIN > 0.2
    for frame, expected in zip(corrected, flat):
        ratio = np.median(frame.data / expected.data, axis=(0, 1))
        np.testing.assert_allclose(ratio[full], 1, atol=0.12)
        assert frame.valid[4:, :, full].all() and not frame.valid[..., ~full].any()
    assert not corrected[1].valid[:4].any() and corrected[0].valid[:4, :, full].all()
    streamed = CorrectFadingd(storage=Storage(1, tmp_path))(item)["image"].frames
    for frame, other in zip(corrected, streamed):
        np.testing.assert_array_equal(frame.data, other.data)
        np.testing.assert_array_equal(frame.valid, other.valid)


def test_nothing_changes_without_an_alignment_or_files():
    series = Series(tuple(_scans(2)[0]))
    assert CorrectFadingd()({"image": series}) == {"image": series}
    assert CorrectFadingd()({"phantom": {}, "initial": torch.eye(4)}).keys() == {"phantom", "initial"}


@pytest.mark.slow
def test_tissue_is_registered_and_not_the_end_of_the_slab():
    frames, _ = _scans(3)
    errors = {}
    for correct in (False, True):
        result = gm.register([f.data for f in frames], affine=AFFINE, overlays=["effort/fast"], correct_fading=correct)
        near_ends = [range(6, n - 5, 3) for n in SHAPE[:2]] + [(3, 4, 5, 18, 19, 20)]
        points = np.stack(np.meshgrid(*near_ends, indexing="ij"), -1).reshape(-1, 3)
        common = [t.inverse(torch.from_numpy((points + s) @ AFFINE[:3, :3])) for t, s in zip(result.transforms, SHIFTS)]
        errors[correct] = float(torch.stack(common).std(dim=0).norm(dim=1).mean())
    assert errors[True] < 0.4 and errors[True] < 0.5 * errors[False], errors  # mm; 0.25 and 1.03
