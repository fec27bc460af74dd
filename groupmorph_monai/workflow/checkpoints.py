"""What a training keeps on disk: enough to go on after it was killed at any moment, and the best weights so far."""

import logging
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint
from ignite.handlers.checkpoint import BaseSaveHandler
from torch import Tensor, nn

from ..data.writing.output_folder import claim, keep_inputs, whole_file
from ..data.writing.replacement import clean
from ..errors import InputError

__all__ = ["BestWeights", "Checkpoints", "claim_for_training"]

logger = logging.getLogger(__name__)
BEST = "model_best.pt"


def claim_for_training(output_dir: str, weights: str | None = None, dataset_dir: str | None = None) -> None:
    """Keep other runs out of ``output_dir``, on the first of several processes that train together, and remove what
    killed runs have left there.

    Raises: InputError where another run writes there, or where it holds an input.
    """
    if idist.get_rank() == 0:
        keep_inputs(output_dir, [path for path in (weights, dataset_dir) if path])
        claim(output_dir)
        if (cache := Path(output_dir) / "cache").is_dir():
            clean(cache)


class _WholeFiles(BaseSaveHandler):
    """Save checkpoints so that each file is whole, readable and finite before it has its name."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def __call__(self, checkpoint: Mapping, filename: str, metadata: Mapping | None = None) -> None:
        if idist.get_rank() != 0:
            return
        for name, value in _tensors(checkpoint):
            if value.is_floating_point() and not value.isfinite().all():
                raise InputError(
                    f"{self.folder}: expected finite weights, got NaN or infinity in {name}; they are not saved: lower "
                    "learning_rate, and check kl_weight, noise and the weights that the training began from"
                )
        with whole_file(self.folder / filename) as path:
            torch.save(checkpoint, path)
            torch.load(path, map_location="cpu", weights_only=True)

    def remove(self, filename: str) -> None:
        if idist.get_rank() == 0:
            (self.folder / filename).unlink(missing_ok=True)


def _tensors(value: object, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, (Mapping, list, tuple)):
        for key, part in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _tensors(part, f"{name}.{key}" if name else str(key))


class BestWeights:
    """Save the network's weights to ``model_best.pt`` whenever the evaluator's key metric is the best so far.

    Its state tells a resumed run which epoch was the best.
    """

    def __init__(self, network: nn.Module, output_dir: str):
        self.network, self.save = network, _WholeFiles(output_dir)

    def attach(self, engine: Engine) -> None:
        self.engine = engine
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        state = engine.state
        metric = float(state.metrics[state.key_metric_name])
        if not math.isfinite(metric):
            raise InputError(
                f"{state.key_metric_name}: expected a finite number after epoch {state.epoch}, got {metric}; lower "
                "learning_rate, and check kl_weight and noise"
            )
        if state.best_metric_epoch == state.epoch:
            network = getattr(self.network, "module", self.network)  # of DistributedDataParallel
            self.save(network.state_dict(), BEST)

    def state_dict(self) -> dict[str, float]:
        state = self.engine.state
        return {"metric": float(state.best_metric), "epoch": int(state.best_metric_epoch)}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.engine.state.best_metric, self.engine.state.best_metric_epoch = state["metric"], state["epoch"]


class Checkpoints:
    """Save what a training needs to go on after each epoch, and let it go on after the last epoch that was saved.

    The last two checkpoints are kept: where the newest is broken, a run goes on from the one before.

    Args:
        objects: names and objects with a state, the trainer as ``trainer``; one that is None is left out.
        output_dir: folder of ``checkpoint_epoch=N.pt``.
    """

    def __init__(self, objects: Mapping[str, object], output_dir: str):
        self.objects = {name: value for name, value in objects.items() if value is not None}
        self.folder = Path(output_dir)

    def attach(self, trainer: Engine) -> None:
        """Raises: InputError where the folder holds a run that this one cannot continue."""
        save = Checkpoint(
            self.objects,
            _WholeFiles(self.folder),
            score_function=lambda engine: engine.state.epoch,
            score_name="epoch",
            n_saved=2,
        )
        trainer.add_event_handler(Events.EPOCH_COMPLETED, save)
        epoch, checkpoint = self._newest()
        if checkpoint is None:
            return
        saved = [(_epoch(path), path.name) for path in self._files() if _epoch(path) <= epoch]
        save.load_state_dict({"_saved": saved[-2:]})
        self._check(trainer, epoch, checkpoint)
        logger.info("Going on after epoch %d of %d of the run in %s.", epoch, trainer.state.max_epochs, self.folder)
        trainer.add_event_handler(Events.STARTED, self._load, checkpoint)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoint_epoch=*.pt"), key=_epoch)

    def _newest(self) -> tuple[int, Mapping | None]:
        for path in reversed(self._files()):
            try:
                return _epoch(path), torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:  # pickle, zipfile and PyTorch each have their own kinds
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                logger.warning("%s is broken (%s); the run goes on from the one before", path, reason)
        return 0, None

    def _check(self, trainer: Engine, epoch: int, checkpoint: Mapping) -> None:
        saved, state = checkpoint["trainer"]["epoch_length"], trainer.state
        if saved != state.epoch_length:
            raise InputError(
                f"output_dir: {self.folder} holds a run whose epochs have {saved} iterations, these have "
                f"{state.epoch_length}; choose another folder, or iterations_per_epoch={saved}"
            )
        if epoch > state.max_epochs:
            raise InputError(
                f"output_dir: {self.folder} holds a run of {epoch * saved} iterations, expected one of at most "
                f"{state.max_epochs * saved}; choose another folder, or more iterations"
            )

    def _load(self, trainer: Engine, checkpoint: Mapping) -> None:
        wanted = trainer.state.max_epochs
        try:
            Checkpoint.load_objects({n: value for n, value in self.objects.items() if n in checkpoint}, checkpoint)
        except (RuntimeError, ValueError, KeyError) as error:
            raise InputError(
                f"output_dir: {self.folder} holds a run of another model or optimiser; choose another folder, or the "
                "overlays and settings of that run"
            ) from error
        trainer.state.max_epochs = wanted


def _epoch(path: Path) -> int:
    return int(re.search(r"epoch=(\d+)", path.name)[1])
