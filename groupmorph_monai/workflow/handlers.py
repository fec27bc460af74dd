"""Handlers for MONAI's engines, and the schedule of the learning rate."""

import math
import time
from typing import Any, cast

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.data import set_rnd
from monai.engines import IterationEvents, Trainer
from monai.handlers import ValidationHandler
from torch import nn
from torch.utils.data import Dataset
from torch.utils.tensorboard import SummaryWriter

from ..probability.elbo import NegativeELBO


class EpochSeed:
    """Handler that seeds every epoch by its number, so that a resumed run draws the same patches and the same z as an
    uninterrupted one.

    Args:
        seed: random seed of the run.
        dataset: data set whose random transforms are seeded too.
    """

    def __init__(self, seed: int, dataset: Dataset[Any]):
        self.seed, self.dataset = seed, dataset

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        # The processes of a distributed training must draw different numbers.
        seed = self.seed + engine.state.epoch + 100_000 * idist.get_rank()
        torch.manual_seed(seed)
        set_rnd(self.dataset, seed=seed)


class GradientClip:
    """Handler that clips the gradient norm before the step of the optimiser.

    With MONAI's ``amp``, the gradients at this point are those of the scaled loss, and are unscaled first.

    Args:
        network: network whose gradient is clipped.
        max_norm: maximum norm of the gradient.
    """

    def __init__(self, network: nn.Module, max_norm: float):
        self.network, self.max_norm = network, max_norm

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Trainer) -> None:
        if engine.scaler is not None:
            engine.scaler.unscale_(engine.optimizer)
        nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)


class ListedOutput:
    """Handler that puts the output of an iteration, a dictionary for the whole batch, into a list.

    MONAI's handlers, such as those for experiment tracking, expect a list of dictionaries, as engines make by
    decollating the batch. Here the batch stays whole, as the loss needs it.
    """

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        # ignite declares a number, but an output may have any type.
        engine.state.output = [engine.state.output]  # type: ignore[assignment]


class StopAfter:
    """Handler that stops a training at the end of the epoch in which a time limit is exceeded.

    In distributed training the clock of rank 0 decides for all processes: if one stopped alone, the others would wait
    for it forever.

    Args:
        minutes: time limit.
    """

    def __init__(self, minutes: float):
        self.minutes = minutes

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def _start(self, engine: Engine) -> None:
        self.started = time.monotonic()

    def __call__(self, engine: Engine) -> None:
        seconds = cast(float, idist.broadcast(time.monotonic() - self.started, src=0))
        if seconds >= 60 * self.minutes:
            engine.terminate()


class Validation(ValidationHandler):
    """Handler that validates after every ``interval`` epochs and after the last one, also if `StopAfter` ends the run.
    A finished training therefore has a ``model_best.pt``, and its last weights compete for it."""

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED(event_filter=self._is_due), self)

    def _is_due(self, engine: Engine, epoch: int) -> bool:
        return epoch % self.interval == 0 or epoch == engine.state.max_epochs or bool(engine.should_terminate)


class LossTerms:
    """Handler that writes the terms of the loss and the learning rate to TensorBoard.

    The terms are recomputed from the output of the iteration, so that the loss module needs no state.

    Args:
        loss: loss of the training.
        optimizer: optimiser whose learning rate is written.
        log_dir: folder of the TensorBoard log.
        interval: number of iterations between two entries.
    """

    def __init__(self, loss: NegativeELBO, optimizer: torch.optim.Optimizer, log_dir: str, interval: int = 20):
        self.loss, self.optimizer, self.interval = loss, optimizer, interval
        self.log_dir = log_dir

    def attach(self, engine: Engine) -> None:
        self.writer = SummaryWriter(self.log_dir)
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.interval), self)
        engine.add_event_handler(Events.COMPLETED, lambda _: self.writer.close())

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        (output,) = engine.state.output  # type: ignore[misc]  # a list, see `ListedOutput`
        loss_terms = self.loss.terms(output["pred"], output["label"])
        terms = {f"train/{name}": value for name, value in loss_terms.items()}
        terms["train/loss"] = output["loss"]
        terms["train/learning_rate"] = self.optimizer.param_groups[0]["lr"]
        terms["train/std_voxels"] = (0.5 * output["pred"]["z_log_variance"]).exp().mean()
        for name, value in terms.items():
            self.writer.add_scalar(name, float(value), engine.state.iteration)


def warmup_and_cosine(iteration: int, iterations: int, warmup: int = 0) -> float:
    """Compute the factor of the learning rate: a linear warm-up from 0, then half a cosine to 0, and 0 afterwards.

    It is a function of its arguments only, so that a finished run that is extended uses the schedule of the longer run.

    Args:
        iteration: current iteration, from 0.
        iterations: length of the schedule.
        warmup: number of iterations of the warm-up, at most ``iterations``.

    Returns:
        Factor between 0 and 1.
    """
    warmup = min(warmup, iterations)
    if iteration < warmup:
        return iteration / warmup
    progress = min(1.0, (iteration - warmup) / max(1, iterations - warmup))
    return (1 + math.cos(math.pi * progress)) / 2
