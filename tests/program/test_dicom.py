"""From a scanner's export to deformation fields: the result equals that of the same scans in NIfTI files."""

import nibabel
import numpy as np
import pytest
from json_files import read_json

pytest.importorskip("pydicom")

import dicom_exports as exports  # noqa: E402

from groupmorph_monai.apps.command_line import main  # noqa: E402
from groupmorph_monai.data import make_phantom  # noqa: E402


@pytest.mark.slow
@pytest.mark.parametrize("vendor", ["siemens", "enhanced"])
def test_fields_from_dicom_are_those_from_nifti(tmp_path, vendor):
    phantom = make_phantom(3, size=(36, 32, 20), timepoints=4, spacing_mm=(1.2, 1.2, 2.5), max_motion_voxels=2)
    data = phantom["image"].numpy().round().astype(np.uint16)
    turn, _ = np.linalg.qr(np.array([[1, 0.2, -0.1], [-0.15, 1, 0.3], [0.2, -0.25, 1.0]]))
    turn *= np.sign(np.diag(turn))
    lps = np.eye(4)
    lps[:3, :3], lps[:3, 3] = turn * [1.2, 1.2, 2.5], [-20, -15, 30]
    affine = exports.LPS @ lps
    study = exports.save(getattr(exports, vendor)(data, affine), tmp_path / "study")
    values = 2.0 * data - 5 if vendor == "enhanced" else data
    files = [str(tmp_path / f"t{k}.nii.gz") for k in range(4)]
    for file, volume in zip(files, values):
        nibabel.save(nibabel.Nifti1Image(volume.astype(np.float32), affine), file)
    quick = ["--effort", "fast", "--output"]
    assert main(["register", str(study), *quick, str(tmp_path / "dicom")]) == 0
    assert main(["register", *files, *quick, str(tmp_path / "nifti")]) == 0
    for name in [f"{kind}_{k:02d}.nii.gz" for kind in ("ddf", "inverse_ddf") for k in range(4)]:
        theirs, ours = (nibabel.load(tmp_path / folder / name) for folder in ("nifti", "dicom"))
        np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-3)
        assert np.abs(ours.get_fdata() - theirs.get_fdata()).max() < 0.01
        assert np.abs(theirs.get_fdata()).max() > 0.5
    report = read_json(tmp_path / "dicom" / "report.json")
    assert report["times_s"] == pytest.approx(exports.TIMES_S) and report["series_description"]
    assert ", ".join(dict.fromkeys(report["timepoints"])) == report["series_description"]
    assert report["times_from"] == "acquisition time"
    assert read_json(tmp_path / "nifti" / "report.json")["times_from"] is None
    assert nibabel.load(tmp_path / "dicom" / "warped.nii.gz").header.get_zooms()[3] == pytest.approx(61.5)
