"""3D Slicer module: registers a sequence and loads the aligned sequence, its transforms and the report.

The registration runs as `groupmorph register` in a separate process, so Slicer needs neither PyTorch nor MONAI. For
installation and use see docs/slicer.md in the bundle.
"""

from __future__ import annotations  # the types of the scene exist only in Slicer

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import ctk
import qt
import slicer
from groupmorph_lib import Run, Settings, fields_of, register_command, report_page, split_volumes, write_times
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleWidget,
)

PROGRAM_KEY = "GroupMorph/program"
POLL_MS = 200  # interval at which the output of a run is polled


class GroupMorph(ScriptedLoadableModule):
    def __init__(self, parent: qt.QWidget) -> None:
        super().__init__(parent)
        parent.title = "GroupMorph"
        parent.categories = ["Registration"]
        parent.dependencies = ["Sequences"]
        parent.contributors = ["GroupMorph contributors"]
        parent.helpText = "Aligns all volumes of a sequence, such as DCE-MRI, at once. For research use only."


def _write(volume: slicer.vtkMRMLVolumeNode, file: Path) -> str:
    """Write a volume and return the name of the file.

    Not by slicer.util.saveNode: it looks for the node's ID in the scene, where the volumes of a sequence are not, and
    makes the file the one to which Slicer later saves the node.
    """
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(str(file))
    if not storage.WriteData(volume):
        raise RuntimeError(f"{volume.GetName()}: expected a volume that can be written to {file}")
    return str(file)


class GroupMorphLogic(ScriptedLoadableModuleLogic):
    """Move volumes between the scene and files."""

    def export(self, sequence: slicer.vtkMRMLSequenceNode, folder: str) -> list[str]:
        """Write the volumes of a sequence and their times to ``folder`` and return the files in order."""
        indices = range(sequence.GetNumberOfDataNodes())
        files = [_write(sequence.GetNthDataNode(k), Path(folder) / f"t{k:03d}.nrrd") for k in indices]
        if sequence.GetIndexType() == sequence.NumericIndex:
            write_times(files, [sequence.GetNthIndexValue(k) for k in indices], sequence.GetIndexUnit())
        return files

    def export_mask(self, node: slicer.vtkMRMLNode, volume: slicer.vtkMRMLVolumeNode, folder: str) -> str:
        """Write a label map, or a segmentation on the grid of ``volume``, to ``folder`` and return the file."""
        file = Path(folder) / "mask.nrrd"
        if not node.IsA("vtkMRMLSegmentationNode"):
            return _write(node, file)
        labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", node.GetName())
        slicer.modules.segmentations.logic().ExportVisibleSegmentsToLabelmapNode(node, labels, volume)
        try:
            return _write(labels, file)
        finally:
            display = labels.GetDisplayNode()
            for temporary in (*([display.GetColorNode(), display] if display else []), labels):
                slicer.mrmlScene.RemoveNode(temporary)

    def load(
        self, output: str, sequence: slicer.vtkMRMLSequenceNode
    ) -> tuple[slicer.vtkMRMLSequenceNode, slicer.vtkMRMLSequenceNode]:
        """Load the aligned sequence and its transforms, with the index values of ``sequence``, and show it."""
        with tempfile.TemporaryDirectory() as folder:
            volumes = split_volumes(str(Path(output) / "warped.nii.gz"), folder)
            aligned = self._sequence(f"{sequence.GetName()} aligned", sequence, volumes, slicer.util.loadVolume)
        fields = fields_of(output)
        transforms = self._sequence(f"{sequence.GetName()} transforms", sequence, fields, slicer.util.loadTransform)
        browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", aligned.GetName())
        browser.SetAndObserveMasterSequenceNodeID(aligned.GetID())
        browser.AddSynchronizedSequenceNode(transforms)
        slicer.modules.sequences.toolBar().setActiveBrowserNode(browser)
        slicer.util.setSliceViewerLayers(background=browser.GetProxyNode(aligned), fit=True)
        return aligned, transforms

    def _sequence(
        self,
        name: str,
        like: slicer.vtkMRMLSequenceNode,
        files: Sequence[str],
        load: Callable[[str], slicer.vtkMRMLNode],
    ) -> slicer.vtkMRMLSequenceNode:
        sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", name)
        sequence.SetIndexName(like.GetIndexName())
        sequence.SetIndexUnit(like.GetIndexUnit())
        sequence.SetIndexType(like.GetIndexType())
        for k, file in enumerate(files):
            node = load(file)
            sequence.SetDataNodeAtValue(node, like.GetNthIndexValue(k))  # copies the node
            slicer.mrmlScene.RemoveNode(node)
        return sequence


class GroupMorphWidget(ScriptedLoadableModuleWidget):
    def setup(self) -> None:
        super().setup()
        self.logic, self.timer = GroupMorphLogic(), qt.QTimer()
        self.run: Run | None = None
        self.timer.setInterval(POLL_MS)
        self.timer.connect("timeout()", self.follow)
        form = qt.QFormLayout()
        self.layout.addLayout(form)
        self.sequence = self._nodes(["vtkMRMLSequenceNode"], optional=False)
        self.mask = self._nodes(["vtkMRMLSegmentationNode", "vtkMRMLLabelMapVolumeNode"], optional=True)
        self.reference = qt.QSpinBox()
        self.reference.setRange(-1, 9999)
        self.reference.setSpecialValueText("common mean")
        self.reference.setValue(-1)
        self.effort, self.initial = (
            self._choice("normal", "fast", "best", "none"),
            self._choice("affine", "rigid", "none"),
        )
        self.overlays = qt.QLineEdit()
        self.overlays.setPlaceholderText("such as data/lung_ct")
        self.output, self.program = ctk.ctkPathLineEdit(), ctk.ctkPathLineEdit()
        self.output.filters = ctk.ctkPathLineEdit.Dirs
        self.program.setCurrentPath(slicer.app.userSettings().value(PROGRAM_KEY, "groupmorph"))
        for label, widget in (
            ("Sequence", self.sequence),
            ("Align to volume", self.reference),
            ("Effort", self.effort),
            ("Initial alignment", self.initial),
            ("Mask", self.mask),
            ("Overlays", self.overlays),
            ("Folder for results", self.output),
            ("groupmorph program", self.program),
        ):
            form.addRow(label, widget)
        self.bar, self.status = qt.QProgressBar(), qt.QLabel()
        self.start, self.stop = qt.QPushButton("Register"), qt.QPushButton("Cancel")
        self.stop.enabled = False
        self.start.connect("clicked(bool)", self.register)
        self.stop.connect("clicked(bool)", self.cancel)
        for widget in (self.start, self.stop, self.bar, self.status):
            self.layout.addWidget(widget)
        self.layout.addStretch(1)

    def cleanup(self) -> None:
        self.cancel()

    def _nodes(self, kinds: Sequence[str], optional: bool) -> slicer.qMRMLNodeComboBox:
        box = slicer.qMRMLNodeComboBox()
        box.nodeTypes = kinds
        box.noneEnabled = optional
        box.addEnabled = box.removeEnabled = False
        box.setMRMLScene(slicer.mrmlScene)
        return box

    def _choice(self, *names: str) -> qt.QComboBox:
        box = qt.QComboBox()
        box.addItems(list(names))
        return box

    def register(self, _: bool = False) -> None:
        """Export the sequence and start the command."""
        with slicer.util.tryWithErrorDisplay("The registration could not be started", waitCursor=True):
            self.input = self.sequence.currentNode()
            if self.input is None:
                raise ValueError("Sequence: expected a sequence of volumes, got none; load one and select it")
            self.folder = tempfile.TemporaryDirectory(prefix="GroupMorph-")
            self.results = self.output.currentPath or tempfile.mkdtemp(prefix="GroupMorph-results-")
            volumes = self.logic.export(self.input, self.folder.name)
            mask, at = self.mask.currentNode(), self.reference.value
            first = self.input.GetNthDataNode(max(at, 0))
            settings = Settings(
                program=self.program.currentPath,
                reference=None if at < 0 else at,
                effort=self.effort.currentText,
                initial=self.initial.currentText,
                mask=self.logic.export_mask(mask, first, self.folder.name) if mask else None,
                overlays=self.overlays.text.split(),
            )
            slicer.app.userSettings().setValue(PROGRAM_KEY, settings.program)
            command = register_command(settings, volumes, self.results)
            self.run = Run(command, slicer.util.startupEnvironment())
            self._running(True)

    def cancel(self, _: bool = False) -> None:
        if self.run is not None:
            self.run.cancel()

    def follow(self) -> None:
        """Update the progress bar; when the command has ended, load the results or show the error."""
        run = self.run
        if run is None:
            return
        self.bar.setValue(round(100 * run.progress))
        self.status.setText(run.message)
        if run.running:
            return
        self._running(False)
        self.run = None
        self.folder.cleanup()
        if run.succeeded:
            with slicer.util.tryWithErrorDisplay("The results could not be loaded", waitCursor=True):
                self.logic.load(self.results, self.input)
                self.status.setText(f"Results: {self.results}")
                qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(report_page(self.results)))
        elif run.error:
            self.status.setText("Failed")
            slicer.util.errorDisplay(run.error)
        else:
            self.status.setText("Cancelled")

    def _running(self, running: bool) -> None:
        self.start.enabled, self.stop.enabled = not running, running
        (self.timer.start if running else self.timer.stop)()
