import re
import threading
from argparse import Namespace

import numpy as np
import pytest
import torch

from groupmorph_monai.apps.suites.memory import memory
from groupmorph_monai.data import Exports, Products, ToftsFit
from groupmorph_monai.data.storage import IN_MEMORY, Storage
from groupmorph_monai.errors import InputError
from groupmorph_monai.probability import FluidPrior, LocalCorrelation
from groupmorph_monai.space import MeanAlignment, MidpointSquaring
from groupmorph_monai.space.grid import Grid
from groupmorph_monai.workflow import (
    AffineSchedule,
    AlignInitiald,
    NetworkPasses,
    Refinement,
    RegistrationCost,
    RegistrationInferer,
    Schedule,
    cost,
    memory_estimate,
    processor_time,
)


def series(timepoints, size, spacing_mm=1.0):
    return [Grid(size, np.diag([spacing_mm] * 3 + [1.0]))] * timepoints


def inferer(refined=True, draws=0, window=None, schedule=None, storage=IN_MEMORY):
    refinement = Refinement(LocalCorrelation(), FluidPrior(lambda_v=0), schedule) if refined else None
    passes = NetworkPasses(window_voxels=window)
    return RegistrationInferer(MeanAlignment(), MidpointSquaring(), passes, refinement, draws, storage=storage)


def test_memory_is_of_the_voxels_that_are_held():
    size, program = (200, 160, 120), RegistrationCost(series(4, (4, 4, 4)), inferer()).memory_gb
    four, eight = (RegistrationCost(series(k, size), inferer()).memory_gb - program for k in (4, 8))
    # A series needs at least its own volumes, the aligned ones and the fields: eight numbers per voxel and timepoint.
    assert eight - four > 8 * 4 * 4 * np.prod(size) / 1e9
    coarser = RegistrationCost(series(4, size), inferer(), spacing_mm=2.0).memory_gb - program
    assert four / 8 < coarser < four
    assert RegistrationCost(series(4, size), inferer(False, window=(32, 32, 32))).memory_gb - program < four
    on_a_gpu = RegistrationCost(series(4, size), inferer(), device="cuda").memory_gb - program
    assert coarser < on_a_gpu < four


@pytest.mark.parametrize("storage", [IN_MEMORY, Storage(1)])
def test_memory_is_also_of_the_interpolated_copy_of_a_large_coarse_scan(storage):
    """The copy is on the fine grid of a small reference, whose working grid the other scan does not change."""
    settings = inferer(refined=False, storage=storage)
    fine, coarse = Grid((64, 64, 64), np.diag([0.25] * 3 + [1.0])), Grid((160, 160, 160), np.eye(4))
    with_copy = RegistrationCost([fine, coarse], settings, 0.25, reference=0).memory_gb
    without = RegistrationCost([fine, coarse], settings, 1.0, reference=0).memory_gb
    assert with_copy > 18 * (4 * 159 + 1) ** 3 / 1e9 > without


@pytest.mark.parametrize(
    ("timepoints", "size", "options", "peak_gb"),
    [
        (2, 200, {}, 4.12),
        (2, 200, {"refined": False}, 1.82),
        (4, 136, {}, 2.29),
        (6, 96, {}, 1.51),
        (6, 96, {"draws": 20}, 1.62),
        (6, 96, {"refined": False}, 1.27),
        (14, 96, {}, 2.65),
        (14, 96, {"refined": False}, 1.95),
        (30, 64, {"refined": False}, 1.46),
    ],
)
def test_memory_of_few_and_many_scans_as_measured(timepoints, size, options, peak_gb, monkeypatch):
    """Measured on one thread. The refinement's tensors grow with the number of scans, the verdict's with that of
    pairs."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    cost = RegistrationCost(series(timepoints, (size,) * 3), inferer(**options))
    assert cost.memory_gb == pytest.approx(peak_gb, rel=0.1)


def test_memory_is_of_the_lattice_of_the_runs_own_schedule():
    fine, coarse = (
        RegistrationCost(series(4, (200, 160, 120)), inferer(schedule=Schedule(lattice_voxels=n))).memory_gb
        for n in (2, 4)
    )
    nodes = 4 * 200 * 160 * 120 * (1 / 2**3 - 1 / 4**3)
    assert fine - coarse == pytest.approx(memory_estimate._SOLVING * nodes / 1e9)


def test_transforms_of_itk_take_the_memory_of_its_modules():
    written, without = (
        RegistrationCost(series(2, (64, 64, 48)), inferer(), products=Products(exports=exports)).memory_gb
        for exports in (Exports(itk_transforms=True), Exports())
    )
    assert written - without == pytest.approx(0.72, rel=0.1)  # measured


def test_time_is_of_the_steps_in_units_of_this_machine(monkeypatch):
    monkeypatch.setattr(processor_time, "_seconds_per_unit", lambda: 1e-8)

    nothing, affine = Products(), AlignInitiald()

    def seconds(timepoints=4, products=nothing, align=affine, **options):
        scans = series(timepoints, (96, 96, 64))
        return RegistrationCost(scans, inferer(**options), products=products, align=align).time.seconds

    fixed = 1e-8 * processor_time._PICTURE
    assert seconds(8) - fixed > 2 * (seconds() - fixed)  # as some scans are compared in pairs
    assert seconds(48) - seconds(32) == pytest.approx(seconds(64) - seconds(48))
    unaligned, finely = AlignInitiald("none"), AlignInitiald(schedule=AffineSchedule((24, 96)))
    assert seconds(refined=False, align=unaligned) < seconds(refined=False) < seconds() < seconds(draws=20)
    aligning = [seconds(align=align) - seconds(align=unaligned) for align in (affine, finely)]
    assert aligning[1] == pytest.approx(8 * aligning[0])
    written = [Products(), Products(fields="full"), Products(kinetics=ToftsFit())]
    written += [Products(exports=Exports(**{name: True})) for name in ("itk_transforms", "sequence", "dicom")]
    assert min(seconds(products=products) for products in written[1:]) > seconds()
    apart = RegistrationCost(series(4, (96, 96, 64)), inferer()).time.searching_seconds
    assert apart == pytest.approx(1e-8 * 4 * processor_time._SEARCHING)
    alone = seconds()
    monkeypatch.setattr(processor_time, "_seconds_per_unit", lambda: 2e-8)
    assert seconds() == pytest.approx(2 * alone)


def test_a_refined_level_costs_its_iterations_and_their_conjugate_steps(monkeypatch):
    monkeypatch.setattr(processor_time, "_seconds_per_unit", lambda: 1.0)

    def work(iterations, conjugate_steps):
        schedule = Schedule((1,), (iterations,), conjugate_steps=conjugate_steps)
        return RegistrationCost(series(3, (32, 32, 32)), inferer(schedule=schedule)).time.seconds

    step = (processor_time._CONJUGATE + processor_time._COSINES * 48) * 3 * 16**3  # on every second voxel
    assert work(5, 8) - work(5, 7) == pytest.approx(5 * step, rel=1e-6)
    one = processor_time._MODEL * 3 * 32**3 + processor_time._ITERATION * 3 * 16**3 + 8 * step
    assert work(6, 8) - work(5, 8) == pytest.approx(one, rel=1e-6)


def test_a_unit_of_work_is_timed(monkeypatch):
    """The clock advances by one second each time it is read."""
    ticks = iter(range(1000))
    monkeypatch.setattr(processor_time.time, "thread_time", lambda: float(next(ticks)))
    monkeypatch.setattr(processor_time.torch, "get_num_threads", lambda: 1)
    assert processor_time._seconds_per_unit() == pytest.approx(1 / 64**3)


def test_a_unit_of_work_is_timed_on_all_threads_at_once(monkeypatch):
    started = threading.Barrier(3, timeout=10)  # breaks unless three threads wait at the same time

    def calibrate():
        started.wait()
        return [2.0]

    monkeypatch.setattr(processor_time, "_calibrate", calibrate)
    monkeypatch.setattr(processor_time.torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(processor_time.torch, "set_num_threads", lambda number: None)
    assert processor_time._seconds_per_unit() == pytest.approx(2 / 64**3)


def test_nothing_is_refused_where_headers_do_not_tell(monkeypatch):
    monkeypatch.setattr(cost, "available_memory_gb", lambda: 0.0)
    RegistrationCost([], inferer(), reference=3).check()


@pytest.mark.parametrize("timepoints, size, spacing_mm", [(6, (100, 100, 80), 0.3), (4, (60, 60, 60), 0.1)])
def test_series_that_do_not_fit_are_refused_with_a_spacing_that_does(timepoints, size, spacing_mm, monkeypatch):
    scans = series(timepoints, size)
    needed_gb = RegistrationCost(scans, inferer(), spacing_mm).memory_gb
    monkeypatch.setattr(cost, "available_memory_gb", lambda: needed_gb + 0.01)
    RegistrationCost(scans, inferer(), spacing_mm).check()
    monkeypatch.setattr(cost, "available_memory_gb", lambda: 3.0)
    with pytest.raises(InputError, match="got 3 GB; use --spacing-mm") as raised:
        RegistrationCost(scans, inferer(), spacing_mm).check()
    fitting = float(re.search(r"--spacing-mm ([\d.]+)", str(raised.value)).group(1))
    RegistrationCost(scans, inferer(), fitting).check()


def test_the_largest_of_scans_that_do_not_fit_is_named(monkeypatch):
    monkeypatch.setattr(cost, "available_memory_gb", lambda: 8.0)
    scans = [*series(2, (28, 24, 20)), *series(1, (2000, 1900, 1800))]
    with pytest.raises(InputError, match=r"for 3 scans of up to 2000 x 1900 x 1800 voxels \(timepoint 2\) on "):
        RegistrationCost(scans, inferer()).check()


def test_a_series_whose_files_alone_are_too_many_is_refused(monkeypatch):
    monkeypatch.setattr(cost, "available_memory_gb", lambda: 8.0)
    with pytest.raises(InputError, match="crop the scans, or use fewer"):
        RegistrationCost(series(1000, (192, 192, 100)), inferer()).check()


@pytest.mark.slow
@pytest.mark.parametrize("case", [(4, (80, 72, 64), None), (14, (64, 64, 64), None)])
def test_the_memory_is_what_was_told(case):
    (row,) = memory(Namespace(weights=None), [case])
    assert row["estimated memory, GB"] == pytest.approx(row["peak memory, GB"], rel=0.25)
