"""The module for 3D Slicer, tested without Slicer: its library directly, its widgets and logic on a mock scene."""

import importlib
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import nibabel
import numpy as np
import pytest

from groupmorph_monai import apps
from groupmorph_monai.apps.arguments import make_parser
from groupmorph_monai.data.reading.readers import read_image

sys.path.append(str(Path(apps.__file__).parent / "slicer"))
from groupmorph_lib import Run, Settings, fields_of, register_command, split_volumes  # noqa: E402

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


class Sequence:
    """A sequence node of Slicer's scene; its data nodes are names of files."""

    def __init__(self, name="", files=(), values=()):
        self.name, self.files, self.values, self.like = name, list(files), list(values), {}

    def __getattr__(self, name):  # SetIndexName, GetIndexName, ...
        kind, what = name[:3], name[3:]
        return (
            self.like.get(what, lambda: what)
            if kind == "Get"
            else lambda value: self.like.update({what: lambda: value})
        )

    def GetName(self):  # noqa: N802
        return self.name

    def GetNumberOfDataNodes(self):  # noqa: N802
        return len(self.files)

    def GetNthDataNode(self, k):  # noqa: N802
        return self.files[k]

    def GetNthIndexValue(self, k):  # noqa: N802
        return self.values[k]

    def SetDataNodeAtValue(self, node, value):  # noqa: N802
        self.files.append(node)
        self.values.append(value)


@pytest.fixture
def module(monkeypatch):
    """The module over a fake Slicer, with the nodes that it has added to the scene."""
    slicer, added = MagicMock(), []

    def add(kind, name):
        added.append(Sequence(name) if kind == "vtkMRMLSequenceNode" else MagicMock())
        return added[-1]

    slicer.mrmlScene.AddNewNodeByClass = add
    slicer.util.saveNode = lambda node, file: bool(save_node(node, file))
    slicer.util.loadVolume = lambda file: read_image(file)
    slicer.util.loadTransform = lambda file: nibabel.load(file).get_fdata()
    slicer.util.startupEnvironment = lambda: None
    slicer.util.tryWithErrorDisplay.return_value.__exit__.return_value = False
    base = ModuleType("slicer.ScriptedLoadableModule")
    for name in ("", "Logic", "Widget"):
        setattr(
            base, f"ScriptedLoadableModule{name}", type("Base", (), {"setup": lambda self: None, "layout": MagicMock()})
        )
    for name, fake in {
        "slicer": slicer,
        "slicer.ScriptedLoadableModule": base,
        "qt": MagicMock(),
        "ctk": MagicMock(),
    }.items():
        monkeypatch.setitem(sys.modules, name, fake)
    monkeypatch.delitem(sys.modules, "GroupMorph", raising=False)
    return SimpleNamespace(module=importlib.import_module("GroupMorph"), slicer=slicer, added=added)


def save_node(node, file):
    import SimpleITK as sitk  # noqa: N813

    sitk.WriteImage(sitk.ReadImage(node), file)
    return file


def test_no_sequence_is_said(module):
    widget = module.module.GroupMorphWidget()
    widget.setup()
    widget.sequence.currentNode = lambda: None
    with pytest.raises(ValueError, match="Sequence: expected a sequence of volumes, got none"):
        widget.register()


@pytest.mark.slow
def test_a_sequence_comes_back_aligned_with_its_transforms_and_report(module, series, tmp_path):
    widget = module.module.GroupMorphWidget()
    widget.setup()
    widget.sequence.currentNode = lambda: Sequence("dce", series[:3], ["0", "60", "125"])
    widget.mask = SimpleNamespace(currentNode=lambda: None)
    widget.reference, widget.overlays = SimpleNamespace(value=1), SimpleNamespace(text="")
    widget.effort, widget.initial = SimpleNamespace(currentText="none"), SimpleNamespace(currentText="none")
    widget.output = SimpleNamespace(currentPath=str(tmp_path / "out"))
    widget.program = SimpleNamespace(currentPath=f"{sys.executable} -m groupmorph_monai.apps")
    widget.register()
    widget.run.wait(500)
    widget.follow()
    assert module.slicer.util.errorDisplay.call_args is None
    aligned, transforms = (node for node in module.added if isinstance(node, Sequence))
    assert aligned.values == transforms.values == ["0", "60", "125"] and aligned.GetIndexUnit() == "IndexUnit"
    reference = read_image(series[1])
    np.testing.assert_allclose(aligned.files[1].data, reference.data, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(aligned.files[0].affine, reference.affine, atol=1e-5)
    assert not transforms.files[1].any() and transforms.files[0].any()
    assert Path(module.module.qt.QUrl.fromLocalFile.call_args[0][0]).is_file()
    assert not Path(widget.folder.name).exists() and widget.run is None
