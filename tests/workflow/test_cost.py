import re
from types import SimpleNamespace

import numpy as np
import pytest

from groupmorph_monai.apps.configs import bundle_root, config_files
from groupmorph_monai.benchmarks.compare import BundleMethod
from groupmorph_monai.benchmarks.memory import memory
from groupmorph_monai.data.series import Frame, Series
from groupmorph_monai.errors import InputError
from groupmorph_monai.probability import FluidPrior, LocalCorrelation
from groupmorph_monai.workflow import Refinement, RegistrationCost, cost


def series(timepoints, size, spacing_mm=1.0):
    """Of volumes that take no memory."""
    data, affine = np.broadcast_to(np.float32(0), size), np.diag([spacing_mm] * 3 + [1.0])
    return Series(tuple(Frame(data, affine, f"t{k}") for k in range(timepoints)))


def inferer(refined=True, draws=0, window=None):
    refinement = Refinement(LocalCorrelation(), FluidPrior(lambda_v=0)) if refined else None
    return SimpleNamespace(refinement=refinement, draws=draws, window_size_voxels=window)


def test_memory_is_of_the_voxels_that_are_held():
    size, program = (120, 100, 80), RegistrationCost(series(4, (4, 4, 4)), inferer()).memory_gb
    four, eight = (RegistrationCost(series(k, size), inferer()).memory_gb - program for k in (4, 8))
    # A series cannot take less than itself, its aligned volumes and its fields, eight numbers a voxel and timepoint.
    assert eight - four > 8 * 4 * 4 * np.prod(size) / 1e9
    coarser = RegistrationCost(series(4, size), inferer(), spacing_mm=2.0).memory_gb - program
    assert four / 8 < coarser < four
    assert RegistrationCost(series(4, size), inferer(False, window=(32, 32, 32))).memory_gb - program < four
    on_a_gpu = RegistrationCost(series(4, size), inferer(), device="cuda").memory_gb - program
    assert coarser < on_a_gpu < four


def test_time_is_of_the_steps(monkeypatch):
    monkeypatch.setattr(cost, "_window_seconds_per_voxel", lambda: 1e-8)
    seconds = [
        RegistrationCost(series(k, (96, 96, 64)), inferer(*options)).seconds
        for k, options in ((4, (False,)), (4, ()), (8, ()), (4, (True, 20)))
    ]
    picture = cost._PICTURE * 1e-8
    assert seconds[2] - picture == pytest.approx(2 * (seconds[1] - picture)) and seconds[0] < seconds[1] < seconds[3]
    monkeypatch.setattr(cost, "_window_seconds_per_voxel", lambda: 2e-8)
    assert RegistrationCost(series(4, (96, 96, 64)), inferer()).seconds == pytest.approx(2 * seconds[1])


@pytest.mark.parametrize("timepoints, size, spacing_mm", [(6, (100, 100, 80), 0.3), (4, (60, 60, 60), 0.1)])
def test_what_does_not_fit_is_refused_with_a_spacing_that_does(timepoints, size, spacing_mm, monkeypatch):
    scans = series(timepoints, size)
    needed_gb = RegistrationCost(scans, inferer(), spacing_mm).memory_gb
    monkeypatch.setattr(cost, "available_memory_gb", lambda: needed_gb + 0.01)
    RegistrationCost(scans, inferer(), spacing_mm).check()
    monkeypatch.setattr(cost, "available_memory_gb", lambda: 3.0)
    with pytest.raises(InputError, match="got 3 GB; take --spacing-mm") as raised:
        RegistrationCost(scans, inferer(), spacing_mm).check()
    fitting = float(re.search(r"--spacing-mm ([\d.]+)", str(raised.value)).group(1))
    RegistrationCost(scans, inferer(), fitting).check()


def test_a_series_whose_files_alone_are_too_many_is_refused(monkeypatch):
    monkeypatch.setattr(cost, "available_memory_gb", lambda: 8.0)
    with pytest.raises(InputError, match="crop the scans, or give fewer"):
        RegistrationCost(series(1000, (192, 192, 100)), inferer()).check()


@pytest.mark.slow
def test_the_memory_is_what_was_told():
    method = BundleMethod(config_files("inference", ()), str(bundle_root() / "models" / "model.pt"))
    (row,) = memory(method, [(4, (80, 72, 64))])
    assert row["estimated memory, GB"] == pytest.approx(row["peak memory, GB"], rel=0.25)
