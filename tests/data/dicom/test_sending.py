"""Files written by `--dicom` pass a validator and are accepted by the storage servers of Orthanc, dcmtk and
pynetdicom."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from urllib.request import urlopen

import numpy as np
import pytest
import torch

pydicom = pytest.importorskip("pydicom")
pynetdicom = pytest.importorskip("pynetdicom")

import dicom_exports as exports  # noqa: E402
from pydicom.uid import ExplicitVRLittleEndian  # noqa: E402

from groupmorph_monai.data.contrast.kinetics import ToftsFit  # noqa: E402
from groupmorph_monai.data.reading.readers import read_series  # noqa: E402
from groupmorph_monai.data.series import Frame  # noqa: E402
from groupmorph_monai.data.writing.products import Exports, Products  # noqa: E402
from groupmorph_monai.data.writing.registration import write_registration  # noqa: E402
from groupmorph_monai.space.transforms import AffineTransform  # noqa: E402

pytestmark = pytest.mark.slow
LONGEST_S = 30


@pytest.fixture(scope="module", params=["siemens", "enhanced"])
def written(request, tmp_path_factory):
    """Write all files of a small DCE series with `--dicom --kinetics --std --jacobian`."""
    folder = tmp_path_factory.mktemp("study")
    volumes = np.zeros((4, 10, 9, 6), np.uint16)
    volumes[:, 1:9, 1:8, 1:5] = 200
    volumes[1:, 3:7, 3:7, 2:5] = np.array([400, 600, 550])[:, None, None, None]
    study = exports.save(getattr(exports, request.param)(volumes, np.diag([1.0, 1.0, 2.0, 1.0])), folder / "in")
    series = read_series(study)
    transforms = [AffineTransform(torch.eye(4, dtype=torch.float64)) for _ in series.frames]
    transforms[2] = AffineTransform(torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]).double())
    std = [Frame(np.full(frame.data.shape, 0.5, np.float32), frame.affine, "std") for frame in series.frames]
    products = Products("none", exports=Exports(dicom=True), kinetics=ToftsFit(), jacobian=True)
    write_registration(series, transforms, folder / "out", std_mm=std, products=products)
    files = [pydicom.dcmread(path) for path in (folder / "out" / "dicom").rglob("*") if path.is_file()]
    assert {"motion", "maps", "images"} == {kind_of(file) for file in files}
    return files


def kind_of(file):
    return {"Spatial": "motion", "Deformable": "motion", "Parametric": "maps"}.get(
        file.SOPClassUID.name.split()[0], "images"
    )


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def is_of_dcmtk(program):
    """Check whether a program is dcmtk's, as pynetdicom installs a storescp, too."""
    return "dcmtk" in subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout


@contextlib.contextmanager
def dcmtk(folder):
    """Run dcmtk's storescp, which writes received files to a folder, and yield its port."""
    installed = filter(None, (shutil.which("storescp", path=folder) for folder in os.get_exec_path()))
    program, port = next(filter(is_of_dcmtk, installed), None), free_port()
    if program is None:
        pytest.skip("no storescp of dcmtk here: apt-get install dcmtk")
    command = [program, "--output-directory", str(folder), "--prefer-uncompr", "--promiscuous", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield port
    finally:
        server.terminate()
        server.wait(LONGEST_S)


@contextlib.contextmanager
def pynetdicom_server(folder):
    """Run pynetdicom's storescp, which rejects storage classes that are not in the standard."""

    def store(event):
        (folder / event.request.AffectedSOPInstanceUID).write_bytes(event.encoded_dataset())
        return 0x0000

    entity = pynetdicom.AE()
    entity.supported_contexts = pynetdicom.AllStoragePresentationContexts
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(pynetdicom.evt.EVT_C_STORE, store)])
    try:
        yield server.socket.getsockname()[1]
    finally:
        server.shutdown()


@contextlib.contextmanager
def orthanc(folder):
    """Run Orthanc, and finally copy its files to a folder by its web interface."""
    program = shutil.which("Orthanc")
    if not program:
        pytest.skip("no Orthanc here: apt-get install orthanc")
    port, web = free_port(), free_port()
    state = folder.with_name(f"{folder.name}_orthanc")
    state.mkdir()
    settings = {"DicomPort": port, "HttpPort": web, "RemoteAccessAllowed": False, "AuthenticationEnabled": False}
    settings |= {"StorageDirectory": str(state), "IndexDirectory": str(state), "DicomAlwaysAllowStore": True}
    (state / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    command = [program, str(state / "settings.json")]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield port
        address = f"http://127.0.0.1:{web}/instances"
        with urlopen(address) as answer:
            instances = json.load(answer)
        for instance in instances:
            with urlopen(f"{address}/{instance}/file") as answer:
                (folder / instance).write_bytes(answer.read())
    finally:
        server.terminate()
        server.wait(LONGEST_S)


def send(files, port):
    """Send files by C-STORE and return the status of each."""
    entity = pynetdicom.AE()
    for kind in {file.SOPClassUID for file in files}:
        entity.add_requested_context(kind, ExplicitVRLittleEndian)
    deadline = time.monotonic() + LONGEST_S
    while not (association := entity.associate("127.0.0.1", port)).is_established:
        assert time.monotonic() < deadline, "nobody answers"
        time.sleep(0.1)
    statuses = [association.send_c_store(file).Status for file in files]
    association.release()
    return statuses


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="no dciodvfy here: apt-get install dicom3tools")
def test_a_validator_finds_no_error_in_any_object(written, tmp_path):
    def errors(path):
        lines = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, check=False).stderr
        return [line for line in lines.splitlines() if line.startswith("Error")]

    assert {file.filename: errors(file.filename) for file in written} == {file.filename: [] for file in written}
    damaged = pydicom.dcmread(written[0].filename)
    del damaged.StudyInstanceUID
    damaged.save_as(tmp_path / "damaged.dcm")
    assert errors(tmp_path / "damaged.dcm")


@pytest.mark.parametrize("server", [orthanc, dcmtk, pynetdicom_server], ids=["orthanc", "dcmtk", "pynetdicom"])
def test_a_server_stores_every_object_and_its_pixels(server, written, tmp_path):
    with server(tmp_path) as port:
        assert set(send(written, port)) == {0}
    stored = {file.SOPInstanceUID: file for file in map(pydicom.dcmread, tmp_path.iterdir())}
    assert set(stored) == {file.SOPInstanceUID for file in written} and len(stored) == len(written)
    for file in written:
        copy = stored[file.SOPInstanceUID]
        assert copy.file_meta.TransferSyntaxUID == file.file_meta.TransferSyntaxUID
        assert (copy.SOPClassUID, copy.SeriesInstanceUID) == (file.SOPClassUID, file.SeriesInstanceUID)
        if kind_of(file) == "motion":
            assert copy.DeformableRegistrationSequence == file.DeformableRegistrationSequence
        else:
            assert copy.PixelData == file.PixelData
