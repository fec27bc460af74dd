"""Write the results of a run over many series."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from ..data.reading.readers import read_series
from ..data.writing.output_folder import release
from ..errors import InputError
from .output import SeriesWriter


class BatchWriter:
    """Write each registered series, as `SeriesWriter` does, to a subfolder of ``output_dir`` with the series' name.

    Args:
        series: data list items in the order in which the engine processes them: ``name``, and ``image`` as accepted by
            `read_series`.
        output_dir: created if it does not exist.
        options: passed to every `SeriesWriter`.

    Raises:
        InputError: If two series share a name, or if a name is not a valid folder name.
    """

    def __init__(self, series: Sequence[Mapping[str, Any]], output_dir: str, **options: Any):
        self.items, self.output_dir, self.options = list(series), Path(output_dir), options
        names = [item["name"] for item in self.items]
        duplicates = sorted({name for name in names if names.count(name) > 1})
        for name in names:
            if name != Path(name).name:
                raise InputError(f"series: expected valid folder names, got {name!r}; correct dataset.json")
        if duplicates:
            raise InputError(f"series: expected unique names, got {duplicates[0]} twice; rename one in dataset.json")

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def _start(self, engine: Engine) -> None:
        self.started = time.perf_counter()

    def __call__(self, engine: Engine) -> None:
        item = self.items[engine.state.iteration - 1]
        folder = self.output_dir / item["name"]
        writer = SeriesWriter(
            read_series(item["image"], description=item.get("description")), str(folder), **self.options
        )
        writer.started = self.started
        writer(engine)
        release(folder)
