"""Composite transforms and combined fields, read by SimpleITK, ITK and ANTs, map points in mm correctly."""

import os
import resource

import itk
import nibabel
import numpy as np
import pytest
import torch
from faults import in_a_child

from groupmorph_monai.apps.command_line import main
from groupmorph_monai.data.series import Frame, Series
from groupmorph_monai.data.writing.applying import apply_field_to_points, combine_fields
from groupmorph_monai.data.writing.fields import read_field
from groupmorph_monai.data.writing.itk_transforms import write_itk_transform
from groupmorph_monai.data.writing.products import Exports, Products
from groupmorph_monai.data.writing.registration import write_registration
from groupmorph_monai.errors import InputError
from groupmorph_monai.space.grid import Grid
from groupmorph_monai.space.transforms import AffineTransform, ComposedTransform, DenseTransform

LPS = np.diag([-1.0, -1, 1])
TURN, _ = np.linalg.qr(np.array([[1.0, -0.4, 0.2], [0.5, 1.0, -0.3], [-0.1, 0.4, 1.0]]))
AXES = {"RAS": np.eye(3), "permuted": np.array([[0, 0, -1.0], [1, 0, 0], [0, -1, 0]]), "oblique": TURN}
SHEARED = np.array([[1.05, 0.04, 0, 4], [0, 0.97, 0.03, -3], [0.02, 0, 1, 2], [0, 0, 0, 1]])
CENTRE = np.array([7, -30, 110.0])


def grid(axes, size=(20, 17, 12), spacing=(1.5, 1.2, 2.5)):
    affine = np.eye(4)
    affine[:3, :3] = AXES[axes] * spacing
    affine[:3, 3] = CENTRE - affine[:3, :3] @ ((np.array(size) - 1) / 2)
    return Grid(size, affine.astype(np.float32))


def scan_transforms(lattice):
    """Make two transforms whose dense parts are noise on a lattice that covers all tested points, and their
    inverses."""
    rng = np.random.default_rng(0)
    fields = torch.from_numpy(rng.normal(0, 0.3, (4, 3, *lattice.shape))).float()
    maps = [np.eye(4), SHEARED]
    return [
        ComposedTransform(DenseTransform(u, w, lattice), AffineTransform(torch.from_numpy(m)))
        for u, w, m in zip(fields[:2], fields[2:], maps)
    ]


def near_the_centre(number=60):
    return CENTRE + np.random.default_rng(1).uniform(-6, 6, (number, 3))


def by_simple_itk(path, points):
    sitk = pytest.importorskip("SimpleITK")
    transform = sitk.ReadTransform(str(path))
    return np.array([transform.TransformPoint((LPS @ p).tolist()) for p in points]) @ LPS


def by_itk(path, points):
    transform = itk.transformread(str(path))[0]
    return np.array([np.array(transform.TransformPoint((LPS @ p).tolist())) for p in points]) @ LPS


def by_ants(path, points):
    ants = pytest.importorskip("ants", reason="run by make others")
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(points @ LPS, columns=["x", "y", "z"])
    return ants.apply_transforms_to_points(3, table, [str(path)]).to_numpy()[:, :3] @ LPS


@pytest.mark.parametrize("reader", [by_simple_itk, by_itk, by_ants])
@pytest.mark.parametrize("axes", AXES)
def test_every_program_reads_the_map_and_its_inverse(tmp_path, reader, axes):
    transform = scan_transforms(grid(axes, (14, 13, 12), (4.0, 3.5, 5.0)))[1]
    for name, way in (("there", transform), ("back", transform.inverse)):
        write_itk_transform(way, grid("oblique"), tmp_path / f"{name}.h5")
        points = near_the_centre()
        mapped = reader(tmp_path / f"{name}.h5", points)
        np.testing.assert_allclose(mapped, way(torch.from_numpy(points)).numpy(), atol=1e-4)
        assert np.abs(mapped - points).max() > 2


def test_a_field_after_an_affine_map_covers_the_mapped_volume(tmp_path):
    volume, far = grid("oblique"), np.eye(4)
    far[:3, 3] = [40, -40, 40]
    field = DenseTransform(torch.ones(3, *volume.shape), None, volume, fade=np.inf)
    transform = ComposedTransform(AffineTransform(torch.from_numpy(far)), field)
    write_itk_transform(transform, volume, tmp_path / "t.h5")
    corners = volume.corners()
    np.testing.assert_allclose(by_simple_itk(tmp_path / "t.h5", corners.numpy()), transform(corners).numpy(), atol=1e-4)


def test_the_identity_is_a_transform_too(tmp_path):
    write_itk_transform(ComposedTransform(), grid("RAS"), tmp_path / "still.h5")
    np.testing.assert_allclose(by_simple_itk(tmp_path / "still.h5", near_the_centre()), near_the_centre(), atol=1e-9)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """Write a registration of two scans on different grids, and return its folder and transforms."""
    folder, grids = tmp_path_factory.mktemp("result"), [grid("permuted"), grid("oblique", (18, 16, 15))]
    rng = np.random.default_rng(0)
    frames = [Frame(rng.normal(size=g.shape).astype(np.float32), g.affine.numpy(), "x") for g in grids]
    transforms = scan_transforms(grid("permuted", (14, 13, 12), (4.0, 3.5, 5.0)))
    products = Products("full", exports=Exports(itk_transforms=True))
    write_registration(Series(tuple(frames)), transforms, folder, products=products)
    return folder, transforms


def test_nitransforms_reads_the_fields(result):
    nonlinear = pytest.importorskip("nitransforms.nonlinear")
    folder, transforms = result
    for k, transform in enumerate(transforms):
        for name, way in ((f"ddf_{k:02d}.nii.gz", transform), (f"inverse_ddf_{k:02d}.nii.gz", transform.inverse)):
            field = nibabel.load(folder / name)
            indices = np.random.default_rng(k).integers(1, np.array(field.shape[:3]) - 1, (60, 3))
            nodes = nibabel.affines.apply_affine(field.affine, indices)  # between which it interpolates by splines
            mapped = nonlinear.DenseFieldTransform.from_filename(folder / name, fmt="itk").map(nodes)
            np.testing.assert_allclose(mapped, way(torch.from_numpy(nodes)).numpy(), atol=1e-4)


def test_transforms_beside_the_fields_move_points_as_they_do(result):
    folder, transforms = result
    points = near_the_centre()
    for k, transform in enumerate(transforms):
        for name, way in ((f"transform_{k:02d}.h5", transform), (f"inverse_transform_{k:02d}.h5", transform.inverse)):
            mapped = by_simple_itk(folder / name, points)
            np.testing.assert_allclose(mapped, way(torch.from_numpy(points)).numpy(), atol=1e-4)


@pytest.mark.parametrize("ending", [".nii.gz", ".h5"])
def test_the_map_from_scan_to_scan_is_one_field_after_the_other(result, tmp_path, ending):
    folder, _ = result
    path = tmp_path / f"to{ending}"
    assert main(["combine", str(folder), "--from", "1", "--to", "0", "--output", str(path), "--quiet"]) == 0
    image = grid("oblique", (18, 16, 15))
    points = image.points(every=5).reshape(-1, 3).numpy()
    common = apply_field_to_points(folder / "inverse_ddf_01.nii.gz", points)
    truth = apply_field_to_points(folder / "ddf_00.nii.gz", common)
    inside = grid("permuted").contains(torch.from_numpy(common)).numpy()  # ITK has no displacement elsewhere
    mapped = (by_simple_itk if ending == ".h5" else apply_field_to_points)(path, points)
    assert inside.sum() > 10 and np.abs(truth - points).max() > 2
    np.testing.assert_allclose(mapped[inside], truth[inside], atol=1e-4)


def test_the_map_is_right_where_a_scan_reaches_beyond_the_other(tmp_path, caplog):
    home, larger, shift = grid("oblique"), grid("oblique", (28, 25, 20)), torch.eye(4)
    shift[:3, 3] = torch.tensor([20.0, 0, 0])
    rng = np.random.default_rng(2)
    noise = torch.from_numpy(rng.normal(0, 0.5, (2, 3, *home.shape))).float()
    first = ComposedTransform(DenseTransform(*noise, home), AffineTransform(shift))
    frames = [Frame(np.ones(g.shape, np.float32), g.affine.numpy(), "x") for g in (larger, home)]
    second = ComposedTransform(DenseTransform(*noise.flip(0), home), AffineTransform(torch.eye(4)))
    write_registration(Series(tuple(frames)), [second, first], tmp_path, home=1, products=Products("full"))
    combine_fields(tmp_path, 0, 1, tmp_path / "out" / "map.h5")
    assert "of scan 0 lie outside of the common space" in caplog.text
    points = larger.points(every=3).reshape(-1, 3)
    composed = ComposedTransform(read_field(tmp_path / "inverse_ddf_00.nii.gz"), read_field(tmp_path / "ddf_01.nii.gz"))
    assert not home.contains(composed.transforms[0](points)).all()
    np.testing.assert_allclose(by_simple_itk(tmp_path / "out" / "map.h5", points.numpy()), composed(points), atol=0.01)


def test_a_map_between_scans_that_are_not_there_is_refused(result, tmp_path):
    folder, _ = result
    for origin, target, words in (
        (7, 0, "^--from: expected a scan from 0 to 1, got 7$"),
        (0, 2, "^--to: expected a scan from 0 to 1, got 2$"),
    ):
        with pytest.raises(InputError, match=words):
            combine_fields(folder, origin, target, tmp_path / "x.nii.gz")
    with pytest.raises(InputError, match="inverse_ddf_01.nii.gz: expected the fields of a registration"):
        combine_fields(tmp_path, 1, 0, tmp_path / "x.nii.gz")
    with pytest.raises(InputError, match="expected the folder of a registration, got the file .*ddf_00.nii.gz"):
        combine_fields(folder / "ddf_00.nii.gz", 1, 0, tmp_path / "x.nii.gz")
    for name, words in (
        ("x.mat", "--output: expected a name that ends in"),
        ("x.H5", "--output: expected a name that ends in"),
        (f"{'x' * 249}.nii.gz", "expected a name of at most 255 bytes, got 256"),
        (os.fsdecode(b"\xff.h5"), "expected names in UTF-8"),
    ):
        with pytest.raises(InputError, match=words):
            combine_fields(folder, 1, 0, tmp_path / name)
    (tmp_path / "report.json").write_text('{"files": ["ddf_01.nii.gz"]}', encoding="utf-8")
    with pytest.raises(InputError, match="got .*ddf_01.nii.gz, a file of the registration in this folder"):
        combine_fields(folder, 1, 0, tmp_path / "ddf_01.nii.gz")


def test_a_scan_below_0_is_answered_with_those_that_there_are(result, tmp_path, capsys):
    arguments = ["combine", str(result[0]), "--from", "-1", "--to", "0", "--output", str(tmp_path / "x.nii.gz")]
    assert main(arguments) == 2
    assert "--from: expected a scan from 0 to 1, got -1" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ddf_00.nii.gz", "ddf_01.nii.gz", "c.nii.gz", "c.h5"])
def test_a_map_is_not_written_into_the_registration_that_it_reads(result, tmp_path, monkeypatch, capsys, name):
    folder, _ = result
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(folder)
    for source, output in ((folder, folder / name), (folder, tmp_path / "link" / name), (".", name)):
        arguments = ["combine", str(source), "--from", "1", "--to", "0", "--output", str(output)]
        assert main(arguments) == 2
        assert "expected an output folder that holds no input" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == contents


def test_a_map_is_written_to_the_current_directory(result, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["combine", str(result[0]), "--from", "1", "--to", "0", "--output", "scan1_to_scan0.nii.gz"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["scan1_to_scan0.nii.gz"]


@pytest.mark.parametrize("ending", [".nii.gz", ".h5"])
def test_a_map_beyond_the_limit_on_file_sizes_is_reported_in_one_line(result, tmp_path, capfd, ending):
    def combine():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        path = tmp_path / f"map{ending}"
        os._exit(main(["combine", str(result[0]), "--from", "1", "--to", "0", "--output", str(path), "--quiet"]))

    assert in_a_child(combine) == 2
    message = "could not write the results (File too large); raise 'ulimit -f'"
    assert capfd.readouterr().err == f"groupmorph: {tmp_path}: {message}\n"
    assert list(tmp_path.iterdir()) == []


def test_the_space_of_a_transform_is_checked_before_it_is_written(tmp_path, monkeypatch):
    checked = []
    monkeypatch.setattr(os, "posix_fallocate", lambda descriptor, offset, size: checked.append(size))
    noise = torch.randn(2, 3, 9, 9, 9)
    for transform in (
        ComposedTransform(),
        *scan_transforms(grid("RAS")),
        DenseTransform(*noise, grid("RAS", (9, 9, 9))),
    ):
        write_itk_transform(transform, grid("RAS"), tmp_path / "t.h5")
        assert (tmp_path / "t.h5").stat().st_size <= checked[-1]
