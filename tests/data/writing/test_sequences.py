"""ITK and pynrrd read the scans or transforms of a sequence for 3D Slicer with their times and geometry."""

import numpy as np
import pytest
import torch

from groupmorph_monai.data.writing.sequences import write_sequence, write_transform_sequence
from groupmorph_monai.space.grid import Grid
from groupmorph_monai.space.transforms import AffineTransform, ComposedTransform, DenseTransform

TURN, _ = np.linalg.qr(np.array([[1.0, -0.4, 0.2], [0.5, 1.0, -0.3], [-0.1, 0.4, 1.0]]))
AFFINE = np.eye(4)
AFFINE[:3, :3], AFFINE[:3, 3] = TURN * [1.5, 1.2, 2.5], [7, -30, 110]
VOLUMES = np.random.default_rng(0).normal(size=(3, 6, 5, 4)).astype(np.float32)
LPS = np.diag([-1.0, -1, 1, 1])


def test_itk_reads_the_timepoints_as_components_at_their_place(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    write_sequence(VOLUMES, Grid((6, 5, 4), AFFINE), tmp_path / "warped.seq.nrrd", (0.0, 61.5, 123.25))
    image = sitk.ReadImage(str(tmp_path / "warped.seq.nrrd"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).T, VOLUMES)
    place = np.eye(4)
    place[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    place[:3, 3] = image.GetOrigin()
    np.testing.assert_allclose(LPS @ place, AFFINE, atol=1e-9)
    assert image.GetMetaData("axis 0 index type") == "numeric"
    assert [float(t) for t in image.GetMetaData("axis 0 index values").split()] == [0, 61.5, 123.25]


def test_the_header_is_that_of_a_volume_sequence(tmp_path):
    nrrd = pytest.importorskip("nrrd")
    write_sequence(VOLUMES, Grid((6, 5, 4), AFFINE), tmp_path / "warped.seq.nrrd")
    data, header = nrrd.read(str(tmp_path / "warped.seq.nrrd"))
    np.testing.assert_array_equal(data, VOLUMES)
    assert header["kinds"] == ["list", "domain", "domain", "domain"] and header["labels"][0] == "frame"
    assert header["axis 0 index values"] == "0 1 2"
    np.testing.assert_allclose(header["space directions"][1:].T, (LPS @ AFFINE)[:3, :3], atol=1e-9)
    np.testing.assert_allclose(header["space origin"], (LPS @ AFFINE)[:3, 3], atol=1e-9)


def field_transforms(grid):
    """Make the identity, a dense transform, and one followed by a shift."""
    shift = torch.eye(4, dtype=torch.float64)
    shift[:3, 3] = torch.tensor([3.0, -2.0, 5.0])
    field = DenseTransform(torch.randn(3, 6, 5, 4, generator=torch.Generator().manual_seed(0)), None, grid)
    return [AffineTransform(torch.eye(4)), field, ComposedTransform(field, AffineTransform(shift))]


def test_itk_moves_points_by_a_sequence_of_transforms_as_they_do(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    grid = Grid((6, 5, 4), AFFINE)
    transforms = field_transforms(grid)
    write_transform_sequence(transforms, grid, tmp_path / "transforms.seq.nrrd", (0.0, 61.5, 123.25))
    sequence = sitk.ReadImage(str(tmp_path / "transforms.seq.nrrd"), sitk.sitkVectorFloat64)
    points = grid.points().reshape(-1, 3)[[0, 17, 63]] + 0.3 * torch.from_numpy(AFFINE[:3, 0])
    for k, transform in enumerate(transforms):
        theirs = sitk.DisplacementFieldTransform(sequence[:, :, :, k])
        for point, mapped in zip(points, transform(points)):
            lps = theirs.TransformPoint((LPS[:3, :3] @ point.numpy()).tolist())
            np.testing.assert_allclose(LPS[:3, :3] @ lps, mapped, atol=1e-5)


def test_the_header_of_a_sequence_of_transforms_is_the_one_that_slicer_documents(tmp_path):
    nrrd = pytest.importorskip("nrrd")
    grid = Grid((6, 5, 4), AFFINE)
    write_transform_sequence([AffineTransform(torch.eye(4))] * 2, grid, tmp_path / "transforms.seq.nrrd", (0.0, 61.5))
    data, header = nrrd.read(str(tmp_path / "transforms.seq.nrrd"))
    assert data.shape == (3, 6, 5, 4, 2) and header["space"] == "left-posterior-superior"
    assert header["kinds"] == ["vector", "domain", "domain", "domain", "list"]
    assert header["labels"][4] == "time" and header["units"][4] == "s"
    np.testing.assert_array_equal(header["measurement frame"], np.eye(3))
    np.testing.assert_allclose(header["space directions"][1:4].T, (LPS @ AFFINE)[:3, :3], atol=1e-9)
    assert header["axis 3 index type"] == "numeric" and header["axis 3 index values"] == "0 61.5"
    assert header["intent_code"] == "1006" and header["displacement field type"] == "resampling"


@pytest.fixture
def open_in_slicer():
    """Return a function that reads a sequence as 3D Slicer does when the file is dropped onto it."""
    slicer = pytest.importorskip("slicer", reason="pip install slicer-core")
    scene = slicer.vtkMRMLScene()

    def read(path, kind):
        sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode")
        storage = scene.AddNewNodeByClass(f"vtkMRML{kind}SequenceStorageNode")
        storage.SetFileName(str(path))
        assert storage.ReadData(sequence)
        assert [sequence.GetIndexName(), sequence.GetIndexUnit()] == ["time", "s"]
        times = [float(sequence.GetNthIndexValue(k)) for k in range(sequence.GetNumberOfDataNodes())]
        assert times == [0, 61.5, 123.25]
        return [sequence.GetNthDataNode(k) for k in range(3)]

    yield read
    scene.Clear(True)


def test_slicer_opens_the_volumes_at_their_times_and_place(open_in_slicer, tmp_path):
    from slicer import util

    write_sequence(VOLUMES, Grid((6, 5, 4), AFFINE), tmp_path / "warped.seq.nrrd", (0.0, 61.5, 123.25))
    for node, volume in zip(open_in_slicer(tmp_path / "warped.seq.nrrd", "Volume"), VOLUMES, strict=True):
        affine = util.vtkMatrixFromArray(np.eye(4))
        node.GetIJKToRASMatrix(affine)
        np.testing.assert_array_equal(util.arrayFromVolume(node).T, volume)
        np.testing.assert_allclose(util.arrayFromVTKMatrix(affine), AFFINE, atol=1e-9)


def test_slicer_moves_points_by_a_sequence_of_transforms_as_they_do(open_in_slicer, tmp_path):
    grid = Grid((6, 5, 4), AFFINE)
    write_transform_sequence(field_transforms(grid), grid, tmp_path / "transforms.seq.nrrd", (0.0, 61.5, 123.25))
    nodes = open_in_slicer(tmp_path / "transforms.seq.nrrd", "Transform")
    from vtk import vtkGeneralTransform

    points = grid.points().reshape(-1, 3)[[0, 17, 63]] + 0.3 * torch.from_numpy(AFFINE[:3, 0])
    for node, transform in zip(nodes, field_transforms(grid), strict=True):
        theirs = vtkGeneralTransform()
        node.GetTransformFromWorld(theirs)  # images of the common space take their values from there
        mapped = [theirs.TransformPoint(point) for point in points.numpy()]
        np.testing.assert_allclose(mapped, transform(points), atol=1e-4)
