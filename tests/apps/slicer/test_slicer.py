"""The module for 3D Slicer: its library alone, and its logic on a scene of Slicer itself, which slicer-core provides
without Slicer's windows."""

import importlib
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from groupmorph_monai import apps
from groupmorph_monai.apps.arguments import make_parser
from groupmorph_monai.data.reading.readers import read_image, read_series

sys.path.append(str(Path(apps.__file__).parent / "slicer"))
from groupmorph_lib import Run, Settings, fields_of, register_command, split_volumes, write_times  # noqa: E402

OBLIQUE = nibabel.affines.from_matvec(
    np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]]) @ np.diag([1.0, 1.5, 2.0]), [5, -7, 11]
)


def test_the_command_takes_what_the_widgets_hold():
    settings = Settings("/my place/groupmorph", 1, "best", "rigid", "m.nrrd", ["data/lung_ct", "priors/temporal"])
    program, *words = register_command(
        Settings(**{**vars(settings), "program": "'/my place/groupmorph'"}), ["a", "b"], "o"
    )
    args = make_parser().parse_args(words)
    assert program == settings.program and args.files == ["a", "b"] and args.output == "o"
    assert (int(args.reference), args.effort, args.initial, args.mask) == (1, "best", "rigid", ["m.nrrd"])
    assert args.overlay == settings.overlays
    args = make_parser().parse_args(register_command(Settings(effort="none"), ["a", "b"], "o")[1:])
    assert args.no_refine and args.reference == "mean" and args.mask is None


@pytest.mark.parametrize("name", ["my place/groupmorph", "it's/groupmorph", "a\\groupmorph"])
def test_the_path_of_a_program_is_one_word(name, tmp_path):
    program = tmp_path / name
    program.parent.mkdir(exist_ok=True)
    program.touch()
    assert register_command(Settings(str(program)), ["a", "b"], "o")[0] == str(program)


@pytest.mark.parametrize("program", ["", " ", "'groupmorph"])
def test_no_program_is_said(program):
    with pytest.raises(ValueError, match="groupmorph program: expected the path of the program, got"):
        register_command(Settings(program), ["a", "b"], "o")


@pytest.mark.parametrize(("unit", "times"), [("s", (0, 90, 150)), ("ms", (0, 0.09, 0.15)), ("", None), ("mm", None)])
def test_the_registration_reads_the_times_of_a_sequence(series, tmp_path, unit, times):
    files = []
    for k, file in enumerate(series[:3]):
        files.append(str(tmp_path / f"t{k:03d}.nrrd"))
        sitk.WriteImage(sitk.ReadImage(file), files[-1])
    write_times(files, ["0", "1", "2"], unit)
    assert read_series(files).times_s is None
    write_times(files, ["10", "100", "160"], unit)
    assert read_series(files).times_s == times


KINDS = ("aligned", "transforms")


def python(code):
    return [sys.executable, "-c", f"import sys, time\nsay = lambda *x: print(*x, file=sys.stderr, flush=True)\n{code}"]


def test_a_run_tells_how_far_it_is():
    stages = ["12:00:00 INFO groupmorph_monai.data.reading.readers: Read 3 timepoints: a, b, c"]
    resolutions = ("1/16 of the resolution", "full resolution")
    stages += [f"12:00:01 INFO x: Refined the motion at {resolution}." for resolution in resolutions]
    run = Run(python("".join(f"say({stage!r})\n" for stage in stages)))
    run.wait(60)
    assert run.progress == 0.85 and "full resolution" in run.message and run.succeeded and run.error is None


def test_a_run_that_fails_says_why_in_the_commands_line():
    run = Run(python("say('a warning')\nsay('groupmorph: reference: expected 0 to 2, got 9')\nsys.exit(2)"))
    run.wait(60)
    assert run.error == "groupmorph: reference: expected 0 to 2, got 9" and not run.succeeded


def test_a_cancelled_run_ends_and_is_no_failure():
    run = Run(python("say('Read 3 timepoints')\ntime.sleep(600)"))
    until = time.monotonic() + 60
    while not run.progress and time.monotonic() < until:
        time.sleep(0.02)
    assert run.running
    run.cancel()
    run.wait(60)
    assert not run.running and run.error is None and not run.succeeded


def test_the_volumes_of_the_aligned_series_lie_where_it_does(tmp_path):
    values = np.random.default_rng(0).random((5, 4, 3, 2), np.float32)
    nibabel.save(nibabel.Nifti1Image(values, OBLIQUE), tmp_path / "warped.nii.gz")
    files = split_volumes(str(tmp_path / "warped.nii.gz"), str(tmp_path))
    assert len(files) == 2
    for k, file in enumerate(files):
        volume = read_image(file)
        np.testing.assert_array_equal(volume.data, values[..., k])
        np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-5)


def test_fields_of_more_than_a_hundred_volumes_keep_their_order(tmp_path):
    names = [str(tmp_path / f"ddf_{k:02d}.nii.gz") for k in range(112)]
    for name in names:
        Path(name).touch()
    assert fields_of(str(tmp_path)) == names


@pytest.fixture
def module(monkeypatch):
    """The module over an empty scene of Slicer, without its windows; its registrations run in this environment."""
    slicer = pytest.importorskip("slicer", reason="pip install slicer-core")
    scene, logics = slicer.vtkMRMLScene(), {}
    for name in ("Sequences", "SegmentationsModule", "Volumes"):
        logics[name] = getattr(slicer, f"vtkSlicer{name}Logic")()
        logics[name].SetMRMLScene(scene)
    modules = MagicMock()
    modules.segmentations.logic.return_value = logics["SegmentationsModule"]
    fakes = {"mrmlScene": scene, "modules": modules, "app": MagicMock(), "qMRMLNodeComboBox": MagicMock()}
    for name, fake in fakes.items():
        monkeypatch.setattr(slicer, name, fake, raising=False)
    slicer.app.layoutManager.return_value = None
    # What Slicer's functions do with a file, as their own need its application.
    load = {"Volume": lambda file: logics["Volumes"].AddArchetypeVolume(file, "volume")}
    load["Transform"] = lambda file: slicer.vtkSlicerTransformLogic().AddTransform(file, scene)
    for kind, function in load.items():
        monkeypatch.setattr(slicer.util, f"load{kind}", function)
    monkeypatch.setattr(slicer.util, "startupEnvironment", lambda: None)
    monkeypatch.setattr(slicer.util, "errorDisplay", MagicMock())
    base = ModuleType("slicer.ScriptedLoadableModule")
    for name in ("", "Logic", "Widget"):
        setattr(
            base, f"ScriptedLoadableModule{name}", type("Base", (), {"setup": lambda self: None, "layout": MagicMock()})
        )
    for name, fake in {base.__name__: base, "qt": MagicMock(), "ctk": MagicMock()}.items():
        monkeypatch.setitem(sys.modules, name, fake)
    monkeypatch.delitem(sys.modules, "GroupMorph", raising=False)
    yield SimpleNamespace(groupmorph=importlib.import_module("GroupMorph"), slicer=slicer, scene=scene, logics=logics)
    scene.Clear(True)


def sequence_of(module, files, values):
    """Make a sequence of the volumes in files, and show its first one."""
    sequence = module.scene.AddNewNodeByClass("vtkMRMLSequenceNode", "dce")
    sequence.SetIndexUnit("s")
    for file, value in zip(files, values):
        node = module.slicer.util.loadVolume(str(file))
        sequence.SetDataNodeAtValue(node, value)
        module.scene.RemoveNode(node)
    browser = module.scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    assert (
        browser.GetProxyNode(sequence).GetID() == sequence.GetNthDataNode(0).GetID()
    )  # IDs are unique in a scene only
    return sequence


def vtk():
    return pytest.importorskip("vtk")


def voxels_and_affine(module, volume):
    """Read a volume of a scene: ``(i, j, k)``, and from voxels to RAS mm."""
    matrix = vtk().vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    return module.slicer.util.arrayFromVolume(volume).T, module.slicer.util.arrayFromVTKMatrix(matrix)


def test_every_volume_of_a_sequence_is_written_as_it_is(module, series, tmp_path):
    sequence = sequence_of(module, series[:3], ["0", "60", "125"])
    files = module.groupmorph.GroupMorphLogic().export(sequence, str(tmp_path))
    assert [Path(file).parent for file in files] == [tmp_path] * 3
    for file, original in zip(map(read_image, files), map(read_image, series)):
        np.testing.assert_allclose(file.data, original.data, rtol=1e-6)
        np.testing.assert_allclose(file.affine, original.affine, atol=1e-4)
    assert read_series(files).times_s == (0, 60, 125)


def test_index_values_that_are_no_times_are_not_written(module, series, tmp_path):
    sequence = sequence_of(module, series[:2], ["0", "60"])
    sequence.SetIndexType(sequence.TextIndex)
    files = module.groupmorph.GroupMorphLogic().export(sequence, str(tmp_path))
    assert len(files) == 2 and not list(tmp_path.glob("*.json"))


def test_a_sequence_of_something_else_is_refused(module, tmp_path):
    sequence = module.scene.AddNewNodeByClass("vtkMRMLSequenceNode", "dce")
    sequence.SetDataNodeAtValue(module.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "shift"), "0")
    with pytest.raises(RuntimeError, match="shift: expected a volume that can be written"):
        module.groupmorph.GroupMorphLogic().export(sequence, str(tmp_path))


@pytest.mark.parametrize("kind", ["label map", "segmentation"])
def test_a_mask_is_written_on_the_grid_of_the_volume(module, series, tmp_path, kind):
    sequence = sequence_of(module, series[:2], ["0", "60"])
    expected = np.zeros(read_image(series[0]).data.shape, np.uint8)
    expected[2:5, 3:9, 4:8] = 1
    mask = module.scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "lesion")
    mask.CopyContent(sequence.GetNthDataNode(0))
    module.slicer.util.updateVolumeFromArray(mask, expected.T)
    if kind == "segmentation":
        labels, mask = mask, module.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "lesion")
        mask.CreateDefaultDisplayNodes()
        module.logics["SegmentationsModule"].ImportLabelmapToSegmentationNode(labels, mask)
        module.scene.RemoveNode(labels)
    nodes = module.scene.GetNumberOfNodes()
    file = module.groupmorph.GroupMorphLogic().export_mask(mask, sequence.GetNthDataNode(0), str(tmp_path))
    np.testing.assert_array_equal(read_image(file).data, expected)
    np.testing.assert_allclose(read_image(file).affine, read_image(series[0]).affine, atol=1e-4)
    assert module.scene.GetNumberOfNodes() == nodes


def test_no_sequence_is_said(module):
    widget = module.groupmorph.GroupMorphWidget()
    widget.setup()
    widget.sequence.currentNode = lambda: None
    with pytest.raises(ValueError, match="Sequence: expected a sequence of volumes, got none"):
        widget.register()


@pytest.mark.slow
def test_a_sequence_comes_back_aligned_with_its_transforms_and_report(module, series, tmp_path):
    sequence = sequence_of(module, series[:3], ["0", "60", "125"])
    view = module.scene.AddNewNodeByClass("vtkMRMLSliceCompositeNode")
    widget = module.groupmorph.GroupMorphWidget()
    widget.setup()
    widget.sequence.currentNode = lambda: sequence
    widget.mask = SimpleNamespace(currentNode=lambda: None)
    widget.reference, widget.overlays = SimpleNamespace(value=1), SimpleNamespace(text="")
    widget.effort, widget.initial = SimpleNamespace(currentText="none"), SimpleNamespace(currentText="none")
    widget.output = SimpleNamespace(currentPath=str(tmp_path / "out"))
    widget.program = SimpleNamespace(currentPath=f"{sys.executable} -m groupmorph_monai.apps")
    widget.register()
    widget.run.wait(500)
    widget.follow()
    assert module.slicer.util.errorDisplay.call_args is None
    aligned, transforms = (module.scene.GetFirstNode(f"dce {kind}", "vtkMRMLSequenceNode") for kind in KINDS)
    for node in (aligned, transforms):
        assert [node.GetNthIndexValue(k) for k in range(3)] == ["0", "60", "125"] and node.GetIndexUnit() == "s"
    reference, warped = read_image(series[1]), nibabel.load(tmp_path / "out" / "warped.nii.gz").get_fdata()
    for k in range(3):
        voxels, affine = voxels_and_affine(module, aligned.GetNthDataNode(k))
        np.testing.assert_allclose(voxels, warped[..., k], rtol=1e-5, atol=1e-3)
        np.testing.assert_allclose(affine, reference.affine, atol=1e-4)
    for k in range(3):
        # From the scene, where the aligned images are, to the scan; between its nodes Slicer interpolates by cubics.
        field, mapped = nibabel.load(tmp_path / "out" / f"ddf_{k:02d}.nii.gz"), vtk().vtkGeneralTransform()
        nodes = nibabel.affines.apply_affine(field.affine, np.argwhere(np.ones(field.shape[:3]))[::37])
        transforms.GetNthDataNode(k).GetTransformFromWorld(mapped)
        displacements = np.array([mapped.TransformPoint(node) for node in nodes]) - nodes
        expected = field.get_fdata().reshape(-1, 3)[::37] * [-1, -1, 1]  # LPS in the file
        np.testing.assert_allclose(displacements, expected, atol=1e-4)
        assert np.abs(expected).max() > 0.1 or k == 1
    shown = module.scene.GetNodeByID(view.GetBackgroundVolumeID())
    np.testing.assert_array_equal(
        module.slicer.util.arrayFromVolume(shown), module.slicer.util.arrayFromVolume(aligned.GetNthDataNode(0))
    )
    assert Path(module.groupmorph.qt.QUrl.fromLocalFile.call_args[0][0]).is_file()
    assert not Path(widget.folder.name).exists() and widget.run is None
