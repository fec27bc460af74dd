"""Compare memory and time of a registration with their estimates."""

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .suite import Row, add_weights, bundle_method, table_suite

_CASES = (  # number of scans, their size, and how many of them are in memory at a time, None for all
    (2, (64, 64, 64), None),
    (6, (96, 96, 64), None),
    (4, (160, 160, 96), None),
    *((number, (32, 32, 24), 4) for number in (25, 50, 100)),
)


def _write_phantom(folder: str, size: Sequence[int], timepoints: int) -> None:
    """Write the scans of a phantom, ``t000.nii.gz`` and so on, to a folder."""
    from ...benchmarks.cases import upsampled_phantom
    from ...data.writing.nifti import write_image

    for k, frame in enumerate(upsampled_phantom(size, timepoints)[0].frames):
        write_image(frame, Path(folder) / f"t{k:03d}.nii.gz")


def _register(config_files: Sequence[str], settings: Mapping[str, Any]) -> tuple[float, float, float, float, float]:
    """Return estimated memory in GB and processor time in seconds, the measured ones, and the time without start-up."""
    from monai.bundle import ConfigWorkflow

    from ...workflow.literal import literal
    from ...workflow.memory import keep_freed_memory, peak_memory_gb

    keep_freed_memory()  # as commands do
    with tempfile.TemporaryDirectory() as output:
        workflow = ConfigWorkflow(
            config_file=list(config_files),
            run_id="inference",
            logging_file=False,
            bundle_root=str(Path(config_files[0]).parents[1]),
            **{name: literal(value) for name, value in {**settings, "output_dir": output}.items()},
        )
        workflow.initialize()
        cost = workflow.parser.get_parsed_content("cost")
        estimate = cost.memory_gb, time.process_time() + cost.time.seconds
        started = time.process_time()
        workflow.run()
        return *estimate, peak_memory_gb(), time.process_time(), time.process_time() - started


def memory(args: argparse.Namespace, cases: Sequence[tuple[int, Sequence[int], int | None]] = _CASES) -> list[Row]:
    """Measure each case (1 mm voxels) in a separate process, including file access."""
    from ...benchmarks.compare import in_new_process

    method, rows = bundle_method(args.weights), []
    for timepoints, size, scans_at_once in cases:
        name = f"{timepoints} x {' x '.join(map(str, size))}"
        with tempfile.TemporaryDirectory() as folder:
            in_new_process(_write_phantom, folder, size, timepoints)
            settings = {"series": folder, "weights": method.weights, "scans_at_once": scans_at_once, **method.settings}
            result = in_new_process(_register, method.config_files, settings)
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


MEMORY = table_suite(
    "memory", "memory and seconds of a registration compared with the estimates of --dry-run", add_weights, memory
)
