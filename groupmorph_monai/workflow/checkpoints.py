"""Checkpoints from which a training resumes, also after a kill, and the best weights so far."""

import logging
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint
from ignite.handlers.checkpoint import BaseSaveHandler
from torch import Tensor, nn

from ..data.writing.output_folder import atomic_file, write_tensors
from ..errors import InputError
from ..networks.contract import unwrapped
from .weights import load_tensors

logger = logging.getLogger(__name__)
BEST = "model_best.pt"
_NAME = re.compile(r"checkpoint_epoch=(\d+)\.pt")


class _AtomicSaver(BaseSaveHandler):
    """Handler that saves checkpoints atomically: a file gets its name once it is complete and can be loaded.

    Args:
        folder: folder of the checkpoints.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def __call__(self, checkpoint: Mapping[str, Any], filename: str, metadata: Mapping[str, Any] | None = None) -> None:
        if idist.get_rank() != 0:
            return
        self.check(checkpoint)
        with atomic_file(self.folder / filename) as path:
            write_tensors(checkpoint, path)
            torch.load(path, map_location="cpu", weights_only=True)

    def check(self, checkpoint: Mapping[str, Any]) -> None:
        """Check that all numbers are finite.

        Raises:
            InputError: If one is not.
        """
        if (name := _not_finite(checkpoint)) is not None:
            raise InputError(
                f"{self.folder}: expected finite weights, got NaN or infinity in {name}; they are not saved: lower "
                "learning_rate, and check kl_weight, noise and the initial weights"
            )

    def remove(self, filename: str) -> None:
        if idist.get_rank() == 0:
            (self.folder / filename).unlink(missing_ok=True)


def _not_finite(checkpoint: Mapping[str, Any]) -> str | None:
    """Return the dotted name of the first tensor with NaN or infinity."""
    tensors = _named_tensors(checkpoint)
    return next((name for name, value in tensors if value.is_floating_point() and not value.isfinite().all()), None)


def _named_tensors(value: object, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors in nested containers with their dotted names."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, (Mapping, list, tuple)):
        for key, part in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _named_tensors(part, f"{name}.{key}" if name else str(key))


class BestWeights:
    """Handler of the evaluator that checks its key metric, and saves the weights of the best to ``model_best.pt``.

    Its state, the best metric and its epoch, is part of the checkpoints, so that a resumed run does not replace better
    weights. `Checkpoints` calls `write` after it has saved the checkpoint of an epoch, and when a run resumes from it:
    a run that is killed in between has a checkpoint from which it resumes, and writes the weights then.

    Args:
        network: network to save.
        output_dir: folder of ``model_best.pt``.
    """

    def __init__(self, network: nn.Module, output_dir: str):
        self.network, self.save = network, _AtomicSaver(output_dir)

    def attach(self, engine: Engine) -> None:
        self.engine = engine
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._check)

    def _check(self, engine: Engine) -> None:
        state: Any = engine.state  # MONAI's evaluator adds attributes
        metric = float(state.metrics[state.key_metric_name])
        if not math.isfinite(metric):
            raise InputError(
                f"{state.key_metric_name}: expected a finite number after epoch {state.epoch}, got {metric}; lower "
                "learning_rate, and check kl_weight and noise"
            )
        self.save.check(self._weights())

    def _weights(self) -> Mapping[str, Any]:
        return unwrapped(self.network).state_dict()

    def write(self, trainer: Engine) -> None:
        """Save the weights if the trainer's last epoch is the best so far."""
        if self.state_dict()["epoch"] == trainer.state.epoch:
            self.save(self._weights(), BEST)

    def state_dict(self) -> dict[str, float]:
        state: Any = self.engine.state
        return {"metric": float(state.best_metric), "epoch": int(state.best_metric_epoch)}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        engine_state: Any = self.engine.state
        engine_state.best_metric, engine_state.best_metric_epoch = state["metric"], state["epoch"]


def saved_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Find the checkpoints in a folder and their epochs, in order, without files of other names, such as copies."""
    names = ((_NAME.fullmatch(path.name), path) for path in folder.glob("*.pt"))
    return sorted((int(name[1]), path) for name, path in names if name)


def _constant(state: Mapping[str, Any]) -> SimpleNamespace:
    """Wrap a dictionary to be saved in a checkpoint."""
    return SimpleNamespace(state_dict=lambda: state)


class Checkpoints:
    """Handler of the trainer that saves a checkpoint after each epoch, and resumes a run from the newest one.

    The last two checkpoints are kept: if the newest is broken, the run resumes from the one before it.

    Args:
        objects: objects with a ``state_dict``, by name; the trainer is named ``trainer``. None values are ignored.
        output_dir: folder of ``checkpoint_epoch=N.pt``.
        best: writer of the best weights.
        inputs: files and folders that the run began with, by setting; a run that resumes with others logs a warning.
        settings: numbers that a resumed run takes from the checkpoint, by name; it must have the same.
    """

    def __init__(
        self,
        objects: Mapping[str, object],
        output_dir: str,
        best: BestWeights,
        inputs: Mapping[str, str | None] | None = None,
        settings: Mapping[str, float] | None = None,
    ):
        self.objects = {name: value for name, value in objects.items() if value is not None} | {"best": best}
        self.best = best
        self.folder, self.settings = Path(output_dir), dict(settings or {})
        self.inputs = {name: path and os.path.abspath(path) for name, path in (inputs or {}).items()}

    def _announce(self, trainer: Engine) -> None:
        logger.info("Training in %s for %s epochs.", self.folder, trainer.state.max_epochs)

    def attach(self, trainer: Engine) -> None:
        """Attach to ``trainer`` and, if the folder has checkpoints, make it resume from the newest when it starts.

        Raises:
            InputError: If this run cannot continue the run in the folder.
        """
        save = Checkpoint(
            {**self.objects, "inputs": _constant(self.inputs), "settings": _constant(self.settings)},
            _AtomicSaver(self.folder),
            score_function=lambda engine: engine.state.epoch,
            score_name="epoch",
            n_saved=2,
        )
        trainer.add_event_handler(Events.EPOCH_COMPLETED, save)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self.best.write)
        trainer.add_event_handler(Events.ITERATION_STARTED(once=1), self._announce)  # the first series could be read
        epoch, checkpoint = self._newest()
        if checkpoint is None:
            return
        saved = [(number, path.name) for number, path in saved_checkpoints(self.folder) if number <= epoch]
        save.load_state_dict({"_saved": saved[-2:]})
        self._check(trainer, epoch, checkpoint)
        logger.info("Resuming the run in %s after epoch %d of %d.", self.folder, epoch, trainer.state.max_epochs)
        trainer.add_event_handler(Events.STARTED, self._load, checkpoint)

    def _newest(self) -> tuple[int, Mapping[str, Any] | None]:
        """Load the newest checkpoint that is not broken; return its epoch and content, or 0 and None without any.

        Raises:
            InputError: If all are broken; a new run would replace the best weights of this one.
        """
        checkpoints = saved_checkpoints(self.folder)
        for epoch, path in reversed(checkpoints):
            try:
                checkpoint = load_tensors(path)
                if (name := _not_finite(checkpoint)) is None:
                    return epoch, checkpoint
                reason = f"NaN or infinity in {name}"
            except ValueError as error:
                reason = str(error)
            logger.warning("%s is broken and ignored: %s", path, reason)
        if checkpoints:
            raise InputError(
                f"output_dir: expected a checkpoint in {self.folder} from which the run can resume, got only broken "
                f"ones; choose another folder, with {BEST} as initial weights, or remove the checkpoints and {BEST}"
            )
        return 0, None

    def _check(self, trainer: Engine, epoch: int, checkpoint: Mapping[str, Any]) -> None:
        epoch_length, state = checkpoint["trainer"]["epoch_length"], trainer.state
        if epoch_length != state.epoch_length:
            raise InputError(
                f"output_dir: {self.folder} holds a run with {epoch_length} iterations per epoch, expected "
                f"{state.epoch_length}; choose another folder, or iterations_per_epoch={epoch_length}"
            )
        if state.max_epochs is not None and epoch > state.max_epochs:
            raise InputError(
                f"output_dir: {self.folder} holds a run of {epoch * epoch_length} iterations, expected one of at most "
                f"{state.max_epochs * epoch_length}; choose another folder, or more iterations"
            )
        began = checkpoint.get("settings", {})
        for name, value in self.settings.items():
            if began.get(name, value) != value:
                raise InputError(
                    f"{name}: expected {began[name]:g}, with which the run in {self.folder} began, got {value:g}; "
                    "choose another folder, or that value"
                )
        saved = checkpoint.get("inputs", {})
        for name, path in self.inputs.items():
            if saved.get(name, path) != path:
                logger.warning(
                    "%s holds a run with %s %s, which resumes although this one has %s; for a new run choose another "
                    "folder",
                    self.folder,
                    name,
                    saved[name],
                    path,
                )

    def _load(self, trainer: Engine, checkpoint: Mapping[str, Any]) -> None:
        max_epochs = trainer.state.max_epochs
        try:
            Checkpoint.load_objects({n: value for n, value in self.objects.items() if n in checkpoint}, checkpoint)
        except (RuntimeError, ValueError, KeyError) as error:
            raise InputError(
                f"output_dir: {self.folder} holds a run of another model or optimiser; choose another folder, or the "
                "overlays and settings of that run"
            ) from error
        trainer.state.max_epochs = max_epochs  # limit of this run, which may be longer than the saved one
        self.best.write(trainer)
