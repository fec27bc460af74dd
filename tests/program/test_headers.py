"""For any geometry and times in NIfTI headers, results are at the position of the tissue, for every reader."""

import nibabel
import numpy as np
import pytest
import SimpleITK
from json_files import read_json
from scanners import LPS, Registered, affine, moved_pair, register, save
from scipy.spatial.transform import Rotation

from groupmorph_monai.apps.command_line import main


def set_forms(file, qform, sform):
    """Write the scan again with these two forms."""
    image = nibabel.Nifti1Image(np.asarray(nibabel.load(file).dataobj), None)
    image.set_qform(qform, code=1)
    image.set_sform(sform, code=2)
    nibabel.save(image, file)


def affine_by_itk(file):
    """Return the affine of a file's first three axes, voxel to RAS mm, as SimpleITK reads it."""
    image = SimpleITK.ReadImage(str(file))
    number = image.GetDimension()
    matrix = np.reshape(image.GetDirection(), (number, number)) * image.GetSpacing()
    return affine(LPS[:, None] * matrix[:3, :3], LPS * image.GetOrigin()[:3])


def check_that_all_readers_agree(folder):
    files = sorted(folder.glob("*.nii.gz"))
    assert len(files) == 7
    for file in files:
        header = nibabel.load(file).header
        for other in (header.get_qform(), affine_by_itk(file)):
            np.testing.assert_allclose(other, header.get_sform(), atol=1e-3, err_msg=file.name)


def test_the_sform_counts_where_the_qform_says_something_else(tmp_path):
    """FSL and SPM write such headers. nibabel prefers the sform, and ITK the qform unless the codes say otherwise."""
    pair = moved_pair(0, 8, 15, 100, 4)
    files, elsewhere = save(pair.scans, tmp_path), affine(Rotation.from_euler("z", 10, True).as_matrix(), (12, 0, 0))
    for file, scan in zip(files, pair.scans):
        set_forms(file, elsewhere @ scan.affine, scan.affine)
    output = register(files, tmp_path / "out")
    errors = Registered(output).errors_mm(pair.points)
    print(f"mean {errors.mean():.3f} mm")
    assert errors.mean() < 0.6
    check_that_all_readers_agree(output)
    warnings = read_json(output / "report.json")["warnings"]
    assert len(warnings) == 2 and all("qform" in warning for warning in warnings)


def test_slices_of_a_tilted_gantry_lie_where_they_were_measured(tmp_path):
    pair = moved_pair(1, 8, 15, 100, 4, shear=0.3)
    files = save(pair.scans, tmp_path)
    output = register(files, tmp_path / "out")
    errors = Registered(output).errors_mm(pair.points)
    print(f"mean {errors.mean():.3f} mm")
    assert errors.mean() < 0.6
    check_that_all_readers_agree(output)
    report = read_json(output / "report.json")
    assert len(report["warnings"]) == 1 and "sheared by up to 16.7 degrees" in report["warnings"][0]
    assert report["verdict"]["verdict"] == "LOOK"


def test_axes_that_are_nearly_parallel_are_refused_with_the_cure(tmp_path, capsys):
    files = save(moved_pair(1, 0, 0, 100, 4, shear=3.0).scans, tmp_path)
    assert main(["register", *files, "--output", str(tmp_path / "out")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("groupmorph")]
    assert files[0] in line and "axes at right angles" in line and "; " in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("frame_time_s", [None, 4.5])
def test_volumes_are_as_far_apart_in_time_as_the_scan_says_or_at_no_known_time(frame_time_s, tmp_path):
    """nibabel sets `pixdim[4]` to 1 by default; without a unit it is no time."""
    (file,) = save(moved_pair(0, 0, 4, 100, 4).scans, tmp_path, "4D")
    if frame_time_s:
        image = nibabel.load(file)
        image.header["pixdim"][4] = frame_time_s
        image.header.set_xyzt_units("mm", "sec")
        nibabel.save(nibabel.Nifti1Image(image.get_fdata(dtype=np.float32), None, image.header), file)
    header = nibabel.load(register([file], tmp_path / "out", "--no-refine") / "warped.nii.gz").header
    expected = (frame_time_s, "sec") if frame_time_s else (0, "unknown")
    assert (header["pixdim"][4], header.get_xyzt_units()[1]) == expected
