import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from groupmorph_monai.data.series import Frame
from groupmorph_monai.data.writing.integers import IntegerType, integer_type
from groupmorph_monai.data.writing.nifti import nifti_image, save_nifti


def frames(*values):
    return [Frame(np.full((2, 3, 4), value, np.float32), np.eye(4), "x") for value in values]


@pytest.mark.parametrize(
    ("lowest", "highest", "expected"),
    [
        (0, 4095, IntegerType(np.int16, 1.0)),
        (-1024, 3071, IntegerType(np.int16, 1.0)),
        (0, 1500, IntegerType(np.int16, 0.5)),
        (0, 255, IntegerType(np.int16, 2.0**-4)),
        (0, 1, IntegerType(np.int16, 2.0**-11)),
        (7, 7, IntegerType(np.int16, 2.0**-12)),
        (0, 32767, IntegerType(np.int16, 1.0)),
        (0, 65535, IntegerType(np.uint16, 1.0)),
        (-5, 65535, None),
        (5000, 6000, IntegerType(np.int16, 0.25)),
        (40000, 40001, None),
        (3000, 3001, None),
        (0, 1e6, None),
        (0, np.nan, None),
        (0, np.inf, None),
    ],
)
def test_the_type_holds_the_range_in_at_least_2048_steps(lowest, highest, expected):
    got = integer_type(frames(0, 3), lowest, highest)
    assert got == expected
    if got is not None:
        limits = np.iinfo(got.dtype)
        assert limits.min * got.slope <= lowest <= highest <= limits.max * got.slope
        assert (1 / got.slope).is_integer() and got.slope <= max((highest - lowest) / 2047, 2.0**-12)


def test_scans_that_are_not_integers_stay_float():
    assert integer_type(frames(0, 3, 0.5), 0, 4095) is None


def test_other_programs_read_the_rounded_values(tmp_path):
    values = np.random.default_rng(0).uniform(-50, 900, size=(5, 4, 3)).astype(np.float32)
    kept = integer_type(frames(1), values.min(), values.max())
    rounded = kept.rounded(values)
    assert np.abs(rounded - values).max() <= kept.slope / 2 and kept.rounded(np.float32([17.0])) == 17
    save_nifti(nifti_image(rounded, np.eye(4)), tmp_path / "x.nii.gz", integers=kept)
    image = nib.load(tmp_path / "x.nii.gz")
    assert image.get_data_dtype() == np.int16
    np.testing.assert_array_equal(image.get_fdata(), rounded)
    by_itk = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "x.nii.gz"))).T
    np.testing.assert_allclose(by_itk, rounded, atol=1e-6)
