"""What a run over many series leaves behind."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ignite.engine import Engine, Events

from ..data.output_folder import release
from ..data.readers import read_series
from ..errors import InputError
from .output import SeriesWriter

__all__ = ["BatchWriter"]


class BatchWriter:
    """Write each registered series, as `SeriesWriter` does, to a folder of its name in ``output_dir``.

    Args:
        series: items of a data list in the order in which the engine takes them: ``name``, and ``image`` as
            `read_series` takes it.
        output_dir: made if missing.
        options: of every `SeriesWriter`.
    Raises: InputError where two series have one name, or one is no name of a folder.
    """

    def __init__(self, series: Sequence[Mapping], output_dir: str, **options: object):
        self.items, self.output_dir, self.options = list(series), Path(output_dir), options
        names = [item["name"] for item in self.items]
        twice = sorted({name for name in names if names.count(name) > 1})
        for name in names:
            if name != Path(name).name:
                raise InputError(f"series: expected names that are names of folders, got {name!r}; mend dataset.json")
        if twice:
            raise InputError(
                f"series: expected a name of its own for each, got {twice[0]} twice; name them in dataset.json"
            )

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
