"""Cells of the table: one file per series and method, from which an interrupted run resumes."""

import hashlib
import json
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data.writing.output_folder import atomic_file
from ...evaluation.report import to_json
from ...space.field import DisplacementField
from ...space.warping import invert
from .cases import Case
from .measures import measure
from .worker import Method, Outcome, register

NONE, TRUTH = "none", "truth"  # rows without a program: no registration, and the true motion of phantoms


@dataclass(frozen=True)
class Cell:
    """One series by one method.

    Args:
        case, method: names.
        status: "ok", or the reason why there are no numbers.
        numbers: by column; unknown ones are None or omitted.
        arrays: data for the figures; empty without a result.
    """

    case: str
    method: str
    status: str
    numbers: Mapping[str, float | None]
    arrays: Mapping[str, np.ndarray]


class CellStore:
    """Cells in a folder, each a JSON file of its numbers and settings and an NPZ file of its arrays.

    The name of a cell contains a digest of everything that determines it: the series, the method's settings, the number
    of threads. Different settings are therefore stored in different files.

    Args:
        folder: created if it does not exist.
        threads: number of threads of every method.
    """

    def __init__(self, folder: Path, threads: int):
        self.folder, self.threads = folder, threads
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, case: Case, name: str, method: Method | None) -> Path:
        """Return the path of the cell's JSON file."""
        settings = self.settings(case, name, method)
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        return self.folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', case.name)}--{name}--{digest}.json"

    def settings(self, case: Case, name: str, method: Method | None) -> dict[str, object]:
        own = {} if method is None else dict(method.settings())
        return {"case": dict(case.settings), "method": name, "settings": own, "threads": self.threads}

    def read(self, path: Path, limit_s: float) -> Cell | None:
        """Read a finished cell; None if it is missing, failed, or ran out of a shorter time limit, to run it again."""
        if not path.is_file():
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        finished = content["status"] == "ok" or content["limit_s"] >= limit_s
        if content["retry"] or not finished:
            return None
        arrays = dict(np.load(path.with_suffix(".npz"))) if content["status"] == "ok" else {}
        return Cell(content["series"], content["method"], content["status"], content["numbers"], arrays)

    def write(self, path: Path, cell: Cell, settings: Mapping[str, Any], limit_s: float) -> None:
        if cell.arrays:  # before the JSON file, which marks the cell as finished
            with atomic_file(path.with_suffix(".npz")) as partial:
                # No array has the name of NumPy's own keyword argument, a bool.
                np.savez_compressed(partial, **cell.arrays)  # type: ignore[arg-type]
        report = {"series": cell.case, "method": cell.method, "status": cell.status, "numbers": cell.numbers}
        ended = cell.status == "ok" or cell.status.startswith("over the time")
        with atomic_file(path) as partial:
            partial.write_text(
                to_json({**report, "retry": not ended, "limit_s": limit_s, "settings": settings}), encoding="utf-8"
            )


def fill(
    cases: Sequence[Case],
    methods: Mapping[str, Method],
    store: CellStore,
    limit_s: float,
    log: Callable[[str], None] = print,
) -> list[Cell]:
    """Fill the table, case by case, with stored cells and new runs.

    Args:
        methods: by name, each run in a separate process; the rows ``NONE`` and ``TRUTH`` are added automatically.
        limit_s: time limit per cell.
        log: called with a line for every cell.
    """
    rows = {NONE: None, TRUTH: None, **methods}
    cells: list[Cell] = []
    total, started = len(cases) * len(rows), time.perf_counter()
    for case in cases:
        series = None
        for name, method in rows.items():
            path = store.path(case, name, method)
            cell, kept = store.read(path, limit_s), " (kept)"
            if cell is None:
                series, kept = series if series is not None else case.load(), ""
                log(f"[{len(cells) + 1}/{total}] {case.name}, {name} ...")
                cell = _run(case, series, name, method, store, limit_s)
                store.write(path, cell, store.settings(case, name, method), limit_s)
            cells.append(cell)
            minutes = (time.perf_counter() - started) / 60
            log(f"[{len(cells)}/{total}] {case.name}, {name}: {_line(cell)}{kept}; {minutes:.1f} min so far")
    return cells


def _run(
    case: Case, series: Mapping[str, Any], name: str, method: Method | None, store: CellStore, limit_s: float
) -> Cell:
    identity = torch.zeros(len(series["image"]), 3, *series["image"].shape[1:])
    if name == NONE:
        outcome = Outcome("ok", (identity, identity))
    elif method is None:  # the true motion
        outcome = (
            Outcome("ok", _true_fields(series["motion"])) if "motion" in series else Outcome("the motion is not known")
        )
    else:
        log_file = store.folder / f"{store.path(case, name, method).stem}.log"
        with tempfile.TemporaryDirectory() as scratch:
            outcome = register(method, series, Path(scratch), log_file, limit_s, store.threads)
    if outcome.status != "ok":
        return Cell(case.name, name, outcome.status, {}, {})
    numbers, arrays = measure(series, *outcome.fields)
    return Cell(case.name, name, "ok", {**(outcome.cost or {}), **numbers}, arrays)


def _true_fields(motion: Tensor) -> tuple[Tensor, Tensor]:
    inverse = invert(DisplacementField.on_voxels(motion.float()[None]), iterations=60)
    return inverse.values[0], motion.float()


def _line(cell: Cell) -> str:
    if cell.status != "ok":
        return cell.status
    numbers = {k: v for k, v in cell.numbers.items() if v is not None}
    formats = {"landmarks_mm_mean": "{:.3f} mm", "rmse": "RMSE {:.4g}", "seconds": "{:.1f} s"}
    return ", ".join(text.format(numbers[key]) for key, text in formats.items() if key in numbers)
