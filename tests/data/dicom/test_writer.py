"""The aligned scans are a new DICOM series of the study, which our reader, pydicom and ITK's GDCM read alike."""

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from json_files import write_json
from scipy.ndimage import map_coordinates

pydicom = pytest.importorskip("pydicom")

import dicom_exports as exports  # noqa: E402

from groupmorph_monai.data.contrast.kinetics import KINETIC_MAPS, ToftsFit  # noqa: E402
from groupmorph_monai.data.dicom import write_dicom, write_parametric_maps, write_registration_object  # noqa: E402
from groupmorph_monai.data.reading.readers import read_series  # noqa: E402
from groupmorph_monai.data.series import Frame, Series  # noqa: E402
from groupmorph_monai.data.writing import replacement  # noqa: E402
from groupmorph_monai.data.writing.earlier_result import earlier_result  # noqa: E402
from groupmorph_monai.data.writing.output_folder import atomic_folder  # noqa: E402
from groupmorph_monai.data.writing.products import Exports, Products  # noqa: E402
from groupmorph_monai.data.writing.registration import write_registration  # noqa: E402
from groupmorph_monai.errors import InputError  # noqa: E402
from groupmorph_monai.space.grid import Grid  # noqa: E402
from groupmorph_monai.space.transforms import AffineTransform, ComposedTransform, DenseTransform  # noqa: E402

SIZE = (12, 10, 7)
TURN, _ = np.linalg.qr(np.array([[1, 0.2, -0.1], [-0.15, 1, 0.3], [0.2, -0.25, 1.0]]))
LPS = np.eye(4)
LPS[:3, :3], LPS[:3, 3] = TURN * np.sign(np.linalg.det(TURN)) * [1.5, 1.4, 3.0], [-8, -6, 20]
AFFINE = exports.LPS @ LPS


def volumes(largest=4000):
    i, j, k = np.indices(SIZE)
    waves = [2 + np.sin(i / 3 + t) + np.cos(j / 4 - k / 2 + t / 2) for t in range(4)]
    return (largest / 4 * np.stack(waves)).round().astype(np.uint16)


def aligned(study, folder, home=0, shift_mm=1.0):
    """Read a study, move every timepoint but the home by a known translation, and write the result."""
    series = read_series(study)
    maps = [torch.eye(4, dtype=torch.float64) for _ in series.frames]
    for k, matrix in enumerate(maps):
        matrix[0, 3] = shift_mm * (k != home)
    result = write_registration(
        series, [AffineTransform(m) for m in maps], folder, home, products=Products("none", exports=Exports(dicom=True))
    )
    return series, result


def images(folder):
    return [pydicom.dcmread(path) for path in sorted(folder.glob("[0-9]*"))]


@pytest.mark.parametrize("vendor", ["siemens", "ge", "philips", "enhanced"])
def test_our_reader_finds_the_aligned_series_its_times_and_places(tmp_path, vendor):
    study = exports.save(getattr(exports, vendor)(volumes(), AFFINE), tmp_path / "in")
    series, result = aligned(study, tmp_path / "out")
    again = read_series(tmp_path / "out" / "dicom")
    assert again.times_s == pytest.approx(series.times_s)
    description = "t1_fl3d" if vendor == "siemens" else series.slices[0][0].source.description
    assert again.description == f"{description} aligned"
    described = {pydicom.dcmread(path).SeriesDescription for path in (tmp_path / "out" / "dicom").glob("[a-z]*.dcm")}
    assert described == {f"{description} {name}" for name in ("motion", "maps")}
    stored = np.moveaxis(nib.load(tmp_path / "out" / "warped.nii.gz").get_fdata(), -1, 0)
    for frame, values in zip(again.frames, stored):
        np.testing.assert_allclose(frame.affine, series.frames[0].affine, atol=1e-3)
        valid = slice(None) if frame.valid is None else frame.valid
        assert np.abs(frame.data - values)[valid].max() <= np.ptp(stored) / 2**12
    np.testing.assert_array_equal(again.frames[0].data, series.frames[0].data)  # which nothing moves
    assert np.abs(stored[1] - series.frames[1].data).max() > 100
    assert result["files"] == ["coverage.nii.gz", "dicom", "mean.nii.gz", "warped.nii.gz"]


def test_times_that_are_not_in_the_times_of_images_are_written(tmp_path):
    """Temporal offsets in an enhanced image, and trigger times from the start of each of two series."""
    image = exports.enhanced(volumes(), AFFINE)[0]
    for group in image.PerFrameFunctionalGroupsSequence:
        content = group.FrameContentSequence[0]
        offset = pydicom.Dataset()
        offset.TemporalPositionTimeOffset = 7.5 * content.TemporalPositionIndex**2
        group.TemporalPositionSequence = [offset]
        del content.FrameAcquisitionDateTime
    aligned(exports.save([image], tmp_path / "enhanced"), tmp_path / "a")
    assert read_series(tmp_path / "a" / "dicom").times_s == (0, 22.5, 60, 112.5)
    two_series = exports.ge(volumes(), AFFINE)
    for image in two_series[: SIZE[2]]:
        image.SeriesInstanceUID, image.AcquisitionTime = "1.2.3", "101000"
    series, _ = aligned(exports.save(two_series, tmp_path / "two"), tmp_path / "b")
    assert series.times_s == (0, 691.5, 753, 814.5)
    assert read_series(tmp_path / "b" / "dicom").times_s == series.times_s


_MOMENTS = ("20251026025930", "20251026020000", "20251026020030", "20251026020100")
_ZONES = ("+0200", "+0100", "+0100", "+0100")  # daylight saving time ends during the scan


@pytest.mark.parametrize(
    "headers",
    [
        [
            {"AcquisitionDate": moment[:8], "AcquisitionTime": moment[8:], "TimezoneOffsetFromUTC": zone}
            for moment, zone in zip(_MOMENTS, _ZONES)
        ],
        [{"AcquisitionDateTime": moment + zone} for moment, zone in zip(_MOMENTS, _ZONES)],
        [
            {"AcquisitionDateTime": moment + zone, "TimezoneOffsetFromUTC": "-0500"}
            for moment, zone in zip(_MOMENTS, _ZONES)
        ],
    ],
    ids=["of images", "suffixes", "both"],
)
def test_aligned_images_keep_the_time_zone(tmp_path, headers):
    series = read_series(exports.save(exports.one_series(volumes(), headers, AFFINE), tmp_path / "study"))
    write_dicom(series, np.stack([frame.data for frame in series.frames]), 0, tmp_path / "aligned")
    assert read_series(tmp_path / "aligned").times_s == series.times_s == (0, 30, 60, 90)


def test_text_of_scans_in_different_character_sets_stays_legible(tmp_path):
    data, shared = volumes(), exports.examination(PatientName="Müller", SpecificCharacterSet="ISO_IR 100")
    scans = exports.dynamic(shared, data)
    for image in scans[SIZE[2] :]:
        image.SpecificCharacterSet, image.InstitutionName, image.ProtocolName = "ISO_IR 192", "東京病院", "造影"
    aligned(exports.save(scans, tmp_path / "in"), tmp_path / "out")
    for k, image in enumerate(images(tmp_path / "out" / "dicom")[:: SIZE[2]]):
        assert (str(image.PatientName), image.get("ProtocolName", "")) == ("Müller", "造影" * (k > 0))


@pytest.mark.filterwarnings("ignore:Invalid value", "ignore:Value .* is not valid")
@pytest.mark.parametrize(
    ("name", "stored", "written"),
    [
        ("PatientWeight", "70,5", 70.5),
        ("PatientSize", "1.7 m", None),
        ("FlipAngle", "NaN", None),
        ("ImagingFrequency", "12345678.123456789012", 12345678.123456789),
        ("EchoTrainLength", "abc", ""),  # required, so it is empty
        ("EchoTrainLength", "1.5", ""),
        ("AcquisitionNumber", "7", 7),
    ],
)
def test_invalid_numbers_of_a_source_are_corrected_or_omitted(tmp_path, name, stored, written):
    scans = exports.siemens(volumes(), AFFINE)
    for number, image in enumerate(scans):
        image.add_new(name, "LO", stored)  # an implicit file does not store this type
        exports.write(image, tmp_path / "in" / f"{number}.dcm", pydicom.uid.ImplicitVRLittleEndian)
    aligned(tmp_path / "in", tmp_path / "out")
    value = images(tmp_path / "out" / "dicom")[0].get(name)
    assert (value if value or written is None else "") == (pytest.approx(written) if written else written)


@pytest.mark.parametrize(
    ("description", "words"), [(64 * "d", 64 * "d"), ("t1\\fs\\dyn", "t1/fs/dyn")], ids=["long", "backslashes"]
)
def test_a_description_is_one_text_that_ends_with_the_name_of_the_result(tmp_path, description, words):
    scans = exports.dynamic(data=volumes(), SeriesDescription=description)
    series, _ = aligned(exports.save(scans, tmp_path / "in"), tmp_path / "out")
    assert series.description == description
    written = [pydicom.dcmread(path).SeriesDescription for path in (tmp_path / "out" / "dicom").glob("*")]
    assert {*map(str, written)} == {f"{words[: 63 - len(name)]} {name}" for name in ("aligned", "motion", "maps")}


def test_phases_without_times_keep_their_order(tmp_path):
    """Their first slices were acquired in another order."""
    shared, images = exports.examination(Modality="CT"), []
    for k, volume in enumerate(volumes()):
        acquired = [exports.clock(2 * s + 0.1 * (3 * k % 4)) for s in range(volume.shape[2])]
        header = {"SeriesDescription": f"Gated {25 * k} %", "AcquisitionTime": acquired, "ContentTime": acquired}
        images += exports.classic(shared, volume, exports.AFFINE, exports.CT, **header)
    series = read_series(exports.save(images, tmp_path / "study"))
    write_dicom(series, np.stack([frame.data for frame in series.frames]), 0, tmp_path / "aligned")
    again = read_series(tmp_path / "aligned")
    exports.assert_aligned(again, volumes())
    assert again.times_s is None


def test_images_at_right_angles_do_not_claim_a_tilted_gantry(tmp_path):
    tilted = AFFINE.copy()
    tilted[:3, 2] += 0.5 * tilted[:3, 1]
    attributes = {"Modality": "CT", "sop_class": exports.CT, "GantryDetectorTilt": "15"}
    aligned(exports.save(exports.siemens(volumes(), tilted, **attributes), tmp_path / "in"), tmp_path / "out")
    assert all("GantryDetectorTilt" not in image for image in images(tmp_path / "out" / "dicom"))


@pytest.mark.parametrize("vendor", ["siemens", "enhanced"])
def test_images_are_a_new_series_of_the_same_study_that_names_its_sources(tmp_path, vendor):
    study = exports.save(getattr(exports, vendor)(volumes(), AFFINE), tmp_path / "in")
    series, _ = aligned(study, tmp_path / "out", home=1)
    sources = {
        image.SOPInstanceUID: image for path in study.rglob("*") if path.is_file() for image in [pydicom.dcmread(path)]
    }
    made = images(tmp_path / "out" / "dicom")
    first = next(iter(sources.values()))
    assert len(made) == 4 * SIZE[2] and len({image.SOPInstanceUID for image in made}) == len(made)
    assert len({image.SeriesInstanceUID for image in made}) == 1
    assert made[0].SeriesInstanceUID not in {image.SeriesInstanceUID for image in sources.values()}
    for number, image in enumerate(made):
        for name in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID", "StudyDate", "Modality"):
            assert image[name].value == first[name].value, name
        assert image.ImageType[:2] == ["DERIVED", "SECONDARY"]
        (reference,) = image.SourceImageSequence
        source = sources[reference.ReferencedSOPInstanceUID]
        assert reference.ReferencedSOPClassUID == source.SOPClassUID
        if vendor == "siemens":  # of the same timepoint, at the same place
            assert source.AcquisitionTime == image.AcquisitionTime
            np.testing.assert_allclose(source.ImagePositionPatient, image.ImagePositionPatient, atol=1e-3)
        else:
            group = source.PerFrameFunctionalGroupsSequence[reference.ReferencedFrameNumber - 1]
            assert group.FrameContentSequence[0].TemporalPositionIndex == number // SIZE[2] + 1
            position = group.PlanePositionSequence[0].ImagePositionPatient
            np.testing.assert_allclose(position, image.ImagePositionPatient, atol=1e-3)


@pytest.mark.parametrize("shown", ["MONOCHROME1", "MONOCHROME2"])
def test_images_are_shown_as_dark_or_bright_as_their_sources(tmp_path, shown):
    sources = exports.siemens(volumes(), AFFINE)
    for image in sources:
        image.PhotometricInterpretation = shown
    study = exports.save(sources, tmp_path / "in")
    aligned(study, tmp_path / "out")
    assert {image.PhotometricInterpretation for image in images(tmp_path / "out" / "dicom")} == {shown}


@pytest.mark.parametrize("largest", [20, 4000, 60000])
def test_gdcm_reads_the_same_voxels_at_the_same_places(tmp_path, largest):
    """Small values are stored with a slope below 1, those of 11 to 15 bits with none, larger ones with one above."""
    study = exports.save(exports.siemens(volumes(largest), AFFINE), tmp_path / "in")
    series, _ = aligned(study, tmp_path / "out")
    stored = np.moveaxis(nib.load(tmp_path / "out" / "warped.nii.gz").get_fdata(), -1, 0)
    assert all(("RescaleSlope" in image) == (largest != 4000) for image in images(tmp_path / "out" / "dicom"))
    for k in range(4):
        files = sorted(str(path) for path in (tmp_path / "out" / "dicom").glob(f"{k:02d}_*"))
        image = itk.imread(files, itk.F)
        affine = np.eye(4)
        affine[:3, :3] = np.asarray(image.GetDirection()) * np.array(image.GetSpacing())
        affine[:3, 3] = np.array(image.GetOrigin())
        np.testing.assert_allclose(exports.LPS @ affine, series.frames[0].affine, atol=1e-3)
        assert np.abs(itk.array_from_image(image).T - stored[k]).max() <= np.ptp(stored) / 2**12


UNITS = {"enhancement": "%", "jacobian_02": "1", "std_mm_01": "mm", "ktrans": "/min", "kinetic_r2_before": "1"}


def map_values(image):
    """Convert the pixels of a Parametric Map to real-world values, in the order of our voxels."""
    (mapping,) = image.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence
    return image.pixel_array.T * mapping.RealWorldValueSlope + mapping.RealWorldValueIntercept


def referenced(image):
    return [r for item in image.ReferencedSeriesSequence for r in item.ReferencedInstanceSequence]


@pytest.mark.parametrize("home", [0, 1])
def test_highdicom_reads_the_same_map_at_the_same_place(tmp_path, home):
    highdicom = pytest.importorskip("highdicom", exc_type=ImportError)  # it needs pydicom 3
    series = read_series(exports.save(exports.siemens(volumes(), AFFINE), tmp_path / "in"))
    values = np.random.default_rng(0).normal(-1, 3, SIZE)
    write_parametric_maps(series, {"ktrans": values}, home, tmp_path)
    volume = highdicom.imread(tmp_path / "ktrans.dcm").get_volume(apply_real_world_transform=True)
    affine = exports.LPS @ volume.affine  # axes: frame, row, column; the frames may run backwards
    ijk = np.linalg.inv(series.frames[home].affine) @ affine
    n = np.indices(volume.array.shape).reshape(3, -1)
    places = np.rint(ijk[:3, :3] @ n + ijk[:3, 3:]).astype(int)
    assert np.abs(ijk[:3, :3] @ n + ijk[:3, 3:] - places).max() < 1e-3
    assert np.abs(volume.array.ravel() - values[tuple(places)]).max() <= np.ptp(values) / 2**16


@pytest.mark.parametrize("vendor", ["siemens", "enhanced"])
def test_maps_are_parametric_maps_that_name_their_sources(tmp_path, vendor):
    series = read_series(exports.save(getattr(exports, vendor)(volumes(), AFFINE), tmp_path / "in"))
    values = {name: np.random.default_rng(k).normal(k, 1 + k, SIZE) for k, name in enumerate(UNITS)}
    write_parametric_maps(series, values, 1, tmp_path)
    uids = set()
    for name, unit in UNITS.items():
        made, volume = pydicom.dcmread(tmp_path / f"{name}.dcm"), values[name]
        assert np.abs(map_values(made) - volume).max() <= np.ptp(volume) / 2**16
        (mapping,) = made.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence
        assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == unit
        uids.add((made.StudyInstanceUID, made.SeriesInstanceUID, made.FrameOfReferenceUID))
        scans = [int(name[-2:])] if name[-2:].isdigit() else range(4)
        named = {r.ReferencedSOPInstanceUID for r in referenced(made)}
        assert named == {plane.file.uid for k in scans for plane in series.slices[k]}
        for s, group in enumerate(made.PerFrameFunctionalGroupsSequence):
            position = group.PlanePositionSequence[0].ImagePositionPatient
            np.testing.assert_allclose(position, (exports.LPS @ AFFINE @ [0, 0, s, 1])[:3], atol=1e-3)
            assert len(group.DerivationImageSequence[0].SourceImageSequence) == len(scans)
    study = pydicom.dcmread(series.frames[0].path)
    assert len(uids) == 1
    assert next(iter(uids))[::2] == (study.StudyInstanceUID, study.FrameOfReferenceUID)
    assert made.Modality == "MR" and made.SeriesInstanceUID != study.SeriesInstanceUID


def test_maps_of_a_registration_lie_beside_its_images_and_are_no_scans(tmp_path):
    study = exports.save(exports.siemens(volumes(), AFFINE), tmp_path / "in")
    series = read_series(study)
    std = [Frame(np.full(SIZE, 0.5 + k, np.float32), series.frames[0].affine, "std") for k in range(4)]
    products = Products("none", exports=Exports(dicom=True), kinetics=ToftsFit(), jacobian=True)
    product = [AffineTransform(torch.eye(4, dtype=torch.float64)) for _ in range(4)]
    result = write_registration(series, product, tmp_path / "out", std_mm=std, products=products)
    folder = tmp_path / "out" / "dicom"
    maps = {path.stem for path in folder.glob("*.dcm") if not path.stem[0].isdigit()} - {"motion"}
    per_scan = {f"{name}_{k:02d}" for name in ("jacobian", "std_mm") for k in range(4)}
    assert maps == {*KINETIC_MAPS, *per_scan}
    ktrans = map_values(pydicom.dcmread(folder / "ktrans.dcm"))
    written = nib.load(tmp_path / "out" / "ktrans.nii.gz").get_fdata()
    assert written.max() > 0 and np.abs(ktrans - written).max() <= np.ptp(written) / 2**16
    np.testing.assert_array_equal(result["kinetics"]["after"].ktrans_per_min, written.astype(np.float32))
    enhancement = map_values(pydicom.dcmread(folder / "enhancement.dcm"))
    first, peak = series.frames[0].data, np.max([frame.data for frame in series.frames[1:]], axis=0)
    bright = first > 0.1 * first.max()
    assert np.abs(enhancement - 100 * (peak / np.maximum(first, 1) - 1))[bright].max() < 1e-3 * enhancement.max()
    assert len(read_series(folder).frames) == 4  # the maps are left aside


def test_a_second_run_replaces_the_series_of_the_first_one_alone(tmp_path, monkeypatch):
    study = exports.save(exports.siemens(volumes(), AFFINE), tmp_path / "in")
    out = tmp_path / "out"
    (out / "dicom").mkdir(parents=True)
    (out / "dicom" / "mine.dcm").write_text("of the user", encoding="utf-8")
    with pytest.raises(InputError, match="dicom: expected a file or none, got a folder"):
        aligned(study, out)
    assert (out / "dicom" / "mine.dcm").exists()
    (out / "dicom" / "mine.dcm").unlink()
    (out / "dicom").rmdir()
    for exchange in (True, False):
        for _ in range(2):
            if not exchange:
                monkeypatch.setattr(replacement, "_exchanged", lambda *_: False)
            with atomic_folder(out, earlier_result(out)) as folder:
                _, result = aligned(study, folder)
                assert result["files"] == sorted(Products("none", exports=Exports(dicom=True)).names(std=False))
                write_json(folder / "report.json", {"files": result["files"]})
            made = images(out / "dicom")
            assert len(made) == 4 * SIZE[2] and len({image.SeriesInstanceUID for image in made}) == 1


def test_series_that_cannot_be_written_as_dicom_are_refused_before_any_work(tmp_path):
    frame = Frame(volumes()[0].astype(np.float32), AFFINE, "scan.nii.gz")
    with pytest.raises(InputError, match="--dicom: expected a series that was read from DICOM, got scan.nii.gz"):
        Products(exports=Exports(dicom=True)).check(Series((frame, frame)), 0)
    study = exports.save(exports.siemens(volumes(), AFFINE, Modality="OT"), tmp_path / "in")
    with pytest.raises(InputError, match="expected MR or CT"):
        Products(exports=Exports(dicom=True)).check(read_series(study), 0)


def by_dicom(item, points):
    """Map points ``(P, 3)`` in LPS mm by one item of a deformable registration, by the formula of PS3.3 C.20.3.1."""
    (before,), (after,) = item.PreDeformationMatrixRegistrationSequence, item.PostDeformationMatrixRegistrationSequence
    before, after = (np.reshape(m.FrameOfReferenceTransformationMatrix, (4, 4)).astype(float) for m in (before, after))
    (grid,) = item.DeformableRegistrationGridSequence
    shape = np.array(grid.GridDimensions)
    vectors = np.frombuffer(grid.VectorGridData, "<f4").reshape(*shape[::-1], 3).T
    rows, columns = np.reshape(grid.ImageOrientationPatient, (2, 3)).astype(float)
    axes = np.stack([rows, columns, np.cross(rows, columns)], axis=1) * grid.GridResolution
    places = points @ before[:3, :3].T + before[:3, 3]
    voxels = np.linalg.solve(axes, (places - np.array(grid.ImagePositionPatient, float)).T)
    mapped = places + np.stack([map_coordinates(v, voxels, order=1, mode="nearest") for v in vectors], axis=1)
    return mapped @ after[:3, :3].T + after[:3, 3]


@pytest.mark.parametrize("flip", [1, -1])
def test_the_motion_object_takes_points_where_the_transforms_do(tmp_path, flip):
    series = read_series(exports.save(exports.siemens(volumes(), AFFINE), tmp_path / "in"))
    volume = series.frames[0].grid
    affine = np.diag([5.0, 5.5, flip * 6.0, 1])
    affine[:3, 3] = volume.centre.numpy() - affine[:3, :3] @ [6, 5.5, 5]
    lattice = Grid((13, 12, 11), affine)
    fields = torch.randn(3, 3, *lattice.shape, generator=torch.Generator().manual_seed(0))
    turn = torch.tensor([[1.0, 0.1, 0, 2], [-0.1, 1, 0.05, -1], [0, 0, 0.9, 3], [0, 0, 0, 1]]).double()
    dense = [DenseTransform(u, u, lattice) for u in fields]
    chains = [(), (dense[0],), (dense[1], AffineTransform(turn)), (AffineTransform(turn), dense[2])]
    transforms = [ComposedTransform(*parts) for parts in chains]
    write_registration_object(series, transforms, 0, tmp_path / "motion.dcm")
    motion = pydicom.dcmread(tmp_path / "motion.dcm")
    assert motion.StudyInstanceUID == pydicom.dcmread(series.frames[0].path).StudyInstanceUID
    points = volume.points(every=3).reshape(-1, 3)
    for item, transform, planes in zip(motion.DeformableRegistrationSequence, transforms, series.slices):
        mapped = by_dicom(item, points.numpy() * (-1, -1, 1)) * (-1, -1, 1)
        np.testing.assert_allclose(mapped, transform(points).numpy(), atol=1e-4)
        assert {r.ReferencedSOPInstanceUID for r in item.ReferencedImageSequence} == {
            plane.file.uid for plane in planes
        }
