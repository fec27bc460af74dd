"""Scans of two patients are not aligned, even if an anonymiser gave both one ID."""

import pytest

pydicom = pytest.importorskip("pydicom")

import dicom_exports as exports  # noqa: E402
from dicom_exports import AFFINE, SIZE, refused, volumes  # noqa: E402

from groupmorph_monai.data.dicom import list_dicom  # noqa: E402
from groupmorph_monai.data.reading.readers import read_series  # noqa: E402


def study(folder, name, *values):
    """Write four scans, of which the first two and the last two have these values of an attribute of the patient."""
    images = exports.siemens(volumes(), AFFINE)
    for number, image in enumerate(images):
        setattr(image, name, values[number // (2 * SIZE[2])])
    return exports.save(images, folder)


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [("PatientBirthDate", ("19500101", "19800202"), "another birth date"), ("PatientSex", ("F", "M"), "another sex")],
)
def test_different_persons_with_one_id_are_refused(tmp_path, name, values, words):
    refused(study(tmp_path, name, *values), "expected the scans of one patient", words)
    _, reason = list_dicom([tmp_path])
    assert words in str(reason)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("PatientBirthDate", ("19500101", "")),
        ("PatientBirthDate", ("19500101", "1950.01.01")),
        ("PatientSex", ("", "M")),
        ("PatientSex", ("O", "F")),
        ("PatientName", ("Doe^Jane", "DOE JANE")),
        ("PatientName", ("Yamada^Tarou", "Yamada^Tarou=A^B")),
    ],
)
def test_a_person_may_be_described_in_part_or_in_other_letters(tmp_path, name, values):
    assert not read_series(study(tmp_path, name, *values)).warnings


def test_different_names_are_a_warning_that_does_not_repeat_them(tmp_path):
    (warning,) = read_series(study(tmp_path, "PatientName", "Doe^Jane", "Roe^Joan")).warnings
    assert "the name of the patient differs" in warning
    assert "Doe" not in warning and "Roe" not in warning
