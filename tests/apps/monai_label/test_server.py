"""The app on a real MONAI Label server, queried by MONAI Label's own client.

It runs where MONAI Label is installed: `make monai-label`.
"""

import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest

pytest.importorskip("monailabel", reason="`make monai-label` makes the environment for it")
from monailabel.client import MONAILabelClient  # noqa: E402

from groupmorph_monai.apps import monai_label  # noqa: E402

MODEL = "groupmorph"
FAST = {"effort": "none", "initial": "none"}


@pytest.fixture(scope="module")
def client(series, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(monai_label.__file__).parent, folder / "app", ignore=ignored)
    (folder / "studies").mkdir()
    volumes = [nibabel.load(file) for file in series[:3]]
    stacked = np.stack([volume.get_fdata(dtype=np.float32) for volume in volumes], axis=3)
    nibabel.save(nibabel.Nifti1Image(stacked, volumes[0].affine), folder / "studies" / "series.nii.gz")
    for file in series[:3]:
        shutil.copy(file, folder / "studies")
    half = np.zeros(volumes[0].shape, np.uint8)
    half[: len(half) // 2] = 1
    nibabel.save(nibabel.Nifti1Image(half, volumes[0].affine), folder / "half.nii.gz")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", folder / "app"]
    command += ["--studies", folder / "studies", "--host", "127.0.0.1", "--port", str(port)]
    with open(folder / "log", "w", encoding="utf-8") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        try:
            client = MONAILabelClient(f"http://127.0.0.1:{port}", tmpdir=str(folder))
            for _ in range(300):
                try:
                    client.info()
                    break
                except Exception:
                    assert server.poll() is None, (folder / "log").read_text(encoding="utf-8")[-3000:]
                    time.sleep(1)
            client.save_label("series", str(folder / "half.nii.gz"), tag="final")
            yield client
        finally:
            server.terminate()
            server.wait(30)


def test_the_server_lists_the_model_with_its_options(client):
    info = client.info()["models"][MODEL]
    assert info["type"] == "others" and info["dimension"] == 4
    assert info["config"]["effort"][0] == "normal" and {"reference", "mask", "overlay"} <= set(info["config"])


def test_a_4d_image_comes_back_aligned_with_its_metrics(client, series):
    file, answer = client.infer(MODEL, "series", {**FAST, "reference": 1})
    image = nibabel.load(file)
    reference = nibabel.load(series[1])
    assert image.shape == (*reference.shape, 3) and image.get_data_dtype() == np.float32
    np.testing.assert_allclose(image.affine, reference.affine, atol=1e-5)
    np.testing.assert_allclose(image.get_fdata()[..., 1], reference.get_fdata(), rtol=1e-5, atol=1e-3)
    metrics = answer["metrics"]
    assert metrics["nmi_after"] > metrics["nmi_before"] and metrics["folding_percent"] == 0


def test_volumes_of_the_datastore_are_one_series(client):
    names = sorted(name for name in client.datastore()["objects"] if name.startswith("t0"))
    _, answer = client.infer(MODEL, names[0], {**FAST, "images": names[::-1]})
    assert [Path(path).name for path in answer["series"]] == [f"{name}.nii.gz" for name in names[::-1]]


def test_effort_an_overlay_and_a_label_drawn_on_the_series_change_the_result(client):
    answers = [
        client.infer(MODEL, "series", {**FAST, "effort": "fast", **options})[1]["metrics"]["displacement_mean_mm"]
        for options in ({}, {"mask": "final"}, {"spacing_mm": 3}, {"overlay": ["likelihoods/group_nmi"]})
    ]
    assert len(set(answers)) == 4


@pytest.mark.parametrize(
    "params, line",
    [
        ({"refrence": 1}, "did you mean reference?"),
        ({"reference": 9, **FAST}, "expected one of the series' 3 timepoints"),
        ({"mask": "tumour"}, "expected a label tag of series"),
        ({"result_extension": ".nrrd"}, "expected .nii.gz"),
    ],
)
def test_a_mistake_is_answered_by_its_line(client, params, line):
    with pytest.raises(Exception) as raised:
        client.infer(MODEL, "series", params)
    assert "422" in raised.value.msg and line in raised.value.msg


def test_one_volume_is_no_series(client):
    with pytest.raises(Exception) as raised:
        client.infer(MODEL, "t00", FAST)
    assert "422" in raised.value.msg and "one timepoint" in raised.value.msg
