"""Fixtures shared by the tests: small series on disk, and weights for them."""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import settings

from groupmorph_monai.data import make_phantom
from groupmorph_monai.evaluation import output

REPOSITORY = Path(__file__).parents[1]

settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def no_handler_of_a_closed_stream():
    """A bundle's run leaves a log handler for the standard output of its test, which is closed in the next."""
    root = logging.getLogger()
    root.handlers[:] = [h for h in root.handlers if not getattr(getattr(h, "stream", None), "closed", False)]


@pytest.fixture
def no_pictures(monkeypatch):
    """Skip ``report.png`` and ``report.html``, which take a second, in tests that do not read them."""
    for name in ("draw_report", "write_page"):
        monkeypatch.setattr(output, name, lambda *arguments, **options: None)


@pytest.fixture
def in_this_process(monkeypatch):
    """Measure methods in a thread of this process, as a new process needs seconds to import PyTorch."""
    pool = "groupmorph_monai.benchmarks.compare.ProcessPoolExecutor"
    monkeypatch.setattr(pool, lambda workers, mp_context: ThreadPoolExecutor(workers))


@pytest.fixture(scope="session")
def bundle():
    return REPOSITORY / "bundle"


@pytest.fixture(scope="session")
def phantom():
    return make_phantom(
        1, size=(28, 24, 20), timepoints=6, spacing_mm=(1.0, 1.0, 1.2), max_motion_voxels=2, landmarks=40
    )


@pytest.fixture(scope="session")
def save_series():
    """Return a function that writes a phantom as 3D NIfTI files and landmarks, and returns the names of the images."""

    def save(phantom, folder):
        files, affine = [], phantom["affine"].numpy()
        for k, volume in enumerate(phantom["image"].numpy()):
            files.append(str(folder / f"t{k:02d}.nii.gz"))
            nibabel.save(nibabel.Nifti1Image(volume, affine), files[-1])
            points = phantom["landmarks"][k].numpy() @ affine[:3, :3].T + affine[:3, 3]
            np.savetxt(folder / f"landmarks_{k:02d}.csv", points, delimiter=",", header="x,y,z", comments="")
        return files

    return save


@pytest.fixture(scope="session")
def series(phantom, save_series, tmp_path_factory):
    """Write a phantom as six 3D NIfTI files."""
    return save_series(phantom, tmp_path_factory.mktemp("series"))
