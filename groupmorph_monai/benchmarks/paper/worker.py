"""Run one registration in a separate process, to measure time and memory, contain crashes, and enforce a time limit."""

import ctypes
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ...data.writing.output_folder import atomic_file, write_tensors
from ...errors import InputError
from ...workflow.memory import peak_memory_gb
from ..peers import MissingError

_PR_SET_PDEATHSIG = 1  # value defined in linux/prctl.h
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")


class Method(Protocol):
    """A method of the table, which must be picklable."""

    def prepare(self) -> Callable[[Tensor, Tensor], Tensor | tuple[Tensor, Tensor]]: ...

    def settings(self) -> Mapping[str, object]: ...


@dataclass(frozen=True)
class Outcome:
    """Result of a registration.

    Args:
        status: ``"ok"``, or a short reason why there is no result.
        fields: ``ddf`` and, if available, ``inverse_ddf``, ``(K, 3, *S)`` voxels.
        cost: ``seconds``, ``processor_seconds``, ``peak_memory_gb``.
    """

    status: str
    fields: tuple[Tensor, ...] = ()
    cost: Mapping[str, float] | None = None


def register(
    method: Method, series: Mapping[str, Any], folder: Path, log: Path, limit_s: float, threads: int
) -> Outcome:
    """Run ``method`` on a series.

    Times are from the volumes in memory to the fields; imports and reading of weights count only for the time limit.
    The peak memory is that of the whole process.

    Args:
        series: ``image`` ``(K, *S)`` and ``affine`` ``(4, 4)``.
        folder: for files exchanged between the processes.
        log: file for the output of the method.
        limit_s: time limit, after which the process is killed.
        threads: number of threads of every library in the process.
    """
    inputs, result = folder / "series.pt", folder / "result.pt"
    result.unlink(missing_ok=True)
    torch.save({"image": series["image"].float(), "affine": torch.as_tensor(series["affine"])}, inputs)
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))  # read when the libraries are loaded
    process = multiprocessing.get_context("spawn").Process(target=_work, args=(method, inputs, result, log, threads))
    try:
        process.start()
        process.join(limit_s)
        if process.is_alive():
            return Outcome(f"over the time limit of {limit_s:g} s")
    finally:
        if process.is_alive():
            process.kill()
            process.join()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    if not result.is_file():
        return Outcome(f"failed: ended with code {process.exitcode}; see {log.name}")
    return Outcome(**torch.load(result, weights_only=True))


def _work(method: Method, inputs: Path, result: Path, log: Path, threads: int) -> None:
    _die_with_the_parent()
    with open(log, "w", encoding="utf-8") as file:
        for stream in (1, 2):  # C++ libraries bypass Python's streams
            os.dup2(file.fileno(), stream)
    torch.set_num_threads(threads)
    try:
        outcome = _timed(method, torch.load(inputs, weights_only=True))
    except MissingError as error:
        outcome = {"status": str(error)}
    except Exception as error:
        traceback.print_exc()
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        outcome = {"status": f"failed: {reason}" + ("" if isinstance(error, InputError) else f"; see {log.name}")}
    with atomic_file(result) as partial:
        write_tensors(outcome, partial)


def _timed(method: Method, series: Mapping[str, Tensor]) -> dict[str, object]:
    run = method.prepare()
    processor, wall = time.process_time(), time.perf_counter()
    fields = run(series["image"], series["affine"])
    cost = {
        "seconds": time.perf_counter() - wall,
        "processor_seconds": time.process_time() - processor,
        "peak_memory_gb": peak_memory_gb(),
    }
    directions = fields if isinstance(fields, tuple) else (fields,)
    if not all(torch.isfinite(u).all() for u in directions):
        return {"status": "failed: the field is not finite"}
    return {"status": "ok", "fields": tuple(u.float().contiguous() for u in directions), "cost": cost}


def _die_with_the_parent() -> None:
    """Make Linux kill this process when its parent dies; on other systems it runs to its end."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        pass
