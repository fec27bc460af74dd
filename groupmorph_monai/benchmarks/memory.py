"""Compare memory and time of a registration with their estimates."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from monai.bundle import ConfigWorkflow

from ..data.series import Frame
from ..data.writing.nifti import write_image
from ..workflow.literal import literal
from ..workflow.memory import keep_freed_memory, peak_memory_gb
from . import Row
from .cases import upsampled_phantom
from .compare import BundleMethod, in_new_process

__all__ = ["memory"]


def _write_phantom(folder: str, size: Sequence[int], timepoints: int) -> None:
    """Write the scans of a phantom, ``t000.nii.gz`` and so on, to a folder."""
    for k, volume in enumerate(upsampled_phantom(size, timepoints)[0]):
        write_image(Frame(volume, np.eye(4), "phantom"), Path(folder) / f"t{k:03d}.nii.gz")


def _register(method: BundleMethod, folder: str, scans_at_once: int | None) -> tuple[float, float, float, float, float]:
    """Return estimated memory in GB and processor time in seconds, the measured ones, and the time without start-up."""
    keep_freed_memory()  # as commands do
    with tempfile.TemporaryDirectory() as output:
        settings = {"series": folder, "output_dir": output, "weights": method.weights, **method.settings}
        settings["scans_at_once"] = scans_at_once
        workflow = ConfigWorkflow(
            config_file=list(method.config_files),
            run_id="inference",
            logging_file=False,
            bundle_root=str(Path(method.config_files[0]).parents[1]),
            **{name: literal(value) for name, value in settings.items()},
        )
        workflow.initialize()
        cost = workflow.parser.get_parsed_content("cost")
        estimate = cost.memory_gb, time.process_time() + cost.time.seconds
        started = time.process_time()
        workflow.run()
        return *estimate, peak_memory_gb(), time.process_time(), time.process_time() - started


def memory(
    method: BundleMethod,
    cases: Sequence[tuple[int, Sequence[int]]] = ((2, (64, 64, 64)), (6, (96, 96, 64)), (4, (160, 160, 96))),
    scans_at_once: int | None = None,
) -> list[Row]:
    """Measure each number of timepoints and size (1 mm voxels) in a separate process, including file access, with
    ``scans_at_once`` scans in memory, or all if None."""
    rows = []
    for timepoints, size in cases:
        name = f"{timepoints} x {' x '.join(map(str, size))}"
        with tempfile.TemporaryDirectory() as folder:
            in_new_process(_write_phantom, folder, size, timepoints)
            result = in_new_process(_register, method, folder, scans_at_once)
        estimated_gb, estimated_s, peak_gb, seconds, cpu_seconds = result
        rows.append(
            {
                "series": name,
                "scans at a time": scans_at_once or timepoints,
                "estimated memory, GB": estimated_gb,
                "peak memory, GB": peak_gb,
                "estimated processor seconds": estimated_s,
                "processor seconds": seconds,
                "CPU seconds per scan": cpu_seconds / timepoints,
            }
        )
        print(f"{name}: {peak_gb:.2f} of {estimated_gb:.2f} GB and {seconds:.0f} of {estimated_s:.0f} s estimated")
    return rows
