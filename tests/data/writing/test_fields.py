"""A field on the lattice from which it is interpolated is equivalent to the field on the scan's grid."""

import json

import itk
import nibabel as nib
import numpy as np
import pytest
import torch

from groupmorph_monai.data.preprocessing.resampling import working_grid
from groupmorph_monai.data.series import Frame, Series
from groupmorph_monai.data.writing.applying import apply_field, apply_field_to_points, combine_fields
from groupmorph_monai.data.writing.fields import compact_grid, resampling_grid, write_field
from groupmorph_monai.data.writing.nifti import nifti_image, save_nifti
from groupmorph_monai.data.writing.products import Products
from groupmorph_monai.data.writing.registration import write_registration
from groupmorph_monai.errors import InputError
from groupmorph_monai.space.field import DisplacementField
from groupmorph_monai.space.grid import Grid
from groupmorph_monai.space.lattice import Lattice
from groupmorph_monai.space.transforms import AffineTransform, ComposedTransform, DenseTransform
from groupmorph_monai.workflow.registration import timepoint_transforms

_TURN, _ = np.linalg.qr(np.array([[1.0, -0.4, 0.2], [0.5, 1.0, -0.3], [-0.1, 0.4, 1.0]]))
AXES = {
    "RAS": np.eye(3),
    "permuted": np.array([[0, 0, -1.0], [1, 0, 0], [0, -1, 0]]),
    "oblique": _TURN,
}
RIGID = np.array([[0.98, -0.199, 0, 4], [0.199, 0.98, 0, -3], [0, 0, 1, 2], [0, 0, 0, 1]])
SHEARED = np.array([[1.05, 0.04, 0, 4], [0, 0.97, 0.03, -3], [0.02, 0, 1, 2], [0, 0, 0, 1]])


def grid(axes="RAS", size=(21, 26, 14), spacing=(1.5, 1.2, 2.5)):
    affine = np.eye(4)
    affine[:3, :3] = AXES[axes] * spacing
    affine[:3, 3] = [7, -30, 110] - affine[:3, :3] @ ((np.array(size) - 1) / 2)
    return Grid(size, affine.astype(np.float32))


def registration(volumes, initial=RIGID, step=2, amplitude=1.5):
    """Make a series of noise and transforms that are linear between every ``step``-th voxel of its working grid."""
    rng = np.random.default_rng(0)
    series = Series(
        tuple(
            Frame(rng.normal(size=g.shape).astype(np.float32), g.affine.numpy(), f"{k}") for k, g in enumerate(volumes)
        )
    )
    work = working_grid(volumes, 1.7, reference=0)
    lattice = Lattice(work.shape, step)
    nodes = torch.from_numpy(rng.normal(size=(1, 4, 3, *lattice.shape))).float()
    both = DisplacementField(amplitude / step * nodes, lattice).at(1)
    ddf, inverse = both.timepoints(slice(0, 2)), both.timepoints(slice(2, 4))
    maps = torch.stack([torch.eye(4, dtype=torch.float64), torch.from_numpy(initial)])
    return series, work, (ddf, inverse, work.affine, maps)


def on_lattice(ddf, inverse_ddf, *rest, step):
    """Keep every ``step``-th voxel of fields."""
    nodes = (..., *[slice(None, None, step)] * 3)
    fields = (DisplacementField(u.values[nodes] / step, u.lattice.at(step)) for u in (ddf, inverse_ddf))
    return *fields, *rest


def stored(path):
    """Field in RAS mm, ``(3, *S)``, and its grid."""
    image = nib.load(path)
    return np.moveaxis(image.get_fdata()[:, :, :, 0] * (-1, -1, 1), -1, 0), Grid(image.shape[:3], image.affine)


@pytest.mark.parametrize("step", [2, 3, 4])
def test_transforms_on_the_lattice_are_those_on_the_working_grid(step):
    _, work, arguments = registration([grid(), grid()], SHEARED, step)
    points = work.corners()[:1] + torch.rand(500, 3, dtype=torch.float64) * (work.corners()[-1:] - work.corners()[:1])
    points = torch.cat([points, work.corners()])
    pairs = zip(
        timepoint_transforms(*on_lattice(*arguments, step=step)), timepoint_transforms(*arguments), arguments[-1]
    )
    for coarse, fine, initial in pairs:
        assert coarse.lattice.spacing_mm.tolist() == pytest.approx([step * 1.7] * 3)
        torch.testing.assert_close(coarse(points), fine(points), atol=2e-5, rtol=0)
        mapped = AffineTransform(initial)(points)
        torch.testing.assert_close(coarse.inverse(mapped), fine.inverse(mapped), atol=2e-5, rtol=0)


@pytest.mark.parametrize("home", AXES)
@pytest.mark.parametrize("other", AXES)
def test_compact_fields_cover_the_scans_and_are_exact_at_points_in_mm(tmp_path, home, other):
    volumes = [grid(home), grid(other, (24, 19, 17), (1.3, 1.4, 1.9))]
    series, _, arguments = registration(volumes)
    transforms = timepoint_transforms(*on_lattice(*arguments, step=2))
    write_registration(series, transforms, tmp_path)
    for k, transform in enumerate(transforms):
        for name, truth, volume in (("ddf", transform, volumes[0]), ("inverse_ddf", transform.inverse, volumes[k])):
            path = tmp_path / f"{name}_{k:02d}.nii.gz"
            field, place = stored(path)
            assert place.contains(volume.corners(0.5)).all()
            assert field[0].size < 8 * truth.displacement(volume)[0].numel()
            low, high = volume.corners().amin(0), volume.corners().amax(0)
            points = low + torch.rand(2000, 3, dtype=torch.float64) * (high - low)
            points = points[volume.contains(points)]
            error = apply_field_to_points(path, points.numpy()) - truth(points).numpy()
            inside = arguments_cover(truth, points)
            assert inside.mean() > 0.3 and np.abs(error[inside]).max() < 1e-4


def arguments_cover(transform, points):
    """Mark points inside the grid of the dense part, beyond which its field fades and is not linear."""
    lattice = transform.lattice
    voxels = lattice.voxels(points)
    return ((voxels >= 0) & (voxels <= torch.tensor(lattice.shape) - 1)).all(-1).numpy()


def test_a_sheared_initial_map_bends_the_lattice_and_costs_little(tmp_path):
    """The inverse field of a sheared map is not linear on an orthogonal lattice, which hardly matters for smooth
    fields."""
    volumes = [grid(), grid("oblique")]
    series, work, (ddf, inverse, affine, maps) = registration(volumes, SHEARED)
    i, j, k = np.meshgrid(*(np.linspace(0, 3, n) for n in work.shape), indexing="ij")
    smooth = torch.from_numpy(np.stack([np.sin(i + j), np.cos(j - k), np.sin(k + 2 * i)])).float()
    ddf = DisplacementField.on_voxels(2 * smooth.expand(1, 2, -1, -1, -1, -1))
    inverse = -ddf
    transforms = timepoint_transforms(*on_lattice(ddf, inverse, affine, maps, step=2))
    write_registration(series, transforms, tmp_path)
    points = volumes[1].points(every=3).reshape(-1, 3)
    truth = transforms[1].inverse(points).numpy()
    error = np.linalg.norm(apply_field_to_points(tmp_path / "inverse_ddf_01.nii.gz", points.numpy()) - truth, axis=-1)
    assert np.linalg.norm(truth - points.numpy(), axis=-1).mean() > 2
    assert np.quantile(error, 0.95) < 0.1


def test_an_image_is_moved_onto_the_scans_grid_by_a_compact_field_too(tmp_path):
    series, _, arguments = registration([grid("oblique"), grid()])
    transforms = timepoint_transforms(*on_lattice(*arguments, step=2))
    for fields in ("full", "compact"):
        write_registration(series, transforms, tmp_path / fields, products=Products(fields))
    for name, image, home in (("ddf_01", 1, 0), ("inverse_ddf_01", 0, 1)):
        full, compact = (
            apply_field(tmp_path / f / f"{name}.nii.gz", series.frames[image]) for f in ("full", "compact")
        )
        assert resampling_grid(tmp_path / "compact" / f"{name}.nii.gz").matches(series.frames[home].grid)
        np.testing.assert_allclose(compact.affine, full.affine, atol=1e-5)
        assert compact.data.shape == full.data.shape
        assert (np.abs(compact.data - full.data) > 1e-3).mean() < 0.05  # where the field fades beyond its grid


@pytest.fixture(scope="module")
def compact_field(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compact")
    series, _, arguments = registration([grid(), grid()])
    write_registration(series, timepoint_transforms(*on_lattice(*arguments, step=2)), folder)
    return nib.load(folder / "ddf_01.nii.gz")


@pytest.mark.parametrize("comment", [None, '{"grid": [1', '{"resampled": 1}'])
def test_a_coarse_field_that_lost_the_scans_grid_is_refused(tmp_path, compact_field, comment):
    assert "coarse lattice, got none" in error_of_grid(tmp_path, compact_field, comment)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [-21, 26, 14]},
        {"shape": [21, 26]},
        {"shape": [21.5, 26, 14]},
        {"shape": ["21", "26", "14"]},
        {"shape": 21},
        {"shape": [21, 26, 10**400]},
        {"shape": [21000, 26000, 14000]},
        {"affine": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]},
        {"affine": [[1, 0], [0]]},
        {"affine": [[0.0] * 4] * 4},
        {"affine": [[float("nan")] * 4] * 4},
        {"affine": [["1"] * 4] * 4},
        {"affine": None},
        None,
    ],
)
def test_a_damaged_grid_of_a_coarse_field_is_refused(tmp_path, compact_field, change):
    content = {"shape": [21, 26, 14], "affine": grid().affine.tolist(), **(change or {})}
    comment = json.dumps({"resampling_grid": content})
    message = error_of_grid(tmp_path, compact_field, comment if change else comment[:-3])
    assert "expected three numbers of voxels and an affine matrix (4, 4)" in message and "\n" not in message


def error_of_grid(folder, image, comment):
    image = nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header.copy())
    image.header.extensions.clear()
    if comment is not None:
        image.header.extensions.append(nib.nifti1.Nifti1Extension(6, comment.encode()))
    nib.save(image, folder / "f.nii.gz")
    with pytest.raises(InputError, match="f.nii.gz: ") as error:
        apply_field(folder / "f.nii.gz", Frame(np.ones((21, 26, 14), np.float32), grid().affine.numpy(), "scan"))
    return str(error.value)


def test_fields_are_left_out_on_request(tmp_path):
    series, _, arguments = registration([grid(), grid()])
    result = write_registration(
        series, timepoint_transforms(*on_lattice(*arguments, step=2)), tmp_path, products=Products("none")
    )
    assert result["files"] == ["coverage.nii.gz", "mean.nii.gz", "warped.nii.gz"]


def test_static_and_rigid_scans_are_written_on_the_lattice_of_the_others():
    identity, affine = ComposedTransform(), ComposedTransform(AffineTransform(torch.from_numpy(RIGID)))
    field = torch.ones(3, 4, 5, 6)
    dense = ComposedTransform(DenseTransform(field, field, grid(size=(4, 5, 6))))
    assert identity.lattice is None and affine.lattice is None
    chosen = compact_grid([identity.lattice, affine.lattice, dense.lattice], grid(size=(4, 5, 6)))
    assert chosen.spacing_mm.tolist() == pytest.approx([1.5, 1.2, 2.5])
    assert compact_grid([None, None], grid()).matches(grid())


def test_the_grid_of_a_compact_field_is_the_one_in_its_header(tmp_path):
    affine = np.eye(4)
    affine[:3] = np.column_stack([AXES["oblique"] / 3, [1000, -1000, 1000]])
    chosen = compact_grid([Grid((4, 5, 6), affine)], Grid((4, 5, 6), affine))
    write_field(np.zeros((3, *chosen.shape), np.float32), chosen, tmp_path / "f.nii.gz")
    assert torch.equal(resampling_grid(tmp_path / "f.nii.gz").affine, chosen.affine)


def test_displacements_are_rounded_far_below_a_voxel(tmp_path):
    mm, step = np.random.default_rng(0).normal(0, 10, (3, 4, 5, 6)).astype(np.float32), 2 * 2.0**-16
    write_field(mm, Grid((4, 5, 6), torch.diag(torch.tensor([3.0, 2.5, 4.0, 1.0]))), tmp_path / "f.nii.gz")
    written = nib.load(tmp_path / "f.nii.gz").get_fdata()[:, :, :, 0]
    np.testing.assert_allclose(written, np.moveaxis(mm, 0, -1) * [-1, -1, 1], atol=step / 2, rtol=0)
    np.testing.assert_array_equal(written % step, 0)


@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6, 7, 3), (5, 6, 7, 1, 3)])
@pytest.mark.parametrize("order", ["<", ">"])
def test_compressed_files_are_one_gzip_member_that_every_reader_takes(tmp_path, shape, order):
    data = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    header = nib.Nifti1Header(endianness=order)
    header["scl_slope"] = 3
    save_nifti(nifti_image(data, grid().affine.numpy(), header), tmp_path / "x.nii.gz")
    np.testing.assert_array_equal(nib.load(tmp_path / "x.nii.gz").get_fdata(dtype=np.float32), data)
    if len(shape) < 5:
        np.testing.assert_array_equal(itk.array_from_image(itk.imread(str(tmp_path / "x.nii.gz"))).T, data)
    assert (tmp_path / "x.nii.gz").read_bytes().count(b"\x1f\x8b\x08") == 1


def test_a_field_of_kilometres_is_refused(tmp_path):
    displacements = np.zeros((4, 5, 6, 1, 3), dtype=np.float32)
    displacements[1, 2, 3, 0, 1] = -1e30
    save_nifti(nib.Nifti1Image(displacements, np.eye(4)), tmp_path / "ddf_01.nii.gz")
    with pytest.raises(InputError, match="ddf_01.nii.gz: expected displacements below 10000 mm, got 1e"):
        apply_field_to_points(tmp_path / "ddf_01.nii.gz", np.zeros((1, 3)))


DAMAGES = {
    "complex": lambda field, affine: (field.astype(np.complex64), affine),
    "one slice": lambda field, affine: (field[:, :, :1], affine),
    "a grid of micrometres": lambda field, affine: (field, np.diag([1e-5, 1e-5, 1e-5, 1])),
    "a far grid": lambda field, affine: (field, affine + 1e30 * np.eye(4)[:, :1] @ np.eye(4)[3:]),
    "a flat grid": lambda field, affine: (field, np.diag([1.0, 1, 1e-30, 1])),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_file_that_is_no_field(tmp_path, kind):
    data, affine = DAMAGES[kind](np.zeros((8, 9, 7, 1, 3), np.float32), np.eye(4))
    nib.save(nib.Nifti1Image(data, affine), tmp_path / "ddf_00.nii.gz")
    with pytest.raises(InputError, match=r"ddf_00.nii.gz(: header)?: expected an? (field|volume|invertible)"):
        apply_field_to_points(tmp_path / "ddf_00.nii.gz", np.zeros((1, 3)))


def test_a_field_of_another_format(tmp_path):
    (tmp_path / "ddf_00.mha").write_text("ObjectType = Image", encoding="utf-8")
    with pytest.raises(InputError, match="ddf_00.mha: .*got a file of another format; use a ddf_KK"):
        apply_field_to_points(tmp_path / "ddf_00.mha", np.zeros((1, 3)))


def test_a_field_with_another_checksum(tmp_path):
    file = tmp_path / "ddf_00.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((8, 9, 7, 1, 3), np.float32), np.eye(4)), file)
    content = bytearray(file.read_bytes())
    content[-6] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(InputError, match="CRC"):
        apply_field_to_points(file, np.zeros((1, 3)))


def test_a_field_that_leads_out_of_the_image(tmp_path):
    field = np.full((8, 9, 7, 1, 3), 500, np.float32)
    nib.save(nib.Nifti1Image(field, np.eye(4)), tmp_path / "ddf_00.nii.gz")
    image = Frame(np.ones((8, 9, 7), np.float32), np.eye(4), "scan.nii.gz")
    with pytest.raises(InputError, match="leads into scan.nii.gz"):
        apply_field(tmp_path / "ddf_00.nii.gz", image)


def test_fields_of_two_patients_are_not_combined(tmp_path):
    for name, shift in (("inverse_ddf_00.nii.gz", 0), ("ddf_01.nii.gz", 900)):
        affine = np.eye(4)
        affine[0, 3] = shift
        nib.save(nib.Nifti1Image(np.zeros((8, 9, 7, 1, 3), np.float32), affine), tmp_path / name)
    with pytest.raises(InputError, match="fields of one registration"):
        combine_fields(tmp_path, 0, 1, tmp_path / "out" / "field.nii.gz")
