"""What hangs on MONAI's engines: repeatable epochs, the learning rate, a limit of time, and the loss term by term."""

import math
import time

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.data import set_rnd
from monai.engines import IterationEvents
from torch import nn
from torch.utils.data import Dataset
from torch.utils.tensorboard import SummaryWriter

from ..probability.elbo import NegativeELBO

__all__ = ["EpochSeed", "GradientClip", "ListedOutput", "LossTerms", "StopAfter", "warmup_and_cosine"]


class EpochSeed:
    """Seed every epoch by its number, so that a resumed run draws the same patches and the same z as one never stopped.

    Args:
        seed: of the run.
        dataset: whose random transforms are seeded too.
    """

    def __init__(self, seed: int, dataset: Dataset):
        self.seed, self.dataset = seed, dataset

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        # Processes that train together must not draw the same.
        seed = self.seed + engine.state.epoch + 100_000 * idist.get_rank()
        torch.manual_seed(seed)
        set_rnd(self.dataset, seed=seed)


class GradientClip:
    """Scale the gradient of ``network`` to a norm of at most ``max_norm`` before the optimiser's step.

    Under MONAI's ``amp`` the gradients are scaled up until then, and brought back first.
    """

    def __init__(self, network: nn.Module, max_norm: float):
        self.network, self.max_norm = network, max_norm

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if engine.scaler is not None:
            engine.scaler.unscale_(engine.optimizer)
        nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)


class ListedOutput:
    """Make an iteration's output a list of one dictionary, the whole batch.

    MONAI's handlers, such as those of experiment tracking, look for such a list, which engines make by splitting the
    batch. A loss needs the batch whole.
    """

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        engine.state.output = [engine.state.output]


class StopAfter:
    """Stop a training at the end of the epoch in which ``minutes`` are over.

    Processes that train together go by the first one's clock: where one stops alone, the others wait for ever.
    """

    def __init__(self, minutes: float):
        self.minutes = minutes

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def _start(self, engine: Engine) -> None:
        self.started = time.monotonic()

    def __call__(self, engine: Engine) -> None:
        if idist.broadcast(time.monotonic() - self.started, src=0) >= 60 * self.minutes:
            engine.terminate()


class LossTerms:
    """Write each term of the loss and the learning rate to TensorBoard every ``interval`` iterations.

    The terms are computed anew from the iteration's result, so that the loss stays a function without memory.
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
        (output,) = engine.state.output
        found = self.loss.terms(output["pred"], output["label"])
        terms = {f"train/{name}": value for name, value in found.items()}
        terms["train/loss"] = output["loss"]
        terms["train/learning_rate"] = self.optimizer.param_groups[0]["lr"]
        terms["train/std_voxels"] = (0.5 * output["pred"]["z_log_variance"]).exp().mean()
        for name, value in terms.items():
            self.writer.add_scalar(name, float(value), engine.state.iteration)


def warmup_and_cosine(iteration: int, iterations: int, warmup: int = 0) -> float:
    """Share of the learning rate: up from 0 over ``warmup`` iterations, or over all where these are fewer, then down to
    0 along half a cosine, and 0 after the last.

    It depends on nothing else, so a finished run that is extended takes the rate of the longer one.
    """
    warmup = min(warmup, iterations)
    if iteration < warmup:
        return iteration / warmup
    progress = min(1.0, (iteration - warmup) / max(1, iterations - warmup))
    return (1 + math.cos(math.pi * progress)) / 2
