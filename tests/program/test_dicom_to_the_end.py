"""From a scanner's export to the files that others open: DICOM objects, report.html in a browser, and fields read by
other programs."""

import re

import chromium
import itk
import nibabel
import numpy as np
import pytest
from json_files import read_json
from scipy.ndimage import map_coordinates

pydicom = pytest.importorskip("pydicom")

import dicom_exports as exports  # noqa: E402

from groupmorph_monai.apps.command_line import main  # noqa: E402
from groupmorph_monai.data import make_phantom  # noqa: E402

pytestmark = pytest.mark.slow
LPS = np.diag([-1.0, -1, 1])
PARAMETRIC_MAP = "1.2.840.10008.5.1.4.1.1.30"
REGISTRATION_OBJECT = "1.2.840.10008.5.1.4.1.1.66.3"
COUNT, SCAN = 4, 2


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of a phantom on an oblique grid, what `groupmorph register` made of it, and where points of tissue lie in
    each scan, ``(K, P, 3)`` mm."""
    folder, spacing = tmp_path_factory.mktemp("study"), (1.2, 1.2, 2.5)
    phantom = make_phantom(
        3, size=(36, 32, 20), timepoints=COUNT, spacing_mm=spacing, max_motion_voxels=2, landmarks=40
    )
    turn, _ = np.linalg.qr(np.array([[1, 0.2, -0.1], [-0.15, 1, 0.3], [0.2, -0.25, 1.0]]))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = LPS @ (turn * np.sign(np.diag(turn)) * spacing), [20, 15, 30]
    images = exports.siemens(phantom["image"].numpy().round().astype(np.uint16), affine)
    exports.save(images, folder / "STUDY")
    options = ["--dicom", "--transforms", "--sequence", "--bids-names", "--effort", "fast"]
    assert main(["register", str(folder / "STUDY"), "--output", str(folder / "aligned"), *options]) == 0
    return folder / "aligned", images, phantom["landmarks"].numpy() @ affine[:3, :3].T + affine[:3, 3]


def test_the_dicom_objects_belong_to_the_study_and_keep_its_times(study):
    aligned, images, _ = study
    written = [pydicom.dcmread(path) for path in (aligned / "dicom").rglob("*.dcm")]
    motion = [image for image in written if image.SOPClassUID == REGISTRATION_OBJECT]
    series = [image for image in written if image.SOPClassUID == exports.MR]
    (enhancement,) = (image for image in written if image.SOPClassUID == PARAMETRIC_MAP)
    assert len(motion) == 1 and len(series) == len(images) == len(written) - 2
    assert enhancement.NumberOfFrames == len(images) // COUNT
    assert len(motion[0].DeformableRegistrationSequence) == COUNT
    assert {image.StudyInstanceUID for image in written} == {images[0].StudyInstanceUID}
    assert len({image.SeriesInstanceUID for image in series}) == 1
    assert {image.SOPInstanceUID for image in series}.isdisjoint(image.SOPInstanceUID for image in images)
    assert {image.AcquisitionTime for image in series} == {image.AcquisitionTime for image in images}


@pytest.mark.skipif(chromium.PROGRAM is None, reason="no Chromium here: apt-get install chromium")
def test_the_report_opens_in_a_browser_with_the_verdict_and_every_scan(study, tmp_path):
    window = chromium.Window(tmp_path)
    window.open(study[0] / "report.html")
    window.wait("document.body?.dataset.ready")  # set by the script of the page when the images are drawn
    shown = window.run("document.documentElement.outerHTML")
    window.close()
    verdict = read_json(study[0] / "report.json")["verdict"]["verdict"]
    assert f'<span class="badge {verdict}" role="status">{verdict}</span>' in shown
    assert re.search(rf'<input[^>]*id="time"[^>]*max="{COUNT - 1}"', shown)


def by_simple_itk(path, points):
    sitk = pytest.importorskip("SimpleITK")
    transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))
    return np.array([transform.TransformPoint((LPS @ p).tolist()) for p in points]) @ LPS


def by_a_slicer_sequence(path, points):
    sitk = pytest.importorskip("SimpleITK")
    sequence = sitk.ReadImage(str(path.with_name("transforms.seq.nrrd")), sitk.sitkVectorFloat64)
    transform = sitk.DisplacementFieldTransform(sequence[:, :, :, SCAN])
    return np.array([transform.TransformPoint((LPS @ p).tolist()) for p in points]) @ LPS


def by_itk(path, points):
    transform = itk.transformread(str(path.with_name(f"transform_{SCAN:02d}.h5")))[0]
    return np.array([np.array(transform.TransformPoint((LPS @ p).tolist())) for p in points]) @ LPS


def by_nibabel(path, points):
    image = nibabel.load(path)
    voxels = np.linalg.solve(image.affine[:3, :3], (points - image.affine[:3, 3]).T)
    field = image.get_fdata()[:, :, :, 0]
    return points + np.stack([map_coordinates(field[..., d], voxels, order=1) for d in range(3)], axis=1) @ LPS


def by_ants(path, points):
    ants = pytest.importorskip("ants", reason="run by make others")
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(points @ LPS, columns=["x", "y", "z"])
    return ants.apply_transforms_to_points(3, table, [str(path)]).to_numpy()[:, :3] @ LPS


@pytest.mark.parametrize("reader", [by_simple_itk, by_a_slicer_sequence, by_itk, by_nibabel, by_ants])
def test_other_programs_follow_tissue_with_the_written_fields(study, reader):
    aligned, _, landmarks = study
    # ddf_KK maps images to the common space, and points of the common space to scan K.
    common = by_nibabel(aligned / "inverse_ddf_00.nii.gz", landmarks[0])
    path = aligned / f"from-scan{SCAN:02d}_to-common_mode-image_xfm.nii.gz"
    mapped = reader(path, common)
    np.testing.assert_allclose(mapped, by_nibabel(path, common), atol=2e-3)
    before, after = (np.linalg.norm(p - landmarks[SCAN], axis=1).mean() for p in (landmarks[0], mapped))
    assert after < 0.6 * before


def test_simple_itk_makes_the_aligned_series_from_the_dicom_files_and_a_field(study):
    sitk = pytest.importorskip("SimpleITK")
    aligned, images, _ = study
    folder = aligned.parent / "scan"
    for image in images:
        if image.SeriesDescription == f"t1_fl3d_dyn_{SCAN}":
            exports.write(image, folder / f"{image.InstanceNumber}.dcm")
    scan = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)), sitk.sitkFloat64)
    field = sitk.ReadImage(str(aligned / f"ddf_{SCAN:02d}.nii.gz"), sitk.sitkVectorFloat64)
    mean = sitk.ReadImage(str(aligned / "mean.nii.gz"))
    theirs = sitk.GetArrayFromImage(sitk.Resample(scan, mean, sitk.DisplacementFieldTransform(field))).T
    ours = nibabel.load(aligned / "desc-aligned_image.nii.gz").get_fdata()[..., SCAN]
    covered = (ours != 0) & (theirs != 0)
    assert covered.mean() > 0.5
    assert np.abs(ours - theirs)[covered].max() < 1e-3 * np.ptp(ours)
