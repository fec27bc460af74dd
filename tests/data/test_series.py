"""Series from a user's own reader."""

from dataclasses import replace

import itk
import numpy as np
import pytest
import torch

from groupmorph_monai.data import Frame, Series
from groupmorph_monai.data.arrays import series_of_arrays
from groupmorph_monai.data.series_checks import checked_series
from groupmorph_monai.errors import InputError


def frame(affine=((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)), valid=None):
    data = np.random.default_rng(0).uniform(5, 9, (6, 7, 8)).astype(np.float32)
    return Frame(data, np.array(affine, dtype=float), "own", valid)


def test_the_mask_of_the_reader_is_kept():
    valid = np.ones((6, 7, 8), dtype=bool)
    valid[:2] = False
    original = frame(valid=valid)
    masked, whole = checked_series(Series((original, frame())), None).frames
    np.testing.assert_array_equal(masked.valid, valid)
    np.testing.assert_array_equal(masked.data[2:], original.data[2:])
    assert (masked.data[:2] == original.data[2:].min()).all() and whole.valid is None


SHEARED = ((1, 0.3, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1))


def test_a_checked_series_stays_the_same():
    fill = frame()
    fill.data[:2] = -2000
    once = checked_series(Series((frame(SHEARED), fill, frame()), warnings=("a doubt",)), None)
    twice = checked_series(once, None)
    assert [f.valid is None for f in once.frames] == [False, False, True]
    assert twice.warnings == once.warnings and len(once.warnings) == 2
    for one, two in zip(once.frames, twice.frames):
        assert two.data is one.data and two.valid is one.valid
        np.testing.assert_array_equal(two.affine, one.affine)


@pytest.mark.parametrize(
    "masked", [np.ma.masked_greater, lambda x, least: np.ma.masked_array(np.where(x > least, 1e30, x), x > least)]
)
def test_the_masks_of_masked_arrays_are_kept(masked):
    data = frame().data
    series = series_of_arrays([masked(data, 8), data], np.eye(4))
    np.testing.assert_array_equal(series.frames[0].valid, data <= 8)
    assert series.frames[0].data.max() <= 8 and series.frames[1].valid is None


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_tensors_are_read_whatever_their_type(kind):
    data = torch.tensor(frame().data, dtype=kind, requires_grad=True)
    for volume in series_of_arrays([data, data], torch.eye(4, requires_grad=True)).frames:
        np.testing.assert_array_equal(volume.data, data.detach().float())


@pytest.mark.parametrize("kind", [torch.tensor, np.ndarray.tolist])
def test_affine_and_mask_of_a_reader_of_ones_own_may_be_tensors_or_lists(kind):
    valid = np.ones((6, 7, 8), dtype=bool)
    valid[:2] = False
    matrix = np.diag([2.0, 1.5, 1, 1])
    expected = checked_series(Series((frame(matrix, valid), frame(matrix))), None).frames
    data = torch.tensor(frame().data, requires_grad=True) if kind is torch.tensor else frame().data
    own = Frame(data, kind(matrix), "own", kind(valid)), Frame(frame().data, kind(matrix), "own")
    for one, other in zip(checked_series(Series(own), None).frames, expected):
        np.testing.assert_array_equal(one.data, other.data)
        np.testing.assert_array_equal(one.affine, matrix)
        assert (one.valid is None) == (other.valid is None)
    np.testing.assert_array_equal(checked_series(Series(own), None).frames[0].valid, valid)


@pytest.mark.parametrize("affine", ["diagonal", np.eye(4) * 1j, [[1, 0], [0]]])
def test_an_affine_that_is_no_matrix_of_numbers_is_rejected(affine):
    with pytest.raises(InputError, match="timepoint 1.*affine: expected"):
        checked_series(Series((frame(), replace(frame(), affine=affine))), None)


def test_a_view_of_an_image_of_itk_is_an_array():
    view = itk.array_view_from_image(itk.image_from_array(frame().data))
    assert type(view) is not np.ndarray
    checked_series(Series((frame(), replace(frame(), data=view))), None)


@pytest.mark.parametrize(
    "data", [frame().data[0], frame().data + 0j, frame().data.tolist(), np.ma.masked_greater(frame().data, 8)]
)
def test_volumes_that_are_no_arrays_of_real_numbers_are_rejected(data):
    with pytest.raises(InputError, match="timepoint 1.*expected an array of real numbers with three axes"):
        checked_series(Series((frame(), replace(frame(), data=data))), None)


@pytest.mark.parametrize("valid", [np.zeros((6, 7, 8), dtype=bool), np.ones((8, 7, 6), dtype=bool), np.ones((6, 7, 8))])
def test_a_mask_that_is_empty_or_of_another_shape_or_type_is_rejected(valid):
    with pytest.raises(InputError, match="timepoint 1.*correct valid"):
        checked_series(Series((frame(), replace(frame(), valid=valid))), None)


@pytest.mark.parametrize("hidden", [True, False])
def test_nan_is_accepted_where_the_mask_of_the_reader_excludes_it(hidden):
    valid = np.ones((6, 7, 8), dtype=bool)
    valid[3, 3, 3] = not hidden
    scan = frame(valid=valid)
    scan.data[3, 3, 3] = np.nan
    if hidden:
        assert np.isfinite(checked_series(Series((scan, frame())), None).frames[0].data).all()
    else:
        with pytest.raises(InputError, match="got 1 NaN"):
            checked_series(Series((scan, frame())), None)


def blob(low, high):
    """Make a smooth volume with values from ``low`` to ``high``."""
    axes = np.meshgrid(*[np.linspace(-2, 2, 24)] * 3, indexing="ij")
    bell = np.exp(-sum(axis**2 for axis in axes))
    return low + (high - low) * (bell - bell.min()) / np.ptp(bell)


@pytest.mark.parametrize("stored", [np.int16, np.uint16])
def test_scans_that_overflowed_are_rejected_and_full_ranges_are_not(stored):
    ends = np.iinfo(stored)

    def series(values):
        scan = replace(frame(), data=values.astype(np.int64).astype(stored).astype(np.float32))
        return checked_series(Series((scan, scan)), None)

    assert np.ptp(series(blob(ends.min, ends.max)).frames[0].data) == 65535
    assert series(blob(0, 2 * ends.max).clip(ends.min, ends.max)).frames[0].data.max() == ends.max  # saturated
    with pytest.raises(InputError, match="own: .* 16-bit integers that overflowed; export"):
        series(blob(0, 1.3 * ends.max))


@pytest.mark.parametrize("high", [1, 255])
def test_a_mask_among_the_scans_is_refused_and_a_series_of_masks_is_not(high):
    scans = np.random.default_rng(0).normal(size=(3, 9, 8, 7))
    masks = high * (scans > 0).astype(np.float32)
    with pytest.raises(
        InputError, match=f"timepoint 1.*got a mask, whose only values are 0 and {high}; list the scans"
    ):
        series_of_arrays([scans[0], masks[1], scans[2]], np.eye(4))
    assert len(series_of_arrays(masks, np.eye(4)).frames) == 3
    nearly = masks[1].copy()
    nearly[5, 4, 3] = 0.5
    for scan in nearly, 0.8 * masks[1]:  # a homogeneous object
        assert len(series_of_arrays([scans[0], scan], np.eye(4)).frames) == 2
